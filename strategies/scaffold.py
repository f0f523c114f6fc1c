"""scaffold: averaging with control variates that correct the clients' drift.

Source: Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning"
(ICML 2020), algorithm 1, lines 16 and 17: with S of N clients in the round,
x <- x + eta_g * mean over S of (y_i - x), and c <- c + (1 / N) * sum over S of (c_i' - c_i).
What a client does is the mod ``scaffold``.

Departure: statistics of norms are averaged whatever eta_g is, since beyond the mean a variance may be negative.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedmlic.arrays import Layout
from fedmlic.update import SharedWeight, Update, Weighting
from strategies.strategy import Round, State, Strategy, total_of

CONTROL, CHANGE = "scaffold/control", "scaffold/change"
"""Names of the server's control variate, which clients get, and of the sum of the clients' changes."""


def scaffold(
    *,
    option: Literal[1, 2] = 2,
    correct: Literal["gradient", "step"] = "gradient",
    server_rate: Annotated[float, Field(gt=0)] = 1.0,
    weights: SharedWeight = "uniform",
) -> Strategy:
    """Control variates of the server and of every client, which keeps its own.

    Args:
        option: how a client's control variate is made (the mod ``scaffold``).
        correct: with momentum, whether gradients are corrected or the parameters after every
            step (the mod ``scaffold``).
        server_rate: eta_g, the step of the server; 1 takes the mean of the models.
        weights: of the clients' models: ``uniform`` as in the paper, ``images`` or ``annotations``.
    """

    def init(flat: Tensor, layout: Layout) -> State:
        del layout
        return State(flat, shared={CONTROL: torch.zeros_like(flat)})

    def aggregate(state: State, updates: Iterable[Update], here: Round) -> State:
        total = total_of(updates)
        if total is None:
            return state
        mean = total.mean(state.flat)
        flat = mean if server_rate == 1 else state.flat + server_rate * (mean - state.flat)
        flat[: here.layout.statistics_end] = mean[: here.layout.statistics_end]
        before = state.shared[CONTROL].to(torch.float64)
        control = before + total.extra_sum(CHANGE).to(before.device) / here.num_clients
        norm = float(torch.linalg.vector_norm(control))
        return replace(state, flat=flat, shared={CONTROL: control.to(torch.float32)}, metrics={"control-norm": norm})

    return Strategy(
        aggregate, init, weighting=Weighting(shared=weights), mods=(f"scaffold(option={option}, correct={correct!r})",)
    )
