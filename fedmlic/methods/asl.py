"""ASL: easy negatives fade away and very easy ones cost nothing.

Defaults are those of the authors' loss class: exponents 1 for present and 4 for
absent entries, margin 0.05, focusing factors not differentiated. Their COCO
training script uses ``gamma_pos=0``, and their code sums over batch and labels.

Deviations: UNKNOWN and UNCERTAIN entries take no part (the source has complete
labels). The default is the mean over known entries, so that one learning rate
fits clients and data sets of any number of labels; ``reduction="sum"`` is the
authors'.

Source: Ridnik et al. 2021, "Asymmetric Loss for Multi-Label Classification" (ICCV).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from fedmlic.losses import asymmetric, known_mean
from fedmlic.method import Method
from fedmlic.training import classifier


def asl(
    *,
    gamma_pos: Annotated[float, Field(ge=0)] = 1.0,
    gamma_neg: Annotated[float, Field(ge=0)] = 4.0,
    margin: Annotated[float, Field(ge=0, lt=1)] = 0.05,
    reduction: Literal["mean", "sum"] = "mean",
    pool: Literal["mean", "max", "logsumexp"] = "mean",
) -> Method:
    """Asymmetric loss over known labels only.

    Args:
        gamma_pos: focusing exponent for present entries, 0 or more.
        gamma_neg: focusing exponent for absent entries, 0 or more.
        margin: probability that absent entries may have for free, in [0, 1).
        reduction: mean over the known entries of a batch, or their sum (the authors').
        pool: how the logit map becomes one logit per label (``fedmlic.model.Classifier``).
    """

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        entries = asymmetric(logits, labels, gamma_pos=gamma_pos, gamma_neg=gamma_neg, margin=margin)
        return entries.sum() if reduction == "sum" else known_mean(entries, labels)

    return classifier(loss, pool=pool)
