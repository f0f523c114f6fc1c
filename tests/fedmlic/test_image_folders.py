import os
import shutil

import numpy as np
import pytest
from PIL import Image

from fedmlic.errors import InputError
from fedmlic.image_folders import existing_folder, fingerprint, headers, scan


def test_scan_finds_files_by_suffix_and_names_doubles(tmp_path):
    for name in ("a/x.png", "a/y.PNG", "a/z.txt", "b/x.png", "b/w.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    found, double = scan([tmp_path / "a", tmp_path / "none", tmp_path / "b"], [".png", ".jpg"])

    assert {name: path.parent.name for name, path in found.items()} == {"x.png": "a", "y.PNG": "a", "w.jpg": "b"}
    assert len(double) == 1
    assert "'x.png' lies in" in double[0]


def test_a_fingerprint_follows_names_sizes_and_times_but_not_the_place(tmp_path):
    first = tmp_path / "first"
    first.mkdir()
    for name in "ab":
        (first / name).write_text(name)
    second = shutil.copytree(first, tmp_path / "second")
    expected = fingerprint("ab", first.joinpath)

    assert fingerprint("ba", second.joinpath) == expected
    assert fingerprint("a", second.joinpath) != expected
    os.utime(second / "a", ns=(1, 1))
    assert fingerprint("ab", second.joinpath) != expected
    (second / "a").write_text("longer")
    assert fingerprint("ab", second.joinpath) != expected


def test_headers_count_modes_turned_and_unreadable_files(tmp_path):
    grey = Image.fromarray(np.zeros((4, 4), np.uint8))
    grey.save(tmp_path / "l.png")
    grey.convert("RGBA").save(tmp_path / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    grey.convert("RGB").save(tmp_path / "t.jpg", exif=exif)
    (tmp_path / "bad.png").write_text("no image")

    report = headers(sorted(tmp_path.iterdir()))

    assert report["modes"] == {"L": 1, "RGB": 1, "RGBA": 1, "unreadable": 1}
    assert report["exif_turned"] == 1


def test_the_root_must_be_a_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))

    assert existing_folder("~", "some", "t.csv") == tmp_path
    with pytest.raises(InputError, match=r"root of data set some to be a folder, got '~/none'"):
        existing_folder("~/none", "some", "t.csv")
