"""A node knows whether it is a device or a part of a simulation, and answers whatever happens."""

import json
import logging

import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict
from PIL import Image

from clients import app, audit, source
from fedmlic import wire
from fedmlic.errors import InputError
from fedmlic.experiment import flower_config, split_settings
from fedmlic.protocol import Request
from fedmlic.update import units_for

LABELS = ("cat", "dog", "bird")
NODE = {"partition-id": 1, "num-partitions": 3}


@pytest.fixture(autouse=True)
def _no_seat():
    app._nodes.clear()
    yield
    app._nodes.clear()


@pytest.fixture
def photos(tmp_path):
    """A folder of 12 small pictures whose annotators know two of the three labels."""
    rng = np.random.default_rng(0)
    lines = ["path,dog,cat,split"]
    for number in range(12):
        name = f"anna-{number}.png"
        Image.fromarray(rng.integers(0, 255, (24, 24, 3), dtype=np.uint8)).save(tmp_path / name)
        lines.append(f"{name},{number % 2},{int(number % 3 == 0)},train")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


@pytest.fixture
def device(photos):
    """The node configuration of a SuperNode beside these pictures."""
    return {"client": 4, "data": f"folder(root={str(photos)!r}, image_size=24)", "device": "cpu"}


@pytest.fixture
def run_config(settings):
    def made(**changes):
        return flower_config(*split_settings(settings(**changes)))

    return made


@pytest.fixture
def deployed(run_config):
    """The settings of a run on devices."""
    return run_config(dataset="on_devices(image_size=24)", label_names=", ".join(LABELS), cohort_size=0)


def context(node_config, config, run_id=1):
    return Context(run_id=run_id, node_id=99, node_config=node_config, state=RecordDict(), run_config=config)


def start_of(node):
    return node.host._learner.resident.flat.clone()


def request_to(node, clients, **changes):
    layout = node.host.layout
    flat = start_of(node)
    request = Request(
        **{"kind": "train", "round": 1, "flat": flat, "units": units_for(Request.weighting, [500], 9)} | changes
    )
    return wire.pack_request(request, clients, layout, wire.pack_model(request, layout))


def ask(node, where, clients, **changes):
    answer = app.answer_to(request_to(node, clients, **changes), where)
    return wire.unpack_reply(answer, node.host.layout)


def test_a_simulated_node_can_play_every_client(run_config):
    node = source.open_node(run_config(), NODE)
    info = node.host.info()

    assert info.host == "node-1"
    assert info.clients.tolist() == list(range(6))
    assert info.sizes.sum() + 48 == 240  # a fifth is held out
    assert (node.num_hosts, node.discreet) == (3, False)


def test_a_device_is_one_client_with_the_labels_it_knows(device, deployed):
    node = source.open_node(deployed, device)
    info = node.host.info()
    reply = ask(node, context(device, deployed), [4])

    assert (info.host, info.clients.tolist(), info.label_names) == ("device-4", [4], LABELS)
    assert (node.num_hosts, node.discreet) == (0, True)
    assert reply.turns[0].error == ""
    assert reply.updates[0].clients == [4]
    # Nobody looked for birds, and columns are in the federation's order.
    assert reply.updates[0].annotations.tolist() == [int(info.sizes[0]), int(info.sizes[0]), 0]


def test_a_device_holds_out_whole_owners_when_the_run_says_so(device, run_config, photos):
    asked = {"dataset": "on_devices(image_size=24)", "label_names": ", ".join(LABELS), "cohort_size": 0}
    config = run_config(**asked, holdout_by="owner", holdout_fraction=0.3)
    with pytest.raises(InputError, match="to say whose its training images are for holdout-by=owner"):
        source.open_node(config, device)
    header, *rows = (photos / "labels.csv").read_text().split()
    owned = [f"{header},owner", *(f"{row},patient {number // 3}" for number, row in enumerate(rows))]
    (photos / "labels.csv").write_text("\n".join(owned) + "\n")

    info = source.open_node(config, device).host.info()

    assert info.sizes.tolist() == [9], "one patient of four"


def test_the_client_id_may_come_from_the_partition(device, deployed):
    del device["client"]
    with pytest.raises(InputError, match="client id"):
        source.open_node(deployed, device)

    assert source.node_name({**device, "partition-id": 7, "num-partitions": 9}) == "device-7"


@pytest.mark.parametrize(
    ("node_config", "told"),
    [
        ({}, "name this device's images"),
        ({"partition-id": 0}, "name this device's images"),
        ({**NODE, "dta": "folder()"}, "Did you mean 'data'"),
        ({"data": "folder(root='x')", "client": -1}, "client of --node-config"),
        ({"data": "folder(root='x')", "client": True}, "client of --node-config"),
        ({"data": "folder(rot='x')", "client": 0}, "Did you mean 'root'"),
        ({"data": "folder(root='x')", "client": 0, "allow-statistics": "no"}, "to be true or false, got 'no'"),
    ],
)
def test_wrong_node_settings_are_named(node_config, told, deployed):
    with pytest.raises(InputError, match=told):
        source.open_node(deployed, node_config)


def test_a_device_does_not_follow_the_servers_paths(device, deployed, tmp_path):
    home = tmp_path / "mine"
    config = {**deployed, "home": "/nowhere/at/all", "device": "cuda:7", "threads": 64}

    node = source.open_node(config, {**device, "home": str(home)})

    assert node.host.device == torch.device("cpu")
    assert (home / "corpora").is_dir()


def test_one_seat_serves_all_messages_of_a_run(run_config):
    config = run_config()
    first = app.node_of(context(NODE, config))
    other_node = app.node_of(context({**NODE, "partition-id": 2}, config))
    name = other_node.host.name
    other_run = app.node_of(context(NODE, config, run_id=2))
    other_seed = app.node_of(context(NODE, run_config(seed=5), run_id=2))

    assert other_node is first
    assert name == "node-2"
    assert other_run is not first
    assert other_seed is not other_run
    assert len(app._nodes) == 1


def test_a_message_gets_the_same_update_as_a_direct_call(run_config):
    where = context(NODE, run_config())
    node = app.node_of(where)
    direct = source.open_node(run_config(), NODE).host
    request = Request("train", 1, start_of(node), units_for(Request.weighting, [500], 9))
    expected = direct.play(request, [3, 1])

    reply = ask(node, where, [3, 1])

    assert [turn.client for turn in reply.turns] == [3, 1]
    assert torch.equal(expected.updates[0].sums, reply.updates[0].sums)
    assert expected.updates[0].metrics == reply.updates[0].metrics


def test_each_client_apart_when_the_strategy_wants_so(run_config):
    where = context(NODE, run_config())
    reply = ask(app.node_of(where), where, [3, 1], each=True)

    assert [update.clients for update in reply.updates] == [[3], [1]]


def test_evaluation_is_counted(run_config):
    where = context(NODE, run_config())
    reply = ask(app.node_of(where), where, [0, 5], kind="evaluate")

    assert [turn.client for turn in reply.turns] == [0, 5]
    assert set(reply.turns[0].metrics) == {"mAP", "chance", "prevalence", "num-labels"}
    assert reply.evaluation
    assert not reply.updates


def test_a_broken_off_message_leaves_nothing_behind(run_config):
    where = context(NODE, run_config())
    node = app.node_of(where)
    start = start_of(node)
    clean = ask(node, where, [2], flat=start).updates[0]
    node.host.turns(Request("train", 1, start, units_for(Request.weighting, [500], 9)), [0])  # and nobody collects

    again = ask(node, where, [2], flat=start).updates[0]

    assert again.clients == [2]
    assert torch.equal(clean.sums, again.sums)


@pytest.mark.parametrize("tracebacks", [False, True])
def test_errors_of_a_device_keep_their_traceback_at_home(device, deployed, monkeypatch, caplog, tracebacks):
    node = {**device, "tracebacks": tracebacks}
    where = context(node, deployed)
    node = app.node_of(where)

    def fail(*_):
        msg = "no such thing\n  at /data/anna.png"
        raise KeyError(msg)

    monkeypatch.setattr(type(node.host), "_train", fail)
    with caplog.at_level(logging.ERROR, logger="fedmlic"):
        turn = ask(node, where, [4]).turns[0]

    assert turn.error.startswith("KeyError")
    assert ("test_source.py" in turn.error) is tracebacks
    assert ("test_source.py" in caplog.text) is not tracebacks


def test_a_device_that_cannot_open_its_images_says_so_in_one_line(device, deployed, photos):
    (photos / "anna-3.png").unlink()
    content = app._failure(ValueError("x\ny"), context(device, deployed))
    with pytest.raises(wire.RemoteError, match=r"^ValueError: x$"):
        wire.unpack_introduction(content)

    with pytest.raises(wire.RemoteError) as caught:
        wire.unpack_introduction(app.answer_to(RecordDict(), context(device, deployed)))

    assert caught.value.kind == "InputError"
    assert "anna" not in str(caught.value)


@pytest.mark.parametrize("owner", [None, True, False])
@pytest.mark.parametrize("experiment", [False, True])
def test_a_count_needs_leave_of_the_experiment_and_of_the_devices_owner(
    device, run_config, tmp_path, owner, experiment
):
    log = tmp_path / "audit.jsonl"
    config = run_config(
        dataset="on_devices(image_size=24)",
        label_names=", ".join(LABELS),
        cohort_size=0,
        mods="label_report()",
        allow_statistics=experiment,
    )
    node = {**device, "audit-log": str(log)} | ({} if owner is None else {"allow-statistics": owner})
    where = context(node, config)
    here = app.node_of(where)
    asked = request_to(here, [4], kind="count", round=0)

    answer = app.answer_to(asked, where)
    audit.note("train", asked, answer, where)

    reply = wire.unpack_reply(answer, here.host.layout.only(()))
    allowed = experiment and owner is not False
    assert bool(reply.updates) is allowed
    assert ("Expected allow-statistics to be true" in reply.turns[0].error) is not allowed
    assert json.loads(log.read_text())["allow-statistics"] is allowed


WATCHED = [
    {"evaluate_every": 3},
    {"evaluate_clients_every": 2},
    {"client_min_entries": 2},
    {"threshold": 0.3},
    {"tail_below": 3},
    {"head_above": 300},
    {"max_bad_fraction": 0.5},
]
"""Settings that decide no weight, with which a run may go on."""
DECIDING = [{"seed": 1}, {"method": "bce()"}, {"learning_rate": 0.5}, {"mods": "clip(norm=1.0)"}, {"num_rounds": 9}]


def place_of(node, run="mine"):
    return node.host._memory(run).folder


@pytest.mark.parametrize("simulated", [False, True])
def test_what_a_client_keeps_is_bound_to_the_run_and_to_what_decides_its_result(
    device, run_config, tmp_path, simulated
):
    """A resumed run finds it though it is watched otherwise; another experiment does not, whatever the server says."""
    common = {} if simulated else {"dataset": "on_devices(image_size=24)", "label_names": ", ".join(LABELS)}
    where = {**device, "home": str(tmp_path / "home")}

    def place(run="mine", **changes):
        settings = {"method": "hill()", **common, "cohort_size": 0, **changes}
        experiment, _ = split_settings(run_config(**settings))
        return source.kept_in(tmp_path / "home", experiment)(run).folder

    expected = place()
    assert {place(**changes) for changes in WATCHED} == {expected}
    assert len({expected, place("other"), *(place(**changes) for changes in DECIDING)}) == len(DECIDING) + 2
    if not simulated:
        settings = {"method": "hill()", **common, "cohort_size": 0, "allow_statistics": True}
        opened = [
            source.open_node(run_config(**settings), where | changes)
            for changes in ({}, {"allow-statistics": False}, {"threads": 1})
        ]
        assert [place_of(node) for node in opened] == [place(allow_statistics=True)] * 3


def test_messages_of_another_protocol_are_answered(run_config):
    where = context(NODE, run_config())
    with pytest.raises(wire.RemoteError, match="WireError") as caught:
        wire.unpack_reply(app.answer_to(RecordDict(), where), app.node_of(where).host.layout)

    assert caught.value.simulated
