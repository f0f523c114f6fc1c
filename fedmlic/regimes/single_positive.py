"""Single positive: one present label per image is known and nothing else.

The label is drawn once, uniformly among those present in the image, and never
again. Source: Cole et al., "Multi-Label Learning from Single Positive Labels"
(CVPR 2021). An image without a present label stays unknown throughout. Entries
that the data set itself marks uncertain stay uncertain.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedmlic.labels import PRESENT, UNKNOWN, known
from fedmlic.regime import Assignment, Regime

if TYPE_CHECKING:
    from numpy.typing import NDArray


def _annotate(assignment: Assignment) -> NDArray[np.int8]:
    labels = assignment.labels
    observed = np.where(known(labels), np.int8(UNKNOWN), labels)
    if labels.size:
        # The largest of several independent uniforms is each of them equally often.
        tickets = np.where(labels == PRESENT, assignment.uniforms("pick"), -1.0)
        images = np.flatnonzero(tickets.max(axis=1) >= 0)
        observed[images, tickets[images].argmax(axis=1)] = PRESENT
    return observed


def single_positive() -> Regime:
    """One present label per image, drawn uniformly; everything else is unknown."""
    return Regime(_annotate)
