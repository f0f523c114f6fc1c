"""Two-way loss: a ranking of labels within each image, and of images within each label.

Present entries should have larger logits than absent ones of the same row, and of the same column.
For one image with present labels P and absent labels N:

    softplus(Tn log(sum over N of exp(z / Tn)) + Tp log(sum over P of exp(-z / Tp)))

The mean over images with a present label, plus the same over the columns of the batch: the mean over
labels that are present in some image. UNKNOWN and UNCERTAIN entries are in neither set; an image
(a label) without an absent entry costs 0.

The second term depends on which images share a batch; ``over_labels=False`` leaves it out, for
clients with few images.

Source: Kobayashi 2023, "Two-Way Multi-Label Loss" (CVPR).
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fedmlic.guesses import precise
from fedmlic.labels import ABSENT, PRESENT
from fedmlic.losses import masked_mean
from fedmlic.method import Method
from fedmlic.training import classifier

NOTHING = -1e9
"""Stands for minus infinity, of which torch's gradient is not a number."""


def ranked(
    logits: Tensor, labels: Tensor, *, temperature_pos: float, temperature_neg: float, over_labels: bool
) -> Tensor:
    """Both terms of the loss of a batch.

    Args:
        logits: floating ``[batch, labels]``.
        labels: int8 ``[batch, labels]``.
        temperature_pos: Tp, above 0.
        temperature_neg: Tn, above 0.
        over_labels: whether the second term is added.

    >>> ranked(torch.zeros(1, 2), torch.tensor([[1, 0]], dtype=torch.int8), temperature_pos=4.0,
    ...        temperature_neg=1.0, over_labels=False).item()
    0.6931471824645996
    """
    logits = precise(logits)
    absent = torch.where(labels == ABSENT, logits / temperature_neg, NOTHING)
    present = torch.where(labels == PRESENT, -logits / temperature_pos, NOTHING)

    def term(axis: int) -> Tensor:
        margin = temperature_neg * absent.logsumexp(dim=axis) + temperature_pos * present.logsumexp(dim=axis)
        return masked_mean(F.softplus(margin), (labels == PRESENT).any(dim=axis))

    return term(1) + term(0) if over_labels else term(1)


def two_way(
    *,
    temperature_pos: Annotated[float, Field(gt=0)] = 4.0,
    temperature_neg: Annotated[float, Field(gt=0)] = 1.0,
    over_labels: bool = True,
    pool: Literal["mean", "max", "logsumexp"] = "mean",
) -> Method:
    """Present labels outrank absent ones, within images and within labels (two-way loss).

    Args:
        temperature_pos: Tp, of present entries.
        temperature_neg: Tn, of absent entries.
        over_labels: whether images are also ranked within each label of a batch.
        pool: how the logit map becomes one logit per label (``fedmlic.model.Classifier``).
    """

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return ranked(
            logits,
            labels,
            temperature_pos=temperature_pos,
            temperature_neg=temperature_neg,
            over_labels=over_labels,
        )

    return classifier(loss, pool=pool)
