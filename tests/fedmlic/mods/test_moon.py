"""MOON: its term against the formula written out, and against the loss of its release."""

import math

import pytest
import torch
import torch.nn.functional as F

from fedmlic.errors import InputError
from fedmlic.mods.moon import contrast
from fedmlic.record import open_run

SPY = """
import torch
from fedmlic.mod import Hooks, Mod


def spy():
    def begin(resident, shard, local):
        def term(step):
            with torch.no_grad():
                again = step.network.backbone(step.images).mean(dim=(2, 3))
            torch.testing.assert_close(step.features.detach(), again, rtol=1e-4, atol=1e-5)
            assert len(step.images) == len(step.labels)
            return 0.0 * step.features.sum()

        return Hooks(term=term)

    return Mod(begin, changes_steps=True, needs_features=True)
"""

BARE = """
from torch import nn
from fedmlic.losses import mean_binary_cross_entropy
from fedmlic.training import classifier


def bare():
    plain = classifier(mean_binary_cross_entropy)

    def build(task):
        return nn.Sequential(nn.Flatten(), nn.Linear(24 * 24 * 3, task.num_labels))

    return plain._replace(build=build, label_rows=lambda _: ("1.weight", "1.bias"))
"""


@pytest.mark.parametrize("method", ["fedlsm()", "pat()", "pat(patch_upsample=False)", "pml_cdcr()", "fedmlp()"])
def test_features_are_those_of_the_images_beside_them_whatever_the_method_does_to_images(play, plug, tmp_path, method):
    """Such as mixtures of two, views or patches: z, z_glob and z_prev are of the same tensors."""
    plug("spy", SPY)
    settings = {"num_rounds": 1, "cohort_size": 1, "allow_statistics": True, "statistics_min_clients": 1}
    play(tmp_path / "run", method=method, mods="spy.spy()", min_replies=0.1, **settings)

    (turn,) = (event for event in open_run(tmp_path / "run").events() if event["event"] == "client")
    assert not turn.get("error")


def test_a_network_without_a_backbone_is_refused(play, plug, tmp_path):
    plug("bare", BARE)

    with pytest.raises(InputError, match=r"a network with a backbone, whose features mods='moon\(\)' look at"):
        play(tmp_path / "run", method="bare.bare()", mods="moon()")


def test_one_image_by_hand():
    here, there, before = (torch.tensor([values]) for values in ([1.0, 0.0], [1.0, 1.0], [0.0, 2.0]))

    found = float(contrast(here, there, before, 0.5))

    near, far = math.exp(math.sqrt(0.5) / 0.5), math.exp(0.0)
    assert found == pytest.approx(-math.log(near / (near + far)), rel=1e-6)


def test_it_is_the_releases_cross_entropy():
    rng = torch.Generator().manual_seed(0)
    here, there, before = (torch.randn(7, 5, generator=rng, dtype=torch.float64) for _ in range(3))
    here.requires_grad_()

    found = contrast(here, there, before, 0.5)
    logits = torch.stack([F.cosine_similarity(here, there), F.cosine_similarity(here, before)], dim=1) / 0.5
    released = nn_cross_entropy(logits)

    assert torch.allclose(found, released)
    assert torch.allclose(*(torch.autograd.grad(value, here)[0] for value in (found, released)))


def nn_cross_entropy(logits):
    """The release: CrossEntropyLoss of [positive, negative] / T with the positive in column 0."""
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64))
