"""Weak and strong views: from the stream alone, within range, and what is changed is what should be."""

import torch

from fedmlic.training import augment
from fedmlic.views import strong_view, two_views, weak_view


def images(count=6, channels=3, side=16):
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(1)).clamp(-2, 2)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_views_are_a_function_of_their_stream():
    torch.rand(3)
    weak, strong = two_views(images(), rng())
    again = two_views(images(), rng())

    assert torch.equal(weak, again[0])
    assert torch.equal(strong, again[1])
    assert not torch.equal(strong, two_views(images(), rng(1))[1])
    assert torch.equal(weak, augment(images(), "flip+shift", rng()))


def test_without_colours_and_cutout_the_strong_view_is_a_weak_one():
    torch.testing.assert_close(strong_view(images(), rng(), jitter=0.0, cutout=0.0), weak_view(images(), rng()))


def test_cutout_blanks_a_square_per_image_of_each_size():
    whole = torch.full((40, 1, 16, 16), 1.0)

    blank = (strong_view(whole, rng(), jitter=0.0, cutout=0.5) == 0).sum(dim=(1, 2, 3))

    assert blank.max() == 64
    assert blank.min() >= 16, "a quarter is left where the centre is in a corner"
    assert len(set(blank.tolist())) > 3
    one_row = strong_view(torch.full((1, 1, 8, 32), 1.0), rng(), jitter=0.0, cutout=1.0)
    assert (one_row == 0).any()


def test_colours_stay_within_bytes_and_grey_images_stay_grey():
    strong = strong_view(images(channels=3), rng(), jitter=1.0, cutout=0.0)
    assert strong.abs().max() <= 2
    grey = images(channels=1).expand(-1, 3, -1, -1)
    found = strong_view(grey, rng())
    torch.testing.assert_close(found[:, 0], found[:, 1])
    assert strong_view(images(channels=1), rng()).shape == (6, 1, 16, 16)


def test_a_batch_of_one_and_none():
    assert strong_view(images(1), rng()).shape == (1, 3, 16, 16)
    assert strong_view(images(0), rng()).shape == (0, 3, 16, 16)
