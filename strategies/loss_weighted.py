"""loss_weighted: clients with a higher training loss count more.

Source: the option ``agg_type loss`` of FedLGT's released code (not in the paper,
arXiv 2312.07165): weights are the softmax of the clients' mean training loss.

Pitfalls, kept because results must be comparable: it rewards the worst client,
a diverging one most; the release sums the loss over labels, so a difference of a
few nats makes the softmax nearly one-hot, more so with more labels. Use it with
mean-reduced losses and a temperature of 1 or more.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field

from fedmlic.update import Update, Weighting
from strategies.strategy import Round, State, Strategy


def loss_weighted(*, temperature: Annotated[float, Field(gt=0)] = 1.0) -> Strategy:
    """Softmax of the clients' mean training loss as weights (FedLGT's ``agg_type loss``).

    Args:
        temperature: the loss is divided by it; larger is closer to a uniform mean.
    """

    def aggregate(state: State, updates: Iterable[Update], here: Round) -> State:
        del here
        # An update of weight 0 says nothing; dividing by it would say anything.
        received = sorted((update for update in updates if update.weight > 0), key=lambda update: update.clients)
        if not received:
            return state
        losses = torch.tensor([update.metrics["loss"] for update in received], dtype=torch.float64)
        shares = torch.softmax(losses / temperature, dim=0)
        first = received[0]
        # Sums are weighted rather than means, so that BatchNorm's variances merge as second moments.
        sums = torch.zeros_like(first.sums)
        for share, update in zip(shares.tolist(), received, strict=True):
            sums += share / update.weight * update.sums
        total = replace(first, sums=sums, weight=1.0, row_weights=torch.ones_like(first.row_weights))
        return replace(state, flat=total.mean(state.flat))

    return Strategy(aggregate, weighting=Weighting(shared="uniform"), needs="each")
