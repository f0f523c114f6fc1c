"""From an image file to the bytes that networks see: one policy for every data set and for prediction.

A picture is turned upright (EXIF), 16-bit grey is scaled, transparency lies on black, and the
result is squared to one size. A file that cannot be read whole is an error, never a
blank image.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from fedmlic.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image as Picture

Resize = Literal["squash", "crop", "pad"]
"""Change the aspect, cut the longer side around the centre, or add black bars."""

ORIENTATION, PHOTOMETRIC, BITS_PER_SAMPLE, IMAGE_WIDTH, IMAGE_LENGTH = 0x0112, 262, 258, 256, 257
FILL_ORDER, SAMPLES_PER_PIXEL, PLANAR_CONFIGURATION, SAMPLE_FORMAT = 266, 277, 284, 339
"""Tags of TIFF 6.0; the first is also EXIF's."""

MAX_PIXELS = 178_956_970
"""Most pixels of one image that are decoded at once (Pillow's own limit): about 0.7 GB as colours."""

MAX_PIXELS_VARIABLE = "FEDMLIC_MAX_IMAGE_PIXELS"
"""Environment variable that replaces ``MAX_PIXELS``."""

METADATA_CHUNKS = frozenset({b"eXIf", b"iTXt", b"tEXt", b"zTXt"})
"""Chunks of a PNG that can hold an orientation; they may lie behind the pixels."""

BRANDS = {
    b"avif": "AVIF, which this Pillow cannot read. Install Pillow 11.3 or later, or save it as PNG or JPEG.",
    b"heic": "HEIC, which Pillow cannot read. Save it as PNG or JPEG.",
}
"""Image formats by the brand in their first bytes that Pillow may not know."""

HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})


# Photos are full of tags that Pillow finds odd; none of them concerns the pixels.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


class Header(NamedTuple):
    """What an image file says of itself: Pillow's mode, stored size in pixels, EXIF orientation, frames.

    ``frames`` is 2 where there are several of which not all can be counted.
    """

    mode: str
    width: int
    height: int
    orientation: int
    frames: int

    @property
    def turned(self) -> bool:
        """Whether a person sees it otherwise than it is stored."""
        return self.orientation != 1

    @property
    def upright(self) -> tuple[int, int]:
        """Width and height as a person sees it."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


def read_header(path: Path | IO[bytes]) -> Header | None:
    """The header of an image file, or ``None`` if it has none that can be read."""
    try:
        with _opened(path) as picture:
            return Header(picture.mode, *_stored_size(picture), _orientation(picture), _num_frames(picture))
    except InputError:
        return None


@contextmanager
def _opened(path: Path | IO[bytes]) -> Iterator[Picture]:
    """An image file for a block; whatever goes wrong in it is an ``InputError``."""
    from PIL import Image, UnidentifiedImageError  # only a build decodes

    # Pillow's limit counts the pixels of the file before a JPEG decoder reduces them; ours counts what is decoded.
    Image.MAX_IMAGE_PIXELS = None
    try:
        with Image.open(path) as picture:
            _mend_raw_mode(picture)
            yield picture
    except InputError:
        raise
    except UnidentifiedImageError:
        raise InputError(_unrecognised(path)) from None
    except MemoryError as error:
        msg = "Expected the image to fit into memory, got one that does not. Save it smaller or free memory."
        raise InputError(msg) from error
    except Exception as error:  # Pillow raises exceptions of every type for damaged files
        expected = "an image file that can be opened" if getattr(error, "errno", None) else "an undamaged image"
        msg = f"Expected {expected}, got: {str(error) or type(error).__name__}. Replace it or take it out of the table."
        raise InputError(msg) from error


def _unrecognised(path: Path | IO[bytes]) -> str:
    """What is said of a file that Pillow does not recognise."""
    if isinstance(path, Path):
        with path.open("rb") as file:
            start = file.read(12)
    else:
        path.seek(0)
        start = path.read(12)
    if start[4:8] == b"ftyp":
        brand = b"heic" if start[8:12] in HEIC_BRANDS else start[8:11] + b"f"
        if brand in BRANDS:
            return f"Expected an image that Pillow can read, got {BRANDS[brand]}"
    return "Expected an image, got a file that Pillow does not recognise. Replace it or take it out of the table."


def _mend_raw_mode(picture: Picture) -> None:
    """Let Pillow read uncompressed TIFF files that store their only channel as a plane of its own.

    Programs for satellite images write them (PlanarConfiguration 2). Pillow takes the first letter
    of its name for the pixels, so that "I;16" becomes "I": an error, or wrong values.
    """
    if picture.format != "TIFF":
        return
    from PIL.TiffImagePlugin import OPEN_INFO

    file: Any = picture
    tags = file.tag_v2
    if tags.get(PLANAR_CONFIGURATION) != 2 or tags.get(SAMPLES_PER_PIXEL, 1) != 1:
        return
    defaults = ((PHOTOMETRIC, 0), (SAMPLE_FORMAT, (1,)), (FILL_ORDER, 1), (BITS_PER_SAMPLE, (1,)))
    known: Any = OPEN_INFO
    _, raw = known.get((tags.prefix, *(tags.get(*tag) for tag in defaults), ()), (None, None))
    if raw is not None:
        file.tile = [
            tile._replace(args=(raw, *tile.args[1:])) if tile.codec_name == "raw" else tile for tile in file.tile
        ]


def _num_frames(picture: Picture) -> int:
    try:
        return int(getattr(picture, "n_frames", 1))
    except Exception:  # noqa: BLE001  (of a later frame, which nobody needs)
        return 2


def _stored_size(picture: Picture) -> tuple[int, int]:
    """Width and height of the pixels as they lie in the file; Pillow gives those of a TIFF turned."""
    tags: Any = getattr(picture, "tag_v2", {})
    return (int(tags[IMAGE_WIDTH]), int(tags[IMAGE_LENGTH])) if picture.format == "TIFF" else picture.size


def _orientation(picture: Picture) -> int:
    """How to turn the picture upright, 1 to 8 as EXIF defines it; 1 if it does not say so in a way that can be read.

    Call it before anything is decoded.
    """
    from PIL import Image

    try:
        if picture.format == "PNG" and not _has_late_metadata(picture):
            # Pillow's own reader decodes the whole file to look behind its pixels.
            found = Image.Image.getexif(picture).get(ORIENTATION, 1)
        else:
            found = picture.getexif().get(ORIENTATION, 1)
    except Exception:  # noqa: BLE001  (EXIF that cannot be read says nothing about the pixels)
        return 1
    return int(found) if found in range(1, 9) else 1


def _has_late_metadata(picture: Any) -> bool:  # noqa: ANN401  (Pillow does not type its open files)
    """Whether a PNG has metadata behind its pixels."""
    file, place = picture.fp, picture.fp.tell()
    try:
        file.seek(8)
        seen_pixels = False
        while len(head := file.read(8)) == 8:
            kind = head[4:]
            seen_pixels |= kind == b"IDAT"
            if seen_pixels and kind in METADATA_CHUNKS:
                return True
            file.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)
        return False
    finally:
        file.seek(place)


def decode(
    path: Path | IO[bytes], size: int, channels: int, resize: Resize, *, upright: bool = True
) -> NDArray[np.uint8]:
    """uint8 ``[size, size, channels]``.

    Args:
        path: an image file, or its opened bytes.
        size: height and width of the result, pixels.
        channels: 3 (colour) or 1 (grey).
        resize: how the picture becomes a square.
        upright: turn it as its EXIF orientation says. Data sets whose boxes are given in
            stored pixels (COCO, VOC, LVIS, Visual Genome) must not.

    Raises:
        InputError: it cannot be read whole.
    """
    with _opened(path) as picture:
        orientation = _orientation(picture)
        _leave_as_stored(picture)
        # JPEG decoders shrink by 2, 4 or 8 almost for free; twice the size keeps detail for the filter.
        picture.draft(None, (2 * size, 2 * size))
        _check_size(picture)
        plain = _eight_bits(picture, path, channels)
        small = _fit(_turned(plain, orientation) if upright else plain, size, resize)
    return np.asarray(small, dtype=np.uint8).reshape(size, size, channels)


def stored_values(path: Path | IO[bytes]) -> NDArray[np.int64]:
    """int64 ``[height, width]`` of an image of one channel, as its file holds them: nothing is scaled or turned.

    Raises:
        InputError: it cannot be read whole, has several channels or values that are no whole numbers.
    """
    with _opened(path) as picture:
        _leave_as_stored(picture)
        _check_size(picture)
        if picture.mode != "L" and not picture.mode.startswith("I"):
            msg = f"Expected an image of one channel of whole numbers, got one that Pillow reads as {picture.mode}."
            raise InputError(msg)
        picture.load()
        values: NDArray[np.int64] = np.asarray(picture).astype(np.int64)
    return values


def _check_size(picture: Picture) -> None:
    text = os.environ.get(MAX_PIXELS_VARIABLE, "")
    limit = int(text) if text.isdecimal() else MAX_PIXELS
    if text and not text.isdecimal():
        msg = f"Expected the environment variable {MAX_PIXELS_VARIABLE} to be a number of pixels, got {text!r}."
        raise InputError(msg)
    num_pixels = picture.width * picture.height
    if num_pixels > limit:
        msg = (
            f"Expected {limit:,} pixels at most, got an image of {picture.width} x {picture.height} = {num_pixels:,}, "
            f"which is too large to decode. Save it smaller, or set the environment variable "
            f"{MAX_PIXELS_VARIABLE}={num_pixels} (it takes about {num_pixels * 4 / 1e9:.1f} GB of memory)."
        )
        raise InputError(msg)


def _leave_as_stored(picture: Picture) -> None:
    """Keep Pillow from turning a TIFF while it is decoded, and from reading its other tags."""
    if picture.format == "TIFF":
        exif = picture.getexif()
        for tag in list(exif):  # clear() would read every value
            del exif[tag]


def _turned(picture: Picture, orientation: int) -> Picture:
    """The picture as a person sees it."""
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return picture.transpose(turns[orientation]) if orientation in turns else picture


def from_pixels(pixels: NDArray[np.uint8], size: int, channels: int, resize: Resize) -> NDArray[np.uint8]:
    """The same of pixels that are decoded already: uint8 ``[height, width]`` or ``[height, width, 3]``."""
    from PIL import Image

    picture = Image.fromarray(pixels).convert("RGB" if channels == 3 else "L")
    return np.asarray(_fit(picture, size, resize), dtype=np.uint8).reshape(size, size, channels)


def fit_boxes(
    box: NDArray[np.float32], width: NDArray[np.float64], height: NDArray[np.float64], size: int, resize: Resize
) -> NDArray[np.float32]:
    """Boxes of a source's pixels in the pixels of the stored image, cut at its edges.

    Args:
        box: ``[boxes, 4]`` as x, y, width, height.
        width: ``[boxes]``, of the source image of each box.
        height: ``[boxes]``, likewise.
        size: height and width of the stored image.
        resize: as in ``decode``.

    Returns:
        float32 ``[boxes, 4]``; a box outside of what is stored has width or height 0.
    """
    sides = np.stack([width, height], axis=1).astype(np.float64)
    if resize == "squash":
        scale, shift = size / sides, np.zeros_like(sides)
    else:
        edge = sides.min(axis=1) if resize == "crop" else sides.max(axis=1)
        scale = np.repeat((size / edge)[:, None], 2, axis=1)
        shift = (size - sides * scale) / 2
    start = np.clip(box[:, :2] * scale + shift, 0, size)
    stop = np.clip((box[:, :2] + box[:, 2:]) * scale + shift, 0, size)
    return np.concatenate([start, stop - start], axis=1).astype(np.float32)


def _eight_bits(picture: Picture, path: Path | IO[bytes], channels: int) -> Picture:
    """The picture, as it is stored, in 8 bits per channel; what is transparent is black."""
    from PIL import Image

    if picture.mode.startswith("F"):
        msg = (
            "Expected an image of 8 or 16 bits per channel, got floating-point pixels, which have no fixed range. "
            "Save it with 8 or 16 bits."
        )
        raise InputError(msg)
    clear = _transparent_value(picture)
    stored_size = _stored_size(picture) if picture.format == "TIFF" else None
    picture.load()
    if stored_size is not None and stored_size != picture.size:
        picture = picture.copy()  # a copy has the size of what was decoded
    if picture.mode.startswith("I"):
        picture = Image.fromarray(_scaled(picture, clear))
    elif clear is not None:
        picture = Image.fromarray(_without(picture, clear, path))
    elif picture.mode == "LAB":
        picture = _from_lab(picture)
    elif picture.has_transparency_data:
        picture = picture.convert("LA") if picture.mode == "La" else picture  # Pillow knows no direct way
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, (0, 0, 0, 255)), picture)
    mode = "RGB" if channels == 3 else "L"
    return picture if picture.mode == mode else picture.convert(mode)  # convert copies even so


def _transparent_value(picture: Picture) -> int | tuple[int, ...] | None:
    """The grey value or colour of a file without alpha that stands for nothing; call it before decoding.

    Grey values have the range of the decoded pixels, colours that of the file.
    """
    clear = picture.info.get("transparency")
    if picture.mode == "RGB" and isinstance(clear, tuple):
        return clear
    if not isinstance(clear, int) or not (picture.mode in {"1", "L"} or picture.mode.startswith("I")):
        return None
    # Pillow spreads grey values of 2 and 4 bits over 0 to 255, but not the one that is transparent.
    return clear * {"L;2": 85, "L;4": 17}.get(_raw_mode(picture), 1)


def _raw_mode(picture: Any) -> str:  # noqa: ANN401  (only image files have tiles)
    arguments = picture.tile[0][3] if getattr(picture, "tile", None) else ""
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _scaled(picture: Picture, clear: int | tuple[int, ...] | None) -> NDArray[np.uint8]:
    """uint8 ``[height, width]`` of grey values with more than 8 bits."""
    values = np.asarray(picture).astype(np.int64)
    tags: Any = getattr(picture, "tag_v2", {})
    depth = tags.get(BITS_PER_SAMPLE, (16,))
    white = (1 << depth[0]) - 1 if isinstance(depth, tuple) and 8 < depth[0] < 16 else 65535
    if values.size and (values.min() < 0 or values.max() > white):
        msg = f"Expected grey values of 0 to {white}, got {values.min()} to {values.max()}. Save it with 8 or 16 bits."
        raise InputError(msg)
    # TIFF 6.0: 0 is white. Pillow inverts these files with up to 8 bits only.
    grey = np.round((white - values if tags.get(PHOTOMETRIC) == 0 else values) * (255 / white)).astype(np.uint8)
    grey[values == (-1 if clear is None else clear)] = 0
    return grey


def _without(picture: Picture, clear: int | tuple[int, ...], path: Path | IO[bytes]) -> NDArray[np.uint8]:
    """uint8 ``[height, width]`` or ``[height, width, 3]`` of a picture whose pixels of one value are transparent."""
    if isinstance(clear, int):
        grey = np.array(picture.convert("L"))
        grey[grey == clear] = 0
        return grey
    pixels = np.array(picture)
    values = pixels
    if max(clear) > 255 or _is_deep(path):
        values = pixels.astype(np.uint16) << 8 | _low_bytes(path)
    pixels[(values == np.array(clear)).all(axis=-1)] = 0
    return pixels


def _is_deep(path: Path | IO[bytes]) -> bool:
    with _opened(path) as picture:
        return _raw_mode(picture) == "RGB;16B"


def _low_bytes(path: Path | IO[bytes]) -> NDArray[np.uint8]:
    """uint8 ``[height, width, 3]``: of every 16-bit value of a colour PNG the byte that Pillow drops."""
    with _opened(path) as picture:
        file: Any = picture
        kind, area, offset, _ = file.tile[0]
        file.tile = [(kind, area, offset, "RGB;16L")]  # read as little-endian, its upper byte is our lower one
        return np.array(file)


def _from_lab(picture: Picture) -> Picture:
    """CIE L*a*b* (D50) as sRGB."""
    from PIL import ImageCms

    profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    turned = ImageCms.applyTransform(picture, ImageCms.buildTransform(*profiles, "LAB", "RGB"))
    if turned is None:
        raise ValueError("its colours cannot be converted")
    return turned


def _fit(picture: Picture, size: int, resize: Resize) -> Picture:
    from PIL import Image, ImageOps

    if resize == "crop":
        return ImageOps.fit(picture, (size, size), Image.Resampling.BILINEAR)
    if resize == "pad":
        return ImageOps.pad(picture, (size, size), Image.Resampling.BILINEAR)
    return picture.resize((size, size), Image.Resampling.BILINEAR)


def read_images(paths: Sequence[Path], shape: tuple[int, int, int], resize: Resize = "squash") -> NDArray[np.uint8]:
    """uint8 ``[images, height, width, channels]`` of image files, as a corpus would store them.

    Raises:
        InputError: naming every file that is missing or unreadable.
    """
    read = [read_image(path, shape, resize) for path in paths]
    problems = [f"{path}: {found}" for path, found in zip(paths, read, strict=True) if isinstance(found, str)]
    if problems:
        raise unreadable(len(paths), problems)
    return np.stack([found for found in read if not isinstance(found, str)])


def read_image(path: Path, shape: tuple[int, int, int], resize: Resize = "squash") -> NDArray[np.uint8] | str:
    """uint8 ``[height, width, channels]`` of an image file, as a corpus would store it, or what is wrong with it."""
    height, _, channels = shape
    if not path.is_file():
        return "no such file"
    try:
        return decode(path, height, channels, resize)
    except InputError as error:
        return str(error)


def unreadable(num_files: int, problems: Sequence[str]) -> InputError:
    """The error that names files that cannot be read, up to ten of them, and counts all."""
    named = "; ".join(problems[:10]) + (f"; and {len(problems) - 10} more" if len(problems) > 10 else "")
    return InputError(f"Expected {num_files} readable images, got {len(problems)} problems: {named}")
