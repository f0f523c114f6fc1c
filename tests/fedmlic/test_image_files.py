import os

import numpy as np
import pytest
from PIL import Image

from fedmlic.disk_options import held_out_counts
from fedmlic.errors import InputError
from fedmlic.image_files import agree_on_sizes, file_sha256, find_parts, fingerprint, list_files, read_headers
from fedmlic.splits import hold_out


def test_parts_are_found_in_any_of_their_places(tmp_path):
    (tmp_path / "coco" / "images" / "val").mkdir(parents=True)
    (tmp_path / "coco" / "a.json").touch()
    parts = (("a.json",), ("val", "images/val"))

    found = find_parts(str(tmp_path), (".", "coco"), parts, "x")

    assert found == [tmp_path / "coco" / "a.json", tmp_path / "coco" / "images" / "val"]
    assert find_parts(str(tmp_path / "coco"), (".", "coco"), parts, "x")[1].samefile(found[1])


def test_the_home_folder_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "data").mkdir()

    assert find_parts("~", (".",), (("data",),), "x") == [tmp_path / "data"]


def test_everything_missing_is_named_for_the_closest_folder(tmp_path):
    (tmp_path / "coco" / "a").mkdir(parents=True)

    with pytest.raises(InputError) as caught:
        find_parts(str(tmp_path), (".", "coco"), (("a",), ("b", "images/b"), ("c",)), "x")

    assert f"got {str(tmp_path / 'coco')!r} without b, c; it holds a. " in str(caught.value)
    with pytest.raises(InputError, match="no such folder"):
        find_parts(str(tmp_path / "none"), (".",), (("a",),), "x")


def test_only_images_are_listed_and_the_order_does_not_count(tmp_path):
    for name in ("b.jpg", "a.PNG", "c.txt", ".DS_Store"):
        (tmp_path / name).write_text(name)
    (tmp_path / "folder.jpg").mkdir()

    found = list_files(tmp_path)

    assert {name: size for name, (size, _) in found.items()} == {"b.jpg": 5, "a.PNG": 5}
    assert fingerprint(found) == fingerprint(dict(reversed(found.items())))
    os.utime(tmp_path / "b.jpg", ns=(1, 1))
    assert fingerprint(found) != fingerprint(list_files(tmp_path))
    assert list_files(tmp_path / "none") == {}


def test_headers(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 4)).save(tmp_path / "a.jpg", exif=exif)
    Image.new("L", (5, 9)).save(tmp_path / "b.jpg")
    Image.new("CMYK", (5, 9)).save(tmp_path / "c.jpg")
    (tmp_path / "d.jpg").write_text("none")

    found = read_headers([tmp_path / name for name in ("a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg")])

    assert found.sizes.tolist() == [[6, 4], [5, 9], [5, 9], [0, 0], [0, 0]]
    assert found.report["modes"] == {"CMYK": 1, "L": 1, "RGB": 1, "unreadable": 2}
    assert found.report["exif_turned"] == 1


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


def test_a_file_is_hashed_whole(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")

    assert file_sha256(tmp_path / "a").startswith("ba7816bf8f01cfea")


@pytest.mark.parametrize("count", [1, 5, 15, 1909])
@pytest.mark.parametrize("fraction", [0, 0.1, 0.25, 0.5])
def test_published_counts_are_divided_as_images_are(count, fraction):
    chosen = int(hold_out(np.arange(count), fraction, 0, "x").sum())

    assert held_out_counts(count, fraction) == {"train": count - chosen, "val": chosen}
