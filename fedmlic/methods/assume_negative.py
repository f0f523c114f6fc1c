"""Assume negative: whatever is not annotated as present counts as absent.

The oldest answer to missing labels, and what many released data loaders do
silently. It trains on every entry, right or wrong: with single positive labels
all negatives of the loss are guesses. UNKNOWN and UNCERTAIN are treated alike. A label
that nobody annotates is trained as absent from every image, which a run warns of.

Source: the "AN" baseline of Cole et al. 2021, "Multi-Label Learning from Single
Positive Labels" (CVPR).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from fedmlic.labels import PRESENT
from fedmlic.losses import binary_cross_entropy
from fedmlic.method import Method
from fedmlic.training import classifier


def all_entries_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean binary cross-entropy over all entries, those not PRESENT taken as ABSENT.

    Args:
        logits: floating ``[batch, labels]``.
        labels: int8 ``[batch, labels]``.
    """
    return binary_cross_entropy(logits, (labels == PRESENT).to(torch.int8)).mean()


def assume_negative(*, pool: Literal["mean", "max", "logsumexp"] = "mean") -> Method:
    """Binary cross-entropy over all labels; unknown ones count as absent.

    Args:
        pool: how the logit map becomes one logit per label (``fedmlic.model.Classifier``).
    """
    return classifier(all_entries_loss, pool=pool)._replace(guesses="absent")
