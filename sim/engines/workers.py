"""Worker processes that play clients: many clients per call, one model per worker per round.

Every worker holds a ``Host``. A round shares the model once; clients are handed out in
shrinking chunks, costliest first, to the workers that are free; each worker adds its updates and
gives one sum at the end. Which worker played which client cannot change the result, since sums
have no order.

A worker that dies is replaced, and what it had not yet handed over is played again
elsewhere. A client that was being played when a worker died twice is one failed client.

What starts workers and carries calls is a ``Carrier``: processes of this machine
(``sim.engines.processes``) or Ray (``sim.engines.ray``).
"""

from __future__ import annotations

import os
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from clients.host import Host
    from fedmlic.experiment import Experiment, Runtime
    from fedmlic.learner import Learner
    from fedmlic.protocol import HostInfo, Reply, Request, Turn
    from fedmlic.update import Update

MAX_DEATHS_IN_A_ROW = 3
"""Workers that may die one after another without a single turn before the run gives up."""


def num_workers(experiment: Experiment, runtime: Runtime) -> int:
    """Workers to start: as asked, else one per core, never more than there are clients a round.

    With ``gpus-per-worker`` as many as fit the GPUs, if that is fewer.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = runtime.workers or cores
    if runtime.gpus_per_worker and not runtime.workers and not runtime.ray_address:
        import torch  # only where there are GPUs to count

        wanted = max(1, min(wanted, int(torch.cuda.device_count() / runtime.gpus_per_worker + 1e-9)))
    cohort = experiment.cohort_size or experiment.num_clients or wanted
    return max(1, min(wanted, cohort))


class WorkerDiedError(RuntimeError):
    """The worker that was to answer is gone."""


class Carrier(Protocol):
    """Starts workers and carries calls to them.

    A worker answers calls in the order in which they were made.
    """

    def open(self, size: int) -> None:
        """Get ready for models of ``size`` numbers; called once, before the first call to a worker."""

    def start(self, name: str) -> Any:  # noqa: ANN401  (a handle that only the carrier understands)
        """Start a worker."""

    def call(self, worker: Any, method: str, *arguments: object) -> Any:  # noqa: ANN401
        """Have a worker do something; returns at once with what stands for the answer."""

    def wait(self, calls: Sequence[Any], timeout: float) -> Sequence[Any]:
        """Those of ``calls`` that have ended, at least one unless ``timeout`` seconds pass first."""

    def result(self, call: Any) -> Any:  # noqa: ANN401
        """The answer to an ended call, or what was raised in the worker.

        Raises:
            WorkerDiedError: there will be no answer.
        """

    def kill(self, worker: Any) -> None:  # noqa: ANN401
        """End a worker at once; its calls end with ``WorkerDiedError``."""

    def share(self, request: Request) -> Any:  # noqa: ANN401
        """Make a round's request available to all workers; the argument of ``Worker.begin``."""

    def take(self, worker: Any, packed: Any) -> Update:  # noqa: ANN401
        """An update that a worker packed with its ``Link``; it may lie in memory that the worker uses again."""

    def close(self) -> None:
        """End all workers; safe to call twice."""


class Link(Protocol):
    """A worker's side of a carrier."""

    def read(self, shared: Any) -> Request:  # noqa: ANN401
        """The request that ``Carrier.share`` made available."""

    def pack(self, update: Update, *, single: bool) -> Any:  # noqa: ANN401
        """An update on its way to the server: the worker's only one of this round, or a ``single`` client's."""

    @property
    def sums(self) -> Tensor | None:
        """float64 ``[layout.size]`` in which the round's sum is best kept, if there is such a place."""


class Place(NamedTuple):
    """What a worker should find on its machine.

    Attributes:
        label_names: the label space that the server sees.
        corpus: the corpus folder that the server has opened.
        memory: the folder in which clients keep tensors; empty where they keep none.
        mark: a file in it that only the server's own disk has; empty on one machine.
    """

    label_names: tuple[str, ...]
    corpus: str = ""
    memory: str = ""
    mark: str = ""


class Worker:
    """What runs in a worker process.

    Args:
        name: how records call it.
        link: its side of the carrier.
        search_path: the driver's module search path, so that plug-ins are found here too.
    """

    def __init__(self, name: str, link: Link, search_path: Sequence[str]) -> None:
        sys.path.extend(entry for entry in search_path if entry not in sys.path)
        self._name = name
        self._link = link
        self._host: Host | None = None
        self._request: Request | None = None

    def setup(self, settings: dict[str, Any], place: Place) -> HostInfo:
        """Open the federation, build the network, and say which clients can be played."""
        from clients.opening import memory_in, open_host
        from fedmlic.experiment import split_settings

        experiment, runtime = split_settings(settings)
        self._host = open_host(
            self._name,
            experiment,
            runtime,
            corpus_path=place.corpus,
            label_names=place.label_names,
            sums=self._link.sums,
            memory=memory_in(place.memory, place.mark),
        )
        return self._host.info()

    def begin(self, shared: Any) -> None:  # noqa: ANN401
        """Take in the round's request; the model moves to the host's device once."""
        self._request = None  # should this fail, nobody must train on the last round's model
        if self._host is None:
            return
        self._host.collect()  # forget what a broken-off round left behind
        request = self._link.read(shared)
        device = self._host.device
        shared = {name: tensor.to(device) for name, tensor in request.shared.items()}
        self._request = replace(request, flat=request.flat.to(device), shared=shared)

    def play(self, clients: Sequence[int]) -> tuple[list[Turn], list[Any]]:
        """Play ``clients``; their single updates if the request wants each, else none yet."""
        host, request = self._ready()
        turns = host.turns(request, clients)
        single = host.collect().updates if request.each else ()
        return turns, [self._link.pack(update, single=True) for update in single]

    def collect(self) -> tuple[list[Any], Mapping[str, Any]]:
        """The sum of what was played since ``begin``."""
        reply = self._ready()[0].collect()
        return [self._link.pack(update, single=False) for update in reply.updates], dict(reply.evaluation)

    def _ready(self) -> tuple[Host, Request]:
        if self._host is None or self._request is None:
            msg = "Expected setup and begin before play."
            raise RuntimeError(msg)
        return self._host, self._request


@dataclass
class _Slot:
    """One worker as the driver sees it.

    Attributes:
        name: of the slot; a replacement takes it over with a number added.
        worker: the carrier's handle.
        begun: the call that gives the worker the round's model.
        played: clients whose turns are in the worker's uncollected sum.
        pending: chunk under way by call.
    """

    name: str
    worker: Any
    begun: Any = None
    played: list[int] = field(default_factory=list)
    pending: dict[Any, list[int]] = field(default_factory=dict)


class _Queue:
    """Clients that are still to be played, costliest first, and how they are cut into chunks.

    Args:
        clients: in order.
        costs: expected cost of each.
        least: clients that a worker trains at once: chunks are not made smaller for no reason.
    """

    def __init__(self, clients: Sequence[int], costs: Mapping[int, float], least: int) -> None:
        self._clients = deque(clients)
        self._costs = costs
        self._least = least
        self._left = sum(map(self._cost, clients))
        self._suspects: set[int] = set()

    def __bool__(self) -> bool:
        return bool(self._clients)

    def put_first(self, client: int) -> None:
        """Have a client played at once and alone: a worker died while it played it."""
        self._suspects.add(client)
        self._clients.appendleft(client)
        self._left += self._cost(client)

    def put_last(self, clients: Sequence[int]) -> None:
        """Have clients played again."""
        self._clients.extend(clients)
        self._left += sum(map(self._cost, clients))

    def chunk(self, num_workers: int) -> list[int]:
        """The next clients for one worker: half of a fair share of the work that is left."""
        budget = self._left / (2 * num_workers)
        chunk = [self._clients.popleft()]
        cost = self._cost(chunk[0])
        while (
            self._clients
            and not {chunk[0], self._clients[0]} & self._suspects
            and (len(chunk) < self._least or cost + self._cost(self._clients[0]) <= budget)
        ):
            chunk.append(self._clients.popleft())
            cost += self._cost(chunk[-1])
        self._left -= cost
        return chunk

    def _cost(self, client: int) -> float:
        return self._costs.get(client, 1.0)


class Workers:
    """A transport of resident worker processes.

    Args:
        carrier: starts them and carries calls.
        num_workers: how many.
        runtime: time limits, and settings that every worker gets.
        settings_of: what differs between workers, by number (such as the GPU).
    """

    def __init__(
        self,
        carrier: Carrier,
        num_workers: int,
        runtime: Runtime,
        settings_of: Callable[[int], dict[str, Any]] | None = None,
    ) -> None:
        self._carrier = carrier
        self._runtime = runtime
        self._settings_of = settings_of or (lambda number: {})  # noqa: ARG005
        self._slots = [_Slot(f"worker-{i}", carrier.start(f"worker-{i}")) for i in range(num_workers)]
        self._setup: tuple[dict[str, Any], Place] | None = None
        self._num_deaths = 0
        self._deaths_in_a_row = 0

    def setup(self, experiment: Experiment, learner: Learner, place: Place | None = None) -> None:
        """Tell all workers which federation and network to open.

        Args:
            experiment: what they do.
            learner: the server's, for the size of the model and the label space.
            place: what they should find on their machine.
        """
        self._carrier.open(learner.resident.layout.size)
        settings = {**experiment.model_dump(), **self._runtime.model_dump()}
        self._setup = (settings, place or Place(tuple(learner.task.label_names)))

    def hosts(self) -> list[HostInfo]:
        """Set every worker up and ask what it can play.

        Raises:
            InputError, RuntimeError: what went wrong in a worker's set-up.
        """
        calls = {self._set_up(slot): slot for slot in self._slots}
        infos: dict[str, HostInfo] = {}
        while calls:  # another machine may first have to prepare the images: as long as a round may take
            ended = self._carrier.wait(list(calls), self._runtime.round_timeout)
            for call in ended or list(calls):
                slot = calls.pop(call)
                if ended:
                    infos[slot.name] = self._carrier.result(call)
                    continue
                self._carrier.kill(slot.worker)
                self._count_death(f"{slot.name} was not set up within {self._runtime.round_timeout:g} s")
                self._replace(slot)
                calls[self._set_up(slot)] = slot
        self._deaths_in_a_row = 0
        return [infos[slot.name] for slot in self._slots]

    def play(
        self, request: Request, clients: Sequence[int], costs: Mapping[int, float] | None = None
    ) -> Iterator[Reply]:
        """Hand out ``clients`` in chunks; yield turns as they end and the sums last."""
        shared = self._carrier.share(request)
        queue = _Queue(clients, costs or {}, self._runtime.vectorize if request.kind == "train" else 1)
        suspects: Counter[int] = Counter()
        for slot in self._slots:
            slot.played, slot.pending = [], {}
            slot.begun = self._carrier.call(slot.worker, "begin", shared)
        sums: list[Reply] = []
        while queue or any(slot.pending or slot.played for slot in self._slots):
            self._hand_out(queue)
            if any(slot.pending for slot in self._slots):
                yield from self._gather(request, shared, queue, suspects)
            else:
                yield from self._collect(shared, queue, sums)
        yield from sums

    def close(self) -> None:
        """Stop the workers."""
        self._slots = []
        self._carrier.close()

    def _set_up(self, slot: _Slot) -> Any:  # noqa: ANN401
        if self._setup is None:
            msg = "Expected setup before hosts."
            raise RuntimeError(msg)
        settings, place = self._setup
        own = self._settings_of(int(slot.name.split("+", maxsplit=1)[0].rpartition("-")[2]))
        return self._carrier.call(slot.worker, "setup", {**settings, **own}, place)

    def _hand_out(self, queue: _Queue) -> None:
        """Give every worker that has at most one call under way another chunk."""
        for depth in range(2):
            for slot in self._slots:
                if not queue or len(slot.pending) > depth:
                    continue
                chunk = queue.chunk(len(self._slots))
                slot.pending[self._carrier.call(slot.worker, "play", chunk)] = chunk

    def _gather(self, request: Request, shared: Any, queue: _Queue, suspects: Counter[int]) -> Iterator[Reply]:  # noqa: ANN401
        from fedmlic.protocol import Reply

        calls = [call for slot in self._slots for call in slot.pending]
        ended = self._carrier.wait(calls, self._runtime.round_timeout)
        if not ended:
            for silent in [each for each in self._slots if each.pending]:
                yield from self._bury(silent, shared, queue, suspects, self._killed(silent))
        for call in ended:
            slot = next((slot for slot in self._slots if call in slot.pending), None)
            if slot is None:
                continue  # of a worker that died a moment ago
            try:
                turns, single = self._carrier.result(call)
            except WorkerDiedError as error:
                yield from self._bury(slot, shared, queue, suspects, error)
                continue
            chunk = slot.pending.pop(call)
            self._deaths_in_a_row = 0
            if not request.each:
                slot.played.extend(chunk)
            yield Reply(tuple(turns), tuple(self._carrier.take(slot.worker, packed) for packed in single))

    def _collect(self, shared: Any, queue: _Queue, sums: list[Reply]) -> Iterator[Reply]:  # noqa: ANN401
        """Fetch the sums; a worker that died with its sum has its clients played again."""
        from fedmlic.protocol import Reply

        calls = {self._carrier.call(slot.worker, "collect"): slot for slot in self._slots if slot.played}
        waiting, silent = list(calls), []
        while waiting:
            ended = self._carrier.wait(waiting, self._runtime.round_timeout)
            if not ended:
                silent = waiting
                break
            waiting = [call for call in waiting if call not in ended]
        died: list[tuple[_Slot, Exception]] = [(calls[call], self._killed(calls[call])) for call in silent]
        for call, slot in calls.items():
            if call in silent:
                continue
            try:
                packed, evaluation = self._carrier.result(call)
            except WorkerDiedError as error:
                died.append((slot, error))
                continue
            slot.played = []
            sums.append(Reply((), tuple(self._carrier.take(slot.worker, each) for each in packed), evaluation))
        if died:
            # The others' memory will be written again when they play what was lost.
            sums[:] = [replace(reply, updates=tuple(_copied(update) for update in reply.updates)) for reply in sums]
        for slot, cause in died:
            yield from self._bury(slot, shared, queue, Counter(), cause)

    def _bury(
        self,
        slot: _Slot,
        shared: Any,  # noqa: ANN401
        queue: _Queue,
        suspects: Counter[int],
        error: Exception,
    ) -> Iterator[Reply]:
        """Replace a dead worker; play again what it had not handed over."""
        from fedmlic.protocol import Reply, Turn

        self._count_death(error)
        # Only the first unfinished chunk can have been running when the worker died.
        chunks = list(slot.pending.values())
        running, waiting = (chunks[0] if chunks else []), chunks[1:]
        failed = []
        for client in running:
            suspects[client] += 1
            if len(running) == 1 and suspects[client] > 1:
                reason = f"WorkerDied: {slot.name} died while it played client {client} alone ({error})"
                failed.append(Turn(client, slot.name, error=reason))
                self._deaths_in_a_row = 0  # the cause is found
            else:
                # At once and alone, so that a client that kills its worker kills no second one.
                queue.put_first(client)
        queue.put_last([*slot.played, *(c for chunk in waiting for c in chunk)])
        slot.played, slot.pending = [], {}
        self._replace(slot)
        self._set_up(slot)
        slot.begun = self._carrier.call(slot.worker, "begin", shared)
        yield Reply(tuple(failed))

    def _count_death(self, cause: object) -> None:
        self._num_deaths += 1
        self._deaths_in_a_row += 1
        if self._deaths_in_a_row > MAX_DEATHS_IN_A_ROW:
            msg = (
                f"Expected workers to live, got {self._deaths_in_a_row} deaths in a row: {cause}. "
                "Look for lack of memory; use fewer workers."
            )
            raise RuntimeError(msg)

    def _replace(self, slot: _Slot) -> None:
        """Start another worker in the place of a dead one."""
        slot.name = f"{slot.name.split('+', maxsplit=1)[0]}+{self._num_deaths}"
        slot.worker = self._carrier.start(slot.name)

    def _killed(self, slot: _Slot) -> WorkerDiedError:
        """End a worker that exceeds the time limit, wherever it stopped: in its set-up, before or during a turn.

        Nothing of it is waited for afterwards: one that is stopped may not even say that it has ended.
        """
        self._carrier.kill(slot.worker)
        return WorkerDiedError(f"no answer within {self._runtime.round_timeout:g} s")


def _copied(update: Update) -> Update:
    return replace(update, sums=update.sums.clone())
