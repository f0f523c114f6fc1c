"""fednoro at the server: the matrix and distances by hand, planted noisy clients, weights, nobody noisy."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from fedmlic.arrays import Resident
from fedmlic.errors import InputError
from fedmlic.methods.fednoro import ENTRIES, LOSSES, NOISY, SINCE, loss_report
from fedmlic.protocol import ROUND_SUMS
from fedmlic.spec import build
from fedmlic.update import Update, units_for
from strategies.fednoro import REPORT, against_mean, cells_of, distances, loss_matrix
from strategies.strategy import Round, State

LAYOUT = Resident(nn.Linear(2, 3), num_labels=3, label_rows=["weight", "bias"]).layout


def values(flat):
    """All numbers of a model, without what lies between its tensors."""
    return torch.cat([view.flatten() for _, view in LAYOUT.views(flat)]).tolist()


def here(number, num_clients=8):
    return Round(number, num_clients, num_clients, LAYOUT)


def test_the_matrix_by_hand():
    """Two clients more than one label: a cell without entries is the least of its column, columns go from 0 to 1."""
    losses = torch.tensor([[[1.0], [4.0]], [[3.0], [0.0]], [[2.0], [8.0]]])
    entries = torch.tensor([[[3], [1]], [[1], [0]], [[1], [1]]])

    assert loss_matrix(*cells_of(losses, entries, cells="state")).tolist() == [[0.0, 0.0], [1.0, 0.0], [0.5, 1.0]]
    # Means over both states: 7/4, 3, 5.
    found = loss_matrix(*cells_of(losses, entries, cells="label")).flatten().tolist()
    assert found == pytest.approx([0.0, 1.25 / 3.25, 1.0])


def test_columns_that_nobody_fills_and_single_clients_are_nought():
    nothing = torch.zeros(3, 4)

    assert not loss_matrix(nothing, nothing.long()).any()
    assert loss_matrix(torch.ones(1, 4), torch.ones(1, 4).long()).tolist() == [[0.0] * 4]
    assert not loss_matrix(torch.tensor([[0.0], [1e-12]]), torch.ones(2, 1).long()).any()


def test_losses_against_their_mean_by_hand():
    """Column means over holders: (1 + 3 + 2) / 3, (4 + 8) / 2 and none."""
    losses = torch.tensor([[1.0, 4.0, 0.0], [3.0, 0.0, 0.0], [2.0, 8.0, 0.0]])
    entries = torch.tensor([[3, 1, 0], [1, 0, 0], [1, 1, 0]])

    assert against_mean(losses, entries).tolist() == [[-1.0, -2.0, 0.0], [1.0, 0.0, 0.0], [0.0, 2.0, 0.0]]


def test_distances_by_hand():
    """Nine numbers: the weight has six and the bias three, so models of 0 and v are v (sqrt 6 + sqrt 3) apart."""
    models = [torch.full((LAYOUT.size,), value) for value in (0.0, 1.0, 3.0, -1.0)]

    found = distances(models, [False, False, True, True], LAYOUT)

    assert found == pytest.approx([0.0, 0.0, 1.0, 0.5])  # 3 is 2 from 1; -1 is 1 from 0
    assert distances(models, [True] * 4, LAYOUT) == [0.0] * 4


def reports(noise, seed=0, num_images=400):
    """What clients would report whose labels are flipped at these rates, of a well calibrated model."""
    rng, found = np.random.default_rng(seed), []
    for rate in noise:
        probs = rng.beta(0.3, 0.6, (num_images, 3)).clip(0.01, 0.99)
        truth = rng.random(probs.shape) < probs
        labels = np.where(rng.random(probs.shape) < rate, ~truth, truth).astype(np.int8)
        found.append(loss_report(torch.logit(torch.from_numpy(probs)), torch.from_numpy(labels)))
    return found


def updates(strategy, told, models=None):
    found = []
    for client, report in enumerate(told):
        update = Update.zero(LAYOUT, units_for(strategy.weighting, [10], 3))
        flat = torch.full((LAYOUT.size,), float(client if models is None else models[client]))
        update.add_client(
            client,
            flat,
            weighting=strategy.weighting,
            num_images=10,
            annotations=torch.tensor([10, 10, 10]),
            metrics={"loss": 0.0},
            extras={ROUND_SUMS + name: tensor for name, tensor in report.items()},
        )
        found.append(update)
    return found


def after(told, text="fednoro(warm_up=1)"):
    strategy = build("strategy", text)
    return strategy, strategy.aggregate(State(torch.zeros(LAYOUT.size)), updates(strategy, told), here(1, len(told)))


@pytest.mark.parametrize("noise", [0.2, 0.4])
def test_planted_noisy_clients_are_found(noise):
    _, state = after(reports([0, 0, noise, 0, 0.9 * noise, 0, 0, 1.1 * noise]))

    assert state.shared[NOISY].tolist() == [2, 4, 7]
    assert int(state.shared[SINCE]) == 2
    assert state.metrics["num-noisy"] == 3.0


def test_where_nobody_is_noisy_mostly_nobody_is_named_and_models_are_averaged_by_images():
    found = [after(reports([0.0] * 8, seed), "fednoro(warm_up=1, level=0.2)")[1] for seed in range(4)]

    assert sum(len(state.shared[NOISY]) > 0 for state in found) <= 3  # each at 0.2: all four at 0.0016
    quiet = next(state for state in found if not len(state.shared[NOISY]))
    strategy = build("strategy", "fednoro(warm_up=1)")
    merged = strategy.aggregate(quiet, updates(strategy, reports([0.0] * 8)), here(2)).flat
    assert values(merged) == pytest.approx([3.5] * 9)


def test_named_clients_weigh_by_their_distance():
    """Models 0, 0, 2 and 1, the last two noisy: weights 1, 1, exp(-1), exp(-1/2)."""
    strategy = build("strategy", "fednoro()")
    state = State(torch.zeros(LAYOUT.size), shared={NOISY: torch.tensor([2, 3]), SINCE: torch.tensor(2)})
    sent = updates(strategy, [{}] * 4, [0.0, 0.0, 2.0, 1.0])
    expected = (2 * math.exp(-1) + math.exp(-0.5)) / (2 + math.exp(-1) + math.exp(-0.5))

    assert values(strategy.aggregate(state, sent, here(3)).flat) == pytest.approx([expected] * 9, rel=1e-6)
    plain = build("strategy", "fednoro(distance_aware=False)")
    assert values(plain.aggregate(state, sent, here(3)).flat) == pytest.approx([0.75] * 9)
    only = updates(strategy, [{}] * 4, [0.0, 0.0, 2.0, 1.0])[2:]
    assert values(strategy.aggregate(state, only, here(3)).flat) == pytest.approx([1.5] * 9)


def test_the_last_report_counts_and_the_verdict_stays():
    strategy = build("strategy", "fednoro(warm_up=2)")
    state = State(torch.zeros(LAYOUT.size))
    noisy = reports([0, 0, 0.4, 0, 0.35, 0, 0, 0.45])

    state = strategy.aggregate(state, updates(strategy, reports([0.4, 0.4, *[0.0] * 6])), here(1))
    assert NOISY not in state.shared
    state = strategy.aggregate(state, updates(strategy, noisy)[:7], here(2))  # client 7 fails; it was not noisy before
    assert state.shared[NOISY].tolist() == [2, 4]
    state = strategy.aggregate(state, updates(strategy, reports([0.4, 0.4, *[0.0] * 6])), here(3))
    assert state.shared[NOISY].tolist() == [2, 4]


def worse(told, by=0.5):
    """The reports of a model whose losses are all larger by as much."""
    return [{LOSSES: report[LOSSES] + by * (report[ENTRIES] > 0), ENTRIES: report[ENTRIES]} for report in told]


def in_two_rounds(told, cells="state", options=""):
    """Clients 0 to 3 report of the first round's model alone, whose losses are larger, the others of the second's."""
    strategy = build("strategy", f"fednoro(warm_up=2, cells='{cells}'{options})")
    state = State(torch.zeros(LAYOUT.size))
    state = strategy.aggregate(state, updates(strategy, worse(told))[:4], here(1, len(told)))
    return strategy.aggregate(state, updates(strategy, told)[4:], here(2, len(told)))


@pytest.mark.parametrize("cells", ["state", "label"])
def test_noisy_clients_are_found_whichever_round_their_report_is_of(cells):
    state = in_two_rounds(reports([0, 0.4, 0, 0, 0, 0, 0.4, 0]), cells)

    assert state.shared[NOISY].tolist() == [1, 6]


def test_clients_that_are_equally_clean_are_not_split_by_their_rounds():
    """Beside the rounds their losses differ by chance alone."""
    state = in_two_rounds(reports([0.0] * 8), options=", level=0.05")

    assert state.shared[NOISY].tolist() == []
    assert state.metrics["chance-of-one"] > 0.05


@pytest.mark.parametrize("cells", ["state", "label"])
def test_where_all_take_part_in_the_last_round_means_change_nothing(cells):
    """The matrix is that of the reports as they came, and of the first round nothing is left."""
    told = reports([0, 0.3, 0, 0, 0.2, 0.4])
    told[2][LOSSES][1], told[2][ENTRIES][1] = 0.0, 0  # writes down no present entry
    losses, entries = (torch.stack([report[name] for report in told]) for name in (LOSSES, ENTRIES))
    strategy = build("strategy", f"fednoro(warm_up=2, cells='{cells}')")
    state = strategy.aggregate(State(torch.zeros(LAYOUT.size)), updates(strategy, worse(told)[::-1]), here(1, 6))

    state = strategy.aggregate(state, updates(strategy, told), here(2, 6))

    found = loss_matrix(*torch.stack([state.memory[f"{REPORT}{client}"] for client in range(6)], dim=1))
    torch.testing.assert_close(found, loss_matrix(*cells_of(losses, entries, cells=cells)), rtol=0, atol=1e-8)
    assert state.shared[NOISY].tolist() == [1, 4, 5]


@pytest.mark.parametrize("cells", ["state", "label"])
def test_a_client_without_annotations_has_no_row(cells):
    """Rows of zeros would pass for a perfect client, and all others for noisy ones."""
    told = reports([0, 0, 0, 0.05, 0.4, 0, 0.4])
    silent = {LOSSES: torch.zeros(2, 3, dtype=torch.float64), ENTRIES: torch.zeros(2, 3, dtype=torch.int64)}

    _, state = after([*told, silent, silent], f"fednoro(warm_up=1, cells='{cells}')")

    assert state.shared[NOISY].tolist() == [4, 6]
    assert f"{REPORT}7" not in state.memory
    _, nobody = after([silent] * 4, "fednoro(warm_up=1, level=0.2)")
    assert nobody.shared[NOISY].tolist() == []


@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_clients_are_never_noisy(count):
    _, state = after(reports([0.4, 0.0][:count]))

    assert state.shared[NOISY].tolist() == []


def test_a_method_that_reports_nothing_is_refused():
    strategy = build("strategy", "fednoro(warm_up=1)")

    with pytest.raises(InputError, match=r"method='fednoro\(\)'"):
        strategy.aggregate(State(torch.zeros(LAYOUT.size)), updates(strategy, [{}] * 3), here(1))


def test_the_report_has_the_names_that_are_read():
    assert set(reports([0.0])[0]) == {LOSSES, ENTRIES}


@pytest.mark.parametrize("num_clients", [1, 6])
def test_a_run_without_noise_ends_with_a_model_that_has_learned(play, tmp_path, num_clients):
    play(
        tmp_path / "run",
        method="fednoro(ramp=1)",
        strategy="fednoro(warm_up=1)",
        allow_statistics=True,
        statistics_min_clients=1,
        num_clients=num_clients,
        cohort_size=0,
        num_rounds=3,
    )

    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    rounds = [event for event in events if event["event"] == "round"]
    assert 0 <= rounds[0]["strategy/num-noisy"] < num_clients
    assert [each["method/taught-clients"] for each in rounds] == [0.0, *[rounds[0]["strategy/num-noisy"]] * 2]
    assert rounds[2]["loss"] < rounds[0]["loss"]
