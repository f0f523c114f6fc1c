"""What is added to a client's turn, whatever its method.

A mod may add a term to the loss, change the gradient before every step, change what is sent,
add further sums to it, keep tensors on the client, and keep tensors from being exchanged.
Its kinds are in ``mods/``. An experiment names mods, and a strategy brings along those that its
rule needs, so any method runs under any rule without a file per pair. No mod acts twice in a run: one
that the strategy brings is not named again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor, nn

if TYPE_CHECKING:
    from fedmlic.arrays import Layout, Resident
    from fedmlic.experiment import Experiment
    from fedmlic.method import Local, Method, Trained
    from fedmlic.shard import Shard


class Step(NamedTuple):
    """One step of local training, as a term of the loss sees it.

    Attributes:
        network: in training mode.
        images: float32 ``[batch, channels, height, width]``, as the method gave them to its backbone: a
            changed view where it changes them, the first where it looks at several things.
        labels: int8 ``[batch, labels]``, observed.
        features: floating ``[batch, features]``: the backbone's feature map of these very images,
            averaged over places, as the method's own forward pass made it, with gradient; None
            where the network has no ``backbone``.
    """

    network: nn.Module
    images: Tensor
    labels: Tensor
    features: Tensor | None


class Payload(NamedTuple):
    """What a client sends of its model, and what it takes to write that down.

    Attributes:
        change: float32 ``[layout.size]``, trained tensors minus those that the turn started
            from, for the tensors that are exchanged.
        num_values: numbers that are written down with ``value_bits`` each.
        value_bits: bits of each.
        position_bits: bits of each number's place, where not all are sent.
        extra_bytes: of scales and the like.
        num_whole: further numbers, which take 4 bytes each whatever becomes of the others (``with_whole_statistics``).
    """

    change: Tensor
    num_values: int
    value_bits: int = 32
    position_bits: int = 0
    extra_bytes: int = 0
    num_whole: int = 0

    @property
    def num_bytes(self) -> int:
        """Bytes on the way to the server, without headers."""
        compressed = math.ceil(self.num_values * (self.value_bits + self.position_bits) / 8)
        return compressed + 4 * self.num_whole + self.extra_bytes


def with_whole_statistics(payload: Payload, layout: Layout) -> Payload:
    """The payload with statistics of norms counted as numbers that are sent whole, each once.

    Args:
        payload: of a mod that compresses all other numbers; an earlier one may have counted statistics so already.
        layout: of the exchanged tensors.
    """
    if payload.num_whole:
        return payload
    whole = sum(layout.num_values_of(name) for name in layout.names[: 2 * len(layout.moments)])
    return payload._replace(num_values=payload.num_values - whole, num_whole=whole)


class Stage(NamedTuple):
    """A part of a turn in which only some tensors train.

    Attributes:
        epochs: passes over the client's images.
        tensors: names of those that train.
    """

    epochs: int
    tensors: frozenset[str]


Bound = float | Tensor
"""A number, or numbers that broadcast to a sum's shape."""


class Said(NamedTuple):
    """What an update says, of one client or of several together, against which its sums beside the model are held.

    Attributes:
        experiment: the whole configuration.
        layout: of the exchanged tensors.
        sizes: training images of each client, as announced.
        annotations: int64 ``[labels]``, known entries of all of them together.
        most_steps: the most optimiser steps that each client can have taken.
        sums: the mod's own sums, by name, of the shapes and kinds that it declares; float64 or int64, on the CPU.
    """

    experiment: Experiment
    layout: Layout
    sizes: tuple[int, ...]
    annotations: Tensor
    most_steps: tuple[int, ...]
    sums: Mapping[str, Tensor]


class Hooks(NamedTuple):
    """What one mod does in one client's turn.

    Attributes:
        term: a scalar that is added to the loss of every step.
        gradient: called after the backward pass and before the step (and before the limit on the
            gradient's norm); it changes the gradients of ``resident.parameters`` in place.
        stages: parts of the turn, one after another, in place of the experiment's epochs.
        extras: called once with the client's change, float32 ``[layout.size]`` of the exchanged
            tensors, before ``send`` changes it; named tensors (floating or int64) to be summed
            over clients, all that ``Mod.sums`` declares and no others. It is also the place to fill
            ``local.memory`` with what is the client's own.
        send: turns what is to be sent into something else; a mod that changes nothing must
            return the very tensor that it was given. Called in the order of the mods.
        scale: what the change is multiplied by when every ``send`` is through (statistics of norms are not). A rule
            whose factor differs between rounds uses it in place of ``send``, so that what other mods limit, or
            remember for a later round, is in the client's own units.
        sent: called once at the end with the change that is sent, float32 ``[layout.size]``, when every ``send`` and
            ``scale`` is through: the place to fill ``local.memory`` with what must agree with the server's sums.
        after_step: called after every step of the optimiser; it changes ``resident.parameters`` in
            place.
    """

    term: Callable[[Step], Tensor] | None = None
    gradient: Callable[[], None] | None = None
    stages: Sequence[Stage] | None = None
    extras: Callable[[Tensor, Trained], Mapping[str, Tensor]] | None = None
    send: Callable[[Payload, Trained], Payload] | None = None
    after_step: Callable[[], None] | None = None
    scale: Callable[[Trained], float] | None = None
    sent: Callable[[Tensor], None] | None = None


NO_HOOKS = Hooks()


def nothing(resident: Resident, shard: Shard, local: Local) -> Hooks:
    """A turn to which nothing is added."""
    del resident, shard, local
    return NO_HOOKS


class Mod(NamedTuple):
    """What is added to a client's turn.

    Attributes:
        begin: called when the client's tensors are loaded and before it trains; what the hooks
            share during the turn lies in its variables, what the client keeps in ``local.memory``.
        private: names of tensors of the network that are not exchanged; every client keeps its own. An experiment
            must name such a mod: a strategy cannot bring it, since hosts lay out the network by the experiment alone.
        statistics: as a method's.
        sums: what its hooks' ``extras`` add beside the model: ``(layout of the exchanged tensors) -> zeros`` by
            name, of the shapes and kinds (int64 or floating) of every client's tensors. A turn adds all of them,
            zeros where it has nothing to add. What is not declared is refused, on the device and by the server.
        bounds: least and largest numbers of its sums, by name, given what an update says; for the sum of all its
            clients. Asked when names, shapes and kinds are right. A sum without bounds here has those of every sum:
            2^15 or, of integers, 2^40 a client. Whatever a rule divides by, multiplies by or counts with needs
            bounds of its own: it is what one client can move the model by.
        changes_steps: whether it has a ``term``, a ``gradient``, an ``after_step`` or ``stages``; then clients cannot
            be trained at once (``vectorize``), and the method must train by ``training.fit``.
        has_stages: whether its hooks have ``stages``.
        counts_steps: whether it takes ``Trained.num_steps`` for the steps that changed the exchanged tensors; then no
            mod may have stages, in which some of these tensors stand still.
        remembers: whether it uses ``local.memory``.
        holds_back: whether it keeps a part of the change on the client and adds it to a later one.
        needs_features: whether its term looks at ``Step.features``; a network without a ``backbone`` is then refused.
        refuses: why it does not work with an experiment; empty where it does.
        rule: the strategy without which it cannot work or does nothing, which brings it; empty where it is complete
            alone. An experiment that names such a mod itself is refused; another strategy may bring it.
    """

    begin: Callable[[Resident, Shard, Local], Hooks] = nothing
    private: Callable[[nn.Module, Method], Sequence[str]] | None = None
    statistics: Callable[[Shard], Mapping[str, Tensor]] | None = None
    sums: Callable[[Layout], Mapping[str, Tensor]] | None = None
    bounds: Callable[[Said], Mapping[str, tuple[Bound, Bound]]] | None = None
    changes_steps: bool = False
    has_stages: bool = False
    counts_steps: bool = False
    remembers: bool = False
    holds_back: bool = False
    needs_features: bool = False
    refuses: Callable[[Experiment], str] | None = None
    rule: str = ""
