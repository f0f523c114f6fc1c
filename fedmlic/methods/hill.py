"""Hill: a loss for guessed absences that gives up where the network is sure of the opposite.

    present: -(1 - q)^gamma log q,  q = sigmoid(z - margin)
    else:    (lambda - p) p^2

The gradient of the second falls again as p grows beyond a point, so a positive that nobody wrote
down is not pushed down for ever.

Deviations: a mean over all entries, so that a learning rate does not depend on batch size and
number of labels; ``reduction="sum"`` is the authors'. Entries annotated as ABSENT are treated as
those that are not annotated, as in the source, which does not tell them apart.

Source: Zhang et al. 2021, "Simple and Robust Loss Design for Multi-Label Learning with Missing
Labels" (arXiv 2112.07368).
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fedmlic.guesses import precise, present_cost, present_entries
from fedmlic.method import Method
from fedmlic.training import classifier


def hill_entries(
    logits: Tensor, labels: Tensor, *, gamma: float = 2.0, margin: float = 1.0, crest: float = 1.5
) -> Tensor:
    """The loss of every entry.

    Args:
        logits: floating ``[batch, labels]``.
        labels: int8 ``[batch, labels]``.
        gamma: focusing exponent of present entries, 0 or more.
        margin: what present entries' logits are lowered by.
        crest: lambda.
    """
    logits = precise(logits)
    shifted, probs = logits - margin, torch.sigmoid(logits)
    # A power of the sigmoid has an infinite slope where the sigmoid vanishes and gamma is below 1.
    present = torch.exp(gamma * F.logsigmoid(-shifted)) * present_cost(shifted)
    return torch.where(present_entries(labels), present, (crest - probs) * probs.square())


def hill(
    *,
    gamma: Annotated[float, Field(ge=0)] = 2.0,
    margin: Annotated[float, Field(ge=0)] = 1.0,
    crest: Annotated[float, Field(gt=0)] = 1.5,
    reduction: Literal["mean", "sum"] = "mean",
    pool: Literal["mean", "max", "logsumexp"] = "mean",
) -> Method:
    """Hill loss: guessed absences of which the network is sure count less.

    Args:
        gamma: focusing exponent of present entries.
        margin: what present entries' logits are lowered by.
        crest: lambda of the source; smaller values give up sooner.
        reduction: mean over all entries of a batch, or their sum (the authors').
        pool: how the logit map becomes one logit per label (``fedmlic.model.Classifier``).
    """

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        entries = hill_entries(logits, labels, gamma=gamma, margin=margin, crest=crest)
        return entries.sum() if reduction == "sum" else entries.mean()

    return classifier(loss, pool=pool)._replace(guesses="absent")
