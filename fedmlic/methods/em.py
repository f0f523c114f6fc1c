"""EM: of what nobody annotated the network should stay unsure; with APL, some of it is later labelled.

    present:        -log p
    not annotated:  -alpha * H(p),  H(p) = -p log p - (1 - p) log(1 - p)

H is maximised: no side is taken, and small gradients near p = 1/2 leave the annotated entries in
the lead.

Asymmetric pseudo-labelling (``pseudo_labels=True``, EM+APL in the source): before each of the
client's passes ``warm_up``, ..., ``epochs`` - 1 (counted from 0) the network looks at all of the
client's images in evaluation mode. In every label the least probable of the entries that are still
without a pseudo-label get their probability as soft target for good, so many that before the p-th of
these P = epochs - warm_up passes floor(share * U * p / P) entries have one; U is the label's number of
entries that are not annotated. There they cost beta * (-t log p - (1 - t) log(1 - p)). Nothing is ever
pseudo-labelled as present.

Deviations: the released code labels floor(share * U / P) further entries before every pass
(``rounding="pass"``), which is nothing where share * U is below P: on a client's few images far less
than the share would be labelled in the end. It looks at images mirrored at random; here they are as
stored. An entry annotated as ABSENT costs -log(1 - p) (the source has none). Exact logarithms,
where the released code adds 1e-5 to their argument. "Epoch" is the client's own count of passes; the
first look of a turn is that of the incoming global model. After ``epochs`` passes no more entries
are labelled.

Source: Zhou et al. 2022, "Acknowledging the Unknown for Multi-label Learning with Single Positive
Labels" (ECCV). Defaults are its values for COCO 2014.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedmlic.errors import InputError
from fedmlic.guesses import absent_cost, entropy, open_entries, precise, present_cost
from fedmlic.image_state import Passes, image_state
from fedmlic.losses import binary_cross_entropy
from fedmlic.method import Inputs, Local, Method
from fedmlic.training import classifier

if TYPE_CHECKING:
    from torch import nn

NO_TARGET = -1.0


def em_entries(logits: Tensor, labels: Tensor, alpha: float) -> Tensor:
    """The loss of every entry without pseudo-labels.

    Args:
        logits: floating ``[batch, labels]``.
        labels: int8 ``[batch, labels]``.
        alpha: weight of the entropy.
    """
    return torch.where(open_entries(labels), -alpha * entropy(logits), binary_cross_entropy(logits, labels))


def apl_entries(logits: Tensor, labels: Tensor, targets: Tensor, alpha: float, beta: float) -> Tensor:
    """The loss of every entry where some have pseudo-labels.

    Args:
        logits: floating ``[batch, labels]``.
        labels: int8 ``[batch, labels]``.
        targets: ``[batch, labels]``, probabilities, or ``NO_TARGET``.
        alpha: weight of the entropy.
        beta: weight of the pseudo-labels.
    """
    soft = targets * present_cost(logits) + (1 - targets) * absent_cost(logits)
    return torch.where(targets >= 0, beta * soft, em_entries(logits, labels, alpha))


def label_least_probable(targets: Tensor, probs: Tensor, labels: Tensor, share: float, times: int = 1) -> None:
    """Give the least probable entries of every label their probability as target, in place, until a share has one.

    Args:
        targets: float32 ``[images, labels]``.
        probs: float32 ``[images, labels]``.
        labels: int8 ``[images, labels]``.
        share: of a label's entries that are not annotated, how many have a target afterwards, rounded down; those
            that have one already count, and keep it.
        times: what the rounded number is multiplied by.
    """
    unknown = open_entries(labels)
    free = unknown & (targets < 0)
    held = (unknown & ~free).sum(dim=0)
    wanted = times * (share * unknown.sum(dim=0).double() + 1e-9).long() - held
    order = torch.where(free, probs, torch.inf).argsort(dim=0, stable=True)
    place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order))[:, None].expand_as(order).to(order))
    targets.copy_(torch.where(free & (place < wanted), probs, targets))


def em(
    *,
    alpha: Annotated[float, Field(ge=0)] = 0.1,
    pseudo_labels: bool = False,
    beta: Annotated[float, Field(ge=0)] = 0.9,
    share: Annotated[float, Field(ge=0, le=1)] = 0.9,
    warm_up: Annotated[int, Field(ge=0)] = 5,
    epochs: Annotated[int, Field(ge=1)] = 10,
    rounding: Literal["total", "pass"] = "total",
    pool: Literal["mean", "max", "logsumexp"] = "mean",
) -> Method:
    """Entropy maximisation on what is not annotated (EM), with pseudo-labels if wanted (EM+APL).

    Args:
        alpha: weight of the entropy (the source: VOC 0.2, COCO 0.1, NUS-WIDE 0.1, CUB 0.01).
        pseudo_labels: whether improbable entries get pseudo-labels (APL).
        beta: weight of pseudo-labels (VOC 0.02, COCO 0.9, NUS-WIDE 0.2, CUB 0.4).
        share: theta, of a label's entries that are not annotated and get one in the end.
        warm_up: passes of a client over its images before the first pseudo-labels.
        epochs: passes of a client until the last pseudo-labels; above ``warm_up``.
        rounding: of a label's number of pseudo-labels, in total or in each pass (the authors').
        pool: how the logit map becomes one logit per label (``fedmlic.model.Classifier``).

    The training metric ``pseudo-labels-per-label`` counts pseudo-labels that clients hold at the end of their
    turns, divided by the number of labels.

    Raises:
        InputError: ``epochs`` is not above ``warm_up``.
    """
    if not pseudo_labels:
        return classifier(lambda logits, labels: em_entries(logits, labels, alpha).mean(), pool=pool)._replace(
            guesses="unsure"
        )
    if epochs <= warm_up:
        msg = f"Expected epochs of em to be above its warm_up ({warm_up}), got {epochs}. Raise epochs."
        raise InputError(msg)

    def inputs(local: Local) -> Inputs:
        passes = Passes(local)
        targets = image_state(local, "apl", lambda shard: torch.full(shard.labels.shape, NO_TARGET))
        observed = torch.zeros(0) if local.shard is None else torch.from_numpy(np.ascontiguousarray(local.shard.labels))
        observed = observed.to(targets.device)

        def rows(_images: Tensor, labels: Tensor, numbers: Tensor) -> tuple[Tensor]:
            here = passes.next(len(labels))
            if here.begins and warm_up <= here.number < epochs and local.on_all is not None:
                probs = torch.sigmoid(local.on_all(_logits))
                looks, look = epochs - warm_up, here.number - warm_up + 1
                part, times = (share / looks, look) if rounding == "pass" else (share * (look / looks), 1)
                label_least_probable(targets, probs, observed, part, times)
            return (targets[numbers.to(targets.device)],)

        return Inputs(rows, lambda: {"pseudo-labels-per-label": float((targets >= 0).sum()) / targets.shape[1]})

    def loss(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
        return apl_entries(logits, labels, targets, alpha, beta).mean()

    why = "pseudo-labels are made with a client's own network"
    return classifier(loss, pool=pool, inputs=inputs, one_by_one=why)._replace(remembers=True, guesses="unsure")


def _logits(network: nn.Module, images: Tensor) -> Tensor:
    return precise(network(images))
