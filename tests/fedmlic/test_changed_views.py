"""Every image is changed by itself, as its stream says, and stays in the range of pixels."""

import pytest
import torch

from fedmlic.changed_views import LIMIT, changed
from fedmlic.errors import InputError
from fedmlic.training import augment, to_float

EVERY = ("flip", "shift", "cutout", "randaugment")


def images(count=6, channels=3, height=12, width=10):
    rng = torch.Generator().manual_seed(1)
    return to_float(torch.randint(0, 256, (count, height, width, channels), generator=rng, dtype=torch.uint8))


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", EVERY)
def test_a_change_is_a_function_of_its_stream_alone(kind, channels):
    given = images(channels=channels)
    kept = given.clone()
    first = changed(given, [kind], stream())
    before = torch.get_rng_state()
    torch.rand(3)

    again = changed(given, [kind], stream())

    assert torch.equal(first, again)
    assert torch.equal(given, kept)
    assert first.shape == given.shape
    assert first.abs().max() <= LIMIT
    assert not torch.equal(first, changed(given, [kind], stream(1)))
    assert (first != given).flatten(1).any(1).sum() >= 2
    torch.set_rng_state(before)


def test_nothing_is_drawn_from_the_global_generator():
    before = torch.get_rng_state()
    changed(images(), EVERY, stream())

    assert torch.equal(before, torch.get_rng_state())


def test_cutout_blanks_a_square_of_half_the_side_in_one_colour():
    given = torch.full((40, 2, 12, 12), 5.0)

    found = changed(given, ["cutout"], stream())

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
    given, one, two = images(), stream(), stream()

    found = changed(given, ["flip", "cutout"], one)

    expected = changed(augment(given, "flip", two), ["cutout"], two)
    assert torch.equal(found, expected)
    assert torch.equal(changed(given, [], one), given)


def test_randaugment_needs_grey_or_three_channels():
    with pytest.raises(InputError, match="1 or 3 channels"):
        changed(images(channels=4), ["randaugment"], stream())
