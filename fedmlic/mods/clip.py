"""clip: what a client sends is at most so far from where it started.

The change of the exchanged tensors is scaled down to a Euclidean norm of at most ``norm``. It
bounds what one client can do to the mean: its share times ``norm``, under the rule fednova, which
divides by steps afterwards, times tau_eff / a_k too. It is the first half of differentially private
federated averaging (McMahan et al., "Learning Differentially Private Recurrent Language Models",
ICLR 2018, "flat clipping"). The result lies between start and trained model, so statistics of
norms stay valid.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field

from fedmlic.mod import Hooks, Mod, Payload

if TYPE_CHECKING:
    from fedmlic.arrays import Resident
    from fedmlic.method import Local, Trained
    from fedmlic.shard import Shard


def clip(*, norm: Annotated[float, Field(gt=0)]) -> Mod:
    """The change a client sends has a norm of at most ``norm``.

    Args:
        norm: Euclidean, over all exchanged numbers together.
    """

    def begin(resident: Resident, shard: Shard, local: Local) -> Hooks:
        del resident, shard, local

        def send(payload: Payload, trained: Trained) -> Payload:
            del trained
            length = float(torch.linalg.vector_norm(payload.change, dtype=torch.float64))
            return payload if length <= norm else payload._replace(change=payload.change * (norm / length))

        return Hooks(send=send)

    return Mod(begin)
