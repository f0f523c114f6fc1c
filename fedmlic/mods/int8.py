"""int8: a client sends its change in eight bits a number.

Every tensor's change is divided by 1/127 of its largest magnitude and rounded to an integer in
-127 .. 127: at random between the two neighbours, so that it is right on average, or to the
nearest. One scale per tensor goes along.

Source: stochastic uniform quantisation as in QSGD (Alistarh et al., NeurIPS 2017), with the
largest magnitude in place of the norm. Departure: statistics of norms are sent whole; a variance
must not become negative.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from fedmlic.mod import Hooks, Mod, Payload, with_whole_statistics

if TYPE_CHECKING:
    from torch import Tensor

    from fedmlic.arrays import Resident
    from fedmlic.method import Local, Trained
    from fedmlic.shard import Shard

LEVELS = 127


def int8(*, rounding: Literal["stochastic", "nearest"] = "stochastic") -> Mod:
    """The change a client sends has 8 bits a number.

    Args:
        rounding: ``stochastic`` is right on average; ``nearest`` is closer each time.
    """

    def begin(resident: Resident, shard: Shard, local: Local) -> Hooks:
        del shard
        layout = local.layout or resident.layout
        rng = local.torch_rng("int8") if rounding == "stochastic" else None

        def send(payload: Payload, trained: Trained) -> Payload:
            del trained
            payload = with_whole_statistics(payload, layout)
            whole = 2 * len(layout.moments)
            change = payload.change.clone()
            for number, (_, view) in enumerate(layout.views(change)):
                if number >= whole:
                    view.copy_(quantised(view, rng))
            extra = 4 * (len(layout.names) - whole)  # a scale per tensor
            return payload._replace(change=change, value_bits=8, extra_bytes=payload.extra_bytes + extra)

        return Hooks(send=send)

    return Mod(begin)


def quantised(values: Tensor, rng: torch.Generator | None) -> Tensor:
    """The numbers that the other side reads after 8-bit quantisation; NaN where a number is not finite.

    Args:
        values: floating, any shape.
        rng: CPU generator for stochastic rounding; None to round to the nearest.
    """
    scale = values.abs().max() / LEVELS if values.numel() else values.new_zeros(())
    if bool(scale == 0):
        return torch.zeros_like(values)
    levels = values / scale
    if rng is None:
        return levels.round() * scale
    draws = torch.rand(values.shape, generator=rng).to(values.device)
    return (levels + draws).floor().clamp(-LEVELS, LEVELS) * scale
