"""DB: distribution-balanced loss for long tails: entries re-weighted, negatives tolerated.

With n_c images in which label c is present, of N, and image i:

    r_ic  = (1 / n_c) / (sum over labels j present in i of 1 / n_j)
    r^_ic = a + sigmoid(b (r_ic - u))
    z     = s_ic - (kappa / lambda) log(N / n_c - 1)
    loss  = r^_ic * (softplus(-z) where present, softplus(lambda z) / lambda where absent)

r undoes what drawing images by class does to labels that occur together; lambda and the shift keep
easy absences from pushing rare labels down. ``focal=True`` multiplies by 2 (1 - p_t)^2 (DB-focal), p_t
of z where present and of lambda z where absent.

An image without a present label has r without bound: r^ = a + 1. A label of which no present entry is
counted (or whose count is withheld) has r^ = 1 and no shift.

Deviations: UNKNOWN and UNCERTAIN entries take no part; the mean is over known entries. The source
draws images by class; here a client's images come once per pass. Counts are the client's own, or with
``counts="global"`` those of all clients together, counted once before the first round (the source's
setting, as far as a federation allows it).

Source: Wu et al. 2020, "Distribution-Balanced Loss for Multi-Label Classification in Long-Tailed
Datasets" (ECCV); defaults are the released code's for COCO-MLT.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field

from fedmlic.counting import PRESENT_COUNTS, label_counts
from fedmlic.guesses import precise
from fedmlic.labels import ABSENT, PRESENT
from fedmlic.losses import known_mean
from fedmlic.method import Inputs, Local, Method
from fedmlic.protocol import STATISTICS
from fedmlic.training import classifier

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from fedmlic.shard import Shard

IMAGES = "labels/images"
"""Name of the count of training images."""


def counted(shard: Shard) -> dict[str, Tensor]:
    """int64: images in which each label is present, and ``[1]``, all images."""
    present = label_counts(shard)[PRESENT_COUNTS]
    return {PRESENT_COUNTS: present, IMAGES: torch.tensor([shard.num_images])}


def shifts(present: Tensor, images: Tensor) -> Tensor:
    """float32 ``[labels]``: log(N / n_c - 1), 0 where a label is present in no image or in all.

    >>> shifts(torch.tensor([1, 0, 4]), torch.tensor([4])).tolist()
    [1.0986123085021973, 0.0, 0.0]
    """
    inside = (present > 0) & (present < images)
    odds = images.double() / present.clamp(min=1) - 1
    return torch.where(inside, odds.clamp(min=1e-12).log(), 0.0).float()


def rebalanced(labels: Tensor, present: Tensor, *, floor: float, steepness: float, middle: float) -> Tensor:
    """float32 ``[batch, labels]``: r^, the weight of every entry.

    Args:
        labels: int8 ``[batch, labels]``.
        present: ``[labels]``, counts.
        floor: a.
        steepness: b.
        middle: u.
    """
    inverse = torch.where(present > 0, 1 / present.clamp(min=1).float(), 0.0)
    total = (inverse * (labels == PRESENT)).sum(dim=1, keepdim=True)
    ratio = torch.where(total > 0, inverse / total.clamp(min=1e-30), torch.inf)
    return torch.where(present > 0, floor + torch.sigmoid(steepness * (ratio - middle)), 1.0)


def tolerant_entries(logits: Tensor, labels: Tensor, shift: Tensor, tolerance: float, *, focal: bool) -> Tensor:
    """The loss of every known entry before re-weighting; 0 elsewhere.

    Args:
        logits: floating ``[batch, labels]``.
        labels: int8 ``[batch, labels]``.
        shift: ``[labels]``, what logits are lowered by.
        tolerance: lambda, above 0.
        focal: whether entries are multiplied by 2 (1 - p_t)^2.
    """
    lowered = precise(logits) - shift
    towards = torch.where(labels == PRESENT, lowered, -tolerance * lowered)
    entries = F.softplus(-towards) / torch.where(labels == PRESENT, 1.0, tolerance)
    if focal:
        entries = 2 * torch.sigmoid(-towards).square() * entries
    return torch.where(labels >= ABSENT, entries, 0.0)


def db(
    *,
    counts: Literal["client", "global"] = "client",
    rebalance: bool = True,
    floor: Annotated[float, Field(ge=0)] = 0.1,
    steepness: Annotated[float, Field(ge=0)] = 10.0,
    middle: Annotated[float, Field(ge=0)] = 0.2,
    kappa: Annotated[float, Field(ge=0)] = 0.05,
    tolerance: Annotated[float, Field(gt=0)] = 2.0,
    focal: bool = False,
    pool: Literal["mean", "max", "logsumexp"] = "mean",
) -> Method:
    """Distribution-balanced loss for long-tailed labels (DB, DB-focal).

    Args:
        counts: the client's own, or of all clients, counted once before the first round (needs
            ``allow-statistics``).
        rebalance: whether entries are re-weighted (R-BCE).
        floor: a, the smallest weight (COCO-MLT 0.1).
        steepness: b (10).
        middle: u (COCO-MLT 0.2, VOC-MLT 0.3).
        kappa: how strongly logits are shifted by their label's frequency.
        tolerance: lambda, how negatives are tolerated (COCO-MLT 2, VOC-MLT 5).
        focal: whether easy entries fade (DB-focal).
        pool: how the logit map becomes one logit per label (``fedmlic.model.Classifier``).
    """

    def loss(logits: Tensor, labels: Tensor, present: Tensor, shift: Tensor) -> Tensor:
        entries = tolerant_entries(logits, labels, kappa / tolerance * shift, tolerance, focal=focal)
        if rebalance:
            entries = entries * rebalanced(labels, present, floor=floor, steepness=steepness, middle=middle)
        return known_mean(entries, labels)

    method = classifier(loss, pool=pool, inputs=_inputs(counts))
    return method._replace(statistics=counted) if counts == "global" else method


def _inputs(counts: str) -> Callable[[Local], Inputs]:
    def inputs(local: Local) -> Inputs:
        if counts == "global":
            found = {name: local.shared[STATISTICS + name].cpu() for name in (PRESENT_COUNTS, IMAGES)}
        else:
            found = counted(local.shard) if local.shard is not None else {}
        present = found[PRESENT_COUNTS]
        given = tuple(tensor.to(local.device) for tensor in (present, shifts(present, found[IMAGES])))
        return Inputs(lambda *_: given, dict)

    return inputs
