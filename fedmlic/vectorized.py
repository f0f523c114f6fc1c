"""Many clients trained at once: their networks lie in one stack.

Small networks on small batches leave a GPU idle between one tiny kernel and the next. Here
K clients take their steps together: parameters, gradients and optimiser state are
``[clients, ...]``, the loss is mapped over the first axis (``torch.vmap`` over
``torch.func.functional_call``), and one backward pass serves all. Every client still has its
own order of images, augmentation and random choices, from the same streams, so the result is
that of one after another but for rounding.

Clients are sorted by size. The ones that have not finished are then the first rows, and
those whose batches are of one size lie side by side, so nothing is padded and no method has
to know. What cannot be done so: BatchNorm statistics, networks that draw random numbers
(dropout), and methods that train in a way of their own.

Where it pays: ``docs/performance.md``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedmlic.errors import InputError
from fedmlic.method import Inputs, Trained, scalar_and_rest, why_one_by_one
from fedmlic.optimiser import clip_rows, make_optimiser
from fedmlic.pixel_scale import to_float
from fedmlic.training import held_images, precision_of, steps
from fedmlic.views import augment

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedmlic.arrays import Resident
    from fedmlic.method import Local, Method, Objective
    from fedmlic.shard import Shard


class Together:
    """Trains up to ``size`` clients at once.

    Args:
        method: what they do.
        resident: with the method's network.
        name: the method's, for messages.
        size: most clients at once.

    Raises:
        InputError: the method's clients cannot be trained at once.
    """

    def __init__(self, method: Method, resident: Resident, name: str, size: int) -> None:
        self.size = size
        self._objective = objective_of(method, resident, name)
        self._stack = Stack(resident, size)

    def fit(self, flat: Tensor, shards: Sequence[Shard], locals_: Sequence[Local]) -> list[tuple[Trained, Tensor]]:
        """Train several clients at once, each as ``training.fit`` would.

        Args:
            flat: the round's global model, float32 ``[layout.size]``.
            shards: their images and labels.
            locals_: whose turns they are, in the same order.

        Returns:
            For each client its training's losses and steps (the loss may not be a number) and its trained
            tensors, float32 ``[layout.size]``.
        """
        turns = _turns(shards, locals_, self._objective)
        # Sorted by steps, then size: clients that finish early are the last rows, and equal batches lie side by side.
        order = sorted(range(len(turns)), key=lambda place: (-len(turns[place].steps), -shards[place].num_images))
        self._stack.load(flat)
        losses = _train(self._stack, [turns[place] for place in order], self._objective)
        row_of = {place: row for row, place in enumerate(order)}
        return [
            (_told(turn, losses[row_of[place]]), self._stack.flat(row_of[place])) for place, turn in enumerate(turns)
        ]


def objective_of(method: Method, resident: Resident, name: str) -> Objective:
    """What ``method`` minimises, if many clients can be trained by it at once.

    Args:
        method: the method.
        resident: with its network.
        name: the method's, for the message.

    Raises:
        InputError: they cannot.
    """
    reason = why_one_by_one(method)
    if not reason and resident.private_names:
        reason = "tensors that every client keeps to itself"
    if not reason and resident.layout.moments:
        reason = "BatchNorm statistics, which every client changes (use a norm of group or frozen)"
    if method.objective is not None and not reason:
        return method.objective
    msg = f"Expected method {name} to allow vectorize, got {reason}. Use vectorize=1."
    raise InputError(msg)


class Stack:
    """Room for several clients' networks of one kind: every parameter ``[clients, ...]``.

    Args:
        resident: the network; its frozen parts serve all clients.
        num_clients: most clients at once.

    Attributes:
        parameters: float32 ``[clients, ...]`` each, with their gradients, for an optimiser.
    """

    def __init__(self, resident: Resident, num_clients: int) -> None:
        self._resident = resident
        shapes, device = resident.trainable.shapes, resident.device
        self.parameters = [torch.zeros(num_clients, *shape, device=device) for shape in shapes]
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)

    @property
    def network(self) -> nn.Module:
        """The network whose parameters the rows stand for, in training mode."""
        return self._resident.training_network()

    def load(self, flat: Tensor) -> None:
        """Start every client from the exchanged tensors ``flat``."""
        self._resident.load(flat)
        with torch.no_grad():
            for parameter, start in zip(self.parameters, self._resident.parameters, strict=True):
                parameter.copy_(start.expand_as(parameter))

    def flat(self, client: int) -> Tensor:
        """One client's exchanged tensors, float32 ``[layout.size]``."""
        layout = self._resident.layout
        found = torch.zeros(layout.size, device=self._resident.device)
        for (_, view), parameter in zip(layout.views(found), self.parameters, strict=False):
            view.copy_(parameter[client])
        return found

    def tensors(self, clients: slice) -> dict[str, Tensor]:
        """The parameters of some clients by name; their gradients are added to the stack's."""
        found = {}
        for name, parameter in zip(self._resident.trainable.names, self.parameters, strict=True):
            part = parameter[clients].requires_grad_()
            part.grad = None if parameter.grad is None else parameter.grad[clients]
            found[name] = part
        return found

    def zero_grad(self, num_clients: int) -> None:
        """Set the gradients of the first clients to zero."""
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad[:num_clients].zero_()


class _Turn(NamedTuple):
    """One client among those that train at once."""

    shard: Shard
    local: Local
    steps: list[NDArray[np.int64]]
    inputs: Inputs
    augmentation: torch.Generator


def _told(turn: _Turn, loss: float) -> Trained:
    if not turn.steps:
        return Trained(0.0, 0, {})
    return Trained(loss / len(turn.steps), len(turn.steps), turn.inputs.metrics())


def _train(stack: Stack, turns: Sequence[_Turn], objective: Objective) -> list[float]:
    """All steps of all turns; the sum of each turn's losses."""
    settings, device = turns[0].local.experiment, turns[0].local.device
    held = held_images([turn.shard for turn in turns], device)
    labels = torch.from_numpy(np.concatenate([turn.shard.labels for turn in turns]))
    firsts = np.cumsum([0, *(turn.shard.num_images for turn in turns)])
    change = make_optimiser(stack.parameters, settings, turns[0].local.round)
    loss_of = torch.vmap(_loss_of(objective, stack.network))
    losses = torch.zeros(len(turns), dtype=torch.float64, device=device)
    for number in range(len(turns[0].steps)):
        active = [turn for turn in turns if number < len(turn.steps)]
        stack.zero_grad(len(active))
        for part in _runs([len(turn.steps[number]) for turn in active]):
            rows = np.concatenate(
                [first + turn.steps[number] for first, turn in zip(firsts[part], active[part], strict=True)]
            )
            observed = labels.index_select(0, torch.from_numpy(rows))
            numbers = [torch.from_numpy(turn.steps[number]) for turn in active[part]]
            batch = _batch(active[part], to_float(held(rows), device), observed, numbers)
            with precision_of(settings, device):
                each, *rest = loss_of(stack.tensors(part), *batch)
            each.sum().backward()  # type: ignore[no-untyped-call]
            losses[part] += each.detach()
            for place, (turn, chosen) in enumerate(zip(active[part], numbers, strict=True)):
                if turn.inputs.seen is not None:
                    turn.inputs.seen(chosen, *(tensor[place].detach() for tensor in rest))
        if settings.clip_norm > 0:
            clip_rows(stack.parameters, settings.clip_norm)
        change(len(active))
    return losses.tolist()


def _turns(shards: Sequence[Shard], locals_: Sequence[Local], objective: Objective) -> list[_Turn]:
    turns = []
    for shard, local in zip(shards, locals_, strict=True):
        idle = objective.needs_annotations and not shard.annotations.any()
        chosen = [] if idle else list(steps(shard.num_images, local))
        inputs = objective.inputs(replace(local, shard=shard))
        turns.append(_Turn(shard, local, chosen, inputs, local.torch_rng("augmentation")))
    return turns


def _runs(sizes: Sequence[int]) -> Iterator[slice]:
    """Neighbours of equal size."""
    edges = [0, *(np.flatnonzero(np.diff(sizes)) + 1).tolist(), len(sizes)]
    for start, stop in itertools.pairwise(edges):
        yield slice(start, stop)


def _batch(turns: Sequence[_Turn], images: Tensor, labels: Tensor, numbers: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Images ``[clients, batch, channels, height, width]``, labels ``[clients, batch, labels]``, further inputs."""
    own_images, own_labels = (part.view(len(turns), -1, *part.shape[1:]) for part in (images, labels))
    kind = turns[0].local.experiment.augmentation
    if kind != "none":
        views = [augment(part, kind, turn.augmentation) for part, turn in zip(own_images, turns, strict=True)]
        own_images = torch.stack(views)
    further = [turn.inputs.of(*own) for turn, *own in zip(turns, own_images, own_labels, numbers, strict=True)]
    observed = own_labels.to(images.device, non_blocking=True)
    return own_images, observed, *(torch.stack(column) for column in zip(*further, strict=True))


def _loss_of(objective: Objective, network: nn.Module) -> Callable[..., tuple[Tensor, ...]]:
    """The loss of one client, and what it gives beside it, as a function of its parameters."""

    def loss(parameters: dict[str, Tensor], images: Tensor, labels: Tensor, *further: Tensor) -> tuple[Tensor, ...]:
        given = objective.loss(lambda *inputs: functional_call(network, parameters, inputs), images, labels, *further)
        value, rest = scalar_and_rest(given)
        return (value, *rest)

    return loss
