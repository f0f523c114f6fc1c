"""A host plays clients: each alone, all added up, no failure spreads."""

import gc
from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict

from clients.host import Host
from clients.memory import FolderMemory
from clients.opening import open_federation
from fedmlic import wire
from fedmlic.federation import local_federation
from fedmlic.histograms import ScoreHistograms
from fedmlic.labels import PRESENT, known
from fedmlic.learner import build_learner
from fedmlic.metrics import client_metrics
from fedmlic.protocol import Request
from fedmlic.stores import DamagedError, Images, damaged
from fedmlic.update import Weighting, units_for
from strategies.server.replies import Expected
from strategies.server.server import build_server

FAULTY = """
import sys
import torch
from torch import nn
from fedmlic.losses import mean_binary_cross_entropy
from fedmlic.method import Trained
from fedmlic.training import classifier


def endless():
    endless()


def faulty(*, clients: str = "", how: str = "none"):
    base = classifier(mean_binary_cross_entropy)
    marked = {int(client) for client in clients.split(",") if client}

    def train(resident, shard, local):
        trained = base.train(resident, shard, local)
        if shard.client not in marked:
            return trained
        network = resident.network
        with torch.no_grad():
            if how == "raise":
                raise ValueError("these data are bad")
            if how == "nan":
                resident.flat[3] = float("nan")
            if how == "inf":
                network.head.bias[1] = float("inf")
            if how == "large":
                network.head.bias[0] = 1e30
            if how == "shape":
                network.head.bias.data = torch.zeros(3)
            if how == "swap":
                network.head.weight.data = torch.zeros_like(network.head.weight)
            if how == "memory":
                raise MemoryError
            if how == "device-memory":
                raise torch.OutOfMemoryError("CUDA out of memory")
            if how == "exit":
                sys.exit("bye")
            if how == "recursion":
                endless()
            if how == "nothing":
                return None
            if how == "metric":
                return Trained(float("nan"), 3, {})
            if how == "text":
                return Trained(0.5, 3, {"extra": "much"})
        if how == "gradients":
            network.zero_grad(set_to_none=True)
        return trained

    return base._replace(train=train)
"""
FAILURES = {
    "raise": "ValueError: these data are bad",
    "nan": "ValueError: Expected trained tensors to be finite",
    "inf": "ValueError: Expected trained tensors to be finite",
    "large": "ValueError: Expected trained tensors to be finite",
    "shape": "RuntimeError: Expected training to change tensors in place",
    "swap": "RuntimeError: Expected training to change tensors in place",
    "memory": "MemoryError: ",
    "device-memory": "OutOfMemoryError: CUDA out of memory",
    "exit": "SystemExit: bye",
    "recursion": "RecursionError: ",
    "nothing": "AttributeError: ",
    "metric": "ValueError: Expected the metric loss to be finite",
    "text": "InputError: Expected the metric extra of a method to be a number, got str",
}


@pytest.fixture
def host(tiny, plug):
    """A function: a host over the tiny experiment."""
    plug("faulty", FAULTY)

    def make(**changes):
        experiment, runtime = tiny(**changes)
        server = build_server(experiment, runtime)
        return Host("test", experiment, open_federation(experiment, runtime, server.corpus), server.learner)

    return make


def request_for(host, kind="train", number=1, *, each=False, seed=None, weighting=None):
    flat = host._learner.resident.flat.clone()
    if seed is not None:
        flat += 0.01 * torch.randn(flat.shape, generator=torch.Generator().manual_seed(seed))
    weighting = weighting or Weighting("annotations", "annotations")
    units = units_for(weighting, host.info().sizes.tolist(), 10)
    return Request(kind, number, flat, units, weighting, each=each)


def bits(update):
    return (
        update.sums.numpy().tobytes(),
        update.weight,
        update.row_weights.tolist(),
        sorted(update.clients),
        update.num_images,
        update.annotations.tolist(),
        update.metrics,
    )


def test_it_says_whom_it_can_play(host):
    made = host()

    info = made.info()

    assert (info.host, info.clients.tolist()) == ("test", [0, 1, 2, 3, 4, 5])
    assert info.sizes.tolist() == [made._federation.shard(client).num_images for client in range(6)]
    assert info.label_names == made._federation.label_names


def test_a_device_is_the_client_it_was_told_to_be(tiny):
    experiment, runtime = tiny()
    server = build_server(experiment, runtime)
    names = server.corpus.label_names
    federation = local_federation(server.corpus, label_names=names, holdout_fraction=0.1, seed=0, client=7)
    made = Host("device", experiment, federation, server.learner)

    assert made.info().clients.tolist() == [7]
    assert made.info().sizes.tolist() == [federation.shard(7).num_images]
    request = Request("train", 1, server.learner.resident.flat.clone(), units_for(Weighting(), [216], 10))
    reply = made.play(request, [7])
    assert not reply.turns[0].error
    assert reply.updates[0].clients == [7]


@pytest.fixture
def device(tiny, tmp_path):
    """A function: a host that is client 7 and answers over a link."""

    def make(*, on_link=True, **changes):
        experiment, runtime = tiny(**changes)
        server = build_server(experiment, runtime)
        names = server.corpus.label_names
        federation = local_federation(server.corpus, label_names=names, holdout_fraction=0.1, seed=0, client=7)
        memory = FolderMemory(tmp_path / str(len(list(tmp_path.iterdir()))))
        return Host("device", experiment, federation, server.learner, memory=lambda _: memory, on_link=on_link)

    return make


def sent(reply, layout):
    """The message over a link, and what it takes there."""
    message = recorddict_to_proto(wire.pack_reply(reply, layout)).SerializeToString()
    return recorddict_from_proto(RecordDict.FromString(message)), len(message)


HALVED = """
from fedmlic.mod import Hooks, Mod


def halved():
    return Mod(lambda *_: Hooks(scale=lambda _: 0.5))
"""
SHORTENED = [
    "int8()",
    "top_k(fraction=0.1)",
    "top_k(fraction=0.1), int8()",
    "clip(norm=0.01)",
    "halved.halved(), int8()",
]


@pytest.mark.parametrize("mods", SHORTENED)
def test_what_mods_shorten_is_sent_as_a_change_of_which_the_server_makes_the_same_sum(device, plug, mods):
    """Statistics of BatchNorm among it, and of a part of the tensors in the last turn."""
    plug("halved", HALVED)
    made = device(mods=mods, model="small_cnn(width=4, norm='pooled')")
    first = request_for(made, seed=1)
    part = tuple(name for name in made.layout.names if "head" not in name)
    for request in (first, replace(first, round=2, last={7: 1}), replace(first, round=3, tensors=part)):
        layout = request.layout(made.layout)
        reply = made.play(request, [7])
        content, _ = sent(reply, layout)

        assert layout.moments
        assert set(content["update-0"]) == {"change", "row-weights", "clients", "annotations"}
        sizes = dict(zip([7], made.info().sizes.tolist(), strict=True))
        expected = Expected(request, layout, sizes, everything=made.layout)
        (update,) = expected.reply(wire.unpack_reply(content, layout, 1), "device", [7]).updates
        assert bits(update) == bits(reply.updates[0])


def test_what_no_mod_changes_and_what_stays_on_the_machine_is_a_sum(device, host):
    for made in (device(), device(mods="clip(norm=1000.0)"), device(mods="int8()", on_link=False)):
        reply = made.play(request_for(made), [7])
        assert reply.updates[0].change is None
        assert "sums" in sent(reply, made.layout)[0]["update-0"]
    made = host(mods="int8()")
    made._on_link = True
    assert made.play(request_for(made), [0, 1]).updates[0].change is None


def test_a_link_carries_less_where_mods_shorten_the_change(device):
    sizes = {}
    for mods in ("", "int8()", "top_k(fraction=0.01)"):
        made = device(mods=mods, model="small_cnn(width=64)")
        reply = made.play(request_for(made), [7])
        assert reply.turns[0].error == ""
        sizes[mods] = sent(reply, made.layout)[1]

    assert 200_000 < made.layout.size < 250_000
    assert sizes["int8()"] < 0.4 * sizes[""]
    assert sizes["top_k(fraction=0.01)"] < 0.2 * sizes[""]


def test_together_is_the_sum_of_each_alone_in_any_order(host):
    made = host()
    request = request_for(made)
    together = made.play(request, [0, 1, 2, 3]).updates
    backward = made.play(request, [3, 1, 2, 0]).updates
    alone = [made.play(request, [client]).updates[0] for client in (2, 0, 3, 1)]
    for update in alone[1:]:
        alone[0].merge(update)

    assert len(together) == len(backward) == 1
    assert bits(together[0]) == bits(backward[0]) == bits(alone[0])


def test_a_client_trains_the_same_whoever_trained_before(host):
    made, fresh = host(), host()
    made.play(request_for(made, number=3, seed=1), [5, 0])
    made.play(request_for(made, "evaluate", number=3, seed=1), [1, 2])

    request = request_for(fresh, number=4, seed=2)

    assert bits(made.play(request, [2]).updates[0]) == bits(fresh.play(request, [2]).updates[0])


def test_rounds_and_clients_draw_different_batches(host):
    made = host()
    results = {
        made.play(request_for(made, number=number, seed=1), [client]).updates[0].sums.numpy().tobytes()
        for number in (1, 2)
        for client in (0, 1)
    }

    assert len(results) == 4


@pytest.mark.parametrize("how", FAILURES)
def test_a_failing_client_is_one_failed_turn_and_the_others_do_not_notice(host, how):
    made = host(method=f"faulty.faulty(clients='1', how='{how}')")
    without = host(method="faulty.faulty()")

    reply = made.play(request_for(made), [0, 1, 2])

    errors = [turn.error for turn in reply.turns]
    assert [bool(error) for error in errors] == [False, True, False]
    assert errors[1].startswith(FAILURES[how])
    assert "Traceback" in errors[1]
    assert bits(reply.updates[0]) == bits(without.play(request_for(without), [0, 2]).updates[0])
    again = made.play(request_for(made, number=2), [3])
    assert bits(again.updates[0]) == bits(without.play(request_for(without, number=2), [3]).updates[0])


def test_a_client_that_drops_its_gradients_does_not_stop_the_next_from_learning(host):
    made, without = host(method="faulty.faulty(clients='1', how='gradients')"), host(method="faulty.faulty()")
    request = request_for(made)

    assert bits(made.play(request, [1, 2]).updates[0]) == bits(without.play(request, [1, 2]).updates[0])


def test_when_all_fail_there_is_no_update(host):
    made = host(method="faulty.faulty(clients='0,1', how='nan')")

    reply = made.play(request_for(made), [0, 1])

    assert reply.updates == ()
    assert all(turn.error for turn in reply.turns)


def test_each_update_by_itself_when_asked(host):
    made = host(method="faulty.faulty(clients='1', how='raise')")
    request = request_for(made, each=True, weighting=Weighting("uniform"))

    replies = [made.play(request, [client]) for client in (0, 1, 2)]

    assert [len(reply.updates) for reply in replies] == [1, 0, 1]
    assert [reply.turns[0].client for reply in replies] == [0, 1, 2]
    assert replies[2].updates[0].clients == [2]
    assert made.collect().updates == ()


def test_a_client_without_a_single_annotation_takes_part_without_a_say(host):
    made = host(regime="random_missing(known_fraction=0.0)")
    request = request_for(made)

    reply = made.play(request, [0, 1])

    assert [turn.error for turn in reply.turns] == ["", ""]
    assert [turn.num_annotations for turn in reply.turns] == [0, 0]
    assert torch.equal(reply.updates[0].mean(request.flat), request.flat)


def test_held_out_images_are_scored_exactly_and_never_trained_on(host):
    made = host()
    flat = request_for(made, seed=4).flat

    reply = made.play(Request("evaluate", 1, flat), [0, 3])

    learner, federation = made._learner, made._federation
    expected = None
    for turn, client in zip(reply.turns, (0, 3), strict=True):
        shard = federation.shard(client)
        learner.resident.load(flat)
        part = ScoreHistograms.of(learner.predict(shard.images, shard.holdout_rows), shard.holdout_labels)
        expected = part if expected is None else expected + part
        assert turn.num_images == len(shard.holdout_rows) > 0
        assert turn.num_annotations == known(shard.holdout_labels).sum()
        assert not set(shard.holdout_rows) & set(shard.rows)
    for name, array in expected.to_arrays().items():
        assert np.array_equal(array, reply.evaluation[name])
    assert reply.updates == ()


def test_whole_owners_are_held_out_when_the_experiment_says_so(host):
    by_owner = host(partition="iid()", holdout_by="owner", holdout_fraction=0.4)
    owners = by_owner._federation.corpus.owners

    reply = by_owner.play(request_for(by_owner, "evaluate"), [0, 3])

    for turn in reply.turns:
        shard = by_owner._federation.shard(turn.client)
        assert turn.num_images == len(shard.holdout_rows) > 0
        assert not set(owners[shard.holdout_rows].tolist()) & set(owners[shard.rows].tolist())


def test_clients_without_held_out_images_can_be_asked_all_the_same(host):
    made = host(holdout_fraction=0.0)

    reply = made.play(request_for(made, "evaluate"), [0])

    assert not reply.turns[0].error
    assert reply.turns[0].num_images == 0
    assert np.isnan(reply.turns[0].metrics["mAP"])


def test_a_clients_own_map_leaves_out_labels_that_nobody_annotates(tiny):
    """Also where its held-out images could judge them."""
    experiment, runtime = tiny(regime="complete()")
    server = build_server(experiment, runtime)
    federation = open_federation(experiment, runtime, server.corpus)
    manifest = {**federation.manifest, "unannotated_labels": ["two", "seven"]}
    apart = Host("test", experiment, replace(federation, manifest=manifest, path=None), server.learner)
    whole = Host("test", experiment, federation, server.learner)
    assert apart.info().unannotated == ("two", "seven")
    assert whole.info().unannotated == ()
    device = Host("test", experiment, replace(federation, manifest={}, path=None), server.learner)
    assert device.info().unannotated is None
    request = request_for(whole, "evaluate")

    found, every, unknown = (h.play(request, [1]).turns[0].metrics for h in (apart, whole, device))

    shard = federation.shard(1)
    kept = [name not in {"two", "seven"} for name in federation.label_names]
    scores = server.learner.predict(shard.images, shard.holdout_rows)
    minimum = experiment.client_min_entries
    assert found == client_metrics(scores[:, kept], shard.holdout_labels[:, kept], minimum)
    assert every == unknown == client_metrics(scores, shard.holdout_labels, minimum)
    assert found["num-labels"] < every["num-labels"]


def test_an_unknown_client_is_a_failed_turn(host):
    reply = host().play(request_for(host()), [77])

    assert "Expected client to be 0 to 5, got 77" in reply.turns[0].error


LOOKS = """
from fedmlic.method import Trained
from fedmlic.losses import mean_binary_cross_entropy
from fedmlic.training import classifier
import torch


def looks():
    base = classifier(mean_binary_cross_entropy)

    def train(resident, shard, local):
        incoming = local.incoming()
        assert not incoming.training
        assert not any(p.requires_grad for p in incoming.parameters())
        before = {n: p.clone() for n, p in incoming.named_parameters()}
        for name, value in resident.network.named_parameters():
            assert torch.equal(before[name], value), name
        trained = base.train(resident, shard, local)
        for name, value in local.incoming().named_parameters():
            assert torch.equal(before[name], value), name
        return trained

    return base._replace(train=train)
"""


def test_the_incoming_model_is_the_rounds_and_stays_as_it_came(host, plug):
    plug("looks", LOOKS)
    made = host(method="looks.looks()", model="small_cnn(width=4, num_blocks=0, norm='pooled')")

    for number in (1, 2, 3):
        reply = made.play(request_for(made, number=number, seed=number), [0, 1])
        assert [turn.error for turn in reply.turns] == ["", ""]


def test_many_turns_do_not_gather_memory(host):
    made = host(local_steps=1, batch_size=4)
    made.play(request_for(made), [0])
    gc.collect()
    before = sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    for number in range(40):
        made.play(request_for(made, number=number + 1), [0, 1])
    gc.collect()

    assert sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()) <= before + 2


def test_the_learner_is_the_same_in_every_process(tiny):
    experiment, _ = tiny()
    first = build_learner(experiment, ("a", "b"), (24, 24, 3))
    torch.manual_seed(99)
    torch.rand(5)

    second = build_learner(experiment, ("a", "b"), (24, 24, 3))

    assert torch.equal(first.resident.flat, second.resident.flat)


def test_data_that_are_not_what_was_written_stop_the_host(host, monkeypatch):
    """A failed client in each round would be another result, and nobody may look at the log."""
    host = host()

    def take(self, rows):
        raise damaged(self.folder, f"the image in row {rows[0]} was changed")

    monkeypatch.setattr(Images, "take", take)

    for kind in ("train", "evaluate"):
        with pytest.raises(DamagedError, match="the image in row"):
            host.play(request_for(host, kind), [0])


# --- mods, memory and counts -----------------------------------------------------------------

KEEPS = """
import torch
from fedmlic.mod import Hooks, Mod


def keeps(*, every: int = 1, how: str = "none", client: int = -1):
    def begin(resident, shard, local):
        seen = {name: tensor.clone() for name, tensor in local.memory.items()}
        if every > 1:
            local.memory.clear()
        if local.round % every == 0:
            local.memory["rounds"] = torch.cat([seen.get("rounds", torch.zeros(0)), torch.tensor([float(local.round)])])

        def extras(change, trained):
            if shard.client == client and how == "raise":
                raise KeyError("no sum")
            if shard.client == client and how == "nan":
                return {**usual(), "sum": torch.tensor(float("nan"))}
            if shard.client == client and how == "shape":
                return {**usual(), "sum": torch.zeros(2)}
            if shard.client == client and how == "undeclared":
                return {**usual(), "more": torch.tensor(1.0)}
            if shard.client == client and how == "beyond":
                return {**usual(), "sum": torch.tensor(1.5)}
            return usual()

        def usual():
            return {"sum": torch.tensor(1.0), "start": (resident.flat - local.start).abs().sum().view(1) * 0}

        return Hooks(extras=extras)

    zeros = {"sum": torch.tensor(0.0), "start": torch.zeros(1)}
    bounds = lambda said: {"sum": (0.0, float(len(said.sizes)))}
    return Mod(begin, sums=lambda _: zeros, bounds=bounds, remembers=True)
"""


@pytest.fixture
def keeping(tiny, plug, tmp_path):
    """A function: a host whose clients keep tensors, and where they keep them."""
    plug("keeps", KEEPS)

    def make(mods="keeps.keeps()", vectorize=1, **changes):
        experiment, runtime = tiny(mods=mods, **changes)
        server = build_server(experiment, runtime)
        place = FolderMemory(tmp_path / "memory")
        federation = open_federation(experiment, runtime, server.corpus)
        made = Host("test", experiment, federation, server.learner, vectorize=vectorize, memory=lambda _: place)
        return made, place

    return make


def test_a_turn_reads_what_the_last_turn_that_counted_kept(keeping):
    made, place = keeping()
    made.play(request_for(made, number=1), [0, 2])
    made.play(replace(request_for(made, number=2), last={0: 1, 2: 1}), [0])
    made.play(replace(request_for(made, number=3), last={0: 1, 2: 1}), [0, 2])  # round 2 of client 0 did not count

    assert place.recall(0, 3)["rounds"].tolist() == [1, 3]
    assert place.recall(2, 3)["rounds"].tolist() == [1, 3]
    assert place.versions(0) == [1, 3]


def test_a_client_that_keeps_nothing_in_a_turn_can_play_the_next(keeping):
    made, place = keeping("keeps.keeps(every=2)")
    for number in (1, 2, 3, 4):
        last = {0: number - 1} if number > 1 else {}
        reply = made.play(replace(request_for(made, number=number), last=last), [0])
        assert reply.turns[0].error == ""

    assert place.recall(0, 3) == {}
    assert place.recall(0, 4)["rounds"].tolist() == [4]


@pytest.mark.parametrize("how", ["raise", "nan", "shape", "undeclared", "beyond"])
@pytest.mark.parametrize("vectorize", [1, 3])
def test_a_mod_that_fails_is_one_failed_turn(keeping, how, vectorize):
    made, _ = keeping(f"keeps.keeps(how='{how}', client=1)", vectorize)
    without, _ = keeping("keeps.keeps()", vectorize)

    reply = made.play(request_for(made), [0, 1, 2])
    expected = without.play(request_for(without), [0, 2])

    assert [bool(turn.error) for turn in reply.turns] == [False, True, False]
    assert sorted(reply.updates[0].clients) == [0, 2]
    assert reply.updates[0].extra_sum("sum") == 2
    torch.testing.assert_close(reply.updates[0].sums, expected.updates[0].sums, rtol=0, atol=1e-4)


def test_trained_at_once_clients_keep_and_send_what_they_do_one_by_one(keeping):
    made, place = keeping(vectorize=3)
    made.play(request_for(made, number=1), [0, 1, 2])
    reply = made.play(replace(request_for(made, number=2), last={0: 1, 1: 1, 2: 1}), [0, 1, 2])

    assert [turn.error for turn in reply.turns] == ["", "", ""]
    assert all(place.recall(client, 2)["rounds"].tolist() == [1, 2] for client in (0, 1, 2))
    assert reply.updates[0].extra_sum("sum") == 3


def test_memory_that_is_gone_is_a_failed_turn_that_names_the_file(keeping):
    made, _ = keeping()
    reply = made.play(replace(request_for(made, number=5), last={0: 4}), [0, 1])

    assert "Expected client 0 to have kept its tensors of round 4" in reply.turns[0].error
    assert reply.turns[1].error == ""


def test_without_a_place_for_memory_the_turn_says_so(tiny, plug):
    plug("keeps", KEEPS)
    experiment, runtime = tiny(mods="keeps.keeps()")
    server = build_server(experiment, runtime)
    made = Host("test", experiment, open_federation(experiment, runtime, server.corpus), server.learner)

    assert "Give this host one" in made.play(request_for(made), [0]).turns[0].error


MASKED = {
    "int8": ("int8()", ()),
    "int8 to the nearest": ("int8(rounding='nearest')", ()),
    "top_k": ("top_k(fraction=0.001)", ()),
    "clip": ("clip(norm=0.1)", ()),
    "int8 under feddyn": ("int8()", ("feddyn(alpha=0.1)",)),
    "top_k under feddyn": ("top_k(fraction=0.001)", ("feddyn(alpha=0.1)",)),
}


@pytest.mark.parametrize("how", ["nan", "inf"])
@pytest.mark.parametrize("case", MASKED)
def test_no_mod_hides_that_a_client_diverged_and_nothing_is_kept_of_its_turn(keeping, plug, case, how):
    """The error is that of a turn without mods."""
    plug("faulty", FAULTY)
    mods, brought = MASKED[case]
    made, place = keeping(mods, method=f"faulty.faulty(clients='1', how='{how}')", optimizer="sgd")

    reply = made.play(replace(request_for(made), mods=brought), [0, 1])

    assert reply.turns[0].error == ""
    assert reply.turns[1].error.startswith(FAILURES[how])
    assert reply.updates[0].clients == [0]
    assert place.versions(1) == []


OWN = """
import torch
from fedmlic.losses import mean_binary_cross_entropy
from fedmlic.training import classifier


def own(*, client: int):
    base = classifier(mean_binary_cross_entropy)

    def train(resident, shard, local):
        trained = base.train(resident, shard, local)
        if shard.client == client:
            resident.private[0] = float("nan")
        return trained

    return base._replace(train=train, private=lambda network: ["head.bias"])
"""


def test_a_tensor_of_the_clients_own_that_is_not_finite_is_not_kept(keeping, plug):
    """Its next turn would start from it."""
    plug("own", OWN)
    made, place = keeping("", method="own.own(client=1)")

    reply = made.play(request_for(made), [0, 1])

    assert reply.turns[0].error == ""
    assert "got NaN or infinity in ['head.bias']" in reply.turns[1].error
    assert (place.versions(0), place.versions(1)) == ([1], [])


SUMS = """
import torch
from fedmlic.losses import mean_binary_cross_entropy
from fedmlic.mod import Hooks, Mod
from fedmlic.training import classifier


def summed():
    base = classifier(mean_binary_cross_entropy)
    return base._replace(round_sums=lambda network, num_labels: {"mine": torch.zeros(num_labels, dtype=torch.int64)})


def nosy():
    return Mod(begin=lambda *_: Hooks(), refuses=lambda experiment: "" if experiment.allow_statistics else "no leave")


def careful():
    return classifier(mean_binary_cross_entropy)._replace(refuses=lambda e: "" if e.allow_statistics else "no leave")
"""
ASKED = {
    "a count": ({"mods": "label_report()"}, {"kind": "count", "round": 0}, "a count of its labels"),
    "a count by the rule": ({}, {"kind": "count", "round": 0, "mods": ("label_report()",)}, "a count of its labels"),
    "sums of a round": ({"method": "sums.summed()"}, {}, "sums of every round"),
    "moments": ({"method": "ridge()"}, {}, "numbers computed from its images and labels"),
    "a method": ({"method": "sums.careful()"}, {}, "what its method tells"),
    "a mod of the rule": ({}, {"mods": ("sums.nosy()",)}, "what a mod tells"),
    "label rows": ({}, {"mods": ("positive_rows()",)}, "what a mod tells"),
    "nothing": ({}, {}, ""),
}


@pytest.mark.parametrize("allowed", [False, True])
@pytest.mark.parametrize("case", ASKED)
def test_statistics_need_leave_whatever_the_server_asks_for(tiny, plug, tmp_path, case, allowed):
    plug("sums", SUMS)
    settings, changes, told = ASKED[case]
    experiment, runtime = tiny(**settings, allow_statistics=True, statistics_min_clients=1)
    server = build_server(experiment, runtime)
    federation = open_federation(experiment, runtime, server.corpus)
    here = experiment.model_copy(update={"allow_statistics": allowed})  # which the server's own check would refuse
    made = Host("test", here, federation, server.learner, memory=lambda _: FolderMemory(tmp_path / "memory"))

    reply = made.play(replace(request_for(made), **changes), [0])

    if allowed or not told:
        assert reply.turns[0].error == ""
        assert reply.updates
    else:
        assert "InputError: Expected allow-statistics to be true" in reply.turns[0].error
        assert f"asks for {told}, got false" in reply.turns[0].error
        assert reply.updates == ()


def test_counts_tell_how_many_stand_behind_each_number(host):
    made = host(mods="label_report()", allow_statistics=True)
    request = replace(request_for(made), kind="count", round=0)

    reply = made.play(request, [0, 1, 4])

    update = reply.updates[0]
    names = {name for name in update.extras if "#" not in name}
    assert names
    shards = [made._federation.shard(client) for client in (0, 1, 4)]
    present = np.array([(shard.labels == PRESENT).sum(0) for shard in shards])
    sizes = np.array([shard.num_images for shard in shards])
    assert update.extra_sum("labels/present").tolist() == present.sum(0).tolist()
    assert update.extra_sum("labels/present#clients").tolist() == (present > 0).sum(0).tolist()
    assert update.extra_sum("labels/present#images").tolist() == ((present > 0) * sizes[:, None]).sum(0).tolist()
    assert [turn.error for turn in reply.turns] == ["", "", ""]
    assert update.layout.size == 0
