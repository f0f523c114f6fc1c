"""PromptFL: scores and losses against plain numpy, what trains, what is sent, and sizes."""

import importlib.util
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from fedmlic.errors import InputError
from fedmlic.features import tensors_sha256
from fedmlic.labels import UNKNOWN
from fedmlic.method import Local, scalar_and_rest
from fedmlic.pixel_scale import to_float

FIXTURES = Path(__file__).parents[2] / "fixtures"
CLIP = runpy.run_path(str(FIXTURES / "clip_folder.py"))
TINY = runpy.run_path(str(FIXTURES / "prompt_methods.py"))
NAMES = ("cat", "dog", "kite")
METHOD = "promptfl(weights='random', context_length=2, scale=7.0, bias=-0.5)"
needs_open_clip = pytest.mark.skipif(importlib.util.find_spec("open_clip") is None, reason="CLIP's tokenizer")


def learner(method=METHOD, names=NAMES, **changes):
    return TINY["learner"](method, names, **changes)


def probabilities(learned, shard):
    return learned.predict(shard.images, np.arange(shard.num_images))


def test_scores_are_cosines_of_the_whole_image_and_the_prompted_names():
    network = learner().resident.network.eval()
    images = to_float(TINY["data"]().images.pixels)
    with torch.no_grad():
        maps, texts = network.backbone.both.tower(images).double().numpy(), network(images, "texts")[0].double().numpy()
        found = network(images).numpy()

    whole = maps.mean(axis=(2, 3))
    expected = np.zeros((5, 3))
    for i, c in np.ndindex(5, 3):
        cosine = whole[i] @ texts[c] / np.sqrt((whole[i] ** 2).sum() * (texts[c] ** 2).sum())
        expected[i, c] = 7.0 * cosine - 0.5
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_view_of_a_tower_with_a_class_token_is_that_token():
    network = learner(model="clip_image(projection=True)").resident.network.eval()
    images = to_float(TINY["data"]().images.pixels)
    with torch.no_grad():
        torch.testing.assert_close(network.views(images)[:, 0], network.backbone.both.tower.tokens(images).values[:, 0])


def test_kept_maps_of_the_whole_image_are_not_taken_for_those_of_both_views():
    backbone = learner().resident.network.backbone

    assert tensors_sha256(backbone) != tensors_sha256(backbone.both)
    assert tensors_sha256(backbone) != tensors_sha256(backbone.both.tower)


def test_the_context_is_all_that_trains_and_all_that_is_sent():
    learned = learner()

    changed, pulled, _ = TINY["play"](learned, TINY["data"](), METHOD)

    assert changed == pulled == {"context"} == set(learned.resident.layout.names)
    assert learned.resident.flat.numel() == 2 * 32
    assert learner(names=(*NAMES, "owl")).resident.flat.numel() == 2 * 32


def test_labels_in_another_order_have_their_scores_in_that_order():
    shard, order = TINY["data"](), [2, 0, 1]
    plain, other = learner(), learner(names=tuple(NAMES[n] for n in order))

    np.testing.assert_allclose(probabilities(other, shard), probabilities(plain, shard)[:, order], atol=1e-6)


@pytest.mark.parametrize("loss", ["bce", "balanced_bce", "asl"])
def test_losses_are_those_of_plain_loops_over_known_entries(loss):
    method = f"promptfl(weights='random', context_length=2, loss={loss!r})"
    learned, shard = learner(method), TINY["data"]()
    labels = shard.labels.copy()
    labels[0], labels[1, 1] = UNKNOWN, UNKNOWN
    network, images = learned.resident.network.eval(), to_float(shard.images.pixels)
    local = Local(TINY["settings"](method), 1, 3, torch.device("cpu"), lambda: None, shard=shard)
    objective, given = learned.method.objective, torch.from_numpy(labels)
    inputs = objective.inputs(local).of(images, given, torch.arange(5))
    found, _ = scalar_and_rest(objective.loss(network, images, given, *inputs))
    with torch.no_grad():
        probs = torch.sigmoid(network(images).double()).numpy()

    present, absent = [], []
    for i, c in np.ndindex(labels.shape):
        p = probs[i, c]
        if labels[i, c] == 1:
            present.append(-((1 - p) if loss == "asl" else 1) * np.log(p))
        elif labels[i, c] == 0:
            q = max(p - 0.05, 0) if loss == "asl" else p
            absent.append(-(q**4 if loss == "asl" else 1) * np.log(1 - q))
    both = np.mean(present) + np.mean(absent) if loss == "balanced_bce" else np.mean(present + absent)
    assert found.item() == pytest.approx(both, rel=1e-4)


def test_views_are_computed_once_a_turn_unless_images_change():
    for augmentation, passes in (("none", 2), ("flip", 6)):
        learned, calls = learner(augmentation=augmentation), []
        learned.resident.network.backbone.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        TINY["play"](learned, TINY["data"](), METHOD, local_epochs=3, augmentation=augmentation)
        assert len(calls) == passes


def test_without_a_known_entry_nothing_moves():
    labels = np.full((5, 3), UNKNOWN, np.int8)
    changed, pulled, trained = TINY["play"](learner(), TINY["data"](labels=labels), METHOD, weight_decay=0.1)

    assert (changed, pulled, trained.loss, trained.num_steps) == (set(), set(), 0.0, 0)


@pytest.mark.parametrize("num_labels", [1, 1628])
def test_one_label_and_many_and_a_batch_of_one(num_labels):
    names = tuple(f"n{n}" for n in range(num_labels))
    learned, shard = learner(names=names), TINY["data"](num_labels, num_images=1)

    changed, _, trained = TINY["play"](learned, shard, METHOD)

    assert changed == {"context"}
    assert np.isfinite(trained.loss)
    assert probabilities(learned, shard).shape == (1, num_labels)


def test_the_template_as_context_begins_with_handwritten_prompts():
    network = learner("promptfl(weights='random', start='template', template='see {}', context_length=3)")
    network = network.resident.network
    with torch.no_grad():
        texts = torch.nn.functional.normalize(network(torch.zeros(0), "texts")[0], dim=1)
    torch.testing.assert_close(texts, network.learner.handwritten)


def test_names_asked_for_have_scores_of_their_own():
    learned, shard = learner(), TINY["data"]()
    TINY["play"](learned, shard, METHOD)
    network, images = learned.resident.network.eval(), to_float(shard.images.pixels)
    with torch.inference_mode():
        found = learned.method.ask(network, learned.task, ["an owl", "dog"])(images)

    np.testing.assert_allclose(found[:, 1], probabilities(learned, shard)[:, 1], atol=1e-6)


@needs_open_clip
def test_a_folder_of_clip_stays_bit_for_bit(tmp_path):
    path = CLIP["folder"](tmp_path / "clip")
    method, model = f"promptfl(weights={path!r}, context_length=2)", f"clip_image(path={path!r}, projection=True)"
    learned = learner(method, model=model)

    changed, pulled, _ = TINY["play"](learned, TINY["data"](), method, model=model, local_epochs=2)

    assert changed == pulled == {"context"}
    with pytest.raises(InputError, match=r"width 12, got 24: nothing between them trains"):
        learner(method, model=f"clip_image(path={path!r})")


def test_without_weights_the_file_to_get_is_named():
    with pytest.raises(InputError, match=r"weights of promptfl .*clip-vit-base-patch16.*weights='random'"):
        learner("promptfl()")
