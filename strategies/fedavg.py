"""fedavg: the mean of the clients' models.

Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from
Decentralized Data" (AISTATS 2017), with n_k as weights.
"""

from __future__ import annotations

from fedmlic.update import SharedWeight, Weighting
from strategies.strategy import Strategy, weighted_mean


def fedavg(*, weights: SharedWeight = "images") -> Strategy:
    """The mean of the clients' models, weighted by images, annotations or not at all.

    Args:
        weights: ``images`` (n_k, as in the paper), ``annotations`` (known label entries) or
            ``uniform``. When clients are sampled by size (``cohort="size"``), use ``uniform``:
            with ``images``, size counts twice.
    """
    return Strategy(weighted_mean, weighting=Weighting(shared=weights))
