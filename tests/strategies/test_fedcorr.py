"""fedcorr at the server: stages by hand, planted noisy clients, who is left out, a federation without noise."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from fedmlic.arrays import Resident
from fedmlic.errors import InputError
from fedmlic.methods.fedcorr import NOISY, SCORE, SCORED, STAGE, TOOK_PART
from fedmlic.spec import build
from fedmlic.two_groups import two_groups
from fedmlic.update import Update, units_for
from strategies.fedcorr import REPORT
from strategies.strategy import Round

LAYOUT = Resident(nn.Linear(2, 3), num_labels=3, label_rows=["weight", "bias"]).layout
SCORES = [2.0, 2.1, 5.0, 1.9, 5.2, 2.05, 1.95, 4.9]


def updates(strategy, scores, trains=None):
    """Clients of 10 images whose models are their numbers; a score of None is none."""
    found = []
    for client, score in enumerate(scores):
        took = 1.0 if trains is None else float(trains[client])
        told = {SCORE: score or 0.0, SCORED: float(score is not None), TOOK_PART: took}
        update = Update.zero(LAYOUT, units_for(strategy.weighting, [10], 3))
        update.add_client(
            client,
            torch.full((LAYOUT.size,), float(client)),
            weighting=strategy.weighting,
            num_images=10,
            annotations=torch.tensor([10, 10, 10]),
            metrics={"loss": 0.0, **told},
        )
        found.append(update)
    return found


def played(text, rounds):
    """States after rounds of updates."""
    strategy = build("strategy", text)
    state, found = strategy.init(torch.zeros(LAYOUT.size), LAYOUT), []
    for number, given in enumerate(rounds, start=1):
        state = strategy.aggregate(state, updates(strategy, *given), Round(number, 8, 8, LAYOUT))
        found.append(state)
    return found


@pytest.mark.parametrize(("noisy", "expected"), [("larger", [2, 4, 7]), ("smaller", [0, 1, 3, 5, 6])])
def test_planted_noisy_clients_are_found(noisy, expected):
    (state,) = played(f"fedcorr(noisy='{noisy}')", [(SCORES,)])

    assert state.shared[NOISY].tolist() == expected
    assert state.metrics["num-noisy"] == len(expected)


def test_stages_follow_each_other_and_the_verdict_stays():
    found = played("fedcorr(preprocessing=2, finetuning=1)", [(SCORES,), (SCORES,), ([None] * 8,), ([None] * 8,)])

    assert [int(state.shared[STAGE]) for state in found] == [1, 2, 3, 3]
    assert all(state.shared[NOISY].tolist() == [2, 4, 7] for state in found)


def test_stages_go_on_in_a_round_that_nobody_answers():
    found = played("fedcorr(preprocessing=2, finetuning=1)", [(SCORES,), ([],), ([],)])

    assert [int(state.shared[STAGE]) for state in found] == [1, 2, 3]
    assert all(state.shared[NOISY].tolist() == [2, 4, 7] for state in found)
    assert all(torch.equal(state.flat, found[0].flat) for state in found)
    assert played("fedcorr(preprocessing=1)", [([],)])[0].shared[NOISY].tolist() == []


def test_scores_are_averaged_over_a_client_s_turns():
    """Client 0 scores 9 and then 1.1, the others the same in both rounds: its mean is 5.05."""
    first, second = [9.0, *SCORES[1:]], [1.1, *SCORES[1:]]
    found = played("fedcorr(preprocessing=2)", [(first,), (second,)])

    assert found[1].shared[NOISY].tolist() == [0, 2, 4, 7]
    means = sum(first) / 8, sum(second) / 8
    assert found[1].memory[f"{REPORT}0"].tolist() == pytest.approx([10.1 - sum(means), 2.0], abs=1e-5)


def in_two_rounds(scores, by=3.0):
    """Clients 0 to 3 take part in the first round alone, whose scores are larger, the others in the second."""
    return [([each + by for each in scores[:4]] + [None] * 4,), ([None] * 4 + list(scores[4:]),)]


@pytest.mark.parametrize(("noisy", "expected"), [("larger", [2, 4, 7]), ("smaller", [0, 1, 3, 5, 6])])
def test_noisy_clients_are_found_whichever_round_they_took_part_in(noisy, expected):
    found = played(f"fedcorr(preprocessing=2, noisy='{noisy}')", in_two_rounds(SCORES))

    assert found[1].shared[NOISY].tolist() == expected


def test_clients_that_are_equally_clean_are_not_split_by_their_rounds():
    """Beside the rounds their scores differ by chance alone, or not at all."""
    for scores in (np.random.default_rng(0).normal(2, 0.1, 8).tolist(), [2.0] * 8):
        found = played("fedcorr(preprocessing=2, level=0.05)", in_two_rounds(scores))
        assert found[1].shared[NOISY].tolist() == []
    assert played("fedcorr(preprocessing=2)", in_two_rounds([2.1] * 8, by=1 / 3))[1].shared[NOISY].tolist() == []


def test_where_all_take_part_means_change_nothing():
    """Clients' means are those of their scores but for one number, so that groups and chances are the same."""
    other = [score + shift for score, shift in zip(SCORES, np.linspace(0, 1, 8), strict=True)]
    state = played("fedcorr(preprocessing=2, level=1.0)", [([score + 3 for score in other],), (SCORES,)])[1]

    totals = torch.stack([state.memory[f"{REPORT}{client}"] for client in range(8)])
    plain = [(score + 3 + further) / 2 for score, further in zip(SCORES, other, strict=True)]
    apart = totals[:, 0] / totals[:, 1] - torch.tensor(plain, dtype=torch.float64)
    assert (apart - apart[0]).abs().max() < 1e-5
    upper = two_groups(torch.tensor(plain)[:, None], tied=True).upper
    assert state.shared[NOISY].tolist() == upper.nonzero().flatten().tolist()


def test_clients_that_sit_out_do_not_count():
    found = played("fedcorr(preprocessing=1, finetuning=2)", [(SCORES,), (SCORES, [1, 1, *[0] * 6]), (SCORES, [0] * 8)])

    for state, expected in zip(found, (3.5, 0.5), strict=False):
        assert all((view == expected).all() for _, view in LAYOUT.views(state.flat))
    assert torch.equal(found[2].flat, found[1].flat)


def test_where_nobody_is_noisy_mostly_nobody_is_named():
    rng = np.random.default_rng(0)
    named = [len(played("fedcorr(level=0.2)", [(rng.normal(3, 0.2, 8).tolist(),)])[0].shared[NOISY]) for _ in range(4)]

    assert sum(count > 0 for count in named) <= 3  # each at 0.2: all four at 0.0016
    assert len(played("fedcorr()", [(rng.normal(3, 0.2, 8).tolist(),)])[0].shared[NOISY]) > 0


@pytest.mark.parametrize("scores", [[5.0], [5.0, 2.0], [None, None, 2.0]])
def test_few_scores_name_nobody(scores):
    assert played("fedcorr(preprocessing=1)", [(scores,)])[0].shared[NOISY].tolist() == []


def test_a_method_that_reports_nothing_is_refused():
    with pytest.raises(InputError, match=r"method='fedcorr\(\)'"):
        played("fedcorr(preprocessing=1)", [([None] * 4,)])


@pytest.mark.parametrize("num_clients", [1, 6])
def test_a_run_without_noise_goes_through_all_stages(play, tmp_path, num_clients):
    play(
        tmp_path / "run",
        method="fedcorr()",
        strategy="fedcorr(preprocessing=2, finetuning=1)",
        allow_statistics=True,
        num_clients=num_clients,
        cohort_size=0,
    )

    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    rounds = [event for event in events if event["event"] == "round"]
    clean = num_clients - rounds[1]["strategy/num-noisy"]
    assert [each["method/scored-clients"] for each in rounds] == [num_clients, num_clients, 0, 0]
    assert clean <= rounds[2]["method/training-clients"] <= num_clients
    assert clean > 0
    assert rounds[3]["loss"] < rounds[0]["loss"]
