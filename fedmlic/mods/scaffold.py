"""scaffold: a correction of every gradient by the difference of two control variates.

Source: Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning"
(ICML 2020), algorithm 1. With c the server's and c_i the client's control variate, every local
step uses g - c_i + c; after K steps of rate eta the client's becomes (line 12)

* option I: the gradient of its whole loss at the round's global model, or
* option II: c_i - c + (x - y_i) / (K eta).

The paper has no momentum m. With it a client moves by about eta / (1 - m) times its gradients, so
option II divides by K eta and makes control variates 1 / (1 - m) times as long as gradients. Two
ways of correction are offered:

* ``gradient``: c - c_i is added to every gradient, as in the paper. Momentum lengthens it as it
  lengthens gradients, so option II divides by eta times the sum of what K gradients add up to with
  momentum (``optimiser.accumulated``), which makes control variates gradients again;
* ``step``: eta (c - c_i) is taken off the parameters after every step of the optimiser, beside
  the momentum, as the authors of NIID-Bench and Flower's baseline of that name do.

Without momentum the two are one. Gradients are limited in norm (``clip-norm``) after the
correction ``gradient`` and before ``step``.
Option I evaluates the network in evaluation mode. Statistics of norms and private tensors have
no control variate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from fedmlic.errors import InputError
from fedmlic.mod import Hooks, Mod
from fedmlic.optimiser import accumulated, learning_rate
from fedmlic.training import full_gradient

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from fedmlic.arrays import Layout, Resident
    from fedmlic.experiment import Experiment
    from fedmlic.method import Local, Trained
    from fedmlic.shard import Shard

CONTROL, CHANGE = "scaffold/control", "scaffold/change"
"""Names of a control variate, which is a vector like the exchanged model, and of its change."""


def scaffold(*, option: Literal[1, 2] = 2, correct: Literal["gradient", "step"] = "gradient") -> Mod:
    """Control variates against client drift; named by ``strategy = "scaffold()"``, which sends the server's.

    Args:
        option: how a client's control variate is made: 1 by a pass over its images, 2 from
            its steps.
        correct: what is corrected, every gradient or the parameters after every step.

    Raises:
        InputError: option 1 with ``step``; its control variates are gradients.
    """
    if option == 1 and correct == "step":
        msg = "Expected correct of scaffold to be 'gradient' with option=1, got 'step'. Use option=2 with it."
        raise InputError(msg)

    def begin(resident: Resident, shard: Shard, local: Local) -> Hooks:
        server = local.shared[CONTROL]
        own = local.memory.get(CONTROL)
        own = torch.zeros_like(server) if own is None else own.to(server.device)
        corrections = resident.per_parameter(server - own, local.layout)
        at_start = whole_gradient(resident, shard, local, server) if option == 1 else own
        rate = learning_rate(local.experiment, local.round)

        def gradient() -> None:
            add_to_gradients(resident, corrections)

        def after_step() -> None:
            add_to_parameters(resident, corrections, -rate)

        def extras(change: Tensor, trained: Trained) -> Mapping[str, Tensor]:
            if trained.num_steps == 0:
                new = own
            elif option == 1:
                new = at_start
            else:
                momentum = local.experiment.momentum if correct == "gradient" else 0.0
                new = own - server - change / (accumulated(trained.num_steps, momentum) * rate)
                new[: statistics_end(local)] = 0
            local.memory[CONTROL] = new
            return {CHANGE: new - own}

        if correct == "step":
            return Hooks(after_step=after_step, extras=extras)
        return Hooks(gradient=gradient, extras=extras)

    return Mod(
        begin, sums=sums, changes_steps=True, counts_steps=True, remembers=True, refuses=refuses, rule="scaffold"
    )


def sums(layout: Layout) -> Mapping[str, Tensor]:
    """Zeros of what is added up. A gradient has no bounds of its own, so every number has those of every sum."""
    return {CHANGE: torch.zeros(layout.size)}


def whole_gradient(resident: Resident, shard: Shard, local: Local, like: Tensor) -> Tensor:
    """The gradient of the client's whole loss as it starts, a vector like the control variate ``like``."""
    vector = torch.zeros_like(like)
    places = resident.per_parameter(vector, local.layout)
    for place, whole in zip(places, full_gradient(resident, shard, local), strict=True):
        if place is not None:
            place.copy_(whole)
    return vector


def refuses(experiment: Experiment) -> str:
    """Option II and the correction itself are those of stochastic gradient descent."""
    if experiment.optimizer == "sgd":
        return ""
    return f"scaffold corrects sgd, not {experiment.optimizer}. Set optimizer=sgd and a learning-rate for it"


def statistics_end(local: Local) -> int:
    """How many of the exchanged numbers are statistics of norms, which come first."""
    return 0 if local.layout is None else local.layout.statistics_end


def add_to_gradients(resident: Resident, corrections: list[Tensor | None]) -> None:
    """Add a tensor to the gradient of every parameter that has one."""
    with torch.no_grad():
        for parameter, correction in zip(resident.parameters, corrections, strict=True):
            if correction is None:
                continue
            if parameter.grad is None:
                parameter.grad = correction.clone()
            else:
                parameter.grad.add_(correction)


def add_to_parameters(resident: Resident, corrections: list[Tensor | None], factor: float) -> None:
    """Add ``factor`` times a tensor to every parameter that has one."""
    with torch.no_grad():
        for parameter, correction in zip(resident.parameters, corrections, strict=True):
            if correction is not None:
                parameter.add_(correction, alpha=factor)
