"""What goes onto Flower's wire comes off it unchanged, and nothing else gets through."""

import math
import pickle
import sys
import zlib
from dataclasses import replace
from importlib import metadata

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedmlic import wire
from fedmlic.arrays import Layout
from fedmlic.errors import InputError
from fedmlic.mods.int8 import quantised
from fedmlic.packing import DEFLATED, LISTED, RAW, SHUFFLED
from fedmlic.protocol import HostInfo, Reply, Request, Turn
from fedmlic.update import Units, Update, Weighting, units_for

LAYOUT = Layout(("backbone", "head.weight", "head.bias"), ((5, 3), (4, 2), (4,)), num_labels=4, num_row_tensors=2)
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=20)
FLOATS = st.floats(width=64, allow_nan=True, allow_infinity=True)
COUNTS = st.integers(0, 2**62)
CLIENTS = st.lists(st.integers(0, 2**40), unique=True, max_size=6)


def through(content):
    """The records after Flower's own serialisation."""
    return recorddict_from_proto(recorddict_to_proto(content))


def same(left, right):
    """Equality that holds for NaN."""
    return left == right or (math.isnan(left) and math.isnan(right))


def float64s(shape):
    return hnp.arrays(np.float64, shape, elements=FLOATS)


@st.composite
def turns(draw, host="node-1"):
    return tuple(
        Turn(
            client=client,
            host=host,
            started=draw(FLOATS),
            seconds=draw(FLOATS),
            num_images=draw(COUNTS),
            num_annotations=draw(COUNTS),
            loss=draw(FLOATS),
            num_steps=draw(COUNTS),
            bytes_down=draw(COUNTS),
            bytes_up=draw(COUNTS),
            metrics=draw(st.dictionaries(TEXT, FLOATS, max_size=3)),
            error=draw(TEXT),
        )
        for client in draw(CLIENTS)
    )


@st.composite
def updates(draw):
    return Update(
        layout=LAYOUT,
        units=Units(*(2.0 ** draw(st.integers(0, 30)) for _ in range(3))),
        sums=torch.from_numpy(draw(float64s(LAYOUT.size))),
        weight=draw(FLOATS),
        row_weights=torch.from_numpy(draw(float64s(4))),
        clients=draw(CLIENTS),
        num_images=draw(COUNTS),
        annotations=torch.from_numpy(draw(hnp.arrays(np.int64, 4))),
        metrics=draw(st.dictionaries(TEXT, FLOATS, max_size=3)),
        extras=draw(named_tensors(np.float64, np.int64)),
    )


def named_tensors(*dtypes):
    """Tensors of any shape by name."""
    shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3)
    of_a_type = {
        dtype: hnp.arrays(dtype, shapes, elements=st.floats(width=8 * np.dtype(dtype).itemsize))
        for dtype in dtypes
        if np.issubdtype(dtype, np.floating)
    }
    arrays = st.one_of(*(of_a_type.get(dtype, hnp.arrays(dtype, shapes)) for dtype in dtypes))
    return st.dictionaries(TEXT, arrays.map(torch.from_numpy), max_size=3)


def bits_of(tensors):
    return {name: (t.dtype, tuple(t.shape), t.contiguous().numpy().tobytes()) for name, t in tensors.items()}


@st.composite
def replies(draw):
    shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
    arrays = st.dictionaries(TEXT, hnp.arrays(np.int64, shapes), max_size=3)
    return Reply(draw(turns()), tuple(draw(st.lists(updates(), max_size=2))), draw(arrays))


def assert_same_update(left, right):
    assert left.layout == right.layout
    assert left.units == right.units
    for name in ("sums", "row_weights", "annotations"):
        one, two = getattr(left, name).numpy(), getattr(right, name).numpy()
        assert one.dtype == two.dtype
        assert one.tobytes() == two.tobytes()
    assert same(left.weight, right.weight)
    assert left.clients == right.clients
    assert left.num_images == right.num_images
    assert left.metrics.keys() == right.metrics.keys()
    assert all(same(left.metrics[name], right.metrics[name]) for name in left.metrics)
    assert bits_of(left.extras) == bits_of(right.extras)


@settings(deadline=None, max_examples=60)
@given(replies())
def test_replies_survive_the_wire_bit_for_bit(reply):
    got = wire.unpack_reply(through(wire.pack_reply(reply, LAYOUT)), LAYOUT)

    assert len(reply.turns) == len(got.turns)
    for left, right in zip(reply.turns, got.turns, strict=True):
        exact = replace(right, started=left.started, seconds=left.seconds, loss=left.loss, metrics=left.metrics)
        assert exact == left
        assert same(left.started, right.started)
        assert same(left.seconds, right.seconds)
        assert same(left.loss, right.loss)
        assert left.metrics.keys() == right.metrics.keys()
        assert all(same(left.metrics[name], right.metrics[name]) for name in left.metrics)
    assert len(reply.updates) == len(got.updates)
    for left, right in zip(reply.updates, got.updates, strict=True):
        assert_same_update(left, right)
    assert reply.evaluation.keys() == got.evaluation.keys()
    for name, array in reply.evaluation.items():
        assert array.shape == got.evaluation[name].shape
        assert array.tobytes() == got.evaluation[name].tobytes()


@settings(deadline=None, max_examples=40)
@given(
    kind=st.sampled_from(["train", "evaluate"]),
    number=st.integers(0, 10**6),
    flat=hnp.arrays(np.float32, LAYOUT.size, elements=st.floats(width=32, allow_nan=True)),
    clients=CLIENTS,
    each=st.booleans(),
    shared=st.sampled_from(["images", "annotations", "uniform"]),
    rows=st.sampled_from(["shared", "annotations"]),
    beside=named_tensors(np.float32, np.float64, np.int64),
    mods=st.lists(st.sampled_from(["scaffold(option=2)", "clip(norm=1.5)", "x(path='a.b/c')"]), max_size=2),
    run=TEXT,
    needed=st.lists(st.integers(0, 10**6), max_size=3),
    data=st.data(),
)
def test_requests_survive_the_wire(kind, number, flat, clients, each, shared, rows, beside, mods, run, needed, data):
    last = {client: data.draw(st.integers(1, 10**6)) for client in clients if data.draw(st.booleans())}
    request = Request(
        kind,
        number,
        torch.from_numpy(flat),
        Units(64.0, 8.0, 4.0),
        Weighting(shared, rows),
        each,
        shared=beside,
        mods=tuple(mods),
        last=last,
        run=run,
        needed=tuple(needed),
    )
    packed = wire.pack_request(request, clients, LAYOUT, wire.pack_model(request, LAYOUT))

    got, asked = wire.unpack_request(through(packed), LAYOUT)

    assert asked == clients
    assert got.flat.numpy().tobytes() == flat.tobytes()
    assert bits_of(got.shared) == bits_of(beside)
    assert replace(got, flat=request.flat, shared=beside) == request


def test_only_the_last_turns_of_those_who_are_asked_travel():
    request = Request("train", 3, torch.zeros(LAYOUT.size), last={1: 2, 5: 1, 9: 2})
    packed = wire.pack_request(request, [9, 4, 1], LAYOUT, wire.pack_model(request, LAYOUT))

    assert wire.unpack_request(through(packed), LAYOUT)[0].last == {9: 2, 1: 2}


def test_a_count_travels_without_a_model():
    request = Request("count", 0, torch.ones(LAYOUT.size), Units(8.0, 8.0, 2.0), mods=("label_report()",))
    packed = wire.pack_request(request, [0, 1], LAYOUT, wire.pack_model(request, LAYOUT))
    got, asked = wire.unpack_request(through(packed), LAYOUT)

    assert (got.kind, asked, got.flat.numel(), got.mods) == ("count", [0, 1], 0, ("label_report()",))
    assert got.layout(LAYOUT).size == 0
    counted = Update.zero(got.layout(LAYOUT), got.units)
    counted.add_client(
        0,
        torch.zeros(0),
        weighting=Weighting(),
        num_images=3,
        annotations=torch.zeros(4, dtype=torch.int64),
        metrics={},
        extras={"present": torch.tensor([1, 2, 3, 4]), "share": torch.tensor(0.5)},
    )
    reply = wire.unpack_reply(through(wire.pack_reply(Reply((), (counted,)), counted.layout)), counted.layout)
    assert_same_update(reply.updates[0], counted)


# --- the part of the model that is not exchanged --------------------------------------------


class Keeper:
    """A node that keeps the rest."""

    def __init__(self):
        self.held = {}

    def recall(self, digest):
        return self.held.get(digest)

    def keep(self, digest, values):
        self.held = {digest: values}


@given(data=st.data(), names=st.sets(st.sampled_from(LAYOUT.names)))
def test_the_whole_model_comes_together_from_what_is_sent_and_what_is_kept(data, names):
    first = torch.randn(LAYOUT.size, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 9))))
    node, part = Keeper(), LAYOUT.only(names)
    tensors = tuple(name for name in LAYOUT.names if name in names)
    for number in (1, 2):
        values = LAYOUT.gather(first, part) + number
        request = Request("train", number, LAYOUT.scatter(values, part, first), tensors=tensors)
        model = wire.pack_model(request, LAYOUT)
        packed = wire.pack_request(request, [1], LAYOUT, model, with_rest=number == 1)
        got, _ = wire.unpack_request(through(packed), LAYOUT, node)

        assert got.tensors == tensors
        assert got.layout(LAYOUT) == part
        for name, view in LAYOUT.views(request.flat):
            assert torch.equal(LAYOUT.view(got.flat, name), view)


def head_request(flat):
    return Request("train", 3, flat, tensors=("head.weight", "head.bias"))


def test_a_node_without_the_rest_asks_for_it_and_a_wrong_one_is_refused():
    request = head_request(torch.randn(LAYOUT.size))
    model = wire.pack_model(request, LAYOUT)
    without = through(wire.pack_request(request, [1], LAYOUT, model, with_rest=False))
    node = Keeper()
    node.keep(model.digest, torch.zeros(3))

    for rest in (None, Keeper(), node):
        with pytest.raises(wire.RestMissingError, match="Send them again"):
            wire.unpack_request(without, LAYOUT, rest)
    other = wire.pack_model(head_request(torch.randn(LAYOUT.size)), LAYOUT)
    wrong = wire.pack_request(request, [1], LAYOUT, model._replace(rest=other.rest))
    with pytest.raises(wire.WireError, match="digest"):
        wire.unpack_request(through(wrong), LAYOUT, node)
    failure = wire.pack_failure(wire.RestMissingError("x"), simulated=False)
    with pytest.raises(wire.RemoteError) as caught:
        wire.unpack_reply(through(failure), LAYOUT)
    assert caught.value.kind == "RestMissingError"


def test_what_is_not_exchanged_costs_nothing_once_it_is_there():
    layout = Layout(("body", "head"), ((100_000,), (4, 100)), num_labels=4, num_row_tensors=1)
    request = Request("train", 1, torch.randn(layout.size), tensors=("head",))
    model = wire.pack_model(request, layout)
    sizes = [
        num_bytes(wire.pack_request(request, [1], layout, model, with_rest=with_rest)) for with_rest in (True, False)
    ]

    assert 0 <= sizes[0] - 4 * layout.size < 3000
    assert 0 <= sizes[1] - 4 * 400 < 3000
    whole = wire.pack_model(request, layout, whole=True)
    assert (whole.rest, whole.digest) == (None, "")
    for kind in ("evaluate",):
        evaluated = replace(request, kind=kind)
        assert wire.pack_model(evaluated, layout).rest is None


VERSIONS = {"flwr": "1.42.0", "numpy": "2.4.6", "python": "3.11.7", "torch": "2.15.0+cu130"}


@given(clients=CLIENTS, names=st.lists(TEXT, max_size=4), num_hosts=st.integers(0, 100))
def test_introductions_survive_the_wire(clients, names, num_hosts):
    ids = np.array(clients, dtype=np.int64)
    info = HostInfo("device-3", ids, ids + 7, tuple(names), VERSIONS, image_shape=(24, 20, 3))
    told = wire.Introduction(info, num_hosts, "abc")

    got = wire.unpack_introduction(through(wire.pack_introduction(told)))

    assert got.info.clients.tolist() == clients
    assert got.info.sizes.tolist() == [client + 7 for client in clients]
    assert (got.info.host, got.info.label_names) == ("device-3", tuple(names))
    assert got.info.versions == VERSIONS
    assert got.info.unannotated is None
    for apart in ((), tuple(names)):
        said = replace(told, info=replace(told.info, unannotated=apart))
        assert wire.unpack_introduction(through(wire.pack_introduction(said))).info.unannotated == apart
    assert (got.num_hosts, got.code, got.simulated) == (num_hosts, "abc", num_hosts > 0)


def test_updates_merge_the_same_before_and_after_the_wire():
    generator = torch.Generator().manual_seed(3)
    units = units_for(Weighting(), [5, 9], 4)
    parts = []
    for client, count in ((0, 5), (1, 9)):
        update = Update.zero(LAYOUT, units)
        flat = torch.randn(LAYOUT.size, generator=generator)
        known = torch.tensor([count, 0, 1, 2])
        update.add_client(
            client, flat, weighting=Weighting(), num_images=count, annotations=known, metrics={"loss": 0.1}
        )
        parts.append(update)
    sent = [wire.unpack_reply(through(wire.pack_reply(Reply((), (p,)), LAYOUT)), LAYOUT).updates[0] for p in parts]

    parts[0].merge(parts[1])
    sent[1].merge(sent[0])

    zeros = torch.zeros(LAYOUT.size)
    assert torch.equal(parts[0].mean(zeros), sent[1].mean(zeros))


def noise(size):
    """Float64 of random bits, which nothing makes shorter."""
    bits = np.frombuffer(np.random.default_rng(0).bytes(8 * size), np.float64)
    return torch.from_numpy(bits.copy())


def num_bytes(content):
    return len(recorddict_to_proto(content).SerializeToString())


def test_a_message_costs_one_model_out_and_one_sum_in():
    """Counted on the serialised messages: everything else is below two kilobytes."""
    layout = Layout(("weights",), ((100_000,),), num_labels=4, num_row_tensors=0)
    request = Request("train", 1, torch.randn(layout.size))
    update = Update.zero(layout, Units(1.0, 1.0))
    update.sums.copy_(noise(layout.size))
    turn = Turn(1, "node-0", metrics={"mAP": 0.5})

    out = num_bytes(wire.pack_request(request, range(10), layout, wire.pack_model(request, layout)))
    back = num_bytes(wire.pack_reply(Reply((turn,) * 10, (update,)), layout))

    assert 0 <= out - 4 * layout.size < 2000
    assert 0 <= back - 8 * layout.size < 4000


def changed_update(layout, start, change, *, by_mods=True):
    """One device's, whose turn led from ``start`` to ``start + change``."""
    update = Update.zero(layout, Units(64.0, 64.0))
    update.add_client(
        3,
        start + change,
        weighting=Weighting(),
        num_images=37,
        annotations=torch.zeros(layout.num_labels, dtype=torch.int64),
        metrics={"loss": 0.5},
        change=change if by_mods else None,
    )
    return update


def sent_by_a_device(change, *, by_mods=True):
    """Message bytes of one device's update, and in which form; the server has the sums that the device had."""
    layout = Layout(("weights",), ((len(change),),), num_labels=4, num_row_tensors=0)
    start = torch.randn(layout.size, generator=torch.Generator().manual_seed(1)) / 30
    update = changed_update(layout, start, change, by_mods=by_mods)
    content = wire.pack_reply(Reply((), (update,)), layout)
    got = wire.unpack_reply(through(content), layout).updates[0]
    if by_mods:
        assert got.sums.numel() == 0
        got.add_up(start, Weighting())
    assert got.change is None
    assert_same_update(got, update)
    return num_bytes(content), content["update-0"]["change" if by_mods else "sums"].stype


def test_a_device_sends_fewer_bytes_of_the_same_numbers():
    """Bytes per number: 8 in memory, 5 for float32 times a count, about one after int8() and after top_k(0.1)."""
    size = 50_000
    change = torch.randn(size, generator=torch.Generator().manual_seed(0)) / 1000
    largest = change.where(change.abs() >= change.abs().quantile(0.9), 0.0)

    plain = sent_by_a_device(change, by_mods=False)
    eight_bits, sparse = (sent_by_a_device(each) for each in (quantised(change, None), largest))

    assert (plain[1], eight_bits[1], sparse[1]) == (SHUFFLED, LISTED, DEFLATED)
    assert plain[0] < 5 * size
    assert eight_bits[0] < 1.1 * size
    assert sparse[0] < 1.1 * size


def test_a_change_is_of_one_client_and_stays_on_its_machine_in_a_simulation():
    start, change = torch.zeros(LAYOUT.size), torch.ones(LAYOUT.size)
    one, two = (changed_update(LAYOUT, start, change) for _ in range(2))
    two.clients = [4]
    assert "sums" in wire.pack_reply(Reply((), (one,)), LAYOUT, copy=False)["update-0"]

    one.merge(two)
    assert one.change is None
    two.add_client(
        5, start, weighting=Weighting(), num_images=7, annotations=two.annotations, metrics={}, change=change
    )
    assert two.change is None


CHANGE_LIES = {
    "of two clients": (lambda update: setattr(update, "clients", [3, 4]), "to be of one client, got 2"),
    "of nobody": (lambda update: setattr(update, "clients", []), "to be of one client, got 0"),
    "too short": (lambda update: setattr(update, "change", update.change[:-4]), "'change' to be"),
    "in float64": (lambda update: setattr(update, "change", update.change.double()), "'change' to be"),
}


@pytest.mark.parametrize("name", CHANGE_LIES)
def test_a_change_that_cannot_be_one_is_refused(name):
    lie, told = CHANGE_LIES[name]
    update = changed_update(LAYOUT, torch.zeros(LAYOUT.size), torch.ones(LAYOUT.size))
    lie(update)

    with pytest.raises(wire.WireError, match=told):
        wire.unpack_reply(through(wire.pack_reply(Reply((), (update,)), LAYOUT)), LAYOUT)


def test_sums_beside_a_change_are_refused():
    update = changed_update(LAYOUT, torch.zeros(LAYOUT.size), torch.ones(LAYOUT.size))
    content = wire.pack_reply(Reply((), (update,)), LAYOUT)
    content["update-0"]["sums"] = reply_records()["update-0"]["sums"]

    with pytest.raises(wire.WireError, match="the parts of update-0"):
        wire.unpack_reply(through(content), LAYOUT)


def test_numbers_that_do_not_pack_are_sent_as_they_are():
    layout = Layout(("weights",), ((5000,),), num_labels=4, num_row_tensors=0)
    update = Update.zero(layout, Units(1.0, 1.0))
    update.sums.copy_(noise(layout.size))

    content = wire.pack_reply(Reply((), (update,)), layout)

    assert content["update-0"]["sums"].stype == RAW
    got = wire.unpack_reply(through(content), layout).updates[0].sums
    assert torch.equal(got.view(torch.int64), update.sums.view(torch.int64))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda data: data[:-3], id="cut off"),
        pytest.param(lambda data: data + b"more", id="with more behind"),
        pytest.param(lambda _: zlib.compress(bytes(8 * LAYOUT.size - 8)), id="a number too few"),
        pytest.param(lambda _: zlib.compress(bytes(1 << 28)), id="a quarter of a gigabyte of zeros"),
        pytest.param(lambda _: b"not deflated", id="something else"),
    ],
)
@pytest.mark.parametrize("form", [DEFLATED, SHUFFLED, LISTED, "pickle"])
def test_packed_sums_that_are_not_what_they_say_are_refused(change, form):
    content = reply_records()
    sums = content["update-0"]["sums"]
    content["update-0"]["sums"] = Array(sums.dtype, sums.shape, form, change(zlib.compress(sums.data)))

    with pytest.raises(wire.WireError, match=r"array 'sums' to be fedmlic\.raw or to hold"):
        wire.unpack_reply(through(content), LAYOUT)


def request_records():
    request = Request("train", 2, torch.ones(LAYOUT.size))
    return wire.pack_request(request, [1, 2], LAYOUT, wire.pack_model(request, LAYOUT))


def reply_records():
    update = Update.zero(LAYOUT, Units(1.0, 1.0))
    turn = Turn(4, "node-0", metrics={"mAP": 0.5})
    return wire.pack_reply(Reply((turn,), (update,), {"bins": np.zeros((2, 2), np.int64)}), LAYOUT)


def drop(name):
    def change(content):
        del content[name]

    return change


def add_record(content):
    content["patients"] = ConfigRecord({"names": ["Anna"]})


def put(record, key, value):
    def change(content):
        content[record][key] = value

    return change


def both(*changes):
    def change(content):
        for each in changes:
            each(content)

    return change


def introduction_records():
    info = HostInfo("device-3", np.array([3]), np.array([30]), ("cat",), wire.versions())
    return wire.pack_introduction(wire.Introduction(info, 0, "abc"))


def test_the_versions_are_those_that_are_installed():
    stated = wire.versions()

    assert sorted(stated) == ["flwr", "numpy", "python", "torch"]
    assert stated.pop("python") == sys.version.split()[0]
    for name, version in stated.items():
        assert version.split("+")[0] == metadata.version(name).split("+")[0]


def array(values, dtype):
    values = np.asarray(values, dtype=dtype)
    return Array(values.dtype.str, values.shape, RAW, values.tobytes())


BAD_REQUESTS = {
    "a missing part": (drop("model"), "parts of request"),
    "an unknown part": (add_record, "patients"),
    "an unknown field": (put("request", "lr", 0.1), "lr"),
    "another version": (put("request", "version", 1), "protocol version"),
    "another kind": (put("request", "kind", "upload"), "upload"),
    "a boolean for a number": (put("request", "round", True), "round"),
    "a short model": (put("model", "flat", array(np.ones(3), np.float32)), "shape"),
    "a float64 model": (put("model", "flat", array(np.ones(LAYOUT.size), np.float64)), "<f4"),
    "other units": (put("request", "units", [1.0]), "units"),
    "units of the former version": (put("request", "units", [1.0, 1.0]), "units"),
    "code of its own": (put("request", "mods", ["clip(norm=1.0)", "os.system(command='x')"]), "catalogue"),
    "mods that are no texts": (put("request", "mods", [1]), "list of texts"),
    "rounds in words": (put("request", "needed", ["one"]), "list of integers"),
    "tensors of another network": (
        both(put("request", "all-tensors", False), put("request", "tensors", ["heed"])),
        "heed",
    ),
    "last turns of others": (put("played", "last", array([1, 2, 3], np.int64)), "shape"),
    "objects beside the model": (put("shared", "x", Array("|O", (1,), RAW, bytes(8))), "<f4"),
    "70 dimensions beside the model": (put("shared", "x", Array("<f4", (1,) * 70, RAW, bytes(4))), "dimensions"),
    "70 dimensions of clients": (put("played", "clients", Array("<i8", (1,) * 70, RAW, bytes(8))), "dimensions"),
    "clients in a table": (put("played", "clients", array([[1]], np.int64)), "shape"),
}

BAD_REPLIES = {
    "a missing part": (drop("turns"), "parts of reply"),
    "an unknown part": (add_record, "patients"),
    "more updates than parts": (put("reply", "num-updates", 10**12), "number of updates"),
    "another count of updates": (put("reply", "num-updates", 2), "parts of reply"),
    "a float32 sum": (put("update-0", "sums", array(np.zeros(LAYOUT.size), np.float32)), "<f8"),
    "a short sum": (put("update-0", "sums", array(np.zeros(3), np.float64)), "shape"),
    "weights for fewer labels": (put("update-0", "row-weights", array([1.0], np.float64)), "shape"),
    "a weight in words": (put("update-0-about", "weight", "heavy"), "heavy"),
    "a whole number for a metric": (put("update-0-metrics", "loss", 1), "loss"),
    "scores instead of counts": (put("evaluation", "bins", array([0.5], np.float64)), "<i8"),
    "errors of fewer turns": (put("turn-texts", "error", []), "1 entries"),
    "a metric of no turn": (put("turns", "metric-turns", array([7], np.int64)), "metrics of turns"),
    "fewer bytes than numbers": (put("turns", "metric-turns", Array("<i8", (1,), RAW, b"no")), "bytes of shape"),
    "more bytes than numbers": (
        put("turns", "metric-turns", Array("<i8", (1,), RAW, bytes(16))),
        "bytes of shape",
    ),
    "a negative shape": (put("turns", "metric-turns", Array("<i8", (-1, -1), RAW, bytes(8))), "bytes of shape"),
    "a shape of huge numbers": (
        put("turns", "metric-turns", Array("<i8", (2**30,), RAW, bytes(8))),
        "bytes of shape",
    ),
    "big-endian numbers": (put("turns", "metric-turns", Array(">i8", (1,), RAW, bytes(8))), "<i8"),
    "another serialisation": (put("turns", "metric-turns", Array("<i8", (1,), "pickle", b"x")), "pickle"),
    "70 dimensions of a sum": (put("update-0-extras", "x", Array("<f8", (1,) * 70, RAW, bytes(8))), "dimensions"),
    "70 dimensions of scores": (put("evaluation", "bins", Array("<i8", (1,) * 70, RAW, bytes(8))), "dimensions"),
    "a float32 extra": (put("update-0-extras", "x", array([1.0], np.float32)), "<f8"),
    "a negative extra shape": (
        put("update-0-extras", "x", Array("<f8", (-1, -1), RAW, bytes(8))),
        "bytes of shape",
    ),
    "a missing part of an update": (drop("update-0-extras"), "parts of reply"),
    "objects": (put("turns", "metric-turns", Array("|O", (1,), RAW, bytes(8))), "<i8"),
}


def as_in_protocol_2(content):
    content["introduction"]["version"] = 2
    del content["versions"]


BAD_INTRODUCTIONS = {
    "the last protocol": (as_in_protocol_2, rf"protocol version to be {wire.VERSION}, got 2"),
    "no protocol": (drop("introduction"), "introduction"),
    "a missing part": (drop("versions"), "parts of introduction"),
    "an unannotated label that is none": (
        lambda content: content["introduction"].update({"unannotated": ["cat", "dog"]}),
        r"unannotated.*\['dog'\]",
    ),
    "half a shape of images": (put("introduction", "image-shape", [24, 24]), "that cannot be read"),
    "a shape of images that is none": (put("introduction", "image-shape", [24.0, 24.0, 3.0]), "list of integers"),
    "no word on what is known": (put("introduction", "knows-unannotated", 1), "knows-unannotated"),
    "a missing version": (lambda content: content["versions"].pop("flwr"), "parts of versions"),
    "a version of something else": (put("versions", "hostname", "anna"), "hostname"),
    "a version that is a number": (put("versions", "flwr", 1.42), "1.42"),
    "a version of two lines": (put("versions", "torch", "2.15.0\nINFO: all is well"), "version of torch"),
    "a long version": (put("versions", "numpy", "9" * 100_000), "version of numpy"),
    "clients without sizes": (put("hosted", "sizes", array([], np.int64)), "shape"),
}


@pytest.mark.parametrize(("change", "told"), BAD_INTRODUCTIONS.values(), ids=BAD_INTRODUCTIONS.keys())
def test_wrong_introductions_are_refused(change, told):
    content = introduction_records()
    change(content)

    with pytest.raises(wire.WireError, match=told) as caught:
        wire.unpack_introduction(through(content))

    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("change", "told"), BAD_REQUESTS.values(), ids=BAD_REQUESTS.keys())
def test_wrong_requests_are_refused(change, told):
    content = request_records()
    change(content)

    with pytest.raises(wire.WireError, match=told):
        wire.unpack_request(through(content), LAYOUT)


@pytest.mark.parametrize(("change", "told"), BAD_REPLIES.values(), ids=BAD_REPLIES.keys())
def test_wrong_replies_are_refused(change, told):
    content = reply_records()
    change(content)

    with pytest.raises(wire.WireError, match=told):
        wire.unpack_reply(through(content), LAYOUT)


def test_in_a_simulation_nothing_large_is_copied_into_the_pickle():
    flat = torch.arange(LAYOUT.size, dtype=torch.float32)
    request = Request("train", 2, flat)
    update = Update.zero(LAYOUT, Units(1.0, 1.0))
    update.sums += torch.arange(LAYOUT.size)
    sent = wire.pack_reply(Reply((), (update,)), LAYOUT, copy=False)
    asked = wire.pack_request(request, [1], LAYOUT, wire.pack_model(request, LAYOUT, copy=False))
    buffers = []

    pickled = pickle.dumps((asked, sent), protocol=5, buffer_callback=buffers.append)
    there = pickle.loads(pickled, buffers=[bytes(buffer) for buffer in buffers])  # noqa: S301  (our own, a line ago)

    assert {memoryview(buffer).nbytes for buffer in buffers} >= {4 * LAYOUT.size, 8 * LAYOUT.size}
    assert torch.equal(wire.unpack_request(there[0], LAYOUT)[0].flat, flat)
    assert_same_update(wire.unpack_reply(there[1], LAYOUT).updates[0], update)


def test_over_a_network_a_message_holds_bytes_of_its_own():
    update = Update.zero(LAYOUT, Units(1.0, 1.0))
    sent = wire.pack_reply(Reply((), (update,)), LAYOUT)
    update.sums += 1

    got = wire.unpack_reply(through(sent), LAYOUT)

    assert got.updates[0].sums.eq(0).all()


def test_another_network_is_refused_by_name_of_the_cause():
    other = Layout(LAYOUT.names, ((5, 3), (4, 3), (4,)), num_labels=4, num_row_tensors=2)

    with pytest.raises(wire.WireError, match="image size"):
        wire.unpack_request(request_records(), other)
    with pytest.raises(wire.WireError, match="image size"):
        wire.unpack_reply(reply_records(), other)


def test_failures_of_devices_hold_one_line():
    error = InputError("Expected images to be readable, got 2 problems:\n  /data/anna.png\n  /data/ben.png")

    for simulated in (False, True):
        with pytest.raises(wire.RemoteError, match="Expected images") as caught:
            wire.unpack_reply(through(wire.pack_failure(error, simulated=simulated)), LAYOUT)

        assert ("anna" in str(caught.value)) is simulated
        assert (caught.value.kind, caught.value.simulated) == ("InputError", simulated)


def test_the_code_digest_sees_every_changed_file(tmp_path, monkeypatch):
    for name in wire.PACKAGES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
    monkeypatch.setattr(wire, "package_folder", lambda name: tmp_path / name)
    digest = wire.code_digest.__wrapped__
    first = digest()

    (tmp_path / "clients" / "host.py").write_text("a = 1")
    second = digest()
    (tmp_path / "clients" / "host.py").write_text("a = 2")
    third = digest()
    (tmp_path / "clients" / "notes.txt").write_text("not code")

    assert len({first, second, third}) == 3
    assert digest() == third


def test_a_foreign_package_is_named(tmp_path, monkeypatch):
    wire.check_packages(wire.__file__, ["clients", "fedmlic"])
    monkeypatch.setattr(wire, "package_folder", lambda name: tmp_path / name)

    with pytest.raises(InputError, match=r"package clients to come from .*got the one in"):
        wire.check_packages(wire.__file__, ["clients"])


def test_records_of_another_kind_are_refused():
    content = RecordDict({"failure": MetricRecord({"kind": 1})})
    with pytest.raises(wire.WireError, match="ConfigRecord"):
        wire.unpack_reply(content, LAYOUT)
    content = request_records()
    content["model"] = ConfigRecord({"flat": 1})
    with pytest.raises(wire.WireError, match="ArrayRecord"):
        wire.unpack_request(content, LAYOUT)
    assert isinstance(request_records()["model"], ArrayRecord)


def test_what_leaves_a_device_of_an_error_names_no_file():
    told = {
        "FileNotFoundError: [Errno 2] No such file: '/data/ward 3/anna.png'": "No such file: '<path>'",
        "cannot open C:\\Users\\anna\\x.dcm today": "cannot open <path> today",
        "bad row in data/labels.csv, line 3": "<path>, line 3",
        "Anna_Smith.JPG is damaged": "<path> is damaged",
        "no (~/scans), no [/x]": "no (<path>",
        "Expected 3 labels, got 4.": "Expected 3 labels, got 4.",
        "a\x1b[31m red\x07 one": "a\\x1b[31m red\\x07 one",
    }
    for text, expected in told.items():
        assert expected in wire.discreet(text)
        assert wire.discreet(text, paths=True).isprintable()
    assert "anna.png" in wire.discreet("no /data/anna.png", paths=True)
    assert len(wire.discreet("x" * 10**7)) < 600


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Anna Maria Muster.png", "<path>"),
        ("/data/Anna Maria Muster/x.png", "<path>"),
        ('"/data/O\'Brien Anna/x.png"', '"<path>"'),
        ("anna_muster.heic", "<path>"),
        ("no file Muster, Anna.png here", "<path> here"),
        ("'Hans' knee.png'", "<path>'"),
        ("Expected /data/Anna Muster to be a folder, got none.", "Expected <path> to be a folder, got none."),
        ("Expected Dr. A. Muster.png.part to be an image, got 'cat'.", "Expected <path> to be an image, got 'cat'."),
        (
            "InputError: Expected 'a b.csv' to hold the column cat.",
            "InputError: Expected '<path>' to hold the column cat.",
        ),
        ("Expected method 'my_lab.mine()' to be known. See docs/methods/README.md.",) * 2,
    ],
)
def test_names_with_blanks_and_quotes_are_hidden_whole(text, told):
    assert wire.discreet(text) == told.replace("docs/methods/README.md", "<path>")


WORD = st.builds("".join, st.tuples(st.sampled_from("qzQZ"), st.text("qzQZ'-.,()&;:", max_size=8)))
NAMES = st.lists(WORD, min_size=1, max_size=4).map(" ".join)
FOLDER = st.sampled_from(["/", "/data/", "~/", "C:\\", "./", "../", "data/", "\\\\server\\"])
ENDS = st.sampled_from([".png", ".HEIC", ".jpeg", ".nii.gz", ".dcm", ".csv"])
TOLD = (
    "[Errno 2] No such file or directory: {!r}",
    "cannot identify image file {!r}",
    "Expected {} to be an image, got none. Restore {} from a copy.",
    "Expected 3 labels of {}, got 4.",
    "InputError: bad row in {}, line 3",
    "({}) and [{!r}]",
    'no "{}" here',
    "{}: damaged",
    "{}",
)


@settings(max_examples=300)
@given(
    parts=st.lists(NAMES, min_size=1, max_size=3),
    folder=FOLDER,
    end=ENDS,
    told=st.sampled_from(TOLD),
    kind=st.integers(0, 2),
)
def test_no_part_of_a_files_name_leaves_whatever_is_in_it(parts, folder, end, told, kind):
    """Names are of letters that no message has."""
    separator = "\\" if "\\" in folder else "/"
    name = {
        0: folder + separator.join(parts) + end,
        1: parts[0] + end,  # in the working folder
        2: folder + separator.join(parts),  # a folder
    }[kind]
    text = told.format(name, name)

    assert not set("qzQZ") & set(wire.discreet(text).replace(".nii.gz", ""))


def test_a_long_failure_is_cut_and_cannot_write_to_a_terminal():
    content = RecordDict(
        {"failure": ConfigRecord({"kind": "\x1b[2J", "text": "\x1b]0;" + "y" * 10**7, "simulated": True})}
    )

    with pytest.raises(wire.RemoteError) as caught:
        wire.unpack_reply(content, LAYOUT)
    assert len(str(caught.value)) < 3000
    assert "\x1b" not in str(caught.value)
