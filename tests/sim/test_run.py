"""Putting a run together on this machine."""

import numpy as np
import pytest

from clients.opening import open_host
from fedmlic.errors import InputError
from sim.engines.workers import num_workers
from sim.run import describe_federation, run
from sim.watch import Watch


class Notes(Watch):
    """Writes down what a display would hear of."""

    def __init__(self):
        self.heard = []

    def building(self, what, done, total):
        self.heard.append(("building", what, done, total))

    def started(self, folder, experiment, resumed_round):
        assert folder.path.exists()
        self.heard.append(("started", experiment.num_rounds, resumed_round))

    def turn(self, round_number, turn, total):
        self.heard.append(("turn", round_number, turn.client, total))

    def event(self, kind, values):
        self.heard.append(("event", kind, values.get("round")))


def test_a_display_hears_of_everything_in_order(tiny, tmp_path):
    notes = Notes()
    dataset = "multidigits(num_train=240, num_val=30, num_test=60, image_size=24, num_owners=12, seed=77)"

    run(*tiny(num_rounds=2, dataset=dataset), tmp_path / "run", notes)

    kinds = [entry[0] for entry in notes.heard]
    assert kinds.index("building") < kinds.index("started") < kinds.index("turn")
    built = [entry for entry in notes.heard if entry[0] == "building"]
    assert built[-1][2] == built[-1][3] == 330
    turns = [entry for entry in notes.heard if entry[0] == "turn"]
    assert [turn[1] for turn in turns] == [1] * 4 + [2] * 4
    assert all(turn[3] == 4 for turn in turns)
    assert ("event", "round", 2) in notes.heard
    assert ("started", 2, 0) in notes.heard


def test_a_watch_may_ignore_everything(tiny, tmp_path):
    assert run(*tiny(num_rounds=1), tmp_path / "run", Watch())["rounds"] == 1


@pytest.mark.parametrize(
    ("workers", "cohort", "clients", "expected"),
    [(3, 10, 20, 3), (30, 10, 20, 10), (30, 0, 20, 20), (1, 10, 20, 1), (5, 0, 0, 5)],
)
def test_there_are_never_more_workers_than_clients_to_play(tiny, workers, cohort, clients, expected):
    experiment, runtime = tiny(num_clients=clients, cohort_size=cohort, workers=workers)

    assert num_workers(experiment, runtime) == expected


def test_by_default_there_is_a_worker_per_core(tiny, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(3)), raising=False)

    assert num_workers(*tiny(workers=0)) == 3
    assert num_workers(*tiny(workers=0, cohort_size=2)) == 2


def test_the_federation_described_is_the_one_that_is_played(tiny):
    experiment, runtime = tiny()
    described = describe_federation(experiment, runtime)

    info = open_host("w", experiment, runtime, label_names=described.label_names).info()

    assert np.array_equal(described.sizes, info.sizes)
    assert info.clients.tolist() == list(range(6))


def test_a_host_that_sees_other_labels_is_refused(tiny):
    with pytest.raises(InputError, match="Expected w to see the labels"):
        open_host("w", *tiny(), label_names=("a", "b"))


def test_a_cohort_larger_than_what_the_partition_found_is_refused_before_anything_is_written(tiny, tmp_path):
    with pytest.raises(InputError, match="at most the 12 clients that natural"):
        run(*tiny(partition="natural()", num_clients=0, cohort_size=13), tmp_path / "run")

    assert not (tmp_path / "run").exists()
    found = run(*tiny(partition="natural()", num_clients=0, cohort_size=12, num_rounds=1), tmp_path / "run")
    assert found["rounds"] == 1
