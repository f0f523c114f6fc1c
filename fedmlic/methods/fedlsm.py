"""FedLSM: what a client does not annotate is completed where the global model is sure, and mixed in where it is not.

With q the round's incoming global model's probability (the teacher's), an entry that is not annotated is

* present where q > ``present_from``, absent where q < ``absent_below``: these and annotated entries are *certain*;
* *uncertain* where it is not certain and ``low`` <= q <= ``high``, with q as its soft label.

    L = mean over certain entries of binary cross-entropy + mixing * M

M mixes every image with another of the batch, x' = r x_i + (1 - r) x_j, r from Beta(``alpha``, ``alpha``), and is the
mean binary cross-entropy of x' against r t_i + (1 - r) t_j over entries where i is uncertain and j certain, t being the
(soft) labels. Completed labels of the turn are kept, so that ``strategy="flag()"`` weighs a label's rows by annotated
and pseudo-positives together: the authors' adaptive classifier aggregation.

``mixing=0`` leaves out the uncertain entries; with ``present_from=1`` and ``absent_below=0`` as well it is ``bce``.

Deviations: the authors' teacher is a moving average of the network (0.999 a step) of which it is not known where it
starts; here it is the global model of the round, which it would follow within a round by a tenth in a hundred steps.
Which images are mixed could not be read in detail: partners are a permutation of the batch. The authors' two pools
overlap (a teacher's 0.005 to 0.01 is both absent and uncertain); here certain goes first.

Source: FedLSM, federated learning with partially labelled images
(MICCAI 2023) and its released code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fedmlic.errors import InputError
from fedmlic.guesses import open_entries, precise
from fedmlic.image_state import COMPLETED, image_state
from fedmlic.labels import ABSENT, PRESENT, UNKNOWN
from fedmlic.losses import masked_mean, mean_binary_cross_entropy
from fedmlic.method import Inputs, Local, Method, Objective
from fedmlic.training import classifier, trainer

if TYPE_CHECKING:
    from torch import nn

    from fedmlic.shard import Shard

Share = Annotated[float, Field(ge=0, le=1)]


def completed(labels: Tensor, taught: Tensor, present_from: float, absent_below: float) -> Tensor:
    """int8 ``[batch, labels]``: annotations, and what the teacher is sure of; UNKNOWN elsewhere.

    Args:
        labels: int8 ``[batch, labels]``.
        taught: ``[batch, labels]``, the teacher's probabilities.
        present_from: an open entry above it is present.
        absent_below: an open entry below it is absent.
    """
    pseudo = torch.where(taught > present_from, PRESENT, torch.where(taught < absent_below, ABSENT, UNKNOWN))
    return torch.where(open_entries(labels), pseudo.to(torch.int8), labels)


def mixed(first: Tensor, partner: Tensor, ratio: Tensor) -> Tensor:
    """``r x_i + (1 - r) x_j``, where j is the partner of i.

    Args:
        first: ``[batch, ...]``.
        partner: int64 ``[batch]``.
        ratio: ``[batch]``.
    """
    weight = ratio.view(-1, *[1] * (first.ndim - 1))
    return weight * first + (1 - weight) * first[partner]


def fedlsm(
    *,
    present_from: Share = 0.85,
    absent_below: Share = 0.01,
    low: Share = 0.005,
    high: Share = 0.7,
    mixing: Annotated[float, Field(ge=0)] = 0.1,
    alpha: Annotated[float, Field(gt=0)] = 0.2,
    pool: Literal["mean", "max", "logsumexp"] = "mean",
) -> Method:
    """Pseudo-labels where the global model is sure, mixed images where it is not (FedLSM).

    Args:
        present_from: probability above which an entry that is not annotated is taken as present.
        absent_below: probability below which it is taken as absent.
        low: smallest probability of an uncertain entry.
        high: largest probability of an uncertain entry.
        mixing: weight of mixed images; 0 for none.
        alpha: both parameters of the Beta distribution of how images are mixed.
        pool: how the logit map becomes one logit per label (``fedmlic.model.Classifier``).

    The training metrics ``pseudo-present-per-label`` and ``pseudo-absent-per-label`` count pseudo-labels of clients'
    turns, divided by the number of labels.

    Raises:
        InputError: ``absent_below`` is above ``present_from``, or ``low`` above ``high``.
    """
    for name, lower, upper in (("absent_below", absent_below, present_from), ("low", low, high)):
        if lower > upper:
            msg = f"Expected {name} of fedlsm to be at most {upper}, got {lower}. Lower it."
            raise InputError(msg)

    def inputs(local: Local) -> Inputs:
        answers = image_state(local, COMPLETED, _annotated)
        observed = torch.zeros_like(answers) if local.shard is None else _annotated(local.shard).to(answers.device)
        answers.copy_(observed)
        rng = local.rng("fedlsm/mixing")

        def of(images: Tensor, labels: Tensor, numbers: Tensor) -> tuple[Tensor, ...]:
            with torch.no_grad():
                taught = torch.sigmoid(precise(local.incoming()(images)))
            found = completed(labels.to(images.device), taught, present_from, absent_below)
            answers.index_copy_(0, numbers.to(answers.device), found)
            partner = torch.from_numpy(rng.permutation(len(labels))).to(images.device)
            ratio = torch.from_numpy(rng.beta(alpha, alpha, len(labels))).to(images)
            uncertain = (found < ABSENT) & (taught >= low) & (taught <= high)
            return found, taught, uncertain, partner, ratio

        def metrics() -> dict[str, float]:
            guessed, count = open_entries(observed), max(answers.shape[1], 1)
            states = {"present": PRESENT, "absent": ABSENT}
            return {
                f"pseudo-{name}-per-label": int((guessed & (answers == state)).sum()) / count
                for name, state in states.items()
            }

        return Inputs(of, metrics)

    def loss(network: nn.Module, images: Tensor, *given: Tensor) -> Tensor:
        _, answers, taught, uncertain, partner, ratio = given
        certain = mean_binary_cross_entropy(network(images), answers)
        if mixing == 0:
            return certain
        targets = torch.where(answers >= ABSENT, answers.to(taught.dtype), taught)
        used = uncertain & (answers >= ABSENT)[partner]
        logits = precise(network(mixed(images, partner, ratio)))
        entries = F.binary_cross_entropy_with_logits(logits, mixed(targets, partner, ratio), reduction="none")
        return certain + mixing * masked_mean(entries, used)

    objective = Objective(loss, inputs, one_by_one="the global model labels a client's images")
    return classifier(loss, pool=pool)._replace(
        train=trainer(objective),
        objective=objective,
        remembers=True,
        guesses="what the global model is sure of",
        needs_pixels=mixing > 0,
    )


def _annotated(shard: Shard) -> Tensor:
    return torch.from_numpy(np.array(shard.labels))
