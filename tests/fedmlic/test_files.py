import os
import shutil

from fedmlic.files import IMAGES, file_sha256, find_files, list_files, stamps_of, stamps_sha256


def _fingerprint(folder, names):
    return stamps_sha256(stamps_of((name, folder / name) for name in names))


def test_files_are_found_by_suffix_and_names_doubles(tmp_path):
    for name in ("a/x.png", "a/y.PNG", "a/z.txt", "b/x.png", "b/w.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    found, double = find_files([tmp_path / "a", tmp_path / "none", tmp_path / "b"], (".png", ".jpg"))

    assert {name: path.parent.name for name, path in found.items()} == {"x.png": "a", "y.PNG": "a", "w.jpg": "b"}
    assert len(double) == 1
    assert "'x.png' lies in" in double[0]


def test_a_fingerprint_follows_names_sizes_and_times_but_not_the_place(tmp_path):
    first = tmp_path / "first"
    first.mkdir()
    for name in "ab":
        (first / name).write_text(name)
    second = shutil.copytree(first, tmp_path / "second")
    expected = _fingerprint(first, "ab")

    assert _fingerprint(second, "ba") == expected
    assert _fingerprint(second, "a") != expected
    os.utime(second / "a", ns=(1, 1))
    assert _fingerprint(second, "ab") != expected
    (second / "a").write_text("longer")
    assert _fingerprint(second, "ab") != expected


def test_only_images_are_listed_and_the_order_does_not_count(tmp_path):
    for name in ("b.jpg", "a.PNG", "c.txt", ".DS_Store"):
        (tmp_path / name).write_text(name)
    (tmp_path / "folder.jpg").mkdir()

    found = list_files(tmp_path, suffixes=IMAGES)

    assert {name: size for name, (size, _) in found.items()} == {"b.jpg": 5, "a.PNG": 5}
    assert stamps_sha256(found) == stamps_sha256(dict(reversed(found.items())))
    os.utime(tmp_path / "b.jpg", ns=(1, 1))
    assert stamps_sha256(found) != stamps_sha256(list_files(tmp_path, suffixes=IMAGES))
    assert list_files(tmp_path / "none") == {}


def test_folders_below_are_entered_as_deep_as_asked(tmp_path):
    for name in ("a.jpg", "b/c.jpg", "b/d.txt", "b/e/f.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    assert set(list_files(tmp_path)) == {"a.jpg"}
    assert set(list_files(tmp_path, depth=1)) == {"a.jpg", "b/c.jpg", "b/d.txt"}
    assert set(list_files(tmp_path, depth=2, suffixes=IMAGES)) == {"a.jpg", "b/c.jpg", "b/e/f.jpg"}


def test_named_files_count_and_one_without_a_stamp_is_left_out():
    stamps = {"a": (1, 2), "b/c": (3, 4)}

    assert stamps_sha256(stamps, ["b/c", "none"]) == stamps_sha256({"b/c": (3, 4)})
    assert stamps_sha256(stamps, ["b/c", "a"]) == stamps_sha256(stamps)


def test_a_file_is_hashed_whole(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")

    assert file_sha256(tmp_path / "a").startswith("ba7816bf8f01cfea")
