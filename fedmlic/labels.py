"""What one annotation can say: present, absent, unknown or uncertain.

Labels travel as int8 arrays ``[images, labels]`` with these four states from
the data set's reader to the report. No other code for them exists: the field's
released programs disagree on whether 0 means *absent* or *unknown*, and mixing
them up is silent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, overload

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    Labels = NDArray[np.int8]

PRESENT: Final = 1
ABSENT: Final = 0
UNKNOWN: Final = -1
UNCERTAIN: Final = -2

STATES: Final = {
    "present": PRESENT,
    "absent": ABSENT,
    "unknown": UNKNOWN,
    "uncertain": UNCERTAIN,
}
"""The code table, as it is saved in every corpus manifest."""


@overload
def known(labels: Labels) -> NDArray[np.bool_]: ...
@overload
def known(labels: Tensor) -> Tensor: ...
def known(labels: Labels | Tensor) -> NDArray[np.bool_] | Tensor:
    """Which entries are annotations: present or absent. NumPy array or torch tensor, any shape."""
    return labels >= 0


def check_labels(labels: Labels, num_labels: int | None = None) -> None:
    """Raise ``ValueError`` unless ``labels`` is int8 ``[images, labels]`` of the four states."""
    if labels.dtype != np.int8 or labels.ndim != 2:
        msg = (
            f"Expected labels to be int8 [images, labels], got {labels.dtype} {list(labels.shape)}. "
            "Encode them with PRESENT, ABSENT, UNKNOWN and UNCERTAIN of fedmlic.labels."
        )
        raise ValueError(msg)
    if num_labels is not None and labels.shape[1] != num_labels:
        msg = f"Expected labels to have {num_labels} columns, got {labels.shape[1]}."
        raise ValueError(msg)
    if labels.size and (labels.min() < UNCERTAIN or labels.max() > PRESENT):
        bad = sorted(set(np.unique(labels).tolist()) - set(STATES.values()))
        msg = f"Expected label states to be one of {STATES}, got {bad}."
        raise ValueError(msg)
