"""Two views of the same images: a weak one to judge by and a strong one to train on.

Methods that let a network's opinion of a lightly changed image supervise a heavily changed one
(pseudo-label consistency, curriculum disambiguation) take both from here. They draw from a stream
that the caller names, so a client's turn replays. Use them with ``augmentation = "none"``, or the
images were already changed once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fedmlic.training import augment

if TYPE_CHECKING:
    from torch import Tensor

JITTER = 0.4
"""Default strength of the change of colours."""


def weak_view(images: Tensor, rng: torch.Generator, *, weak: str = "flip+shift") -> Tensor:
    """Mirrored with probability 1/2 and moved by up to an eighth of the side.

    Args:
        images: float32 ``[batch, channels, height, width]``.
        rng: CPU generator.
        weak: one of the changes of ``training.augment``; mirroring must not change labels.
    """
    return augment(images, weak, rng)


def strong_view(
    images: Tensor, rng: torch.Generator, *, jitter: float = JITTER, cutout: float = 0.5, weak: str = "flip+shift"
) -> Tensor:
    """The weak view with other colours and a square that is blanked.

    Brightness and contrast (and saturation, where there are three channels) change by factors
    uniform in [1 - jitter, 1 + jitter], one draw per image each; then a square of side
    ``cutout`` times the shorter side, its centre anywhere in the image, is set to 0, mid-grey.

    Args:
        images: float32 ``[batch, channels, height, width]`` as ``training.to_float`` makes them.
        rng: CPU generator.
        jitter: in [0, 1]; 0 leaves colours as they are.
        cutout: in [0, 1]; 0 blanks nothing.
        weak: as ``weak_view``'s.

    Source: cutout is DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks
    with Cutout" (2017). RandAugment, which the methods' own code uses beside it, is replaced by the
    change of colours.
    """
    images = _jitter(weak_view(images, rng, weak=weak), jitter, rng)
    return _cutout(images, cutout, rng)


def two_views(images: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """The weak and the strong view of the same images, each with draws of its own."""
    return weak_view(images, rng), strong_view(images, rng)


def _jitter(images: Tensor, strength: float, rng: torch.Generator) -> Tensor:
    drawn = 1 + strength * (2 * torch.rand(3, len(images), 1, 1, 1, generator=rng) - 1)
    brightness, contrast, saturation = drawn.to(images.device, images.dtype)
    black = -2.0  # of to_float: bytes of 0
    images = black + brightness * (images - black)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    images = mean + contrast * (images - mean)
    if images.shape[1] == 3:
        grey = images.mean(dim=1, keepdim=True)
        images = grey + saturation * (images - grey)
    return images.clamp(black, -black)


def _cutout(images: Tensor, share: float, rng: torch.Generator) -> Tensor:
    count, _, height, width = images.shape
    half = share * min(height, width) / 2
    centres = torch.rand(2, count, 1, generator=rng) * torch.tensor([height, width])[:, None, None]
    rows = (torch.arange(height) + 0.5 - centres[0]).abs() < half
    columns = (torch.arange(width) + 0.5 - centres[1]).abs() < half
    blank = (rows[:, None, :, None] & columns[:, None, None, :]).to(images.device)
    return torch.where(blank, 0.0, images)
