"""Withheld: labels that nobody annotates, the same at every client.

What can be predicted of a label that no client was ever asked about? The entries of
some labels are hidden from all clients, whatever else the regime does; the server's
images keep them, so they can be judged (``server/mAP/unannotated``, ``docs/metrics.md``).

Which labels: those named, or ``count`` drawn by the seed. One random order of all
labels is drawn; the first ``count`` labels of that order that can be judged are
withheld. So a smaller count withholds a subset of a larger one, and the choice depends
on the seed and the data set alone: not on the partition, the number of clients, the
other regimes of a composition, or the place in it.

Source: this project's own; the setting is that of zero-shot multi-label classification
(Lee et al., "Multi-Label Zero-Shot Learning with Structured Knowledge Graphs", CVPR
2018), spread over clients.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from fedmlic.annotation.label_columns import columns_of, names_of
from fedmlic.errors import InputError
from fedmlic.labels import UNKNOWN, known
from fedmlic.regime import Assignment, Regime

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

WHAT = "labels of withheld"


def _drawn(assignment: Assignment, count: int, min_entries: int) -> NDArray[np.int64]:
    """int64 ``[count]``: the first labels of the seed's order that can be judged."""
    num_labels = assignment.labels.shape[1]
    # Its own stream wherever it stands in a composition, so that compositions withhold the same labels.
    first = dataclasses.replace(assignment, path=(0,))
    order = first.shared_rng("withheld").permutation(num_labels)
    judged = assignment.judged()
    able = order[judged[order] >= min_entries] if len(judged) else order
    if count > len(able):
        msg = (
            f"Expected count of withheld to be at most the {len(able)} of {num_labels} labels with at least "
            f"{min_entries} present and {min_entries} absent test images, got {count}. Lower count or min_entries."
        )
        raise InputError(msg)
    return np.asarray(able[:count], dtype=np.int64)


def _withheld(
    assignment: Assignment, labels: tuple[str, ...] | None, count: int, min_entries: int
) -> NDArray[np.bool_]:
    """Bool ``[labels]``: those that nobody annotates."""
    num_labels = assignment.labels.shape[1]
    hidden = np.zeros(num_labels, dtype=np.bool_)
    columns = _drawn(assignment, count, min_entries) if labels is None else None
    hidden[columns_of(labels or (), assignment.label_names, WHAT) if columns is None else columns] = True
    if num_labels and hidden.all():
        msg = f"Expected withheld to leave a label that is annotated, got all {num_labels} withheld. Withhold fewer."
        raise InputError(msg)
    return hidden


def _hiding(hidden_of: Callable[[Assignment], NDArray[np.bool_]]) -> Regime:
    def annotate(assignment: Assignment) -> NDArray[np.int8]:
        found = assignment.labels
        return np.where(known(found) & hidden_of(assignment), np.int8(UNKNOWN), found)

    def prepare(everyone: Assignment) -> Regime:
        hidden = hidden_of(everyone)
        return _hiding(lambda _: hidden)

    return Regime(annotate, prepare=prepare)


def withheld(
    *,
    labels: tuple[str, ...] | str | None = None,
    count: Annotated[int, Field(ge=0)] | None = None,
    min_entries: Annotated[int, Field(ge=0)] = 5,
) -> Regime:
    """Labels that no client annotates.

    Args:
        labels: names, as a list or as one text with commas between them.
        count: instead, how many labels to draw, 0 or more; 1 if neither is given.
        min_entries: a label is drawn only if it is known to be present on at least so many of the
            server's test images and known to be absent on as many, so that it can be judged; of
            validation images where there are no test images. Without either any label is drawn.

    Raises:
        InputError: labels and a count are both given, or a name is empty or given twice; when the
            federation is built, names that the data set does not have, a count that is too large,
            or no label left to annotate.
    """
    if labels is not None and count is not None:
        msg = f"Expected withheld to be given labels or a count, got labels and count={count}. Leave one out."
        raise InputError(msg)
    names = None if labels is None else names_of(labels, WHAT)
    number = 1 if count is None else count
    return _hiding(lambda assignment: _withheld(assignment, names, number, min_entries))
