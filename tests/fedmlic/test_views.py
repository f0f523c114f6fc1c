"""Weak and strong views: from the stream alone, within range, and what is changed is what should be."""

import pytest
import torch

from fedmlic.errors import InputError
from fedmlic.training import augment, to_float
from fedmlic.views import changed, strong_view, two_views, weak_view

CHANGES = ("flip", "shift", "colours", "cutout", "randaugment")


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


def stored(count=6, channels=3, height=12, width=10):
    return to_float(torch.randint(0, 256, (count, height, width, channels), generator=rng(), dtype=torch.uint8))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", CHANGES)
def test_a_change_is_a_function_of_its_stream_alone(kind, channels):
    given = stored(channels=channels)
    kept = given.clone()
    first = changed(given, [kind], rng())
    torch.rand(3)

    again = changed(given, [kind], rng())

    assert torch.equal(first, again)
    assert torch.equal(given, kept)
    assert first.shape == given.shape
    assert first.abs().max() <= 2
    assert not torch.equal(first, changed(given, [kind], rng(1)))
    assert (first != given).flatten(1).any(1).sum() >= 2


def test_nothing_is_drawn_from_the_global_generator():
    before = torch.get_rng_state()
    changed(stored(), CHANGES, rng())

    assert torch.equal(before, torch.get_rng_state())


def test_cutout_blanks_a_square_of_half_the_side_in_one_colour():
    given = torch.full((40, 2, 12, 12), 5.0)

    found = changed(given, ["cutout"], rng())

    for image in found:
        blank = (image != 5.0).all(0)
        rows, columns = blank.any(1).nonzero().flatten(), blank.any(0).nonzero().flatten()
        assert blank.sum() == len(rows) * len(columns)
        assert 2 <= len(rows) <= 6
        assert 2 <= len(columns) <= 6
        assert len(image[:, blank].unique(dim=1).T) == 1
    sizes = [(image[0] != 5.0).sum() for image in found]
    assert max(sizes) == 36


def test_flips_are_those_of_the_experiment_and_changes_come_one_after_another():
    given, one, two = stored(), rng(), rng()

    found = changed(given, ["flip", "cutout"], one)

    expected = changed(augment(given, "flip", two), ["cutout"], two)
    assert torch.equal(found, expected)
    assert torch.equal(changed(given, [], one), given)


def test_randaugment_needs_grey_or_three_channels():
    with pytest.raises(InputError, match="1 or 3 channels"):
        changed(stored(channels=4), ["randaugment"], rng())
