"""Images changed at random: views for training, a weak one to judge by and a strong one to train on, or many.

Methods that let a network's opinion of a lightly changed image supervise a heavily changed one
(pseudo-label consistency, curriculum disambiguation) take both from here. They draw from a stream
that the caller names, so a client's turn replays. Use them with ``augmentation = "none"``, or the
images were already changed once. The setting ``augmentation`` is done by ``augment``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from fedmlic.augmentation import changes_of
from fedmlic.errors import InputError
from fedmlic.pixel_scale import PIXEL_MEAN, PIXEL_STD

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from fedmlic.augmentation import Change

JITTER = 0.4
"""Default strength of the change of colours."""

LEAST_AREA = 0.7
"""Of a random crop, as a share of the image's."""

LARGEST_RATIO = 4 / 3
"""Of a random crop's width to its height, and of its height to its width."""


def weak_view(images: Tensor, rng: torch.Generator, *, weak: str = "flip+shift") -> Tensor:
    """Mirrored with probability 1/2 and moved by up to an eighth of the side.

    Args:
        images: float32 ``[batch, channels, height, width]``.
        rng: CPU generator.
        weak: as the setting ``augmentation``; mirroring must not change labels.
    """
    return augment(images, weak, rng)


def strong_view(
    images: Tensor,
    rng: torch.Generator,
    *,
    jitter: float = JITTER,
    cutout: float = 0.5,
    weak: str = "flip+shift",
    randaugment: bool = False,
) -> Tensor:
    """The weak view with other colours and a square that is blanked.

    Brightness and contrast (and saturation, where there are three channels) change by factors
    uniform in [1 - jitter, 1 + jitter], one draw per image each; then a square of side
    ``cutout`` times the shorter side, its centre anywhere in the image, is set to 0, mid-grey.

    Args:
        images: float32 ``[batch, channels, height, width]`` as ``pixel_scale.to_float`` makes them.
        rng: CPU generator.
        jitter: in [0, 1]; 0 leaves colours as they are.
        cutout: in [0, 1]; 0 blanks nothing.
        weak: as ``weak_view``'s.
        randaugment: RandAugment (``changed``), after the square, in place of other colours. The released code of the
            methods has it.

    Source: cutout is DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks
    with Cutout" (2017).
    """
    if randaugment:
        return _randaugment(_cutout(weak_view(images, rng, weak=weak), cutout, rng), rng)
    images = _jitter(weak_view(images, rng, weak=weak), jitter, rng)
    return _cutout(images, cutout, rng)


def two_views(images: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """The weak and the strong view of the same images, each with draws of its own."""
    return weak_view(images, rng), strong_view(images, rng)


def augment(images: Tensor, kind: str, rng: torch.Generator) -> Tensor:
    """Change images as the setting ``augmentation`` says, each by itself.

    Args:
        images: float32 ``[batch, channels, height, width]`` as ``pixel_scale.to_float`` makes them.
        kind: changes joined by ``+``, done one after another (``changed``), or ``none``.
        rng: CPU generator.
    """
    return changed(images, changes_of(kind), rng)


def changed(images: Tensor, changes: Sequence[Change], rng: torch.Generator) -> Tensor:
    """Change every image by itself, by one kind after another.

    Args:
        images: float32 ``[batch, channels, height, width]`` as ``pixel_scale.to_float`` makes them.
        changes: ``flip``: mirrored with probability 1/2; ``shift``: moved by up to an eighth of the side, edges
            repeated; ``crop``: a part of 0.7 to 1 of the area, 3/4 to 4/3 as wide as high, at the size of the image;
            ``colours`` as in ``strong_view``; ``cutout``: a square whose side is half of the shorter side, its centre
            anywhere in the image, in one random colour; ``randaugment``: torchvision's, two operations of magnitude 9,
            on bytes.
        rng: CPU generator.

    Raises:
        InputError: ``randaugment`` of images that are neither grey nor of three channels.

    Source: Cubuk et al., "RandAugment" (NeurIPS 2020); cutout as in ``strong_view``.
    """
    for change in changes:
        images = _CHANGES[change](images, rng)
    return images


def check_changes(changes: Sequence[Change], channels: int) -> None:
    """Raise ``InputError`` if a change is not for images of so many channels."""
    if "randaugment" in changes and channels not in {1, 3}:
        msg = f"Expected images of 1 or 3 channels for 'randaugment', got {channels}. Leave it out."
        raise InputError(msg)


def _flip(images: Tensor, rng: torch.Generator) -> Tensor:
    mirrored = (torch.rand(len(images), generator=rng) < 0.5).to(images.device)
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


def _shift(images: Tensor, rng: torch.Generator) -> Tensor:
    count, channels, height, width = images.shape
    reach_y, reach_x = height // 8, width // 8
    padded = F.pad(images, (reach_x, reach_x, reach_y, reach_y), mode="replicate")
    top = torch.randint(0, 2 * reach_y + 1, (count,), generator=rng).to(images.device)
    left = torch.randint(0, 2 * reach_x + 1, (count,), generator=rng).to(images.device)
    rows = (top[:, None] + torch.arange(height, device=images.device))[:, None, :, None]
    columns = (left[:, None] + torch.arange(width, device=images.device))[:, None, None, :]
    image = torch.arange(count, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[None, :, None, None]
    return padded[image, channel, rows, columns]


def _crop(images: Tensor, rng: torch.Generator) -> Tensor:
    if not len(images):
        return images
    *_, height, width = images.shape
    area, ratio, *corners = torch.rand(4, len(images), generator=rng)
    area = LEAST_AREA + (1 - LEAST_AREA) * area
    ratio = torch.exp((2 * ratio - 1) * math.log(LARGEST_RATIO))
    shares = [(area / ratio * width / height).sqrt().clamp(max=1), (area * ratio * height / width).sqrt().clamp(max=1)]
    # In the coordinates of affine_grid an image is from -1 to 1.
    middles = [(1 - share) * (2 * corner - 1) for share, corner in zip(shares, corners, strict=True)]
    to_crop = torch.zeros(len(images), 2, 3)
    to_crop[:, 0, 0], to_crop[:, 1, 1] = shares[1], shares[0]
    to_crop[:, 0, 2], to_crop[:, 1, 2] = middles[1], middles[0]
    grid = F.affine_grid(to_crop.to(images.device), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


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


def _cutout(images: Tensor, share: float, rng: torch.Generator, *, coloured: bool = False) -> Tensor:
    count, channels, height, width = images.shape
    half = share * min(height, width) / 2
    centres = torch.rand(2, count, 1, generator=rng) * torch.tensor([height, width])[:, None, None]
    rows = (torch.arange(height) + 0.5 - centres[0]).abs() < half
    columns = (torch.arange(width) + 0.5 - centres[1]).abs() < half
    blank = (rows[:, None, :, None] & columns[:, None, None, :]).to(images.device)
    if not coloured:
        return torch.where(blank, 0.0, images)
    colour = (2 * torch.rand(count, channels, 1, 1, generator=rng) - 1) * (PIXEL_MEAN / PIXEL_STD)
    return torch.where(blank, colour.to(images.device), images)


def _randaugment(images: Tensor, rng: torch.Generator) -> Tensor:
    from torchvision.transforms.v2 import RandAugment

    check_changes(["randaugment"], images.shape[1])
    stored = (images * PIXEL_STD + PIXEL_MEAN).round().clamp(0, 255).to(torch.uint8)
    change = RandAugment()
    # It draws from torch's global generator, which others draw from too.
    seed = int(torch.randint(2**62, (), generator=rng))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        found = torch.stack([change(image) for image in stored])
    return found.to(images.dtype).sub_(PIXEL_MEAN).div_(PIXEL_STD)


_CHANGES: dict[Change, Callable[[Tensor, torch.Generator], Tensor]] = {
    "flip": _flip,
    "shift": _shift,
    "crop": _crop,
    "colours": lambda images, rng: _jitter(images, JITTER, rng),
    "cutout": lambda images, rng: _cutout(images, 0.5, rng, coloured=True),
    "randaugment": _randaugment,
}
