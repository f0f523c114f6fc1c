"""Clients on Ray: resident workers, many clients per call, one model per worker per round.

Every worker is an actor with a ``Host``. A round puts the model into the object
store once; clients are handed out in shrinking chunks, costliest first, to
whoever is free; each worker adds its updates and gives one sum at the end.
Which worker played whom cannot change the result, since sums have no order.

A worker that dies is replaced, and what it had not yet handed over is played
again elsewhere. A client that was being played when a worker died twice is one
failed client.
"""

from __future__ import annotations

import os
import sys
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from fedmlic.errors import InputError
from fedmlic.protocol import HostInfo, Reply, Request, Turn

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from clients.host import Host
    from fedmlic.experiment import Experiment, Runtime
    from fedmlic.update import Update

MAX_DEATHS_IN_A_ROW = 3
"""Workers that may die one after another without a single turn before the run gives up."""

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # workers use this environment as it is, offline too
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
}


@dataclass(frozen=True)
class _Sum:
    """An update whose large vector crosses Ray's object store without a copy."""

    update: Update
    sums: NDArray[np.float64]


def _pack(update: Update) -> _Sum:
    import torch  # noqa: PLC0415

    return _Sum(replace(update, sums=torch.zeros(0, dtype=torch.float64)), update.sums.cpu().numpy())


def _unpack(packed: _Sum) -> Update:
    import torch  # noqa: PLC0415

    # The store's memory is read-only; the sum is added to in place.
    return replace(packed.update, sums=torch.from_numpy(packed.sums.copy()))


class Worker:
    """The actor: a host in a process of its own.

    Args:
        name: how records call it.
        search_path: the driver's module search path, so that plug-ins are found here too.
    """

    def __init__(self, name: str, search_path: Sequence[str]) -> None:
        sys.path.extend(entry for entry in search_path if entry not in sys.path)
        import torch  # noqa: F401, PLC0415  (imported while the server still prepares the data)

        import clients.host  # noqa: F401, PLC0415

        self._name = name
        self._host: Host | None = None
        self._request: Request | None = None

    def setup(self, settings: dict[str, Any], label_names: tuple[str, ...]) -> HostInfo:
        """Open the federation, build the network, and say which clients can be played."""
        from sim.run import build_host  # noqa: PLC0415

        self._host = build_host(self._name, settings, label_names)
        return self._host.info()

    def begin(self, packed: tuple[Request, NDArray[np.float32]]) -> None:
        """Take in the round's request; the model is read where it lies in the object store."""
        import numpy as np  # noqa: PLC0415
        import torch  # noqa: PLC0415

        request, flat = packed
        self._request = None  # should the copy fail, nobody must train on the last round's model
        self._request = replace(request, flat=torch.from_numpy(np.array(flat)))
        if self._host is not None:
            self._host.collect()  # forget what a broken-off round left behind

    def play(self, clients: Sequence[int]) -> tuple[list[Turn], list[_Sum]]:
        """Play ``clients``; their single updates if the request wants each, else none yet."""
        host, request = self._ready()
        if not request.each:
            return [host.turn(request, client) for client in clients], []
        replies = [host.turn_alone(request, client) for client in clients]
        return [turn for reply in replies for turn in reply.turns], [
            _pack(u) for reply in replies for u in reply.updates
        ]

    def collect(self) -> tuple[list[_Sum], dict[str, NDArray[np.int64]]]:
        """The sum of what was played since ``begin``."""
        reply = self._ready()[0].collect()
        return [_pack(update) for update in reply.updates], dict(reply.evaluation)

    def _ready(self) -> tuple[Host, Request]:
        if self._host is None or self._request is None:
            msg = "Expected setup and begin before play."
            raise RuntimeError(msg)
        return self._host, self._request


@dataclass
class _Seat:
    """One worker as the driver sees it.

    Attributes:
        name: of the seat; a replacement takes it over with a number added.
        actor: the handle.
        begun: the call that gives the actor the round's model.
        played: clients whose turns are in the actor's uncollected sum.
        pending: chunk under way by call.
    """

    name: str
    actor: Any
    begun: Any = None
    played: list[int] = field(default_factory=list)
    pending: dict[Any, list[int]] = field(default_factory=dict)


class RayWorkers:
    """A transport of resident Ray actors.

    Args:
        num_workers: how many.
        runtime: resources per worker.

    The actors start at once and import what they need while the caller prepares the data;
    ``setup`` then tells them what to play.
    """

    def __init__(self, num_workers: int, runtime: Runtime) -> None:
        self._ray = start_ray(num_workers, runtime.gpus_per_worker)
        self._deaths = (self._ray.exceptions.RayActorError, self._ray.exceptions.OutOfMemoryError)
        self._runtime = runtime
        self._remote = self._ray.remote(Worker)
        self._seats = [_Seat(f"worker-{i}", self._new_actor(f"worker-{i}")) for i in range(num_workers)]
        self._setup: tuple[dict[str, Any], tuple[str, ...]] | None = None
        self._num_deaths = 0
        self._deaths_in_a_row = 0

    def setup(self, experiment: Experiment, label_names: tuple[str, ...]) -> None:
        """Tell all workers which federation and network to open."""
        settings = {**experiment.model_dump(), **self._runtime.model_dump()}
        self._setup = (settings, label_names)

    def hosts(self) -> list[HostInfo]:
        """Set every worker up and ask what it can play.

        Raises:
            InputError, RuntimeError: what went wrong in a worker's set-up.
        """
        calls = [seat.actor.setup.remote(*self._arguments()) for seat in self._seats]
        try:
            return list(self._ray.get(calls))
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None

    def play(self, request: Request, clients: Sequence[int]) -> Iterator[Reply]:
        """Hand out ``clients`` in chunks; yield turns as they end and the sums last."""
        packed = (replace(request, flat=request.flat[:0].cpu()), request.flat.cpu().numpy())
        model = self._ray.put(packed)
        queue = deque([client] for client in clients)
        suspects: Counter[int] = Counter()
        for seat in self._seats:
            seat.played, seat.pending = [], {}
            seat.begun = seat.actor.begin.remote(model)
        while queue or any(seat.pending or seat.played for seat in self._seats):
            self._hand_out(queue)
            if any(seat.pending for seat in self._seats):
                yield from self._gather(request, model, queue, suspects)
            else:
                yield from self._collect(model, queue)

    def close(self) -> None:
        """Stop the workers and the Ray instance that was started for them."""
        self._seats = []
        self._ray.shutdown()

    def _new_actor(self, name: str) -> Any:  # noqa: ANN401  (Ray's handles are untyped)
        return self._remote.options(num_cpus=1, num_gpus=self._runtime.gpus_per_worker).remote(name, sys.path)

    def _arguments(self) -> tuple[dict[str, Any], tuple[str, ...]]:
        if self._setup is None:
            msg = "Expected setup before hosts."
            raise RuntimeError(msg)
        return self._setup

    def _hand_out(self, queue: deque[list[int]]) -> None:
        """Give every worker that has at most one call under way another chunk."""
        for depth in range(2):
            for seat in self._seats:
                if not queue or len(seat.pending) > depth:
                    continue
                chunk = queue.popleft()
                # Guided self-scheduling: half of a fair share at a time.
                share = len(queue) // (2 * len(self._seats))
                while queue and len(chunk) < share and len(queue[0]) == 1:
                    chunk = chunk + queue.popleft()
                seat.pending[seat.actor.play.remote(chunk)] = chunk

    def _gather(self, request: Request, model: Any, queue: deque[list[int]], suspects: Counter[int]) -> Iterator[Reply]:  # noqa: ANN401
        calls = [call for seat in self._seats for call in seat.pending]
        ready = self._ray.wait(calls, num_returns=1, timeout=self._runtime.round_timeout)[0]
        if not ready:
            self._kill_silent()
        for call in ready:
            seat = next(seat for seat in self._seats if call in seat.pending)
            try:
                turns, sums = self._ray.get(call)
            except self._deaths as error:
                yield from self._bury(seat, model, queue, suspects, error)
                continue
            chunk = seat.pending.pop(call)
            self._deaths_in_a_row = 0
            if not request.each:
                seat.played.extend(chunk)
            yield Reply(tuple(turns), tuple(_unpack(packed) for packed in sums))

    def _collect(self, model: Any, queue: deque[list[int]]) -> Iterator[Reply]:  # noqa: ANN401
        """Fetch the sums; a worker that died with its sum has its clients played again."""
        calls = {seat.actor.collect.remote(): seat for seat in self._seats if seat.played}
        for call, seat in calls.items():
            try:
                sums, evaluation = self._ray.get(call)
            except self._deaths as error:
                yield from self._bury(seat, model, queue, Counter(), error)
                continue
            seat.played = []
            yield Reply((), tuple(_unpack(packed) for packed in sums), evaluation)

    def _bury(
        self,
        seat: _Seat,
        model: Any,  # noqa: ANN401
        queue: deque[list[int]],
        suspects: Counter[int],
        error: Exception,
    ) -> Iterator[Reply]:
        """Replace a dead worker; play again what it had not handed over."""
        self._num_deaths += 1
        self._deaths_in_a_row += 1
        if self._deaths_in_a_row > MAX_DEATHS_IN_A_ROW:
            msg = (
                f"Expected workers to live, got {self._deaths_in_a_row} deaths in a row: {error}. "
                "Look for lack of memory; use fewer workers."
            )
            raise RuntimeError(msg) from error
        # Only the first unfinished chunk can have been running when the worker died.
        chunks = list(seat.pending.values())
        running, waiting = (chunks[0] if chunks else []), chunks[1:]
        failed = []
        for client in running:
            suspects[client] += 1
            if len(running) == 1 and suspects[client] > 1:
                reason = f"WorkerDied: {seat.name} died while it played client {client} alone ({type(error).__name__})"
                failed.append(Turn(client, seat.name, error=reason))
                self._deaths_in_a_row = 0  # the cause is found
            else:
                # At once and alone: whoever killed it is found before it kills another.
                queue.appendleft([client])
        queue.extend([client] for client in [*seat.played, *(c for chunk in waiting for c in chunk)])
        seat.played, seat.pending = [], {}
        seat.name = f"{seat.name.split('+', maxsplit=1)[0]}+{self._num_deaths}"
        seat.actor = self._new_actor(seat.name)
        seat.actor.setup.remote(*self._arguments())
        seat.begun = seat.actor.begin.remote(model)
        yield Reply(tuple(failed))

    def _kill_silent(self) -> None:
        """Kill whoever plays on and on; calls under way then end as those of any dead worker."""
        for seat in self._seats:
            if seat.pending and self._ray.wait([seat.begun], timeout=0)[0]:
                self._ray.kill(seat.actor)


def start_ray(num_workers: int, gpus_per_worker: float) -> Any:  # noqa: ANN401  (the ray module, imported late)
    """Start a private Ray instance on this machine and return the module.

    Raises:
        InputError: the GPUs asked for are not there.
    """
    os.environ.update({key: os.environ.get(key, value) for key, value in ENVIRONMENT.items()})
    import ray  # noqa: PLC0415

    ray.init(
        address="local",
        num_cpus=num_workers,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        configure_logging=False,
    )
    there = float(ray.cluster_resources().get("GPU", 0.0))
    if gpus_per_worker * num_workers > there:
        ray.shutdown()
        msg = (
            f"Expected {num_workers} workers x {gpus_per_worker} GPUs to fit this machine's {there:g} GPUs. "
            "Lower workers or gpus-per-worker."
        )
        raise InputError(msg)
    return ray
