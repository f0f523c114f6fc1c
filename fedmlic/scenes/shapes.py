"""Shape families as signed-distance tables.

Each shape is an outline (a polygon, or strokes of a pen) that just fits into the unit circle.
Its signed distance (negative inside) is tabulated once per process on a square grid and
interpolated bilinearly when an object is drawn at any size and tilt. Entries are rounded to
1/2048, so the last digit of a platform's sine cannot change a pixel.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Outline = list[tuple[float, float]]

REACH = 1.2
"""The table covers [-REACH, REACH] along both axes, in units of the object's radius."""

CELLS = 96
"""Cells of the table along each axis."""

ROUNDING = 2048


def _circle(radius_x: float, radius_y: float, num: int = 96) -> Outline:
    return [
        (radius_x * math.cos(2 * math.pi * i / num), radius_y * math.sin(2 * math.pi * i / num)) for i in range(num)
    ]


def _regular(corners: int, start: float = -90.0) -> Outline:
    turns = [math.radians(start + 360 * i / corners) for i in range(corners)]
    return [(math.cos(t), math.sin(t)) for t in turns]


def _star(points: int, inner: float) -> Outline:
    turns = [math.radians(-90 + 180 * i / points) for i in range(2 * points)]
    return [(math.cos(t) * r, math.sin(t) * r) for i, t in enumerate(turns) for r in [inner if i % 2 else 1.0]]


def _gear() -> Outline:
    outline = []
    for tooth in range(8):
        for part, radius in ((-0.3, 0.7), (-0.22, 1.0), (0.22, 1.0), (0.3, 0.7)):
            turn = 2 * math.pi * (tooth + part) / 8
            outline.append((radius * math.cos(turn), radius * math.sin(turn)))
    return outline


def _flower() -> Outline:
    turns = [2 * math.pi * i / 160 for i in range(160)]
    radii = [0.72 + 0.28 * math.cos(5 * turn) for turn in turns]
    return [(r * math.sin(t), -r * math.cos(t)) for r, t in zip(radii, turns, strict=True)]


def _heart() -> Outline:
    outline = []
    for i in range(120):
        t = 2 * math.pi * i / 120
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        outline.append((x / 17, -(y + 2.5) / 17))
    return outline


def _crescent() -> Outline:
    outer = [(math.cos(math.radians(a)), math.sin(math.radians(a))) for a in range(50, 311, 4)]
    inner = [(0.42 + 0.8 * math.cos(math.radians(a)), 0.8 * math.sin(math.radians(a))) for a in range(286, 73, -4)]
    return outer + inner


def _drop() -> Outline:
    round_part = [
        (0.62 * math.cos(math.radians(a)), 0.35 + 0.62 * math.sin(math.radians(a))) for a in range(-30, 211, 5)
    ]
    return [(0.0, -1.0), *round_part]


def _mirrored(half: Outline) -> Outline:
    """An outline symmetric about the vertical axis from its right half, top to bottom."""
    return half + [(-x, y) for x, y in reversed(half)]


POLYGONS: dict[str, Outline] = {
    "disc": _circle(0.95, 0.95),
    "triangle": _regular(3),
    "star": _star(5, 0.42),
    "square": [(-0.7, -0.7), (0.7, -0.7), (0.7, 0.7), (-0.7, 0.7)],
    "cross": _mirrored([(0.3, -0.95), (0.3, -0.3), (0.95, -0.3), (0.95, 0.3), (0.3, 0.3), (0.3, 0.95)]),
    "heart": _heart(),
    "crescent": _crescent(),
    "arrow": _mirrored([(0, -1), (0.75, -0.1), (0.28, -0.1), (0.28, 0.95)]),
    "gear": _gear(),
    "flower": _flower(),
    "tee": _mirrored([(0.8, -0.75), (0.8, -0.2), (0.28, -0.2), (0.28, 0.9)]),
    "ell": [(-0.6, -0.85), (-0.05, -0.85), (-0.05, 0.35), (0.7, 0.35), (0.7, 0.85), (-0.6, 0.85)],
    "ellipse": _circle(1.0, 0.52),
    "hexagon": _regular(6, 0.0),
    "hourglass": _mirrored([(0.7, -0.85), (0.12, 0), (0.7, 0.85)]),
    "bolt": [(0.3, -1), (-0.6, 0.15), (-0.08, 0.15), (-0.3, 1), (0.62, -0.25), (0.1, -0.25)],
    "house": _mirrored([(0, -0.98), (0.9, -0.12), (0.66, -0.12), (0.66, 0.8)]),
    "drop": _drop(),
    "fish": [
        (-0.95, 0),
        (-0.5, -0.42),
        (0.05, -0.5),
        (0.5, -0.14),
        (0.98, -0.5),
        (0.98, 0.5),
        (0.5, 0.14),
        (0.05, 0.5),
        (-0.5, 0.42),
    ],
}
"""Filled outlines, y pointing down."""


def _arc(x: float, y: float, radius: tuple[float, float], start: float, stop: float) -> Outline:
    num = max(4, round(abs(stop - start) / 12))
    turns = [math.radians(start + (stop - start) * i / num) for i in range(num + 1)]
    return [(x + radius[0] * math.cos(t), y + radius[1] * math.sin(t)) for t in turns]


def _spiral() -> Outline:
    turns = [math.radians(a) for a in range(0, 660, 10)]
    return [((0.05 + 0.067 * t) * math.cos(t), (0.05 + 0.067 * t) * math.sin(t)) for t in turns]


STROKES: dict[str, tuple[float, list[Outline]]] = {
    "ring": (0.24, [_circle(0.72, 0.72)]),
    "spiral": (0.14, [_spiral()]),
    "zero": (0.2, [_circle(0.45, 0.72)]),
    "one": (0.2, [[(-0.35, -0.4), (0.05, -0.75), (0.05, 0.75)]]),
    "two": (0.2, [[*_arc(0, -0.33, (0.45, 0.42), 190, 380), (-0.48, 0.72), (0.52, 0.72)]]),
    "three": (0.2, [_arc(-0.05, -0.38, (0.45, 0.36), 200, 430), _arc(-0.05, 0.34, (0.5, 0.4), -80, 160)]),
    "four": (0.2, [[(0.25, 0.78), (0.25, -0.75), (-0.55, 0.3), (0.6, 0.3)]]),
    "five": (0.2, [[(0.45, -0.74), (-0.4, -0.74), (-0.44, -0.1), *_arc(-0.02, 0.28, (0.5, 0.46), -125, 150)]]),
    "six": (0.2, [[(0.3, -0.78), (-0.2, -0.35), *_arc(0, 0.32, (0.45, 0.44), 200, 560)]]),
    "seven": (0.2, [[(-0.5, -0.72), (0.5, -0.72), (-0.1, 0.78)]]),
    "eight": (0.18, [_arc(0, -0.4, (0.36, 0.36), 0, 360), _arc(0, 0.36, (0.45, 0.42), 0, 360)]),
    "nine": (0.2, [[(-0.3, 0.78), (0.2, 0.35), *_arc(0, -0.32, (0.45, 0.44), 20, 380)]]),
}
"""Half the width of the pen, and the lines it draws. Digits are drawn here, not taken from a font."""

SHAPES = (
    *("disc", "triangle", "star", "cross", "heart", "crescent", "square", "ring", "arrow", "flower", "ell", "gear"),
    *("hourglass", "spiral", "bolt", "house", "tee", "drop", "fish", "hexagon", "ellipse"),
    *("two", "four", "five", "seven", "three", "one", "six", "nine", "eight", "zero"),
)
"""All shape families, the easiest to tell apart first."""


def _to_lines(x: Floats, y: Floats, line: Outline) -> Floats:
    """Distance of each point to the nearest piece of an open line."""
    nearest = np.full(x.shape, np.inf)
    for (x0, y0), (x1, y1) in itertools.pairwise(line):
        dx, dy = x1 - x0, y1 - y0
        part = np.clip(((x - x0) * dx + (y - y0) * dy) / max(dx * dx + dy * dy, 1e-12), 0, 1)
        nearest = np.minimum(nearest, (x - x0 - part * dx) ** 2 + (y - y0 - part * dy) ** 2)
    return np.asarray(np.sqrt(nearest))


def _inside(x: Floats, y: Floats, outline: Outline) -> NDArray[np.bool_]:
    """Whether each point lies in a polygon: a ray to the right crosses it an odd number of times."""
    odd = np.zeros(x.shape, dtype=np.bool_)
    for (x0, y0), (x1, y1) in zip(outline, [*outline[1:], outline[0]], strict=True):
        if y0 != y1:
            crosses = (y0 > y) != (y1 > y)
            odd ^= crosses & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    return odd


def signed_distance(name: str, x: Floats, y: Floats) -> Floats:
    """Distance of points to the shape's outline, negative inside; one unit is the object's radius.

    >>> round(float(signed_distance("disc", np.array(0.5), np.array(0.0))), 3)
    -0.5
    """
    pen, lines = STROKES.get(name) or (0.0, [POLYGONS[name]])
    # Whatever the numbers above say, the farthest point ends up on the unit circle.
    size = max(math.hypot(*point) for line in lines for point in line) + pen
    x, y = x * size, y * size
    closed = [[*line, line[0]] if not pen or name in {"ring", "zero"} else line for line in lines]
    distance = np.min([_to_lines(x, y, line) for line in closed], axis=0) - pen
    if not pen:
        distance = np.where(_inside(x, y, lines[0]), -distance, distance)
    return np.asarray(distance / size)


@functools.cache
def table() -> NDArray[np.float32]:
    """float32 ``[shapes, CELLS + 1, CELLS + 1]``: the signed distance of every shape, by ``SHAPES``."""
    steps = np.linspace(-REACH, REACH, CELLS + 1)
    x, y = np.meshgrid(steps, steps)
    distances = np.stack([signed_distance(name, x, y) for name in SHAPES])
    return np.asarray(np.round(distances * ROUNDING) / ROUNDING, dtype=np.float32)
