"""Candidate sets: every true label of an image, and some false ones that look the same.

Each present entry stays; each absent entry becomes a candidate, written down as
present, with one probability, on its own. Nothing tells a method which
candidates are false. Source: the protocol of partial multi-label learning as in
PML-CDCR (Sun, Xie and Huang, arXiv 2207.02410), whose scripts use 0.05, 0.1 and
0.2. It is class-conditional noise without misses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedmlic.annotation.draws import Chance, chance
from fedmlic.labels import ABSENT, PRESENT
from fedmlic.regime import Assignment, Regime

if TYPE_CHECKING:
    from numpy.typing import NDArray


def candidate_sets(*, probability: Chance = 0.1) -> Regime:
    """Absent entries become false candidates, each with one probability.

    Args:
        probability: of an absent entry to be written down as present, in [0, 1]; or drawn
            by each client from ``[low, high]`` or ``{"beta": [a, b]}``. An image gets
            ``probability * (labels - cardinality)`` false candidates on average.
    """

    def annotate(assignment: Assignment) -> NDArray[np.int8]:
        labels = assignment.labels
        share = chance(probability, assignment, "probability")
        false = (labels == ABSENT) & (assignment.uniforms("candidate") < share)
        return np.where(false, np.int8(PRESENT), labels)

    return Regime(annotate, adds_wrong=True)
