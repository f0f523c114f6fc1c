"""fednova: every client's change is divided by how far its steps could take it.

Source: Wang et al., "Tackling the Objective Inconsistency Problem in Heterogeneous Federated
Optimization" (NeurIPS 2020), equation 5 and table 1: a_k = tau_k for plain SGD,
[tau_k - rho (1 - rho^tau_k) / (1 - rho)] / (1 - rho) for SGD with momentum rho.

Departures: what is sent is the start plus s / a_k times the change, where s is the effective
number of steps of the round before (1 in the first), and the server multiplies by tau_eff / s.
That is the paper's rule; it keeps small numbers from being rounded away beside large ones. The
change is scaled after all other mods, which so see it in the client's own units in every round.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from fedmlic.mod import Bound, Hooks, Mod, Said
from fedmlic.optimiser import accumulated
from fedmlic.update import SharedWeight, Weighting, weights_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from fedmlic.arrays import Layout, Resident
    from fedmlic.experiment import Experiment
    from fedmlic.method import Local, Trained
    from fedmlic.shard import Shard

SCALE, STEPS = "fednova/scale", "fednova/steps"
"""Names of s, float64 ``[1]``, and of the sum of weight times a_k, int64 ``[2]``.

The first number counts ``HIGH`` units of ``FRACTION`` and the second what is left: one integer of a client may be 2^40
at most, which 20,000 images in small batches with momentum exceed. Two hold 2^60."""

FRACTION, HIGH = 2.0**-10, 1 << 30
ROUNDED = 1e-12
"""More than the share by which sums of products of float64 numbers differ with their order."""


def fednova(*, weights: SharedWeight = "images") -> Mod:
    """Normalised averaging; named by ``strategy = "fednova()"``.

    Args:
        weights: how much a client counts, as the strategy's.
    """

    def begin(resident: Resident, shard: Shard, local: Local) -> Hooks:
        del resident
        weight, _ = weights_of(Weighting(shared=weights), shard.num_images, torch.from_numpy(shard.annotations))
        scale = float(local.shared[SCALE])
        momentum = momentum_of(local.experiment)

        def extras(change: Tensor, trained: Trained) -> Mapping[str, Tensor]:
            del change
            steps = accumulated(trained.num_steps, momentum)
            return {STEPS: torch.tensor(divmod(round(weight * steps / FRACTION), HIGH), dtype=torch.int64)}

        def per_step(trained: Trained) -> float:
            steps = accumulated(trained.num_steps, momentum)
            return scale / steps if steps else 1.0

        return Hooks(extras=extras, scale=per_step)

    def bounds(said: Said) -> Mapping[str, tuple[Bound, Bound]]:
        """Weight times the most steps: a larger number would make the whole model's step longer."""
        count = len(said.sizes)
        weight = {"images": sum(said.sizes), "annotations": int(said.annotations.sum()), "uniform": count}[weights]
        steps = accumulated(max(said.most_steps), momentum_of(said.experiment))
        most = math.ceil(weight * steps / FRACTION * (1 + ROUNDED)) + count  # every client rounds
        high = int(said.sums[STEPS][0])
        low = max(-1, min(most - high * HIGH, count * (HIGH - 1)))  # what the first number leaves to the second
        return {STEPS: (0, torch.tensor([most // HIGH, low]))}

    return Mod(begin, sums=sums, bounds=bounds, counts_steps=True, refuses=refuses, rule="fednova")


def sums(layout: Layout) -> Mapping[str, Tensor]:
    """Zeros of what is added up."""
    del layout
    return {STEPS: torch.zeros(2, dtype=torch.int64)}


def momentum_of(experiment: Experiment) -> float:
    """Of the local optimiser."""
    return experiment.momentum if experiment.optimizer == "sgd" else 0.0


def refuses(experiment: Experiment) -> str:
    """The paper gives a_k for SGD with and without momentum."""
    if experiment.optimizer == "sgd":
        return ""
    return (
        f"fednova knows the steps of sgd, not of {experiment.optimizer}. Set optimizer=sgd and a learning-rate for it"
    )
