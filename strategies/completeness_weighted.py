"""completeness_weighted: clients count by how completely their images are annotated.

With n_k images, and s_k the share of its images x labels entries that client k's annotators wrote
down, a client weighs n_k * s_k ^ power. Power 0 is ``fedavg(weights='images')``, 1 is
``fedavg(weights='annotations')``; more than 1 leans on completely annotated clients beyond that.

Source: this project's own idea, prompted by FedLOG, which weighs what it takes from a client by how
much the client knows of a class; no published rule is reproduced here.

It needs every client's update by itself, of which the server knows images and annotations anyway.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field

from fedmlic.update import Update, Weighting
from strategies.strategy import Round, State, Strategy


def completeness_weights(updates: Iterable[Update], power: float) -> list[float]:
    """n_k * s_k ^ power of every update.

    Args:
        updates: each of a single client.
        power: 0 or more.
    """
    found = []
    for update in updates:
        entries = update.num_images * len(update.annotations)
        share = float(update.annotations.sum()) / entries if entries else 0.0
        found.append(update.num_images * share**power)
    return found


def completeness_weighted(*, power: Annotated[float, Field(ge=0, le=10)] = 2.0) -> Strategy:
    """Clients weigh by their images times a power of their annotated share.

    Args:
        power: 0 weighs by images, 1 by annotations, larger numbers lean on complete clients.

    If nobody in the cohort has an annotation (and the power is above 0), the model stays.
    """

    def aggregate(state: State, updates: Iterable[Update], here: Round) -> State:
        del here
        received = sorted(updates, key=lambda update: update.clients)
        weights = completeness_weights(received, power)
        whole = sum(weights)
        if whole <= 0:
            return state
        first = received[0]
        # Sums are weighted rather than means, so that BatchNorm's variances merge as second moments.
        sums = torch.zeros_like(first.sums)
        for weight, update in zip(weights, received, strict=True):
            sums += weight / whole / update.weight * update.sums
        total = replace(first, sums=sums, weight=1.0, row_weights=torch.ones_like(first.row_weights))
        return replace(state, flat=total.mean(state.flat))

    return Strategy(aggregate, weighting=Weighting(shared="uniform"), needs="each")
