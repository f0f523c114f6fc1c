"""FedNoRo: clients whose labels fit the global model badly learn from it as well; the others from their labels.

The client's half; ``strategy="fednoro()"`` is the server's, which finds noisy clients and merges models.

z is the network's logit, q the incoming global model's probability at ``temperature``, sigmoid(z_global / T), and
z' = z + log(pi_c / (1 - pi_c)), pi_c the label's present share of the client's annotated images (``adjust``). l is
binary cross-entropy over annotated entries.

    before the verdict, and clients that are not noisy:   l(z', y)
    noisy clients:                                        w KL(q || sigmoid(z')) + (1 - w) l(z', y)

w = ``weight`` exp(-5 (1 - t)^2), t rising from 0 to 1 over ``ramp`` rounds from the verdict on. As a turn before the
verdict begins, the client reports the incoming model's mean log-loss on its annotated entries of every label, those
written down as absent and as present apart, and their numbers.

Deviations: the source is single-label. Its softmax and prior per class are a sigmoid and a prior per label here; its
mean loss per class of what is written down is one per label and state. pi is kept 1 / (2 n) away from 0 and 1.
Entries that are not annotated take no part, in distillation neither.

Source: Wu et al., "FedNoRo: Towards Noise-Robust Federated Learning by Addressing Class Imbalance and Label Noise
Heterogeneity" (IJCAI 2023) and its released code.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fedmlic.guesses import entropy, precise
from fedmlic.image_state import of_all_images
from fedmlic.labels import ABSENT, PRESENT
from fedmlic.losses import binary_cross_entropy, known_mean
from fedmlic.method import Inputs, Local, Method
from fedmlic.noisy_clients import is_among
from fedmlic.training import classifier

if TYPE_CHECKING:
    from torch import nn

    from fedmlic.experiment import Experiment
    from fedmlic.shard import Shard

LOSSES, ENTRIES = "fednoro/losses", "fednoro/entries"
"""Sums of a round, ``[2, labels]``: mean log-loss of a client's absent and present entries, and int64 how many."""
NOISY, SINCE = "fednoro/noisy", "fednoro/since"
"""What the server shares: int64 ids of noisy clients, and the first round in which they are known."""
LARGEST_LOSS = 1000.0


def prior_logits(labels: Tensor) -> Tensor:
    """float32 ``[labels]``: log(pi / (1 - pi)), pi the present share of annotated images; 0 where there are none.

    Args:
        labels: int8 ``[images, labels]``.
    """
    count = (labels >= ABSENT).sum(dim=0).float()
    half = 1 / (2 * count.clamp(min=1))
    shares = ((labels == PRESENT).sum(dim=0) / count.clamp(min=1)).clamp(half, 1 - half)
    return torch.where(count > 0, torch.logit(shares), 0.0)


def loss_report(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """A client's mean log-loss per state and label, 0 where it has no such entry, and its entries.

    Args:
        logits: ``[images, labels]``, of the global model.
        labels: int8, likewise.
    """
    costs = binary_cross_entropy(logits, labels).double()
    masks = torch.stack([labels == state for state in (ABSENT, PRESENT)])
    entries = masks.sum(dim=1)
    means = (masks * costs).sum(dim=1) / entries.clamp(min=1)
    return {LOSSES: means.clamp(max=LARGEST_LOSS), ENTRIES: entries}


def ramped(weight: float, rounds_in: int, ramp: int) -> float:
    """``weight`` exp(-5 (1 - t)^2), t = ``rounds_in`` / ``ramp`` within 0 and 1.

    Args:
        weight: in the end.
        rounds_in: 0 in the first round after the verdict.
        ramp: rounds until the weight is whole; 0: at once.
    """
    place = min(1.0, rounds_in / ramp) if ramp else 1.0
    return weight * math.exp(-5 * (1 - place) ** 2)


def costs(logits: Tensor, labels: Tensor, taught: Tensor, shift: Tensor, weight: Tensor) -> Tensor:
    """Every annotated entry's w KL(q || p') + (1 - w) l, p' = sigmoid(z + shift); 0 elsewhere.

    Args:
        logits: floating ``[batch, labels]``, with gradient.
        labels: int8 ``[batch, labels]``.
        taught: ``[batch, labels]``, logits of the global model divided by the temperature.
        shift: ``[labels]``, what is added to logits.
        weight: w, a scalar; 0 leaves the teacher out.
    """
    shifted = precise(logits) + shift
    told = binary_cross_entropy(shifted, labels)
    taught = taught.to(shifted.dtype)
    apart = F.binary_cross_entropy_with_logits(shifted, torch.sigmoid(taught), reduction="none") - entropy(taught)
    return torch.where(labels >= ABSENT, weight * apart + (1 - weight) * told, 0.0)


def fednoro(
    *,
    weight: Annotated[float, Field(ge=0, le=1)] = 0.8,
    ramp: Annotated[int, Field(ge=0)] = 39,
    temperature: Annotated[float, Field(gt=0)] = 0.8,
    adjust: bool = True,
    pool: Literal["mean", "max", "logsumexp"] = "mean",
) -> Method:
    """Distillation from the global model at clients that ``strategy="fednoro()"`` finds noisy (FedNoRo).

    Args:
        weight: of distillation at the end of the ramp; 0: noisy clients train as the others.
        ramp: rounds from the verdict until distillation has its whole weight.
        temperature: logits of the global model are divided by it.
        adjust: whether the client's prior is added to logits in training.
        pool: how the logit map becomes one logit per label (``fedmlic.model.Classifier``).

    The training metric ``taught-clients`` counts clients that learned from the global model.
    """

    def report(local: Local, labels: Tensor) -> None:
        logits = of_all_images(local, lambda network, images: precise(network(images)))
        local.round_sums.update({name: each.cpu() for name, each in loss_report(logits, labels).items()})

    def inputs(local: Local) -> Inputs:
        noisy = is_among(local.shared, NOISY, local.client)
        known = _labels(local.shard).to(local.device)
        shift = prior_logits(known) if adjust else torch.zeros(known.shape[1], device=local.device)
        since = int(local.shared[SINCE]) if noisy is not None else local.round
        share = torch.tensor(ramped(weight, local.round - since, ramp) if noisy else 0.0, device=local.device)
        reported: list[bool] = []

        def of(images: Tensor, labels: Tensor, _numbers: Tensor) -> tuple[Tensor, ...]:
            if noisy is None and not reported and local.on_all is not None:
                reported.append(True)
                report(local, known)
            if not noisy:
                return torch.zeros(labels.shape, device=images.device), shift, share
            with torch.no_grad():
                return precise(local.incoming()(images)) / temperature, shift, share

        return Inputs(of, lambda: {"taught-clients": float(bool(noisy))})

    def loss(logits: Tensor, labels: Tensor, *given: Tensor) -> Tensor:
        return known_mean(costs(logits, labels, *given), labels)

    made = classifier(loss, pool=pool, inputs=inputs, one_by_one="the server's verdict is each client's own")
    return made._replace(round_sums=round_sums, refuses=_without_its_rule)


def round_sums(network: nn.Module, num_labels: int) -> dict[str, Tensor]:
    """Zeros of the sums of a round."""
    del network
    shape = (2, num_labels)
    return {LOSSES: torch.zeros(shape, dtype=torch.float64), ENTRIES: torch.zeros(shape, dtype=torch.int64)}


def _labels(shard: Shard | None) -> Tensor:
    if shard is None:
        msg = "Expected a turn with its shard, got none. Train by training.fit."
        raise RuntimeError(msg)
    return torch.from_numpy(np.ascontiguousarray(shard.labels))


def _without_its_rule(experiment: Experiment) -> str:
    if experiment.strategy.partition("(")[0] == "fednoro":
        return ""
    return f"noisy clients are found by strategy='fednoro()', not {experiment.strategy}; name it"
