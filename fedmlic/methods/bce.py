"""BCE: the mean log-loss over what the client's annotators wrote down.

UNKNOWN and UNCERTAIN entries take no part. The baseline of every comparison,
and the shortest example of a method.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from fedmlic.losses import binary_cross_entropy, known_mean
from fedmlic.method import Method
from fedmlic.training import classifier


def known_entries_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean binary cross-entropy over the known entries of a batch; 0 if there are none.

    Args:
        logits: floating ``[batch, labels]``.
        labels: int8 ``[batch, labels]``.
    """
    return known_mean(binary_cross_entropy(logits, labels), labels)


def bce(*, pool: Literal["mean", "max", "logsumexp"] = "mean") -> Method:
    """Binary cross-entropy over known labels only.

    Args:
        pool: how the logit map becomes one logit per label (``fedmlic.model.Classifier``).
    """
    return classifier(known_entries_loss, pool=pool)
