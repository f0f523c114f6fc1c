"""SPLC: absences of which the network is sure of the opposite count as present in this step.

After the client's first pass, an entry that nobody annotated and whose probability is above
``threshold`` is taken as present; every other one as absent. Then a focal log-loss; the logits of
annotated presences are lowered by a margin:

    -(1 - t)^gamma log t,  t the probability of the target

Deviations: a mean over all entries, ``reduction="sum"`` is the authors'. Entries annotated as
ABSENT are never corrected (the source does not tell them apart). The epoch is the client's own
count of passes (``fedmlic.image_state``).

Source: self-paced loss correction of Zhang et al. 2021, "Simple and Robust Loss Design for
Multi-Label Learning with Missing Labels" (arXiv 2112.07368).
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fedmlic.guesses import open_entries, precise, present_cost, present_entries
from fedmlic.image_state import Passes
from fedmlic.method import Inputs, Local, Method
from fedmlic.training import classifier


def splc_entries(
    logits: Tensor, labels: Tensor, correct: Tensor, *, threshold: float, gamma: float, margin: float
) -> Tensor:
    """The loss of every entry.

    Args:
        logits: floating ``[batch, labels]``.
        labels: int8 ``[batch, labels]``.
        correct: bool scalar, whether entries are corrected.
        threshold: probability above which an entry that is not annotated is taken as present.
        gamma: focusing exponent, 0 or more.
        margin: what the logits of annotated presences are lowered by.
    """
    logits, annotated = precise(logits), present_entries(labels)
    believed = correct & open_entries(labels) & (torch.sigmoid(logits) > threshold)
    shifted = torch.where(annotated, logits - margin, logits)
    towards = torch.where(annotated | believed, shifted, -shifted)
    # A power of the sigmoid has an infinite slope where the sigmoid vanishes and gamma is below 1.
    return torch.exp(gamma * F.logsigmoid(-towards)) * present_cost(towards)


def splc(
    *,
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.6,
    gamma: Annotated[float, Field(ge=0)] = 2.0,
    margin: Annotated[float, Field(ge=0)] = 1.0,
    first_pass: Annotated[int, Field(ge=0)] = 1,
    reduction: Literal["mean", "sum"] = "mean",
    pool: Literal["mean", "max", "logsumexp"] = "mean",
) -> Method:
    """Self-paced loss correction: confident predictions overrule guessed absences (SPLC).

    Args:
        threshold: probability above which an entry that is not annotated is taken as present.
        gamma: focusing exponent.
        margin: what the logits of annotated presences are lowered by.
        first_pass: passes of a client over its images before it corrects.
        reduction: mean over all entries of a batch, or their sum (the authors').
        pool: how the logit map becomes one logit per label (``fedmlic.model.Classifier``).
    """

    def inputs(local: Local) -> Inputs:
        passes = Passes(local)

        def correct(images: Tensor, labels: Tensor, _numbers: Tensor) -> tuple[Tensor]:
            return (torch.tensor(passes.next(len(labels)).number >= first_pass, device=images.device),)

        return Inputs(correct, dict)

    def loss(logits: Tensor, labels: Tensor, correct: Tensor) -> Tensor:
        entries = splc_entries(logits, labels, correct, threshold=threshold, gamma=gamma, margin=margin)
        return entries.sum() if reduction == "sum" else entries.mean()

    return classifier(loss, pool=pool, inputs=inputs)._replace(remembers=True, guesses="absent")
