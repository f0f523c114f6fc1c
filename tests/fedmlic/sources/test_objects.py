import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from fedmlic.dataset import Objects
from fedmlic.sources.objects import (
    agree_on_sizes,
    boxed_objects,
    outside_warnings,
    size_warnings,
    stored_objects,
    turned_boxes,
)


def one(box, area):
    arrays = np.zeros(1, np.int64), np.zeros(1, np.int16), np.array([box], np.float32), np.array([area], np.float32)
    return Objects(*arrays)


@pytest.mark.parametrize(
    ("resize", "box", "area"),
    [
        ("squash", [2, 2, 4, 4], 8),  # half as wide, as high as before
        ("crop", [0, 2, 8, 4], 16),  # the middle 8 of 16 columns
        ("pad", [2, 3, 4, 2], 4),
    ],
)
def test_a_hand_example(resize, box, area):
    """A box that fills half of its area, in a picture of 16 x 8 stored as 8 x 8."""
    found = stored_objects(one([4, 2, 8, 4], 16), np.array([[16.0, 8.0]]), 8, resize)

    assert found.box.tolist() == [box]
    assert found.area.tolist() == [area]


def test_a_box_without_extent_and_an_area_beyond_its_box():
    sizes = np.array([[8.0, 8.0]])

    assert stored_objects(one([1, 1, 0, 3], 0), sizes, 8, "squash").area.tolist() == [0]
    assert stored_objects(one([1, 1, 2, 2], 100), sizes, 8, "squash").area.tolist() == [4]


@settings(max_examples=200, deadline=None)
@given(
    st.tuples(*[st.floats(-20, 700, width=32)] * 2, *[st.floats(0, 700, width=32)] * 2),
    st.tuples(st.integers(1, 640), st.integers(1, 640)),
    st.integers(8, 500),
    st.sampled_from(["squash", "crop", "pad"]),
)
def test_boxes_stay_inside(box, size, side, resize):
    found = stored_objects(one(box, box[2] * box[3]), np.array([size], float), side, resize)
    x, y, w, h = found.box[0]

    assert min(x, y, w, h, found.area[0]) >= 0
    assert x + w <= side
    assert y + h <= side


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_turn_as_pillow_turns_pictures(orientation):
    pixels = np.zeros((12, 20), np.uint8)
    pixels[2:5, 4:11] = 255
    picture = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    picture.save(file, "TIFF", exif=exif)
    turned = ImageOps.exif_transpose(Image.open(file))

    box, size = turned_boxes(np.array([[4, 2, 7, 3]], np.float32), np.array([[20.0, 12.0]]), np.array([orientation]))
    x, y, w, h = box[0].astype(int)

    assert tuple(size[0]) == turned.size
    found = np.asarray(turned)
    assert found[y : y + h, x : x + w].min() == 255
    assert (found > 0).sum() == w * h


def test_sizes_that_differ():
    """Equal, saved at half size, other proportions, not said, unreadable, neither."""
    said = np.array([[64, 48], [64, 48], [64, 48], [0, 0], [64, 48], [0, 0]], float)
    stored = np.array([[64, 48], [32, 24], [48, 64], [7, 5], [0, 0], [0, 0]], float)

    sizes, report = agree_on_sizes(said, stored, list("abcdef"))

    assert sizes.tolist() == [[64, 48], [64, 48], [48, 64], [7, 5], [64, 48], [1, 1]]
    assert report == {"resized_files": 1, "other_proportions": 1, "other_proportions_first": ["c"]}


def test_sizes_rounded_to_pixels_are_the_same_proportions():
    said = np.array([[640.0, 427.0]])

    assert agree_on_sizes(said, np.array([[224.0, 149.0]]), ["a"])[1]["resized_files"] == 1


def test_boxes_alone_have_the_area_that_is_stored_of_them():
    """A picture of 8 x 4 cropped to its middle 4 x 4 and doubled: the second box loses half of its width."""
    box = np.array([[3, 1, 2, 1], [0, 0, 4, 2], [0, 0, 1, 1]], np.float32)
    sizes = np.array([[8.0, 4.0]] * 3)

    found = boxed_objects(np.array([0, 0, 1]), np.array([2, 0, 1]), box, sizes, 8, "crop")

    assert found.box.tolist() == [[2, 2, 4, 2], [0, 0, 4, 4], [0, 0, 0, 2]]
    assert found.area.tolist() == [8, 16, 0]
    assert found.label.dtype == np.int16


def test_boxes_outside_of_their_images_are_a_warning():
    sizes = np.array([[10.0, 20.0], [5.0, 5.0]])
    box = np.array([[9, 0, 5, 5], [10, 0, 1, 1], [0, 20, 1, 1], [-3, 0, 2, 1], [-3, 0, 4, 1], [0, 0, 0, 0]], np.float32)
    outside = []

    for row, one in enumerate(box):
        objects = Objects(np.array([0]), np.zeros(1, np.int16), one[None], np.ones(1, np.float32))
        if outside_warnings(objects, sizes, ["a", "b"]):
            outside.append(row)

    assert outside == [1, 2, 3]
    every = Objects(np.array([0, 1, 1]), np.zeros(3, np.int16), box[:3], np.ones(3, np.float32))
    assert outside_warnings(every, sizes, ["a", "b"]) == ["boxes wholly outside of their images: 2, first in b"]
    assert outside_warnings(every.take(np.array([0])), sizes, ["a", "b"]) == []


def test_other_proportions_are_a_warning():
    said, stored = np.array([[10.0, 20.0], [5.0, 5.0]]), np.array([[20.0, 40.0], [5.0, 9.0]])

    _, report = agree_on_sizes(said, stored, ["a", "b"])

    assert size_warnings(report) == ["images of other proportions than their annotation says: 1, first b"]
    assert size_warnings(agree_on_sizes(said, said, ["a", "b"])[1]) == []
