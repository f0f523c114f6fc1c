"""Patches cover the image, and the pivot is what it is said to be."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fedmlic.errors import InputError
from fedmlic.patches import check_small_patches, cut, pivot


@settings(deadline=None)
@given(st.integers(1, 23), st.integers(1, 23), st.integers(1, 6))
def test_patches_are_equal_in_size_cover_everything_and_are_in_reading_order(height, width, grid):
    if min(height, width) < grid:
        with pytest.raises(InputError, match="grid to be at most the shorter side"):
            cut(torch.zeros(1, 1, height, width), grid)
        return
    places = torch.arange(float(height * width)).view(1, 1, height, width)

    patches = cut(places, grid, upsample=False)

    assert patches.shape == (grid * grid, 1, 1, -(-height // grid), -(-width // grid))
    assert set(patches.flatten().tolist()) == set(places.flatten().tolist())
    corners = patches[:, 0, 0, 0, 0]
    assert torch.equal(corners, corners.sort().values)
    if height % grid == width % grid == 0:
        assert patches.numel() == places.numel()


def test_a_divisible_image_is_cut_as_numpy_cuts_it():
    images = torch.rand(2, 3, 6, 9)
    expected = np.stack([part for rows in np.split(images.numpy(), 3, axis=2) for part in np.split(rows, 3, axis=3)])

    assert np.array_equal(cut(images, 3, upsample=False).numpy(), expected)


def test_patches_are_resized_as_pillow_resizes_them():
    images = torch.rand(1, 1, 10, 14)

    found = cut(images, 2)[3, 0, 0]

    corner = Image.fromarray(images[0, 0, 5:, 7:].numpy())
    expected = np.asarray(corner.resize((14, 10), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_one_patch_is_the_image():
    images = torch.rand(2, 1, 5, 4)

    assert torch.equal(cut(images, 1)[0], images)


def test_the_pivot_by_a_plain_loop():
    rng = np.random.default_rng(0)
    attention, evidence = rng.normal(size=(2, 4, 3, 5))
    expected = np.zeros((3, 5))
    for image in range(3):
        for label in range(5):
            weights = [np.exp(attention[patch, image, label] / 0.7) for patch in range(4)]
            values = [evidence[patch, image, label] for patch in range(4)]
            expected[image, label] = sum(w * e for w, e in zip(weights, values, strict=True)) / sum(weights)

    found = pivot(torch.from_numpy(attention), torch.from_numpy(evidence), 0.7)

    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


@settings(deadline=None, max_examples=30)
@given(st.permutations(range(4)), st.integers(0, 99))
def test_identities_of_the_pivot(order, seed):
    rng = torch.Generator().manual_seed(seed)
    attention, evidence = torch.randn(2, 4, 2, 3, generator=rng, dtype=torch.float64)

    torch.testing.assert_close(pivot(attention[order], evidence[order]), pivot(attention, evidence))
    torch.testing.assert_close(pivot(attention + 7, evidence), pivot(attention, evidence))
    torch.testing.assert_close(pivot(torch.full_like(attention, 2.5), evidence), evidence.mean(0))
    torch.testing.assert_close(pivot(attention, evidence, 1e9), evidence.mean(0))
    best = evidence.gather(0, attention.argmax(0, keepdim=True))[0]
    torch.testing.assert_close(pivot(attention, evidence, 1e-9), best)
    assert torch.equal(pivot(attention[:1], evidence[:1]), evidence[0])


def test_a_network_that_does_not_take_small_patches_is_refused():
    def picky(images):
        assert images.shape[-1] >= 8, "too small"
        return F.avg_pool2d(images, 8)

    check_small_patches(picky, (16, 16, 3), 2)
    with pytest.raises(InputError, match=r"patches of 6 x 6 pixels.*too small"):
        check_small_patches(picky, (16, 16, 3), 3)
