"""Random missing: each entry is known with one probability, on its own.

The entry-wise protocol of the partial-label literature (for example SST, Chen et
al., AAAI 2022, there with equal treatment of present and absent entries:
``of="all"``). ``of="present"`` hides present entries only, so that what is known
is mostly absences; ``of="absent"`` hides absent entries only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from fedmlic.annotation.draws import Chance, chance
from fedmlic.labels import ABSENT, PRESENT, UNKNOWN, known
from fedmlic.regime import Assignment, Regime

if TYPE_CHECKING:
    from numpy.typing import NDArray


def _at_risk(labels: NDArray[np.int8], of: str) -> NDArray[np.bool_]:
    if of == "all":
        return known(labels)
    return np.equal(labels, PRESENT if of == "present" else ABSENT)


def random_missing(*, known_fraction: Chance = 0.5, of: Literal["all", "present", "absent"] = "all") -> Regime:
    """Entries go missing at random, one by one.

    Args:
        known_fraction: probability in [0, 1] that an entry named by ``of`` stays known; or
            drawn by each client from ``[low, high]`` or ``{"beta": [a, b]}``.
        of: which entries can go missing; the others stay known.
    """

    def annotate(assignment: Assignment) -> NDArray[np.int8]:
        fraction = chance(known_fraction, assignment, "known_fraction")
        hidden = _at_risk(assignment.labels, of) & (assignment.uniforms("keep") >= fraction)
        return np.where(hidden, np.int8(UNKNOWN), assignment.labels)

    return Regime(annotate, selective=of != "all")
