"""What a turn may add, in whole runs: memory, shared tensors and further sums, phases, counts before round 1."""

from pathlib import Path

import numpy as np
import pytest
import torch

from clients.opening import open_federation
from fedmlic.corpus import open_corpus
from fedmlic.errors import InputError
from fedmlic.experiment import flower_config
from fedmlic.labels import PRESENT
from fedmlic.record import open_run
from fedmlic.spec import build
from sim import run as engine
from strategies.server import rounds

TURNS = (Path(__file__).parents[1] / "fixtures" / "turns.py").read_text(encoding="utf-8")
CONTROL = {"strategy": "turns.control()", "optimizer": "sgd", "learning_rate": 0.05}
COUNTS = {"method": "turns.phased(statistics=True)", "allow_statistics": True, "statistics_min_clients": 1}
EVERYTHING = {**CONTROL, **COUNTS, "mods": "turns.busy()"}
"""Memory of a rule and of a mod, private tensors, phases with stages in them, counts."""

CASES = {
    "memory, shared tensors and further sums": CONTROL,
    "the same, each update by itself": {**CONTROL, "strategy": "turns.control(each=True)"},
    "everything at once": EVERYTHING,
}


@pytest.fixture
def turns(plug):
    return plug("turns", TURNS)


def events(path, kind):
    return [event for event in open_run(path).events() if event["event"] == kind]


def model_of(path, number):
    tensors, _ = open_run(path).load_checkpoint(number)
    return {name.removeprefix("model/"): value for name, value in tensors.items() if name.startswith("model/")}


@pytest.mark.usefixtures("turns")
@pytest.mark.parametrize("case", CASES)
def test_one_hash_in_process_and_on_one_and_two_processes(play, tmp_path, case):
    expected = play(tmp_path / "in-process", **CASES[case])
    for workers in (1, 2):
        result = play(tmp_path / f"{workers}", engine="processes", workers=workers, **CASES[case])

        assert expected["weights_sha256"] == result["weights_sha256"]
        first, second = (events(tmp_path / name, "round") for name in ("in-process", f"{workers}"))
        for key in ("strategy/norm", "strategy/turns", "bytes-up", "bytes-down", "loss"):
            assert [event[key] for event in first] == [event[key] for event in second]
    assert not any(event.get("error") for event in events(tmp_path / "in-process", "client"))


@pytest.mark.slow
@pytest.mark.usefixtures("turns")
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:GitWildMatchPattern:DeprecationWarning")
@pytest.mark.parametrize("kind", ["ray", "flower"])
def test_one_hash_on_ray_and_under_flower(play, tmp_path, kind):
    # The mods of a server's rule travel with the request: under Flower they must be of the catalogue.
    changes = {**EVERYTHING, "strategy": "scaffold()"}
    expected = play(tmp_path / "in-process", **changes)

    result = play(tmp_path / kind, engine=kind, workers=2, **changes)

    assert expected["weights_sha256"] == result["weights_sha256"]
    for key in ("strategy/control-norm", "bytes-up", "bytes-down"):
        first, second = ([event[key] for event in events(tmp_path / name, "round")] for name in ("in-process", kind))
        assert first == second


@pytest.mark.usefixtures("turns")
def test_control_variates_sum_to_the_servers_and_count_turns(play, tmp_path):
    """The server's variate is the mean of all clients' own, because it only ever adds their changes."""
    from clients.memory import FolderMemory

    play(tmp_path / "run", **CONTROL)
    tensors, _ = open_run(tmp_path / "run").load_checkpoint(4)
    last = dict(tensors["last-turns"].tolist())
    place = FolderMemory(tmp_path / "run" / "memory")

    kept = {client: place.recall(client, number) for client, number in last.items()}

    own = sum(each["variate"].double() for each in kept.values()) / 6
    torch.testing.assert_close(own, tensors["memory/sum"], rtol=0, atol=1e-6)
    torch.testing.assert_close(tensors["shared/turns/variate"].double(), tensors["memory/sum"], rtol=1e-6, atol=1e-7)
    played = [event["client"] for event in events(tmp_path / "run", "client")]
    assert {client: int(each["turns"]) for client, each in kept.items()} == {c: played.count(c) for c in set(played)}
    assert last == {c: max(e["round"] for e in events(tmp_path / "run", "client") if e["client"] == c) for c in last}


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.mark.usefixtures("turns")
@pytest.mark.parametrize("call", [1, 2, 3, 4])
def test_a_run_killed_in_any_round_goes_on_to_the_same_weights(play, tmp_path, monkeypatch, call):
    """After the clients of a round have kept their tensors and before the round counts."""
    expected = play(tmp_path / "whole", evaluate_clients_every=1, **EVERYTHING)
    original, calls = rounds.Rounds._require_enough, []

    def killed(*arguments):
        calls.append(1)
        if len(calls) == call:
            raise Killed
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(rounds.Rounds, "_require_enough", killed)
        with pytest.raises(Killed):
            play(tmp_path / "run", evaluate_clients_every=1, **EVERYTHING)
    result = engine.resume(tmp_path / "run")

    assert expected["weights_sha256"] == result["weights_sha256"]
    assert expected["best_round"] == result["best_round"] > 0
    assert expected["metrics"] == pytest.approx(result["metrics"], nan_ok=True)
    assert len(events(tmp_path / "run", "statistics")) == 2, "counted once"


# --- phases --------------------------------------------------------------------------------


@pytest.mark.usefixtures("turns")
def test_what_a_phase_does_not_exchange_stays_bit_for_bit_and_is_not_sent(play, tmp_path):
    changes = {"method": "turns.phased(first=2)", "evaluate_every": 1, "keep_checkpoints": 9}
    play(tmp_path / "run", **changes)
    models = {number: model_of(tmp_path / "run", number) for number in (1, 2, 3, 4)}
    head = {name for name in models[1] if name.startswith("head")}
    assert 0 < len(head) < len(models[1])

    for before, after, moving in ((1, 2, head), (2, 3, models[1].keys() - head), (3, 4, models[1].keys() - head)):
        moved = {name for name in models[1] if not torch.equal(models[before][name], models[after][name])}
        assert moved == moving, (before, after)
    for event in events(tmp_path / "run", "client"):
        part = head if event["round"] <= 2 else models[1].keys() - head
        num_bytes = 4 * sum(models[1][name].numel() for name in part)
        assert (event["bytes-down"], event["bytes-up"]) == (num_bytes, num_bytes)
    scores = [event["server/mAP"] for event in events(tmp_path / "run", "round")]
    assert len(set(scores)) == 4


@pytest.mark.usefixtures("turns")
def test_rounds_of_both_phases_are_those_of_two_runs_one_after_another(play, tmp_path):
    """Round 1 and 2 do not depend on what comes after them."""
    play(tmp_path / "long", method="turns.phased(first=2)", keep_checkpoints=9)
    play(tmp_path / "short", method="turns.phased(first=2)", num_rounds=2)

    long, short = model_of(tmp_path / "long", 2), model_of(tmp_path / "short", 2)

    assert all(torch.equal(long[name], short[name]) for name in short)


@pytest.mark.usefixtures("turns")
def test_clients_trained_at_once_cannot_train_in_phases(play, tmp_path):
    with pytest.raises(InputError, match="phases"):
        play(tmp_path / "run", method="turns.phased()", vectorize=2)


# --- counts before round 1 -----------------------------------------------------------------


def by_hand(tiny, **changes):
    """Each client's numbers of images that show each label, by a plain loop."""
    experiment, runtime = tiny(**changes)
    corpus = open_corpus(build("dataset", experiment.dataset))
    federation = open_federation(experiment, runtime, corpus)
    rows = []
    for client in federation.clients:
        row = [0] * 10
        for labels in federation.shard(client).labels:
            for label, value in enumerate(labels.tolist()):
                row[label] += value == PRESENT
        rows.append(row)
    sizes = [federation.shard(client).num_images for client in federation.clients]
    return np.array(rows), np.array(sizes)


@pytest.mark.usefixtures("turns")
@pytest.mark.parametrize("least", [(1, 1), (3, 1), (2, 90)])
def test_counts_are_those_of_a_plain_loop_and_small_ones_are_withheld(play, tiny, tmp_path, least):
    changes = {**COUNTS, "statistics_min_clients": least[0], "statistics_min_images": least[1], "num_rounds": 1}
    play(tmp_path / "run", **changes)
    rows, sizes = by_hand(tiny, **changes)

    behind = (rows > 0).sum(0)
    images = ((rows > 0) * sizes[:, None]).sum(0)
    enough = (behind >= least[0]) & (images >= least[1])
    assert least == (1, 1) or enough.sum() > 0
    event = next(event for event in events(tmp_path / "run", "statistics") if event["name"] == "present")
    assert event["values"] == np.where(enough, rows.sum(0), 0).tolist()
    assert event["num-withheld"] == ((behind > 0) & ~enough).sum()
    assert event["num-clients"] == 6
    tensors, _ = open_run(tmp_path / "run").load_checkpoint(1)
    assert tensors["statistics/present"].tolist() == event["values"]


SKEWED = {
    "method": "bce()",
    "partition": "dirichlet(alpha=0.05, min_images=4)",
    "regime": "complete()",
    "num_clients": 8,
    "num_rounds": 1,
    "allow_statistics": True,
    "statistics_min_clients": 7,
    "statistics_min_images": 1,
}


@pytest.mark.parametrize("pairs", [False, True])
def test_no_withheld_count_of_completely_annotated_labels_follows_from_the_others(play, tiny, tmp_path, pairs):
    """Present and absent add up to all images, so both are told of a label, or neither; so is its row of pairs."""
    changes = {**SKEWED, "mods": f"label_report(pairs={pairs})"}
    play(tmp_path / "run", **changes)
    rows, sizes = by_hand(tiny, **changes)

    present, absent = (rows > 0).sum(0), (rows < sizes[:, None]).sum(0)
    few = (present < 7) | ((absent > 0) & (absent < 7))
    assert 0 < few.sum() < 10
    told = {event["name"]: np.array(event["values"]) for event in events(tmp_path / "run", "statistics")}
    assert told["labels/present"].tolist() == np.where(few, 0, rows.sum(0)).tolist()
    assert told["labels/absent"].tolist() == np.where(few, 0, sizes.sum() - rows.sum(0)).tolist()
    assert ("labels/pairs" in told) is pairs
    if pairs:
        both = told["labels/pairs"].reshape(10, 10)
        assert not both[few].any()
        assert not both[:, few].any()
        assert both.diagonal().tolist() == told["labels/present"].tolist()


@pytest.mark.usefixtures("turns")
def test_if_too_few_stand_behind_every_number_the_run_stops(play, tmp_path):
    with pytest.raises(InputError, match=r"at least 6 clients and 100000 images behind numbers of"):
        play(tmp_path / "run", **{**COUNTS, "statistics_min_clients": 6, "statistics_min_images": 100_000})


@pytest.mark.usefixtures("turns")
@pytest.mark.parametrize("asks", [{"method": "turns.phased(statistics=True)"}, {"mods": "turns.busy()"}])
def test_nothing_is_counted_unless_the_experiment_allows_it(play, tmp_path, asks):
    with pytest.raises(InputError, match="allow-statistics=true"):
        play(tmp_path / "run", **asks)

    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("turns")
def test_counts_reach_the_clients_and_are_not_asked_for_again(play, tmp_path, monkeypatch, plug):
    plug(
        "listens",
        "from fedmlic.method import Method\n"
        "from turns import phased\n"
        "def listens() -> Method:\n"
        "    base = phased(statistics=True)\n"
        "    def train(resident, shard, local):\n"
        "        assert local.shared['statistics/present'].sum() > 0\n"
        "        assert local.shared['statistics/known'].shape == (10,)\n"
        "        return base.train(resident, shard, local)\n"
        "    return base._replace(train=train, phases=())\n",
    )
    changes = {**COUNTS, "method": "listens.listens()", "statistics_min_clients": 1}
    asked = []
    original = rounds.Rounds._count

    def noted(self, start, directory):
        found = original(self, start, directory)
        asked.append(found is not start)
        return found

    def killed(*_, **__):
        raise Killed

    monkeypatch.setattr(rounds.Rounds, "_count", noted)
    with monkeypatch.context() as patch:
        patch.setattr(rounds.Rounds, "_round", killed)
        with pytest.raises(Killed):
            play(tmp_path / "run", **changes)
    engine.resume(tmp_path / "run")

    assert asked == [True, False]
    assert not any(event.get("error") for event in events(tmp_path / "run", "client"))


@pytest.mark.usefixtures("turns")
def test_a_client_that_cannot_count_stops_the_run_with_the_reason(play, tmp_path, plug):
    plug(
        "uncounted",
        "from fedmlic.method import Method\n"
        "from turns import phased\n"
        "def uncounted() -> Method:\n"
        "    def count(shard):\n"
        "        raise ValueError('no counting here')\n"
        "    return phased()._replace(statistics=count)\n",
    )
    with pytest.raises(rounds.RunFailedError, match="no counting here"):
        play(tmp_path / "run", **{**COUNTS, "method": "uncounted.uncounted()"})


@pytest.mark.usefixtures("turns")
def test_settings_of_mods_survive_flowers_configuration(tiny):
    config = flower_config(*tiny(**EVERYTHING))

    assert (config["mods"], config["allow-statistics"]) == ("turns.busy()", True)
