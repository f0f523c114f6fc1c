"""Objects of a source's pixels as objects of the stored images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedmlic.dataset import Objects
from fedmlic.images import Resize, fit_boxes

if TYPE_CHECKING:
    from numpy.typing import NDArray


def stored_objects(objects: Objects, sizes: NDArray[np.float64], size: int, resize: Resize) -> Objects:
    """The same objects in pixels of the stored image; an area shrinks as its box does.

    Args:
        objects: with boxes and areas in source pixels.
        sizes: ``[images, 2]``, width and height of the source images.
        size: side of the stored images, pixels.
        resize: as ``images.decode`` is told.

    Returns:
        As many objects; one that a crop cut away has a box without width or height.
    """
    width, height = sizes[objects.row].reshape(-1, 2).T
    box = fit_boxes(objects.box, width, height, size, resize)
    # Rounding to 32 bits may put an edge outside by the last bit.
    box[:, 2:] = np.minimum(box[:, 2:], np.float32(size) - box[:, :2])
    whole = objects.box[:, 2] * objects.box[:, 3]
    filled = np.divide(objects.area, whole, out=np.zeros_like(objects.area), where=whole > 0)
    area = np.minimum(filled, 1) * box[:, 2] * box[:, 3]
    return Objects(objects.row, objects.label, box, area.astype(np.float32))
