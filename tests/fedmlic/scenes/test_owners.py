"""Owners: sizes by their law, mixtures, preferences, styles."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmlic.scenes.options import resolve
from fedmlic.scenes.owners import owners, sizes
from fedmlic.scenes.style import recoloured, styles


def test_sizes_follow_zipf_mandelbrot():
    """All 51,414 owners of the FLAIR-like world: quantiles of the law, and FLAIR's published numbers."""
    options = resolve("flair-like", {})
    found = sizes(options, np.arange(51_414))
    terms = (np.arange(1, 4152) + 1.5) ** -2.2
    expected = np.cumsum(terms) / terms.sum()
    empirical = np.searchsorted(np.sort(found), np.arange(1, 4152), side="right") / 51_414

    assert np.abs(empirical - expected).max() < 1.95 / np.sqrt(51_414)  # Kolmogorov-Smirnov, 0.1 %
    assert np.median(found) == 2
    assert abs(found.mean() - 8.35) < 1.5
    assert (found.min(), found.max() <= 4151) == (1, True)


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 60),
    low=st.integers(1, 20),
    room=st.integers(0, 100),
    share=st.floats(0, 1),
    law=st.sampled_from(["zipf-mandelbrot", "lognormal", "constant"]),
)
def test_sizes_add_up_within_their_limits(count, low, room, share, law):
    total = count * low + round(share * count * room)
    knobs = {"min_size": low, "max_size": low + room, "num_images": total, "owner_sizes": law, "population": count}

    found = sizes(resolve("small", knobs), np.arange(count))

    assert found.sum() == total
    assert low <= found.min() <= found.max() <= low + room
    if law == "constant":
        assert found.max() - found.min() <= 1


def test_lognormal_sizes_have_the_asked_spread():
    knobs = {"owner_sizes": "lognormal", "owner_spread": 0.7, "num_images": 400_000, "population": 2000}
    logs = np.log(sizes(resolve("small", {**knobs, "min_size": 1, "max_size": 100_000}), np.arange(2000)))

    assert abs(logs.std() - 0.7) < 0.05


def test_mixtures_and_preferences_have_their_moments():
    options = resolve("small", {"population": 3000, "num_images": 60_000, "context_alpha": 0.25, "num_contexts": 4})
    found = owners(options, 20)

    assert np.allclose(found.mixture.sum(axis=1), 1)
    assert np.abs(found.mixture.mean(axis=0) - 0.25).max() < 0.03
    assert abs(found.mixture.var(axis=0).mean() - 0.25 * 0.75 / 2) < 0.01  # a (a0 - a) / (a0^2 (a0 + 1)), a0 = 1
    assert abs(found.preference.std() - 0.5) < 0.01
    assert abs(found.preference.mean()) < 0.02


def test_an_owner_is_the_same_whoever_else_is_drawn():
    few, many = (
        owners(resolve("small", {"population": 200, "num_owners": n, "num_images": 1000}), 20) for n in (7, 90)
    )
    places = np.searchsorted(many.number, few.number)

    assert (many.number[places] == few.number).all()
    assert (many.mixture[places] == few.mixture).all()
    assert (many.preference[places] == few.preference).all()


# Styles


def test_no_style_changes_nothing():
    options = resolve("small", {"style_strength": 0.0})
    style = styles(options, np.arange(5), np.arange(5, dtype=np.uint64))
    colours = np.random.default_rng(0).random((5, 2, 3))

    assert np.allclose(recoloured(style, np.arange(5), colours, 3), colours, atol=1e-6)
    assert (style.blur == 0).all()
    assert (style.noise == options.noise).all()


def test_a_style_is_affine_and_keeps_grey_grey():
    """So that recolouring before painting equals recolouring every pixel afterwards."""
    options = resolve("small", {"style_strength": 1.0})
    style = styles(options, np.arange(6), np.arange(6, dtype=np.uint64))._replace(offset=np.zeros((6, 3)))
    rng = np.random.default_rng(1)
    first, second, share = rng.random((6, 3)), rng.random((6, 3)), rng.random((6, 1))

    def change(colours):
        return recoloured(style, np.arange(6), colours, 3)

    mixed = share * change(first) + (1 - share) * change(second)
    assert np.allclose(mixed, change(share * first + (1 - share) * second), atol=1e-5)
    assert np.ptp(change(np.full((6, 3), 0.5)), axis=1).max() < 1e-6
    assert np.abs(change(first) - first).max() > 0.05


def test_images_of_nobody_have_styles_of_their_own():
    keys = np.arange(2000, dtype=np.uint64)
    nobody = np.full(2000, -1)
    usual = styles(resolve("small", {}), nobody, keys)
    owned = styles(resolve("small", {}), np.arange(2000), keys)
    unseen = styles(resolve("small", {"test": "unseen-styles"}), nobody, keys)
    spread = [np.std(style.matrix, axis=0).mean() for style in (usual, owned, unseen)]

    assert abs(spread[0] / spread[1] - 1) < 0.1
    assert spread[2] > 2 * spread[0]


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_is_brightness(channels):
    style = styles(resolve("small", {"style_strength": 0.0}), np.arange(2), np.arange(2, dtype=np.uint64))
    found = recoloured(style, np.arange(2), np.array([[1.0, 0, 0], [0, 1.0, 0]]), channels)

    assert found.shape == (2, channels)
    if channels == 1:
        assert np.allclose(found[:, 0], [0.299, 0.587])
