"""Label noise: present entries are missed and absent ones written down as present, by class-conditional rates.

``P(absent is written | present) = miss`` and ``P(present is written | absent) =
spurious``, independent over entries and equal for all labels: the field's
standard model of multi-label noise. Source: Li et al., "Estimating Noise
Transition Matrix with Label Correlations for Noisy Multi-Label Learning"
(NeurIPS 2022), whose pairs (spurious, miss) are (0, 0.2), (0, 0.6), (0.2, 0),
(0.6, 0), (0.1, 0.1) and (0.2, 0.2). Its fourth kind, equal-count noise, is
``equal_count=True``: spurious = miss * positives / negatives, so that as many
entries are added as are missed, on average.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from fedmlic.annotation.draws import Chance, Drawn, chance
from fedmlic.errors import InputError
from fedmlic.labels import ABSENT, PRESENT
from fedmlic.regime import Assignment, Regime

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CHUNK = 1 << 16


def _ratio(labels: NDArray[np.int8]) -> float:
    """Present entries per absent one."""
    present = absent = 0
    for start in range(0, len(labels), _CHUNK):
        chunk = labels[start : start + _CHUNK]
        present += int(np.count_nonzero(chunk == PRESENT))
        absent += int(np.count_nonzero(chunk == ABSENT))
    return present / absent if absent else 0.0


def _flip(labels: NDArray[np.int8], uniforms: NDArray[np.float64], miss: float, spurious: float) -> NDArray[np.int8]:
    missed = (labels == PRESENT) & (uniforms < miss)
    added = (labels == ABSENT) & (uniforms < spurious)
    return np.where(missed, np.int8(ABSENT), np.where(added, np.int8(PRESENT), labels))


def _counted(miss: Drawn, ratio: float | None) -> Regime:
    """Equal-count noise, by the ratio of all clients together or, for ``None``, of each client."""

    def annotate(assignment: Assignment) -> NDArray[np.int8]:
        labels = assignment.labels
        lost = chance(miss, assignment, "miss")
        added = min(1.0, lost * (_ratio(labels) if ratio is None else ratio))
        return _flip(labels, assignment.uniforms("flip"), lost, added)

    return Regime(annotate, adds_wrong=True, counts_images=True)


def _plain(miss: Drawn, spurious: Drawn) -> Regime:
    def annotate(assignment: Assignment) -> NDArray[np.int8]:
        lost, added = chance(miss, assignment, "miss"), chance(spurious, assignment, "spurious")
        return _flip(assignment.labels, assignment.uniforms("flip"), lost, added)

    return Regime(annotate, adds_wrong=True)


def label_noise(
    *,
    miss: Chance = 0.2,
    spurious: Chance = 0.0,
    equal_count: bool = False,
    over: Literal["federation", "client"] = "federation",
) -> Regime:
    """Entries are flipped at random, one by one.

    Args:
        miss: probability in [0, 1] that a present entry is written down as absent; or drawn
            by each client from ``[low, high]`` or ``{"beta": [a, b]}``.
        spurious: probability in [0, 1] that an absent entry is written down as present, or
            drawn likewise.
        equal_count: set spurious to miss * positives / negatives (1 at most) instead.
        over: whose positives and negatives ``equal_count`` counts: those of all clients
            together, as the source does over its training set, or each client's own.

    Raises:
        InputError: both ``spurious`` and ``equal_count`` are given.
    """
    if not equal_count:
        return _plain(miss, spurious)
    if spurious != 0:
        msg = f"Expected label_noise to be given spurious or equal_count=True, got both (spurious={spurious})."
        raise InputError(msg)
    alone = _counted(miss, None)
    if over == "client":
        return alone
    return alone._replace(prepare=lambda everyone: _counted(miss, _ratio(everyone.labels)))
