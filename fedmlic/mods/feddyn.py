"""feddyn: a regulariser that makes the clients' optima agree with the global one.

Source: Acar et al., "Federated Learning Based on Dynamic Regularization" (ICLR 2021), algorithm 1.
A client minimises F_k(w) - <h_k, w> + alpha / 2 * ||w - w_t||^2 and then sets
h_k to h_k - alpha * (w_k - w_t). With mods that change what is sent, w_k - w_t is what the server gets: its h stays
the mean of the clients' h_k, and where nobody moves any more the clients' gradients add up to 0.

Departures: the term's gradient, -h_k + alpha * (w - w_t), is added to the gradient, so the loss
that is reported is F_k alone. Statistics of norms and private tensors are not regularised.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field

from fedmlic.mod import Hooks, Mod

if TYPE_CHECKING:
    from torch import Tensor

    from fedmlic.arrays import Resident
    from fedmlic.method import Local
    from fedmlic.shard import Shard

GRADIENT = "feddyn/gradient"
"""Name of h_k, a vector like the exchanged model."""


def feddyn(*, alpha: Annotated[float, Field(gt=0)] = 0.01) -> Mod:
    """Dynamic regularisation; named by ``strategy = "feddyn()"``.

    Args:
        alpha: weight of the regulariser, above 0.
    """

    def begin(resident: Resident, shard: Shard, local: Local) -> Hooks:
        del shard
        parameters, starts = list(resident.parameters), resident.per_parameter(local.start)
        own = local.memory.get(GRADIENT)
        owns = [None] * len(starts) if own is None else resident.per_parameter(own.to(local.device), local.layout)

        def gradient() -> None:
            with torch.no_grad():
                for parameter, start, held in zip(parameters, starts, owns, strict=True):
                    if start is None or not parameter.requires_grad:  # not exchanged, or not trained in this stage
                        continue
                    change = (parameter - start).mul_(alpha)
                    if held is not None:
                        change.sub_(held)
                    parameter.grad = change if parameter.grad is None else parameter.grad.add_(change)

        def sent(change: Tensor) -> None:
            before = torch.zeros_like(change) if own is None else own.to(change.device)
            after = before - alpha * change
            after[: 0 if local.layout is None else local.layout.statistics_end] = 0
            local.memory[GRADIENT] = after

        return Hooks(gradient=gradient, sent=sent)

    return Mod(begin, changes_steps=True, remembers=True, rule="feddyn")
