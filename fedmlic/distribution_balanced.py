"""The distribution-balanced loss for long-tailed labels, in parts: counts, weights of entries, their loss.

``docs/methods/db.md`` has the formula; the methods ``db`` and ``hp_dval`` use it.

Source: Wu et al. 2020, "Distribution-Balanced Loss for Multi-Label Classification in Long-Tailed
Datasets" (ECCV); ``shares`` is the variant DB* of HP-DVAL (``docs/methods/hp_dval.md``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
import torch.nn.functional as F

from fedmlic.counting import IMAGES, OF_A_LABEL, PRESENT_COUNTS, Counted, label_counts
from fedmlic.guesses import precise
from fedmlic.labels import ABSENT, PRESENT
from fedmlic.losses import known_mean
from fedmlic.method import Inputs, Local
from fedmlic.protocol import STATISTICS

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from fedmlic.shard import Shard


def _counted(shard: Shard) -> dict[str, Tensor]:
    present = label_counts(shard)[PRESENT_COUNTS]
    return {PRESENT_COUNTS: present, IMAGES: torch.tensor([shard.num_images])}


counted = Counted(_counted, (OF_A_LABEL,))
"""int64: images in which each label is present, and ``[1]``, all images."""


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

    1 where r is not known: for a label of which no present entry is counted, and for all labels of an image that has
    such a label, since its 1 / n_j is part of their r. Counts of all clients lack a label where its count is withheld.

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
    uncounted = ((labels == PRESENT) & (present <= 0)).any(dim=1, keepdim=True)
    return torch.where((present > 0) & ~uncounted, floor + torch.sigmoid(steepness * (ratio - middle)), 1.0)


def shares(present: Tensor) -> Tensor:
    """float32 ``[labels]``: n_c over the largest of them, by which DB* multiplies logits of present entries.

    1 where no present entry is counted.

    >>> shares(torch.tensor([1, 0, 4])).tolist()
    [0.25, 1.0, 1.0]
    """
    largest = present.max().clamp(min=1).float()
    return torch.where(present > 0, present.float() / largest, 1.0)


def tolerant_entries(
    logits: Tensor, labels: Tensor, shift: Tensor, tolerance: float, *, focal: bool, share: Tensor | float = 1.0
) -> Tensor:
    """The loss of every known entry before re-weighting; 0 elsewhere.

    Args:
        logits: floating ``[batch, labels]``.
        labels: int8 ``[batch, labels]``.
        shift: ``[labels]``, what logits are lowered by.
        tolerance: lambda, above 0.
        focal: whether entries are multiplied by 2 (1 - p_t)^2.
        share: ``[labels]`` or a number, what lowered logits of present entries are multiplied by (DB*).
    """
    lowered = precise(logits) - shift
    towards = torch.where(labels == PRESENT, share * lowered, -tolerance * lowered)
    entries = F.softplus(-towards) / torch.where(labels == PRESENT, 1.0, tolerance)
    if focal:
        entries = 2 * torch.sigmoid(-towards).square() * entries
    return torch.where(labels >= ABSENT, entries, 0.0)


def faded(entries: Tensor, weighted: Tensor, labels: Tensor, tolerance: float) -> Tensor:
    """The mean of ``weighted`` over known entries, times one focal factor 2 (1 - p)^2 of the whole batch, a scalar.

    p is exp of minus the mean log-loss, in which absent entries are not divided by the tolerance.

    Args:
        entries: of ``tolerant_entries`` without its own focal factor.
        weighted: the same, re-weighted.
        labels: int8 ``[batch, labels]``.
        tolerance: lambda.
    """
    level = known_mean(torch.where(labels == ABSENT, tolerance * entries, entries), labels)
    return 2 * (1 - torch.exp(-level)).square() * known_mean(weighted, labels)


class Balance(NamedTuple):
    """The whole loss.

    Attributes:
        rebalance: whether entries are re-weighted.
        floor: a.
        steepness: b.
        middle: u.
        kappa: how strongly logits are shifted.
        tolerance: lambda.
        focal: whether easy entries fade.
        positive_share: whether logits of present entries are multiplied by ``shares`` (DB*).
        focal_by: what fades: each ``entry`` by its own probability, or the ``batch`` by one factor (``faded``).
        present_scale: what logits of present entries are multiplied by, too.
    """

    rebalance: bool
    floor: float
    steepness: float
    middle: float
    kappa: float
    tolerance: float
    focal: bool
    positive_share: bool = False
    focal_by: Literal["entry", "batch"] = "entry"
    present_scale: float = 1.0

    def loss(self, logits: Tensor, labels: Tensor, present: Tensor, shift: Tensor) -> Tensor:
        """The mean over known entries, a scalar.

        Args:
            logits: floating ``[batch, labels]``.
            labels: int8 ``[batch, labels]``.
            present: ``[labels]``, counts.
            shift: ``[labels]``, as ``shifts`` gives them.
        """
        share = self.present_scale * (shares(present) if self.positive_share else 1.0)
        shifted = self.kappa / self.tolerance * shift
        whole = self.focal and self.focal_by == "batch"
        entries = tolerant_entries(logits, labels, shifted, self.tolerance, focal=self.focal and not whole, share=share)
        weighted = entries
        if self.rebalance:
            weighted = entries * rebalanced(
                labels, present, floor=self.floor, steepness=self.steepness, middle=self.middle
            )
        return faded(entries, weighted, labels, self.tolerance) if whole else known_mean(weighted, labels)


def count_inputs(counts: str) -> Callable[[Local], Inputs]:
    """An objective's ``inputs``: counts ``[labels]`` and shifts ``[labels]``, the same for every batch of a turn.

    Args:
        counts: ``client``: of the client's own training images; ``global``: of all clients', counted once
            before the first round by ``counted``.
    """

    def inputs(local: Local) -> Inputs:
        given = tuple(tensor.to(local.device) for tensor in known_counts(local, counts))
        return Inputs(lambda *_: given, dict)

    return inputs


def known_counts(local: Local, counts: str) -> tuple[Tensor, Tensor]:
    """What ``count_inputs`` gives, on the CPU; where a turn has no shard, nothing is counted."""
    if counts == "global":
        found = {name: local.shared[STATISTICS + name].cpu() for name in (PRESENT_COUNTS, IMAGES)}
    elif local.shard is None:
        found = {PRESENT_COUNTS: torch.zeros(1, dtype=torch.int64), IMAGES: torch.zeros(1, dtype=torch.int64)}
    else:
        found = dict(counted(local.shard))
    present = found[PRESENT_COUNTS]
    return present, shifts(present, found[IMAGES])
