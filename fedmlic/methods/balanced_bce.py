"""BalBCE: present and absent entries are averaged apart and count the same.

Most entries of a multi-label batch are absent, so plain BCE is mostly a loss on
negatives. The source finds that with this balance and a tuned learning rate
most federated tricks at the output make no difference.

Deviation: UNKNOWN and UNCERTAIN entries are in neither mean (the source has
complete labels).

Source: Li 2026, "Dissecting output-space methods for multi-label federated
learning" (IEEE AGCS workshop).
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from fedmlic.losses import balanced_mean, binary_cross_entropy
from fedmlic.method import Method
from fedmlic.training import classifier


def balanced_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean log-loss of present entries plus that of absent entries, over the batch.

    Args:
        logits: floating ``[batch, labels]``.
        labels: int8 ``[batch, labels]``.
    """
    return balanced_mean(binary_cross_entropy(logits, labels), labels)


def balanced_bce(*, pool: Literal["mean", "max", "logsumexp"] = "mean") -> Method:
    """Binary cross-entropy with present and absent known labels weighing the same.

    Args:
        pool: how the logit map becomes one logit per label (``fedmlic.model.Classifier``).
    """
    return classifier(balanced_loss, pool=pool)
