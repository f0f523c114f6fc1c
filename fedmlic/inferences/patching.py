"""patching: the whole image's logit and the pivot patch's, averaged (PAT-I).

With f(x) the logits of an image and f(x_m) those of its patches,

    p = sigmoid((f(x) + sum_m softmax_m(f(x_m) / T) f(x_m)) / 2)

for every label by itself. Each patch is judged as an image of its own, so the network is asked
``grid * grid + 1`` times as often.

Logits are taken back from the method's probabilities, which is why any method will do, a network
asked about other names included. A probability that float32 rounds to 1 counts as the largest
number below 1, a logit of 16.6.

Source: Xie et al., "Counterfactual Reasoning for Multi-Label Image Classification via Patching-Based
Training" (ICML 2024, arXiv 2404.06287), PAT-I, whose temperature is 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedmlic.inference import Inference, Predict
from fedmlic.patches import check_grid, check_small_patches, cut, pivot

if TYPE_CHECKING:
    from fedmlic.method import Task

LARGEST = 1 - 2**-24
"""The largest float32 below 1."""


def patching(
    *,
    grid: Annotated[int, Field(ge=1)] = 2,
    temperature: Annotated[float, Field(gt=0)] = 1.0,
    patch_upsample: bool = True,
) -> Inference:
    """The whole image and its patches: the average of its logit and the pivot patch's.

    Args:
        grid: patches in a row and in a column of the image; 1 gives the method's own prediction.
        temperature: of the softmax over patches; above 0.
        patch_upsample: resize patches to the size of the image, as published; else they are judged
            as small as they are, which takes less time and a network that takes any size.
    """

    def of(predict: Predict) -> Predict:
        def probabilities(images: Tensor) -> Tensor:
            whole = logits_of(predict(images))
            patches = cut(images, grid, upsample=patch_upsample)
            # One patch of all images at a time: no more memory than one prediction takes.
            parts = torch.stack([logits_of(predict(patch)) for patch in patches])
            return torch.sigmoid((whole + pivot(parts, parts, temperature)) / 2)

        return probabilities

    def check(task: Task, predict: Predict) -> None:
        check_grid(*task.image_shape[:2], grid)
        if not patch_upsample:
            check_small_patches(predict, task.image_shape, grid)

    return Inference(of, check, needs_pixels=True)


def logits_of(probs: Tensor) -> Tensor:
    """The finite logits float32 of probabilities in [0, 1].

    >>> [round(logit, 1) for logit in logits_of(torch.tensor([0.5, 1.0])).tolist()]
    [0.0, 16.6]
    """
    return torch.logit(probs.float().clamp(torch.finfo(torch.float32).tiny, LARGEST))
