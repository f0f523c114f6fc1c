"""Losses that take a stand on entries that nobody annotated: one number per entry.

``fedmlic.losses`` never guesses. Methods for present-only labels have to: what is not annotated as
PRESENT is taken as absent, weighted down, or pushed in some direction. UNKNOWN, UNCERTAIN and ABSENT
entries are told apart by the caller, with the masks below.

All compute in float32 (float64 stays float64) under autocast too.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fedmlic.labels import ABSENT, PRESENT
from fedmlic.losses import binary_cross_entropy

Tensor = torch.Tensor


def precise(logits: Tensor) -> Tensor:
    """The logits in float32, or float64 where they are."""
    return logits if logits.dtype == torch.float64 else logits.float()


def present_cost(logits: Tensor) -> Tensor:
    """``-log p`` of every entry, whatever its label."""
    return F.softplus(-precise(logits))


def absent_cost(logits: Tensor) -> Tensor:
    """``-log(1 - p)`` of every entry, whatever its label."""
    return F.softplus(precise(logits))


def present_entries(labels: Tensor) -> Tensor:
    """Bool: annotated as present."""
    return labels == PRESENT


def open_entries(labels: Tensor) -> Tensor:
    """Bool: not annotated (UNKNOWN or UNCERTAIN)."""
    return labels < ABSENT


def entropy(logits: Tensor) -> Tensor:
    """``-p log p - (1 - p) log(1 - p)`` of every entry, 0 to log 2."""
    logits = precise(logits)
    return torch.sigmoid(logits) * F.softplus(-logits) + torch.sigmoid(-logits) * F.softplus(logits)


def expected_positives(logits: Tensor, expected: float) -> Tensor:
    """``((mean over images of the sum over labels of p) - expected)^2 / labels^2``, a scalar.

    Args:
        logits: ``[batch, labels]``.
        expected: labels that an image has on average.

    Source: R_k of Cole et al. 2021, "Multi-Label Learning from Single Positive Labels" (CVPR).
    """
    gap = torch.sigmoid(precise(logits)).sum(dim=1).mean() - expected
    return (gap / logits.shape[1]).square()


def taken_as_absent(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean binary cross-entropy over all entries, those not PRESENT taken as ABSENT.

    Args:
        logits: floating ``[batch, labels]``.
        labels: int8 ``[batch, labels]``.
    """
    return binary_cross_entropy(logits, (labels == PRESENT).to(torch.int8)).mean()
