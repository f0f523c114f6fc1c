"""Labels by how often they are annotated as present in training: head, medium and tail.

A mean over labels says little where a few labels have thousands of positives and most have ten. So mAP is also given
over the labels of each frequency group. The default bounds are those of COCO-MLT (Wu et al. 2020,
"Distribution-Balanced Loss for Multi-Label Classification in Long-Tailed Datasets", ECCV): head above 100 positives,
medium 20 to 100, tail below 20. There they count images of one training set; here annotations of all clients'
training images, an image that two clients hold twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from fedmlic.counts import NAN, is_evaluable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedmlic.metrics import PerLabel

GROUPS: Final = ("head", "medium", "tail")
"""From frequent to rare."""


@dataclass(frozen=True)
class Frequencies:
    """How often each label is annotated as present, and where groups begin.

    Attributes:
        present: int64 ``[labels]``, training images of all clients that are annotated as having the label.
        tail_below: labels with fewer are tail.
        head_above: labels with more are head.
    """

    present: NDArray[np.int64]
    tail_below: int = 20
    head_above: int = 100

    def groups(self) -> dict[str, NDArray[np.bool_]]:
        """Bool ``[labels]`` by group; every label is in one of them."""
        head, tail = self.present > self.head_above, self.present < self.tail_below
        return {"head": head, "medium": ~head & ~tail, "tail": tail}


def by_frequency(
    per_label: PerLabel, frequencies: Frequencies, unannotated: NDArray[np.bool_] | None = None
) -> dict[str, float]:
    """Metrics of each frequency group that has labels.

    Args:
        per_label: of a split.
        frequencies: of the same labels.
        unannotated: bool ``[labels]``, labels that nobody annotates, which are in no group.

    Returns:
        ``mAP/head``, the mean average precision over the group's evaluable labels, NaN without any;
        ``prevalence/head``, the mAP of a constant score there; ``num-evaluable/head``; ``num-labels/head``;
        and the same for ``medium`` and ``tail``.
    """
    evaluable = is_evaluable(per_label.num_present, per_label.num_known)
    found: dict[str, float] = {}
    for group, chosen in frequencies.groups().items():
        own = chosen if unannotated is None else chosen & ~unannotated
        if not own.any():
            continue
        judged = own & evaluable
        known = per_label.num_known[judged]
        found |= {
            f"mAP/{group}": float(per_label.ap[judged].mean()) if judged.any() else NAN,
            f"prevalence/{group}": float((per_label.num_present[judged] / known).mean()) if judged.any() else NAN,
            f"num-evaluable/{group}": float(judged.sum()),
            f"num-labels/{group}": float(own.sum()),
        }
    return found
