"""The table of what methods cost: its place in a page, its lines, and that the script reaches what it needs."""

from importlib import import_module
from pathlib import Path

import pytest
import torch

from fedmlic.errors import InputError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def costs(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return import_module("method_costs")


def test_the_table_replaces_what_lies_between_the_marks_and_nothing_else(costs):
    page = (ROOT / "docs" / "methods" / "README.md").read_text(encoding="utf-8")

    once = costs.written(page, "a table")
    head, foot = page.partition(costs.BEGIN)[0], page.partition(costs.END)[2]

    assert once == f"{head}{costs.BEGIN}\na table\n{costs.END}{foot}"
    assert costs.written(once, "a table") == once
    for text in ("no marks", costs.BEGIN, costs.END + costs.BEGIN):
        with pytest.raises(InputError, match="Add them where the table belongs"):
            costs.written(text, "a table")


SMALL = ("small_cnn(width=4, num_blocks=0)", 3, 16, 2, 4, 1, torch.device("cpu"))
"""Work of a moment."""

STAND = '''
import torch
import torch.nn.functional as F
from torch import nn
from fedmlic.diffusion import DiffusionBackbone
from fedmlic.model import Model


class Stand(DiffusionBackbone):
    bn_policy, num_features, num_blocks, num_timesteps, block, timestep = "none", 12, 3, 1000, 1, 100

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))

    def at(self, images, blocks, timestep):
        pooled = F.adaptive_avg_pool2d(images, 2).flatten(1) * self.gain
        return torch.stack([pooled * (block + timestep) for block in blocks], dim=1)

    def forward(self, images):
        return self.at(images, [self.block], self.timestep)[:, 0, :, None, None]


def stand() -> Model:
    """Twelve numbers of an image."""
    return Model(lambda channels: Stand())
'''


@pytest.mark.parametrize("number", [1, 2])
def test_every_timed_turn_computes_the_features_that_the_one_before_kept(costs, plug, number):
    plug("stand_features", STAND)
    work = costs.Work("stand_features.stand()", *SMALL[1:])
    experiment = costs.experiment_of(work, {"model": work.model, "method": "diff_feat(search_rounds=1)"})

    one = costs.player(experiment, costs.client(work), work, number)
    kept = one.learner.resident.network.kept
    computed = []
    for _ in range(2):
        before = kept.computed
        one.seconds()
        computed.append(kept.computed - before)

    looks = 3 if number == 1 else 1  # timesteps of five candidates in a round of the search, one for the head
    assert computed == [8 * looks] * 2


@pytest.mark.parametrize(
    ("name", "kind", "metrics"),
    [
        ("fednoro", "before the verdict", {"taught-clients": 0}),
        ("fednoro", "after it, a noisy client", {"taught-clients": 1}),
        ("fednoro", "after it, another client", {"taught-clients": 0}),
        ("fedcorr", "stage 1, a noisy client", {"scored-clients": 1, "training-clients": 1}),
        ("fedcorr", "stage 1, another client", {"scored-clients": 1, "training-clients": 1, "noise-level": 0}),
        ("fedcorr", "stages 2 and 3", {"scored-clients": 0, "training-clients": 1}),
    ],
)
def test_turns_that_depend_on_what_the_server_says_have_a_row_each(costs, name, kind, metrics):
    work = costs.Work(*SMALL)
    (situation,) = [each for each in costs.SITUATIONS[name] if each.name == kind]
    experiment = costs.experiment_of(work, {"model": work.model, "method": f"{name}()"})

    one = costs.player(experiment, costs.client(work), work, costs.ROUNDS, situation.told)
    local = one._local(one.number)
    told = one._train(local)

    assert told.metrics.items() >= metrics.items()
    assert told.num_steps == 2
    assert (one.memory != {}) == (name == "fedcorr")
    assert ("fednoro/losses" in local.round_sums) == (kind == "before the verdict")
    if kind == "stage 1, a noisy client":
        assert told.metrics["noise-level"] > 0
    rows = costs.rows_of(name, work)
    assert [row.name for row in rows] == [f"{name}, {each.name}" for each in costs.SITUATIONS[name]]


@pytest.mark.parametrize(
    ("name", "rounds", "steps"),
    [
        ("fedalign", [""], [True]),
        ("ridge", [""], [False]),
        ("probe_then_tune", [", rounds 1-5", ", rounds 6-100"], [True] * 2),
    ],
)
def test_lines_of_plain_solved_and_phased_methods(costs, name, rounds, steps):
    work = costs.Work("small_cnn(width=4, num_blocks=0)", 3, 16, 2, 4, 1, torch.device("cpu"))

    rows = costs.rows_of(name, work)

    assert [row.name for row in rows] == [name + each for each in rounds]
    assert [row.step is not None for row in rows] == steps
    for row in rows:
        assert row.turn > 0
        assert row.counted["bytes_up"] >= 4 * row.counted["exchanged"]
        assert costs.line(row).count("|") == costs.HEAD[0].count("|")


def test_some_methods_measured_anew_leave_the_lines_of_the_others_alone(costs):
    page = (ROOT / "docs" / "methods" / "README.md").read_text(encoding="utf-8")
    old = costs.standing(page)
    unknown = {name: lines for name, lines in old.lines.items() if name != "csl"}
    without = costs.written(page, old._replace(lines=unknown).table())
    new = costs.Measured(
        old.work, "another machine.", {}, {"csl": ["| [csl](csl.md), anew |"], "bce": ["| [bce](bce.md), anew |"]}
    )

    whole = costs.merged(without, new)
    again = costs.standing(costs.written(without, whole.table()))

    assert costs.written(page, old.table()) == page
    assert again == whole
    assert list(again.lines) == list(old.lines)
    assert {name for name in old.lines if again.lines[name] != old.lines[name]} == {"csl", "bce"}
    assert (again.where, again.later) == (
        old.where,
        {**old.later, "bce": "another machine.", "csl": "another machine."},
    )


def test_a_table_of_other_work_and_a_name_that_is_no_method_are_refused(costs):
    page = (ROOT / "docs" / "methods" / "README.md").read_text(encoding="utf-8")
    old = costs.standing(page)

    with pytest.raises(InputError, match="Leave out the options that change it"):
        costs.merged(page, old._replace(work=old.work.replace("20 labels", "80 labels")))
    with pytest.raises(InputError, match="Measure all methods once"):
        costs.standing(costs.written(page, "| another | table |"))
    with pytest.raises(InputError, match=r"got 'bcee'\. Did you mean 'bce'"):
        costs.chosen(["bcee"])
    assert costs.chosen(["mine.mine"]) == ["mine.mine"]
    assert costs.standing(f"{costs.BEGIN}\n{costs.END}") is None


def test_what_cannot_be_measured_says_why(costs):
    work = costs.Work("small_cnn(width=4, num_blocks=0)", 200, 16, 2, 4, 1, torch.device("cpu"))

    (row,) = costs.rows_of("fednca", work)

    assert row.note.startswith("not measured: Expected 2 to")
    assert costs.line(row).count(" - ") == 6
