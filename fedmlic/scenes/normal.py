"""The normal distribution from a table: fast on arrays, without SciPy.

Linear interpolation between 16,385 exact knots on [-8, 8]; the distribution function is off by
less than 1e-7.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

LIMIT = 8.0
KNOTS = 16_385


@functools.cache
def _table() -> tuple[Floats, Floats]:
    places = np.linspace(-LIMIT, LIMIT, KNOTS)
    values = np.array([0.5 * math.erfc(-place / math.sqrt(2)) for place in places.tolist()])
    return places, values


def distribution(values: Floats) -> Floats:
    """P(Z <= value) for a standard normal Z, of any shape.

    >>> round(float(distribution(np.array(1.959964))), 4)
    0.975
    """
    return np.asarray(np.interp(values, *_table()))


def quantile(probabilities: Floats) -> Floats:
    """The value below which a standard normal falls with that probability, limited to [-8, 8].

    >>> round(float(quantile(np.array(0.975))), 3)
    1.96
    """
    places, values = _table()
    return np.asarray(np.interp(probabilities, values, places))
