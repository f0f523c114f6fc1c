import pytest

from fedmlic.errors import InputError
from fedmlic.sources.place import find_parts, source_root


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


def test_the_root_must_be_a_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))

    assert source_root("some", "~", "t.csv") == tmp_path
    with pytest.raises(InputError, match=r"root of data set some to be a folder, got '~/none'"):
        source_root("some", "~/none", "t.csv")
