"""Texture families: where an object shows its second colour.

A texture is a function of the place on the object, in units of its radius, so it turns and
grows with it. Like the shapes it is tabulated once on the same grid.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from fedmlic.scenes.shapes import CELLS, REACH, ROUNDING
from fedmlic.seeds import stream

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

SHARPNESS = 8.0
"""One over the width of the soft edge between the two colours, in radii."""

STRIPES = 1.6
"""Pairs of stripes per radius: an object of 10 pixels' radius has stripes of 3.1 pixels."""


def _wave(values: Floats) -> Floats:
    """A triangle wave of period 1 between -1/4 and 1/4 whose slope is 1."""
    return np.asarray(0.25 - np.abs((values + 0.25) - np.floor(values + 0.25) - 0.5))


def _stripes(values: Floats) -> Floats:
    return np.asarray(0.5 + _wave(values * STRIPES) / STRIPES * SHARPNESS)


def _checked(x: Floats, y: Floats) -> Floats:
    return np.asarray(0.5 + _wave(x * STRIPES / 1.5) * _wave(y * STRIPES / 1.5) * 4 * SHARPNESS)


def _dotted(x: Floats, y: Floats) -> Floats:
    spacing = 0.62
    across, down = x / spacing, y / spacing
    from_centre = np.sqrt((across - np.round(across)) ** 2 + (down - np.round(down)) ** 2) * spacing
    return np.asarray(0.5 + (0.19 - from_centre) * SHARPNESS)


def _speckled(x: Floats, y: Floats) -> Floats:
    cells = stream(0, "scenes/speckles").random((16, 16)) < 0.4
    size = 0.2
    return np.asarray(cells[np.floor(y / size).astype(int) % 16, np.floor(x / size).astype(int) % 16], dtype=np.float64)


FAMILIES: dict[str, Callable[[Floats, Floats], Floats]] = {
    "plain": lambda x, _: np.zeros_like(x),
    "banded": lambda _, y: _stripes(y),
    "dotted": _dotted,
    "barred": lambda x, _: _stripes(x),
    "checked": _checked,
    "halved": lambda _, y: 0.5 + y * SHARPNESS,
    "ringed": lambda x, y: _stripes(np.sqrt(x * x + y * y) - 0.3),
    "slanted": lambda x, y: _stripes((x + y) / 2**0.5),
    "speckled": _speckled,
}

TEXTURES = tuple(FAMILIES)
"""All texture families, the easiest to tell apart first."""


@functools.cache
def table() -> NDArray[np.float32]:
    """float32 ``[textures, CELLS + 1, CELLS + 1]`` in [0, 1]: the share of the second colour, by ``TEXTURES``."""
    steps = np.linspace(-REACH, REACH, CELLS + 1)
    x, y = np.meshgrid(steps, steps)
    values = np.stack([np.clip(family(x, y), 0, 1) for family in FAMILIES.values()])
    return np.asarray(np.round(values * ROUNDING) / ROUNDING, dtype=np.float32)
