"""Local optimisers over lists of tensors: SGD, Adam and AdamW.

Every client starts a fresh one every round, hundreds of times a round. These do the same
arithmetic as ``torch.optim`` (held by tests) in one call over all tensors, without its
per-step bookkeeping, and without its first use in a process, which imports the compiler
for about four seconds in every worker.

Sources: Sutskever et al. 2013 (momentum, in torch's form), Kingma and Ba 2015
(Adam), Loshchilov and Hutter 2019 (decoupled weight decay).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from fedmlic.experiment import Experiment

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8

CYCLE_RISES, CYCLE_BEGINS, CYCLE_ENDS = 0.2, 25.0, 1e4
"""One cycle: the share of rounds that rises; the highest rate by the first, and the first by the last."""

Step = Callable[..., None]
"""``step()`` changes the parameters in place by their present gradients, which it may use up.

Of parameters with one row per client, ``step(n)`` changes the first n rows only: those of the
clients that have not finished."""


def make_optimiser(parameters: Sequence[Tensor], settings: Experiment, round_number: int) -> Step:
    """A fresh optimiser of the experiment's kind at the round's learning rate.

    Args:
        parameters: float32, with their gradients in ``.grad`` before every step; one without
            counts as having a gradient of zero.
        settings: ``optimizer``, ``learning_rate``, ``momentum``, ``weight_decay``, ``schedule``.
        round_number: 1, 2, ...
    """
    rate = learning_rate(settings, round_number)
    if settings.optimizer == "sgd":
        return sgd(parameters, rate, settings.momentum, settings.weight_decay)
    return adam(parameters, rate, settings.weight_decay, decoupled=settings.optimizer == "adamw")


def learning_rate(settings: Experiment, round_number: int) -> float:
    """The local learning rate in round 1, 2, ...

    Constant, half a cosine over the rounds (``cosine``), or half a cosine up for a fifth of the rounds, from
    1/25 of the rate, and another down, to 1/250,000 (``one_cycle``).

    Source: one cycle as torch's ``OneCycleLR(pct_start=0.2)``, of which a round is a step; Smith and Topin 2018,
    "Super-Convergence".
    """
    if settings.schedule == "constant":
        return settings.learning_rate
    if settings.schedule == "cosine":
        return _between(settings.learning_rate, 0.0, (round_number - 1) / settings.num_rounds)
    first, last = settings.learning_rate / CYCLE_BEGINS, settings.learning_rate / CYCLE_BEGINS / CYCLE_ENDS
    step, top = round_number - 1, max(CYCLE_RISES * settings.num_rounds - 1, 0.0)
    if step < top:
        return _between(first, settings.learning_rate, step / top)
    down = max(settings.num_rounds - 1 - top, 1.0)  # 1: a single round, at the full rate
    return _between(settings.learning_rate, last, (step - top) / down)


def _between(begin: float, end: float, progress: float) -> float:
    """Half a cosine from one number to another."""
    return end + (begin - end) * 0.5 * (1 + math.cos(math.pi * progress))


def accumulated(num_steps: int, momentum: float) -> float:
    """a_k: the sum of what each gradient contributes to the change, in units of the learning rate.

    >>> accumulated(5, 0.0), round(accumulated(2, 0.5), 6)
    (5.0, 2.5)
    """
    if momentum == 0:
        return float(num_steps)
    return (num_steps - momentum * (1 - momentum**num_steps) / (1 - momentum)) / (1 - momentum)


def sgd(parameters: Sequence[Tensor], rate: float, momentum: float = 0.0, weight_decay: float = 0.0) -> Step:
    """Stochastic gradient descent; the momentum buffer starts as the first gradient, as in torch."""
    velocity: list[Tensor] = []

    @torch.no_grad()
    def step(num_rows: int | None = None) -> None:
        values, gradients = _rows(parameters, num_rows), _rows(_gradients(parameters), num_rows)
        if weight_decay:
            torch._foreach_add_(gradients, values, alpha=weight_decay)
        if momentum and not velocity:
            velocity.extend(gradient.clone() for gradient in gradients)
        elif momentum:
            moving = _rows(velocity, num_rows)
            torch._foreach_mul_(moving, momentum)
            torch._foreach_add_(moving, gradients)
            gradients = moving
        torch._foreach_add_(values, gradients, alpha=-rate)

    return step


def adam(parameters: Sequence[Tensor], rate: float, weight_decay: float = 0.0, *, decoupled: bool = False) -> Step:
    """Adam with torch's default betas and epsilon; ``decoupled`` weight decay makes it AdamW."""
    first = [torch.zeros_like(parameter) for parameter in parameters]
    second = [torch.zeros_like(parameter) for parameter in parameters]
    num_steps = 0

    @torch.no_grad()
    def step(num_rows: int | None = None) -> None:
        nonlocal num_steps
        num_steps += 1
        values, gradients = _rows(parameters, num_rows), _rows(_gradients(parameters), num_rows)
        if weight_decay and decoupled:
            torch._foreach_mul_(values, 1 - rate * weight_decay)
        elif weight_decay:
            torch._foreach_add_(gradients, values, alpha=weight_decay)
        means, squares = _rows(first, num_rows), _rows(second, num_rows)
        torch._foreach_lerp_(means, gradients, 1 - BETA1)
        torch._foreach_mul_(squares, BETA2)
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - BETA2)
        roots = torch._foreach_sqrt(squares)  # noqa: SLF001
        torch._foreach_div_(roots, math.sqrt(1 - BETA2**num_steps))
        torch._foreach_add_(roots, EPSILON)
        torch._foreach_addcdiv_(values, means, roots, value=-rate / (1 - BETA1**num_steps))

    return step


@torch.no_grad()
def clip_norm(parameters: Sequence[Tensor], limit: float) -> None:
    """Scale all gradients in place so that their joint Euclidean norm is at most ``limit``."""
    gradients = _gradients(parameters)
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))  # noqa: SLF001
    torch._foreach_mul_(gradients, (limit / (norm + 1e-6)).clamp(max=1.0))


@torch.no_grad()
def clip_rows(parameters: Sequence[Tensor], limit: float) -> None:
    """Scale all gradients ``[rows, ...]`` in place so that the joint norm of each row is at most ``limit``."""
    rows = [gradient.view(len(gradient), -1) for gradient in _gradients(parameters)]
    norms = torch.stack([torch.linalg.vector_norm(gradient, dim=1) for gradient in rows])
    scale = (limit / (torch.linalg.vector_norm(norms, dim=0) + 1e-6)).clamp(max=1.0)
    for gradient in rows:
        gradient.mul_(scale[:, None])


def _gradients(parameters: Sequence[Tensor]) -> list[Tensor]:
    """The gradients; zeros take the place of those that the loss did not reach."""
    found = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        found.append(parameter.grad)
    return found


def _rows(tensors: Sequence[Tensor], num_rows: int | None) -> list[Tensor]:
    return list(tensors) if num_rows is None else [tensor[:num_rows] for tensor in tensors]
