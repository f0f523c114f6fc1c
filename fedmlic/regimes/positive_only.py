"""Positive only: annotators write down what they see, and nobody writes down an absence.

Tags, captions and reports are like that: a name that is not there may be absent
or forgotten. Every present entry is known with one probability, on its own;
every other entry is unknown. Positive-and-unlabelled learning starts from this,
and so does federated learning with positive labels only (FedAwS, Yu et al.,
ICML 2020, where each client has one label: compose this with
``label_subset(labels_per_client=1)``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedmlic.annotation.draws import Chance, chance
from fedmlic.labels import ABSENT, PRESENT, UNKNOWN
from fedmlic.regime import Assignment, Regime

if TYPE_CHECKING:
    from numpy.typing import NDArray


def positive_only(*, known_fraction: Chance = 1.0) -> Regime:
    """Present entries are known, each with one probability; absences never are.

    Args:
        known_fraction: probability in [0, 1] that a present entry is known; or drawn by
            each client from ``[low, high]`` or ``{"beta": [a, b]}``.
    """

    def annotate(assignment: Assignment) -> NDArray[np.int8]:
        labels = assignment.labels
        fraction = chance(known_fraction, assignment, "known_fraction")
        lost = (labels == PRESENT) & (assignment.uniforms("tag") >= fraction)
        return np.where(lost | (labels == ABSENT), np.int8(UNKNOWN), labels)

    return Regime(annotate, selective=True)
