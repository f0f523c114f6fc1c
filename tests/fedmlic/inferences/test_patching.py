"""PAT-I against a plain loop, its identities, and where it is used."""

import math

import numpy as np
import pytest
import torch

from fedmlic import spec
from fedmlic.errors import InputError
from fedmlic.experiment import Experiment, Runtime
from fedmlic.features import obstacle_before_data
from fedmlic.learner import build_learner
from fedmlic.patches import cut
from strategies.server.check import check_experiment

NAMES = ("a", "b")


def learner(method="bce()", shape=(12, 8, 3), **changes):
    return build_learner(Experiment(method=method, model="small_cnn(width=4, num_blocks=0)", **changes), NAMES, shape)


def asked(text, predict, images):
    with torch.inference_mode():
        return spec.build("inference", text).of(predict)(images)


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_by_a_plain_loop(temperature):
    network = learner().resident.network.eval()
    images = torch.randn(3, 3, 12, 8)
    with torch.no_grad():
        network.head.weight.mul_(20)
        whole = network(images).tolist()
        parts = [network(patch).tolist() for patch in cut(images, 2)]

    found = asked(f"patching(temperature={temperature})", lambda batch: torch.sigmoid(network(batch)), images)

    for image in range(3):
        for label in range(2):
            scores = [part[image][label] for part in parts]
            weights = [math.exp(score / temperature) for score in scores]
            pivot = sum(w * s for w, s in zip(weights, scores, strict=True)) / sum(weights)
            expected = 1 / (1 + math.exp(-(whole[image][label] + pivot) / 2))
            assert float(found[image, label]) == pytest.approx(expected, rel=1e-4)


def test_one_patch_is_the_methods_own_prediction():
    probs = torch.tensor([[0.5, 1e-6], [0.999, 0.2]])

    found = asked("patching(grid=1)", lambda _: probs, torch.zeros(2, 1, 4, 4))

    torch.testing.assert_close(found, probs, rtol=1e-3, atol=1e-7)


def test_patches_that_look_alike_leave_everything_as_it_is():
    """Where all patches get the score of the image, so does the answer."""
    images = torch.zeros(2, 1, 6, 6)

    found = asked("patching(grid=3)", lambda batch: torch.full((len(batch), 2), 0.3), images)

    torch.testing.assert_close(found, torch.full((2, 2), 0.3))


def test_a_small_object_that_fills_a_patch_is_raised():
    """A score that grows with the share of bright pixels, and one bright patch."""
    images = torch.zeros(1, 1, 8, 8)
    images[..., :4, :4] = 1

    def bright(batch):
        return torch.sigmoid(8 * batch.mean((1, 2, 3))[:, None] - 4)

    assert asked("patching()", bright, images) > bright(images) + 0.2


@pytest.mark.parametrize("extreme", [0.0, 1.0])
def test_certain_probabilities_stay_finite(extreme):
    found = asked("patching()", lambda batch: torch.full((len(batch), 1), extreme), torch.zeros(1, 1, 4, 4))

    assert found.item() == pytest.approx(extreme, abs=1e-6)


def test_it_is_used_by_the_learner_and_leaves_out_nothing_of_the_method():
    class Pixels:
        def take(self, rows):
            return np.random.default_rng(0).integers(0, 256, (5, 12, 8, 3), dtype=np.uint8)[rows]

    for method in ("pat()", "fedlgt(layers=1)"):
        plain, patched = learner(method), learner(method, inference="patching()")
        scores = plain.predict(Pixels(), np.arange(5)), patched.predict(Pixels(), np.arange(5))
        assert not np.allclose(scores[0], scores[1], rtol=0, atol=1e-6)


def test_what_cannot_work_is_refused_when_the_network_is_built():
    with pytest.raises(InputError, match="grid to be at most the shorter side of images, 8 pixels, got 9"):
        learner(inference="patching(grid=9)")
    with pytest.raises(InputError, match=r"patches of 6 x 4 pixels \(patch_upsample=False\)"):
        build_learner(
            Experiment(inference="patching(grid=8, patch_upsample=False)", method="bce()", model="lenet()"),
            NAMES,
            (48, 32, 3),
        )
    learner(inference="patching(grid=2, patch_upsample=False)")
    with pytest.raises(ValueError, match=r"inference to name an entry of its catalogue, got 'patchin'"):
        Experiment(inference="patchin()")


def test_kept_feature_maps_are_refused_and_not_used_by_themselves():
    settings = {"model": "timm(name='test_vit', trainable='head')", "method": "bce()", "inference": "patching()"}
    method = spec.build("method", "bce()")
    assert "inference patching() works on the images itself" in obstacle_before_data(Experiment(**settings), method)
    with pytest.raises(InputError, match=r"features=cached.*inference patching\(\) works on the images itself"):
        check_experiment(Experiment(**settings, features="cached"), Runtime())
