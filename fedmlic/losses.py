"""How wrong logits are, entry by entry, and how entries are averaged.

A loss maps logits ``[batch, labels]`` and int8 labels of the same shape (the four
states of ``fedmlic.labels``) to one number per entry. Entries that are UNKNOWN or
UNCERTAIN get exactly 0 and send no gradient. A method that assumes something about
them (for example that they are absent) rewrites the labels first; losses never guess.

All losses compute in float32 (float64 stays float64) under autocast too, and stay
finite, with finite gradients, for every finite logit.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fedmlic.labels import ABSENT, PRESENT


def binary_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The log-loss of each known entry; UNKNOWN and UNCERTAIN entries are 0.

    ``-log p`` where present and ``-log(1 - p)`` where absent, with ``p`` the sigmoid of
    the logit.

    Args:
        logits: floating ``[batch, labels]``.
        labels: int8 ``[batch, labels]``.

    Returns:
        float32 ``[batch, labels]``, 0 or more.

    >>> binary_cross_entropy(torch.zeros(1, 3), torch.tensor([[1, 0, -1]], dtype=torch.int8)).tolist()
    [[0.6931471824645996, 0.6931471824645996, 0.0]]
    """
    logits, targets, weights = _weighted(logits, labels)
    return F.binary_cross_entropy_with_logits(logits, targets, weight=weights, reduction="none")


def mean_binary_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean of ``binary_cross_entropy`` over the known entries of a batch, in fewer steps.

    0 with a gradient of 0 if nothing is known.

    >>> mean_binary_cross_entropy(torch.zeros(1, 3), torch.tensor([[1, 0, -1]], dtype=torch.int8)).item()
    0.6931471824645996
    """
    logits, targets, weights = _weighted(logits, labels)
    total = F.binary_cross_entropy_with_logits(logits, targets, weight=weights, reduction="sum")
    return total / weights.sum().clamp(min=1)


def asymmetric(
    logits: Tensor,
    labels: Tensor,
    *,
    gamma_pos: float = 1.0,
    gamma_neg: float = 4.0,
    margin: float = 0.05,
    detach_weight: bool = True,
) -> Tensor:
    """The asymmetric loss of each known entry; UNKNOWN and UNCERTAIN entries are 0.

    ``-(1 - p)^gamma_pos log p`` where present; ``-q^gamma_neg log(1 - q)`` with
    ``q = max(p - margin, 0)`` where absent, so absent entries below the margin cost
    nothing. With both gammas and the margin at 0 it is ``binary_cross_entropy``.

    Args:
        logits: floating ``[batch, labels]``.
        labels: int8 ``[batch, labels]``.
        gamma_pos: focusing exponent for present entries, 0 or more.
        gamma_neg: focusing exponent for absent entries, 0 or more.
        margin: probability that absent entries may have for free, in [0, 1).
        detach_weight: treat the focusing factors as constants in the backward pass, as
            the authors' training code does; otherwise the gradient is the formula's own.

    Returns:
        float32 ``[batch, labels]``, 0 or more. The authors sum over it; see ``docs/losses.md``.

    Source: Ridnik et al. 2021, "Asymmetric Loss for Multi-Label Classification" (ICCV).
    """
    entries = labels >= ABSENT
    logits = _prepared(logits, entries)
    present = -_weight(gamma_pos * F.logsigmoid(-logits), detach=detach_weight) * F.logsigmoid(logits)
    if margin == 0:
        weight = _weight(gamma_neg * F.logsigmoid(logits), detach=detach_weight)
        absent = -weight * F.logsigmoid(-logits)
    else:
        absent = _absent_beyond_margin(logits, gamma_neg, margin, detach=detach_weight)
    return torch.where(entries, torch.where(labels == PRESENT, present, absent), 0.0)


def _absent_beyond_margin(logits: Tensor, gamma: float, margin: float, *, detach: bool) -> Tensor:
    excess = torch.sigmoid(logits) - margin
    costs = excess > 0
    # Where nothing is paid, 1 stands in: 0 to a power below 1 has an infinite slope, and 0 * inf is NaN.
    weight = _weight(gamma * torch.where(costs, excess, 1.0).log(), detach=detach)
    rest = torch.where(costs, torch.sigmoid(-logits) + margin, 1.0)
    return -torch.where(costs, weight * rest.log(), 0.0)


def _weight(log_weight: Tensor, *, detach: bool) -> Tensor:
    return (log_weight.detach() if detach else log_weight).exp()


def masked_sum(loss: Tensor, mask: Tensor) -> Tensor:
    """The sum of ``loss`` where ``mask`` (bool, same shape) is true; 0 if it is nowhere true."""
    return torch.where(mask, loss, 0.0).sum()


def masked_mean(loss: Tensor, mask: Tensor) -> Tensor:
    """The mean of ``loss`` where ``mask`` (bool, same shape) is true.

    A mask that is nowhere true gives 0 with a gradient of 0, so a batch without a single
    annotation trains nothing instead of breaking the round.

    >>> masked_mean(torch.tensor([1.0, 3.0, 100.0]), torch.tensor([True, True, False])).item()
    2.0
    """
    return masked_sum(loss, mask) / mask.sum().clamp(min=1)


def known_mean(loss: Tensor, labels: Tensor) -> Tensor:
    """The mean over known entries of a ``loss`` that is 0 at all others, as those of this module are.

    0 with a gradient of 0 if nothing is known.

    Args:
        loss: ``[batch, labels]``, unreduced.
        labels: int8 ``[batch, labels]``.

    >>> known_mean(torch.tensor([[1.0, 3.0, 0.0]]), torch.tensor([[1, 0, -1]], dtype=torch.int8)).item()
    2.0
    """
    return loss.sum() / (labels >= ABSENT).sum().clamp(min=1)


def balanced_mean(loss: Tensor, labels: Tensor) -> Tensor:
    """The mean over PRESENT entries plus the mean over ABSENT entries of the whole batch.

    Both kinds weigh the same however rare one of them is. A kind that does not occur
    contributes 0; UNKNOWN and UNCERTAIN entries are in neither.

    Args:
        loss: float32 ``[batch, labels]``, unreduced.
        labels: int8 ``[batch, labels]``.

    Source: "BalBCE" of Li 2026, "Dissecting output-space methods for multi-label federated
    learning", when ``loss`` is ``binary_cross_entropy``.

    >>> loss, labels = torch.tensor([2.0, 4.0, 5.0, 9.0]), torch.tensor([0, 0, 1, -1], dtype=torch.int8)
    >>> balanced_mean(loss, labels).item()
    8.0
    """
    return masked_mean(loss, labels == PRESENT) + masked_mean(loss, labels == ABSENT)


def _weighted(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, targets and weights of the log-loss of the known entries."""
    entries = labels >= ABSENT
    logits = _prepared(logits, entries)
    # Where nothing is known the weight is 0, the logit too, and the target (a negative code) has no say.
    return logits, labels.to(logits.dtype), entries.to(logits.dtype)


def _prepared(logits: Tensor, entries: Tensor) -> Tensor:
    precise = logits if logits.dtype == torch.float64 else logits.float()
    # Before the loss, too: else a non-finite logit of an unknown entry sends back 0 * inf.
    return torch.where(entries, precise, 0.0)
