"""Weak and strong views: from the stream alone, within range, and what is changed is what should be."""

import numpy as np
import pytest
import torch
from hypothesis import given as drawn
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.ndimage import map_coordinates

from fedmlic.augmentation import CHANGES, changes_of
from fedmlic.errors import InputError
from fedmlic.experiment import Experiment
from fedmlic.pixel_scale import to_float
from fedmlic.views import augment, changed, strong_view, two_views, weak_view


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


def test_a_strong_view_with_randaugment_has_no_other_colours():
    given, one, two = stored(), rng(), rng()

    found = strong_view(given, one, randaugment=True, cutout=0.0)

    weak = weak_view(given, two)
    torch.rand(2, len(given), 1, generator=two)  # where a square would be
    assert torch.equal(found, changed(weak, ["randaugment"], two))
    assert not torch.equal(found, strong_view(given, rng(), randaugment=True))


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


@pytest.mark.parametrize(("height", "width"), [(40, 40), (30, 60), (64, 20)])
def test_a_crop_is_a_part_of_the_image_at_its_size(height, width):
    """Coordinates as pixels: what is seen is where the part began and ended, and its area and shape are in range."""
    rows = torch.arange(height).float()[:, None].expand(height, width)
    columns = torch.arange(width).float().expand(height, width)
    given = torch.stack([rows, columns]).expand(200, 2, height, width)

    found = changed(given, ["crop"], rng()).double()

    middle = found[:, :, height // 4 : -(height // 4), width // 4 : -(width // 4)]  # edges repeat
    steps = middle.diff(dim=2)[:, 0].mean(dim=(1, 2)), middle.diff(dim=3)[:, 1].mean(dim=(1, 2))
    high, wide = steps[0] * height, steps[1] * width
    assert (middle[:, 0].diff(dim=1).amax(dim=(1, 2)) - middle[:, 0].diff(dim=1).amin(dim=(1, 2))).max() < 1e-3
    # A part that would be larger than a side is cut at it.
    whole = (high > height - 1e-3) | (wide > width - 1e-3)
    area = high * wide / (height * width)
    assert (area <= 1 + 1e-5).all()
    assert (area[~whole] >= 0.7 - 1e-4).all()
    assert ((wide / high)[~whole] >= 3 / 4 - 1e-4).all()
    assert ((wide / high)[~whole] <= 4 / 3 + 1e-4).all()
    assert (found >= 0).all()
    assert found[:, 0].max() <= height - 1
    assert found[:, 1].max() <= width - 1
    assert area.std() > 0.02


def test_a_crop_is_interpolated_between_its_four_pixels():
    """An image of coordinates, cut in the same way, says where every pixel comes from; SciPy interpolates there."""
    images, coordinates = stored(1, 3, 20, 26), np.meshgrid(np.arange(20.0), np.arange(26.0), indexing="ij")
    for seed in range(20):
        found = changed(images, ["crop"], rng(seed))

        where = changed(torch.tensor(np.stack(coordinates)[None]).float(), ["crop"], rng(seed))[0].double().numpy()
        expected = [map_coordinates(image.double().numpy(), where, order=1, mode="nearest") for image in images[0]]
        np.testing.assert_allclose(found[0].numpy(), np.stack(expected), atol=2e-5)


@drawn(st.lists(st.sampled_from(CHANGES), min_size=1, unique=True))
def test_the_setting_says_them_in_order(names):
    text = "+".join(names)

    assert changes_of(text) == tuple(names)
    assert Experiment(augmentation=text).augmentation == text
    one, two = rng(), rng()
    given = stored(2)
    for name in names:
        given = changed(given, [name], two)
    assert torch.equal(augment(stored(2), text, one), given)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "Known: colours"),
        ("flop", "Did you mean 'flip'"),
        ("none+flip", "'none' or changes joined by"),
        ("flip,shift", "joined by"),
        ("flip+shift+flip", "once"),
    ],
)
def test_settings_that_name_no_changes(text, problem):
    with pytest.raises(InputError, match=problem):
        changes_of(text)
    with pytest.raises(ValidationError, match="Expected"):
        Experiment(augmentation=text)


def test_randaugment_needs_grey_or_three_channels():
    with pytest.raises(InputError, match="1 or 3 channels"):
        changed(stored(channels=4), ["randaugment"], rng())
