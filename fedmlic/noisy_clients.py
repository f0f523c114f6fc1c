"""What methods and rules against noisy clients share: who they are, and means in which clients weigh by a rule.

A rule that decides on clients one by one gets every client's update by itself and names the noisy ones in
``State.shared``; a method looks itself up there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from fedmlic.update import Update


def is_among(shared: Mapping[str, Tensor], name: str, client: int) -> bool | None:
    """Whether a client is one of those that the server names; None where it has named nobody yet.

    Args:
        shared: what the server sent.
        name: of the tensor, int64 ids.
        client: whose turn it is.
    """
    ids = shared.get(name)
    return None if ids is None else bool((ids == client).any())


def client_of(update: Update) -> int:
    """The client of an update that is one client's."""
    return update.clients[0]


def mean_by(weights: Sequence[float], updates: Sequence[Update], otherwise: Tensor) -> Tensor:
    """The mean of clients' models by weights, float32 ``[layout.size]``; ``otherwise`` where all weigh 0.

    Args:
        weights: 0 or more, one for each update.
        updates: of one client each, in the order of clients, so that the order of arrival does not show.
        otherwise: the model as it was.
    """
    whole = sum(weights)
    if whole <= 0:
        return otherwise.clone()
    # Sums are weighted rather than means, so that BatchNorm's variances merge as second moments.
    sums = torch.zeros_like(updates[0].sums)
    for weight, update in zip(weights, updates, strict=True):
        if weight > 0 and update.weight > 0:
            sums += weight / whole / update.weight * update.sums
    total = replace(updates[0], sums=sums, weight=1.0, row_weights=torch.ones_like(updates[0].row_weights))
    return total.mean(otherwise)
