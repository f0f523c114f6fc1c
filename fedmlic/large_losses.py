"""Large losses on guessed absences are taken for labels that nobody wrote down.

The part that the methods ``large_loss`` and ``boostlu`` share. Training starts as assume negative. From
a client's second pass on, of every batch the K largest losses among the entries that nobody annotated are

* R: left out of this step (rejected);
* Ct: taken as present in this step (temporarily corrected);
* Cp: taken as present from now on (permanently corrected).

In pass t = 1, 2, ... of a client, K = ceil(batch * labels * (t - 1) * d) for R and Ct, with t limited to
``epochs``, and K = ceil(batch * labels * d) for Cp, where d = delta / 100. Rounded up, K is 1 or more: Cp corrects
a further entry of every batch for as long as training lasts and entries are open.

Source: Kim et al. 2022, "Large Loss Matters in Weakly Supervised Multi-Label Classification" (CVPR).
The released code compares with the K-th loss by > in one place and < in another; here the entries at
or above the K-th largest loss are taken, in both, as in the code of BoostLU.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch

from fedmlic.guesses import absent_cost, open_entries, present_cost, present_entries
from fedmlic.image_state import Passes, image_state
from fedmlic.labels import PRESENT
from fedmlic.method import Inputs

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from fedmlic.method import Local

Variant = Literal["R", "Ct", "Cp"]
DELTAS = {"R": 0.5, "Ct": 0.2, "Cp": 0.1}
"""Percentages that the code of BoostLU uses; the source searches 0.1 to 0.5."""


def num_large(variant: str, entries: int, number: int, delta: float, epochs: int) -> int:
    """K: how many entries of a batch count as large.

    Args:
        variant: R, Ct or Cp.
        entries: images times labels of the batch.
        number: the client's pass, 0 in its first.
        delta: percentage.
        epochs: passes over which K grows.

    >>> [num_large("R", 1000, number, 0.5, 10) for number in (0, 1, 2, 9, 30)]
    [0, 5, 10, 45, 45]
    >>> [num_large("Cp", 1000, number, 0.5, 10) for number in (0, 1, 9)]
    [0, 5, 5]
    """
    steps = min(number, epochs - 1) if variant != "Cp" else min(number, 1)
    return math.ceil(entries * steps * delta / 100 - 1e-9)


def large_entries(losses: Tensor, candidates: Tensor, count: Tensor) -> Tensor:
    """Bool: the candidates whose loss is among the ``count`` largest of all candidates, ties included.

    Args:
        losses: ``[batch, labels]``.
        candidates: bool, likewise.
        count: int64 scalar; 0 gives none, more than there are gives all.
    """
    ranked = torch.where(candidates, losses.detach(), -torch.inf).flatten().sort(descending=True).values
    last = ranked.gather(0, (count - 1).clamp(0, len(ranked) - 1)[None])[0]
    return candidates & (losses.detach() >= last) & (count > 0)


def large_loss_of(variant: str, logits: Tensor, labels: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """The mean over all entries of assume negative's loss, large ones treated as ``variant`` says.

    Args:
        variant: R, Ct or Cp.
        logits: floating ``[batch, labels]``.
        labels: int8 ``[batch, labels]``, corrections made so far included.
        count: int64 scalar, K.

    Returns:
        The scalar, and bool ``[batch, labels]``: which entries were large.
    """
    losses = torch.where(present_entries(labels), present_cost(logits), absent_cost(logits))
    large = large_entries(losses, open_entries(labels), count)
    instead = torch.zeros_like(losses) if variant == "R" else present_cost(logits)
    return torch.where(large, instead, losses).mean(), large


def large_loss_inputs(variant: str, delta: float, epochs: int) -> Callable[[Local], Inputs]:
    """K for every batch and, for Cp, the corrections made so far, which the client keeps.

    The metric ``large-per-label`` counts entries that were large, over the turn's steps, divided by the number of
    labels. They may be fewer than K, where fewer are open, and more, where losses are equal.
    """

    def inputs(local: Local) -> Inputs:
        passes = Passes(local)
        counted = torch.zeros((), dtype=torch.float64, device=local.device)
        corrected: Tensor | None = None
        if variant == "Cp":
            corrected = image_state(local, "corrected", lambda shard: torch.zeros(shard.labels.shape, dtype=torch.bool))

        def of(images: Tensor, labels: Tensor, numbers: Tensor) -> tuple[Tensor, ...]:
            count = num_large(variant, labels.numel(), passes.next(len(labels)).number, delta, epochs)
            given = torch.tensor(count, device=images.device)
            return (given,) if corrected is None else (given, corrected[numbers.to(corrected.device)])

        def seen(numbers: Tensor, large: Tensor) -> None:
            counted.add_(large.sum().double() / large.shape[1])  # stays on the device, so that no step waits for it
            if corrected is not None:
                places = numbers.to(corrected.device)
                corrected[places] = corrected[places] | large

        return Inputs(of, lambda: {"large-per-label": float(counted)}, seen)

    return inputs


def large_loss_step(variant: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """The loss of one batch, for ``training.classifier``."""

    def loss(logits: Tensor, labels: Tensor, count: Tensor, *corrected: Tensor) -> tuple[Tensor, Tensor]:
        for each in corrected:
            labels = torch.where(each, PRESENT, labels)
        return large_loss_of(variant, logits, labels, count)

    return loss
