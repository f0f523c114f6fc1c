"""Two Gaussians against scikit-learn, planted groups, units and order, points that are one group, the bootstrap."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.mixture import GaussianMixture

from fedmlic.two_groups import chance_of_one, two_groups


def planted(lower, upper, dimensions=1, gap=8.0, seed=0):
    """Points of which the last ``upper`` lie ``gap`` deviations higher, on average over dimensions."""
    points = np.random.default_rng(seed).standard_normal((lower + upper, dimensions))
    points[lower:] = gap + 2 * points[lower:]
    return torch.from_numpy(points)


@pytest.mark.parametrize("dimensions", [1, 6])
@pytest.mark.parametrize("tied", [False, True])
def test_planted_groups_are_found(dimensions, tied):
    found = two_groups(planted(9, 4, dimensions, gap=12.0), tied=tied)

    assert found.upper.tolist() == [False] * 9 + [True] * 4


@pytest.mark.parametrize(("kind", "tied"), [("diag", False), ("tied", True)])
def test_probabilities_are_those_of_scikit_learn(kind, tied):
    points = planted(300, 100, gap=4.0, seed=3)
    if kind == "diag":
        points = torch.cat([points, points + planted(300, 100, gap=1.0, seed=4)], dim=1)
    scaled = ((points - points.mean(0)) / points.std(0, correction=0)).numpy()
    start = np.stack([scaled[:300].mean(0), scaled[300:].mean(0)])
    judge = GaussianMixture(2, covariance_type=kind, means_init=start, tol=1e-9, max_iter=2000).fit(scaled)

    found = two_groups(points, tied=tied).probs

    assert np.abs(found.numpy() - judge.predict_proba(scaled)[:, 1]).max() < 0.01


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 100), st.floats(-100, 100))
@settings(max_examples=15, deadline=None)
def test_neither_order_nor_units_matter(seed, scale, shift):
    points = planted(6, 4, gap=10.0, seed=seed)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(10))

    expected = two_groups(points, tied=True).upper[order]

    assert torch.equal(two_groups(points[order] * scale + shift, tied=True).upper, expected)


@pytest.mark.parametrize(
    "points", [torch.zeros(0, 2), torch.tensor([[1.0]]), torch.tensor([[1.0], [9.0]]), torch.full((7, 3), 0.1)]
)
def test_few_or_equal_points_are_one_group(points):
    assert not two_groups(points).upper.any()
    assert len(two_groups(points).upper) == len(points)
    assert chance_of_one(points, torch.Generator().manual_seed(0)) == 1.0


def test_a_clear_split_is_hardly_chance_and_one_gaussian_mostly_is():
    rng = torch.Generator().manual_seed(0)
    alike = [
        chance_of_one(torch.randn(9, 2, generator=rng) @ torch.tensor([[1.0, 1.0], [0.0, 0.3]]), rng, draws=39)
        for _ in range(8)
    ]

    assert chance_of_one(planted(9, 5, 3, gap=30.0), rng, draws=39) <= 0.05
    assert sum(chance <= 0.2 for chance in alike) <= 5  # expected 1.6 of 8; more has a probability of 0.0012
    assert max(alike) > 0.3
