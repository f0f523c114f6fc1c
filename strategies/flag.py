"""flag: each label's own rows are averaged with the clients' positives of that label as weights (FLAG, FPSL).

With n_k the images of client k and n_k,c its positives of label c:

    shared tensors   w <- sum n_k w_k / sum n_k
    row of label c   w_c <- sum n_k,c w_k,c / sum n_k,c

Where no client of the round has a positive of a label, the server's row stays (``without="keep"``), or is the mean
by images (``without="images"``, FPSL). Sums are those of the mod ``positive_rows``; no client's counts are needed
by themselves. A method that completes its labels adds its pseudo-positives, as FedLSM's adaptive head does.

Deviations: FLAG's second half, the allocation of images to clients by clusters, is a partition (see
``cooccurrence_clusters``). No official code of FLAG was found; FPSL is known from a third party's code.

Source: Chang et al., "FLAG: Fast Label-Adaptive Aggregation for Multi-label Classification in Federated Learning"
(arXiv 2302.13571); FPSL as the code of FML-DGCN (IEEE TCSS 2026) has it; pseudo-positives as in FedLSM (MICCAI 2023).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

from fedmlic.mods.positive_rows import POSITIVES, ROWS, SCALE
from fedmlic.update import SharedWeight, Update, Weighting
from strategies.strategy import Round, State, Strategy, total_of


def flag(*, shared: SharedWeight = "images", without: Literal["keep", "images"] = "keep") -> Strategy:
    """Label rows weighted by who has positives of that label, shared tensors by images.

    Args:
        shared: weight of the tensors that all labels share: ``images``, ``annotations`` or ``uniform``.
        without: what becomes of a row of which nobody has a positive: ``keep`` the server's (FLAG), or the mean by
            ``images``, that is by ``shared`` (FPSL).
    """

    def aggregate(state: State, updates: Iterable[Update], here: Round) -> State:
        total = total_of(updates)
        if total is None:
            return state
        flat = total.mean(state.flat)
        weights = total.extra_sum(POSITIVES).to(flat.device)
        rows = total.extra_sum(ROWS).to(flat.device) * SCALE
        found = weights > 0
        start = 0
        old = [view for _, view in here.layout.row_views(state.flat.to(flat.device))]
        for (_, view), before in zip(here.layout.row_views(flat), old, strict=True):
            part = rows[:, start : start + view.shape[1]]
            start += view.shape[1]
            view[found] = (part[found] / weights[found, None]).float()
            if without == "keep":
                view[~found] = before[~found]
        return replace(state, flat=flat)

    return Strategy(aggregate, weighting=Weighting(shared=shared), mods=("positive_rows()",))
