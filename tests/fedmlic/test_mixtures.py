"""Closed forms of Gaussian mixtures against integrals on a grid, torch.distributions and plain loops."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from fedmlic import mixtures as closed
from fedmlic.mixtures import Mixtures, log_joint, log_norm, log_overlap, log_similarity, spread


def drawn(images, components, dimensions, *, diagonal=False, seed=0, dtype=torch.float64):
    """Mixtures with means a few standard deviations apart."""
    rng = torch.Generator().manual_seed(seed)
    weights = torch.randn(images, components, generator=rng, dtype=dtype).log_softmax(dim=1)
    means = 1.5 * torch.randn(images, components, dimensions, generator=rng, dtype=dtype)
    variances = 0.3 + torch.rand(images, components, dimensions if diagonal else 1, generator=rng, dtype=dtype)
    return Mixtures(weights, means, variances)


def distribution(mixtures, image):
    """The same mixture, as torch has it."""
    log_weights, means, variances = (tensor[image] for tensor in mixtures)
    parts = Independent(Normal(means, variances.sqrt().expand_as(means)), 1)
    return MixtureSameFamily(Categorical(logits=log_weights), parts)


def grid(dimensions, reach=12.0, points=241):
    """Points of a grid ``[points, dimensions]`` and the volume of its cells."""
    line = torch.linspace(-reach, reach, points, dtype=torch.float64)
    places = torch.cartesian_prod(*[line] * dimensions).view(-1, dimensions)
    return places, float(line[1] - line[0]) ** dimensions


def components(mixtures, image, places):
    """NumPy: weighted densities of the components of one mixture, ``[components, points]``."""
    log_weights, means, variances = (tensor[image].numpy() for tensor in mixtures)
    variances = np.broadcast_to(variances, means.shape)
    gaps = (places.numpy()[None] - means[:, None]) ** 2 / variances[:, None]
    scale = np.prod(2 * math.pi * variances, axis=1) ** -0.5
    return np.exp(log_weights)[:, None] * scale[:, None] * np.exp(-0.5 * gaps.sum(axis=2))


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("dimensions", [1, 2])
def test_overlaps_are_integrals_of_products(dimensions, diagonal):
    first = drawn(3, 4, dimensions, diagonal=diagonal)
    second = drawn(2, 4, dimensions, diagonal=diagonal, seed=1)
    places, cell = grid(dimensions)
    here = [components(first, image, places) for image in range(3)]
    there = [components(second, image, places) for image in range(2)]

    found, equal_only = log_overlap(first, second).exp(), log_overlap(first, second, matched=True).exp()

    for i in range(3):
        for j in range(2):
            assert float(found[i, j]) == pytest.approx((here[i].sum(0) * there[j].sum(0)).sum() * cell, rel=1e-6)
            assert float(equal_only[i, j]) == pytest.approx((here[i] * there[j]).sum() * cell, rel=1e-6)


@pytest.mark.parametrize("matched", [False, True])
def test_the_similarity_is_a_cosine(matched):
    first, second = drawn(4, 3, 2), drawn(5, 3, 2, seed=1)
    both = Mixtures(*(torch.cat(pair) for pair in zip(first, second, strict=True)))

    similarity = log_similarity(both, both, matched=matched)

    torch.testing.assert_close(similarity.diagonal(), torch.zeros(9, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(similarity, similarity.T)
    torch.testing.assert_close(similarity[:4, 4:], log_similarity(first, second, matched=matched))
    torch.testing.assert_close(log_norm(both, matched=matched), log_overlap(both, both, matched=matched).diagonal())
    assert (similarity <= 1e-12).all()
    assert torch.linalg.eigvalsh(similarity.exp()).min() > -1e-12  # a matrix of inner products


def test_mixtures_that_are_one_function_are_alike_though_their_components_stand_in_another_order():
    first = drawn(2, 3, 4)
    turned = Mixtures(*(tensor.flip(1) for tensor in first))

    torch.testing.assert_close(
        log_similarity(first, turned).diagonal(), torch.zeros(2, dtype=torch.float64), atol=1e-12, rtol=0
    )
    assert (log_similarity(first, turned, matched=True).diagonal() < -0.1).all()


@pytest.mark.parametrize("matched", [False, True])
@pytest.mark.parametrize("diagonal", [False, True])
def test_blocks_give_the_values_and_gradients_of_the_whole(monkeypatch, diagonal, matched):
    def values_and_gradients():
        first = Mixtures(*(t.requires_grad_() for t in drawn(4, 3, 5, diagonal=diagonal)))
        second = Mixtures(*(t.requires_grad_() for t in drawn(3, 3, 5, diagonal=diagonal, seed=1)))
        found = log_similarity(first, second, matched=matched)
        return [found, *torch.autograd.grad(found.square().sum(), [*first, *second])]

    expected = values_and_gradients()
    for terms in (1, 40):
        monkeypatch.setattr(closed, "TERMS", terms)
        for found, whole in zip(values_and_gradients(), expected, strict=True):
            torch.testing.assert_close(found, whole)


def test_far_apart_in_many_dimensions_everything_is_finite():
    first = drawn(3, 4, 128, dtype=torch.float32)
    first = Mixtures(first.log_weights, (100 * first.means).requires_grad_(), (1e-3 * first.variances).requires_grad_())

    similarity = log_similarity(first, first)
    similarity.sum().backward()

    assert similarity.isfinite().all()
    assert (similarity.exp().fill_diagonal_(0) == 0).all()  # which is why the logarithm is taken
    assert first.means.grad.isfinite().all()
    assert first.variances.grad.isfinite().all()
    exact = log_similarity(*[Mixtures(*(tensor.detach().double() for tensor in first))] * 2)
    torch.testing.assert_close(similarity.double(), exact, rtol=1e-4, atol=1e-2)


def test_autocast_changes_nothing():
    first = drawn(3, 4, 8, dtype=torch.float32)
    points = torch.randn(3, 8, generator=torch.Generator().manual_seed(2))
    expected = log_similarity(first, first), log_joint(first, points)

    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(log_similarity(first, first), expected[0])
        assert torch.equal(log_joint(first, points), expected[1])


@pytest.mark.parametrize("diagonal", [False, True])
def test_densities_and_spreads_are_those_of_torch(diagonal):
    mixtures = drawn(3, 4, 6, diagonal=diagonal)
    points = torch.randn(3, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    joint, found = log_joint(mixtures, points), spread(mixtures)

    assert joint.shape == (3, 4)
    for image in range(3):
        torch_s = distribution(mixtures, image)
        assert float(joint[image].logsumexp(0)) == pytest.approx(float(torch_s.log_prob(points[image])))
        assert float(found["variance"][image]) == pytest.approx(float(torch_s.variance.mean()))
        entropy = float(torch_s.mixture_distribution.entropy())
        assert float(found["effective_components"][image]) == pytest.approx(math.exp(entropy))
    torch.testing.assert_close(found["variance"], found["variance_within"] + found["variance_between"])


def test_the_spread_of_one_sure_component_and_of_two_apart():
    log_weights = torch.tensor([[1.0, 0.0], [0.5, 0.5]]).log()
    means = torch.tensor([[[3.0, 0.0], [9.0, 9.0]], [[-1.0, 0.0], [1.0, 0.0]]])
    found = spread(Mixtures(log_weights, means, torch.full((2, 2, 1), 0.25)))

    assert found["variance_within"].tolist() == [0.25, 0.25]
    assert found["variance_between"].tolist() == [0.0, 0.5]
    assert found["effective_components"].tolist() == pytest.approx([1.0, 2.0])
