"""Colours by plain arithmetic: the same bytes on every machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

LUMA = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue in brightness (ITU-R BT.601)."""


def rgb(hue: Floats, saturation: Floats, value: Floats) -> Floats:
    """Red, green and blue in [0, 1] along a new last axis; hue in turns.

    >>> rgb(np.array(0.0), np.array(1.0), np.array(0.5)).tolist()
    [0.5, 0.0, 0.0]
    """
    place = np.asarray(hue)[..., None] * 6 + np.array([5.0, 3.0, 1.0])
    place = place - np.floor(place / 6) * 6
    part = np.clip(np.minimum(place, 4 - place), 0, 1)
    return np.asarray(np.asarray(value)[..., None] * (1 - np.asarray(saturation)[..., None] * part))


def brightness(colours: Floats) -> Floats:
    """``[...]`` of ``[..., 3]``."""
    return np.asarray(colours[..., 0] * LUMA[0] + colours[..., 1] * LUMA[1] + colours[..., 2] * LUMA[2])
