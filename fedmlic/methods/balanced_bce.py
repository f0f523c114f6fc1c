"""BalBCE: present and absent entries are averaged apart and count the same.

Most entries of a multi-label batch are absent, so plain BCE is mostly a loss on
negatives. The source finds that with this balance and a tuned learning rate
most federated tricks at the output make no difference.

Deviation: UNKNOWN and UNCERTAIN entries are in neither mean (the source has
complete labels).

With ``counts="global"`` the balance is that of all clients together instead of the batch: a
label's present entries weigh N / (2 P) and its absent ones N / (2 A), with P, A and N = P + A
counted over all clients before the first round. A label whose counts are withheld or 0 weighs 1.
The source balances within the batch; this option is this project's.

Source: Li 2026, "Dissecting output-space methods for multi-label federated
learning" (IEEE AGCS workshop).
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedmlic.counting import ABSENT_COUNTS, PRESENT_COUNTS, label_counts
from fedmlic.labels import ABSENT, PRESENT
from fedmlic.losses import balanced_mean, binary_cross_entropy, masked_mean
from fedmlic.method import Inputs, Local, Method
from fedmlic.protocol import STATISTICS
from fedmlic.training import classifier


def balanced_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean log-loss of present entries plus that of absent entries, over the batch.

    Args:
        logits: floating ``[batch, labels]``.
        labels: int8 ``[batch, labels]``.
    """
    return balanced_mean(binary_cross_entropy(logits, labels), labels)


def weighted_loss(logits: Tensor, labels: Tensor, present: Tensor, absent: Tensor) -> Tensor:
    """The mean over known entries of their log-loss times a weight of their label and state.

    Args:
        logits: floating ``[batch, labels]``.
        labels: int8 ``[batch, labels]``.
        present: floating ``[labels]``, weights of present entries.
        absent: floating ``[labels]``, of absent ones.
    """
    weights = torch.where(labels == PRESENT, present, absent)
    return masked_mean(binary_cross_entropy(logits, labels) * weights, labels >= ABSENT)


def class_weights(present: Tensor, absent: Tensor, largest: float) -> tuple[Tensor, Tensor]:
    """Weights float32 ``[labels]`` of present and absent entries, from their counts over all clients.

    Args:
        present: ``[labels]``, entries that are present.
        absent: ``[labels]``, entries that are absent.
        largest: limit on a weight.

    >>> class_weights(torch.tensor([1, 0]), torch.tensor([3, 5]), 100.0)
    (tensor([2., 1.]), tensor([0.6667, 1.0000]))
    """
    both = (present > 0) & (absent > 0)
    half = (present + absent).to(torch.float64) / 2
    weights = (torch.where(both, half / count.clamp(min=1), 1.0).clamp(max=largest) for count in (present, absent))
    first, second = (weight.to(torch.float32) for weight in weights)
    return first, second


def balanced_bce(
    *,
    pool: Literal["mean", "max", "logsumexp"] = "mean",
    counts: Literal["batch", "global"] = "batch",
    largest_weight: Annotated[float, Field(ge=1)] = 100.0,
) -> Method:
    """Binary cross-entropy with present and absent known labels weighing the same.

    Args:
        pool: how the logit map becomes one logit per label (``fedmlic.model.Classifier``).
        counts: balance within each batch, as the source, or per label over all clients, counted
            once before the first round (needs ``allow-statistics``).
        largest_weight: limit on a label's weight with ``counts="global"``.
    """
    if counts == "batch":
        return classifier(balanced_loss, pool=pool)

    def inputs(local: Local) -> Inputs:
        present, absent = (local.shared[STATISTICS + name].cpu() for name in (PRESENT_COUNTS, ABSENT_COUNTS))
        weights = tuple(weight.to(local.device) for weight in class_weights(present, absent, largest_weight))
        return Inputs(lambda *_: weights, dict)

    return classifier(weighted_loss, pool=pool, inputs=inputs)._replace(statistics=label_counts)
