"""fedprox: the mean of the clients' models, each held near the global one while it trained.

Source: Li et al., "Federated Optimization in Heterogeneous Networks" (MLSys 2020). The proximal
term is the mod ``proximal``; aggregation is federated averaging, with n_k as weights.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fedmlic.update import SharedWeight, Weighting
from strategies.strategy import Strategy, weighted_mean


def fedprox(*, mu: Annotated[float, Field(ge=0)] = 0.01, weights: SharedWeight = "images") -> Strategy:
    """Federated averaging with the proximal term mu / 2 * ||w - w_t||^2 on every client.

    Args:
        mu: weight of the term; 0 is federated averaging.
        weights: ``images`` (n_k, as in the paper), ``annotations`` or ``uniform``.
    """
    mods = (f"proximal(mu={mu!r})",) if mu else ()
    return Strategy(weighted_mean, weighting=Weighting(shared=weights), mods=mods)
