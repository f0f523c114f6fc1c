"""proximal: the local model is held near the round's global model.

Source: Li et al., "Federated Optimization in Heterogeneous Networks" (MLSys 2020, FedProx),
equation 2: local training minimises F_k(w) + mu / 2 * ||w - w_t||^2.

Departures: the sum runs over the exchanged parameters; what a client keeps to itself and the
statistics of norms are not held.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field

from fedmlic.mod import Hooks, Mod, Step

if TYPE_CHECKING:
    from torch import Tensor

    from fedmlic.arrays import Resident
    from fedmlic.method import Local
    from fedmlic.shard import Shard


def proximal(*, mu: Annotated[float, Field(ge=0)] = 0.01) -> Mod:
    """The term mu / 2 * ||w - w_t||^2 of FedProx, added to the loss of any method.

    Args:
        mu: its weight; 0 changes nothing.
    """
    if mu == 0:
        return Mod()

    def begin(resident: Resident, shard: Shard, local: Local) -> Hooks:
        del shard
        pairs = [
            (parameter, start)
            for parameter, start in zip(resident.parameters, resident.per_parameter(local.start), strict=True)
            if start is not None
        ]

        def term(step: Step) -> Tensor:
            del step
            return mu / 2 * torch.stack([(now - start).square().sum() for now, start in pairs]).sum()

        return Hooks(term=term)

    return Mod(begin, changes_steps=True)
