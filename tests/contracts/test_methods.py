"""What every method in the catalogue must do."""

import copy
import importlib
import inspect
import itertools
import os
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from clients.host import Host
from clients.memory import FolderMemory
from fedmlic import spec
from fedmlic.errors import InputError
from fedmlic.experiment import Experiment
from fedmlic.features import Passed
from fedmlic.labels import ABSENT, PRESENT, UNCERTAIN, UNKNOWN
from fedmlic.learner import build_learner
from fedmlic.method import Local, scalar_and_rest, stretch_of
from fedmlic.models import convnext
from fedmlic.pixel_scale import to_float
from fedmlic.protocol import Request
from fedmlic.shard import Shard
from fedmlic.update import Weighting, units_for

NAMES = ("zero", "one", "two", "three")
SIDE = 16
METHODS = os.environ.get("FEDMLIC_ENTRY", "").split() or spec.entries("method")
MODELS = {"hsvlt": "convnext(image_size=32)"}
"""For methods that need a network's inside; the others get a small CNN."""
OPTIONS = (
    "boostlu(loss='AN')",
    "boostlu(loss='LL-Ct')",
    "boostlu(loss='LL-Cp')",
    "large_loss(variant='Cp')",
    "em(pseudo_labels=True)",
    "probmcl(stages='joint', queue=0)",
    "probmcl(stages='joint', queue=8)",
    "probmcl(stages='two', probe='solved')",
    "diff_feat(search_rounds=0, head='trained')",
    "probe_then_tune(method=\"boostlu(loss='AN')\")",
    "probe_then_tune(method='role()')",
    "probe_then_tune(method='em(pseudo_labels=True)')",
)
"""Methods with options on which it may depend whether they remember."""
ONE_LABEL_REFUSED = {"fednca": "Expected 2 labels or more, .* got 1"}
"""Methods that are nothing with a single label, and what they say."""
WITH_MANY = {"fednca": "fednca(width=1628)"}
"""How methods whose defaults refuse 1,628 labels are tried with them."""
SLOW_WITH_MANY = {"ctran", "dualcoop", "fedlgt", "fednca", "query2label"}
"""Methods of which a turn with 1,628 labels takes some seconds."""
GAPS = {"promptfl": 0.1}
"""How far apart present and absent labels get where all that trains is one context for all labels, between two networks
that are random and frozen; 0.4 for the others."""


class Pixels:
    """Images in memory, as a shard reads them."""

    def __init__(self, pixels, *, as_maps=False):
        self.pixels, self.as_maps = pixels, as_maps

    def take(self, rows):
        return self.pixels[rows]


def spec_of(method):
    """The method with its defaults, or as it says that it is tried where its defaults need a file."""
    module = method.rpartition(".")[0] or f"fedmlic.methods.{method}"
    return getattr(importlib.import_module(module), "TRIAL", f"{method}()")


def experiment(method, **settings):
    model = MODELS.get(method, "small_cnn(width=8)")
    values = {"model": model, "batch_size": 8, "local_epochs": 1, "learning_rate": 3e-3, **settings}
    return Experiment(method=spec_of(method), **values)


def scenes(num_images=12, seed=0):
    """Images with one bright quarter per present label, and their labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, (num_images, len(NAMES))).astype(np.int8)
    half = SIDE // 2
    bright = labels.astype(np.int64).reshape(-1, 2, 2).repeat(half, axis=1).repeat(half, axis=2)
    noise = rng.integers(0, 40, (num_images, SIDE, SIDE))
    return (bright * 200 + noise).astype(np.uint8)[..., None], labels


def partial(labels, missing=UNKNOWN, seed=1):
    """Half of the labels hidden."""
    hidden = np.random.default_rng(seed).random(labels.shape) < 0.5
    return np.where(hidden, np.int8(missing), labels)


def shard(pixels, labels, client=3, names=NAMES):
    rows, nothing = np.arange(len(labels)), np.zeros(0, dtype=np.int64)
    return Shard(client, names, Pixels(pixels), rows, labels, nothing, np.zeros((0, len(names)), np.int8))


def learner(settings):
    return build_learner(settings, NAMES, (SIDE, SIDE, 1))


def turn(settings, learned, data, start, client=3, round_number=2, memory=None):
    """One client's turn from ``start``; returns what it sends and what it told."""

    def incoming():
        network = learned.build_network(settings).eval().requires_grad_(requires_grad=False)
        tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        for name, view in learned.resident.layout.views(start):
            tensors[name].copy_(view)
        return network

    learned.resident.load(start)
    local = Local(
        settings, round_number, client, torch.device("cpu"), incoming, memory={} if memory is None else memory
    )
    phase = solved(learned.method)
    if phase is None:
        trained = learned.method.train(learned.resident, data, local)
        return learned.resident.flat.clone(), trained
    trained = phase.train(learned.resident, data, local)
    assert torch.equal(learned.resident.flat, start)
    layout, flat = learned.resident.layout, start.clone()
    sums = {**phase.solution.sums(learned.resident.network, {}), **local.solution_sums}
    before = {name: view.clone() for name, view in layout.views(flat)}
    for name, tensor in phase.solution.solve(learned.resident.network, sums, before).items():
        layout.view(flat, name).copy_(tensor)
    learned.resident.load(flat)
    return flat, trained


def first_rounds(method):
    """The numbers of the rounds with which a method's stretches begin."""
    return [1, *(1 + end for end in itertools.accumulate(phase.num_rounds for phase in method.phases[:-1]))]


def solved(method):
    """The stretch in which the server solves for tensors; what it makes of one client's sums is that client's turn."""
    return method.phases[-1] if method.phases and method.phases[-1].solution is not None else None


@pytest.fixture(params=METHODS)
def method(request, monkeypatch):
    monkeypatch.setitem(convnext.SIZES, "atto", ((1, 1, 1, 1), (8, 8, 16, 16)))  # a network that costs little
    return request.param


def test_the_docstring_names_every_hyper_parameter(method):
    factory = spec.factory("method", method)

    for name, parameter in inspect.signature(factory).parameters.items():
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
        assert parameter.default is not inspect.Parameter.empty
        assert f"{name}:" in factory.__doc__


def test_the_same_seed_builds_the_same_network(method):
    first, second, other = (learner(experiment(method, seed=seed)) for seed in (5, 5, 6))

    assert torch.equal(first.resident.flat, second.resident.flat)
    assert not torch.equal(first.resident.flat, other.resident.flat)
    states = first.resident.other_state(), second.resident.other_state()
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())


def test_label_rows_are_exchanged_with_one_row_per_label(method):
    learned = learner(experiment(method))

    names = learned.method.label_rows(learned.resident.network)
    layout = learned.resident.layout
    assert set(names) == set(layout.names[len(layout.names) - layout.num_row_tensors :])
    if not names:  # then nothing that is exchanged may grow with the labels
        more = build_learner(experiment(method), (*NAMES, "five", "six"), (SIDE, SIDE, 1))
        assert more.resident.layout.shapes == layout.shapes


def test_training_is_a_function_of_its_streams(method):
    """Whatever was trained before in the same network, and whatever torch drew in between."""
    settings = experiment(method)
    pixels, labels = scenes()
    data = shard(pixels, partial(labels))
    fresh, used = learner(settings), learner(settings)
    start = fresh.resident.flat.clone()

    expected, told = turn(settings, fresh, data, start)
    turn(settings, used, shard(*scenes(9, seed=7), client=1), start, client=1)
    torch.rand(3)
    again, told_again = turn(settings, used, data, start)

    assert torch.equal(expected, again)
    assert told == told_again
    assert not torch.equal(expected, start)
    if not solved(fresh.method):
        assert not torch.equal(expected, turn(settings, fresh, data, start, round_number=3)[0])


def test_labels_that_nobody_annotates_are_trained_only_by_a_method_that_says_so(method):
    """The gradient of the loss for the logits of such a label is zero to the bit, unless the method guesses."""
    settings = experiment(method)
    learned = learner(settings)
    pixels, labels = scenes()
    labels[:, 2] = UNKNOWN
    start = learned.resident.flat.clone()
    judged = 0
    phases = [phase.objective for phase in learned.method.phases] or [learned.method.objective]
    for objective in filter(None, phases):
        network, images = learned.resident.network, to_float(pixels, torch.device("cpu"))
        frozen = copy.deepcopy(network).eval()
        data = shard(pixels, labels)
        local = Local(settings, 1, 3, torch.device("cpu"), lambda frozen=frozen: frozen, start, shard=data)
        given = torch.from_numpy(labels)
        inputs = objective.inputs(local).of(images, given, torch.arange(len(labels)))
        seen = []

        def spy(*arguments, network=network, seen=seen):
            found = network(*arguments)
            logits = found if isinstance(found, torch.Tensor) else found.logits
            if logits.requires_grad:  # views of a tower that does not train need none
                seen.append(logits)
                logits.retain_grad()
            return found

        value, _ = scalar_and_rest(objective.loss(spy, images, given, *inputs))
        value.backward()

        trained = [logits.grad for logits in seen if logits.grad is not None and logits.shape[-1] == len(NAMES)]
        if not trained:  # a stage that trains no logits
            continue
        judged += 1
        gradient = torch.cat([each.reshape(-1, len(NAMES)) for each in trained])
        touched = bool((gradient[:, 2] != 0).any())
        assert learned.method.guesses or not touched, "Leave the label out, or say guesses=... (docs/extending.md)."
        assert (gradient[:, [0, 1, 3]] != 0).any()
    assert judged > 0


def test_frozen_tensors_stay(method):
    settings = experiment(method)
    learned = learner(settings)
    before = copy.deepcopy(learned.resident.other_state())

    turn(settings, learned, shard(*scenes()), learned.resident.flat.clone())

    after = learned.resident.other_state()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_it_learns_a_few_images_by_heart(method):
    settings = experiment(method, local_steps=60, learning_rate=1e-2)
    learned = learner(settings)
    pixels, labels = scenes()
    data, rows = shard(pixels, labels), np.arange(len(labels))

    def gap():
        probs = learned.predict(data.images, rows)
        return probs[labels == PRESENT].mean() - probs[labels == ABSENT].mean()

    before, enough = gap(), GAPS.get(method, 0.4)
    for number in (1, 2, 3):  # a method whose loss fades away where it is nearly right takes longer
        _, trained = turn(settings, learned, data, learned.resident.flat.clone(), round_number=number)
        assert trained.num_steps == (0 if solved(learned.method) else 60)
        if gap() > enough:
            break

    assert abs(before) < enough / 2
    assert gap() > enough


def test_the_loss_goes_down(method):
    settings = experiment(method, local_epochs=15, learning_rate=1e-2)
    learned = learner(settings)
    data = shard(*scenes())

    after, first = turn(settings, learned, data, learned.resident.flat.clone())
    _, second = turn(settings, learned, data, after)

    assert second.loss < first.loss


def test_predictions_are_probabilities_of_each_image_alone(method):
    learned = learner(experiment(method))
    network = learned.resident.network.eval()
    images = to_float(scenes(7)[0])

    with torch.inference_mode():
        probs = learned.method.predict(network, images)
        alone = torch.cat([learned.method.predict(network, image[None]) for image in images])
        reversed_order = learned.method.predict(network, images.flip(0)).flip(0)

    assert probs.shape == (7, len(NAMES))
    assert probs.dtype == torch.float32
    assert ((probs >= 0) & (probs <= 1)).all()
    torch.testing.assert_close(alone, probs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(reversed_order, probs, rtol=1e-5, atol=1e-6)


def test_uncertain_is_unknown(method):
    settings = experiment(method)
    learned = learner(settings)
    start = learned.resident.flat.clone()
    pixels, labels = scenes()

    unknown, told = turn(settings, learned, shard(pixels, partial(labels, UNKNOWN)), start)
    uncertain, told_uncertain = turn(settings, learned, shard(pixels, partial(labels, UNCERTAIN)), start)

    assert torch.equal(unknown, uncertain)
    assert told == told_uncertain


def test_one_sided_shards_and_batches_of_one_train(method):
    settings = experiment(method)
    learned = learner(settings)
    start = learned.resident.flat.clone()
    for num_images in (1, 9):
        pixels, labels = scenes(num_images)
        for state in (PRESENT, ABSENT, UNKNOWN):
            flat, trained = turn(settings, learned, shard(pixels, np.full_like(labels, state)), start)

            assert flat.isfinite().all(), (num_images, state)
            assert np.isfinite(trained.loss), (num_images, state)
            assert all(np.isfinite(value) for value in trained.metrics.values()), (num_images, state)


@pytest.mark.parametrize(
    ("method", "num_labels"),
    [
        *((name, 1) for name in METHODS),
        *(pytest.param(name, 1628, marks=[pytest.mark.slow] * (name in SLOW_WITH_MANY)) for name in METHODS),
    ],
    indirect=["method"],
)
def test_one_label_and_flairs_1628_train_or_are_refused_with_a_reason(method, num_labels):
    names = tuple(f"label {number}" for number in range(num_labels))
    settings = experiment(method, batch_size=3)
    if num_labels == 1 and method in ONE_LABEL_REFUSED:
        with pytest.raises(InputError, match=ONE_LABEL_REFUSED[method]):
            build_learner(settings, names, (SIDE, SIDE, 1))
        return
    if num_labels > 1 and method in WITH_MANY:
        settings = settings.model_copy(update={"method": WITH_MANY[method]})
    learned = build_learner(settings, names, (SIDE, SIDE, 1))
    start = learned.resident.flat.clone()
    pixels, _ = scenes(4)
    labels = np.random.default_rng(0).choice(np.array([PRESENT, ABSENT, UNKNOWN], np.int8), (4, num_labels))
    labels[0], labels[1] = PRESENT, ABSENT  # of each some, even of a single label
    data = shard(pixels, labels, names=names)

    flat, trained = turn(settings, learned, data, start)

    probs = learned.predict(data.images, data.rows)
    counted = {} if learned.method.statistics is None else learned.method.statistics(data)
    assert flat.isfinite().all()
    assert not torch.equal(flat, start)
    assert np.isfinite([trained.loss, *trained.metrics.values()]).all()
    assert all(tensor.isfinite().all() for tensor in counted.values())
    assert probs.shape == (4, num_labels)
    assert ((probs >= 0) & (probs <= 1)).all()


def test_columns_that_nobody_annotated_do_not_matter(method):
    """Rows of a label without annotations stay, where the method says that it looks at annotations alone."""
    settings = experiment(method)
    learned = learner(settings)
    start = learned.resident.flat.clone()
    pixels, labels = scenes()
    labels[:, 2] = UNKNOWN

    flat, _ = turn(settings, learned, shard(pixels, labels), start)

    before, after = (dict(learned.resident.layout.row_views(vector)) for vector in (start, flat))
    for name in ("readout.weight", "readout.bias", "head.weight", "head.bias"):
        if name in before:
            changed = (before[name] != after[name]).any(dim=1).tolist()
            assert changed[:2] + changed[3:] == [True] * 3
            assert learned.method.guesses or not changed[2]


def test_what_it_keeps_of_a_turn_it_says_and_finds_again(method):
    """A second turn from kept state differs from none only where the method remembers; memory is tensors by name."""
    settings = experiment(method)
    learned = learner(settings)
    start = learned.resident.flat.clone()
    data, memory = shard(*scenes()), {}

    turn(settings, learned, data, start, memory=memory)

    assert bool(memory) == learned.method.remembers
    kept = {name: tensor.clone() for name, tensor in memory.items()}
    first, told = turn(settings, learned, data, start, round_number=3, memory=dict(kept))
    again, told_again = turn(settings, learned, data, start, round_number=3, memory=dict(kept))
    assert torch.equal(first, again)
    assert told == told_again
    assert all(isinstance(tensor, torch.Tensor) and name.startswith("images/") for name, tensor in memory.items())


@pytest.mark.skipif("FEDMLIC_ENTRY" in os.environ, reason="one entry alone is tried")
@pytest.mark.parametrize("text", OPTIONS)
def test_with_other_options_too_it_keeps_something_only_where_it_says_so(text):
    """What is kept without being said has no folder on other processes or devices, and every turn would fail there."""
    settings = experiment("bce").model_copy(update={"method": text})
    learned = learner(settings)
    memory = {}

    turn(settings, learned, shard(*scenes()), learned.resident.flat.clone(), memory=memory)

    assert bool(memory) == learned.method.remembers


BLIND = '''
"""A backbone that gives NaN for bright images."""

import torch

from fedmlic import spec
from fedmlic.model import Model, StageBackbone


def blind(*, model: str) -> Model:
    """Another model, with NaN in the first map of every image that has a bright pixel.

    Args:
        model: the other.
    """
    other = spec.build("model", model)

    def build(channels):
        backbone = other.build(channels)
        kind, first = type(backbone), "embed" if isinstance(backbone, StageBackbone) else "forward"

        def mapped(self, images):
            bright = images.amax(dim=(1, 2, 3)) > 0.5
            return getattr(kind, first)(self, images) + torch.where(bright, torch.nan, 0.0).view(-1, 1, 1, 1)

        backbone.__class__ = type("Blind", (kind,), {first: mapped})
        return backbone

    return other._replace(build=build)
'''


class Federation:
    """What a host asks of a federation."""

    def __init__(self, shards):
        self._shards = shards
        self.clients = range(len(shards))
        self.sizes = np.array([shard.num_images for shard in shards])
        self.label_names = NAMES

    def shard(self, client):
        return self._shards[client]


def test_a_client_whose_images_give_nan_fails_alone_and_says_why(method, plug, tmp_path):
    """The others' sum is to the bit what it is without the client, which keeps nothing of its turn; in any stretch."""
    plug("nan_nets", BLIND)
    settings = experiment(method, allow_statistics=True)
    settings = settings.model_copy(update={"model": f"nan_nets.blind(model={settings.model!r})"})
    shards = []
    for client in range(3):
        pixels, labels = scenes(seed=client)
        bright = np.full_like(pixels, 255) if client == 1 else pixels // 4
        shards.append(shard(bright, labels, client=client))

    def played(number, clients):
        learned = learner(settings)
        phase = stretch_of(learned.method, number).phase
        tensors = None if phase.tensors is None else tuple(phase.tensors(learned.resident.network))
        place = FolderMemory(tmp_path / f"{number} {clients}")
        host = Host("h", settings, Federation(shards), learned, memory=lambda _: place)
        start, units = learned.resident.flat.clone(), units_for(Weighting(), [12], len(NAMES))
        return host.play(Request("train", number, start, units, tensors=tensors), clients), place

    for number in first_rounds(spec.build("method", settings.method)):
        (reply, place), (alone, _) = played(number, [0, 1, 2]), played(number, [0, 2])

        assert [bool(turn.error) for turn in reply.turns] == [False, True, False], number
        assert "finite" in reply.turns[1].error, number
        assert [turn.loss for turn in alone.turns] == [reply.turns[0].loss, reply.turns[2].loss]
        assert torch.equal(reply.updates[0].sums, alone.updates[0].sums)
        assert [*reply.updates[0].clients] == [*alone.updates[0].clients] == [0, 2]
        assert place.versions(1) == []


def test_feature_maps_stand_for_images_unless_it_needs_pixels(method):
    """Three turns and predictions with a frozen backbone are the same to 1e-5 from its maps, computed once."""
    settings = experiment(method, model="timm(name='test_vit', trainable='head')")
    if spec.build("method", settings.method).needs_pixels:
        pytest.skip("it works on the images itself")
    pixels, labels = scenes()
    whole = learner(settings)
    with torch.no_grad():
        maps = whole.resident.network.eval().backbone(to_float(pixels)).numpy()
    kept = build_learner(settings, NAMES, (SIDE, SIDE, 1), features=lambda *_: SimpleNamespace(first_only=False))
    data = shard(pixels, partial(labels))
    rows = np.arange(len(labels))

    assert not any(isinstance(module, Passed) for module in whole.resident.network.modules())
    assert kept.resident.layout == whole.resident.layout
    passed = replace(data, images=Pixels(maps, as_maps=True))
    expected = found = start = whole.resident.flat.clone()
    remembered, remembered_again = {}, {}
    for number in (1, 2, 3):
        expected, told = turn(settings, whole, data, expected, round_number=number, memory=remembered)
        found, told_again = turn(settings, kept, passed, found, round_number=number, memory=remembered_again)

        assert told_again.loss == pytest.approx(told.loss, rel=1e-5, abs=1e-5)
        assert told_again.num_steps == told.num_steps
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(expected, start, rtol=1e-3, atol=1e-3)
    scores = whole.predict(data.images, rows)
    np.testing.assert_allclose(kept.predict(passed.images, rows), scores, rtol=1e-5, atol=1e-5)
