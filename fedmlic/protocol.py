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

    from fedmlic.arrays import Layout

Kind = Literal["count", "train", "evaluate"]
"""What clients are asked for: named sums before the first round, training, scores on held-out images."""


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
        unannotated: labels that no client of the federation annotates, where the host knows: in a
            simulation. A device knows its own annotations only, which it does not announce: None.
        image_shape: height, width and channels of its images. A device must say it: zeros are refused as any other
            shape than the run's.
    """

    host: str
    clients: NDArray[np.int64]
    sizes: NDArray[np.int64]
    label_names: tuple[str, ...]
    versions: Mapping[str, str] = field(default_factory=dict)
    unannotated: tuple[str, ...] | None = None
    image_shape: tuple[int, int, int] = (0, 0, 0)


STATISTICS = "statistics/"
"""Begins the names of what was counted before the first round, among ``Request.shared``."""

ROUND_SUMS = "round-sums/"
"""Begins the names of what a method's clients added up in a round, among updates' extras and ``Request.shared``."""

SOLUTION_SUMS = "solution-sums/"
"""Begins the names of what a stretch's clients add up for the server to solve with, among updates' extras."""

HIGH = "#high"
"""Ends the name of the multiples of ``HIGH_UNIT`` in a floating sum for a solution; beside it is the rest."""

HIGH_UNIT, LOW_UNIT = 2.0**-6, 2.0**-21
"""Units of that part and of the rest: a client may add 2^34, and is rounded to 2^-57 times the number of clients."""

CLIENTS_BEHIND, IMAGES_BEHIND = "#clients", "#images"
"""End the names of how many clients and images stand behind every counted number."""

NO_UNITS = Units(1.0, 1.0)
BY_IMAGES = Weighting()


@dataclass(frozen=True)
class Request:
    """One round's work.

    Attributes:
        kind: ``count`` named sums over the clients' labels, ``train``, or ``evaluate`` on the
            clients' held-out images.
        round: 1, 2, ...; 0 for a count.
        flat: float32 ``[layout.size]``, the global model.
        units: of this round's weights.
        weighting: how much a client counts.
        each: whether every client's update is wanted by itself instead of their sum.
        tensors: names of the tensors that are exchanged in this round; None for all.
        shared: further tensors for all clients, by name.
        mods: what the server's rule adds to every turn, before the experiment's own mods.
        last: for each client that has had a turn that counted, the round of the last such.
        run: a name of the run that stays when it is resumed.
        needed: rounds that a resumed run may start from, for which clients keep what they kept.
        token: of this one message over a network; the reply repeats it.
        solved: zeros of the sums that the server solves with, by name; it is not sent.
    """

    kind: Kind
    round: int
    flat: Tensor
    units: Units = NO_UNITS
    weighting: Weighting = BY_IMAGES
    each: bool = False
    tensors: tuple[str, ...] | None = None
    shared: Mapping[str, Tensor] = field(default_factory=dict)
    mods: tuple[str, ...] = ()
    last: Mapping[int, int] = field(default_factory=dict)
    run: str = ""
    needed: tuple[int, ...] = ()
    token: str = ""
    solved: Mapping[str, Tensor] = field(default_factory=dict)

    def layout(self, everything: Layout) -> Layout:
        """Of the tensors that clients send.

        Args:
            everything: the layout of all exchanged tensors.
        """
        if self.kind == "count":
            return everything.only(())
        return everything if self.tensors is None else everything.only(self.tensors)


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
        bytes_down: of the model and of what came beside it, as if the client were a device.
        bytes_up: of what it sends of its training, likewise, without headers.
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
    bytes_down: int = 0
    bytes_up: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True)
class Reply:
    """A part of the answer to a request; a round's answer may come in many.

    Attributes:
        turns: the turns that ended since the last reply.
        updates: sums (or single updates) that are complete.
        evaluation: mergeable int64 arrays of the held-out scores, by name.
        token: that of the request which it answers.
    """

    turns: tuple[Turn, ...] = ()
    updates: tuple[Update, ...] = ()
    evaluation: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    token: str = ""
