"""The Flower transport against a grid in this process whose nodes fail in every way Flower knows."""

import json
import logging
import math
import pickle
import re
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import flwr
import numpy as np
import pytest
import torch
from flwr.app import Array, ConfigRecord, Context, Error, Message, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from clients import app as client_app
from clients import source
from clients.host import Host
from fedmlic import wire
from fedmlic.arrays import sha256
from fedmlic.errors import InputError
from fedmlic.experiment import flower_config, split_settings
from fedmlic.kept_scores import path_of, read_scores
from fedmlic.packing import RAW, unpack
from fedmlic.protocol import Reply, Request, Turn
from fedmlic.record import open_run
from fedmlic.update import Update, Weighting, units_for
from strategies import app as server_app
from strategies.server import flower
from strategies.server.flower import FlowerTransport
from strategies.server.rounds import RunFailedError

SIZES = units_for(Weighting(), [500], 9)


class Node:
    """A simulated SuperNode.

    Args:
        config: its ``--node-config``.
        faults: by message type, what to do instead of answering, once per entry.
    """

    def __init__(self, config, faults=None):
        self.config = config
        self.faults = faults or {}
        self.online = True
        self.asked = []


class FakeGrid(Grid):
    """Flower's connection to nodes in this process; contents travel as under Flower."""

    def __init__(self, nodes, run_config):
        self.nodes = dict(nodes)
        self.run_config = run_config
        self.replies = {}
        self.count = 0

    run = None

    def set_run(self, run):
        pass

    def create_message(self, *_, **__):
        raise NotImplementedError

    def send_and_receive(self, *_, **__):
        raise NotImplementedError

    def get_node_ids(self):
        return [node_id for node_id, node in self.nodes.items() if node.online]

    def push_messages(self, messages):
        return [self.push(message) for message in messages]

    def push(self, message):
        self.count += 1
        message.metadata.__dict__["_message_id"] = f"m{self.count}"
        node = self.nodes.get(message.metadata.dst_node_id)
        if node is None:
            return None
        kind = message.metadata.message_type
        node.asked.append(kind)
        faults = node.faults.get(kind, [])
        fault = faults.pop(0) if faults else None
        reply = fault(message) if fault else self.answer(node, message)
        if reply is not None:
            self.replies[message.metadata.message_id] = reply
        return message.metadata.message_id

    def answer(self, node, message):
        """The app's reply; a simulation pickles what goes there and back, a network serialises it."""
        simulated = "num-partitions" in node.config
        carried = pickled if simulated else serialised
        copy = Message(carried(message.content), reply_to=message)
        copy.metadata.__dict__.update(message.metadata.__dict__)
        context = Context(1, message.metadata.dst_node_id, node.config, RecordDict(), self.run_config)
        reply = client_app.app(copy, context)
        reply.content = carried(reply.content)
        return reply

    def pull_messages(self, message_ids):
        return [self.replies.pop(name) for name in message_ids if name in self.replies]


def pickled(content):
    """Read-only at the other end, as what comes from Ray's store."""
    buffers = []
    text = pickle.dumps(content, protocol=5, buffer_callback=buffers.append)
    return pickle.loads(text, buffers=[bytes(buffer) for buffer in buffers])  # noqa: S301  (our own, a line ago)


def serialised(content):
    return recorddict_from_proto(recorddict_to_proto(content))


def crash(message):
    return Message(Error(code=2, reason="<class 'RayActorError'>:<'The actor died'>\nlong"), reply_to=message)


def silence(_):
    return None


def garbage(message):
    return Message(RecordDict(), reply_to=message)


def running(grid, **versions):
    """A node that answers a query like any other, but runs on these versions."""

    def answer(message):
        reply = grid.answer(grid.nodes[message.metadata.dst_node_id], message)
        reply.content["versions"].update(versions)
        return reply

    return answer


@pytest.fixture(autouse=True)
def _in_flower(monkeypatch):
    monkeypatch.setattr(TaskIdentity, "_run_id", 1)
    monkeypatch.setattr(TaskIdentity, "_node_id", 1)
    monkeypatch.setattr(TaskIdentity, "_task_id", 1)
    monkeypatch.setattr(flower, "GRACE_S", 0.3)
    client_app._nodes.clear()
    yield
    client_app._nodes.clear()


@pytest.fixture
def simulation(tiny):
    """A function: grid and transport of a simulation with these nodes' faults."""

    def made(*faults, **changes):
        experiment, runtime = tiny(round_timeout=0.5, node_timeout=5.0, **changes)
        count = len(faults)
        nodes = {
            7000 - 13 * index: Node({"partition-id": index, "num-partitions": count}, fault)
            for index, fault in enumerate(faults)
        }
        grid = FakeGrid(nodes, flower_config(experiment, runtime))
        return grid, FlowerTransport(grid, experiment, runtime)

    return made


def ready(transport):
    """The transport after introductions, and the start of a round."""
    transport.hosts()
    node = next(iter(client_app._nodes.values()))
    transport.layout = node.host.layout
    torch.manual_seed(0)
    return Request("train", 1, torch.randn(transport.layout.size) / 10, SIZES)


def gather(transport, request, clients):
    replies = list(transport.play(request, clients))
    turns = {turn.client: turn for reply in replies for turn in reply.turns}
    assert len(turns) == sum(len(reply.turns) for reply in replies)
    updates = [update for reply in replies for update in reply.updates]
    for other in updates[1:]:
        updates[0].merge(other)
    return turns, updates[0] if updates else None


def test_one_message_per_node_and_round(simulation):
    grid, transport = simulation({}, {}, {})
    request = ready(transport)

    turns, update = gather(transport, request, [5, 4, 3, 2, 1, 0])

    assert [info.host for info in transport.hosts()] == ["node-0", "node-1", "node-2"]
    assert sorted(turns) == sorted(update.clients) == list(range(6))
    assert {turn.host for turn in turns.values()} == {"node-0", "node-1", "node-2"}
    assert all(node.asked == ["query", "train"] for node in grid.nodes.values())


def test_the_sum_does_not_depend_on_the_number_of_nodes(simulation):
    sums = []
    for count in (1, 2, 3):
        _, transport = simulation(*[{} for _ in range(count)])
        request = ready(transport)
        sums.append(gather(transport, request, [0, 1, 2, 3])[1].sums)
        client_app._nodes.clear()

    assert torch.equal(sums[0], sums[1])
    assert torch.equal(sums[0], sums[2])


def test_single_updates_may_be_changed_by_whoever_receives_them(simulation):
    _, transport = simulation({}, {})
    request = replace(ready(transport), each=True)

    turns, update = gather(transport, request, [0, 1])
    again, same = gather(transport, request, [0, 1])

    assert sorted(turns) == sorted(again) == sorted(update.clients) == [0, 1]
    assert torch.equal(update.sums, same.sums)
    assert torch.equal(update.row_weights, same.row_weights)


def test_a_sum_in_other_units_is_not_added(simulation):
    other = units_for(Weighting(), [50_000], 9)

    def disagrees(message):
        message.content["request"]["units"] = list(other)
        return grid.answer(grid.nodes[message.metadata.dst_node_id], message)

    grid, transport = simulation({}, {"train": [disagrees, disagrees, disagrees]})
    turns, update = gather(transport, ready(transport), [0, 1, 2, 3])

    assert sorted(update.clients) == [0, 1, 2, 3]
    assert update.units == SIZES
    assert {turn.host for turn in turns.values()} == {"node-0"}


@pytest.mark.parametrize("fault", [crash, silence, garbage], ids=lambda fault: fault.__name__)
def test_what_a_simulated_node_does_not_answer_is_played_by_another(simulation, fault):
    _, transport = simulation({}, {"train": [fault]})
    request = ready(transport)

    turns, update = gather(transport, request, [0, 1, 2, 3])

    assert not any(turn.error for turn in turns.values())
    assert {turn.host for turn in turns.values()} == {"node-0"}
    assert sorted(update.clients) == [0, 1, 2, 3]


def test_when_every_node_fails_twice_the_clients_have_failed(simulation):
    _, transport = simulation({"train": [crash] * 3}, {"train": [crash, silence, silence]})
    turns, update = gather(transport, ready(transport), [0, 1, 2, 3])

    assert sorted(turns) == [0, 1, 2, 3]
    assert all(turn.error.startswith("NodeFailed: node-") for turn in turns.values())
    assert all("\n" not in turn.error for turn in turns.values())
    assert update is None


def test_a_client_that_raises_is_not_played_again(simulation, monkeypatch):
    grid, transport = simulation({}, {})
    request = ready(transport)
    honest = Host._train

    def fail(self, request, client):
        if client == 2:
            raise ArithmeticError
        return honest(self, request, client)

    monkeypatch.setattr(Host, "_train", fail)
    turns, update = gather(transport, request, [0, 1, 2, 3])

    assert "ArithmeticError" in turns[2].error
    assert sorted(update.clients) == [0, 1, 3]
    assert all(node.asked.count("train") == 1 for node in grid.nodes.values())


def test_a_sum_that_does_not_fit_its_turns_is_refused(simulation, monkeypatch):
    _, transport = simulation({}, {})
    request = ready(transport)
    honest = client_app.play

    def greedy(node, request, clients):
        reply = honest(node, request, clients)
        if node.host.name == "node-1":
            reply.updates[0].clients.append(5)
        return reply

    monkeypatch.setattr(client_app, "play", greedy)
    turns, update = gather(transport, request, [0, 1, 2, 3])

    assert {turn.host for turn in turns.values()} == {"node-0"}
    assert sorted(update.clients) == [0, 1, 2, 3]


def test_all_nodes_of_a_simulation_are_waited_for(simulation):
    grid, transport = simulation({}, {}, {})
    late = list(grid.nodes.values())[2]
    late.online = False
    calls = []

    def get_node_ids():
        calls.append(1)
        late.online = len(calls) > 3
        return [node_id for node_id, node in grid.nodes.items() if node.online]

    grid.get_node_ids = get_node_ids

    assert len(transport.hosts()) == 3


def test_bad_input_in_a_simulation_is_bad_input(simulation):
    _, transport = simulation({}, {}, partition="natural()", num_clients=999, cohort_size=1)
    with pytest.raises(InputError, match=r"clients"):
        transport.hosts()


def test_nodes_that_cannot_load_the_app_end_the_wait_with_a_hint(simulation):
    _, transport = simulation({"query": [crash]}, {"query": [crash]})
    started = time.monotonic()

    with pytest.raises(InputError, match=r"RayActorError.*SuperLink was started") as caught:
        transport.hosts()

    assert time.monotonic() - started < 4
    assert "long" not in str(caught.value)


def test_other_code_is_refused(simulation, monkeypatch):
    _, transport = simulation({}, {})
    digests = iter(["old", "old"])
    monkeypatch.setattr(client_app.wire, "code_digest", lambda: next(digests, "new"))

    with pytest.raises(InputError, match=r"server's code \(new\), got old"):
        transport.hosts()


# --- devices -----------------------------------------------------------------------------


@pytest.fixture
def devices(tiny):
    """A function: grid and transport of this many devices, each with a part of one data set."""

    def made(count, faults=None, **changes):
        names = "zero, one, two, three, four, five, six, seven, eight, nine"
        settings = {"dataset": "on_devices(image_size=24)", "label_names": names, "cohort_size": 0, **changes}
        experiment, runtime = tiny(min_hosts=count, round_timeout=0.5, node_timeout=2.0, **settings)
        nodes = {
            500 + client: Node(
                {
                    "client": client,
                    "data": f"multidigits(num_train={30 + client}, num_val=0, num_test=0, image_size=24, num_owners=1)",
                    "device": "cpu",
                },
                (faults or {}).get(client),
            )
            for client in range(count)
        }
        grid = FakeGrid(nodes, flower_config(experiment, runtime))
        return grid, FlowerTransport(grid, experiment, runtime)

    return made


def test_devices_play_only_themselves(devices):
    _, transport = devices(3)
    request = ready(transport)
    turns, update = gather(transport, request, [2, 0, 1])

    assert {client: turn.host for client, turn in turns.items()} == {c: f"device-{c}" for c in range(3)}
    assert sorted(update.clients) == [0, 1, 2]


def test_a_lost_device_is_one_failed_client_and_may_come_back(devices):
    grid, transport = devices(2, {1: {"train": [silence]}})
    request = ready(transport)
    first, update = gather(transport, request, [0, 1])

    assert first[1].error == "NodeFailed: device-1: no answer within 0.5 s"
    assert update.clients == [0]

    grid.nodes[9999] = grid.nodes.pop(501)  # it was restarted and Flower gave it another id
    second, update = gather(transport, request, [0, 1])

    assert not second[1].error
    assert sorted(update.clients) == [0, 1]


def test_a_device_that_is_gone_is_told_at_once(devices):
    grid, transport = devices(2)
    request = ready(transport)
    del grid.nodes[501]

    turns, _ = gather(transport, request, [0, 1])

    assert turns[1].error == "NodeFailed: device-1: it is not connected"


def test_a_stranger_is_asked_once_and_left_alone(devices):
    grid, transport = devices(2)
    request = ready(transport)
    del grid.nodes[501]
    grid.nodes[600] = Node({"client": 8, "data": grid.nodes[500].config["data"], "device": "cpu"})

    for _ in range(3):
        gather(transport, request, [0, 1])

    assert grid.nodes[600].asked == ["query"]


def test_too_few_devices_are_told_with_reasons(devices):
    grid, transport = devices(2)
    grid.nodes[501].config["data"] = "folder(root='/nowhere')"

    with pytest.raises(InputError, match=r"Expected 2 nodes within 2 s, got 1\. A node failed: InputError: .*<path>"):
        transport.hosts()


OTHER_MINOR = "1.7.3"
REFUSAL = (
    rf"Expected device-1 to run Flower {wire.minor(flwr.__version__)} as the server does \({flwr.__version__}\), "
    rf"got {OTHER_MINOR}\. Install flwr=={flwr.__version__} there"
)


def test_a_device_with_another_minor_version_of_flower_does_not_count(devices):
    grid, transport = devices(2)
    grid.nodes[501].faults["query"] = [running(grid, flwr=OTHER_MINOR)]

    with pytest.raises(InputError, match=rf"Expected 2 nodes within 2 s, got 1\. {REFUSAL}"):
        transport.hosts()


def test_a_simulation_under_another_minor_version_of_flower_ends_at_once(simulation):
    grid, transport = simulation({}, {})
    for node in grid.nodes.values():
        node.faults["query"] = [running(grid, flwr=OTHER_MINOR)]

    with pytest.raises(InputError, match=REFUSAL.replace("device", "node")):
        transport.hosts()


def test_others_go_on_without_a_device_of_another_minor_version(devices, caplog):
    grid, transport = devices(2)
    config = {**grid.nodes[500].config, "client": 2}
    grid.nodes[502] = grid.nodes.pop(501)
    grid.nodes[501] = Node({**config, "client": 1}, {"query": [running(grid, flwr=OTHER_MINOR)]})
    grid.nodes[502].config["client"] = 2

    with caplog.at_level(logging.WARNING, logger="fedmlic"):
        request = ready(transport)
    turns, update = gather(transport, request, [0, 2])

    assert re.search(REFUSAL, caplog.text)
    assert sorted(turns) == sorted(update.clients) == [0, 2]
    assert grid.nodes[501].asked == ["query"]


def test_a_device_that_comes_back_with_another_minor_version_stays_lost(devices, caplog):
    grid, transport = devices(2)
    request = ready(transport)
    grid.nodes[9999] = grid.nodes.pop(501)
    grid.nodes[9999].faults["query"] = [running(grid, flwr=OTHER_MINOR)]

    with caplog.at_level(logging.WARNING, logger="fedmlic"):
        turns, update = gather(transport, request, [0, 1])
        gather(transport, request, [0, 1])

    assert turns[1].error == "NodeFailed: device-1: it is not connected"
    assert update.clients == [0]
    assert len(re.findall(REFUSAL, caplog.text)) == 1


def test_other_versions_are_warned_about_and_recorded(devices, tmp_path, caplog):
    grid, _ = devices(2, num_rounds=1, num_clients=2)
    patch = f"{wire.minor(flwr.__version__)}.99"
    grid.nodes[501].faults["query"] = [running(grid, flwr=patch, torch="2.0.1")]
    grid.run_config = {**grid.run_config, "out": str(tmp_path / "run")}

    with caplog.at_level(logging.WARNING, logger="fedmlic"):
        folder, _ = server_app.play(grid, grid.run_config)
    told = [record.message for record in caplog.records if "versions" in record.message]

    assert len(told) == 1
    assert f"device-1 runs other versions than the server (in brackets): flwr {patch} ({flwr.__version__})" in told[0]
    assert f"torch 2.0.1 ({torch.__version__})" in told[0]
    assert "numpy" not in told[0]
    assert [event for event in folder.events() if event["event"] == "versions"] == [
        {"event": "versions", "host": "device-0", **wire.versions()},
        {
            "event": "versions",
            "host": "device-1",
            **wire.versions(),
            "flwr": patch,
            "torch": "2.0.1",
            "differs": f"flwr {patch} ({flwr.__version__}), torch 2.0.1 ({torch.__version__})",
        },
    ]


def test_strict_versions_set_such_a_device_aside(devices, tmp_path):
    grid, _ = devices(3, num_rounds=1, num_clients=3, strict_versions=True)
    grid.nodes[501].faults["query"] = [running(grid, torch="2.0.1")]
    grid.run_config = {**grid.run_config, "out": str(tmp_path / "run"), "min-hosts": 2, "cohort-size": 0}

    folder, _ = server_app.play(grid, grid.run_config)

    aside = [event for event in folder.events() if event["event"] == "set-aside"]
    assert [event["node"] for event in aside] == ["501"]
    assert f"got torch 2.0.1 ({torch.__version__})" in aside[0]["reason"]
    assert {event["host"] for event in folder.events() if event["event"] == "client"} == {"device-0", "device-2"}


def test_two_devices_cannot_be_one_client(devices):
    grid, transport = devices(2)
    grid.nodes[501].config["client"] = 0

    with pytest.raises(InputError, match="two device-0"):
        transport.hosts()


# --- the ServerApp -------------------------------------------------------------------------


def test_a_run_through_flowers_records_has_the_hash_of_one_in_process(simulation, play, tmp_path):
    expected = play(tmp_path / "in-process")
    grid, _ = simulation({}, {})
    config = {**grid.run_config, "out": str(tmp_path / "flower")}
    grid.run_config = config

    folder, outcome = server_app.play(grid, config)

    assert outcome.weights_sha256 == expected["weights_sha256"]
    assert outcome.metrics["client/mAP/mean"] == expected["metrics"]["client/mAP/mean"]
    assert folder.settings()[1].engine == "flower"
    with pytest.raises(InputError, match="complete one"):
        server_app.play(grid, config)


def test_evaluations_of_clients_and_kept_scores_are_those_of_a_run_in_process(simulation, play, tmp_path):
    changes = {"num_rounds": 2, "keep_scores": "every"}
    play(tmp_path / "in-process", **changes)
    grid, _ = simulation({}, {}, **changes)
    grid.run_config = {**grid.run_config, "out": str(tmp_path / "flower"), "round-timeout": 60.0}

    folder, outcome = server_app.play(grid, grid.run_config)

    found, expected = (open_run(tmp_path / name).tables()["client-evaluations"] for name in ("flower", "in-process"))
    assert len(found) == 6
    assert found.equals(expected)
    assert outcome.metrics["client/mAP/worst-client"] == found.loc[found["mAP"].idxmin(), "client"]
    for split in ("val", "test"):
        codes = [read_scores(path_of(tmp_path / name, 2, split)).codes for name in ("flower", "in-process")]
        assert (codes[0] == codes[1]).all()
    assert "server/mAP/tail" not in outcome.metrics, "a bare Flower run does not know how often labels are annotated"
    assert "train_present" not in folder.tables()["labels"]


def test_starting_again_goes_on_from_the_checkpoint(simulation, play, tmp_path, monkeypatch):
    expected = play(tmp_path / "whole")
    faults = {"train": [None, None, *[crash] * 5]}
    grid, _ = simulation(faults)
    config = {**grid.run_config, "out": str(tmp_path / "run")}
    grid.run_config = config
    failure = tmp_path / "failure.json"
    monkeypatch.setenv(server_app.FAILURE_FILE, str(failure))
    context = Context(1, 0, {}, RecordDict(), config)

    with pytest.raises(RunFailedError, match="in round 3"):
        server_app.main(grid, context)
    assert "RunFailedError" in failure.read_text()
    with pytest.raises(InputError, match="of another"):
        server_app.play(grid, {**config, "seed": 9})
    _, outcome = server_app.play(grid, config)

    assert outcome.weights_sha256 == expected["weights_sha256"]
    assert next(iter(grid.nodes.values())).asked.count("train") == 2 + 5 + 2


def test_a_relative_out_is_refused(simulation):
    grid, _ = simulation({})
    with pytest.raises(InputError, match="absolute path"):
        server_app.play(grid, {**grid.run_config, "out": "runs/x"})


def test_without_out_the_run_lies_with_the_corpora(tiny, home):
    assert server_app.run_path(tiny()[1]).parent == home / "runs"


def test_label_names_are_needed_when_the_server_has_no_images(devices):
    grid, _ = devices(1)
    with pytest.raises(InputError, match="Expected label-names"):
        server_app.play(grid, {**grid.run_config, "label-names": ""})


def test_a_device_with_images_of_another_size_is_set_aside(devices, tmp_path):
    """The network pools over the whole image: its tensors have the same shapes for every size."""
    grid, _ = devices(2, num_rounds=1, num_clients=2)
    grid.nodes[501].config["data"] = grid.nodes[501].config["data"].replace("image_size=24", "image_size=48")
    grid.run_config = {**grid.run_config, "out": str(tmp_path / "run"), "min-hosts": 1}

    folder, _ = server_app.play(grid, grid.run_config)

    reasons = [event["reason"] for event in folder.events("set-aside")]
    assert len(reasons) == 1
    assert "Expected device-1 to have images of the run's height, width and channels (24, 24, 3), got (48" in reasons[0]
    assert {event["host"] for event in folder.events("client")} == {"device-0"}


def test_weights_of_a_round_on_devices_are_those_of_its_clients(devices, tmp_path):
    """Two devices through the whole ServerApp; the sum is that of their hosts called directly."""
    grid, _ = devices(2, num_rounds=1, evaluate_every=1, num_clients=2)
    config = {**grid.run_config, "out": str(tmp_path / "run")}
    grid.run_config = config

    folder, outcome = server_app.play(grid, config)
    tensors, _ = folder.load_checkpoint(1)

    layout = next(iter(client_app._nodes.values())).host.layout
    flat = layout.pack({n.removeprefix("model/"): value for n, value in tensors.items() if n.startswith("model/")})
    assert sha256(layout, flat) == outcome.weights_sha256
    assert "server/mAP" not in outcome.metrics
    assert outcome.metrics["client/mAP/mean"] > 0


# --- the part of the model that is not exchanged ---------------------------------------------


HEAD = ("head.weight", "head.bias")


@pytest.fixture
def sent(devices, monkeypatch):
    """A function: transport of two devices, and the list of (node, whether the rest of the model was sent)."""
    log = []

    def made(count=2, faults=None, **changes):
        grid, transport = devices(count, faults, **changes)
        push = grid.push

        def noted(message):
            if message.metadata.message_type == "train":
                log.append((message.metadata.dst_node_id, "flat" in message.content["rest"]))
            return push(message)

        monkeypatch.setattr(grid, "push", noted)
        return grid, transport, log

    return made


def moved(transport, request, by=0.01):
    """The next round's request, in which only the exchanged part is another."""
    part = request.layout(transport.layout)
    values = transport.layout.gather(request.flat, part) + by
    return replace(request, round=request.round + 1, flat=transport.layout.scatter(values, part, request.flat))


def good(turns):
    return [turns[client].error for client in sorted(turns)]


def test_the_rest_of_the_model_is_sent_once_per_node(sent):
    _, transport, log = sent()
    request = replace(ready(transport), tensors=HEAD)

    for _ in range(3):
        turns, update = gather(transport, request, [0, 1])
        assert good(turns) == ["", ""]
        assert update.layout == transport.layout.only(HEAD)
        request = moved(transport, request)
    assert sorted(log[:2]) == [(500, True), (501, True)]
    assert sorted(log[2:]) == [(500, False)] * 2 + [(501, False)] * 2

    log.clear()
    other = replace(request, flat=request.flat + 0.1)  # another rest, as in another phase
    gather(transport, other, [0, 1])
    gather(transport, other, [0])
    assert log[:2] == [(500, True), (501, True)]
    assert log[2:] == [(500, False)]


def test_what_is_trained_from_a_kept_rest_is_what_is_trained_from_a_whole_model(sent):
    _, transport, log = sent()
    request = replace(ready(transport), tensors=HEAD)
    gather(transport, request, [0, 1])
    request = moved(transport, request)
    kept = gather(transport, request, [0, 1])[1]
    transport._having.clear()
    whole = gather(transport, request, [0, 1])[1]

    assert [with_rest for _, with_rest in log] == [True, True, False, False, True, True]
    assert torch.equal(kept.sums, whole.sums)
    direct = next(iter(client_app._nodes.values())).host
    client = direct.info().clients.tolist()
    alone = direct.play(request, client).updates[0]
    assert torch.equal(alone.sums, gather(transport, request, client)[1].sums)


def test_a_device_that_lost_the_rest_gets_it_again_in_the_same_round(sent, home):
    _, transport, log = sent()
    request = replace(ready(transport), tensors=HEAD)
    gather(transport, request, [0, 1])
    files = sorted(home.rglob("rest.safetensors"))
    assert files
    for file in files:
        file.unlink()
    client_app._nodes.clear()
    log.clear()

    turns, update = gather(transport, moved(transport, request), [0, 1])

    assert good(turns) == ["", ""]
    assert sorted(update.clients) == [0, 1]
    assert sorted(log) == [(500, False), (500, True), (501, False), (501, True)]


def test_a_device_that_did_not_answer_is_sent_the_rest_until_it_does(sent):
    _, transport, log = sent(faults={1: {"train": [silence]}})
    request = replace(ready(transport), tensors=HEAD)

    first, _ = gather(transport, request, [0, 1])
    second, _ = gather(transport, moved(transport, request), [0, 1])

    assert [bool(error) for error in good(first)] == [False, True]
    assert good(second) == ["", ""]
    assert [with_rest for node, with_rest in log if node == 501] == [True, True]
    assert [with_rest for node, with_rest in log if node == 500] == [True, False]


def test_in_a_simulation_the_model_is_whole(simulation):
    _, transport = simulation({}, {})
    request = replace(ready(transport), tensors=HEAD)

    turns, update = gather(transport, request, [0, 1, 2, 3])

    assert good(turns) == [""] * 4
    assert update.layout == transport.layout.only(HEAD)


TURNS = (Path(__file__).parents[2] / "fixtures" / "turns.py").read_text(encoding="utf-8")


def test_phases_counts_memory_and_shared_tensors_have_one_hash_through_flowers_records(
    simulation, play, tmp_path, plug
):
    plug("turns", TURNS)
    changes = {
        "method": "turns.phased(statistics=True)",
        "mods": "turns.busy()",
        "strategy": "scaffold()",
        "optimizer": "sgd",
        "learning_rate": 0.05,
        "allow_statistics": True,
        "statistics_min_clients": 1,
    }
    expected = play(tmp_path / "in-process", **changes)
    grid, _ = simulation({}, {}, **changes)
    grid.run_config = {**grid.run_config, "out": str(tmp_path / "flower"), "round-timeout": 60.0}

    folder, outcome = server_app.play(grid, grid.run_config)

    assert outcome.weights_sha256 == expected["weights_sha256"]
    assert not any(event.get("error") for event in folder.events())
    assert sorted(node.asked.count("train") for node in grid.nodes.values()) == [5, 5]


def test_phases_and_memory_on_devices_are_those_of_their_hosts(devices, tmp_path):
    """probe_then_tune under scaffold on two devices: nothing fails, and only the head is sent at first."""
    changes = {"method": "probe_then_tune(probe_rounds=1)", "strategy": "scaffold()", "optimizer": "sgd"}
    grid, _ = devices(2, num_rounds=3, num_clients=2, **changes)
    grid.run_config = {**grid.run_config, "out": str(tmp_path / "run")}

    folder, _ = server_app.play(grid, grid.run_config)

    turns = [event for event in folder.events() if event["event"] == "client"]
    assert not any(turn.get("error") for turn in turns)
    sizes = [{turn["bytes-up"] for turn in turns if turn["round"] == number} for number in (1, 2, 3)]
    assert [len(each) for each in sizes] == [1, 1, 1]
    assert sizes[0].pop() < sizes[1].pop() == sizes[2].pop()


def host_of(wanted, *given, on_link, **more):
    assert on_link
    return Host(*given, on_link=wanted, **more)


@pytest.mark.parametrize("strategy", ["labelwise()", "loss_weighted()"])
def test_a_run_in_which_devices_send_changes_has_the_hash_of_one_in_which_they_send_sums(
    devices, tmp_path, monkeypatch, strategy
):
    hashes, parts = [], []
    for on_link in (True, False):
        monkeypatch.setattr(source, "Host", partial(host_of, on_link))
        mods = "top_k(fraction=0.3), int8()"
        grid, _ = devices(2, num_rounds=2, num_clients=2, strategy=strategy, mods=mods)
        answer = grid.answer

        def noted(node, message, answer=answer):
            reply = answer(node, message)
            parts.extend(sorted({"change", "sums"} & set(reply.content.get("update-0", ()))))
            return reply

        grid.answer = noted
        grid.run_config = {**grid.run_config, "out": str(tmp_path / str(on_link))}
        folder, outcome = server_app.play(grid, grid.run_config)
        assert not any(event.get("error") for event in folder.events())
        hashes.append(outcome.weights_sha256)
        client_app._nodes.clear()

    assert parts == ["change"] * 4 + ["sums"] * 4
    assert hashes[0] == hashes[1]


# --- lies, end to end ------------------------------------------------------------------------


def changed(grid, change):
    """A node that answers honestly, but for what ``change`` does to the records."""

    def answer(message):
        reply = grid.answer(grid.nodes[message.metadata.dst_node_id], message)
        change(reply.content)
        return reply

    return answer


def number(record, name, place, value):
    """A lie: another number in an array."""

    def change(content):
        held = content[record][name]
        kind = np.dtype(held.dtype)
        data = unpack(held.stype, held.data, math.prod(held.shape), kind.itemsize)
        values = np.frombuffer(data, kind).copy()
        values[place] = value
        content[record][name] = Array(held.dtype, held.shape, RAW, values.tobytes())

    return change


def entry(record, name, value):
    """A lie: another value in a record."""

    def change(content):
        content[record][name] = value

    return change


def shout(content):
    content.clear()
    content["failure"] = ConfigRecord({"kind": "\x1b[31m", "text": "\x1b[2J" + "x" * 10**7, "simulated": True})


def only_error(text):
    def change(content):
        for name in [name for name in content if name.startswith("update-")]:
            del content[name]
        content["reply"]["num-updates"] = 0
        content["turn-texts"]["error"] = [text]

    return change


LIES = {
    "a NaN": number("update-0", "sums", 40, math.nan),
    "a sum beyond its weight": number("update-0", "sums", 40, 1e9),
    "most of the weight": entry("update-0-about", "weight", 0.75),
    "negative annotations": number("update-0", "annotations", 0, -(2**40)),
    "another client": number("update-0", "clients", 0, 0),
    "no loss": lambda content: content["update-0-metrics"].pop("loss"),
    "an old token": entry("reply", "token", "train-1-0000000000000000"),
    "70 dimensions": lambda content: content["update-0"].update(
        {"sums": Array("<f8", (1,) * 70, "fedmlic.raw", bytes(8))}
    ),
    "a long shout": shout,
    "a long error": only_error("\x1b[2J" + "y" * 10**6),
}


@pytest.mark.parametrize("strategy", ["labelwise()", pytest.param("loss_weighted()", marks=pytest.mark.slow)])
def test_whatever_one_device_says_the_others_have_the_run_that_they_have_without_it(devices, tmp_path, strategy):
    """A lie a round, of one of three devices; the model is that of a run in which it never answers."""
    hashes = []
    for name in ("lies", "silence"):
        grid, _ = devices(3, num_rounds=len(LIES), num_clients=3, strategy=strategy, holdout_fraction=0.2)
        lies = [changed(grid, lie) for lie in LIES.values()]
        grid.nodes[502].faults["train"] = lies if name == "lies" else [crash] * len(lies)
        grid.nodes[502].faults["evaluate"] = [
            changed(grid, number("evaluation", "present", 0, 2**62)) if name == "lies" else crash
        ]
        grid.run_config = {**grid.run_config, "out": str(tmp_path / name)}
        folder, outcome = server_app.play(grid, grid.run_config)
        hashes.append((outcome.weights_sha256, outcome.metrics["client/mAP"]))
        client_app._nodes.clear()
        if name == "lies":
            turns = [event for event in folder.events() if event["event"] == "client"]
            assert folder.events_path.stat().st_size < 200_000

    assert hashes[0] == hashes[1]
    assert [turn["round"] for turn in turns if turn["client"] == 2] == list(range(1, len(LIES) + 1))
    for turn in turns:
        assert bool(turn.get("error")) is (turn["client"] == 2)
        assert "\x1b" not in turn.get("error", "")
        assert len(turn.get("error", "")) < 50_000
    refused = [turn["error"].startswith("Refused: device-2: ") for turn in turns if turn["client"] == 2]
    assert refused == [True] * (len(LIES) - 2) + [False, False]


def test_a_reply_of_an_earlier_round_is_refused(devices, tmp_path):
    grid, _ = devices(2, num_rounds=2, num_clients=2)
    kept = []

    def keep(message):
        kept.append(grid.answer(grid.nodes[501], message).content)
        return Message(kept[0], reply_to=message)

    def replay(message):
        return Message(kept[0], reply_to=message)

    grid.nodes[501].faults["train"] = [keep, replay]
    grid.run_config = {**grid.run_config, "out": str(tmp_path / "run")}
    folder, _ = server_app.play(grid, grid.run_config)
    errors = [e.get("error", "") for e in folder.events() if e["event"] == "client" and e["client"] == 1]

    assert errors[0] == ""
    assert "Expected it to answer this request" in errors[1]


def hosted(name, value):
    return number("hosted", name, 0, value)


def as_a_simulation(content):
    content["introduction"].update({"num-hosts": 3, "host": "node-2"})


INTRODUCTIONS = {
    "2**60 images": (hosted("sizes", 2**60), "most-client-images"),
    "a negative number of images": (hosted("sizes", -5), "images a client"),
    "a simulation": (as_a_simulation, "node of a simulation"),
    "other code": (entry("introduction", "code", "0" * 16), "server's code"),
    "other labels": (entry("introduction", "label-names", ["a", "b"]), "run's labels"),
    "the id of another": (
        lambda content: (hosted("clients", 0)(content), entry("introduction", "host", "device-0")(content)),
        "two device-0",
    ),
    "a failure of a simulation": (shout, "A node failed"),
    "rubbish": (lambda content: content.clear(), "protocol"),
}


def test_nodes_that_introduce_themselves_wrongly_are_set_aside_and_named(devices, tmp_path, caplog):
    grid, _ = devices(2 + len(INTRODUCTIONS), num_rounds=1, num_clients=20)
    for place, (lie, _) in enumerate(INTRODUCTIONS.values()):
        grid.nodes[502 + place].faults["query"] = [changed(grid, lie)]
    grid.run_config = {**grid.run_config, "out": str(tmp_path / "run"), "min-hosts": 2}

    folder, outcome = server_app.play(grid, grid.run_config)
    events = list(folder.events())
    aside = {int(event["node"]): event["reason"] for event in events if event["event"] == "set-aside"}

    assert outcome.progress.round == 1
    assert {event["client"] for event in events if event["event"] == "client"} == {0, 1}
    assert not any(event.get("error") for event in events)
    assert sorted(aside) == [502 + place for place in range(len(INTRODUCTIONS))]
    for place, (_, told) in enumerate(INTRODUCTIONS.values()):
        assert told in aside[502 + place]
    assert "\x1b" not in caplog.text
    assert len(caplog.text) < 20_000


def test_a_node_that_is_not_listed_is_nobody(devices):
    grid, _ = devices(2)
    listed = {**grid.run_config, "node-ids": "0=500, 1=777", "min-hosts": 1}
    transport = FlowerTransport(grid, *split_settings(listed))

    assert [info.host for info in transport.hosts()] == ["device-0"]
    assert "Add 1=501 there" in transport.set_aside()[0]["reason"]


def test_a_device_that_returns_with_other_images_stays_away(devices):
    grid, transport = devices(2)
    request = ready(transport)
    grid.nodes[9999] = grid.nodes.pop(501)
    grid.nodes[9999].faults["query"] = [changed(grid, hosted("sizes", 5))]

    turns, update = gather(transport, request, [0, 1])

    assert turns[1].error == "NodeFailed: device-1: it is not connected"
    assert update.clients == [0]
    assert "images that it announced, got 5" in transport.set_aside()[0]["reason"]


def test_a_sum_that_no_mod_declares_is_refused(devices):
    grid, transport = devices(3, mods="clip(norm=1.0)")

    def lie(content):
        content["update-0-extras"]["mine"] = Array("<f8", (1,), "fedmlic.raw", bytes(8))

    grid.nodes[500].faults["train"] = [changed(grid, lie)]
    replies = list(transport.play(ready(transport), [0, 1, 2]))
    turns = {turn.client: turn for reply in replies for turn in reply.turns}
    updates = [update for reply in replies for update in reply.updates]

    assert [update.clients for update in updates] == [[1, 2]]
    assert "no sums beside the model, which mods declare" in turns[0].error
    assert not turns[1].error


def test_nodes_that_answer_first_with_sums_of_their_own_shut_out_nobody_else(devices):
    _, transport = devices(2)
    request = ready(transport)

    def reply(client, extras):
        update = Update.zero(transport.layout, request.units)
        annotations = torch.ones(transport.layout.num_labels, dtype=torch.int64)
        weighting, flat = request.weighting, torch.full((transport.layout.size,), float(client))
        update.add_client(
            client, flat, weighting=weighting, num_images=1, annotations=annotations, metrics={}, extras=extras
        )
        return Reply((Turn(client, f"device-{client}"),), (update,))

    liars = [reply(client, {f"x{client}": torch.zeros(1)}) for client in range(6)]
    others = [reply(client, {}) for client in range(6, 10)]
    order = [*liars[:4], others[0], liars[4], others[1], liars[5], *others[2:]]

    replies = list(transport._total(request, order))
    turns = [turn for each in replies for turn in each.turns]
    refused = {turn.client for turn in turns if turn.error}
    (total,) = (update for each in replies for update in each.updates)

    assert refused == set(range(6))
    assert total.clients == [6, 7, 8, 9]
    shared = slice(0, transport.layout.rows_start)
    assert (total.mean(request.flat)[shared] == 7.5).all()


def test_plug_ins_run_where_the_devices_owner_allows_them(devices, plug, tmp_path):
    plug("turns", TURNS)
    changes = {"strategy": "turns.control()", "optimizer": "sgd", "learning_rate": 0.05}
    grid, _ = devices(3, num_rounds=1, num_clients=3, min_replies=0.3, **changes)
    grid.nodes[500].config["allow-plugins"] = "others.*, turns.*"
    grid.nodes[501].config["allow-plugins"] = "others.*"
    grid.run_config = {**grid.run_config, "out": str(tmp_path / "run")}

    folder, _ = server_app.play(grid, grid.run_config)
    errors = {event["client"]: event.get("error", "") for event in folder.events() if event["event"] == "client"}

    assert errors[0] == ""
    for client in (1, 2):
        assert "allow-plugins names, got ['turns.variates']" in errors[client]


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("method", "outside.own()"),
        ("inference", "outside.own()"),
        ("method", "probe_then_tune(method='outside.own()')"),
        ("method", "fedlgt(text='outside.own()')"),
    ],
)
def test_a_device_imports_no_plug_in_that_its_owner_does_not_allow(devices, plug, key, text):
    plug("outside", "raise RuntimeError('imported')")
    _, transport = devices(1, **{key: text})

    with pytest.raises(InputError, match=r"what this device allows \(nothing\), got outside\.own"):
        transport.hosts()


def test_a_device_writes_down_what_came_and_what_left_before_it_leaves(devices, tmp_path):
    grid, _ = devices(2, num_rounds=1, num_clients=2)
    log = tmp_path / "device" / "audit.jsonl"
    grid.nodes[500].config["audit-log"] = str(log)
    grid.run_config = {**grid.run_config, "out": str(tmp_path / "run")}

    server_app.play(grid, grid.run_config)

    found = [json.loads(line) for line in log.read_text().splitlines()]
    assert [entry["event"] for entry in found] == ["query", "train", "evaluate"]
    assert all(entry["outcome"] == "answered" and entry["code"] == wire.code_digest() for entry in found)
    trained = found[1]
    assert (trained["request-kind"], trained["request-round"], trained["num-clients"]) == ("train", "1", 1)
    parts = ("update-0", "update-0-extras", "update-0-about", "update-0-metrics")
    assert set(trained["out"]["records"]) == {"reply", "turns", "turn-texts", "evaluation", *parts}
    assert trained["out"]["bytes"] == sum(part["bytes"] for part in trained["out"]["records"].values())
    assert trained["in"]["records"]["model"]["bytes"] > 1000


def test_a_device_that_cannot_write_it_down_sends_nothing(devices, tmp_path):
    (tmp_path / "file").write_text("")
    grid, transport = devices(2)
    request = ready(transport)
    grid.nodes[500].config["audit-log"] = str(tmp_path / "file" / "audit.jsonl")

    turns, update = gather(transport, request, [0, 1])

    assert "InputError: Expected the audit log" in turns[0].error
    assert update.clients == [1]
