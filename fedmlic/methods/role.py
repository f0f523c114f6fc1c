"""ROLE: labels are estimated together with the network, a number per image and label.

Every entry of every training image has a free logit theta; q = sigmoid(theta) is its estimated
label. Network (p) and estimates (q) are fitted to each other:

    L = (A(p | q) + A(q | p)) / 2
    A(p | q) = mean over entries of (-log p where present, - q log p - (1 - q) log(1 - p)) + R_k(p)

where what stands after the bar sends no gradient and R_k is EPR's penalty on the number of labels.
Thetas start at probability 0.995 for PRESENT, 0.005 for ABSENT and uniform logits between those of
0.4 and 0.6 elsewhere; their learning rate is ten times the network's.

A client keeps its thetas from turn to turn (``fedmlic.image_state``); they never leave it.

Deviations: annotated ABSENT entries cost -log(1 - p) as PRESENT ones cost -log p (the source has
none). The thetas' optimiser is of the experiment's kind, fresh in every turn as the network's is,
without weight decay and limit on the gradient. Exact logarithms, where the released code adds 1e-5.
The source's variant LinearInit is ``probe_then_tune`` around this method, which keeps thetas when the backbone
begins to train.

Source: Cole et al. 2021, "Multi-Label Learning from Single Positive Labels" (CVPR).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedmlic.guesses import absent_cost, expected_positives, precise, present_cost
from fedmlic.image_state import image_state
from fedmlic.labels import ABSENT, PRESENT
from fedmlic.losses import binary_cross_entropy
from fedmlic.method import Inputs, Local, Method
from fedmlic.optimiser import make_optimiser
from fedmlic.training import classifier

if TYPE_CHECKING:
    from fedmlic.shard import Shard

SURE, UNSURE = math.log(0.995 / 0.005), math.log(0.6 / 0.4)
"""Logits that annotated entries start at, and the largest of others."""


def fitted(logits: Tensor, labels: Tensor, targets: Tensor, expected: float) -> Tensor:
    """A(p | q): how badly ``logits`` fit the annotations, the other side's probabilities and the number of labels.

    Args:
        logits: floating ``[batch, labels]``.
        labels: int8 ``[batch, labels]``.
        targets: probabilities ``[batch, labels]`` of the other side; send no gradient.
        expected: k, labels that an image has on average.
    """
    targets = targets.detach()
    entries = targets * present_cost(logits) + (1 - targets) * absent_cost(logits)
    return (binary_cross_entropy(logits, labels) + entries).mean() + expected_positives(logits, expected)


def role_loss(logits: Tensor, labels: Tensor, estimates: Tensor, expected: float) -> Tensor:
    """Both halves of the loss, of which the second sends no gradient to the network.

    Args:
        logits: floating ``[batch, labels]``, the network's.
        labels: int8 ``[batch, labels]``.
        estimates: ``[batch, labels]``, theta.
        expected: k.
    """
    network = fitted(logits, labels, torch.sigmoid(estimates), expected)
    return (network + fitted(estimates, labels, torch.sigmoid(logits), expected)) / 2


def gradient_of_estimates(logits: Tensor, labels: Tensor, estimates: Tensor, expected: float) -> Tensor:
    """The gradient of ``role_loss`` with respect to theta, ``[batch, labels]``, in closed form.

    Args:
        logits: floating ``[batch, labels]``, the network's.
        labels: int8 ``[batch, labels]``.
        estimates: ``[batch, labels]``, theta.
        expected: k.
    """
    probs, guesses = torch.sigmoid(precise(logits.detach())), torch.sigmoid(estimates)
    known = torch.where(labels >= ABSENT, guesses - (labels == PRESENT).to(guesses.dtype), 0.0)
    batch, num_labels = guesses.shape
    gap = guesses.sum(dim=1).mean() - expected
    penalty = 2 * gap / num_labels**2 * guesses * (1 - guesses) / batch
    return ((known + guesses - probs) / guesses.numel() + penalty) / 2


def start_of(shard: Shard, rng: torch.Generator) -> Tensor:
    """The first theta of a client, float32 ``[images, labels]``."""
    labels = torch.from_numpy(np.ascontiguousarray(shard.labels))
    drawn = UNSURE * (2 * torch.rand(labels.shape, generator=rng) - 1)
    known = torch.where(labels == PRESENT, SURE, -SURE)
    return torch.where(labels >= ABSENT, known, drawn)


def role(
    *,
    expected: Annotated[float, Field(gt=0)] = 2.9,
    rate: Annotated[float, Field(gt=0)] = 10.0,
    pool: Literal["mean", "max", "logsumexp"] = "mean",
) -> Method:
    """Labels of the client's images are estimated along with the network (ROLE).

    Args:
        expected: k, labels that an image has on average (see epr).
        rate: learning rate of the estimates, in learning rates of the network.
        pool: how the logit map becomes one logit per label (``fedmlic.model.Classifier``).
    """

    def inputs(local: Local) -> Inputs:
        theta = image_state(local, "role", lambda shard: start_of(shard, local.torch_rng("role")))
        theta.grad = torch.zeros_like(theta)
        changes = {"learning_rate": rate * local.experiment.learning_rate, "weight_decay": 0.0}
        step = make_optimiser([theta], local.experiment.model_copy(update=changes), local.round)

        def rows(_images: Tensor, _labels: Tensor, numbers: Tensor) -> tuple[Tensor]:
            return (theta[numbers.to(theta.device)],)

        def seen(numbers: Tensor, gradient: Tensor) -> None:
            theta.grad = torch.zeros_like(theta).index_copy_(0, numbers.to(theta.device), gradient.to(theta.dtype))
            step()

        return Inputs(rows, dict, seen)

    def loss(logits: Tensor, labels: Tensor, estimates: Tensor) -> tuple[Tensor, Tensor]:
        own = gradient_of_estimates(logits, labels, estimates, expected)
        return role_loss(logits, labels, estimates, expected), own

    return classifier(loss, pool=pool, inputs=inputs)._replace(remembers=True, guesses="its own estimates")
