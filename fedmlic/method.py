"""What one client does: build the network, train it on its shard, predict.

A method is four functions. Its kinds are in ``methods/``; each is a factory
whose keyword-only parameters are its hyper-parameters. What all methods share
(epochs, batch size, optimiser, backbone) is the experiment's, so that methods
are compared on equal terms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fedmlic.seeds import stream, torch_seed

if TYPE_CHECKING:
    from fedmlic.arrays import Resident
    from fedmlic.experiment import Experiment
    from fedmlic.model import Model
    from fedmlic.shard import Shard


@dataclass(frozen=True)
class Task:
    """What is to be learned, and from what kind of image.

    Attributes:
        label_names: the label space, in column order.
        image_shape: height, width, channels of the stored images.
        model: the backbone's description.
        seed: the experiment's seed, for initial weights and random label vectors.
    """

    label_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    model: Model
    seed: int

    @property
    def num_labels(self) -> int:
        """Labels to predict."""
        return len(self.label_names)


@dataclass(frozen=True)
class Local:
    """One client's turn in one round.

    Attributes:
        experiment: the whole configuration (epochs, batch size, optimiser, ...).
        round: 1, 2, ...
        client: whose turn it is.
        device: where the network is.
        incoming: the round's incoming global model, frozen and in evaluation mode; built
            the first time a method asks for it.
    """

    experiment: Experiment
    round: int
    client: int
    device: torch.device
    incoming: Callable[[], nn.Module]

    def rng(self, purpose: str) -> np.random.Generator:
        """A NumPy stream of this client in this round."""
        return stream(self.experiment.seed, f"train/{purpose}", self.client, self.round)

    def torch_rng(self, purpose: str) -> torch.Generator:
        """A torch stream of this client in this round, on the CPU."""
        seed = torch_seed(self.experiment.seed, f"train/{purpose}", self.client, self.round)
        return torch.Generator().manual_seed(seed)


class Trained(NamedTuple):
    """What local training tells besides the network it changed.

    Attributes:
        loss: mean training loss over the steps (0 without steps).
        num_steps: optimiser steps.
        metrics: further sums to be added up over clients.
    """

    loss: float
    num_steps: int
    metrics: dict[str, float]


def none(network: nn.Module) -> Sequence[str]:
    """No names at all."""
    del network
    return ()


class Method(NamedTuple):
    """What one client does.

    Attributes:
        build: the network with its initial weights; called with torch's global generator
            set to the experiment's stream.
        train: local training of ``resident.network`` in place.
        predict: probabilities float32 ``[batch, labels]`` of float images ``[batch, channels,
            height, width]``; the network is in evaluation mode.
        label_rows: names of trainable tensors with one row per label (first axis).
        private: names of trainable tensors that never leave the client.

    Everything trainable is exchanged unless it is private. Frozen tensors are never sent:
    every host builds them itself from the experiment.
    """

    build: Callable[[Task], nn.Module]
    train: Callable[[Resident, Shard, Local], Trained]
    predict: Callable[[nn.Module, Tensor], Tensor]
    label_rows: Callable[[nn.Module], Sequence[str]] = none
    private: Callable[[nn.Module], Sequence[str]] = none
