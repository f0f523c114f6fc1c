"""What every kind of image file becomes, against pixels that are known before it is written.

Expected pixels never come from ``fedmlic.images``: they are the array that was drawn, or for
lossy and resized files what Pillow gives in another way.
"""

import io
import os

import numpy as np
import pytest
from PIL import Image

from fedmlic.errors import InputError
from fedmlic.images import decode, read_images

SIDE = 32
GRADIENT = np.add.outer(np.arange(SIDE) * 4, np.arange(SIDE) * 4).clip(0, 255).astype(np.uint8)
"""A grey ramp, darkest at the top left."""

COLOUR = np.stack([GRADIENT, GRADIENT[::-1], np.full_like(GRADIENT, 90)], axis=-1)


def saved(path, picture, **options):
    """Write a picture or an array and return its path."""
    picture = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    picture.save(path, **options)
    return path


def stored(path, channels=3, size=SIDE, resize="squash", **options):
    """The bytes a corpus would hold, as signed numbers."""
    return decode(path, size, channels, resize, **options).astype(int)


def grey_of(pixels):
    """Luma as Pillow defines it (ITU-R 601), computed by hand."""
    return np.rint(pixels.astype(float) @ [0.299, 0.587, 0.114])


# Files that keep every value


def test_rgb_png(tmp_path):
    path = saved(tmp_path / "x.png", COLOUR)

    assert (stored(path) == COLOUR).all()
    assert np.abs(stored(path, channels=1)[..., 0] - grey_of(COLOUR)).max() <= 1


def test_grey_png(tmp_path):
    path = saved(tmp_path / "x.png", GRADIENT)

    assert (stored(path, channels=1)[..., 0] == GRADIENT).all()
    assert (stored(path) == GRADIENT[..., None]).all()


def test_palette_png(tmp_path):
    """Six colours, addressed by number: the numbers must not leak into the pixels."""
    palette = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9], [200, 100, 0], [255, 255, 255]], np.uint8)
    places = np.random.default_rng(0).integers(0, 6, (SIDE, SIDE)).astype(np.uint8)
    picture = Image.frombytes("P", (SIDE, SIDE), places.tobytes())
    picture.putpalette(palette.tobytes())
    path = saved(tmp_path / "x.png", picture)

    assert (stored(path) == palette[places]).all()


def test_palette_png_with_a_transparent_colour(tmp_path):
    places = np.zeros((SIDE, SIDE), np.uint8)
    places[:, 16:] = 1
    picture = Image.frombytes("P", (SIDE, SIDE), places.tobytes())
    picture.putpalette([250, 250, 250, 10, 200, 30])
    path = saved(tmp_path / "x.png", picture, transparency=0)

    assert (stored(path)[:, :16] == 0).all()
    assert (stored(path)[:, 16:] == [10, 200, 30]).all()


@pytest.mark.parametrize("alpha", [0, 51, 128, 255])
def test_rgba_png_lies_on_black(tmp_path, alpha):
    """Opaque files (ChestX-ray14 has some) keep their values; others are dimmed by their alpha."""
    path = saved(tmp_path / "x.png", np.concatenate([COLOUR, np.full((SIDE, SIDE, 1), alpha, np.uint8)], axis=-1))

    assert np.abs(stored(path) - COLOUR * (alpha / 255)).max() <= 1


def test_grey_with_alpha(tmp_path):
    alpha = np.where(np.arange(SIDE) < 16, 0, 255).astype(np.uint8)
    picture = Image.fromarray(GRADIENT)
    picture.putalpha(Image.fromarray(np.tile(alpha, (SIDE, 1))))
    path = saved(tmp_path / "x.png", picture)

    assert Image.open(io.BytesIO(path.read_bytes())).mode == "LA"
    assert (stored(path, channels=1)[..., 0] == np.where(alpha > 0, GRADIENT, 0)).all()


def test_sixteen_bit_png_is_scaled(tmp_path):
    deep = GRADIENT.astype(np.uint16) * 257
    path = saved(tmp_path / "x.png", deep)

    assert Image.open(io.BytesIO(path.read_bytes())).mode == "I;16"
    assert (stored(path, channels=1)[..., 0] == GRADIENT).all()
    assert (stored(path) == GRADIENT[..., None]).all()


def test_sixteen_bits_between_two_grey_values_are_rounded(tmp_path):
    deep = np.full((SIDE, SIDE), 100 * 257, np.uint16)
    deep[:16] += 200  # nearer to 101 * 257

    assert np.unique(stored(saved(tmp_path / "x.png", deep), channels=1)).tolist() == [100, 101]


def test_a_dark_sixteen_bit_image_is_not_stretched(tmp_path):
    """Scaling is by the format's range, never by what one image happens to hold."""
    deep = GRADIENT.astype(np.uint16)  # at most 248 of 65535

    assert stored(saved(tmp_path / "x.png", deep)).max() == 1


def test_bilevel_png(tmp_path):
    bits = np.random.default_rng(1).integers(0, 2, (SIDE, SIDE)).astype(bool)

    assert (stored(saved(tmp_path / "x.png", Image.fromarray(bits)), channels=1)[..., 0] == bits * 255).all()


# Lossy files


@pytest.mark.parametrize("subsampling", [0, 2])
def test_rgb_jpeg(tmp_path, subsampling):
    path = saved(tmp_path / "x.jpg", COLOUR, quality=98, subsampling=subsampling)

    assert np.abs(stored(path) - COLOUR).max() <= 8


def test_grey_jpeg(tmp_path):
    path = saved(tmp_path / "x.jpg", GRADIENT, quality=98)

    assert np.abs(stored(path) - GRADIENT[..., None]).max() <= 3
    assert (stored(path)[..., 0] == stored(path)[..., 2]).all()


def test_cmyk_jpeg(tmp_path):
    """Ink is what is missing of white: no inversion, no raw ink values as colours."""
    ink = np.concatenate([255 - COLOUR, np.zeros((SIDE, SIDE, 1), np.uint8)], axis=-1)
    path = saved(tmp_path / "x.jpg", Image.frombytes("CMYK", (SIDE, SIDE), ink.tobytes()), quality=98)

    assert Image.open(io.BytesIO(path.read_bytes())).mode == "CMYK"
    assert np.abs(stored(path) - COLOUR).max() <= 10


def test_a_large_jpeg_is_what_full_decoding_gives(tmp_path):
    """The decoder's own reduction may not move or darken the picture."""
    smooth = Image.fromarray(COLOUR).resize((1024, 1024), Image.Resampling.BICUBIC)
    path = saved(tmp_path / "x.jpg", smooth, quality=98)
    with Image.open(path) as picture:
        full = np.asarray(picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)).astype(int)

    assert np.abs(stored(path) - full).max() <= 4


# Turned by EXIF


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        (1, COLOUR),
        (2, COLOUR[:, ::-1]),
        (3, COLOUR[::-1, ::-1]),
        (4, COLOUR[::-1]),
        (5, COLOUR.transpose(1, 0, 2)),
        (6, COLOUR.transpose(1, 0, 2)[:, ::-1]),
        (7, COLOUR.transpose(1, 0, 2)[::-1, ::-1]),
        (8, COLOUR.transpose(1, 0, 2)[::-1]),
    ],
)
def test_exif_turns_a_jpeg_unless_boxes_are_in_stored_pixels(tmp_path, orientation, turned):
    """TIFF 6.0, tag 274: which side of the stored picture is the top of the scene."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "x.jpg", COLOUR, exif=exif, quality=98, subsampling=0)

    assert np.abs(stored(path) - turned).max() <= 8
    assert np.abs(stored(path, upright=False) - COLOUR).max() <= 8


def test_a_tall_turned_jpeg_becomes_wide(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path / "x.jpg", np.full((64, 32, 3), 200, np.uint8), exif=exif)

    upright, lying = stored(path, resize="pad"), stored(path, resize="pad", upright=False)

    assert (upright[:7] == 0).all()
    assert (upright[10:22] > 190).all()
    assert (lying[:, :7] == 0).all()
    assert (lying[:, 10:22] > 190).all()


# Damaged files


def damaged(tmp_path):
    """One file of each kind of damage, by name."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    for name in ("truncated.jpg", "truncated.png"):
        path = saved(tmp_path / name, noise)
        os.truncate(path, path.stat().st_size * 2 // 3)
    (tmp_path / "zero.jpg").write_bytes(b"")
    (tmp_path / "text.png").write_text("<html>not found</html>")
    flipped = bytearray(saved(tmp_path / "flipped.png", noise).read_bytes())
    flipped[len(flipped) // 2] ^= 0xFF
    (tmp_path / "flipped.png").write_bytes(flipped)
    saved(tmp_path / "float.tiff", np.full((8, 8), 0.5, np.float32))
    return sorted(path.name for path in tmp_path.iterdir())


def test_a_damaged_file_is_an_error_and_never_a_grey_half(tmp_path):
    for name in damaged(tmp_path):
        with pytest.raises(InputError, match="Expected an"):
            decode(tmp_path / name, SIDE, 3, "squash")


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        decode(tmp_path / "none.jpg", SIDE, 3, "squash")


def test_all_bad_files_are_named_at_once_and_good_ones_are_not(tmp_path):
    bad = [*damaged(tmp_path), "none.jpg"]
    saved(tmp_path / "good.png", COLOUR)

    with pytest.raises(InputError, match="got 7 problems") as caught:
        read_images([tmp_path / name for name in [*bad, "good.png"]], (SIDE, SIDE, 3))

    assert all(name in str(caught.value) for name in bad)
    assert "good.png" not in str(caught.value)


def test_pillows_global_switch_for_truncated_files_stays_off(tmp_path):
    """``LOAD_TRUNCATED_IMAGES`` would turn damage into grey pixels for the whole process."""
    from PIL import ImageFile

    decode(saved(tmp_path / "x.jpg", COLOUR), SIDE, 3, "squash")

    assert ImageFile.LOAD_TRUNCATED_IMAGES is False
