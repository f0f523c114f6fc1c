"""AN-LS: assume negative with smoothed labels, so that a wrong guess costs less than everything.

What is not annotated as PRESENT counts as absent; then a share of each target is moved to the
other side:

    present: (1 - s) * -log p + s * -log(1 - p)
    else:    (1 - s) * -log(1 - p) + s * -log p

Deviations: exact logarithms, where the released code adds 1e-5 to their argument. The coefficient
is that of the code (0.1); the paper's formula has eps/2 with eps = 0.1, which is ``smoothing=0.05``.

Source: Cole et al. 2021, "Multi-Label Learning from Single Positive Labels" (CVPR).
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedmlic.guesses import absent_cost, present_cost, present_entries
from fedmlic.method import Method
from fedmlic.training import classifier


def smoothed_loss(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Mean smoothed cross-entropy over all entries, those not PRESENT taken as ABSENT.

    Args:
        logits: floating ``[batch, labels]``.
        labels: int8 ``[batch, labels]``.
        smoothing: s, in [0, 0.5]; 0 is assume negative.

    >>> smoothed_loss(torch.zeros(1, 2), torch.tensor([[1, -1]], dtype=torch.int8), 0.1).item()
    0.6931471824645996
    """
    present, absent = present_cost(logits), absent_cost(logits)
    known, guessed = ((1 - s) * present + s * absent for s in (smoothing, 1 - smoothing))
    return torch.where(present_entries(labels), known, guessed).mean()


def an_ls(
    *,
    smoothing: Annotated[float, Field(ge=0, le=0.5)] = 0.1,
    pool: Literal["mean", "max", "logsumexp"] = "mean",
) -> Method:
    """Assume negative with label smoothing (AN-LS).

    Args:
        smoothing: share of every target that is moved to the other side, 0 to 0.5.
        pool: how the logit map becomes one logit per label (``fedmlic.model.Classifier``).
    """
    return classifier(lambda logits, labels: smoothed_loss(logits, labels, smoothing), pool=pool)._replace(
        guesses="absent"
    )
