"""Nothing that a peer sends is used before it is checked: arbitrary messages, and lies one by one."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedmlic import spec, wire
from fedmlic.arrays import Layout
from fedmlic.experiment import Experiment
from fedmlic.histograms import ScoreHistograms
from fedmlic.holdout import Owned, by_owner, largest_share
from fedmlic.mod import Mod
from fedmlic.packing import RAW
from fedmlic.protocol import (
    CLIENTS_BEHIND,
    HIGH,
    IMAGES_BEHIND,
    ROUND_SUMS,
    SOLUTION_SUMS,
    HostInfo,
    Reply,
    Request,
    Turn,
)
from fedmlic.sums import Declared
from fedmlic.update import LIMIT, Update, Weighting, turn_metrics, units_for
from strategies.server.introductions import Admission, listed_nodes, problem_of_host
from strategies.server.replies import Expected, RefusedError, not_finite

LAYOUT = Layout(
    ("norm.mean", "norm.var", "backbone", "head.weight", "head.bias"),
    ((3,), (3,), (5, 3), (4, 2), (4,)),
    num_labels=4,
    num_row_tensors=2,
    moments=(("norm.mean", "norm.var"),),
)
SIZES = {3: 30, 5: 8}
TOKEN = "train-2-abc"  # noqa: S105  (of a request)
METRICS = {"mAP": 0.5, "prevalence": 0.2, "chance": 0.3, "num-labels": 2.0}


BY_LABEL = Weighting("images", "annotations")


def request_of(kind="train", weighting=BY_LABEL, **changes):
    units = units_for(weighting, SIZES.values(), 4)
    return Request(kind, 2, torch.zeros(LAYOUT.size), units, weighting, token=TOKEN, **changes)


def made_up(layout):
    """Zeros of the sums that a mod of the tests adds."""
    del layout
    return {"a": torch.zeros(3), "b": torch.zeros(1, dtype=torch.int64)}


def expected_of(request, **changes):
    if request.mods == ("x()",):
        changes.setdefault("declared", Declared(Experiment(), [Mod(sums=made_up)]))
    return Expected(request, request.layout(LAYOUT), SIZES, 0.2, everything=LAYOUT, **changes)


def contribution(request, client, extras=None):
    """An honest client's turn and update."""
    size = SIZES[client]
    generator = torch.Generator().manual_seed(client)
    known = torch.randint(0, size + 1, (4,), generator=generator)
    layout = request.layout(LAYOUT)
    flat = torch.randn(layout.size, generator=generator)
    if layout.size:
        LAYOUT.view(flat, "norm.var").abs_()
    units = units_for(request.weighting, [size], 4) if request.each else request.units
    update = Update.zero(layout, units)
    update.add_client(
        client,
        flat,
        weighting=request.weighting,
        num_images=size,
        annotations=known,
        metrics=turn_metrics(0.25 + client, 7, {"revealed": 3.0}),
        extras=extras,
    )
    turn = Turn(client, "device-3", 5.0, 1.0, size, int(known.sum()), 0.25 + client, 7, 100, 200)
    return turn, update


def reply_of(request, clients=(3,), extras=None):
    """What an honest device answers."""
    if request.kind == "evaluate":
        labels = np.array([[1, 0, -1, 0], [0, 1, 1, 0]], np.int8)
        scores = np.linspace(0.01, 0.99, 8).reshape(2, 4)
        turn = Turn(3, "device-3", 5.0, 1.0, 2, 7, metrics=METRICS)
        return Reply((turn,), (), ScoreHistograms.of(scores, labels).to_arrays(), TOKEN)
    turns, updates = zip(*(contribution(request, client, extras) for client in clients), strict=True)
    for other in updates[1:]:
        updates[0].merge(other)
    return Reply(turns, updates[:1], token=TOKEN)


def through(content):
    return recorddict_from_proto(recorddict_to_proto(content))


def carried(content):
    """The content as it arrives; what Flower's format cannot hold arrives pickled, in a simulation."""
    try:
        return through(content)
    except (ValueError, TypeError, OverflowError):
        return content


COUNTED = {"present": torch.tensor([4, 0, 2, 1]), "share": torch.tensor([0.5, 0.0])}
COUNTED |= {
    name + end: (values != 0).long() * by
    for name, values in dict(COUNTED).items()
    for end, by in ((CLIENTS_BEHIND, 1), (IMAGES_BEHIND, 30))
}

HONEST = {
    "train": (request_of(), {}),
    "train by annotations": (request_of(weighting=Weighting("annotations", "shared")), {}),
    "train with sums": (request_of(mods=("x()",)), {"extras": {"a": torch.ones(3), "b": torch.tensor([2**40])}}),
    "each": (request_of(each=True, weighting=Weighting("uniform")), {}),
    "count": (request_of("count", weighting=Weighting()), {"extras": COUNTED}),
    "evaluate": (request_of("evaluate"), {}),
    "two clients": (request_of(), {"clients": (3, 5)}),
}


@pytest.mark.parametrize("name", HONEST)
def test_honest_replies_are_taken_as_they_are(name):
    request, how = HONEST[name]
    sent = reply_of(request, **how)
    layout = request.layout(LAYOUT)

    got = wire.unpack_reply(through(wire.pack_reply(sent, layout)), layout, 2)
    checked = expected_of(request).reply(got, "device-3", how.get("clients", (3,)))

    assert checked.turns == sent.turns
    for one, two in zip(checked.updates, sent.updates, strict=True):
        assert torch.equal(one.sums, two.sums)
    assert checked.evaluation.keys() == sent.evaluation.keys()


def test_an_owner_may_be_larger_than_the_fraction():
    """Of 28 images of two owners, 30 % are nearer to 14 than to none: as many are held out as are trained on."""
    (turn,) = reply_of(request_of("evaluate")).turns
    half = by_owner(np.arange(28, dtype=np.uint64), Owned(np.arange(28) % 2, ()), np.array([28]), 0.3, 0)
    turn = replace(turn, num_images=int(half.sum()), num_annotations=0)
    sizes = {3: int((~half).sum())}
    request = request_of("evaluate")

    assert turn.num_images == sizes[3] == 14
    Expected(request, request.layout(LAYOUT), sizes, largest_share(0.3, "owner")).turn(turn)
    with pytest.raises(RefusedError, match="held-out images of client 3"):
        Expected(request, request.layout(LAYOUT), sizes, largest_share(0.3, "image")).turn(turn)


# --- lies, one by one ----------------------------------------------------------------------


def update_with(**changes):
    return lambda reply: replace(reply, updates=tuple(replace(each, **changes) for each in reply.updates))


def turn_with(**changes):
    return lambda reply: replace(reply, turns=tuple(replace(each, **changes) for each in reply.turns))


def sums_with(place, value):
    def change(reply):
        sums = reply.updates[0].sums.clone()
        sums[place] = value
        return update_with(sums=sums)(reply)

    return change


def metrics_with(**changes):
    return lambda reply: update_with(metrics={**reply.updates[0].metrics, **changes})(reply)


def scores_with(value, name="present", shape=None):
    def change(reply):
        held = {key: array.copy() for key, array in reply.evaluation.items()}
        held[name].flat[0] = value
        if shape:
            held = {key: array.reshape(-1)[: math.prod(shape)].reshape(shape) for key, array in held.items()}
        return replace(reply, evaluation=held)

    return change


def several(*changes):
    def change(reply):
        for each in changes:
            reply = each(reply)
        return reply

    return change


NAN, INF = math.nan, math.inf
ROW = LAYOUT.rows_start
TRAIN_LIES = {
    "another request's token": (lambda reply: replace(reply, token=TOKEN + "d"), "answer this request"),
    "no token": (lambda reply: replace(reply, token=""), "answer this request"),
    "a NaN": (sums_with(20, NAN), "times the weight"),
    "a NaN in a label's row": (sums_with(ROW, NAN), "each label's weight"),
    "an infinity": (sums_with(20, INF), "times the weight"),
    "minus infinity": (sums_with(20, -INF), "times the weight"),
    "a billion": (sums_with(20, 1e9), "times the weight"),
    "more than the weight allows": (sums_with(20, LIMIT * 30 / 64 + 1), "times the weight"),
    "more than a label's weight allows": (sums_with(ROW, -LIMIT), "each label's weight"),
    "a term between two that are allowed": (sums_with(20, 2.0**-40), r"multiples of 2\*\*-36"),
    "a NaN weight": (update_with(weight=NAN), "sizes imply"),
    "a negative weight": (update_with(weight=-1.0), "sizes imply"),
    "no weight": (update_with(weight=0.0), "sizes imply"),
    "all the weight": (update_with(weight=1.0), "sizes imply"),
    "no row weights": (update_with(row_weights=torch.zeros(4, dtype=torch.float64)), "annotations imply"),
    "NaN row weights": (update_with(row_weights=torch.full((4,), NAN, dtype=torch.float64)), "annotations imply"),
    "more images": (update_with(num_images=2**60), "30 images"),
    "other units": (update_with(units=units_for(Weighting(), [1], 4)), "units"),
    "negative annotations": (update_with(annotations=torch.tensor([-1, 0, 0, 0])), "annotations"),
    "more annotations than images": (update_with(annotations=torch.tensor([31, 0, 0, 0])), "annotations"),
    "annotations of fewer labels": (update_with(annotations=torch.tensor([1])), "annotations"),
    "another client's name": (update_with(clients=[5]), "a sum of clients"),
    "nobody's name": (update_with(clients=[]), "a sum of clients"),
    "its name twice": (update_with(clients=[3, 3]), "clients of an update"),
    "no update": (lambda reply: replace(reply, updates=()), "a sum of clients"),
    "its update twice": (lambda reply: replace(reply, updates=reply.updates * 2), "a sum of clients"),
    "no loss": (update_with(metrics={"steps": 7.0}), "'loss'"),
    "a NaN loss": (metrics_with(loss=NAN), "loss"),
    "another loss than its turn's": (metrics_with(loss=9.0), "the loss"),
    "an infinite metric": (metrics_with(revealed=INF), "revealed"),
    "a turn of another client": (turn_with(client=5), "turns of clients"),
    "a turn of another host": (turn_with(host="device-4"), "turns of clients"),
    "a turn with other images": (turn_with(num_images=31), "announced"),
    "a turn of negative seconds": (turn_with(seconds=-1.0), "seconds"),
    "a turn of NaN seconds": (turn_with(seconds=NAN), "seconds"),
    "a turn that started never": (turn_with(started=NAN), "start"),
    "a turn of negative bytes": (turn_with(bytes_up=-5), "bytes_up"),
    "a turn with a NaN loss": (turn_with(loss=NAN), "loss"),
    "a turn with an evaluation": (turn_with(metrics=METRICS), "no evaluation"),
    "scores beside a sum": (lambda reply: replace(reply, evaluation={"present": np.zeros(1, np.int64)}), "no scores"),
    "sums that no mod makes": (update_with(extras={"x": torch.zeros(2, dtype=torch.float64)}), "no sums beside"),
}


def change_with(place, value):
    """An honest client's change, from a start of zeros, but for one number."""

    def change(reply):
        sent = torch.randn(LAYOUT.size, generator=torch.Generator().manual_seed(3))
        sent[place] = value
        return update_with(sums=torch.zeros(0, dtype=torch.float64), change=sent)(reply)

    return change


CHANGE_LIES = {
    "a NaN": (change_with(20, NAN), "a client to be finite"),
    "a NaN in a label's row": (change_with(ROW, NAN), "a client to be finite"),
    "an infinity": (change_with(20, INF), "a client to be finite"),
    "a billion": (change_with(20, 1e9), "trained tensors to be finite and within"),
    "what overflows": (change_with(20, 3.4e38), "trained tensors to be finite and within"),
    "a mean of which the square is too large": (change_with(0, 200.0), "mean squares of BatchNorm"),
    "all the weight": (several(change_with(20, 1.0), update_with(weight=1.0)), "sizes imply"),
    "more images": (several(change_with(20, 1.0), update_with(num_images=31)), "30 images"),
    "another client's name": (several(change_with(20, 1.0), update_with(clients=[5])), "a sum of clients"),
    "two clients": (several(change_with(20, 1.0), update_with(clients=[3, 5])), "clients of an update"),
    "a number too few": (update_with(change=torch.zeros(LAYOUT.size - 1)), "'change'"),
}

EVALUATION_LIES = {
    "a count near 2**62": (scores_with(2**62), "entries"),
    "counts that wrap around": (several(scores_with(2**62), scores_with(2**62, "absent")), "entries"),
    "a hundred billion": (scores_with(10**11), "at most 2 images"),
    "a negative count": (scores_with(-1), "counts of 0 or more"),
    "more than it judged": (scores_with(3), "at most 2 images"),
    "other bins": (scores_with(1, shape=(4, 10)), "1000 bins"),
    "other labels": (scores_with(1, shape=(2, 1000)), "histograms of 4 labels"),
    "other names": (lambda reply: replace(reply, evaluation={"x": np.zeros((4, 1000), np.int64)}), "arrays"),
    "no scores": (lambda reply: replace(reply, evaluation={}), "arrays"),
    "more held-out images than it can have": (turn_with(num_images=10**9, num_annotations=10**9), "held-out"),
    "more annotations than entries": (turn_with(num_annotations=9), "annotations"),
    "an mAP above 1": (turn_with(metrics={**METRICS, "mAP": 1e30}), "mAP"),
    "an mAP of NaN": (turn_with(metrics={**METRICS, "mAP": NAN}), "mAP"),
    "more labels than there are": (turn_with(metrics={**METRICS, "num-labels": 5.0}), "num-labels"),
    "no metrics": (turn_with(metrics={}), "metrics"),
    "a sum": (lambda reply: replace(reply, updates=reply_of(request_of()).updates), "no sums"),
}

COUNT_LIES = {
    "more clients behind a number": ({"present" + CLIENTS_BEHIND: torch.tensor([2, 0, 1, 1])}, "clients or images"),
    "more images behind a number": ({"present" + IMAGES_BEHIND: torch.tensor([31, 0, 1, 1])}, "clients or images"),
    "some images behind a number": ({"present" + IMAGES_BEHIND: torch.tensor([30, 0, 7, 30])}, "0 or all"),
    "no images behind a number": ({"present" + IMAGES_BEHIND: torch.tensor([30, 0, 0, 30])}, "0 or all"),
    "negative images": ({"present" + IMAGES_BEHIND: torch.tensor([-1, 0, 1, 1])}, "clients or images"),
    "nobody behind a number": ({"present": torch.tensor([4, 1, 2, 1])}, "a client behind"),
    "a number near 2**62": ({"present": torch.tensor([2**62, 0, 2, 1])}, "within"),
    "a NaN": ({"share": torch.tensor([NAN, 0.0], dtype=torch.float64)}, "within"),
    "numbers without support": ({"more": torch.tensor([1])}, "clients or images"),
}


PARTS = {
    "all": None,
    "without statistics": ("backbone", "head.weight", "head.bias"),
    "statistics and rows": ("norm.mean", "norm.var", "head.bias"),
    "no rows": ("norm.mean", "norm.var", "backbone"),
}
WEIGHTINGS = [Weighting(), BY_LABEL, Weighting("annotations", "annotations"), Weighting("uniform")]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=str)
@pytest.mark.parametrize("each", [False, True])
def test_a_change_becomes_the_sums_that_the_client_had_bit_for_bit(part, weighting, each):
    request = request_of(weighting=weighting, tensors=PARTS[part], each=each)
    request = replace(request, flat=torch.randn(LAYOUT.size, generator=torch.Generator().manual_seed(8)))
    layout = request.layout(LAYOUT)
    change = torch.randn(layout.size, generator=torch.Generator().manual_seed(9)) / 100
    turn, honest = contribution(request, 3)
    update = Update.zero(layout, honest.units)
    update.add_client(
        3,
        LAYOUT.gather(request.flat, layout) + change,
        weighting=weighting,
        num_images=30,
        annotations=honest.annotations,
        metrics=honest.metrics,
        change=change,
    )

    (got,) = verdict(request, Reply((turn,), (update,), token=TOKEN)).updates

    assert got.change is None
    assert torch.equal(got.sums.view(torch.int64), update.sums.view(torch.int64))
    assert bool(got.sums.any())


@pytest.mark.parametrize("name", CHANGE_LIES)
def test_lies_about_a_change_are_refused(name):
    change, told = CHANGE_LIES[name]
    request = request_of()
    verdict(request, change_with(20, 1.0)(reply_of(request)))

    with pytest.raises((RefusedError, wire.WireError), match=told):
        verdict(request, change(reply_of(request)))


def test_a_count_has_no_change():
    request = request_of("count", weighting=Weighting())
    reply = update_with(change=torch.zeros(0))(reply_of(request, extras=COUNTED))

    with pytest.raises(RefusedError, match="Expected sums, got a change"):
        verdict(request, reply)


def verdict(request, reply, share=(3,), **changes):
    """Through the real wire, and checked as the server does."""
    layout = request.layout(LAYOUT)
    got = wire.unpack_reply(through(wire.pack_reply(reply, layout)), layout, len(share))
    return expected_of(request, **changes).reply(got, "device-3", share)


@pytest.mark.parametrize("name", TRAIN_LIES)
def test_lies_about_a_training_are_refused(name):
    change, told = TRAIN_LIES[name]
    request = request_of()

    with pytest.raises((RefusedError, wire.WireError), match=told) as caught:
        verdict(request, change(reply_of(request)))
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("name", EVALUATION_LIES)
def test_lies_about_an_evaluation_are_refused(name):
    change, told = EVALUATION_LIES[name]
    request = request_of("evaluate")

    with pytest.raises((RefusedError, wire.WireError), match=told):
        verdict(request, change(reply_of(request)))


@pytest.mark.parametrize("name", COUNT_LIES)
def test_lies_about_counts_are_refused(name):
    changes, told = COUNT_LIES[name]
    request = request_of("count", weighting=Weighting())
    reply = reply_of(request, extras=COUNTED)
    reply = update_with(extras={**reply.updates[0].extras, **changes})(reply)

    with pytest.raises(RefusedError, match=told):
        verdict(request, reply)


ROUND = {ROUND_SUMS + "mine": torch.tensor([0, 5, 7, 0])}
SUPPORT = {CLIENTS_BEHIND: torch.tensor([0, 1, 1, 0]), IMAGES_BEHIND: torch.tensor([0, 30, 30, 0])}
ROUND_LIES = {
    "none": (dict.fromkeys((ROUND_SUMS + "mine", *(ROUND_SUMS + "mine" + each for each in SUPPORT))), "of shape"),
    "another shape": ({ROUND_SUMS + "mine": torch.tensor([1])}, "of shape"),
    "another type": ({ROUND_SUMS + "mine": torch.zeros(4, dtype=torch.float64)}, "of shape"),
    "another name": ({ROUND_SUMS + "more": torch.tensor([1, 0, 0, 0])}, "that the method has"),
    "nobody behind a number": ({ROUND_SUMS + "mine": torch.tensor([1, 5, 7, 0])}, "a client behind"),
    "more images behind a number": (
        {ROUND_SUMS + "mine" + IMAGES_BEHIND: torch.tensor([0, 31, 30, 0])},
        "clients or images",
    ),
}


@pytest.mark.parametrize("name", [*ROUND_LIES, ""])
def test_lies_about_sums_of_the_round_are_refused(name):
    request = replace(request_of(), shared={ROUND_SUMS + "mine": torch.zeros(4, dtype=torch.int64)})
    extras = {**ROUND, **{ROUND_SUMS + "mine" + suffix: tensor for suffix, tensor in SUPPORT.items()}}
    changes, told = ROUND_LIES.get(name, ({}, ""))
    changed = {each: tensor for each, tensor in {**extras, **changes}.items() if tensor is not None}

    if not name:
        assert verdict(request, reply_of(request, extras=extras)).updates
        return
    with pytest.raises(RefusedError, match=told):
        verdict(request, update_with(extras=changed)(reply_of(request)))


MINE = SOLUTION_SUMS + "mine"
SOLVED = {
    MINE: torch.tensor([[0.0, 0.0], [0.5, 1.0], [0.0, 2.0]], dtype=torch.float64),
    MINE + HIGH: torch.tensor([[0, 0], [3, 0], [0, 0]]),
    MINE + CLIENTS_BEHIND: torch.tensor([0, 1, 1]),
    MINE + IMAGES_BEHIND: torch.tensor([0, 30, 30]),
}
SOLUTION_LIES = {
    "half of a sum": ({MINE + HIGH: None}, "of shape"),
    "another shape": ({MINE: torch.zeros(3, 3, dtype=torch.float64)}, "of shape"),
    "another type": ({MINE: torch.zeros(3, 2, dtype=torch.int64)}, "of shape"),
    "another name": ({SOLUTION_SUMS + "more": torch.zeros(3, dtype=torch.float64)}, "this round's solution has"),
    "nobody behind a row": ({MINE: torch.ones(3, 2, dtype=torch.float64)}, "a client behind"),
    "nobody behind the large part": ({MINE + HIGH: torch.ones(3, 2, dtype=torch.int64)}, "a client behind"),
    "support of numbers in place of rows": ({MINE + CLIENTS_BEHIND: torch.ones(3, 2).long()}, "clients or images"),
    "some images behind a row": ({MINE + IMAGES_BEHIND: torch.tensor([0, 29, 30])}, "0 or all"),
    "more images behind a row": ({MINE + IMAGES_BEHIND: torch.tensor([0, 31, 30])}, "clients or images"),
    "no support": ({MINE + CLIENTS_BEHIND: None, MINE + IMAGES_BEHIND: None}, "clients or images"),
    "no number": ({MINE: torch.full((3, 2), NAN, dtype=torch.float64)}, "larger numbers, or NaN"),
}


@pytest.mark.parametrize("name", [*SOLUTION_LIES, ""])
def test_lies_about_sums_for_a_solution_are_refused(name):
    request = request_of()
    solved = {"mine": torch.zeros(3, 2, dtype=torch.float64)}
    changes, told = SOLUTION_LIES.get(name, ({}, ""))
    changed = {each: tensor for each, tensor in {**SOLVED, **changes}.items() if tensor is not None}

    if not name:
        for extras in (SOLVED, {}):  # a client may have none
            assert verdict(request, reply_of(request, extras=extras), solved=solved).updates
        return
    with pytest.raises(RefusedError, match=told):
        verdict(request, update_with(extras=changed)(reply_of(request)), solved=solved)


STEPS, CHANGE = "fednova/steps", "scaffold/change"
POSITIVES, ROWS = "positive_rows/positives", "positive_rows/rows"
SGD = Experiment(optimizer="sgd", momentum=0.5, local_epochs=3, batch_size=16, allow_statistics=True)
ACCUMULATED = 10.03125
"""Of 6 steps (30 images in batches of 16, 3 times) with momentum 0.5: 2 (6 - (1 - 0.5^6))."""
MOST = math.ceil(30 * ACCUMULATED * 1024)
OF_RULES = {
    "fednova()": {STEPS: torch.tensor([0, MOST])},
    "flag()": {POSITIVES: torch.tensor([0, 30, 1, 0]), ROWS: torch.tensor([[0.0], [960], [32], [0]]).expand(4, 3)},
    "scaffold()": {CHANGE: torch.full((LAYOUT.size,), LIMIT)},
}
"""The rules that add up something beside the model, and the most that a client of 30 images may add."""


def of_rule(text, experiment=SGD):
    """What the server knows of the sums and metrics of a rule."""
    rule = spec.build("strategy", text)
    mods = spec.build_all("mods", ", ".join(rule.mods))
    return {"declared": Declared(experiment, mods), "rule_metrics": rule.metrics}


def mostly(name, place, value):
    """The honest sum with another number at one place."""

    def changed(extras):
        tensor = extras[name].clone()
        tensor[place] = value
        return {**extras, name: tensor}

    return changed


SUM_LIES = {
    "as many steps as an integer holds": ("fednova()", mostly(STEPS, 0, 2**40), "'fednova/steps' within"),
    "one step more than it can take": ("fednova()", mostly(STEPS, 1, MOST + 1024 * 30), "'fednova/steps' within"),
    "fewer steps than none": ("fednova()", mostly(STEPS, 1, -1), "'fednova/steps' within"),
    "steps that cancel": ("fednova()", lambda _: {STEPS: torch.tensor([-1, 2**30])}, "'fednova/steps' within"),
    "one number of steps": ("fednova()", lambda _: {STEPS: torch.tensor([5])}, "'fednova/steps' to be like"),
    "no steps": ("fednova()", lambda _: {}, "'fednova/steps'"),
    "real steps": ("fednova()", lambda _: {STEPS: torch.tensor([0.0, 5.0])}, "'fednova/steps' to be like"),
    "a sum of its own": ("fednova()", lambda extras: {**extras, "x": torch.zeros(1)}, "beside the model"),
    "rows without positives": ("flag()", mostly(POSITIVES, slice(None), 0), f"'{ROWS}' within"),
    "rows beyond their positives": ("flag()", mostly(ROWS, 2, -33.0), f"'{ROWS}' within"),
    "more positives than images": ("flag()", mostly(POSITIVES, 0, 31), f"'{POSITIVES}' within"),
    "negative positives": ("flag()", mostly(POSITIVES, 0, -1), f"'{POSITIVES}' within"),
    "rows of other labels": ("flag()", lambda extras: {**extras, ROWS: torch.zeros(3, 3)}, f"'{ROWS}' to be like"),
    "variates of another model": ("scaffold()", lambda _: {CHANGE: torch.zeros(5)}, f"'{CHANGE}' to be like"),
}


@pytest.mark.parametrize("name", SUM_LIES)
def test_a_sum_that_its_mod_does_not_allow_is_refused(name):
    text, change, told = SUM_LIES[name]
    request = request_of()
    lie = reply_of(request, extras=change({n: t.clone() for n, t in OF_RULES[text].items()}))

    with pytest.raises(RefusedError, match=told):
        verdict(request, lie, **of_rule(text))


@pytest.mark.parametrize("text", OF_RULES)
def test_the_most_that_a_mod_allows_is_taken(text):
    request = request_of()

    assert verdict(request, reply_of(request, extras=OF_RULES[text]), **of_rule(text)).updates


def test_bounds_of_several_clients_are_those_of_each_together():
    """Of 30 and 8 images: 30 x 10.03 + 8 x 4.25 steps; the bound takes the longer turn for both."""
    request, known = request_of(), of_rule("fednova()")
    turn, update = contribution(request, 3, {STEPS: torch.tensor([0, MOST])})
    other, more = contribution(request, 5, {STEPS: torch.tensor([0, 8 * 4352])})
    update.merge(more)
    reply = Reply((turn, other), (update,), token=TOKEN)
    assert verdict(request, reply, (3, 5), **known).updates

    update.extras[STEPS] = torch.tensor([0, math.ceil(38 * ACCUMULATED * 1024) + 4])
    with pytest.raises(RefusedError, match="'fednova/steps' within"):
        verdict(request, reply, (3, 5), **known)


def test_a_method_that_goes_through_its_images_twice_may_take_twice_the_steps():
    request, known = request_of(), of_rule("fednova()")
    reply = reply_of(request, extras={STEPS: torch.tensor([0, 30 * 22 * 1024])})
    twice = replace(known["declared"], passes=spec.build("method", "fedalign(anchors='alternating')").passes)

    assert verdict(request, reply, declared=twice).updates
    with pytest.raises(RefusedError, match="'fednova/steps' within"):
        verdict(request, reply, **known)


METRIC_LIES = {
    "no score": ("fedcorr()", {"scored-clients": 1.0, "training-clients": 1.0}, "'score', which the rule reads"),
    "a negative score": (
        "fedcorr()",
        {"score": -5.0, "scored-clients": 1.0, "training-clients": 1.0},
        "the metric 'score'",
    ),
    "clients by the million": (
        "fedcorr()",
        {"score": 1.0, "scored-clients": 1.0, "training-clients": 2.0**24},
        "the metric 'training-clients'",
    ),
    "no distance": ("fedharmony()", {}, "'disagreement', which the rule reads"),
    "a negative distance": ("fedharmony()", {"disagreement": -(2.0**20)}, "the metric 'disagreement'"),
}


@pytest.mark.parametrize("name", METRIC_LIES)
def test_an_update_without_a_metric_that_its_rule_reads_is_refused(name):
    text, metrics, told = METRIC_LIES[name]
    request = request_of(weighting=Weighting("uniform"), each=True)
    honest = {"score": 1.0, "scored-clients": 1.0, "training-clients": 0.0, "disagreement": 0.5}
    reply = reply_of(request)
    assert verdict(request, metrics_with(**honest)(reply), **of_rule(text)).updates

    with pytest.raises(RefusedError, match=told):
        verdict(request, metrics_with(**metrics)(reply), **of_rule(text))


def test_a_client_is_counted_once():
    request = request_of()
    expected = expected_of(request)
    reply = expected.reply(reply_of(request), "device-3", (3,))
    expected.counted.update(reply.updates[0].clients)

    with pytest.raises(RefusedError, match="not counted yet"):
        expected.reply(reply_of(request), "device-3", (3,))


def test_of_a_failed_turn_nothing_but_its_error_is_kept_and_that_can_be_shown():
    request = request_of()
    turn = Turn(3, "device-3", NAN, INF, 2**60, -1, NAN, error="bad\x1b[2J" + "x" * 10**6)
    reply = Reply((turn,), token=TOKEN)

    kept = expected_of(request).reply(reply, "device-3", (3,)).turns[0]

    assert kept == Turn(3, "device-3", error=kept.error)
    assert kept.error.startswith("bad\\x1b[2Jxxx")
    assert len(kept.error) < 50_000


def test_what_is_not_finite_is_named():
    tensors = {"a": torch.ones(2), "b": torch.tensor([1.0, INF]), "c": torch.tensor([NAN]), "d": torch.zeros(0)}
    assert not_finite([*tensors.items(), ("e", torch.tensor([3]))]) == ["b", "c"]


# --- introductions --------------------------------------------------------------------------


def told(host="device-3", clients=(3,), sizes=(30,), names=("a", "b"), num_hosts=0, code=None, image_shape=(24, 24, 3)):
    info = HostInfo(
        host,
        np.array(clients, np.int64),
        np.array(sizes, np.int64),
        tuple(names),
        wire.versions(),
        image_shape=image_shape,
    )
    return wire.Introduction(info, num_hosts, wire.code_digest() if code is None else code)


ADMISSION = Admission(simulated=False, label_names=("a", "b"), most_images=10_000, listed={}, image_shape=(24, 24, 3))
INTRODUCTION_LIES = {
    "2**60 images": (told(sizes=(2**60,)), "most-client-images"),
    "a negative number of images": (told(sizes=(-1,)), "0 to 10000"),
    "no images": (told(sizes=(0,)), "images to train on"),
    "two clients": (told(clients=(3, 4), sizes=(1, 1)), "one client"),
    "a negative id": (told("device--1", (-1,)), "clients 0, 1"),
    "a name of another client": (told("device-4"), "called device-ID"),
    "a name with control sequences": (told("device-3\x1b[2J"), "called device-ID"),
    "no client": (told(clients=(), sizes=()), "one client"),
    "other code": (told(code="0" * 16), "server's code"),
    "a simulation": (told("node-2", (0, 1, 2), (5, 5, 5), num_hosts=3), "device with images of its own"),
    "a negative number of hosts": (told(num_hosts=-1), "one client"),
    "other labels": (told(names=("a", "c")), "run's labels"),
    "larger images": (told(image_shape=(48, 48, 3)), r"channels (24, 24, 3), got (48, 48, 3)"),
    "grey images": (told(image_shape=(24, 24, 1)), "got (24, 24, 1)"),
    "labels as long as a book": (told(names=("a" * 10**6, "b")), "run's labels"),
}


@pytest.mark.parametrize("name", INTRODUCTION_LIES)
def test_lies_of_an_introduction_are_named(name):
    who, expected = INTRODUCTION_LIES[name]
    got = wire.unpack_introduction(through(wire.pack_introduction(who)))
    problem = ADMISSION.problem(7, got)

    assert expected in problem
    assert len(problem) < 1500
    assert problem.isprintable()


def test_an_honest_introduction_is_welcome_from_the_node_that_is_listed():
    assert ADMISSION.problem(7, told()) == ""
    listed = Admission(simulated=False, label_names=None, most_images=100, listed=listed_nodes("3=7, 4=9"))
    assert listed.problem(7, told()) == ""
    assert "Add 3=9 there" in listed.problem(9, told())
    assert "Add 5=7 there" in listed.problem(7, told("device-5", (5,)))
    assert problem_of_host(told().info, None) == ""


# --- arbitrary messages ----------------------------------------------------------------------


NUMBERS = st.one_of(st.integers(-(2**63), 2**63 - 1), st.sampled_from([0, -1, 1, 2**31, 2**40, 2**62]))
REALS = st.floats(width=64)
TEXTS = st.one_of(st.text(max_size=8), st.sampled_from(["\x1b[2J", "a" * 5000, "train", TOKEN]))
VALUES = st.one_of(NUMBERS, REALS, TEXTS, st.booleans(), st.binary(max_size=8))
FIELDS = st.one_of(VALUES, st.lists(NUMBERS, max_size=4), st.lists(REALS, max_size=4), st.lists(TEXTS, max_size=4))
SIDES = st.one_of(st.integers(-2, 6), st.sampled_from([2**20, 2**31, 2**62, 2**70]))


@st.composite
def arrays(draw):
    """An array whose type, shape and bytes need not fit."""
    dtype = draw(st.sampled_from(["<f8", "<i8", "<f4", "|O", ">i8", "<f2", "rubbish", ""]))
    shape = tuple(draw(st.one_of(st.lists(SIDES, max_size=4), st.just([1] * 70))))
    count = math.prod(shape)
    size = 8 * count if 0 <= count <= 5000 and draw(st.booleans()) else draw(st.integers(0, 40))
    data = draw(st.one_of(st.just(bytes(size)), st.just(b"\xff" * size), st.binary(max_size=40)))
    return Array(dtype, shape, draw(st.sampled_from([RAW, RAW, RAW, "pickle", ""])), data)


def whole(array):
    """Whether an array's bytes are numbers of its type (an earlier change may have seen to it that they are not)."""
    return array.dtype in {"<f8", "<i8", "<f4"} and len(array.data) % np.dtype(array.dtype).itemsize == 0


@st.composite
def changed(draw, content):
    """The content with one to four parts of it replaced, removed or added."""
    for _ in range(draw(st.integers(1, 4))):
        name = draw(st.sampled_from([*content, "failure", "patients"]))
        record = content.get(name)
        keys = [*record] if record is not None else []
        key = draw(st.one_of(st.sampled_from(keys), TEXTS)) if keys else draw(TEXTS)
        if draw(st.integers(0, 9)) == 0:
            content.pop(name, None)
        elif record is None or draw(st.integers(0, 9)) == 0:
            content.pop(name, None)
            content[name] = draw(st.sampled_from([ArrayRecord, ConfigRecord, MetricRecord]))()
        elif draw(st.integers(0, 5)) == 0:
            record.pop(key, None)
        elif isinstance(record, ArrayRecord) and key in record and whole(record[key]) and draw(st.booleans()):
            held = np.frombuffer(record[key].data, record[key].dtype).copy()
            if held.size:
                value = draw(NUMBERS if held.dtype.kind == "i" else REALS)
                with np.errstate(all="ignore"):  # too large for float32 becomes infinite
                    held[draw(st.integers(0, held.size - 1))] = value
            record[key] = Array(record[key].dtype, record[key].shape, record[key].stype, held.tobytes())
        elif isinstance(record, ArrayRecord):
            record[key] = draw(arrays())
        elif isinstance(record, MetricRecord):
            record[key] = draw(st.one_of(NUMBERS, REALS, st.lists(REALS, max_size=3)))
        else:
            record[key] = draw(FIELDS)
    return content


def short(error):
    assert len(str(error)) < 5000


def check_replies(data, name):
    request, how = HONEST[name]
    layout, share = request.layout(LAYOUT), how.get("clients", (3,))
    content = data.draw(changed(through(wire.pack_reply(reply_of(request, **how), layout))))
    try:
        got = wire.unpack_reply(carried(content), layout, len(share))
        reply = expected_of(request).reply(got, "device-3", share)
    except (wire.WireError, wire.RemoteError, RefusedError) as error:
        short(error)
        return
    total = Update.zero(layout, reply.updates[0].units if reply.updates else request.units)
    for update in reply.updates:
        total.merge(update)
    mean = total.mean(torch.zeros(layout.size))
    assert bool((mean.abs() <= LIMIT).all())
    if reply.evaluation:
        assert ScoreHistograms.from_arrays(reply.evaluation).metrics()
    json.dumps([vars(replace(turn, metrics={})) for turn in reply.turns], allow_nan=False)


def check_requests(data):
    request = request_of(shared={"x": torch.ones(3)}, last={3: 1})
    content = through(wire.pack_request(request, [3], LAYOUT, wire.pack_model(request, LAYOUT)))
    try:
        got, clients = wire.unpack_request(carried(data.draw(changed(content))), LAYOUT)
    except wire.WireError as error:
        short(error)
        return
    assert got.flat.numel() in {0, LAYOUT.size}
    assert len(clients) < 5000


def check_introductions(data):
    content = data.draw(changed(through(wire.pack_introduction(told()))))
    try:
        who = wire.unpack_introduction(carried(content))
    except (wire.WireError, wire.RemoteError) as error:
        short(error)
        return
    problem = ADMISSION.problem(7, who)
    assert len(problem) < 5000
    if not problem:
        assert who.info.sizes.tolist()[0] <= 10_000
        assert who.info.host == f"device-{who.info.clients[0]}"


FUZZED = {"introductions": check_introductions, "requests": check_requests}
FUZZED |= {name: lambda data, name=name: check_replies(data, name) for name in HONEST}


@pytest.mark.parametrize("what", FUZZED)
@settings(deadline=None, max_examples=56, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_an_arbitrary_message_is_refused_or_harmless(what, data):
    FUZZED[what](data)


@pytest.mark.slow
@pytest.mark.parametrize("what", FUZZED)
@settings(deadline=None, max_examples=1112, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_ten_thousand_arbitrary_messages_are_refused_or_harmless(what, data):
    FUZZED[what](data)
