"""Play these clients: what a host does with a request, whoever carries it.

One network stays in memory. Clients train in it one after another; each starts
from the round's global model and nothing of the one before remains. What they
send is added up at once, so a host answers with one model per round however
many clients it played.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from fedmlic.histograms import ScoreHistograms
from fedmlic.labels import known
from fedmlic.learner import build_network
from fedmlic.method import Local
from fedmlic.metrics import evaluate
from fedmlic.protocol import HostInfo, Reply, Request, Turn
from fedmlic.stores import DamagedError
from fedmlic.training import checked
from fedmlic.update import Update, units_for

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fedmlic.experiment import Experiment
    from fedmlic.federation import Federation
    from fedmlic.learner import Learner
    from fedmlic.method import Trained
    from fedmlic.shard import Shard
    from fedmlic.vectorized import Together


class Host:
    """A process that can play the clients of a federation.

    Args:
        name: how records call it.
        experiment: what to do.
        federation: whose clients it can play.
        learner: the method with its network, on the host's device.
        clients: the clients it plays; all of the federation by default.
        vectorize: clients to train at once.
        memory: float64 ``[layout.size]`` to keep a round's sum in, on the CPU.

    Raises:
        InputError: the method cannot train several clients at once.
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
        memory: Tensor | None = None,
    ) -> None:
        self.name = name
        self._experiment = experiment
        self._federation = federation
        self._learner = learner
        self._clients = np.array(sorted(federation.clients if clients is None else clients), dtype=np.int64)
        self._together = _together(experiment, learner, vectorize) if vectorize > 1 else None
        self._memory = memory if learner.device.type == "cpu" else None
        self._incoming: tuple[int, nn.Module] | None = None
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

    def info(self) -> HostInfo:
        """Which clients it can play, with their sizes."""
        sizes = self._federation.sizes[self._clients - self._federation.clients.start]
        return HostInfo(self.name, self._clients, sizes, self._federation.label_names)

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
        try:
            play = self._train if request.kind == "train" else self._evaluate
            turn = play(request, client)
        except DamagedError:
            raise  # a client less in each round would be another result
        except (Exception, SystemExit) as error:  # noqa: BLE001  (a client may fail in any way; it is recorded)
            turn = _failure(error)
        return Turn(client, self.name, started=started, seconds=time.perf_counter() - began, **turn)  # type: ignore[arg-type]

    def _train(self, request: Request, client: int) -> dict[str, object]:
        shard = self._federation.shard(client)
        resident = self._learner.resident
        self._evaluated = None
        resident.load(request.flat)
        trained = self._learner.method.train(resident, shard, self._local(request, client))
        resident.check()
        return self._add(request, shard, resident.flat, trained)

    def _turns_together(self, request: Request, clients: Sequence[int]) -> list[Turn]:
        """Train ``clients`` at once; time is shared out by their images."""
        began, started = time.perf_counter(), time.time()
        self._evaluated = None
        together = self._together
        if together is None or len(clients) == 1:
            return [self._turn(request, client) for client in clients]
        try:
            shards = [self._federation.shard(client) for client in clients]
            trained = together.fit(request.flat, shards, [self._local(request, client) for client in clients])
        except (Exception, SystemExit):  # noqa: BLE001  (one after another shows whose fault it is)
            return [self._turn(request, client) for client in clients]
        turns = []
        for shard, (told, flat) in zip(shards, trained, strict=True):
            try:
                turn = self._add(request, shard, flat, checked(told))
            except (ValueError, FloatingPointError) as error:
                turn = _failure(error)
            turns.append(Turn(shard.client, self.name, started=started, **turn))  # type: ignore[arg-type]
        each = (time.perf_counter() - began) / sum(shard.num_images for shard in shards)
        return [replace(turn, seconds=each * s.num_images) for turn, s in zip(turns, shards, strict=True)]

    def _local(self, request: Request, client: int) -> Local:
        return Local(
            experiment=self._experiment,
            round=request.round,
            client=client,
            device=self._learner.device,
            incoming=lambda: self._incoming_network(request),
        )

    def _add(self, request: Request, shard: Shard, flat: Tensor, trained: Trained) -> dict[str, object]:
        """Add a client's trained tensors to the round's sum, or keep them as an update of their own."""
        annotations = torch.from_numpy(shard.annotations)
        units = request.units
        if request.each:
            units = units_for(request.weighting, [shard.num_images], shard.num_labels)
        alone = request.each or not self._updates
        memory = None if request.each else self._memory
        layout = self._learner.resident.layout
        update = Update.zero(layout, units, self._learner.device, memory) if alone else self._updates[0]
        update.add_client(
            shard.client,
            flat,
            weighting=request.weighting,
            num_images=shard.num_images,
            annotations=annotations,
            metrics={"loss": trained.loss, "steps": float(trained.num_steps), **trained.metrics},
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
        shard = self._federation.shard(client)
        if self._evaluated is not request:  # all clients score the same model
            self._learner.resident.load(request.flat)
            self._evaluated = request
        scores = self._learner.predict(shard.images, shard.holdout_rows)
        found = ScoreHistograms.of(scores, shard.holdout_labels)
        self._histograms = found if self._histograms is None else self._histograms + found
        metrics = evaluate(scores, shard.holdout_labels, threshold=self._experiment.threshold)
        return {
            "num_images": len(shard.holdout_rows),
            "num_annotations": int(known(shard.holdout_labels).sum()),
            "metrics": {"mAP": metrics.values["mAP"], "num-evaluable": float(metrics.num_evaluable)},
        }

    def _incoming_network(self, request: Request) -> nn.Module:
        """The round's global model in a second network, loaded once per round."""
        layout = self._learner.resident.layout
        if self._incoming is None:
            network = build_network(self._experiment, self._learner.task)[1].to(self._learner.device)
            self._incoming = (0, network.eval().requires_grad_(requires_grad=False))
        loaded, network = self._incoming
        if loaded != request.round:
            tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
            for name, view in layout.views(request.flat):
                tensors[name].copy_(view)
            self._incoming = (request.round, network)
        return network


def _together(experiment: Experiment, learner: Learner, size: int) -> Together:
    from fedmlic.vectorized import Together  # torch.func is imported where it is used

    return Together(learner.method, learner.resident, experiment.method, size)


def _failure(error: BaseException) -> dict[str, object]:
    """A turn's error with its traceback."""
    if isinstance(error, torch.OutOfMemoryError):
        torch.cuda.empty_cache()
    text = "".join(traceback.format_exception(error)).strip()
    return {"error": f"{type(error).__name__}: {error}\n{text}"}
