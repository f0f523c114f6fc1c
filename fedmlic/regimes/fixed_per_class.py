"""Fixed per class: every label has the same number of known positives and known negatives.

Per label, at most ``positives`` present and ``negatives`` absent entries are
known, drawn uniformly without replacement; everything else is unknown. Source:
the FPC setting of CSL (Ben-Baruch et al., "Multi-label Classification with
Partial Annotations using Class-aware Selective Loss", CVPR 2022), with 1,000 of
each over the whole training set. That is ``over="federation"``: the clients
together know that many. ``over="client"`` gives every client its own quota: an
annotation budget per site.

What is known depends on which images there are, by the nature of the rule, and
never on their order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from fedmlic.labels import ABSENT, PRESENT, UNKNOWN, known
from fedmlic.regime import Assignment, Regime

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

_CHUNK_ENTRIES = 1 << 22


def _chunks(labels: NDArray[np.int8]) -> Iterator[slice]:
    step = max(1, _CHUNK_ENTRIES // max(1, labels.shape[1]))
    return (slice(start, start + step) for start in range(0, len(labels), step))


def _thresholds(
    labels: NDArray[np.int8], tickets: Callable[[slice], NDArray[np.float64]], state: int, quota: int
) -> NDArray[np.float64]:
    """float64 ``[labels]``: the largest ticket that is among the ``quota`` smallest of its label and state.

    Holds ``quota`` tickets per label and one chunk of images at a time.
    """
    best = np.empty((0, labels.shape[1]))
    if quota == 0:
        return np.full(labels.shape[1], -1.0)
    for images in _chunks(labels):
        found = np.where(labels[images] == state, tickets(images), 2.0)
        best = np.concatenate((best, found))
        if len(best) > quota:
            best = np.partition(best, quota - 1, axis=0)[:quota]
    return np.asarray(best.max(axis=0, initial=-1.0)) if len(best) >= quota else np.full(labels.shape[1], 2.0)


def _both(
    labels: NDArray[np.int8], tickets: Callable[[slice], NDArray[np.float64]], quotas: tuple[int, int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    present, absent = (
        _thresholds(labels, tickets, state, n) for state, n in zip((PRESENT, ABSENT), quotas, strict=True)
    )
    return present, absent


def _keep(
    labels: NDArray[np.int8],
    tickets: NDArray[np.float64],
    thresholds: tuple[NDArray[np.float64], NDArray[np.float64]],
) -> NDArray[np.int8]:
    limit = np.where(labels == PRESENT, thresholds[0], thresholds[1])
    return np.where(known(labels) & (tickets > limit), np.int8(UNKNOWN), labels)


def _per_client(quotas: tuple[int, int]) -> Regime:
    def annotate(assignment: Assignment) -> NDArray[np.int8]:
        tickets = assignment.uniforms("quota")
        return _keep(assignment.labels, tickets, _both(assignment.labels, lambda images: tickets[images], quotas))

    return Regime(annotate, counts_images=True, selective=True)


def _over_federation(quotas: tuple[int, int]) -> Regime:
    def prepare(everyone: Assignment) -> Regime:
        thresholds = _both(everyone.labels, lambda images: everyone.shared_uniforms("quota", images), quotas)

        def annotate(assignment: Assignment) -> NDArray[np.int8]:
            return _keep(assignment.labels, assignment.shared_uniforms("quota"), thresholds)

        return Regime(annotate, counts_images=True, selective=True)

    def alone(assignment: Assignment) -> NDArray[np.int8]:
        return prepare(assignment).annotate(assignment)

    return Regime(alone, counts_images=True, selective=True, prepare=prepare)


def fixed_per_class(
    *,
    positives: Annotated[int, Field(ge=0)] = 1000,
    negatives: Annotated[int, Field(ge=0)] = 1000,
    over: Literal["federation", "client"] = "federation",
) -> Regime:
    """A quota of known positives and negatives per label.

    Args:
        positives: most present entries of each label that are known, 0 or more.
        negatives: most absent entries of each label that are known, 0 or more.
        over: who shares a quota: all clients together, or each client alone.
    """
    quotas = (positives, negatives)
    return _over_federation(quotas) if over == "federation" else _per_client(quotas)
