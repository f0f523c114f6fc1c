"""Several annotators on one entry: what is written down in the end, and what it cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from fedmlic.labels import ABSENT, PRESENT, UNCERTAIN, known

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedmlic.regime import Assignment

Aggregation = Literal["single", "majority", "any", "unanimous", "two_coin"]
"""``single``: one annotator per image; ``majority``: present if more than half say so; ``any``: present
if one says so; ``unanimous``: what all say, else uncertain; ``two_coin``: what is more probable, by rates of
each annotator and label that are estimated from all votes on the client's images."""


def aggregate(
    says_present: NDArray[np.bool_], how: Aggregation, chosen: NDArray[np.int64], truth: NDArray[np.int8]
) -> NDArray[np.int8]:
    """int8 ``[images, labels]``: what is written down; entries that the data set does not know stay as they are.

    Args:
        says_present: bool ``[annotators, images, labels]``.
        how: the rule.
        chosen: int64 ``[images]``, the annotator of each image under ``"single"``.
        truth: int8 ``[images, labels]``.
    """
    num_annotators = len(says_present)
    votes = says_present.sum(axis=0)
    if how == "single":
        present = says_present[chosen, np.arange(truth.shape[0])]
    elif how == "majority":
        present = votes * 2 > num_annotators
    elif how == "two_coin":
        present = _more_probable(says_present, truth)
    else:
        present = votes > 0
    written = np.where(present, np.int8(PRESENT), np.int8(ABSENT))
    if how == "unanimous":
        written[(votes > 0) & (votes < num_annotators)] = UNCERTAIN
    return np.where(known(truth), written, truth)


def _more_probable(says_present: NDArray[np.bool_], truth: NDArray[np.int8]) -> NDArray[np.bool_]:
    """Bool ``[images, labels]``: which labels are there rather than not, by the votes on all these images alone."""
    import torch

    from fedmlic.annotation.two_coin import estimated_presence

    said = np.where(says_present, np.int8(PRESENT), np.int8(ABSENT))
    votes = torch.from_numpy(np.where(known(truth), said, truth))
    return np.asarray(estimated_presence(votes).numpy() > 0.5)


def turns(assignment: Assignment, how: Aggregation, num_annotators: int) -> NDArray[np.int64]:
    """int64 ``[images]``: which annotator gets each image under ``"single"``, each equally often; else 0."""
    if how != "single" or num_annotators == 1 or not assignment.labels.size:
        return np.zeros(len(assignment.labels), dtype=np.int64)
    return np.asarray((assignment.uniforms("turn")[:, 0] * num_annotators).astype(np.int64))


def looks(labels: NDArray[np.int8], how: Aggregation, num_annotators: int) -> NDArray[np.int64]:
    """int64 ``[images, labels]``: annotators who looked at each entry; one where the data set is uncertain."""
    each = 1 if how == "single" else num_annotators
    return np.where(known(labels), each, np.where(labels == UNCERTAIN, 1, 0))
