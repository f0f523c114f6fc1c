"""fedharmony: clients weigh by size at first, later by how well their label correlations agree with the others'.

With n_k the images of client k and s_k the distance of its label correlations to those of the others (the training
metric ``disagreement`` of the method ``fedharmony``), in round t = 1, 2, ...:

    a_k = alpha n_k / sum n + (1 - alpha) q_k / sum q,   q_k = exp(-gamma s_k),   alpha = max(0, 1 - (t - 1) / rounds)

All tensors are averaged with the weights a_k. It needs every client's update by itself.

**Known second-hand**, see the method. Chosen here: gamma, the number of rounds, and that the first round goes by size
alone, since there is nothing to agree with.

Source: FedHarmony (CVPR 2026, arXiv 2604.28024), second-hand.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field

from fedmlic.errors import InputError
from fedmlic.update import METRIC_LIMIT, Update, Weighting
from strategies.strategy import Round, State, Strategy, with_method

DISAGREEMENT = "disagreement"
"""The metric in which clients tell their distance."""


def fedharmony(*, gamma: Annotated[float, Field(ge=0)] = 1.0, rounds: Annotated[int, Field(ge=1)] = 25) -> Strategy:
    """Weights that go over from sizes to the agreement of label correlations (FedHarmony, second-hand).

    Args:
        gamma: how much a distance costs; 0 weighs all clients alike once sizes no longer count.
        rounds: after so many rounds sizes no longer count (T0).
    """

    def aggregate(state: State, updates: Iterable[Update], here: Round) -> State:
        received = sorted((update for update in updates if update.weight > 0), key=lambda update: update.clients)
        if not received:
            return state
        alpha = max(0.0, 1 - (here.number - 1) / rounds)
        shares = shares_of(received, alpha, gamma)
        first = received[0]
        # Sums are weighted rather than means, so that BatchNorm's variances merge as second moments.
        sums = torch.zeros_like(first.sums)
        for share, update in zip(shares, received, strict=True):
            sums += share / update.weight * update.sums
        total = replace(first, sums=sums, weight=1.0, row_weights=torch.ones_like(first.row_weights))
        return replace(state, flat=total.mean(state.flat), metrics={"alpha": alpha, "largest-share": max(shares)})

    return Strategy(
        aggregate,
        weighting=Weighting(shared="uniform"),
        needs="each",
        refuses=with_method("fedharmony"),
        metrics={DISAGREEMENT: (0.0, METRIC_LIMIT)},
    )


def shares_of(received: list[Update], alpha: float, gamma: float) -> list[float]:
    """a_k of every update, which sum to 1.

    Raises:
        InputError: agreement counts and a client told no distance.
    """
    images = [update.num_images for update in received]
    sizes = [count / max(sum(images), 1) for count in images]
    if alpha == 1:
        return sizes if sum(images) else [1 / len(received)] * len(received)
    if any(DISAGREEMENT not in update.metrics for update in received):
        msg = (
            "Expected clients to tell how far their label correlations are from the others', which strategy fedharmony "
            "weighs them by, got none. Use the method fedharmony, or another strategy."
        )
        raise InputError(msg)
    distances = [update.metrics[DISAGREEMENT] for update in received]
    # Less the smallest, which changes no share: with a large gamma all exponentials would be 0.
    agreements = [math.exp(-gamma * (distance - min(distances))) for distance in distances]
    return [
        alpha * size + (1 - alpha) * agreement / sum(agreements)
        for size, agreement in zip(sizes, agreements, strict=True)
    ]
