"""FedTPG: the generator against plain numpy, whose names it reads, what trains, and labels nobody annotates."""

import importlib.util
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import erf

from fedmlic.errors import InputError
from fedmlic.labels import UNCERTAIN, UNKNOWN
from fedmlic.method import Local
from fedmlic.methods.fedtpg import Generator, annotated
from fedmlic.pixel_scale import to_float

FIXTURES = Path(__file__).parents[2] / "fixtures"
CLIP = runpy.run_path(str(FIXTURES / "clip_folder.py"))
TINY = runpy.run_path(str(FIXTURES / "prompt_methods.py"))
NAMES = ("cat", "dog", "kite")
METHOD = "fedtpg(weights='random', context_length=2, heads=2, hidden=5)"
PAIR = METHOD.replace("hidden=5", "hidden=5, scores='pair', scale=7.0")
needs_open_clip = pytest.mark.skipif(importlib.util.find_spec("open_clip") is None, reason="CLIP's tokenizer")


def learner(method=METHOD, names=NAMES, **changes):
    return TINY["learner"](method, names, **changes)


def local_of(shard):
    return Local(TINY["settings"](METHOD), 1, 3, torch.device("cpu"), lambda: None, shard=shard)


def numbers_of(features, width, length, hidden):
    """Of the generator: queries, four square maps, a norm, two layers."""
    return length * features + 4 * features**2 + 2 * features + (features + 1) * hidden + (hidden + 1) * width


def test_contexts_are_those_of_plain_numpy():
    torch.manual_seed(0)
    generator = Generator(6, 4, length=3, sets=2, heads=2, hidden=5, size=0.1)
    names = torch.randn(7, 6)
    tensors = {name: tensor.detach().double().numpy() for name, tensor in generator.named_parameters()}
    queries, keys, values = (
        rows @ tensors[f"{part}.weight"].T
        for part, rows in (("query", tensors["queries"]), ("key", names.numpy()), ("value", names.numpy()))
    )
    gathered = np.zeros((6, 6))
    for head in (slice(0, 3), slice(3, 6)):
        scores = np.exp(queries[:, head] @ keys[:, head].T / np.sqrt(3))
        gathered[:, head] = scores / scores.sum(axis=1, keepdims=True) @ values[:, head]
    mixed = gathered @ tensors["mixed.weight"].T
    normed = (mixed - mixed.mean(axis=1, keepdims=True)) / np.sqrt(mixed.var(axis=1, keepdims=True) + 1e-5)
    inside = normed @ tensors["first.weight"].T + tensors["first.bias"]
    inside = inside * (1 + erf(inside / np.sqrt(2))) / 2
    expected = (inside @ tensors["last.weight"].T + tensors["last.bias"]).reshape(2, 3, 4)

    with torch.no_grad():
        np.testing.assert_allclose(generator(names), expected, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(generator(names.flip(0)), generator(names))


@pytest.mark.parametrize("method", [METHOD, PAIR])
def test_scores_are_cosines_or_their_difference(method):
    network = learner(method).resident.network.eval()
    images = to_float(TINY["data"]().images.pixels)
    with torch.no_grad():
        views, texts = network(images, "views")[:, 0], network(images, "texts")
        found = network(images).numpy()

    cosines = [TINY["unit"](views) @ TINY["unit"](each).T for each in texts]
    expected = 20 * cosines[0] if method == METHOD else 7 * (cosines[0] - cosines[1])
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("method", [METHOD, PAIR])
def test_the_generator_is_all_that_trains_and_all_that_is_sent(method):
    learned = learner(method)
    network = learned.resident.network

    changed, pulled, _ = TINY["play"](learned, TINY["data"](), method)

    names = {name for name, _ in network.named_parameters() if name.startswith("generator.")}
    assert changed == pulled == names == set(learned.resident.layout.names)
    width = network.learner.handwritten.shape[1]
    sent = sum(np.prod(shape) for shape in learned.resident.layout.shapes)
    assert sent == numbers_of(width, 32, 4 if method == PAIR else 2, 5)
    assert learner(method, (*NAMES, "owl")).resident.layout.shapes == learned.resident.layout.shapes


def test_a_client_generates_from_the_labels_that_it_annotates():
    shard = TINY["data"]()
    labels = shard.labels.copy()
    labels[:, 0], labels[:3, 1], labels[3:, 1] = UNKNOWN, UNCERTAIN, 0
    (numbers,) = annotated(local_of(TINY["data"](labels=labels)))
    network = learner().resident.network

    assert numbers.tolist() == [1, 2]
    with torch.no_grad():
        names = network.learner.handwritten
        torch.testing.assert_close(network.contexts(numbers), network.generator(names[1:]))
        assert not torch.allclose(network.contexts(numbers), network.contexts(), rtol=1e-3, atol=0)
    assert annotated(local_of(TINY["data"](labels=np.full((5, 3), UNKNOWN, np.int8)))) == ()


def test_labels_that_a_client_never_annotates_follow_the_generator():
    learned, shard = learner(), TINY["data"]()
    labels = shard.labels.copy()
    labels[:, 2] = UNKNOWN
    before = learned.predict(shard.images, np.arange(5))

    changed, _, trained = TINY["play"](learned, TINY["data"](labels=labels), METHOD)
    after = learned.predict(shard.images, np.arange(5))

    assert changed
    assert np.isfinite(trained.loss)
    assert (np.abs(after - before) > 1e-6).any(axis=0).all()


def test_labels_in_another_order_have_their_scores_in_that_order():
    shard, order, rows = TINY["data"](), [2, 0, 1], np.arange(5)
    plain, other = learner(), learner(names=tuple(NAMES[n] for n in order))

    expected = plain.predict(shard.images, rows)[:, order]
    np.testing.assert_allclose(other.predict(shard.images, rows), expected, atol=1e-5)


def test_without_a_known_entry_nothing_moves():
    labels = np.full((5, 3), UNKNOWN, np.int8)
    changed, _, trained = TINY["play"](learner(), TINY["data"](labels=labels), METHOD, weight_decay=0.1)
    assert (changed, trained.loss, trained.num_steps) == (set(), 0.0, 0)


@pytest.mark.parametrize("num_labels", [1, 1628])
def test_one_label_and_many_and_a_batch_of_one(num_labels):
    names = tuple(f"n{n}" for n in range(num_labels))
    learned, shard = learner(names=names), TINY["data"](num_labels, num_images=1)

    changed, _, trained = TINY["play"](learned, shard, METHOD)

    assert changed
    assert np.isfinite(trained.loss)
    assert learned.predict(shard.images, np.arange(1)).shape == (1, num_labels)


def test_names_asked_for_alone_or_as_a_task_of_their_own():
    shard = TINY["data"]()
    images = to_float(shard.images.pixels)
    method = METHOD.replace("heads", "scale=1.0, heads")
    learned = learner(method)
    network = learned.resident.network.eval()
    expected = learned.predict(shard.images, np.arange(5))
    with torch.inference_mode():
        alone = learned.method.ask(network, learned.task, ["dog"])(images)
        task = learner(method.replace("heads", "asked_context='asked', heads"))
        every = task.method.ask(network, task.task, [*NAMES])(images)
        other = task.method.ask(network, task.task, ["dog", "an owl"])(images)

    np.testing.assert_allclose(alone[:, 0], expected[:, 1], atol=1e-6)
    np.testing.assert_allclose(every, expected, atol=1e-6)
    assert not np.allclose(other[:, 0], expected[:, 1], rtol=1e-6, atol=0)


@needs_open_clip
def test_a_folder_of_clip_stays_bit_for_bit(tmp_path):
    path = CLIP["folder"](tmp_path / "clip")
    method, model = f"fedtpg(weights={path!r}, context_length=2)", f"clip_image(path={path!r}, projection=True)"
    learned = learner(method, model=model)

    changed, _, _ = TINY["play"](learned, TINY["data"](), method, model=model, local_epochs=2)

    assert {name.split(".")[0] for name in changed} == {"generator"}


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(InputError, match=r"heads to divide the width of texts .*, got 7"):
        learner("fedtpg(weights='random', heads=7)")
