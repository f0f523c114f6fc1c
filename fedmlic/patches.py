"""An image in patches, and one score out of the patches' scores.

Counterfactual patching judges the whole image and, beside it, every patch alone. Inside the patch
that shows an object most of its surroundings are gone, so the score of that patch is evidence of the
object itself and not of what usually stands beside it. Which patch that is, is decided softly and for
each label by itself. The method ``pat`` trains so; the inference ``patching`` predicts so.

Source: Xie et al., "Counterfactual Reasoning for Multi-Label Image Classification via Patching-Based
Training" (ICML 2024, arXiv 2404.06287).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from fedmlic.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable


def cut(images: Tensor, grid: int, *, upsample: bool = True) -> Tensor:
    """The patches of a regular grid, each with every image's.

    All patches are of one size, ``ceil(height / grid)`` times ``ceil(width / grid)``, spread evenly
    from edge to edge. Where ``grid`` divides the side they touch; else neighbours overlap by a few
    pixels, so that every pixel is in a patch. (The authors' code takes the floor and loses the rest
    of the pixels; their images are 448 pixels in a 2 x 2 grid.)

    Args:
        images: float32 ``[batch, channels, height, width]``.
        grid: n, patches in a row and in a column.
        upsample: whether patches are resized to the size of the image (bilinear).

    Returns:
        float32 ``[n * n, batch, channels, height', width']``, patches row by row.

    Raises:
        InputError: a side has fewer pixels than the grid has patches.

    >>> cut(torch.arange(9.0).view(1, 1, 3, 3), 2, upsample=False)[1, 0, 0].tolist()
    [[1.0, 2.0], [4.0, 5.0]]
    """
    height, width = images.shape[-2:]
    check_grid(height, width, grid)
    rows, columns = _parts(height, grid), _parts(width, grid)
    patches = torch.stack([images[..., row, column] for row in rows for column in columns])
    if not upsample or grid == 1:
        return patches
    larger = F.interpolate(patches.flatten(0, 1), size=(height, width), mode="bilinear", align_corners=False)
    return larger.view(grid * grid, *images.shape)


def check_grid(height: int, width: int, grid: int) -> None:
    """Raise ``InputError`` if a side has fewer pixels than the grid has patches."""
    if min(height, width) < grid:
        msg = f"Expected grid to be at most the shorter side of images, {min(height, width)} pixels, got {grid}."
        raise InputError(msg)


def check_small_patches(call: Callable[[Tensor], object], image_shape: tuple[int, int, int], grid: int) -> None:
    """Raise ``InputError`` if a network does not take patches that are not resized.

    Args:
        call: the network, in evaluation mode.
        image_shape: height, width, channels of whole images.
        grid: n, patches in a row and in a column.
    """
    height, width, channels = image_shape
    try:
        with torch.no_grad():
            call(cut(torch.zeros(1, channels, height, width), grid, upsample=False)[0])
    except (RuntimeError, AssertionError, ValueError) as error:
        msg = (
            f"Expected a network that takes patches of {-(-height // grid)} x {-(-width // grid)} pixels "
            f"(patch_upsample=False), got: {str(error).splitlines()[0] if str(error) else type(error).__name__} "
            "Use patch_upsample=True, larger images, or a model that takes any size."
        )
        raise InputError(msg) from error


def pivot(attention: Tensor, evidence: Tensor, temperature: float = 1.0) -> Tensor:
    """One score per label out of those of all patches: ``d_k = sum_m softmax_m(a_mk / T) e_mk``.

    Args:
        attention: floating ``[patches, batch, labels]``, a.
        evidence: of the same shape, e.
        temperature: T, above 0. Towards 0 the patch of largest attention counts alone; the larger,
            the more equally all count.

    Returns:
        ``[batch, labels]``; the mean of the evidence where attention is the same for all patches.

    >>> pivot(torch.tensor([[[0.0]], [[0.0]]]), torch.tensor([[[1.0]], [[3.0]]])).item()
    2.0
    """
    return (torch.softmax(attention / temperature, dim=0) * evidence).sum(dim=0)


def _parts(side: int, grid: int) -> list[slice]:
    size = -(-side // grid)
    starts = [place * (side - size) // max(grid - 1, 1) for place in range(grid)]
    return [slice(start, start + size) for start in starts]
