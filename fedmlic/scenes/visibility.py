"""What can be seen of each object, computed from the masks as they cover one another."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedmlic.scenes.patches import patches

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedmlic.scenes.layout import Layout
    from fedmlic.scenes.options import Options

    Bools = NDArray[np.bool_]
    Ints = NDArray[np.int64]


class Visibility(NamedTuple):
    """One entry per object.

    Attributes:
        seen: bool ``[objects]``, whether enough of it is visible to count.
        total: int64 ``[objects]``, pixels of its mask.
        area: int64 ``[objects]``, visible ones, also of objects that do not count.
        box: int64 ``[objects, 4]``, x, y, width, height, tight around visible pixels; zeros if not seen.
    """

    seen: Bools
    total: Ints
    area: Ints
    box: Ints

    def take(self, chosen: Ints | Bools) -> Visibility:
        """Of some of the objects."""
        return Visibility._make(array[chosen] for array in self)


def visibility(options: Options, objects: Layout, shape: Ints, num_rows: int) -> Visibility:
    """Look at images from the front to the back.

    A pixel belongs to an object if its centre lies inside the outline. An object counts if at
    least ``min_visible`` of its pixels, and at least ``min_pixels`` (or all it has), are not
    covered by objects in front of it. One that does not is taken out and covers nothing (``hidden='remove'``), or
    stays where it is (``'draw'``).
    """
    side, count = options.image_size, len(objects.row)
    numbers = np.zeros((6, count), dtype=np.int64)
    result = Visibility(np.zeros(count, dtype=np.bool_), numbers[0], numbers[1], numbers[2:].T)
    masks: list[Bools] = [np.zeros((0, 0), dtype=np.bool_)] * count
    found = []
    left, top = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
    for patch in patches(objects, shape, side):
        inside = patch.distance < 0
        result.total[patch.objects] = np.count_nonzero(inside, axis=(1, 2))
        left[patch.objects], top[patch.objects] = patch.left, patch.top
        for place, number in enumerate(patch.objects.tolist()):
            masks[number] = inside[place]
        found.append((patch, inside))
    # What lies wholly open always counts, however small it is.
    floor = np.minimum(options.min_pixels, result.total)
    least = np.maximum(np.maximum(np.ceil(options.min_visible * result.total), floor), 1)
    _uncover(masks, (objects.row, left, top), least.tolist(), result, (num_rows, side, options.hidden == "draw"))
    for patch, inside in found:
        result.box[patch.objects] = _boxes(inside) + np.stack(
            [patch.left, patch.top, np.zeros_like(patch.left), np.zeros_like(patch.left)], axis=1
        )
    result.box[~result.seen] = 0
    return result


def _uncover(
    masks: list[Bools],
    places: tuple[Ints, Ints, Ints],
    least: list[float],
    result: Visibility,
    canvas: tuple[int, int, bool],
) -> None:
    """Take from every mask what objects in front of it cover, and decide which objects count."""
    num_rows, side, hidden_cover = canvas
    covered = np.zeros((num_rows, side, side), dtype=np.bool_)
    row, left, top = (array.tolist() for array in places)
    for number in reversed(range(len(masks))):
        mask = masks[number]
        x, y, size = left[number], top[number], len(mask)
        behind = covered[row[number], y : y + size, x : x + size]
        shown = mask > behind
        area = np.count_nonzero(shown)
        result.area[number] = area
        result.seen[number] = area >= least[number]
        if area >= least[number] or hidden_cover:
            np.logical_or(behind, mask, out=behind)
        mask[...] = shown


def _boxes(masks: Bools) -> Ints:
    """int64 ``[masks, 4]``: the tight x, y, width, height of each bool ``[side, side]``."""
    columns, rows = np.asarray(masks.any(axis=1)), np.asarray(masks.any(axis=2))
    x, y = columns.argmax(axis=1), rows.argmax(axis=1)
    right = masks.shape[2] - columns[:, ::-1].argmax(axis=1)
    bottom = masks.shape[1] - rows[:, ::-1].argmax(axis=1)
    return np.stack([x, y, right - x, bottom - y], axis=1)
