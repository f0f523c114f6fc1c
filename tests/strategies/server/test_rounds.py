"""The round loop: who carries the clients does not show, failures are counted, too many stop the run."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from clients.host import Host
from clients.memory import FolderMemory
from clients.opening import open_federation
from fedmlic.arrays import Layout
from fedmlic.counting import (
    ABSENT_COUNTS,
    IMAGES,
    KNOWN_COUNTS,
    PAIR_COUNTS,
    PRESENT_COUNTS,
    Counted,
    annotation_counts,
    label_and_pair_counts,
    label_counts,
    together_of,
)
from fedmlic.errors import InputError
from fedmlic.histograms import ScoreHistograms
from fedmlic.learner import build_learner
from fedmlic.methods.db import db
from fedmlic.mods.label_report import label_report
from fedmlic.protocol import CLIENTS_BEHIND, IMAGES_BEHIND, HostInfo, Reply, Turn
from fedmlic.record import create, open_run, write_json
from fedmlic.shard import Shard
from fedmlic.update import Units, Update
from strategies.server.replies import Expected
from strategies.server.rounds import Rounds, RunFailedError, enough_behind, pooled_metrics, unannotated_of
from strategies.server.server import build_server, serve

FAULTY = """
from fedmlic.losses import mean_binary_cross_entropy
from fedmlic.training import classifier
import torch


def faulty(*, clients: str = "", rounds: str = "1,2,3,4", how: str = "raise"):
    base = classifier(mean_binary_cross_entropy)
    marked = {int(client) for client in clients.split(",") if client}
    when = {int(number) for number in rounds.split(",") if number}

    def train(resident, shard, local):
        trained = base.train(resident, shard, local)
        if shard.client in marked and local.round in when:
            if how == "raise":
                raise ValueError("bad day")
            if how == "memory":
                raise MemoryError
            if how == "shape":
                resident.network.head.bias.data = torch.zeros(2)
            if how == "nan":
                resident.flat.fill_(float("nan"))
        return trained

    return base._replace(train=train)
"""


class Scattered:
    """A transport that deals clients to several hosts in random chunks and answers in random order."""

    def __init__(self, hosts, seed):
        self._hosts = hosts
        self._rng = np.random.default_rng(seed)

    def hosts(self):
        return [host.info() for host in self._hosts]

    def play(self, request, clients, costs=None):
        assert set(costs) == set(clients)
        replies = []
        shuffled = self._rng.permutation(clients)
        cuts = np.sort(self._rng.integers(0, len(clients) + 1, self._rng.integers(0, len(clients) + 1)))
        for chunk in np.split(shuffled, cuts):
            host = self._hosts[self._rng.integers(len(self._hosts))]
            if request.each:
                replies += [host.play(request, [int(client)]) for client in chunk]
            elif self._rng.random() < 0.5:
                replies.append(host.play(request, [int(client) for client in chunk]))
            else:
                replies.append(Reply(tuple(host.turns(request, [int(client) for client in chunk]))))
        replies += [host.collect() for host in self._hosts]
        return iter([replies[i] for i in self._rng.permutation(len(replies))])

    def close(self):
        pass


@pytest.fixture
def scattered(tiny, tmp_path):
    """A function: play the tiny experiment on several hosts; returns (outcome, events)."""

    def played(num_hosts, seed, **changes):
        experiment, runtime = tiny(**changes)
        server = build_server(experiment, runtime)
        federation = open_federation(experiment, runtime, server.corpus)
        task = server.learner.task
        hosts = [
            Host(f"h{i}", experiment, federation, build_learner(experiment, task.label_names, task.image_shape))
            for i in range(num_hosts)
        ]
        folder = create(tmp_path / f"scattered-{seed}", experiment, runtime)
        # As a run notes it, which knows the whole federation.
        counts = federation.positive_counts.sum(axis=0).tolist()
        write_json(folder.path / "data.json", {"present_counts": counts})
        return serve(server, Scattered(hosts, seed), folder), list(folder.events())

    return played


def events_of(folder, kind):
    lines = (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


@pytest.mark.parametrize(
    "changes",
    [
        {"strategy": "labelwise()"},
        {"strategy": "fedavg(weights='uniform')"},
        {"strategy": "loss_weighted()"},
        {"model": "small_cnn(width=4, num_blocks=0, norm='pooled')", "optimizer": "sgd", "momentum": 0.9},
        {"cohort": "size", "augmentation": "flip+shift", "schedule": "cosine"},
    ],
)
def test_hosts_chunks_and_order_of_arrival_do_not_change_a_bit(play, scattered, tmp_path, changes):
    expected = play(tmp_path / "one", **changes)

    for num_hosts, seed in ((1, 0), (3, 1), (5, 2)):
        outcome, _ = scattered(num_hosts, seed, **changes)
        assert expected["weights_sha256"] == outcome.weights_sha256
        assert expected["metrics"] == pytest.approx(outcome.metrics, nan_ok=True)


def test_another_seed_gives_another_model(play, tmp_path):
    assert play(tmp_path / "a")["weights_sha256"] != play(tmp_path / "b", seed=1)["weights_sha256"]


def test_what_is_only_watched_does_not_change_the_model(play, tmp_path):
    expected = play(tmp_path / "a")["weights_sha256"]

    assert expected == play(tmp_path / "b", evaluate_every=3, threshold=0.2)["weights_sha256"]
    assert expected == play(tmp_path / "c", evaluate_clients_every=1, keep_checkpoints=5)["weights_sha256"]
    assert expected == play(tmp_path / "d", client_min_entries=9)["weights_sha256"]


def test_every_way_to_fail_leaves_the_model_of_those_who_did_not(play, plug, tmp_path):
    plug("faulty", FAULTY)

    results = {
        (how, strategy): play(
            tmp_path / f"{how}-{strategy[:3]}",
            method=f"faulty.faulty(clients='1,4', how='{how}')",
            strategy=strategy,
            min_replies=0.25,
        )
        for how in ("raise", "memory", "shape", "nan")
        for strategy in ("labelwise()", "loss_weighted()")
    }

    for strategy in ("labelwise()", "loss_weighted()"):
        assert len({results[how, strategy]["weights_sha256"] for how in ("raise", "memory", "shape", "nan")}) == 1
    assert len({result["weights_sha256"] for result in results.values()}) == 2


def test_a_failed_client_is_named_counted_and_recorded_with_its_traceback(play, plug, tmp_path):
    plug("faulty", FAULTY)
    out = tmp_path / "run"

    play(out, method="faulty.faulty(clients='1', rounds='1,2')", cohort_size=0)

    failed = [event for event in events_of(out, "client") if "error" in event]
    assert [(event["round"], event["client"]) for event in failed] == [(1, 1), (2, 1)]
    assert failed[0]["error"].startswith("ValueError: bad day\nTraceback")
    assert [event["num-failed"] for event in events_of(out, "round")] == [1, 1, 0, 0]
    assert [event["num-clients"] for event in events_of(out, "round")] == [6] * 4
    assert len(events_of(out, "client")) == 24


@pytest.mark.parametrize(
    ("min_replies", "clients", "stops"),
    [
        (0.5, "0,1,2", False),
        (0.5, "0,1,2,3", True),
        (0.0, "0,1,2,3,4", False),
        (0.0, "0,1,2,3,4,5", True),
        (1.0, "5", True),
        (1.0, "", False),
    ],
)
def test_too_few_replies_stop_the_run_and_others_do_not(play, plug, tmp_path, min_replies, clients, stops):
    plug("faulty", FAULTY)
    out = tmp_path / "run"
    change = {"method": f"faulty.faulty(clients='{clients}', rounds='3')", "cohort_size": 6, "min_replies": min_replies}
    if not stops:
        assert play(out, **change)["rounds"] == 4
        return

    with pytest.raises(
        RunFailedError, match=r"of 6 clients to succeed in round 3, got \d\. client \d: ValueError: bad"
    ):
        play(out, **change)

    assert sorted(file.name for file in (out / "checkpoints").glob("*.json")) == [
        "round-00001.json",
        "round-00002.json",
    ]
    assert not (out / "result.json").exists()
    assert "RunFailedError" in events_of(out, "failed")[0]["reason"]
    assert [event["client"] for event in events_of(out, "client") if "error" in event] == [
        int(client) for client in clients.split(",")
    ]


SUMS = {
    "round": "base._replace(round_sums=lambda network, num_labels: {'mine': torch.zeros(num_labels)})",
    "solution": "base._replace(phases=(Phase(rests, 0, nothing, solution=solution),))",
}
SUMMING = """
import torch
from fedmlic.losses import mean_binary_cross_entropy
from fedmlic.method import Method, Phase, Solution, Trained
from fedmlic.training import classifier

base = classifier(mean_binary_cross_entropy)
nothing = lambda network: ()
rests = lambda resident, shard, local: Trained(0.0, 0, {})
solution = Solution(lambda network, shared: {"mine": torch.zeros(2)}, lambda network, sums, model: {}, keeps=True)


def summing() -> Method:
    return %s
"""


@pytest.mark.parametrize("kind", SUMS)
def test_clients_that_the_partition_finds_are_enough_for_sums_or_refused_before_round_1(play, plug, tmp_path, kind):
    """The tiny data set has 12 owners, which natural() finds; all of them take part in a round."""
    plug("summing", SUMMING % SUMS[kind])
    found = {"partition": "natural()", "num_clients": 0, "cohort_size": 0, "allow_statistics": True, "num_rounds": 1}
    changes = {**found, "method": "summing.summing()", "statistics_min_images": 1}

    assert play(tmp_path / "enough", **changes, statistics_min_clients=12)["rounds"] == 1
    with pytest.raises(InputError, match=r"Expected .*at least 13 clients \(statistics-min-clients\).* got 12\."):
        play(tmp_path / "few", **changes, statistics_min_clients=13)

    assert not events_of(tmp_path / "few", "client")


class Answers:
    """A transport of one host in this process that says something else of some clients' counts."""

    def __init__(self, host, change):
        self._host, self._change = host, change

    def hosts(self):
        return [self._host.info()]

    def play(self, request, clients, costs=None):  # noqa: ARG002
        reply = self._host.play(request, list(clients))
        yield self._change(reply) if request.kind == "count" else reply

    def close(self):
        pass


def refused(reply):
    """As a reply of client 2 that was checked and cannot be right: its turn failed, the sum is of the others."""
    update = replace(reply.updates[0], clients=[client for client in reply.updates[0].clients if client != 2])
    others = [turn for turn in reply.turns if turn.client != 2]
    return replace(reply, turns=(*others, Turn(2, "h", error="Refused: h: Expected counts.")), updates=(update,))


def silent(reply):
    found = refused(reply)
    return replace(found, turns=tuple(turn for turn in found.turns if turn.client != 2))


@pytest.mark.parametrize(
    ("change", "told"),
    [(refused, r"client 2: Refused: h: Expected counts\."), (silent, "client 2: no answer"), (None, "")],
)
def test_a_count_that_lacks_a_client_ends_the_run_whatever_min_replies(tiny, tmp_path, change, told, monkeypatch):
    """Five of six counts would pass for those of all: for the frequencies of labels, and for what nobody annotates."""
    counts = {"method": "balanced_bce(counts='global')", "allow_statistics": True, "statistics_min_clients": 1}
    experiment, runtime = tiny(**counts, min_replies=0.1, num_rounds=1)
    server = build_server(experiment, runtime)
    host = Host("h", experiment, open_federation(experiment, runtime, server.corpus), server.learner)
    folder = create(tmp_path / "run", experiment, runtime)
    write_json(folder.path / "data.json", {"present_counts": None})
    # What is left of the sum is not that of five clients: only who is missing is at stake.
    monkeypatch.setattr(Expected, "update", lambda *_, **__: None)
    transport = Answers(host, change or (lambda reply: reply))
    if change is None:
        assert serve(server, transport, folder).progress.round == 1
        return

    with pytest.raises(RunFailedError, match=f"Expected every client to count its labels .*{told}.*start again"):
        serve(server, transport, folder)

    assert not events_of(folder.path, "statistics")
    assert not events_of(folder.path, "round")
    assert {event["client"] for event in events_of(folder.path, "client") if event.get("error")} <= {2}


class OneLies:
    """A transport whose clients answer one by one; of the round's first the update is another one, or none."""

    def __init__(self, host, change):
        self._host, self._change = host, change

    def hosts(self):
        return [self._host.info()]

    def play(self, request, clients, costs=None):  # noqa: ARG002
        for client in clients:
            reply = self._host.play(request, [client])
            if request.kind != "train" or client != min(clients):
                yield reply
            elif self._change is None:
                yield Reply((Turn(client, "h", error="Refused: gone"),))
            else:
                yield replace(reply, updates=(self._change(reply.updates[0]),))

    def close(self):
        pass


def adding(name, change):
    return lambda update: replace(update, extras={**update.extras, name: change(update.extras[name].clone())})


LIES = {
    "steps without end": ("fednova()", "bce()", adding("fednova/steps", lambda steps: steps + 2**39)),
    "no steps at all": ("fednova()", "bce()", lambda update: replace(update, extras={})),
    "rows of no positive": ("flag()", "bce()", adding("positive_rows/positives", torch.zeros_like)),
    "variates of another model": ("scaffold()", "bce()", adding("scaffold/change", lambda change: change[:5])),
    "no score": (
        "fedcorr()",
        "fedcorr()",
        lambda update: replace(update, metrics={n: v for n, v in update.metrics.items() if n != "score"}),
    ),
    "no distance": (
        "fedharmony()",
        "fedharmony()",
        lambda update: replace(update, metrics={n: v for n, v in update.metrics.items() if n != "disagreement"}),
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_one_bad_reply_is_one_failed_turn_and_nothing_else(tiny, tmp_path, name):
    """The run is that of clients of whom one was away, to the last bit."""
    strategy, method, change = LIES[name]
    sgd = {"optimizer": "sgd", "learning_rate": 0.05, "allow_statistics": True, "statistics_min_clients": 1}
    experiment, runtime = tiny(strategy=strategy, method=method, num_rounds=2, cohort_size=3, **sgd)
    hashes = []
    for number, lie in enumerate((None, change)):
        server = build_server(experiment, runtime)
        federation = open_federation(experiment, runtime, server.corpus)
        place = FolderMemory(tmp_path / f"memory-{number}")
        host = Host("h", experiment, federation, server.learner, memory=lambda _, place=place: place)
        folder = create(tmp_path / f"run-{number}", experiment, runtime)
        write_json(folder.path / "data.json", {"present_counts": None})
        hashes.append(serve(server, OneLies(host, lie), folder).weights_sha256)
        turns = events_of(folder.path, "client")
        failed = [turn["client"] for turn in turns if turn.get("error", "").startswith("Refused: ")]
        assert failed == [min(t["client"] for t in turns if t["round"] == number) for number in (1, 2)]
        assert len(turns) == 6

    assert hashes[0] == hashes[1]


def test_of_two_halves_that_disagree_the_one_with_the_first_client_counts_whoever_came_first():
    layout = Layout(("w",), ((3,),), 1, 0)

    def update(client):
        sums = {"a" if client in {0, 3} else "b": torch.zeros(1, dtype=torch.float64)}
        return replace(Update.zero(layout, Units(1.0, 1.0)), clients=[client], extras=sums)

    for order in itertools.permutations(range(4)):
        turns = {}
        kept = [each.clients[0] for each in Rounds._agreeing(map(update, order), turns)]
        assert sorted(kept) == [0, 3]
        assert sorted(turns) == [1, 2]


LOUD = """
from dataclasses import replace
from strategies.strategy import Strategy, weighted_mean


def loud(*, times: float = 1.0):
    def aggregate(state, updates, here):
        after = weighted_mean(state, updates, here)
        return replace(after, flat=after.flat * (times if here.number == 2 else 1.0))

    return Strategy(aggregate)
"""


def test_a_model_that_no_client_may_send_any_more_is_not_kept(play, plug, tmp_path):
    plug("loud", LOUD)

    with pytest.raises(RunFailedError, match="numbers within 32768, got NaN, infinity or larger ones in"):
        play(tmp_path / "run", strategy="loud.loud(times=1e8)", num_rounds=3)

    assert open_run(tmp_path / "run").checkpoints() == [1]


def test_seven_hundredths_of_a_hundred_are_seven():
    assert math.ceil(0.07 * 100) == 8, "binary fractions would ask for one client too many"
    turns = [Turn(client, "h", error="" if client < 7 else "no\n") for client in range(100)]

    class Loop:
        class _experiment:  # noqa: N801
            min_replies = 0.07

    assert Rounds._require_enough(Loop, 1, turns, 100) is None


def test_a_round_without_any_annotation_keeps_the_model(play, tmp_path):
    silent = play(tmp_path / "a", regime="random_missing(known_fraction=0.0)", num_rounds=1)
    longer = play(tmp_path / "b", regime="random_missing(known_fraction=0.0)", num_rounds=3)

    assert silent["weights_sha256"] == longer["weights_sha256"]


def test_the_best_round_is_chosen_on_validation_and_the_last_is_always_evaluated(play, tmp_path):
    out = tmp_path / "run"

    result = play(out, num_rounds=5, evaluate_every=2, keep_checkpoints=1)

    rounds = events_of(out, "round")
    scores = {event["round"]: event["server/val/mAP"] for event in rounds if "server/val/mAP" in event}
    assert list(scores) == [2, 4, 5]
    assert result["best_round"] == max(scores, key=scores.get)
    kept = {int(file.stem[6:]) for file in (out / "checkpoints").glob("*.json")}
    assert kept == {5, result["best_round"]}


@pytest.mark.parametrize("every", [0, 3])
def test_clients_with_tensors_of_their_own_choose_among_all_evaluated_rounds_the_last_included(play, tmp_path, every):
    out = tmp_path / "run"

    result = play(out, mods="fedper()", evaluate_clients_every=every, num_rounds=6, local_epochs=6)

    evaluated = {event["round"]: event for event in events_of(out, "clients-evaluated")}
    assert list(evaluated) == ([3, 6] if every else [6]), "each once"
    scores = {number: event["client/mAP"] for number, event in evaluated.items()}
    assert max(scores, key=scores.get) == 6, "the case of interest: the last round is the best"
    assert result["best_round"] == 6
    assert events_of(out, "round")[-1]["best-round"] == 6
    kept = open_run(out).checkpoint_values(6)
    assert (kept["best_round"], kept["best_value"]) == (6, scores[6])
    assert result["best_metrics"] == pytest.approx(result["metrics"], nan_ok=True)
    assert result["best_metrics"]["client/mAP"] == scores[6]


def test_an_earlier_round_stays_the_best_of_clients_with_tensors_of_their_own(play, tmp_path, monkeypatch):
    values = iter([0.4, 0.7, 0.5])
    monkeypatch.setattr(Rounds, "_evaluate_clients", lambda *_: {"client/mAP": next(values)})

    result = play(tmp_path / "run", mods="fedper()", evaluate_clients_every=1, num_rounds=3)

    assert result["best_round"] == 2
    assert result["metrics"] == {"client/mAP": 0.5}


def test_without_validation_images_nothing_is_selected(play, tmp_path):
    dataset = "multidigits(num_train=240, num_val=0, num_test=60, image_size=24, num_owners=12)"

    result = play(tmp_path / "run", dataset=dataset, num_rounds=2)

    assert result["best_round"] == 0
    assert "server/mAP" in result["metrics"]
    assert "server/val/mAP" not in result["metrics"]


def test_metrics_of_clients_are_pooled_over_all_clients_once(play, tmp_path):
    out = tmp_path / "run"
    result = play(out, evaluate_clients_every=2)

    evaluated = events_of(out, "clients-evaluated")
    assert [event["round"] for event in evaluated] == [2, 4]
    assert all(event["num-clients"] == 6 and event["num-failed"] == 0 for event in evaluated)
    assert result["metrics"]["client/mAP/num-clients"] == 6


COUNTING = """
from fedmlic.losses import mean_binary_cross_entropy
from fedmlic.method import Inputs, Objective
from fedmlic.training import classifier, trainer


def counting(*, name: str = "thirds"):
    base = classifier(mean_binary_cross_entropy)

    def inputs(local):
        sizes = []

        def of(images, labels, numbers):
            sizes.append(len(images))
            return ()

        kind = "odd" if local.client % 2 else "even"
        return Inputs(of, lambda: {"images used": sum(sizes), name: sum(sizes) / 3, kind: 1})

    objective = Objective(base.objective.loss, inputs)
    return base._replace(train=trainer(objective), objective=objective)
"""


def own_metrics(events):
    return [
        {key: value for key, value in event.items() if key.startswith("method/")}
        for event in events
        if event["event"] == "round"
    ]


@pytest.mark.parametrize("strategy", ["labelwise()", "loss_weighted()"])
def test_metrics_of_a_method_are_sums_over_clients_whoever_carries_them(play, scattered, plug, tmp_path, strategy):
    plug("counts_rounds", COUNTING)
    changes = {"method": "counts_rounds.counting()", "strategy": strategy, "local_epochs": 2}
    out = tmp_path / "run"
    play(out, **changes)

    found = own_metrics(open_run(out).events())

    for event, own in zip(events_of(out, "round"), found, strict=True):
        clients = [turn for turn in events_of(out, "client") if turn["round"] == event["round"]]
        assert own["method/images used"] == 2 * sum(turn["num-images"] for turn in clients)
        assert own["method/thirds"] == pytest.approx(own["method/images used"] / 3, abs=1e-5)
        assert own.get("method/odd", 0) == sum(turn["client"] % 2 for turn in clients)
        assert own.get("method/odd", 0) + own.get("method/even", 0) == 4
    for num_hosts, seed in ((1, 0), (4, 1)):
        assert own_metrics(scattered(num_hosts, seed, **changes)[1]) == found
    play(tmp_path / "together", vectorize=3, **changes)
    assert own_metrics(open_run(tmp_path / "together").events()) == found


def test_metrics_of_a_method_are_in_tensorboard(play, plug, tmp_path):
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    plug("counts_curves", COUNTING)
    out = tmp_path / "run"
    play(out, method="counts_curves.counting()", num_rounds=2)

    file = next((out / "tensorboard").glob("events.*"))
    values = [value for event in EventFileLoader(str(file)).Load() for value in event.summary.value]
    found = [value.tensor.float_val[0] for value in values if value.tag == "method/images used"]
    assert found == [own["method/images used"] for own in own_metrics(open_run(out).events())]


def test_fedlgt_reports_what_its_page_promises(play, tmp_path):
    out = tmp_path / "run"
    play(out, method="fedlgt(layers=1, dropout=0.0, width=8, heads=2, band=0.5)", num_rounds=1)

    own = own_metrics(open_run(out).events())[0]

    assert own["method/revealed"] > 0
    assert own["method/unsure"] == own["method/revealed"], "with a band of everything nothing stays revealed"


@pytest.mark.parametrize("name", ["loss", "steps"])
def test_a_metric_of_a_method_may_not_take_a_name_that_is_taken(play, plug, tmp_path, name):
    plug("counts_wrongly", COUNTING)

    with pytest.raises(RunFailedError, match=f"names of their own, got '{name}'"):
        play(tmp_path / "run", method=f"counts_wrongly.counting(name='{name}')")


def test_clients_with_too_few_images_have_no_map_of_their_own(play, tmp_path):
    result = play(tmp_path / "run", client_min_entries=4, num_rounds=1)

    found = {key: value for key, value in result["metrics"].items() if key.startswith("client/mAP/")}
    assert found["client/mAP/num-clients"] < found["client/mAP/num-evaluated"] == 6
    assert found["client/mAP/min-entries"] == 4


def infos(*unannotated):
    one = np.array([0])
    return [HostInfo(f"h{i}", one + i, one + 9, ("a", "b", "c"), {}, names) for i, names in enumerate(unannotated)]


def test_the_server_knows_what_nobody_annotates_only_if_everybody_says_so(tiny):
    experiment, _ = tiny()

    assert unannotated_of(infos(("b",), ("b",)), {}, experiment) == ("b",)
    assert unannotated_of(infos(("c", "b"), ("c",)), {}, experiment) == ("c",)
    assert unannotated_of(infos(()), {}, experiment) == ()
    assert unannotated_of(infos(("b",), None), {}, experiment) is None
    assert unannotated_of(infos(None), {}, experiment) is None


def test_counts_of_labels_tell_it_unless_numbers_may_be_withheld(tiny):
    counts = {PRESENT_COUNTS: torch.tensor([0, 0, 4]), ABSENT_COUNTS: torch.tensor([3, 0, 0])}
    all_shown = tiny(statistics_min_clients=1, statistics_min_images=1)[0]

    assert unannotated_of(infos(None, None), counts, all_shown) == ("b",)
    assert unannotated_of(infos(None), {PRESENT_COUNTS: counts[PRESENT_COUNTS]}, all_shown) is None
    assert unannotated_of(infos(None), counts, tiny(statistics_min_clients=1)[0]) is None


def behind(sums, clients, images=100):
    """Sums with what stands behind each number: so many clients, and 100 images or none."""
    found = {}
    for name, values in sums.items():
        found[name] = torch.tensor(values)
        found[name + CLIENTS_BEHIND] = torch.tensor(clients[name])
        found[name + IMAGES_BEHIND] = (torch.tensor(clients[name]) > 0) * images
    return found


def test_all_numbers_of_a_label_are_withheld_if_too_few_stand_behind_one_by_hand(tiny):
    """100 images, all annotated: absent + present = 100. Labels: both told, few present, few absent, none absent."""
    experiment = tiny(statistics_min_clients=5, statistics_min_images=1)[0]
    sums = behind(
        {
            PRESENT_COUNTS: [40, 3, 98, 100],
            ABSENT_COUNTS: [60, 97, 2, 0],
            PAIR_COUNTS: [[40, 3, 39, 40], [3, 3, 3, 3], [39, 3, 98, 98], [40, 3, 98, 100]],
            "other": [7, 7, 7, 7],
        },
        {
            PRESENT_COUNTS: [6, 2, 6, 6],
            ABSENT_COUNTS: [6, 6, 1, 0],
            PAIR_COUNTS: [[6, 2, 6, 4], [2, 2, 2, 2], [6, 2, 6, 6], [4, 2, 6, 6]],
            "other": [6, 4, 6, 6],
        },
    )

    apart, _ = enough_behind(sums, experiment)
    told, few = enough_behind(sums, experiment, together_of([label_and_pair_counts]))

    assert 100 - apart[ABSENT_COUNTS][1] == 3, "what two clients alone stand behind"
    assert told[PRESENT_COUNTS].tolist() == [40, 0, 0, 100]
    assert told[ABSENT_COUNTS].tolist() == [60, 0, 0, 0]
    # A rare pair is withheld by itself.
    assert told[PAIR_COUNTS].tolist() == [[40, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 100]]
    assert told["other"].tolist() == [7, 0, 7, 7]
    assert few == {PRESENT_COUNTS: 2, ABSENT_COUNTS: 2, PAIR_COUNTS: 14, "other": 1}


def test_what_two_questions_count_of_a_label_stands_or_falls_together_too(tiny):
    """A method counts what is known and a mod what is present: what is absent is the difference."""
    experiment = tiny(statistics_min_clients=5, statistics_min_images=1)[0]
    sums = behind(
        {KNOWN_COUNTS: [100, 100], IMAGES: [100], PRESENT_COUNTS: [97, 40], ABSENT_COUNTS: [3, 60]},
        {KNOWN_COUNTS: [6, 6], IMAGES: [6], PRESENT_COUNTS: [6, 6], ABSENT_COUNTS: [2, 6]},
    )

    told, _ = enough_behind(sums, experiment, together_of([annotation_counts, None, label_counts]))

    assert told[KNOWN_COUNTS].tolist() == [0, 100]
    assert told[PRESENT_COUNTS].tolist() == [0, 40]
    assert told[IMAGES].tolist() == [100]


def test_a_report_of_labels_withholds_what_the_method_alone_would_be_told(tiny):
    """db counts presences; with absences of two clients beside them, its own sum is withheld (label_report's page)."""
    experiment = tiny(statistics_min_clients=5, statistics_min_images=10)[0]
    sums = behind({PRESENT_COUNTS: [50], IMAGES: [70]}, {PRESENT_COUNTS: [6], IMAGES: [6]})
    reported = {**sums, **behind({ABSENT_COUNTS: [20]}, {ABSENT_COUNTS: [2]})}

    alone, _ = enough_behind(sums, experiment, together_of([db(counts="global").statistics]))
    both = [db(counts="global").statistics, label_report().statistics]
    told, _ = enough_behind(reported, experiment, together_of(both))

    assert alone[PRESENT_COUNTS].tolist() == [50]
    assert told[PRESENT_COUNTS].tolist() == [0]


def test_groups_that_share_a_name_are_one():
    groups = [frozenset("ab"), frozenset("cd"), frozenset("ef"), frozenset("bc")]
    questions = [Counted(label_counts.of, tuple(groups[:3])), label_counts.of, Counted(label_counts.of, (groups[3],))]

    assert set(together_of(questions)) == {frozenset("abcd"), frozenset("ef")}


def test_only_sums_with_labels_along_every_axis_stand_or_fall_together(tiny):
    with pytest.raises(InputError, match=r"labels along every axis, got a \[2, 3\]\. Leave out of together"):
        enough_behind(behind({"a": [[1, 2, 3], [4, 5, 6]]}, {"a": [[9, 9, 9]] * 2}), tiny()[0], [frozenset("a")])


def test_a_client_names_the_sums_that_are_not_of_labels():
    """Before the others have counted."""
    labels = np.zeros((4, 3), np.int8)
    shard = Shard(0, ("a", "b", "c"), None, np.arange(4), labels, np.zeros(0, np.int64), labels[:0])
    shapes = {"mine/used": (3, 3), "mine/all": (1,), "mine/one": (), "other": (1,)}
    sums = {name: torch.zeros(shape) for name, shape in shapes.items()}

    with pytest.raises(InputError, match=r"the 3 labels along every axis, got mine/all \[1\], mine/one \[\]\. Leave"):
        Counted(lambda _: sums, (frozenset({"mine/used", "mine/all"}), frozenset({"mine/one", "none"})))(shard)
    assert Counted(lambda _: sums, (frozenset({"mine/used"}),))(shard) == sums


def test_held_out_images_are_pooled_over_annotated_labels():
    rng = np.random.default_rng(4)
    scores, labels = rng.random((50, 3)), rng.integers(0, 2, (50, 3)).astype(np.int8)
    whole = ScoreHistograms.of(scores, labels)
    apart = np.array([False, True, False])

    found = pooled_metrics(whole, apart)

    two, one = (ScoreHistograms.of(scores[:, chosen], labels[:, chosen]).metrics() for chosen in (~apart, apart))
    assert two.items() <= found.items()
    assert found["mAP/unannotated"] == one["mAP"]
    assert pooled_metrics(whole, np.zeros(3, np.bool_)) == whole.metrics()
    labels[:, 1] = -1
    assert not any("unannotated" in name for name in pooled_metrics(ScoreHistograms.of(scores, labels), apart))
