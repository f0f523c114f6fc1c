"""What every kind of image file becomes, against pixels that are known before it is written.

Expected pixels never come from ``fedmlic.images``: they are the array that was drawn, or for
lossy and resized files what Pillow gives in another way.
"""

import io
import os
import struct
import zlib
from collections import Counter

import numpy as np
import pytest
from PIL import Image, features

from fedmlic.errors import InputError
from fedmlic.images import decode, read_header, read_images, stored_values

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


# Header and pixels agree


def exif_with(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def late_exif_png(path, pixels, orientation):
    """A PNG whose eXIf chunk lies behind its pixels."""
    content = saved(path, pixels).read_bytes()
    path.write_bytes(content[:-12] + png_chunk(b"eXIf", exif_with(orientation).tobytes()[6:]) + content[-12:])
    return path


WIDE = np.repeat(COLOUR, 2, axis=1)
"""A picture that is twice as wide as high."""

KINDS = {
    "jpg": {"quality": 95, "subsampling": 0},
    "png": {},
    "webp": {"lossless": True},
    "tif": {},
    "tiff": {"compression": "tiff_lzw"},
    "avif": {"quality": 100, "subsampling": "4:4:4"},
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", [*KINDS, "late.png"])
def test_the_header_says_what_the_decoder_does(tmp_path, kind, orientation):
    """Boxes are turned by the header, pixels by the decoder."""
    path = tmp_path / f"x.{kind}"
    if kind == "late.png":
        late_exif_png(path, WIDE, orientation)
    elif kind == "avif" and not features.check("avif"):
        pytest.skip("this Pillow cannot write AVIF")
    else:
        saved(path, WIDE, exif=exif_with(orientation), **KINDS[kind])
    turned = {
        1: WIDE,
        2: WIDE[:, ::-1],
        3: WIDE[::-1, ::-1],
        4: WIDE[::-1],
        5: WIDE.transpose(1, 0, 2),
        6: WIDE.transpose(1, 0, 2)[:, ::-1],
        7: WIDE.transpose(1, 0, 2)[::-1, ::-1],
        8: WIDE.transpose(1, 0, 2)[::-1],
    }[orientation]
    header = read_header(path)

    assert (header.width, header.height, header.orientation) == (2 * SIDE, SIDE, orientation)
    assert header.upright == turned.shape[1::-1]
    for upright, expected in ((True, turned), (False, WIDE)):
        padded = np.zeros((2 * SIDE, 2 * SIDE, 3), int)
        top, left = ((2 * SIDE - side) // 2 for side in expected.shape[:2])
        padded[top : top + expected.shape[0], left : left + expected.shape[1]] = expected
        assert np.abs(stored(path, size=2 * SIDE, resize="pad", upright=upright) - padded).max() <= 10


def exif_bytes(*entries):
    """EXIF with raw entries: tag, type, count, four bytes of value."""
    body = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + body + bytes(36)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns of the tag
@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
@pytest.mark.parametrize(
    "odd", [(0x100, 1, 4, b"abcd"), (0x11A, 7, 4, b"abcd"), (0x8769, 2, 4, b"abcd"), (0x10F, 2, 900, b"\xff" * 4)]
)
def test_an_odd_tag_beside_the_orientation_changes_nothing(tmp_path, kind, odd):
    turn = (0x112, 3, 1, struct.pack("<HH", 6, 0))
    path = saved(tmp_path / f"x.{kind}", COLOUR, exif=exif_bytes(*sorted([odd, turn])), **KINDS[kind])

    assert read_header(path).orientation == 6
    assert np.abs(stored(path) - COLOUR.transpose(1, 0, 2)[:, ::-1]).max() <= 10


@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
def test_exif_that_cannot_be_read_turns_nothing(tmp_path, kind):
    path = saved(tmp_path / f"x.{kind}", COLOUR, exif=b"Exif\0\0XX*\0nonsense", **KINDS[kind])

    assert read_header(path).orientation == 1
    assert np.abs(stored(path) - COLOUR).max() <= 10


# Values of every kind of file


def raw_png(path, depth, colour_type, rows, *, clear=b"", palette=b""):
    """A PNG written byte by byte: ``rows`` are the packed bytes of each row."""
    width = 8 * len(rows[0]) // (depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour_type])
    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour_type, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"PLTE", palette), (b"tRNS", clear)]
    chunks += [(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))), (b"IEND", b"")]
    content = b"".join(png_chunk(kind, data) for kind, data in chunks if data or kind == b"IEND")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    return path


@pytest.mark.parametrize(
    ("depth", "row", "clear", "expected"),
    [
        (1, [0b10110000], 1, [0, 0, 0, 0, 0, 0, 0, 0]),
        (1, [0b10110000], 0, [255, 0, 255, 255, 0, 0, 0, 0]),
        (2, [0b00011011], 2, [0, 85, 0, 255]),
        (4, [0x0F, 0x5A], 15, [0, 0, 85, 170]),
        (8, [0, 7, 200, 255], 200, [0, 7, 0, 255]),
        (16, [0xFF, 0xFF, 0x80, 0x00, 0xFF, 0xFE], 0xFFFF, [0, 128, 255]),
        (16, [0xFF, 0xFF, 0x80, 0x00, 0x00, 0x00], 0x8000, [255, 0, 0]),
    ],
)
def test_the_transparent_value_of_a_grey_png_is_black(tmp_path, depth, row, clear, expected):
    path = raw_png(tmp_path / "x.png", depth, 0, [bytes(row)] * len(expected), clear=struct.pack(">H", clear))

    assert stored(path, channels=1, size=len(expected))[0, :, 0].tolist() == expected
    assert stored(path, channels=3, size=len(expected))[0, :, 1].tolist() == expected


def test_the_transparent_colour_of_a_colour_png_is_black(tmp_path):
    row = bytes([250, 251, 252, 250, 251, 253])
    path = raw_png(tmp_path / "x.png", 8, 2, [row] * 2, clear=struct.pack(">HHH", 250, 251, 252))

    assert stored(path, size=2)[0].tolist() == [[0, 0, 0], [250, 251, 253]]


@pytest.mark.parametrize("high", [0x12, 0x00])
def test_the_transparent_colour_of_a_deep_png_is_compared_to_its_last_bit(tmp_path, high):
    """Pillow keeps the upper byte alone: two colours of which one is transparent then look the same."""
    first, second = [(high << 8) + 0x34, 0x5678, 0x9ABC], [(high << 8) + 0x35, 0x5678, 0x9ABC]
    clear = struct.pack(">HHH", *first)
    path = raw_png(tmp_path / "x.png", 16, 2, [struct.pack(">HHHHHH", *first, *second)] * 2, clear=clear)
    content = path.read_bytes()

    assert stored(path, size=2)[0].tolist() == [[0, 0, 0], [high, 0x56, 0x9A]]
    assert decode(io.BytesIO(content), 2, 3, "squash")[0].tolist() == [[0, 0, 0], [high, 0x56, 0x9A]]


def test_deep_colours_keep_their_upper_byte(tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (4, 4, 4)).astype(">u2")
    values[..., 3] = 65535
    with_alpha = raw_png(tmp_path / "a.png", 16, 6, [row.tobytes() for row in values])
    without = raw_png(tmp_path / "b.png", 16, 2, [np.ascontiguousarray(row[:, :3]).tobytes() for row in values])
    grey = raw_png(tmp_path / "c.png", 16, 4, [np.ascontiguousarray(row[:, 2:]).tobytes() for row in values])

    assert (stored(with_alpha, size=4) == values[..., :3] >> 8).all()
    assert (stored(without, size=4) == values[..., :3] >> 8).all()
    assert (stored(grey, size=4) == (values[..., 2] >> 8)[..., None]).all()


def tiff(path, values, *, bits=16, photometric=1, order="<", more=()):
    """An uncompressed grey TIFF written byte by byte, with ``more`` tags above 279."""
    height, width = values.shape[0], values.shape[1]
    data = values.tobytes()
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 0), (277, 1), (278, height)]
    tags += [(279, len(data)), *more]
    at = 8 + 2 + 12 * len(tags) + 4
    entries = [struct.pack(f"{order}HHII", tag, 4, 1, at if tag == 273 else value) for tag, value in tags]
    mark = b"II*\0" if order == "<" else b"MM\0*"
    body = struct.pack(f"{order}IH", 8, len(tags)) + b"".join(entries) + struct.pack(f"{order}I", 0)
    path.write_bytes(mark + body + data)
    return path


@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bit_tiff(tmp_path, order):
    path = tiff(tmp_path / "x.tif", (GRADIENT.astype(np.uint16) * 257).astype(f"{order}u2"), order=order)

    assert (stored(path, channels=1)[..., 0] == GRADIENT).all()


@pytest.mark.parametrize("kind", ["<u2", ">u2", "<i2", ">i2", "<u4", "<i4", ">i4", "|u1"])
def test_a_tiff_whose_only_channel_is_a_plane_of_its_own(tmp_path, kind):
    """PlanarConfiguration 2 (tag 284) and SampleFormat 2 for signed numbers (339): as GDAL writes satellite images."""
    values = (GRADIENT * np.uint16(1 if "1" in kind else 100)).astype(kind)
    order = ">" if kind[0] == ">" else "<"
    more = [(284, 2), (339, 2 if "i" in kind else 1)]
    path = tiff(tmp_path / "x.tif", values, bits=8 * values.itemsize, order=order, more=more)

    assert (stored_values(path) == values).all()
    assert (stored(path, channels=1)[..., 0] == (values if "1" in kind else np.round(values / 257))).all()


def test_stored_values_are_of_one_channel_of_whole_numbers(tmp_path):
    assert (stored_values(saved(tmp_path / "a.png", GRADIENT)) == GRADIENT).all()
    assert (stored_values(saved(tmp_path / "a.tif", GRADIENT * np.uint16(257))) == GRADIENT * np.uint16(257)).all()
    for number, pixels in enumerate((COLOUR, GRADIENT.astype(np.float32))):
        with pytest.raises(InputError, match="one channel of whole numbers"):
            stored_values(saved(tmp_path / f"{number}.tif", pixels))


def test_sixteen_bit_tiff_whose_zero_is_white(tmp_path):
    path = tiff(tmp_path / "x.tif", GRADIENT.astype("<u2") * 257, photometric=0)

    assert (stored(path, channels=1)[..., 0] == 255 - GRADIENT).all()


def test_eight_bit_tiff_whose_zero_is_white(tmp_path):
    assert (stored(tiff(tmp_path / "x.tif", GRADIENT, bits=8, photometric=0))[..., 0] == 255 - GRADIENT).all()


def test_twelve_bit_tiff_is_scaled_by_its_range(tmp_path):
    """Two values of 12 bits lie in three bytes."""
    packed = np.tile(np.array([0xFF, 0xF0, 0x00], np.uint8), (2, 1))
    path = tmp_path / "x.tif"
    tiff(path, packed, bits=12)
    content = bytearray(path.read_bytes())
    content[18:22] = struct.pack("<I", 2)  # the width counts values, not bytes
    path.write_bytes(content)

    assert stored(path, channels=1, size=2)[0, :, 0].tolist() == [255, 0]


def picture_of(mode):
    """The colours of ``COLOUR`` in another mode, and what a person sees of them."""
    if mode == "RGBX":
        return Image.frombytes("RGBX", (SIDE, SIDE), np.dstack([COLOUR, GRADIENT]).tobytes()), COLOUR
    ink = np.dstack([255 - COLOUR, np.zeros_like(GRADIENT)])
    return Image.frombytes("CMYK", (SIDE, SIDE), ink.tobytes()), COLOUR


@pytest.mark.parametrize("mode", ["RGBX", "CMYK"])
def test_four_channels_of_a_tiff_without_transparency(tmp_path, mode):
    picture, seen = picture_of(mode)

    assert np.abs(stored(saved(tmp_path / "x.tif", picture)) - seen).max() <= 1


def test_a_tiff_with_alpha_and_a_palette(tmp_path):
    pairs = np.array([[0, 255], [1, 0], [1, 255], [0, 128]], np.uint8)
    picture = Image.frombytes("PA", (4, 1), pairs.tobytes())
    picture.putpalette([10, 20, 30, 200, 100, 50])
    found = decode(saved(tmp_path / "x.tif", picture.resize((4, 4), Image.Resampling.NEAREST)), 4, 3, "squash")

    assert found[0].tolist() == [[10, 20, 30], [0, 0, 0], [200, 100, 50], [5, 10, 15]]


def test_colours_of_cie_lab(tmp_path):
    """L* 53.2, a* 80.1, b* 67.2 is the red of sRGB (D65); white and black are the same in every space."""
    values = np.zeros((2, 3, 3), np.uint8)
    values[:, 0, 0] = 255
    values[:, 2] = [round(54.29 * 2.55), 81, 70]  # red after the usual adaptation to D50
    picture = Image.frombytes("LAB", (3, 2), values.tobytes())
    with_three = decode(saved(tmp_path / "x.tif", picture.resize((3, 3))), 3, 3, "squash").astype(int)

    assert np.abs(with_three[0] - [[255, 255, 255], [0, 0, 0], [255, 0, 0]]).max() <= 6


def test_premultiplied_grey(tmp_path):
    """TIFF 6.0, ExtraSamples 1: grey that was multiplied by its alpha lies on black as it is."""
    path = saved(tmp_path / "x.tif", Image.frombytes("LA", (2, 2), bytes([100, 255, 50, 128] * 2)))
    extra = struct.pack("<HHIH", 338, 3, 1, 2)
    path.write_bytes(path.read_bytes().replace(extra, struct.pack("<HHIH", 338, 3, 1, 1)))

    assert Image.open(io.BytesIO(path.read_bytes())).mode == "La"
    assert np.abs(stored(path, size=2)[0, :, 0] - [100, 50]).max() <= 1


def test_grey_values_without_a_known_range_are_refused(tmp_path):
    deep = Image.fromarray(np.array([[0, 70000]], np.int32))
    real = Image.fromarray(np.array([[0.0, 0.5]], np.float32))

    with pytest.raises(InputError, match="Expected grey values of 0 to 65535, got 0 to 70000"):
        stored(saved(tmp_path / "x.tif", deep))
    with pytest.raises(InputError, match="got floating-point pixels") as caught:
        stored(saved(tmp_path / "y.tif", real))
    assert "undamaged" not in str(caught.value)


# Only errors that name what to do


def broken_second_frame(path):
    content = bytearray(tiff(path, GRADIENT, bits=8).read_bytes())
    content[118:122] = struct.pack("<I", len(content))  # the next directory
    path.write_bytes(content + struct.pack("<HHHII", 1, 305, 2, 4, 0x61616161) + bytes(4))
    return path


def test_a_broken_second_frame_does_not_matter_for_the_first(tmp_path):
    path = broken_second_frame(tmp_path / "x.tif")

    assert read_header(path)[:4] == ("L", SIDE, SIDE, 1)
    assert (stored(path, channels=1)[..., 0] == GRADIENT).all()


def test_a_large_jpeg_is_reduced_while_it_is_decoded_and_a_large_png_is_told_the_limit(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDMLIC_MAX_IMAGE_PIXELS", "300000")
    scan = Image.new("L", (1000, 1000), 200)

    assert np.abs(stored(saved(tmp_path / "x.jpg", scan)) - 200).max() <= 2
    with pytest.raises(
        InputError, match=r"Expected 300,000 pixels at most.*FEDMLIC_MAX_IMAGE_PIXELS=1000000"
    ) as caught:
        stored(saved(tmp_path / "x.png", scan))
    assert "damaged" not in str(caught.value)
    assert read_header(tmp_path / "x.png").width == 1000
    monkeypatch.setenv("FEDMLIC_MAX_IMAGE_PIXELS", "1000000")
    assert (stored(tmp_path / "x.png") == 200).all()
    monkeypatch.setenv("FEDMLIC_MAX_IMAGE_PIXELS", "many")
    with pytest.raises(InputError, match="to be a number of pixels, got 'many'"):
        stored(tmp_path / "x.png")


@pytest.mark.parametrize("brand", [b"heic", b"mif1"])
def test_heic_is_named(tmp_path, brand):
    path = tmp_path / "x.heic"
    path.write_bytes(b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0" + brand)

    with pytest.raises(InputError, match="HEIC, which Pillow cannot read"):
        stored(path)
    with pytest.raises(InputError, match="HEIC"):
        decode(io.BytesIO(path.read_bytes()), SIDE, 3, "squash")


FUZZED = ["jpg", "png", "tif", "tiff", "gif", "webp", "bmp", "avif", "jp2", "ppm", "tga"]


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns of metadata that it cannot read
@pytest.mark.parametrize("kind", FUZZED)
def test_damaged_bytes_give_pixels_or_an_input_error(kind):
    """Damage at random places, in the first bytes more often; nothing but ``InputError`` may come out."""
    options = {**KINDS, "jp2": {}}.get(kind, {})
    exif = {"exif": exif_with(6)} if kind in {"jpg", "png", "webp", "tif", "tiff"} else {}
    buffer = io.BytesIO()
    picture = Image.fromarray(COLOUR)
    try:
        picture.save(
            buffer, {"jpg": "JPEG", "tif": "TIFF", "jp2": "JPEG2000"}.get(kind, kind.upper()), **options, **exif
        )
    except (KeyError, OSError):
        pytest.skip(f"this Pillow cannot write {kind}")
    rng = np.random.default_rng(FUZZED.index(kind))
    outcomes = Counter()
    for _ in range(300):
        content = bytearray(buffer.getvalue())
        reach = len(content) if rng.random() < 0.5 else min(200, len(content))
        for place in rng.integers(0, reach, rng.integers(1, 6)):
            content[place] = rng.integers(256)
        content = content[: rng.integers(1, len(content))] if rng.random() < 0.2 else content
        read_header(io.BytesIO(content))
        try:
            decode(io.BytesIO(content), 8, 3, "squash")
            outcomes["pixels"] += 1
        except InputError:
            outcomes["refused"] += 1
    assert outcomes["refused"] > 0
