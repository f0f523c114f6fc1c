"""Objects of a source's pixels as objects of the stored images, and the sizes that they are measured in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedmlic.dataset import Objects
from fedmlic.images import Resize, fit_boxes

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROUNDING_PIXELS = 1.0
"""How far a side of a picture saved in another size may be off its exact length."""

MIRRORED_X, MIRRORED_Y, TRANSPOSED = (2, 3, 6, 7), (3, 4, 7, 8), (5, 6, 7, 8)
"""EXIF orientations that, after a swap of the axes, count columns or rows from the other side."""


def agree_on_sizes(
    said: NDArray[np.float64], stored: NDArray[np.float64], names: Sequence[str]
) -> tuple[NDArray[np.float64], dict[str, object]]:
    """The sizes that boxes are measured in, and what to report of those that differ.

    Boxes belong to the size that the annotation says, so a file saved smaller in the same
    proportions keeps its boxes. Where proportions differ, or the annotation says nothing,
    the file is right.

    Args:
        said: ``[images, 2]``, width and height of the annotation; 0 where it says nothing.
        stored: ``[images, 2]``, of the file; 0 where it cannot be read.
        names: of the images, for the report.

    Returns:
        float64 ``[images, 2]``, all at least 1, and a report with JSON values.
    """
    both = (said > 0).all(axis=1) & (stored > 0).all(axis=1)
    scale = np.divide(stored[:, 0], said[:, 0], out=np.zeros(len(said)), where=both)
    same_shape = both & (np.abs(said[:, 1] * scale - stored[:, 1]) <= ROUNDING_PIXELS)
    unreadable = (stored <= 0).any(axis=1)
    sizes = np.where((same_shape | unreadable)[:, None], said, stored)
    resized = np.flatnonzero(same_shape & (said != stored).any(axis=1))
    other = np.flatnonzero(both & ~same_shape)
    report: dict[str, object] = {"resized_files": len(resized), "other_proportions": len(other)}
    if len(other):
        report["other_proportions_first"] = [names[place] for place in other[:10].tolist()]
    return np.maximum(sizes, 1.0), report


def size_warnings(differing: Mapping[str, object]) -> list[str]:
    """A warning for what ``agree_on_sizes`` reports of files that are not the images they should be."""
    names = differing.get("other_proportions_first")
    if not isinstance(names, list):
        return []
    count = f"{differing['other_proportions']:,}"
    return [f"images of other proportions than their annotation says: {count}, first {', '.join(names[:3])}"]


def outside_warnings(objects: Objects, sizes: NDArray[np.float64], names: Sequence[str]) -> list[str]:
    """A warning if objects lie wholly outside of their images; their labels stay.

    Args:
        objects: with boxes in source pixels.
        sizes: ``[images, 2]``, width and height in source pixels.
        names: of the images.
    """
    begin, end = objects.box[:, :2], objects.box[:, :2] + objects.box[:, 2:]
    outside = ((begin >= sizes[objects.row].reshape(-1, 2)) | (end < 0)).any(axis=1)
    if not outside.any():
        return []
    first = list(dict.fromkeys(names[row] for row in objects.row[outside].tolist()))[:3]
    return [f"boxes wholly outside of their images: {int(outside.sum()):,}, first in {', '.join(first)}"]


def turned_boxes(
    box: NDArray[np.float32], sizes: NDArray[np.float64], orientation: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Boxes of stored pixels, and their pictures' sizes, after every picture was turned upright.

    Args:
        box: ``[boxes, 4]`` as x, y, width, height.
        sizes: ``[boxes, 2]``, width and height of the stored picture of each box.
        orientation: ``[boxes]``, EXIF's code of that picture, 1 to 8.

    Returns:
        float32 ``[boxes, 4]`` and float64 ``[boxes, 2]``.

    Source: EXIF 2.3, tag 274.
    """
    swapped = np.isin(orientation, TRANSPOSED)[:, None]
    x, y, w, h = np.where(swapped, box[:, [1, 0, 3, 2]], box).T
    width, height = np.where(swapped, sizes[:, ::-1], sizes).T
    x = np.where(np.isin(orientation, MIRRORED_X), width - x - w, x)
    y = np.where(np.isin(orientation, MIRRORED_Y), height - y - h, y)
    return np.stack([x, y, w, h], axis=1).astype(np.float32), np.stack([width, height], axis=1)


def stored_objects(
    objects: Objects,
    sizes: NDArray[np.float64],
    size: int,
    resize: Resize,
    orientations: NDArray[np.int64] | None = None,
) -> Objects:
    """The same objects in pixels of the stored image; an area shrinks as its box does.

    Args:
        objects: with boxes and areas in source pixels.
        sizes: ``[images, 2]``, width and height of the source images.
        size: side of the stored images, pixels.
        resize: as in ``images.decode``.
        orientations: ``[images]``, EXIF's codes, if the images are stored upright.

    Returns:
        As many objects; one that a crop cut away has a box without width or height.
    """
    source, of_box = objects.box, sizes[objects.row].reshape(-1, 2)
    if orientations is not None:
        source, of_box = turned_boxes(source, of_box, orientations[objects.row])
    box = _fit(source, of_box, size, resize)
    whole = objects.box[:, 2] * objects.box[:, 3]
    filled = np.divide(objects.area, whole, out=np.zeros_like(objects.area), where=whole > 0)
    area = np.minimum(filled, 1) * box[:, 2] * box[:, 3]
    return Objects(objects.row, objects.label, box, area.astype(np.float32))


def boxed_objects(
    row: NDArray[np.int64],
    label: NDArray[np.integer],
    box: NDArray[np.float32],
    sizes: NDArray[np.float64],
    size: int,
    resize: Resize,
) -> Objects:
    """Objects of which nothing is known but a box in source pixels; their area is that of the stored box.

    Args:
        row: ``[boxes]``, the image, ascending.
        label: ``[boxes]``, the column.
        box: ``[boxes, 4]`` as x, y, width, height.
        sizes: ``[boxes, 2]``, width and height of the source image of each box.
        size: side of the stored images, pixels.
        resize: as in ``images.decode``.
    """
    stored = _fit(box, sizes, size, resize)
    return Objects(row, label.astype(np.int16), stored, stored[:, 2] * stored[:, 3])


def _fit(box: NDArray[np.float32], sizes: NDArray[np.float64], size: int, resize: Resize) -> NDArray[np.float32]:
    fitted = fit_boxes(box, sizes[:, 0], sizes[:, 1], size, resize)
    # Rounding to 32 bits may put an edge outside by the last bit.
    fitted[:, 2:] = np.minimum(fitted[:, 2:], np.float32(size) - fitted[:, :2])
    return fitted
