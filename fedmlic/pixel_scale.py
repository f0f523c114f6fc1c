"""Stored bytes as the numbers that networks see."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

PIXEL_MEAN, PIXEL_STD = 127.5, 63.75
"""Stored bytes become (byte - 127.5) / 63.75, about -2 to 2 (see ``docs/training.md``)."""


def to_float(
    images: NDArray[np.uint8] | Tensor,
    device: torch.device | str = "cpu",
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """uint8 ``[batch, height, width, channels]`` to float32 ``[batch, channels, height, width]``.

    Feature maps, float32 ``[batch, features, height', width']``, stay as they are.

    Args:
        images: stored images, or feature maps that stand in their place.
        device: where to.
        memory_format: that of the network's weights. With another, every convolution would
            reorder its weights first, which can cost as much as the convolution.
    """
    tensor = torch.from_numpy(images) if isinstance(images, np.ndarray) else images
    if tensor.is_floating_point():
        return tensor.to(device, non_blocking=True).contiguous(memory_format=memory_format)
    tensor = tensor.to(device, non_blocking=True).permute(0, 3, 1, 2)
    return tensor.to(torch.float32, memory_format=memory_format).sub_(PIXEL_MEAN).div_(PIXEL_STD)
