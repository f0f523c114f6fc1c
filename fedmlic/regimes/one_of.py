"""One of: each client is annotated under one of several regimes, drawn once.

``one_of(regimes=["complete()", "annotators()"], probabilities=[0.2, 0.8])``: one
site in five has experts, the others have a crowd. A client's regime depends on
the seed and the client alone; each regime draws from streams of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from fedmlic.errors import InputError
from fedmlic.regime import Assignment, Regime, prepared
from fedmlic.spec import build

if TYPE_CHECKING:
    from numpy.typing import NDArray


def _choice(choices: list[Regime], shares: NDArray[np.float64], assignment: Assignment) -> tuple[Regime, Assignment]:
    """The regime of this client, and the assignment for it."""
    chosen = int(assignment.rng("one of").choice(len(choices), p=shares))
    return choices[chosen], assignment.option(chosen)


def _looks(choices: list[Regime], shares: NDArray[np.float64], assignment: Assignment) -> NDArray[np.integer]:
    regime, own = _choice(choices, shares, assignment)
    return np.ones(own.labels.shape, dtype=np.int64) if regime.looks is None else regime.looks(own)


def _mixture(choices: list[Regime], texts: tuple[str, ...], shares: NDArray[np.float64]) -> Regime:
    def annotate(assignment: Assignment) -> NDArray[np.int8]:
        regime, own = _choice(choices, shares, assignment)
        return regime.annotate(own)

    def prepare(everyone: Assignment) -> Regime:
        assignments = (everyone.option(number) for number in range(len(choices)))
        return _mixture([prepared(one, own) for one, own in zip(choices, assignments, strict=True)], texts, shares)

    possible = [one for one, share in zip(choices, shares, strict=True) if share > 0]
    return Regime(
        annotate=annotate,
        adds_wrong=any(one.adds_wrong for one in possible),
        adds_uncertain=any(one.adds_uncertain for one in possible),
        counts_images=any(one.counts_images for one in possible),
        selective=any(one.selective for one in possible),
        needs_objects=any(one.needs_objects for one in possible),
        looks=(lambda assignment: _looks(choices, shares, assignment)) if any(one.looks for one in choices) else None,
        prepare=prepare if any(one.prepare for one in choices) else None,
        parts=texts,
    )


def one_of(
    *,
    regimes: Annotated[tuple[str, ...], Field(min_length=1)] = ("complete()",),
    probabilities: Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], Field(min_length=1)] | None = None,
) -> Regime:
    """Each client draws one regime.

    Args:
        regimes: texts of regimes.
        probabilities: of each of them, with sum 1; equal by default.

    Raises:
        InputError: a text is not a regime, or the probabilities do not fit.
    """
    shares = np.full(len(regimes), 1 / len(regimes)) if probabilities is None else np.array(probabilities)
    if len(shares) != len(regimes) or abs(shares.sum() - 1) > 1e-6:
        msg = (
            f"Expected probabilities of one_of to be {len(regimes)} numbers with sum 1, one per regime, "
            f"got {shares.tolist()}."
        )
        raise InputError(msg)
    return _mixture([build("regime", text) for text in regimes], regimes, shares / shares.sum())
