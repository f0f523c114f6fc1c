"""Client sizes against a plain search, and against the moments of their distributions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmlic.errors import InputError
from fedmlic.partition import Population
from fedmlic.partitions.quantity import _sizes
from fedmlic.seeds import stream
from fedmlic.spec import build


def sizes_of(text, num_images, num_clients, seed=0):
    population = Population(np.zeros((num_images, 2), np.int8), np.full(num_images, -1))
    partition = build("partition", text)(population, num_clients, stream(seed, "partition"))
    assert len(partition.rows) == num_images
    return partition.sizes


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.integers(1, 5), st.integers(0, 300))
def test_sizes_are_the_shares_lifted_to_the_minimum_and_rounded(weights, min_images, more):
    weights = np.array(weights)
    weights[0] = 1
    num_images = len(weights) * min_images + more
    found, num_lifted = _sizes(weights, num_images, min_images)

    low, high = 0.0, float(num_images)  # the common factor by bisection
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(middle * weights, min_images).sum() < num_images else (low, middle)
    exact = np.maximum(high * weights, min_images)
    assert found.sum() == num_images
    assert found.min() >= min_images
    assert np.abs(found - exact).max() < 1 + 1e-6
    if not more:  # all are at the minimum, whatever the factor
        return
    near = int((np.abs(high * weights - min_images) < 1e-6).sum())  # rounding decides these
    assert abs(num_lifted - int((high * weights < min_images).sum())) <= near


def test_zipf_sizes_fall_with_the_rank_to_the_power():
    sizes = np.sort(sizes_of("quantity(rule='zipf_mandelbrot', exponent=1.5, shift=2)", 100_000, 50))[::-1]
    expected = (np.arange(1, 51) + 2.0) ** -1.5

    assert np.abs(sizes - 100_000 * expected / expected.sum()).max() <= 1


def test_the_rank_of_a_client_is_random():
    largest = {int(sizes_of("quantity(rule='zipf_mandelbrot')", 100, 5, seed).argmax()) for seed in range(60)}

    assert largest == set(range(5))


def test_log_sizes_have_the_standard_deviation_that_was_asked_for():
    sizes = sizes_of("quantity(sigma=0.7)", 2_000_000, 2000)

    assert np.log(sizes).std() == pytest.approx(0.7, abs=4 * 0.7 / np.sqrt(2 * 2000))


def test_dirichlet_sizes_have_the_second_moment_of_the_distribution():
    """E[sum of squared shares] = (alpha + 1) / (K alpha + 1)."""
    squares = np.array([((sizes_of("quantity(rule='dirichlet')", 10_000, 8, s) / 1e4) ** 2).sum() for s in range(300)])

    assert abs(squares.mean() - 1.5 / 5) < 4 * squares.std() / np.sqrt(300)


@pytest.mark.parametrize("text", ["quantity(sigma=0)", "quantity(rule='zipf_mandelbrot', exponent=0)"])
def test_no_skew_means_equal_sizes(text):
    sizes = sizes_of(text, 103, 10)

    assert sorted(sizes.tolist()) == [10] * 7 + [11] * 3


@pytest.mark.parametrize(
    "text", ["quantity(rule='zipf_mandelbrot', exponent=50)", "quantity(rule='dirichlet', alpha=1e-9)"]
)
def test_the_most_uneven_sizes_still_respect_the_minimum(text):
    sizes = np.sort(sizes_of(f"{text[:-1]}, min_images=3)", 1000, 20))

    assert sizes[:-1].tolist() == [3] * 19


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("quantity(rule='dirichlet', sigma=2)", "sigma of quantity to be given with rule='lognormal' only"),
        ("quantity(alpha=0.1)", "alpha of quantity to be given with rule='dirichlet' only"),
        ("quantity(shift=1)", "shift of quantity to be given with rule='zipf_mandelbrot' only"),
        ("quantity(rule='zipf')", "rule of partition quantity"),
        ("quantity(sigma=-1)", "greater than or equal to 0"),
        ("quantity(min_images=51)", "100 training images, got 2 with min_images = 51"),
    ],
)
def test_bad_parameters_are_explained(text, message):
    with pytest.raises(InputError, match=message):
        sizes_of(text, 100, 2)
