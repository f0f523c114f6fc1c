"""surgical: each label's rows are averaged, equally, over the clients that annotate that label (Surgical Aggregation).

For clients with label lists of their own that overlap: a client annotates a label if one of its training images
has a known entry of it. A label's rows are the plain mean over these clients, whatever their sizes, and stay where
nobody in the cohort annotates the label. Shared tensors are a mean over all clients.

It needs every client's update by itself, of which the server knows annotations per label anyway.

Deviations: the label space is fixed before the first round (the union of all lists), where the source lets it grow;
rows of a label wait, unchanged, until a client that annotates it takes part. Shared tensors are a plain mean, as in
the released code; ``shared="images"`` weighs by size. That code's default, BatchNorm with frozen pretrained tensors
(FedBN+) after 15 epochs of each client's head alone, is not part of this rule; norms of the client's own are the mod
``fedbn``.

Source: "Surgical Aggregation: Federated Class-Heterogeneous Learning" (arXiv 2301.06683) and its released code.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

import torch

from fedmlic.update import Update, Weighting
from strategies.strategy import Round, State, Strategy


def surgical(*, shared: Literal["uniform", "images"] = "uniform") -> Strategy:
    """Label rows as a plain mean over the clients that annotate the label.

    Args:
        shared: weight of the tensors that all labels share: ``uniform``, or by ``images``.
    """

    def aggregate(state: State, updates: Iterable[Update], here: Round) -> State:
        received = sorted(updates, key=lambda update: update.clients)
        if not received:
            return state
        whole = sum(update.weight * update.units.shared for update in received)
        first = received[0]
        sums, owners = torch.zeros_like(first.sums), torch.zeros_like(first.row_weights)
        rows = [view for _, view in here.layout.row_views(sums)]
        for update in received:
            # Sums are weighted rather than means, so that BatchNorm's variances merge as second moments.
            split = here.layout.rows_start
            sums[:split] += update.units.shared / whole * update.sums[:split]
            owns = (update.annotations > 0).to(torch.float64)
            owners += owns
            for row, (_, sent) in zip(rows, here.layout.row_views(update.sums), strict=True):
                row.add_((owns.to(sent.device) / update.weight)[:, None] * sent)
        total = replace(first, sums=sums, weight=1.0, row_weights=owners)
        return replace(state, flat=total.mean(state.flat))

    return Strategy(aggregate, weighting=Weighting(shared=shared), needs="each")
