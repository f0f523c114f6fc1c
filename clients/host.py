"""How a host counts for, trains and evaluates the clients that a request names, under any engine.

One network stays in memory. Clients train in it one after another; each starts
from the round's global model and nothing of the one before remains. What they
send is added up at once, so a host answers with one model per round however
many clients it played.
"""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from fedmlic import spec
from fedmlic.errors import InputError, listing
from fedmlic.features import backbone_of, passing
from fedmlic.histograms import ScoreHistograms
from fedmlic.image_state import PREFIX as IMAGES
from fedmlic.labels import known
from fedmlic.learner import check_at_once
from fedmlic.method import Local, Trained, stretch_of
from fedmlic.metrics import client_metrics, unannotated_columns
from fedmlic.mod import Hooks, Payload
from fedmlic.process import restored
from fedmlic.protocol import (
    CLIENTS_BEHIND,
    HIGH,
    HIGH_UNIT,
    IMAGES_BEHIND,
    LOW_UNIT,
    ROUND_SUMS,
    SOLUTION_SUMS,
    HostInfo,
    Reply,
    Request,
    Turn,
)
from fedmlic.shard import OwnImages
from fedmlic.stores import DamagedError
from fedmlic.sums import Declared
from fedmlic.training import checked
from fedmlic.update import Update, turn_metrics, units_for

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from clients.memory import ClientMemory
    from fedmlic.arrays import Layout
    from fedmlic.experiment import Experiment
    from fedmlic.features import FeatureMaps
    from fedmlic.federation import Federation
    from fedmlic.learner import Learner
    from fedmlic.method import Stretch
    from fedmlic.mod import Mod
    from fedmlic.shard import Shard
    from fedmlic.vectorized import Together

    Statistics = Callable[[Shard], Mapping[str, Tensor]]

PRIVATE = "private/"
"""Begins the names under which a client keeps the tensors of the network that are its own."""


class Host:
    """A process that can play the clients of a federation.

    Args:
        name: how records call it.
        experiment: what to do.
        federation: whose clients it can play.
        learner: the method with its network, on the host's device.
        clients: the clients it plays; all of the federation by default.
        vectorize: clients to train at once.
        sums: float64 ``[layout.size]`` to keep a round's sum in, on the CPU.
        memory: where the clients of a run keep tensors, given the run's name; needed only where
            the method, a mod or the server's rule has them keep any.
        on_link: whether answers leave the machine: an update of one client then keeps the change that its mods made,
            to be sent in place of the sum.

    Raises:
        InputError: the method or a mod cannot train several clients at once.
    """

    def __init__(
        self,
        name: str,
        experiment: Experiment,
        federation: Federation,
        learner: Learner,
        clients: Iterable[int] | None = None,
        *,
        vectorize: int = 1,
        sums: Tensor | None = None,
        memory: Callable[[str], ClientMemory] | None = None,
        on_link: bool = False,
    ) -> None:
        self.name = name
        self._on_link = on_link
        self._experiment = experiment
        self._federation = federation
        self._learner = learner
        self._clients = np.array(sorted(federation.clients if clients is None else clients), dtype=np.int64)
        self._together = _together(experiment, learner, vectorize) if vectorize > 1 else None
        self._sums = sums if learner.device.type == "cpu" else None
        self._memory = memory
        self._mods_of: dict[tuple[str, ...], tuple[Mod, ...]] = {}
        self._layouts: dict[object, Layout] = {}
        self._trained_in: dict[int, tuple[str, ...]] = {}
        self._begun_with_maps: dict[str, bool] = {}
        self._private_tensors = bool(learner.resident.private_names)
        self._start_of_private: dict[str, Tensor] = {}
        self._incoming: tuple[object, nn.Module] | None = None
        self._evaluated: Request | None = None
        self._updates: list[Update] = []
        self._histograms: ScoreHistograms | None = None

    @property
    def at_once(self) -> int:
        """How many clients it trains at once."""
        return self._together.size if self._together else 1

    @property
    def device(self) -> torch.device:
        """Where its network is."""
        return self._learner.device

    @property
    def layout(self) -> Layout:
        """Of all exchanged tensors."""
        return self._learner.resident.layout

    def info(self) -> HostInfo:
        """Which clients it can play, with their sizes."""
        sizes = self._federation.sizes[self._clients - self._federation.clients.start]
        federation = self._federation
        return HostInfo(
            self.name,
            self._clients,
            sizes,
            federation.label_names,
            unannotated=federation.unannotated_labels,
            image_shape=federation.corpus.image_shape,
        )

    def play(self, request: Request, clients: Sequence[int]) -> Reply:
        """Play ``clients`` and answer at once with everything they gave."""
        turns = tuple(self.turns(request, clients))
        return replace(self.collect(), turns=turns)

    def turns(self, request: Request, clients: Sequence[int]) -> list[Turn]:
        """Play ``clients``; what they contribute is kept until ``collect``.

        Nothing a client does stops the host: an exception, an attempt to exit, a number that is
        not finite or an exhausted memory becomes the turn's ``error``. Only data that are not
        what was written stop it.

        Raises:
            DamagedError: an image or a label was changed on the disk.
        """
        if self._together is None or request.kind != "train":
            return [self._turn(request, client) for client in clients]
        turns: list[Turn] = []
        for start in range(0, len(clients), self.at_once):
            turns += self._turns_together(request, clients[start : start + self.at_once])
        return turns

    def collect(self) -> Reply:
        """What the turns since the last ``collect`` gave: one sum, or every update if each is wanted."""
        updates, histograms = tuple(self._updates), self._histograms
        self._updates, self._histograms = [], None
        return Reply((), updates, {} if histograms is None else histograms.to_arrays())

    def _turn(self, request: Request, client: int) -> Turn:
        began, started = time.perf_counter(), time.time()
        play = {"train": self._train, "evaluate": self._evaluate, "count": self._count}[request.kind]
        try:
            with restored():
                turn = play(request, client)
        except DamagedError:
            raise  # a client less in each round would be another result
        except (Exception, SystemExit) as error:  # noqa: BLE001  (a client may fail in any way; it is recorded)
            turn = _failure(error)
        return Turn(client, self.name, started=started, seconds=time.perf_counter() - began, **turn)  # type: ignore[arg-type]

    def _train(self, request: Request, client: int) -> dict[str, object]:
        shard = self._shard(client)
        resident = self._learner.resident
        self._evaluated = None
        local = self._local(request, client)
        resident.load(request.flat, private_of(local.memory))
        stretch = stretch_of(self._learner.method, request.round)
        resident.train_only(self._trained(stretch))
        with ExitStack() as held:
            maps = self._first_maps(request, stretch)
            if maps is not None:
                shard = replace(shard, images=OwnImages(maps, shard.rows, shard.holdout_rows))
                held.enter_context(passing(resident.network))
                incoming = local.incoming
                local = replace(local, incoming=lambda: held.enter_context(passing(incoming())))
            local = replace(local, hooks=self._hooks(request, shard, local))
            trained = stretch.phase.train(resident, shard, local)
        resident.check()
        local.memory.update({PRIVATE + name: tensor for name, tensor in resident.private_tensors().items()})
        return self._add(request, shard, resident.flat, trained, local)

    def _first_maps(self, request: Request, stretch: Stretch) -> FeatureMaps | None:
        """The feature maps that stand for images in this stretch; ``request.flat`` is loaded."""
        maps = self._learner.first_features
        if maps is None or stretch.number > 0 or any(mod.needs_features for mod in self._mods(request)):
            return None
        if request.run not in self._begun_with_maps:
            # A run that begins from other weights than those of the settings has other maps.
            self._begun_with_maps[request.run] = maps.are_of(backbone_of(self._learner.resident.network))
        return maps if self._begun_with_maps[request.run] else None

    def _trained(self, stretch: Stretch) -> Sequence[str] | None:
        """Names of the tensors that train in a stretch; None for all."""
        if stretch.phase.tensors is None:
            return None
        if stretch.number not in self._trained_in:
            self._learner.resident.train_only(None)  # a turn that failed may have left some of them standing still
            self._trained_in[stretch.number] = tuple(stretch.phase.tensors(self._learner.resident.network))
        return self._trained_in[stretch.number]

    def _hooks(self, request: Request, shard: Shard, local: Local) -> tuple[Hooks, ...]:
        return tuple(mod.begin(self._learner.resident, shard, local) for mod in self._mods(request))

    def _mods(self, request: Request) -> tuple[Mod, ...]:
        """The mods of the server's rule, then those of the experiment."""
        if request.mods not in self._mods_of:
            brought = [spec.build("mods", text) for text in request.mods]
            for mod in brought if self._together is not None else ():
                check_at_once([mod])
            self._mods_of[request.mods] = (*brought, *self._learner.mods)
        return self._mods_of[request.mods]

    def _count(self, request: Request, client: int) -> dict[str, object]:
        """Named sums of one client's labels, and how many clients and images stand behind every number."""
        self._check_statistics(request)
        shard = self._shard(client)
        counted = counts_of(shard, [self._learner.method.statistics, *(mod.statistics for mod in self._mods(request))])
        nothing = torch.zeros(0, device=self._learner.device)
        return self._sum_up(request, shard, nothing, Trained(0.0, 0, {}), counted)

    def _turns_together(self, request: Request, clients: Sequence[int]) -> list[Turn]:
        """Train ``clients`` at once; time is shared out by their images."""
        began, started = time.perf_counter(), time.time()
        self._evaluated = None
        together = self._together
        if together is None or len(clients) == 1:
            return [self._turn(request, client) for client in clients]
        try:
            shards = [self._shard(client) for client in clients]
            locals_ = [self._local(request, client) for client in clients]
            self._learner.resident.load(request.flat)  # as mods find it when one client is trained after another
            for place, (shard, local) in enumerate(zip(shards, locals_, strict=True)):
                locals_[place] = replace(local, hooks=self._hooks(request, shard, local))
            with restored():
                trained = together.fit(request.flat, shards, locals_)
        except (Exception, SystemExit):  # noqa: BLE001  (one after another shows whose fault it is)
            return [self._turn(request, client) for client in clients]
        turns = []
        for shard, local, (result, flat) in zip(shards, locals_, trained, strict=True):
            try:
                turn = self._add(request, shard, flat, checked(result), local)
            except (Exception, SystemExit) as error:  # noqa: BLE001  (a mod of the client may fail in any way)
                turn = _failure(error)
            turns.append(Turn(shard.client, self.name, started=started, **turn))  # type: ignore[arg-type]
        each = (time.perf_counter() - began) / sum(shard.num_images for shard in shards)
        return [replace(turn, seconds=each * s.num_images) for turn, s in zip(turns, shards, strict=True)]

    def _shard(self, client: int) -> Shard:
        shard, maps = self._federation.shard(client), self._learner.features
        return shard if maps is None else replace(shard, images=OwnImages(maps, shard.rows, shard.holdout_rows))

    def _check_statistics(self, request: Request) -> None:
        """Make sure that what a request tells the server of labels and features is allowed: the server may not ask.

        Raises:
            InputError: statistics are not allowed here, and the count, the method or a mod sends some.
        """
        if self._experiment.allow_statistics:
            return
        method = self._learner.method
        asks = {
            "a count of its labels": request.kind == "count",
            "sums of every round": method.round_sums is not None,
            "numbers computed from its images and labels": stretch_of(method, request.round).phase.solution is not None,
            "what its method tells": method.refuses is not None and bool(method.refuses(self._experiment)),
            "what a mod tells": any(mod.refuses and mod.refuses(self._experiment) for mod in self._mods(request)),
        }
        asked = [what for what, is_asked in asks.items() if is_asked]
        if asked:
            msg = (
                "Expected allow-statistics to be true in the experiment and not false in this device's node config, "
                f"since the server asks for {' and '.join(asked)}, got false. Set it where the clients agree."
            )
            raise InputError(msg)

    def _local(self, request: Request, client: int) -> Local:
        self._check_statistics(request)
        memory = self._recall(request, client)
        return Local(
            experiment=self._experiment,
            round=request.round,
            client=client,
            device=self._learner.device,
            incoming=lambda: self._incoming_network(request, client, memory),
            start=request.flat,
            layout=self._layout(request),
            objective=stretch_of(self._learner.method, request.round).phase.objective,
            shared=request.shared,
            memory=dict(memory),
        )

    def _recall(self, request: Request, client: int) -> dict[str, Tensor]:
        """What the client kept of its last turn that counted; of an earlier stretch only what is not of its training.

        Those are the client's private tensors and what it keeps of its images (``fedmlic.image_state``).
        """
        last = request.last.get(client, 0)
        if last == 0 or not self._remembers(request):
            return {}
        found = self._place(request).recall(client, last)
        first = stretch_of(self._learner.method, request.round).first_round
        return {name: tensor for name, tensor in found.items() if last >= first or name.startswith((PRIVATE, IMAGES))}

    def _remembers(self, request: Request) -> bool:
        """Whether clients keep tensors from turn to turn."""
        own = self._private_tensors or self._learner.method.remembers
        return own or any(mod.remembers for mod in self._mods(request))

    def _keep(self, request: Request, client: int, tensors: Mapping[str, Tensor]) -> None:
        # Nothing is kept too: the server will say that this turn was the last that counted.
        if tensors or self._remembers(request):
            last = request.last.get(client, 0)
            self._place(request).keep(client, request.round, tensors, last=last, needed=request.needed)

    def _place(self, request: Request) -> ClientMemory:
        if self._memory is None:
            msg = "Expected a folder in which clients keep tensors, got none. Give this host one (memory=)."
            raise RuntimeError(msg)
        return self._memory(request.run)

    def _add(self, request: Request, shard: Shard, flat: Tensor, trained: Trained, local: Local) -> dict[str, object]:
        """Let the mods change what is sent, let the client keep its tensors, add the rest to the round's sum."""
        everything = self._learner.resident.layout
        layout = self._layout(request)
        sent, change = everything.gather(flat, layout), None
        num_bytes = 4 * layout.num_values
        extras: dict[str, Tensor] = {}
        if local.hooks or self._private_tensors:
            # Before a mod rounds or bounds it, and before it can get into what the client keeps.
            check_trained([*layout.views(sent), *private_of(local.memory).items()])
        if local.hooks:
            start = everything.gather(request.flat, layout)
            sent, num_bytes, extras, change = self._passed_on(local, layout, start, sent, trained)
            declared = Declared(self._experiment, self._mods(request), self._learner.method.passes)
            problem = declared.problem(layout, [shard.num_images], torch.from_numpy(shard.annotations), extras)
            if problem:
                raise ValueError(problem)
        extras |= round_sums_of(shard, self._learner, local.round_sums)
        if local.solution_sums:
            solution = stretch_of(self._learner.method, request.round).phase.solution
            zeros = {} if solution is None else solution.sums(self._learner.resident.network, request.shared)
            extras |= solution_sums_of(shard, zeros, local.solution_sums)
        # Kept before it is added: what is kept counts only once the server says that the turn did.
        self._keep(request, shard.client, local.memory)
        turn = self._sum_up(request, shard, sent, trained, extras, change)
        turn["bytes_up"] = num_bytes + num_bytes_of(extras)
        turn["bytes_down"] = 4 * layout.num_values + num_bytes_of(request.shared)
        return turn

    def _passed_on(
        self, local: Local, layout: Layout, start: Tensor, trained_flat: Tensor, trained: Trained
    ) -> tuple[Tensor, int, dict[str, Tensor], Tensor | None]:
        """As the function, and the change that is sent over a link: None where no mod made something else of it."""
        passed: list[Tensor] = []
        hooks = (*local.hooks, Hooks(sent=passed.append)) if self._on_link else local.hooks
        sent, num_bytes, extras = passed_on(hooks, layout, start, trained_flat, trained)
        return sent, num_bytes, extras, passed[0] if passed and sent is not trained_flat else None

    def _layout(self, request: Request) -> Layout:
        key = request.kind, request.tensors
        if key not in self._layouts:
            self._layouts[key] = request.layout(self._learner.resident.layout)
        return self._layouts[key]

    def _sum_up(
        self,
        request: Request,
        shard: Shard,
        flat: Tensor,
        trained: Trained,
        extras: Mapping[str, Tensor],
        change: Tensor | None = None,
    ) -> dict[str, object]:
        """Add what a client sends to the round's sum, or keep it as an update of its own."""
        annotations = torch.from_numpy(shard.annotations)
        units = request.units
        if request.each:
            units = units_for(request.weighting, [shard.num_images], shard.num_labels)
        alone = request.each or not self._updates
        sums = None if request.each else self._sums
        update = Update.zero(self._layout(request), units, self._learner.device, sums) if alone else self._updates[0]
        update.add_client(
            shard.client,
            flat,
            weighting=request.weighting,
            num_images=shard.num_images,
            annotations=annotations,
            metrics=turn_metrics(trained.loss, trained.num_steps, trained.metrics),
            extras=extras,
            change=change,
        )
        if alone:
            self._updates.append(update)  # only now: if the first client is refused there is no sum, not an empty one
        return {
            "num_images": shard.num_images,
            "num_annotations": int(annotations.sum()),
            "loss": trained.loss,
            "num_steps": trained.num_steps,
        }

    def _evaluate(self, request: Request, client: int) -> dict[str, object]:
        shard = self._shard(client)
        if self._private_tensors:
            self._learner.resident.load(request.flat, private_of(self._recall(request, client)))
        elif self._evaluated is not request:  # all clients score the same model
            self._learner.resident.load(request.flat)
            self._evaluated = request
        scores = self._learner.predict(shard.images, shard.holdout_rows)
        found = ScoreHistograms.of(scores, shard.holdout_labels)
        self._histograms = found if self._histograms is None else self._histograms + found
        return {
            "num_images": len(shard.holdout_rows),
            "num_annotations": int(known(shard.holdout_labels).sum()),
            "metrics": self._own_metrics(scores, shard.holdout_labels),
        }

    def _own_metrics(self, scores: NDArray[np.float32], labels: NDArray[np.int8]) -> dict[str, float]:
        """The client's own mAP, over labels that somebody in the federation annotates."""
        names = self._federation.label_names
        counted = ~unannotated_columns(names, self._federation.unannotated_labels)
        return client_metrics(scores[:, counted], labels[:, counted], self._experiment.client_min_entries)

    def _incoming_network(self, request: Request, client: int, memory: Mapping[str, Tensor]) -> nn.Module:
        """The round's global model, with the client's own private tensors, in a second network."""
        layout = self._learner.resident.layout
        if self._incoming is None:
            network = self._learner.build_network(self._experiment).to(self._learner.device)
            self._start_of_private = {name: tensor.clone() for name, tensor in network.state_dict().items()}
            self._incoming = (None, network.eval().requires_grad_(requires_grad=False))
        loaded, network = self._incoming
        wanted = (request.round, client if self._private_tensors else None)
        if loaded != wanted:
            tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
            for name, view in layout.views(request.flat):
                tensors[name].copy_(view)
            for name in self._learner.resident.private_names:
                tensors[name].copy_(memory.get(PRIVATE + name, self._start_of_private[name]))
            self._incoming = (wanted, network)
        return network


def check_trained(tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Raise ``ValueError`` naming which of a client's tensors training left with NaN or infinity in them."""
    wrong = [name for name, tensor in tensors if not bool(torch.isfinite(tensor).all())]
    if wrong:
        msg = f"Expected trained tensors to be finite, got NaN or infinity in {wrong[:5]}. Lower the learning rate."
        raise ValueError(msg)


def passed_on(
    hooks: Sequence[Hooks], layout: Layout, start: Tensor, trained_flat: Tensor, trained: Trained
) -> tuple[Tensor, int, dict[str, Tensor]]:
    """What a client sends after its mods: the tensors, the bytes they take, and further sums.

    Args:
        hooks: of its mods, in order.
        layout: of the exchanged tensors.
        start: float32 ``[layout.size]``, what the turn started from.
        trained_flat: float32 ``[layout.size]``, what it led to.
        trained: the turn's losses and steps.
    """
    change = trained_flat - start
    extras: dict[str, Tensor] = {}
    for each in hooks:
        if each.extras is not None:
            extras.update(each.extras(change, trained))
    payload = Payload(change, layout.num_values)
    for each in hooks:
        if each.send is not None:
            payload = each.send(payload, trained)
    factor = math.prod(each.scale(trained) for each in hooks if each.scale is not None)
    if factor != 1:
        scaled = payload.change * factor
        scaled[: layout.statistics_end] = payload.change[: layout.statistics_end]
        payload = payload._replace(change=scaled)
    for each in hooks:
        if each.sent is not None:
            each.sent(payload.change)
    # What no mod changed is sent as it is: start + (trained - start) is rounded.
    sent = trained_flat if payload.change is change else start + payload.change
    return sent, payload.num_bytes, extras


def counts_of(shard: Shard, questions: Iterable[Statistics | None]) -> dict[str, Tensor]:
    """What is counted over clients, and beside each number how many clients and images stand behind it.

    Args:
        shard: one client's.
        questions: functions of a shard that give named sums.
    """
    counted: dict[str, Tensor] = {}
    for question in questions:
        if question is not None:
            counted.update(question(shard))
    return _with_support(shard, counted)


def round_sums_of(shard: Shard, learner: Learner, filled: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a client adds to its method's sums of the round, and beside each number what stands behind it.

    Args:
        shard: the client's.
        learner: whose method declares the sums.
        filled: what the turn put into ``Local.round_sums``.

    Raises:
        InputError: the turn filled in a sum that the method does not declare, or one of another shape or type.
    """
    sums = learner.method.round_sums
    declared = {} if sums is None else dict(sums(learner.resident.network, shard.num_labels))
    found = {name: filled.get(name, zeros).detach().cpu() for name, zeros in declared.items()}
    wrong = [name for name in filled if name not in declared]
    wrong += [name for name, zeros in declared.items() if (found[name].shape, found[name].dtype) != like(zeros)]
    if wrong:
        expected = "Expected sums of a round to have the names, shapes and types that Method.round_sums declares"
        raise listing(expected, wrong)
    return _with_support(shard, {ROUND_SUMS + name: tensor for name, tensor in found.items()})


def solution_sums_of(shard: Shard, declared: Mapping[str, Tensor], filled: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a client adds to the sums that the server solves with, and beside each row what stands behind it.

    A floating sum is sent in two parts, of which large and small numbers both add exactly.

    Args:
        shard: the client's.
        declared: zeros by name (``fedmlic.method.Solution.sums``).
        filled: what the turn put into ``Local.solution_sums``.

    Raises:
        InputError: the turn filled in a sum that is not declared, or one of another shape or type.
        ValueError: a number is NaN or infinite.
    """
    wrong = [name for name, tensor in filled.items() if name not in declared or like(tensor) != like(declared[name])]
    if wrong:
        expected = "Expected sums for a solution to have the names, shapes and types that Solution.sums declares"
        raise listing(expected, wrong)
    wrong = [name for name, tensor in filled.items() if not bool(torch.isfinite(tensor).all())]
    if wrong:  # as integers they would no longer look like it
        msg = (
            f"Expected sums for a solution to be finite, got NaN or infinity in {wrong[:5]}. Check the client's images."
        )
        raise ValueError(msg)
    found: dict[str, Tensor] = {}
    for name, tensor in filled.items():
        sums = tensor.detach().cpu()
        behind = (sums != 0).flatten(1).any(dim=1).to(torch.int64) if sums.ndim > 1 else (sums != 0).to(torch.int64)
        if sums.is_floating_point():
            high = (sums / HIGH_UNIT).round()
            found[SOLUTION_SUMS + name + HIGH] = high.to(torch.int64)
            sums = (sums - high * HIGH_UNIT) / LOW_UNIT
        found[SOLUTION_SUMS + name] = sums
        found[SOLUTION_SUMS + name + CLIENTS_BEHIND] = behind
        found[SOLUTION_SUMS + name + IMAGES_BEHIND] = behind * shard.num_images
    return found


def like(tensor: Tensor) -> tuple[torch.Size, torch.dtype]:
    """Its shape and type."""
    return tensor.shape, tensor.dtype


def _with_support(shard: Shard, counted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Beside each number whether this client, and how many of its images, stand behind it."""
    support: dict[str, Tensor] = {}
    for name, tensor in counted.items():
        behind = (tensor != 0).to(torch.int64)
        support[name + CLIENTS_BEHIND] = behind
        support[name + IMAGES_BEHIND] = behind * shard.num_images
    return {**counted, **support}


def private_of(memory: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's private tensors by their names in it, out of what a client keeps."""
    return {name.removeprefix(PRIVATE): tensor for name, tensor in memory.items() if name.startswith(PRIVATE)}


def num_bytes_of(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of tensors on their way; floating numbers count as float32, but for float64 sums of a solution."""
    return sum(
        tensor.numel() * (4 if tensor.is_floating_point() and not name.startswith(SOLUTION_SUMS) else 8)
        for name, tensor in tensors.items()
    )


def _together(experiment: Experiment, learner: Learner, size: int) -> Together:
    from fedmlic.vectorized import Together  # torch.func is imported where it is used

    return Together(learner.method, learner.resident, experiment.method, size)


def _failure(error: BaseException) -> dict[str, object]:
    """A turn's error with its traceback."""
    if isinstance(error, torch.OutOfMemoryError):
        torch.cuda.empty_cache()
    text = "".join(traceback.format_exception(error)).strip()
    return {"error": f"{type(error).__name__}: {error}\n{text}"}
