"""Complete: the annotators wrote down everything the data set knows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedmlic.regime import Assignment, Regime

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def _annotate(assignment: Assignment) -> NDArray[np.int8]:
    return assignment.labels.copy()


def complete() -> Regime:
    """Every label as the data set has it; what is unknown there stays unknown."""
    return Regime(_annotate)
