"""Who plays whole runs, one after another: processes of this machine, in which what is imported and mapped stays.

The machines of a Ray cluster are in ``sim/sweep/cluster.py``. A process of this machine is forked from a server
that has imported everything already. It plays each run that it is sent in a folder of its own, reports what happens,
and waits for the next. When the sweep is gone, however it ended, its players end at once; their runs go on from their
checkpoints with the next sweep.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from filelock import FileLock, Timeout

from fedmlic.record import is_run
from sim.engines.processes import context_of_processes, nameless_main
from sim.watch import Watch

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, SpawnContext

    from fedmlic.experiment import Experiment
    from fedmlic.record import RunFolder

IMPORTS = (
    "strategies.server.server",
    "clients.host",
    "fedmlic.tensorboard",
    "sim.run",
    "sim.data.federation_warnings",
    "sim.engines.inprocess",
    "pandas",
    "pyarrow.parquet",
)
"""What playing a run imports, besides what workers do."""

SHOWN = ("round", "seconds", "loss", "server/mAP", "server/val/mAP", "client/mAP/mean")
"""What of an event is reported."""

LOCK_S = 20.0
"""How long the player of a sweep that was killed may take to let go of its run."""


class Order(NamedTuple):
    """A run to play.

    Attributes:
        name: of the run in the sweep.
        settings: of its experiment and runtime; of the runtime alone where the run goes on.
        folder: of the run.
    """

    name: str
    settings: Mapping[str, Any]
    folder: str


class Report(NamedTuple):
    """What a player says.

    Attributes:
        name: of the run.
        kind: ``placed``, ``building``, ``started``, ``round``, ``warning``, ``ended``, ``failed``, ``died``.
        values: what belongs to it.
    """

    name: str
    kind: str
    values: Mapping[str, Any]


@dataclass
class Player:
    """One place for a run as the sweep sees it.

    Attributes:
        number: from 0.
        order: the run that it plays; ``None`` for none.
    """

    number: int
    order: Order | None = None

    @property
    def where(self) -> str:
        """Where it plays, for people; empty where a report ``placed`` says it."""
        return ""


class Players(Protocol):
    """Places in which runs are played at the same time."""

    def open(self, number: int) -> None:
        """Have so many places; each starts with its first run."""

    @property
    def idle(self) -> Sequence[Player]:
        """Those without a run."""

    @property
    def busy(self) -> Sequence[Player]:
        """Those with one."""

    def play(self, player: Player, order: Order) -> None:
        """Give a run to an idle player."""

    def wait(self, timeout: float) -> list[Report]:
        """What players have said, after at most ``timeout`` seconds; of one that died, ``died``."""

    def close(self) -> None:
        """End all of them; a run under way stops where it is."""


@dataclass
class _Process(Player):
    """A process of this machine."""

    process: Any = None
    pipe: connection.Connection | None = None

    @property
    def where(self) -> str:
        """The number of the process, from 1."""
        return f"{self.number + 1}"


@dataclass
class Processes:
    """Processes of this machine that play runs.

    Args:
        imports: modules that runs need besides what every run does.
        log: file that takes what they print.
    """

    imports: Sequence[str]
    log: Path
    _context: ForkServerContext | SpawnContext = field(init=False)
    _all: list[_Process] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        """Begin to import."""
        self._context = context_of_processes([*IMPORTS, *self.imports])

    def open(self, number: int) -> None:
        """Have so many players; each starts with its first run."""
        self._all = [_Process(number) for number in range(number)]

    @property
    def idle(self) -> list[_Process]:
        """Those without a run."""
        return [player for player in self._all if player.order is None]

    @property
    def busy(self) -> list[_Process]:
        """Those with one."""
        return [player for player in self._all if player.order is not None]

    def play(self, player: Player, order: Order) -> None:
        """Send a run to an idle player."""
        own = self._all[player.number]
        if own.pipe is None:
            self._start(own)
        own.order = order
        with contextlib.suppress(OSError):  # that it is gone is noticed by those who wait
            if own.pipe is not None:
                own.pipe.send(order)

    def wait(self, timeout: float) -> list[Report]:
        """What players have said, after at most ``timeout`` seconds; a process that died says ``died``."""
        pipes = {player.pipe: player for player in self.busy if player.pipe is not None}
        reports: list[Report] = []
        for pipe in connection.wait(list(pipes), timeout):
            reports += _received(pipes[pipe])  # type: ignore[index]
        return reports

    def close(self) -> None:
        """End all of them; a run under way stops where it is."""
        for player in self._all:
            if player.pipe is not None:
                player.pipe.close()
        for player in self._all:
            if player.process is not None:
                player.process.join(5)
                if player.process.exitcode is None:
                    player.process.kill()
                    player.process.join()
        self._all = []

    def _start(self, player: _Process) -> None:
        ours, theirs = self._context.Pipe()
        arguments = (theirs, str(self.log), dict(os.environ), list(sys.path))
        # No daemon: a run of several workers has children of its own.
        player.process = self._context.Process(target=_serve, args=arguments, name=f"player-{player.number}")
        with nameless_main():
            player.process.start()
        theirs.close()
        player.pipe = ours


def _received(player: _Process) -> list[Report]:
    """Everything that one player has sent."""
    reports: list[Report] = []
    pipe, order = player.pipe, player.order
    try:
        while pipe is not None and pipe.poll():
            report: Report = pipe.recv()
            reports.append(report)
            if report.kind in {"ended", "failed"}:
                player.order = None
    except (EOFError, OSError):
        player.process.join(5)
        code = player.process.exitcode
        ended = player.order is None  # it said so before it died
        player.pipe = player.order = None
        if order is not None and not ended:
            how = f"signal {-code}" if code is not None and code < 0 else f"code {code}"
            reports.append(Report(order.name, "died", {"reason": f"its process ended with {how}"}))
    return reports


# --- in the player -------------------------------------------------------------------------


class Reporting(Watch):
    """Passes on what a display of the sweep shows.

    Args:
        name: of the run.
        send: takes a report.
    """

    def __init__(self, name: str, send: Callable[[Report], object]) -> None:
        self._name, self._send = name, send
        self._lock = threading.Lock()  # events are written by a thread of their own

    def say(self, kind: str, values: Mapping[str, Any]) -> None:
        """Send a report; a sweep that is gone ends this process elsewhere."""
        with self._lock, contextlib.suppress(OSError):
            self._send(Report(self._name, kind, dict(values)))

    def play(self, order: Order) -> None:
        """Play a run and say how it ended; a failed run is named, and others go on."""
        try:
            self.say("ended", play(order, self))
        except (Exception, SystemExit) as error:  # noqa: BLE001  (whatever it is, the sweep names it)
            traceback.print_exc()
            self.say("failed", {"reason": f"{type(error).__name__}: {error}"})

    def building(self, what: str, done: int, total: int) -> None:
        """Images are being prepared."""
        self.say("building", {"what": what, "done": done, "total": total})

    def warning(self, text: str) -> None:
        """Something about the data."""
        self.say("warning", {"text": text})

    def started(self, folder: RunFolder, experiment: Experiment, resumed_round: int) -> None:
        """Rounds begin."""
        del folder
        self.say("started", {"round": resumed_round, "rounds": experiment.num_rounds})

    def event(self, kind: str, values: Mapping[str, object]) -> None:
        """A round ended, or something is to be known."""
        if kind == "round":
            self.say(kind, {name: values[name] for name in SHOWN if name in values})
        elif kind == "warning":
            self.say(kind, values)


def _serve(pipe: connection.Connection, log: str, environment: Mapping[str, str], search_path: Sequence[str]) -> None:
    """Play one run after another until the sweep is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the sweep's business
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(environment)
    sys.path.extend(entry for entry in search_path if entry not in sys.path)
    _print_into(Path(log))
    orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(pipe, orders), daemon=True).start()
    while True:
        order = orders.get()
        Reporting(order.name, pipe.send).play(order)


def _listen(pipe: connection.Connection, orders: queue.SimpleQueue[Order]) -> None:
    """Take in orders; end the process, also in the middle of a run, when the sweep is gone."""
    while True:
        try:
            orders.put(pipe.recv())
        except (EOFError, OSError):
            os._exit(1)


def _print_into(log: Path) -> None:
    """What is printed here belongs neither into the sweep's display nor beside its JSON."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(handle, stream)
    os.close(handle)


def play(order: Order, watch: Watch) -> dict[str, Any]:
    """Play a run, or go on with it; what ``fedmlic run --json`` prints."""
    from fedmlic.experiment import split_settings
    from sim.run import resume, run

    folder = Path(order.folder)
    experiment, runtime = split_settings(order.settings)
    if not is_run(folder):
        return run(experiment, runtime, folder, watch)
    with contextlib.suppress(Timeout), FileLock(folder / ".lock", timeout=LOCK_S):
        pass  # of a sweep that was killed a moment ago
    changes = {key: value for key, value in runtime.model_dump().items() if key != "out"}
    return resume(folder, watch, changes)
