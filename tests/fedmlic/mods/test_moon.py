"""MOON: its term against the formula written out, and against the loss of its release."""

import math

import pytest
import torch
import torch.nn.functional as F

from fedmlic.mods.moon import contrast


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
