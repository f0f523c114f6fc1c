"""Label subset: each client annotates only some of the labels.

A client draws its labels once, uniformly without replacement, from a stream of
its own, so they depend on neither the other clients nor its images. What it does
not annotate is either unknown, or silently absent: present entries turn into
known absences, as in the released code of FedMLP (arXiv 2406.18995), where every
client has labels that it never looked for. Unlike there, clients draw at
random instead of taking label k at client k.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from fedmlic.errors import InputError
from fedmlic.labels import ABSENT, PRESENT, UNKNOWN, known
from fedmlic.regime import Assignment, Regime

if TYPE_CHECKING:
    from numpy.typing import NDArray


def _annotated(assignment: Assignment, labels_per_client: int) -> NDArray[np.bool_]:
    """Bool ``[labels]``: the labels this client annotates."""
    num_labels = assignment.labels.shape[1]
    if labels_per_client > num_labels:
        msg = (
            f"Expected labels_per_client of label_subset to be at most the {num_labels} labels of the data set, "
            f"got {labels_per_client}."
        )
        raise InputError(msg)
    annotated = np.zeros(num_labels, dtype=np.bool_)
    annotated[assignment.rng("labels").choice(num_labels, labels_per_client, replace=False)] = True
    return annotated


def label_subset(
    *, labels_per_client: Annotated[int, Field(ge=1)] = 3, missing: Literal["unknown", "absent"] = "unknown"
) -> Regime:
    """Each client annotates its own few labels; the others are unknown or silently absent.

    Args:
        labels_per_client: how many labels each client annotates.
        missing: what the other labels say: ``"unknown"``, or ``"absent"`` for present
            entries written down as absent (adds wrong labels).

    Raises:
        InputError: at the first client, when the data set has fewer labels than that.
    """

    def annotate(assignment: Assignment) -> NDArray[np.int8]:
        labels = assignment.labels
        lost = known(labels) if missing == "unknown" else labels == PRESENT
        state = np.int8(UNKNOWN if missing == "unknown" else ABSENT)
        return np.where(lost & ~_annotated(assignment, labels_per_client), state, labels)

    return Regime(annotate, adds_wrong=missing == "absent")
