"""WAN: assume negative, weakly: guessed absences weigh little.

An entry that nobody annotated counts as absent with weight 1 / (labels - 1): with one known
positive per image, all guesses of an image together weigh as much as the one annotation.

Deviations: an entry annotated as ABSENT is no guess and weighs 1 (the source has none). Exact
logarithms, where the released code adds 1e-5 to their argument.

Source: Cole et al. 2021, "Multi-Label Learning from Single Positive Labels" (CVPR), after Mac Aodha
et al. 2019.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedmlic.guesses import absent_cost, open_entries, present_cost, present_entries
from fedmlic.method import Method
from fedmlic.training import classifier


def weak_loss(logits: Tensor, labels: Tensor, weight: float | None = None) -> Tensor:
    """Mean cross-entropy over all entries, those not annotated taken as absent with a weight.

    Args:
        logits: floating ``[batch, labels]``.
        labels: int8 ``[batch, labels]``.
        weight: of guessed absences, 0 or more; 1 is assume negative. None: 1 / (labels - 1).

    >>> weak_loss(torch.zeros(1, 3), torch.tensor([[1, -1, -1]], dtype=torch.int8)).item() * 3
    1.3862943649291992
    """
    weight = 1 / max(logits.shape[1] - 1, 1) if weight is None else weight
    absent = absent_cost(logits)
    absent = torch.where(open_entries(labels), weight * absent, absent)
    return torch.where(present_entries(labels), present_cost(logits), absent).mean()


def wan(
    *,
    weight: Annotated[float, Field(ge=0)] | None = None,
    pool: Literal["mean", "max", "logsumexp"] = "mean",
) -> Method:
    """Weak assume negative: guessed absences weigh little (WAN).

    Args:
        weight: of a guessed absence, 0 or more (None: 1 / (labels - 1), the source's).
        pool: how the logit map becomes one logit per label (``fedmlic.model.Classifier``).
    """
    return classifier(lambda logits, labels: weak_loss(logits, labels, weight), pool=pool)._replace(guesses="absent")
