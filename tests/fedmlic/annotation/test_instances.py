"""Sizes and places of labels against a plain loop over the instances."""

import numpy as np
import pytest

from fedmlic.annotation.instances import centre_distances, need_objects, smallest, sums
from fedmlic.dataset import Objects
from fedmlic.errors import InputError
from fedmlic.regime import Assignment


def assignment_of(num_images=7, num_labels=4, size=(40, 60)):
    rng = np.random.default_rng(3)
    row = np.sort(rng.integers(0, num_images, 30))
    label = rng.integers(0, num_labels - 1, 30).astype(np.int16)  # the last label has no box
    box = (rng.random((30, 4)) * 20).astype(np.float32)
    objects = Objects(row, label, box, box[:, 2] * box[:, 3])
    keys = np.arange(num_images, dtype=np.uint64)
    return Assignment(np.ones((num_images, num_labels), np.int8), keys, objects, 0, 0, (), size)


def test_sums_and_smallest_are_those_of_a_plain_loop():
    one = assignment_of()
    added, least = np.zeros((7, 4)), np.full((7, 4), np.inf)
    for row, label, area in zip(one.objects.row, one.objects.label, one.objects.area, strict=True):
        added[row, label] += area
        least[row, label] = min(least[row, label], area)

    assert np.allclose(sums(one, one.objects, one.objects.area), added)
    assert np.array_equal(smallest(one, one.objects, one.objects.area), least)


def test_distances_are_measured_between_centres():
    """Images are 40 high and 60 wide: the centre is at x = 30, y = 20."""
    box = np.array([[28, 18, 4, 4], [0, 0, 0, 0], [33, 24, 0, 0]], np.float32)
    objects = Objects(np.zeros(3, np.int64), np.zeros(3, np.int16), box, np.ones(3, np.float32))

    assert centre_distances(assignment_of(), objects) == pytest.approx([0, np.hypot(30, 20), 5])


def test_no_boxes_or_no_image_size_is_a_clear_error():
    for one in (Assignment(np.ones((1, 1), np.int8), np.zeros(1, np.uint64), None, 0, 0), assignment_of(size=(0, 0))):
        with pytest.raises(InputError, match=r"boxes of its objects for someone, got none\. Use another\."):
            need_objects(one, "someone", "Use another.")
