"""fednova: clients that take more steps do not count for more.

Source: Wang et al., "Tackling the Objective Inconsistency Problem in Heterogeneous Federated
Optimization" (NeurIPS 2020), equation 5: w <- w - tau_eff * sum_k p_k d_k with d_k the change
divided by a_k and tau_eff = sum_k p_k a_k. What a client does is the mod ``fednova``.

With the same number of steps everywhere it is federated averaging.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from fedmlic.arrays import Layout
from fedmlic.update import SharedWeight, Update, Weighting
from strategies.strategy import Round, State, Strategy, total_of

SCALE, STEPS, FRACTION, HIGH = "fednova/scale", "fednova/steps", 2.0**-10, 1 << 30
"""As in the mod: the scale that clients get, the sum of weight times steps, its unit, and that of its first part."""


def fednova(*, weights: SharedWeight = "images") -> Strategy:
    """Normalised averaging.

    Args:
        weights: ``images`` (n_k, as in the paper), ``annotations`` or ``uniform``.
    """

    def init(flat: Tensor, layout: Layout) -> State:
        del layout
        return State(flat, shared={SCALE: torch.ones(1, dtype=torch.float64)})

    def aggregate(state: State, updates: Iterable[Update], here: Round) -> State:
        total = total_of(updates)
        if total is None or total.weight == 0:
            return state
        weight = total.weight * total.units.shared
        high, low = total.extra_sum(STEPS).tolist()
        steps = (high * HIGH + low) * FRACTION / weight
        if steps == 0:
            return state
        scale = float(state.shared[SCALE])
        mean = total.mean(state.flat)
        flat = mean if steps == scale else state.flat + (steps / scale) * (mean - state.flat)
        flat[: here.layout.statistics_end] = mean[: here.layout.statistics_end]
        shared = {SCALE: torch.tensor([steps], dtype=torch.float64)}
        return replace(state, flat=flat, shared=shared, metrics={"effective-steps": steps})

    return Strategy(aggregate, init, weighting=Weighting(shared=weights), mods=(f"fednova(weights={weights!r})",))
