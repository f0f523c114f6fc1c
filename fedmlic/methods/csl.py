"""CSL: entries that nobody annotated count as absent, but for those that are likely to be present.

Asymmetric loss with an exponent of its own for entries that are not annotated. Of these, ignored are

* all of a label that is frequent: whose estimated share of images is above ``eta``;
* the ``top_k`` times batch size most probable ones of the batch.

The source estimates frequencies with a second network that it trains on known entries only. Here
(this project's choice) a client takes the mean of the probabilities that its own training last gave
for its images, kept from turn to turn; before its first pass is complete no label counts as frequent.

Deviations: a mean over all entries of the batch; ``reduction="sum"`` is the authors'.

Source: Ben-Baruch et al. 2022, "Multi-label Classification with Partial Annotations using Class-aware
Selective Loss" (CVPR); defaults are those of its command line.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedmlic.guesses import open_entries, precise
from fedmlic.image_state import image_state
from fedmlic.labels import ABSENT
from fedmlic.losses import asymmetric
from fedmlic.method import Inputs, Local, Method
from fedmlic.training import classifier

NOT_YET = -1.0


def selective_entries(
    logits: Tensor,
    labels: Tensor,
    frequent: Tensor,
    *,
    gammas: tuple[float, float, float],
    margin: float,
    top_k: int,
) -> Tensor:
    """The loss of every entry; 0 where it is ignored.

    Args:
        logits: floating ``[batch, labels]``.
        labels: int8 ``[batch, labels]``.
        frequent: bool ``[labels]``.
        gammas: exponents of present, absent and not annotated entries.
        margin: probability that absent entries may have for free.
        top_k: most probable entries to ignore, per image of the batch.
    """
    unknown = open_entries(labels)
    known = asymmetric(logits, labels, gamma_pos=gammas[0], gamma_neg=gammas[1], margin=margin)
    guessed = asymmetric(logits, torch.full_like(labels, ABSENT), gamma_neg=gammas[2], margin=margin)
    return torch.where(unknown, torch.where(_ignored(logits, unknown, frequent, top_k), 0.0, guessed), known)


def _ignored(logits: Tensor, unknown: Tensor, frequent: Tensor, top_k: int) -> Tensor:
    if top_k == 0:
        return frequent.expand_as(unknown)
    ranked = torch.where(unknown, precise(logits).detach(), -torch.inf).flatten()
    last = ranked.topk(min(top_k * len(unknown), len(ranked))).values[-1]
    return frequent | (precise(logits).detach() >= last)


def csl(
    *,
    gamma_pos: Annotated[float, Field(ge=0)] = 0.0,
    gamma_neg: Annotated[float, Field(ge=0)] = 1.0,
    gamma_unknown: Annotated[float, Field(ge=0)] = 2.0,
    margin: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    top_k: Annotated[int, Field(ge=0)] = 5,
    eta: Annotated[float, Field(ge=0, le=1)] = 0.05,
    reduction: Literal["mean", "sum"] = "mean",
    pool: Literal["mean", "max", "logsumexp"] = "mean",
) -> Method:
    """Class-aware selective loss: likely presences among unannotated entries are ignored (CSL).

    Args:
        gamma_pos: focusing exponent for present entries.
        gamma_neg: focusing exponent for absent entries.
        gamma_unknown: focusing exponent for entries that are not annotated.
        margin: probability that absent entries may have for free, in [0, 1).
        top_k: most probable unannotated entries to ignore, per image of the batch.
        eta: share of images above which a label is frequent; 1 switches this rule off.
        reduction: mean over all entries of a batch, or their sum (the authors').
        pool: how the logit map becomes one logit per label (``fedmlic.model.Classifier``).
    """

    def inputs(local: Local) -> Inputs:
        last = image_state(local, "csl", lambda shard: torch.full(shard.labels.shape, NOT_YET))

        def frequent(_images: Tensor, _labels: Tensor, _numbers: Tensor) -> tuple[Tensor]:
            complete = (last >= 0).all(dim=0)
            return (complete & (last.mean(dim=0) > eta),)

        def seen(numbers: Tensor, probs: Tensor) -> None:
            last.index_copy_(0, numbers.to(last.device), probs)

        return Inputs(frequent, dict, seen)

    def loss(logits: Tensor, labels: Tensor, frequent: Tensor) -> tuple[Tensor, Tensor]:
        gammas = (gamma_pos, gamma_neg, gamma_unknown)
        entries = selective_entries(logits, labels, frequent, gammas=gammas, margin=margin, top_k=top_k)
        return entries.sum() if reduction == "sum" else entries.mean(), torch.sigmoid(logits.float())

    return classifier(loss, pool=pool, inputs=inputs)._replace(remembers=True, guesses="absent")
