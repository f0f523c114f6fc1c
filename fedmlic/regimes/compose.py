"""Compose: regimes one after another, each on what the one before wrote down.

``compose(regimes=["annotators()", "label_subset(labels_per_client=3)"])``: the
annotators make their mistakes, and each client's annotators work on three labels
only. Each part draws from streams of its own, so the same regime twice draws
twice; the first part draws what it would draw alone, so the composition and its
first part are compared on equal ground.

A part that counts over all clients (``fixed_per_class``, equal-count
``label_noise``) counts the data set's own labels, not what earlier parts left:
what is hidden stays hidden, and a quota may not be filled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from fedmlic.regime import Assignment, Regime, prepared
from fedmlic.spec import build

if TYPE_CHECKING:
    from numpy.typing import NDArray


def _placed(parts: list[Regime]) -> list[tuple[int, Regime]]:
    """Each part and how many came before it, those of inner compositions counted one by one."""
    counts = [part.num_parts for part in parts]
    return [(sum(counts[:place]), part) for place, part in enumerate(parts)]


def _annotate(parts: list[Regime], assignment: Assignment) -> NDArray[np.int8]:
    labels = assignment.labels
    for place, part in _placed(parts):
        labels = part.annotate(assignment.part(labels, place))
    return labels


def _looks(parts: list[Regime], assignment: Assignment) -> NDArray[np.int64]:
    """Looks per entry: the product over the parts, for a later part works where the earlier ones did."""
    labels = assignment.labels
    total = np.ones(labels.shape, dtype=np.int64)
    counting = [number for number, part in enumerate(parts) if part.looks is not None]
    for number, (place, part) in enumerate(_placed(parts)[: counting[-1] + 1]):
        own = assignment.part(labels, place)
        if part.looks is not None:
            total *= part.looks(own)
        if number < counting[-1]:
            labels = part.annotate(own)
    return total


def _chain(parts: list[Regime], texts: tuple[str, ...]) -> Regime:
    def prepare(everyone: Assignment) -> Regime:
        return _chain([prepared(part, everyone.part(everyone.labels, place)) for place, part in _placed(parts)], texts)

    return Regime(
        annotate=lambda assignment: _annotate(parts, assignment),
        adds_wrong=any(part.adds_wrong for part in parts),
        adds_uncertain=any(part.adds_uncertain for part in parts),
        counts_images=any(part.counts_images for part in parts),
        selective=any(part.selective for part in parts),
        needs_objects=any(part.needs_objects for part in parts),
        looks=(lambda assignment: _looks(parts, assignment)) if any(part.looks for part in parts) else None,
        prepare=prepare if any(part.prepare for part in parts) else None,
        parts=texts,
        num_parts=sum(part.num_parts for part in parts),
    )


def compose(*, regimes: Annotated[tuple[str, ...], Field(min_length=1)] = ("complete()",)) -> Regime:
    """Regimes applied in turn.

    Args:
        regimes: texts of regimes, first to last. A composition may be a part of another.

    Raises:
        InputError: a part is not a regime, or its arguments are wrong.
    """
    return _chain([build("regime", text) for text in regimes], regimes)
