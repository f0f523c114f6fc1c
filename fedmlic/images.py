"""From an image file to the bytes that networks see: one policy for every data set and for prediction.

A picture is turned upright (EXIF), 16-bit grey is scaled, transparency lies on black, and the
result is squared to one size. A file that cannot be read whole is an error, never a
blank image.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from fedmlic.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image as Picture

Resize = Literal["squash", "crop", "pad"]
"""Change the aspect, cut the longer side around the centre, or add black bars."""

UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error)
"""What Pillow raises for a damaged file, besides its own exceptions."""


EXIF_ORIENTATION = 0x0112


class Header(NamedTuple):
    """What an image file says of itself: Pillow's mode, stored size in pixels, EXIF orientation, frames."""

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
    from PIL import Image

    try:
        with Image.open(path) as picture:
            # Pillow decodes a whole PNG to look for EXIF behind its pixels.
            orientation = picture.getexif().get(EXIF_ORIENTATION, 1) if picture.format != "PNG" else 1
            orientation = orientation if orientation in range(1, 9) else 1
            return Header(picture.mode, picture.width, picture.height, orientation, getattr(picture, "n_frames", 1))
    except (*UNREADABLE, Image.DecompressionBombError):
        return None


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
    from PIL import Image, UnidentifiedImageError  # only a build decodes

    try:
        with Image.open(path) as picture:
            # JPEG decoders shrink by 2, 4 or 8 almost for free; twice the size keeps detail for the filter.
            picture.draft(None, (2 * size, 2 * size))
            small = _fit(_eight_bits(picture, channels, upright=upright), size, resize)
    except UnidentifiedImageError:
        msg = "Expected an image, got a file that Pillow does not recognise. Replace it or take it out of the table."
        raise InputError(msg) from None
    except (*UNREADABLE, Image.DecompressionBombError) as error:
        msg = f"Expected an undamaged image, got: {error}. Replace it or take it out of the table."
        raise InputError(msg) from error
    return np.asarray(small, dtype=np.uint8).reshape(size, size, channels)


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
        resize: as ``decode`` was told.

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


def _eight_bits(picture: Picture, channels: int, *, upright: bool) -> Picture:
    """The picture in 8 bits per channel, as a person sees it if it is to be upright."""
    from PIL import Image, ImageOps

    if upright:
        ImageOps.exif_transpose(picture, in_place=True)
    if picture.mode == "F":
        raise ValueError("floating-point pixels have no fixed range; save it with 8 or 16 bits")
    if picture.mode.startswith("I"):
        values = np.asarray(picture).astype(np.int64)
        if values.size and (values.min() < 0 or values.max() > 65535):
            msg = f"grey values {values.min()} to {values.max()}; save it with 8 or 16 bits"
            raise ValueError(msg)
        picture = Image.fromarray(np.round(values / 257).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, (0, 0, 0, 255)), picture)
    mode = "RGB" if channels == 3 else "L"
    return picture if picture.mode == mode else picture.convert(mode)  # convert copies even so


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
    height, _, channels = shape
    images, problems = [], []
    for path in paths:
        if not path.is_file():
            problems.append(f"{path}: no such file")
            continue
        try:
            images.append(decode(path, height, channels, resize))
        except (InputError, ValueError) as error:
            problems.append(f"{path}: {error}")
    if problems:
        msg = f"Expected {len(paths)} readable images, got {len(problems)} problems: {'; '.join(problems[:10])}"
        raise InputError(msg)
    return np.stack(images)
