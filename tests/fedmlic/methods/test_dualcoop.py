"""DualCoOp: attention over places against plain numpy, shared and own contexts, what trains, and sizes."""

import importlib.util
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from fedmlic.errors import InputError
from fedmlic.labels import UNKNOWN
from fedmlic.methods.dualcoop import CONTEXTS, region_scores
from fedmlic.pixel_scale import to_float

FIXTURES = Path(__file__).parents[2] / "fixtures"
CLIP = runpy.run_path(str(FIXTURES / "clip_folder.py"))
TINY = runpy.run_path(str(FIXTURES / "prompt_methods.py"))
NAMES = ("cat", "dog", "kite")
METHODS = {
    "shared": "dualcoop(weights='random', context_length=2)",
    "per_label": "dualcoop(weights='random', context_length=2, context='per_label')",
}
needs_open_clip = pytest.mark.skipif(importlib.util.find_spec("open_clip") is None, reason="CLIP's tokenizer")


def learner(method=METHODS["shared"], names=NAMES, **changes):
    return TINY["learner"](method, names, **changes)


def test_scores_are_a_softmax_over_places_and_over_the_pair():
    rng = np.random.default_rng(0)
    views, texts = rng.normal(size=(2, 4, 3)), rng.normal(size=(2, 5, 3))
    places, named = TINY["unit"](views), TINY["unit"](texts)
    expected = np.zeros((2, 5))
    for i, c in np.ndindex(2, 5):
        positive, negative = (20 * places[i] @ named[sign, c] for sign in (0, 1))
        weights = np.exp(positive) / np.exp(positive).sum()
        pair = np.exp([5 * weights @ positive, 5 * weights @ negative])
        expected[i, c] = pair[0] / pair.sum()

    found = torch.sigmoid(region_scores(torch.tensor(views), torch.tensor(texts), 100.0, 20.0))

    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-7)


def test_a_constant_map_and_no_attention_give_the_mean_over_places():
    one, texts = torch.randn(2, 1, 6), torch.randn(2, 3, 6)
    alone = region_scores(one, texts, 100.0, 20.0)
    torch.testing.assert_close(region_scores(one.expand(2, 7, 6), texts, 100.0, 20.0), alone, rtol=1e-4, atol=1e-4)

    views = torch.nn.functional.normalize(torch.randn(2, 7, 6), dim=2)
    named = torch.nn.functional.normalize(texts, dim=2)
    mean = 100 * (views @ (named[0] - named[1]).T).mean(dim=1)
    torch.testing.assert_close(region_scores(views, texts, 100.0, 0.0), mean, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("context", "numbers"), [("shared", 2 * 2 * 32), ("per_label", 2 * 3 * 2 * 32)])
def test_contexts_are_all_that_trains_and_all_that_is_sent(context, numbers):
    learned = learner(METHODS[context])

    changed, pulled, _ = TINY["play"](learned, TINY["data"](), METHODS[context])

    assert changed == pulled == set(CONTEXTS) == set(learned.resident.layout.names)
    assert learned.resident.flat.numel() == numbers
    assert learned.resident.layout.num_row_tensors == (2 if context == "per_label" else 0)


def test_the_contexts_of_a_label_that_nobody_annotates_stay():
    learned, shard = learner(METHODS["per_label"]), TINY["data"]()
    labels = shard.labels.copy()
    labels[:, 1] = UNKNOWN
    before = [learned.resident.network.get_parameter(name).clone() for name in CONTEXTS]

    TINY["play"](learned, TINY["data"](labels=labels), METHODS["per_label"])

    for name, old in zip(CONTEXTS, before, strict=True):
        moved = (learned.resident.network.get_parameter(name) != old).flatten(1).any(dim=1)
        assert moved.tolist() == [True, False, True]


def test_labels_in_another_order_have_their_scores_in_that_order():
    shard, order, rows = TINY["data"](), [2, 0, 1], np.arange(5)
    plain, other = learner(), learner(names=tuple(NAMES[n] for n in order))

    expected = plain.predict(shard.images, rows)[:, order]
    np.testing.assert_allclose(other.predict(shard.images, rows), expected, atol=1e-5)


def test_equal_contexts_give_one_half():
    network = learner().resident.network.eval()
    with torch.no_grad():
        network.context_negative.copy_(network.context_positive)
        logits = network(to_float(TINY["data"]().images.pixels))
    assert torch.equal(logits, torch.zeros(5, 3))


@pytest.mark.parametrize("context", METHODS)
def test_without_a_known_entry_nothing_moves(context):
    labels = np.full((5, 3), UNKNOWN, np.int8)
    learned, method = learner(METHODS[context]), METHODS[context]
    changed, _, trained = TINY["play"](learned, TINY["data"](labels=labels), method, weight_decay=0.1)
    assert (changed, trained.loss, trained.num_steps) == (set(), 0.0, 0)


@pytest.mark.parametrize(("num_labels", "context"), [(1, "shared"), (1, "per_label"), (1628, "per_label")])
def test_one_label_and_many_and_a_batch_of_one(num_labels, context):
    names = tuple(f"n{n}" for n in range(num_labels))
    learned, shard = learner(METHODS[context], names), TINY["data"](num_labels, num_images=1)

    changed, _, trained = TINY["play"](learned, shard, METHODS[context])

    assert changed == set(CONTEXTS)
    assert np.isfinite(trained.loss)
    assert learned.predict(shard.images, np.arange(1)).shape == (1, num_labels)


def test_names_asked_for():
    shard = TINY["data"]()
    images = to_float(shard.images.pixels)
    for context, method in METHODS.items():
        learned = learner(method)
        network = learned.resident.network.eval()
        with torch.inference_mode():
            found = learned.method.ask(network, learned.task, ["kite", "dog"])(images)
        np.testing.assert_allclose(found, learned.predict(shard.images, np.arange(5))[:, [2, 1]], atol=1e-5)
        if context == "shared":
            assert learned.method.ask(network, learned.task, ["an owl"])(images).shape == (5, 1)
        else:
            with pytest.raises(InputError, match=r"got 1 others, first 'an owl'.*context='shared'"):
                learned.method.ask(network, learned.task, ["an owl", "dog"])


@needs_open_clip
def test_a_folder_of_clip_stays_bit_for_bit(tmp_path):
    path = CLIP["folder"](tmp_path / "clip")
    method, model = f"dualcoop(weights={path!r}, context_length=2)", f"clip_image(path={path!r}, projection=True)"
    learned = learner(method, model=model)

    changed, pulled, _ = TINY["play"](learned, TINY["data"](), method, model=model, local_epochs=2)

    assert changed == pulled == set(CONTEXTS)


def test_a_sum_of_two_means_is_refused():
    with pytest.raises(InputError, match=r"reduction='mean' with loss='balanced_bce'"):
        learner("dualcoop(weights='random', loss='balanced_bce', reduction='sum')")
