"""Focal loss: easy entries fade away, present and absent ones alike.

    -a_t (1 - p_t)^gamma log p_t,  p_t the probability of the known state

a_t is ``alpha`` for present and 1 - alpha for absent entries, or 1 without ``alpha``.

Deviations: UNKNOWN and UNCERTAIN entries take no part; the mean is over known entries (the source's
detector divides by the number of objects).

Source: Lin et al. 2017, "Focal Loss for Dense Object Detection" (ICCV).
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedmlic.labels import PRESENT
from fedmlic.losses import asymmetric, known_mean
from fedmlic.method import Method
from fedmlic.training import classifier


def focal_entries(logits: Tensor, labels: Tensor, gamma: float, alpha: float | None) -> Tensor:
    """The focal loss of each known entry; UNKNOWN and UNCERTAIN entries are 0.

    Args:
        logits: floating ``[batch, labels]``.
        labels: int8 ``[batch, labels]``.
        gamma: exponent, 0 or more.
        alpha: weight of present entries in [0, 1], absent ones weigh 1 - alpha; None: both 1.
    """
    entries = asymmetric(logits, labels, gamma_pos=gamma, gamma_neg=gamma, margin=0.0, detach_weight=False)
    return entries if alpha is None else torch.where(labels == PRESENT, alpha, 1 - alpha) * entries


def focal(
    *,
    gamma: Annotated[float, Field(ge=0)] = 2.0,
    alpha: Annotated[float, Field(ge=0, le=1)] | None = None,
    reduction: Literal["mean", "sum"] = "mean",
    pool: Literal["mean", "max", "logsumexp"] = "mean",
) -> Method:
    """Focal loss over known labels only.

    Args:
        gamma: focusing exponent, 0 or more.
        alpha: weight of present entries, absent ones weigh 1 - alpha (None: both 1; the source's
            detector uses 0.25).
        reduction: mean over the known entries of a batch, or their sum.
        pool: how the logit map becomes one logit per label (``fedmlic.model.Classifier``).
    """

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        entries = focal_entries(logits, labels, gamma, alpha)
        return entries.sum() if reduction == "sum" else known_mean(entries, labels)

    return classifier(loss, pool=pool)
