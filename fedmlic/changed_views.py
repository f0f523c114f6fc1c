"""Images changed at random: what a method does to its views of an image, each view by itself.

The experiment's ``augmentation`` changes the image once, before a method gets it. A method that
looks at several views of an image (patches, pairs) changes each with draws of its own by these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from fedmlic.errors import InputError
from fedmlic.training import PIXEL_MEAN, PIXEL_STD, augment

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Change = Literal["flip", "shift", "cutout", "randaugment"]

LIMIT = PIXEL_MEAN / PIXEL_STD
"""Pixels lie between minus and plus this."""


def changed(images: Tensor, changes: Sequence[Change], rng: torch.Generator) -> Tensor:
    """Change every image by itself, by one kind after another.

    Args:
        images: float32 ``[batch, channels, height, width]`` as ``training.to_float`` makes them.
        changes: ``flip`` and ``shift`` as ``training.augment`` has them; ``cutout``: a square whose
            side is half of the height, in one random colour, its centre anywhere in the image;
            ``randaugment``: torchvision's, two operations of magnitude 9, on bytes.
        rng: CPU generator.

    Raises:
        InputError: ``randaugment`` of images that are neither grey nor of three channels.

    Source: DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks with
    Cutout" (2017); Cubuk et al., "RandAugment" (NeurIPS 2020).
    """
    for change in changes:
        images = _CHANGES[change](images, rng)
    return images


def _cutout(images: Tensor, rng: torch.Generator) -> Tensor:
    count, channels, height, width = images.shape
    half = height / 4
    centres = torch.rand(2, count, 1, generator=rng) * torch.tensor([height, width])[:, None, None]
    rows = (torch.arange(height) + 0.5 - centres[0]).abs() < half
    columns = (torch.arange(width) + 0.5 - centres[1]).abs() < half
    colour = (2 * torch.rand(count, channels, 1, 1, generator=rng) - 1) * LIMIT
    blank = (rows[:, None, :, None] & columns[:, None, None, :]).to(images.device)
    return torch.where(blank, colour.to(images.device), images)


def _randaugment(images: Tensor, rng: torch.Generator) -> Tensor:
    from torchvision.transforms.v2 import RandAugment

    if images.shape[1] not in {1, 3}:
        msg = f"Expected images of 1 or 3 channels for 'randaugment', got {images.shape[1]}. Leave it out of views."
        raise InputError(msg)
    stored = (images * PIXEL_STD + PIXEL_MEAN).round().clamp(0, 255).to(torch.uint8)
    change = RandAugment()
    # It draws from torch's global generator, which others draw from too.
    seed = int(torch.randint(2**62, (), generator=rng))
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        found = torch.stack([change(image) for image in stored])
    return found.to(images.dtype).sub_(PIXEL_MEAN).div_(PIXEL_STD)


_CHANGES: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "flip": lambda images, rng: augment(images, "flip", rng),
    "shift": lambda images, rng: augment(images, "shift", rng),
    "cutout": _cutout,
    "randaugment": _randaugment,
}
