"""What the server asks of hosts and what they answer.

A host is a process that can play clients: on a device the one client it is, in
a simulation any of them. These plain values travel inside a process, through
Ray, or (packed by ``fedmlic.wire``) through Flower.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from fedmlic.update import Units, Update, Weighting

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

Kind = Literal["train", "evaluate"]


@dataclass(frozen=True)
class HostInfo:
    """What a host says of itself, once.

    Attributes:
        host: its name, stable for the run.
        clients: int64 ``[clients]``, ids it can play, ascending.
        sizes: int64 ``[clients]``, their training images.
        label_names: its label space.
        versions: of what it computes with, by name (``flwr``, ``python``, ...); empty where
            the server's are used.
    """

    host: str
    clients: NDArray[np.int64]
    sizes: NDArray[np.int64]
    label_names: tuple[str, ...]
    versions: Mapping[str, str] = field(default_factory=dict)


NO_UNITS = Units(1.0, 1.0)
BY_IMAGES = Weighting()


@dataclass(frozen=True)
class Request:
    """One round's work.

    Attributes:
        kind: ``train``, or ``evaluate`` on the clients' held-out images.
        round: 1, 2, ...
        flat: float32 ``[layout.size]``, the global model.
        units: of this round's weights.
        weighting: how much a client counts.
        each: whether every client's update is wanted by itself instead of their sum.
    """

    kind: Kind
    round: int
    flat: Tensor
    units: Units = NO_UNITS
    weighting: Weighting = BY_IMAGES
    each: bool = False


@dataclass(frozen=True)
class Turn:
    """How one client's turn went.

    Attributes:
        client: its id.
        host: who played it.
        started: when the turn began, seconds since 1970 by the host's clock.
        seconds: wall time of the turn.
        num_images: images it trained on or was evaluated on.
        num_annotations: its known entries among them.
        loss: mean training loss.
        num_steps: optimiser steps.
        metrics: its own evaluation, such as ``mAP``.
        error: empty, or why its contribution is missing (with traceback).
    """

    client: int
    host: str
    started: float = 0.0
    seconds: float = 0.0
    num_images: int = 0
    num_annotations: int = 0
    loss: float = 0.0
    num_steps: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True)
class Reply:
    """A part of the answer to a request; a round's answer may come in many.

    Attributes:
        turns: the turns that ended since the last reply.
        updates: sums (or single updates) that are complete.
        evaluation: mergeable int64 arrays of the held-out scores, by name.
    """

    turns: tuple[Turn, ...] = ()
    updates: tuple[Update, ...] = ()
    evaluation: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
