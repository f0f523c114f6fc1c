"""Play these clients: what a host does with a request, whoever carries it.

One network stays in memory. Clients train in it one after another; each starts
from the round's global model and nothing of the one before remains. What they
send is added up at once, so a host answers with one model per round however
many clients it played.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch

from fedmlic.histograms import ScoreHistograms
from fedmlic.labels import known
from fedmlic.learner import Learner, build_network
from fedmlic.method import Local
from fedmlic.metrics import evaluate
from fedmlic.protocol import HostInfo, Reply, Request, Turn
from fedmlic.update import Update, units_for

if TYPE_CHECKING:
    from torch import nn

    from fedmlic.experiment import Experiment
    from fedmlic.federation import Federation


class Host:
    """A process that can play the clients of a federation.

    Args:
        name: how records call it.
        experiment: what to do.
        federation: whose clients it can play.
        learner: the method with its network, on the host's device.
        clients: the clients it plays; all of the federation by default.
    """

    def __init__(
        self,
        name: str,
        experiment: Experiment,
        federation: Federation,
        learner: Learner,
        clients: Iterable[int] | None = None,
    ) -> None:
        self.name = name
        self._experiment = experiment
        self._federation = federation
        self._learner = learner
        self._clients = np.array(sorted(federation.clients if clients is None else clients), dtype=np.int64)
        self._incoming: tuple[int, nn.Module] | None = None
        self._total: Update | None = None
        self._histograms: ScoreHistograms | None = None

    def info(self) -> HostInfo:
        """Which clients it can play, with their sizes."""
        sizes = self._federation.sizes[self._clients - self._federation.clients.start]
        return HostInfo(self.name, self._clients, sizes, self._federation.label_names)

    def play(self, request: Request, clients: Iterable[int], on_turn: Callable[[Turn], None] | None = None) -> Reply:
        """Play ``clients`` and answer at once with everything they gave."""
        turns = []
        for client in clients:
            turns.append(self.turn(request, client))
            if on_turn is not None:
                on_turn(turns[-1])
        rest = self.collect()
        return Reply(tuple(turns), rest.updates, rest.evaluation)

    def turn(self, request: Request, client: int) -> Turn:
        """Play one client; its contribution is kept until ``collect``.

        Nothing a client does stops the host: an exception, an attempt to exit, a number that is
        not finite or an exhausted memory becomes the turn's ``error``.
        """
        began, started = time.perf_counter(), time.time()
        try:
            play = self._train if request.kind == "train" else self._evaluate
            turn = play(request, client)
        except (Exception, SystemExit) as error:  # noqa: BLE001  (a client may fail in any way; it is recorded)
            if isinstance(error, torch.OutOfMemoryError):
                torch.cuda.empty_cache()
            text = "".join(traceback.format_exception(error)).strip()
            turn = {"error": f"{type(error).__name__}: {error}\n{text}"}
        return Turn(client, self.name, started=started, seconds=time.perf_counter() - began, **turn)  # type: ignore[arg-type]

    def collect(self) -> Reply:
        """What the turns since the last ``collect`` added up to."""
        total, histograms = self._total, self._histograms
        self._total = self._histograms = None
        updates = () if total is None else (total,)
        return Reply((), updates, {} if histograms is None else histograms.to_arrays())

    def turn_alone(self, request: Request, client: int) -> Reply:
        """Play one client whose update is wanted by itself."""
        turn = self.turn(request, client)
        return Reply((turn,), self.collect().updates)

    def _train(self, request: Request, client: int) -> dict[str, object]:
        shard = self._federation.shard(client)
        resident = self._learner.resident
        resident.load(request.flat)
        local = Local(
            experiment=self._experiment,
            round=request.round,
            client=client,
            device=self._learner.device,
            incoming=lambda: self._incoming_network(request),
        )
        trained = self._learner.method.train(resident, shard, local)
        resident.check()
        annotations = torch.from_numpy(shard.annotations)
        total = self._total
        if total is None:
            units = request.units
            if request.each:
                units = units_for(request.weighting, [shard.num_images], shard.num_labels)
            total = Update.zero(resident.layout, units, self._learner.device)
        total.add_client(
            client,
            resident.flat,
            weighting=request.weighting,
            num_images=shard.num_images,
            annotations=annotations,
            metrics={"loss": trained.loss, "steps": float(trained.num_steps), **trained.metrics},
        )
        self._total = total  # only now: if the first client is refused there is no sum, not an empty one
        return {
            "num_images": shard.num_images,
            "num_annotations": int(annotations.sum()),
            "loss": trained.loss,
            "num_steps": trained.num_steps,
        }

    def _evaluate(self, request: Request, client: int) -> dict[str, object]:
        shard = self._federation.shard(client)
        self._learner.resident.load(request.flat)
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
