"""feddyn: dynamic regularisation; the server corrects the mean by what the regularisers add up to.

Source: Acar et al., "Federated Learning Based on Dynamic Regularization" (ICLR 2021), algorithm 1:
h <- h - alpha * (1 / N) * sum over S of (w_k - w_t);  w <- mean over S of w_k - h / alpha.
What a client does is the mod ``feddyn``.

Departure: statistics of norms are averaged and not corrected.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedmlic.arrays import Layout
from fedmlic.update import Update, Weighting
from strategies.strategy import Round, State, Strategy, total_of

GRADIENT = "feddyn/gradient"
"""Name of the server's h."""


def feddyn(*, alpha: Annotated[float, Field(gt=0)] = 0.01) -> Strategy:
    """Dynamic regularisation; every client keeps a vector like the model.

    Args:
        alpha: weight of the regulariser; 0.01 to 0.1 is usual.
    """

    def init(flat: Tensor, layout: Layout) -> State:
        del layout
        return State(flat, memory={GRADIENT: torch.zeros_like(flat)})

    def aggregate(state: State, updates: Iterable[Update], here: Round) -> State:
        total = total_of(updates)
        if total is None:
            return state
        mean = total.mean(state.flat)
        change = (mean - state.flat) * (len(total.clients) / here.num_clients)
        gradient = state.memory[GRADIENT].to(mean.device) - alpha * change
        gradient[: here.layout.statistics_end] = 0
        return replace(state, flat=mean - gradient / alpha, memory={GRADIENT: gradient})

    return Strategy(aggregate, init, weighting=Weighting(shared="uniform"), mods=(f"feddyn(alpha={alpha!r})",))
