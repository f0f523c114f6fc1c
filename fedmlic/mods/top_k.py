"""top_k: a client sends only the largest part of its change and keeps the rest for later.

Of what is to be sent (the change plus what earlier turns left over) the ``fraction`` of largest
magnitude is sent with its positions; what is left over is remembered on the client and added to
its next change (error feedback), so nothing is lost for good.

Source: Stich et al., "Sparsified SGD with Memory" (NeurIPS 2018), algorithm 1, with a round's
change in the place of a gradient. Departure: statistics of norms are sent whole.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field

from fedmlic.mod import Hooks, Mod, Payload, with_whole_statistics

if TYPE_CHECKING:
    from fedmlic.arrays import Resident
    from fedmlic.method import Local, Trained
    from fedmlic.shard import Shard

LEFT_OVER = "top_k/left_over"
"""Name of what was not sent, a vector like the exchanged model."""


def top_k(*, fraction: Annotated[float, Field(gt=0, le=1)] = 0.1, error_feedback: bool = True) -> Mod:
    """A share of the change is sent, the rest is remembered.

    Args:
        fraction: of the exchanged numbers, in (0, 1]; 1 changes nothing.
        error_feedback: whether what is left over is kept and added to the next change.
    """
    if fraction == 1:
        return Mod()

    def begin(resident: Resident, shard: Shard, local: Local) -> Hooks:
        del shard
        layout = local.layout or resident.layout

        def send(payload: Payload, trained: Trained) -> Payload:
            del trained
            payload = with_whole_statistics(payload, layout)
            wanted = payload.change.clone()
            if LEFT_OVER in local.memory:
                wanted += local.memory[LEFT_OVER].to(wanted.device)
                payload = payload._replace(value_bits=32)  # sums are not on the grid of a mod before this one
            first = layout.statistics_end
            count = math.ceil(fraction * (layout.num_values - payload.num_whole))
            places = torch.topk(wanted[first:].abs(), count, sorted=False).indices + first
            sent = torch.zeros_like(wanted)
            sent[:first] = wanted[:first]
            sent[places] = wanted[places]
            if error_feedback:
                local.memory[LEFT_OVER] = wanted - sent
            bits = math.ceil(math.log2(max(layout.num_values, 2)))
            return payload._replace(change=sent, num_values=count, position_bits=bits)

        return Hooks(send=send)

    return Mod(begin, remembers=error_feedback, holds_back=error_feedback)
