"""Local optimisers over one flat parameter: SGD, Adam and AdamW.

Every client starts a fresh one every round, hundreds of times a round, over a
single vector. These do the same arithmetic as ``torch.optim`` (held by tests) without
its per-step bookkeeping, and without its first use in a process, which imports
the compiler for about four seconds in every worker.

Sources: Sutskever et al. 2013 (momentum, in torch's form), Kingma and Ba 2015
(Adam), Loshchilov and Hutter 2019 (decoupled weight decay).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from fedmlic.experiment import Experiment

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8

Step = Callable[[], None]
"""Changes the parameter in place by its present gradient."""


def make_optimiser(parameter: Tensor, settings: Experiment, round_number: int) -> Step:
    """A fresh optimiser of the experiment's kind at the round's learning rate.

    Args:
        parameter: float32 ``[values]`` with its gradient in ``.grad`` before every step.
        settings: ``optimizer``, ``learning_rate``, ``momentum``, ``weight_decay``, ``schedule``.
        round_number: 1, 2, ...
    """
    rate = learning_rate(settings, round_number)
    if settings.optimizer == "sgd":
        return sgd(parameter, rate, settings.momentum, settings.weight_decay)
    return adam(parameter, rate, settings.weight_decay, decoupled=settings.optimizer == "adamw")


def learning_rate(settings: Experiment, round_number: int) -> float:
    """The local learning rate in round 1, 2, ...: constant, or half a cosine over the rounds."""
    if settings.schedule == "constant":
        return settings.learning_rate
    progress = (round_number - 1) / settings.num_rounds
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def sgd(parameter: Tensor, rate: float, momentum: float = 0.0, weight_decay: float = 0.0) -> Step:
    """Stochastic gradient descent; the momentum buffer starts as the first gradient, as in torch."""
    velocity: Tensor | None = None

    @torch.no_grad()
    def step() -> None:
        nonlocal velocity
        gradient = _gradient(parameter)
        if weight_decay:
            gradient = gradient.add(parameter, alpha=weight_decay)
        if momentum:
            velocity = gradient.clone() if velocity is None else velocity.mul_(momentum).add_(gradient)
            gradient = velocity
        parameter.add_(gradient, alpha=-rate)

    return step


def adam(parameter: Tensor, rate: float, weight_decay: float = 0.0, *, decoupled: bool = False) -> Step:
    """Adam with torch's default betas and epsilon; ``decoupled`` weight decay makes it AdamW."""
    first, second = torch.zeros_like(parameter), torch.zeros_like(parameter)
    num_steps = 0

    @torch.no_grad()
    def step() -> None:
        nonlocal num_steps
        num_steps += 1
        gradient = _gradient(parameter)
        if weight_decay and decoupled:
            parameter.mul_(1 - rate * weight_decay)
        elif weight_decay:
            gradient = gradient.add(parameter, alpha=weight_decay)
        first.lerp_(gradient, 1 - BETA1)
        second.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
        scale = math.sqrt(1 - BETA2**num_steps)
        denominator = second.sqrt().div_(scale).add_(EPSILON)
        parameter.addcdiv_(first, denominator, value=-rate / (1 - BETA1**num_steps))

    return step


def clip_norm(parameter: Tensor, limit: float) -> None:
    """Scale the gradient in place so that its Euclidean norm is at most ``limit``."""
    gradient = _gradient(parameter)
    norm = torch.linalg.vector_norm(gradient)
    gradient.mul_((limit / (norm + 1e-6)).clamp(max=1.0))


def _gradient(parameter: Tensor) -> Tensor:
    if parameter.grad is None:
        msg = "Expected the parameter to have a gradient; call backward first."
        raise RuntimeError(msg)
    return parameter.grad
