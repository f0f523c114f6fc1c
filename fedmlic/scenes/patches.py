"""Small square patches of the image around objects: where their tables are looked up.

Objects are drawn in patches just large enough, those of one size together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedmlic.scenes import shapes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from fedmlic.scenes.layout import Layout

    Floats = NDArray[np.float32]
    Ints = NDArray[np.int64]

STEP = 4
"""Sides of patches are multiples of this many pixels."""

GRID = shapes.CELLS + 1
PIXELS_AT_ONCE = 1 << 15
"""Keeps temporary arrays within the processor's cache."""


class Patch(NamedTuple):
    """Patches of one size.

    Attributes:
        objects: int64 ``[patches]``, which objects.
        left: int64 ``[patches]``, column of the patch's first pixel.
        top: int64 ``[patches]``.
        distance: float32 ``[patches, side, side]``, signed distance to the shape's outline, pixels.
        nearest: int64 ``[patches, side, side]``, nearest entry of a texture's table.
    """

    objects: Ints
    left: Ints
    top: Ints
    distance: Floats
    nearest: Ints


def patches(objects: Layout, shape: Ints, image_size: int) -> Iterator[Patch]:
    """Patches of all objects; ``shape [objects]`` is each one's place in ``SHAPES``."""
    side = np.minimum((2 * objects.radius + 3).astype(np.int64) // STEP * STEP + STEP, image_size)
    order = np.argsort(side, kind="stable")
    cuts = np.flatnonzero(np.diff(side[order])) + 1
    for same in np.split(order, cuts):
        if len(same):
            step = max(1, PIXELS_AT_ONCE // int(side[same[0]]) ** 2)
            for start in range(0, len(same), step):
                chosen = same[start : start + step]
                yield _patch(objects, shape, chosen, (int(side[chosen[0]]), image_size))


def _patch(objects: Layout, shape: Ints, chosen: Ints, sides: tuple[int, int]) -> Patch:
    side, image_size = sides
    radius, half = objects.radius[chosen], objects.tilt[chosen]
    x, y = objects.x[chosen], objects.y[chosen]
    left = np.clip(np.floor(x - radius - 1).astype(np.int64), 0, image_size - side)
    top = np.clip(np.floor(y - radius - 1).astype(np.int64), 0, image_size - side)
    # tan(angle / 2) gives sine and cosine by division alone, the same on every machine.
    scale = np.float32(shapes.CELLS / (2 * shapes.REACH)) / radius
    cosine, sine = scale * (1 - half * half) / (1 + half * half), scale * 2 * half / (1 + half * half)
    steps = np.arange(side, dtype=np.float32) + np.float32(0.5)
    across = (steps + (left - x).astype(np.float32)[:, None])[:, None, :]
    down = (steps + (top - y).astype(np.float32)[:, None])[:, :, None]
    middle, limit = np.float32(shapes.CELLS / 2), np.float32(shapes.CELLS - 0.001)
    u = across * cosine[:, None, None] + (down * sine[:, None, None] + middle)
    v = down * cosine[:, None, None] - (across * sine[:, None, None] - middle)
    np.clip(u, 0, limit, out=u)
    np.clip(v, 0, limit, out=v)
    column, line = u.astype(np.int64), v.astype(np.int64)
    u -= column
    v -= line
    first = line * GRID + column
    nearest = first + (v > np.float32(0.5)) * GRID + (u > np.float32(0.5))
    first += (shape[chosen] * (GRID * GRID))[:, None, None]
    return Patch(chosen, left, top, _interpolated(first, u, v) * radius[:, None, None], nearest)


def _interpolated(first: Ints, u: Floats, v: Floats) -> Floats:
    """Bilinear interpolation of the shapes' table at entry ``first`` and the fractions ``u``, ``v`` of a cell."""
    table = shapes.table().ravel()
    upper = table.take(first)
    upper += (table.take(first + 1) - upper) * u
    lower = table.take(first + GRID)
    lower += (table.take(first + (GRID + 1)) - lower) * u
    lower -= upper
    lower *= v
    lower += upper
    return np.asarray(lower)
