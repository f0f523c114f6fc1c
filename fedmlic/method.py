"""What one client does: build the network, train it on its shard, predict.

A method is four functions. Its kinds are in ``methods/``; each is a factory
whose keyword-only parameters are its hyper-parameters. What all methods share
(epochs, batch size, optimiser, backbone) is the experiment's, so that methods
are compared on equal terms.

A file of ``methods/`` whose defaults need weights, or a certain kind of model, defines ``TRIAL``, the text by which
tests build its method without. One that gives ``weights`` there needs them otherwise (``fedmlic list method``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fedmlic.seeds import stream, torch_seed

if TYPE_CHECKING:
    from fedmlic.arrays import Layout, Resident
    from fedmlic.experiment import Experiment
    from fedmlic.mod import Hooks
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
        start: float32, all exchanged tensors as the turn starts from them; only to be read.
        layout: of the tensors that are exchanged in this round; None outside a host.
        objective: what this stretch of rounds minimises, where training is ``training.fit``.
        shared: what the server sent beside the model, by name; what was counted before the
            first round is ``statistics/NAME``.
        memory: what the client kept of its last turn that counted, by name; what is put here
            is kept for its next one, if this turn counts. It never leaves the client.
        round_sums: what is put here, by name, is added up over the round's clients; everybody gets
            the sums with the next round's model, in ``shared`` as ``round-sums/NAME``. The method
            must declare them (``Method.round_sums``).
        solution_sums: what is put here, by name, is added up over the clients for the server alone, which solves
            for tensors of the model with it. The stretch of rounds must declare them (``Phase.solution``).
        hooks: of the experiment's mods, in order; ``training.fit`` calls them.
        shard: whose images and labels it trains on; ``training.fit`` and ``vectorized`` fill it in
            before they ask for an objective's inputs.
        on_all: of the network as it is at that moment, in evaluation mode, and all of the client's
            training images, as stored: what ``call(network, images [batch, channels, height, width])``
            gives for each of them, ``[images, ...]``, without gradient. ``training.fit`` fills it in;
            None where clients are trained at once.
    """

    experiment: Experiment
    round: int
    client: int
    device: torch.device
    incoming: Callable[[], nn.Module]
    start: Tensor = field(default_factory=lambda: torch.zeros(0))
    layout: Layout | None = None
    objective: Objective | None = None
    shared: Mapping[str, Tensor] = field(default_factory=dict)
    memory: dict[str, Tensor] = field(default_factory=dict)
    round_sums: dict[str, Tensor] = field(default_factory=dict)
    solution_sums: dict[str, Tensor] = field(default_factory=dict)
    hooks: tuple[Hooks, ...] = ()
    shard: Shard | None = None
    on_all: Callable[[Callable[[nn.Module, Tensor], Tensor]], Tensor] | None = None

    def rng(self, purpose: str) -> np.random.Generator:
        """A NumPy stream of this client in this round."""
        return stream(self.experiment.seed, f"train/{purpose}", self.client, self.round)

    def torch_rng(self, purpose: str) -> torch.Generator:
        """A torch stream of this client in this round, on the CPU."""
        seed = torch_seed(self.experiment.seed, f"train/{purpose}", self.client, self.round)
        return torch.Generator().manual_seed(seed)


class Trained(NamedTuple):
    """What local training gives besides the network that it changed.

    Attributes:
        loss: mean training loss over the steps (0 without steps).
        num_steps: optimiser steps.
        metrics: further sums by name, of magnitude 2^25 at most; they are added up over the
            round's clients and recorded as ``method/NAME``. ``loss`` and ``steps`` are taken.
    """

    loss: float
    num_steps: int
    metrics: dict[str, float]


class Inputs(NamedTuple):
    """Extra inputs of a loss, computed batch by batch in one client's turn.

    Attributes:
        of: ``(images on the device, labels on the CPU, numbers on the CPU) -> tensors``, without
            gradient. Labels are on the CPU so that random choices among them need not wait for a
            GPU; numbers, int64 ``[batch]``, tell which of the client's images these are.
        metrics: sums to report when the turn ends.
        seen: called after every step with the numbers of its images and, without gradient, what the
            loss gave beside the scalar.

    What a client should find again in its next turn goes into ``local.memory``, best through
    ``fedmlic.image_state``; the method then says that it ``remembers``.
    """

    of: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]
    metrics: Callable[[], dict[str, float]]
    seen: Callable[..., None] | None = None


def no_inputs(local: Local) -> Inputs:
    """Images and labels are enough."""
    del local
    return Inputs(lambda *_: (), dict)


class Objective(NamedTuple):
    """What local training minimises, in a form in which one client or many at once can be trained.

    Attributes:
        loss: ``(network, images [batch, channels, height, width], labels int8 [batch, labels],
            *inputs) -> scalar``; it decides what UNKNOWN means. ``network`` is to be called and
            nothing else. It may give ``(scalar, *tensors)``: ``Inputs.seen`` gets the tensors.
        inputs: makes a turn's further inputs of the loss.
        needs_annotations: a client without a single annotation takes no step.
        one_by_one: why clients cannot be trained at once (the network draws random numbers);
            empty where they can.
    """

    loss: Callable[..., Tensor | tuple[Tensor, ...]]
    inputs: Callable[[Local], Inputs] = no_inputs
    needs_annotations: bool = False
    one_by_one: str = ""


def scalar_and_rest(given: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """What an objective's loss gave: the scalar, and the tensors beside it (none if it gave the scalar alone)."""
    return (given, ()) if isinstance(given, Tensor) else (given[0], given[1:])


def none(network: nn.Module) -> Sequence[str]:
    """No names at all."""
    del network
    return ()


class Solution(NamedTuple):
    """Tensors of the model that the server computes from exact sums over clients, in place of merging trained ones.

    Sums are float64 or int64 tensors whose first axis is rows (labels, or one). A client adds what it put into
    ``Local.solution_sums``, zeros where it put nothing. A row with too few clients or images behind it reads 0
    (``statistics-min-clients``, ``statistics-min-images``), where a client stands behind a row that is not all 0 at it.
    So a row may read 0 in one sum and not in another; ``solve`` must not take a 0 for "none". Clients do not get the
    sums.

    Attributes:
        sums: ``(network, what the server shares) -> zeros by name`` of the sums' shapes; the same at the server and at
            every client. Raises ``InputError`` where they would be too large.
        solve: ``(network, sums by name, the model's tensors by name) -> tensors by name`` that take the place of the
            model's own. Every tensor must be one that is exchanged in some stretch.
        keeps: whether sums of the stretch's earlier rounds are part of those of later ones, so that a client need
            add its own only once.
        metrics: numbers of the model's tensors, solved ones included, that are recorded with the round as
            ``strategy/NAME``.
    """

    sums: Callable[[nn.Module, Mapping[str, Tensor]], Mapping[str, Tensor]]
    solve: Callable[[nn.Module, Mapping[str, Tensor], Mapping[str, Tensor]], Mapping[str, Tensor]]
    keeps: bool = False
    metrics: Callable[[Mapping[str, Tensor]], Mapping[str, float]] | None = None


class Phase(NamedTuple):
    """A stretch of rounds with training and exchanged tensors of its own.

    Attributes:
        train: local training, in place of the method's.
        num_rounds: how many rounds; 0 for all that are left.
        tensors: names of the tensors that train and are exchanged, private ones included; all
            others stay what they are, bit for bit, and are not sent. None: everything.
        objective: as the method's.
        solution: what the server computes from sums at the end of every round. They tell the server something of
            the clients' labels and images, so the experiment must allow statistics.
    """

    train: Callable[[Resident, Shard, Local], Trained]
    num_rounds: int = 0
    tensors: Callable[[nn.Module], Sequence[str]] | None = None
    objective: Objective | None = None
    solution: Solution | None = None


class Stretch(NamedTuple):
    """A phase in its place among the rounds.

    Attributes:
        number: 0, 1, ...
        first_round: the first of its rounds.
        phase: it.
    """

    number: int
    first_round: int
    phase: Phase


class Method(NamedTuple):
    """What one client does.

    Attributes:
        build: the network with its initial weights; called with torch's global generator
            set to the experiment's stream.
        train: local training of ``resident.network`` in place.
        predict: probabilities float32 ``[batch, labels]`` of float images ``[batch, channels,
            height, width]``; the network is in evaluation mode.
        label_rows: names of trainable tensors with one row per label (first axis).
        private: names of trainable tensors, and of statistics of norms, that never leave the
            client; each client keeps its own from turn to turn.
        objective: what ``train`` minimises, if it is ``training.fit`` with it and nothing else;
            many clients can then be trained at once (``fedmlic.vectorized``).
        phases: stretches of rounds, in order, each with its own ``train`` and ``objective`` in
            place of those above; empty for one stretch. Which phase a round belongs to depends
            on its number alone (``stretch_of``).
        statistics: named sums over all clients that are asked for once, before the first round;
            int64 (counts) or floating tensors of one client's shard. They tell the server
            something of the clients' labels, so the experiment must allow them. Where one of them may follow from
            others, a ``fedmlic.counting.Counted`` says which stand or fall together.
        round_sums: named sums over the clients of every round (``Local.round_sums``): ``(network, number of
            labels) -> zeros`` of their shapes, int64 or floating. What a client does not fill in counts as 0. They tell
            the server something of the clients' labels, so the experiment must allow statistics.
        remembers: whether clients keep something in ``local.memory`` from turn to turn.
        guesses: what training takes entries for that nobody annotated, such as ``"absent"``; empty
            where they take no part. A label that nobody annotates is then trained on guesses alone,
            which whoever runs it is warned of.
        needs_absences: of a method that ``guesses``: whether its guesses come from what it learned of annotated
            entries, so that a label that is annotated as present and never as absent ends up present everywhere.
            Whoever runs it is warned of such labels.
        ask: predicts labels by their names after training: ``(network, task, names) -> predict``, where
            ``predict(images)`` gives float32 ``[batch, names]``. Raises ``InputError`` where this
            network or its label vectors do not allow it. None where no network of the method does.
        needs_pixels: whether it does more with images than give them to its network's ``backbone``,
            such as cut, mix or change them; then it is never given feature maps in their place.
        freezes: whether ``build`` freezes all of the network's ``backbone``, whatever the model's ``trainable`` says;
            feature maps can then be kept of models that would train by themselves.
        uncertainty: how sure it is of images, beside their probabilities: ``(network in evaluation mode,
            images [batch, channels, height, width]) -> numbers by name, floating [batch] each``. ``fedmlic
            predict`` shows them. None where the method says nothing of the kind.
        refuses: why it does not work with an experiment; empty where it does. Not asked of an experiment of 0 rounds,
            in which nothing trains.
        warns: what whoever runs it should hear of a finished round, one sentence, from what its training metrics add up
            to over the round's clients, by name; empty where there is nothing to say. A run shows a sentence when it
            comes first, not in every round. None where the method has nothing to warn of.
        passes: how often a turn takes the steps of the experiment's local epochs; 1 by ``training.fit`` once. The most
            steps that a client can report under a rule that counts them follow from it.

    Everything trainable is exchanged unless it is private. Frozen tensors are never sent:
    every host builds them itself from the experiment.
    """

    build: Callable[[Task], nn.Module]
    train: Callable[[Resident, Shard, Local], Trained]
    predict: Callable[[nn.Module, Tensor], Tensor]
    label_rows: Callable[[nn.Module], Sequence[str]] = none
    private: Callable[[nn.Module], Sequence[str]] = none
    objective: Objective | None = None
    phases: tuple[Phase, ...] = ()
    statistics: Callable[[Shard], Mapping[str, Tensor]] | None = None
    round_sums: Callable[[nn.Module, int], Mapping[str, Tensor]] | None = None
    remembers: bool = False
    guesses: str = ""
    needs_absences: bool = False
    ask: Callable[[nn.Module, Task, Sequence[str]], Callable[[Tensor], Tensor]] | None = None
    needs_pixels: bool = False
    freezes: bool = False
    uncertainty: Callable[[nn.Module, Tensor], Mapping[str, Tensor]] | None = None
    refuses: Callable[[Experiment], str] | None = None
    warns: Callable[[Mapping[str, float]], str] | None = None
    passes: int = 1


def needs_rounds_after(argument: str, rounds: int, what: str, hint: str = "") -> Callable[[Experiment], str]:
    """``Method.refuses`` of a method whose last stage begins after a number of rounds.

    Args:
        argument: the method's argument that has the number.
        rounds: of all stages but the last, 0 or more.
        what: happens in the last stage, as a clause: "its head comes".
        hint: what else can be done, put behind the reason.
    """

    def refuses(experiment: Experiment) -> str:
        if experiment.num_rounds > rounds:
            return ""
        beside = f" ({hint})" if hint else ""
        return f"{what} after {argument}={rounds}, and num-rounds is {experiment.num_rounds}{beside}"

    return refuses


def why_one_by_one(method: Method) -> str:
    """Why clients of a method cannot be trained at once, whatever the network; empty where they can."""
    if method.objective is None:
        return "a method that trains in a way of its own"
    if method.phases:
        return "a method in phases"
    return method.objective.one_by_one


def stretch_of(method: Method, round_number: int) -> Stretch:
    """The stretch that a round belongs to; rounds after the last phase belong to it.

    Args:
        method: with or without phases.
        round_number: 1, 2, ...
    """
    phases = method.phases or (Phase(method.train, objective=method.objective),)
    first = 1
    for number, phase in enumerate(phases[:-1]):
        if phase.num_rounds == 0 or round_number < first + phase.num_rounds:
            return Stretch(number, first, phase)
        first += phase.num_rounds
    return Stretch(len(phases) - 1, first, phases[-1])
