"""fedbn: normalisation layers stay on the client.

Source: Li et al., "FedBN: Federated Learning on Non-IID Features via Local Batch Normalization"
(ICLR 2021): weights, biases and running statistics of BatchNorm are never averaged.

Departure: with ``norms="all"`` the weights and biases of GroupNorm and LayerNorm stay too.
Every client is evaluated with its own tensors; one that never took part has the initial ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from torch import nn

from fedmlic.errors import InputError
from fedmlic.mod import Mod
from fedmlic.model import FrozenBatchNorm2d

if TYPE_CHECKING:
    from fedmlic.method import Method

BATCH = (nn.modules.batchnorm._BatchNorm, FrozenBatchNorm2d)  # noqa: SLF001  (torch's name for all of them)
OTHERS = (nn.GroupNorm, nn.LayerNorm)


def fedbn(*, norms: Literal["batch", "all"] = "batch") -> Mod:
    """Personal normalisation layers.

    Args:
        norms: BatchNorm only, as in the paper, or GroupNorm and LayerNorm too.
    """
    kinds = BATCH if norms == "batch" else (*BATCH, *OTHERS)

    def private(network: nn.Module, method: Method) -> list[str]:
        del method
        found = [
            f"{prefix}.{name}" if prefix else name
            for prefix, module in network.named_modules()
            if isinstance(module, kinds)
            for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
            if tensor.is_floating_point() and (tensor.requires_grad or not isinstance(module, FrozenBatchNorm2d))
        ]
        if not found:
            msg = f"Expected a network with {norms} norms for fedbn, got none. Choose another model or norms='all'."
            raise InputError(msg)
        return found

    return Mod(private=private)
