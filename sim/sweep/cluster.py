"""The machines of a Ray cluster as places that play whole runs.

A run is one Ray task, in one process of some machine; Ray keeps that process for the next. The study's folder
lies on storage that all machines share: runs are written there, and corpora and federations on each machine's own disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fedmlic.errors import InputError, listing
from sim.engines.ray import start_ray
from sim.sweep.players import Order, Player, Report, Reporting

if TYPE_CHECKING:
    from fedmlic.experiment import Runtime

LOOK_S = 120.0
"""How long a machine may take to look for the study's folder; its first process imports this package."""


class Needs(NamedTuple):
    """What a run takes of its machine.

    Attributes:
        cpus: processors.
        gpus: GPUs, or the share of one.
    """

    cpus: int
    gpus: float


@dataclass
class _Task(Player):
    """A place of the cluster; which machine it is, is known when its run begins."""

    result: Any = None

    @property
    def where(self) -> str:
        """Until a machine has taken the run."""
        return "waiting"


class Cluster:
    """The machines of a Ray cluster.

    Args:
        runtime: with the address.

    Raises:
        InputError: no cluster at that address, or no room for a run there.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._ray = start_ray(0, runtime)
        self._machines = [node for node in self._ray.nodes() if node["Alive"]]
        self._tasks: list[_Task] = []
        self._remote = self._ray.remote(max_retries=0)(_play)
        self._mailbox: Any = None
        self._mail: Any = None
        self.needs = needs_of(runtime, has_gpus=any(node["Resources"].get("GPU") for node in self._machines))
        if not self.room:
            self._ray.shutdown()
            shown = ", ".join(_resources(node) for node in self._machines)
            msg = (
                f"Expected a machine of the cluster to have {self.needs.cpus} processors and {self.needs.gpus:g} GPUs "
                f"for a run, got {shown}. Lower threads, workers or gpus-per-worker, or set device=cpu."
            )
            raise InputError(msg)

    @property
    def room(self) -> int:
        """Runs that fit at the same time, machine by machine."""
        return sum(fitting(self.needs, node["Resources"]) for node in self._machines)

    @property
    def title(self) -> str:
        """The cluster, for people."""
        number = len(self._machines)
        return f"a cluster of {number} machine{'s' if number > 1 else ''}"

    def check_folder(self, folder: Path) -> None:
        """Refuse a folder that is another one on some machine.

        Args:
            folder: of the study, which exists here.

        Raises:
            InputError: a machine does not see it, or cannot write there.
        """
        token = secrets.token_hex(16)
        file = folder / f".seen-{token[:8]}"
        file.write_text(token, encoding="ascii")
        try:
            asked = [(node["NodeManagerAddress"], self._asked(node, file, token)) for node in self._machines]
            answers = [(where, self._answer(answer)) for where, answer in asked]
        finally:
            file.unlink()
        problems = [f"machine {where}: {answer}" for where, answer in answers if answer]
        if problems:
            msg = f"Expected {folder} to be one folder that every machine of the cluster shares"
            raise listing(msg, problems)

    def open(self, number: int) -> None:
        """Have so many places; each takes room when it has a run."""
        self._tasks = [_Task(place) for place in range(number)]
        self._mailbox = self._ray.remote(num_cpus=0)(_Mailbox).remote()

    @property
    def idle(self) -> list[_Task]:
        """Those without a run."""
        return [task for task in self._tasks if task.order is None]

    @property
    def busy(self) -> list[_Task]:
        """Those with one."""
        return [task for task in self._tasks if task.order is not None]

    def play(self, player: Player, order: Order) -> None:
        """Give a run to the cluster."""
        task = self._tasks[player.number]
        task.order = order
        resources = {"num_cpus": self.needs.cpus, "num_gpus": self.needs.gpus}
        task.result = self._remote.options(**resources).remote(order, self._mailbox, sys.path)

    def wait(self, timeout: float) -> list[Report]:
        """What runs have said."""
        if not self.busy:
            return []
        if self._mail is None:
            self._mail = self._mailbox.take.remote()
        waited = [self._mail, *(task.result for task in self.busy)]
        ready = self._ray.wait(waited, num_returns=1, timeout=timeout)[0]
        reports: list[Report] = []
        if self._mail in ready:
            mail, self._mail = self._ray.get(self._mail), None
            underway = {task.order.name for task in self.busy if task.order is not None}
            reports += [report for report in mail if report.name in underway]  # not of one that ended or died
        for task in self.busy:
            if task.result in ready and task.order is not None:
                reports.append(self._ended(task.order.name, task.result))
                task.order = task.result = None
        return reports

    def close(self) -> None:
        """Stop the runs and leave the cluster as it was."""
        for task in self.busy:
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.cancel(task.result, force=True)
        self._tasks = []
        self._ray.shutdown()

    def _ended(self, name: str, result: Any) -> Report:  # noqa: ANN401  (Ray's references are untyped)
        try:
            report: Report = self._ray.get(result)
        except self._ray.exceptions.RayError as error:
            return Report(name, "died", {"reason": f"its process on the cluster ended with {type(error).__name__}"})
        return report

    def _asked(self, node: dict[str, Any], file: Path, token: str) -> Any:  # noqa: ANN401
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        look = self._ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(_look)
        return look.remote(str(file), token)

    def _answer(self, answer: Any) -> str:  # noqa: ANN401
        """What a machine has against the folder; empty for nothing."""
        try:
            found: str = self._ray.get(answer, timeout=LOOK_S)
        except self._ray.exceptions.RayError as error:
            return f"it could not look: {str(error).strip().splitlines()[-1]}"
        return found


def needs_of(runtime: Runtime, *, has_gpus: bool) -> Needs:
    """What a run takes of its machine: a GPU, or ``gpus-per-worker``, where there are any and ``device`` lets it."""
    gpus = (runtime.gpus_per_worker or 1.0) if has_gpus and runtime.device in {"auto", "cuda"} else 0.0
    return Needs(runtime.threads * max(1, runtime.workers), gpus)


def fitting(needs: Needs, resources: dict[str, float]) -> int:
    """Runs that fit a machine at the same time.

    >>> fitting(Needs(2, 0.5), {"CPU": 16.0, "GPU": 2.0}), fitting(Needs(2, 0.0), {"CPU": 3.0})
    (4, 1)
    """
    rooms = [resources.get("CPU", 0.0) / needs.cpus]
    if needs.gpus:
        rooms.append(resources.get("GPU", 0.0) / needs.gpus)
    return int(min(rooms) + 1e-9)


def _resources(node: dict[str, Any]) -> str:
    found = node["Resources"]
    where = node["NodeManagerAddress"]
    return f"{found.get('CPU', 0):g} processors and {found.get('GPU', 0):g} GPUs at {where}"


# --- on the machines -----------------------------------------------------------------------


class _Mailbox:
    """Takes reports of all runs, for the sweep to fetch."""

    def __init__(self) -> None:
        self._reports: asyncio.Queue[Report] = asyncio.Queue()

    async def put(self, report: Report) -> None:
        """Take a report in."""
        self._reports.put_nowait(report)

    async def take(self) -> list[Report]:
        """All reports that are there, at least one."""
        found = [await self._reports.get()]
        while not self._reports.empty():
            found.append(self._reports.get_nowait())
        return found


def _play(order: Order, mailbox: Any, search_path: Sequence[str]) -> Report:  # noqa: ANN401
    """Play a run and return the report of its end."""
    import ray

    sys.path.extend(entry for entry in search_path if entry not in sys.path)
    ends: list[Report] = []

    def send(report: Report) -> None:
        if report.kind in {"ended", "failed"}:
            ends.append(report)  # it is the task's result: one way of saying it
        else:
            mailbox.put.remote(report)

    watch = Reporting(order.name, send)
    where = ray.util.get_node_ip_address()
    watch.say("placed", {"where": where})
    watch.play(order)
    return ends[-1] if ends[-1].kind == "ended" else _named(ends[-1], where)


def _named(report: Report, where: str) -> Report:
    """A failure with the machine on which it happened."""
    return report._replace(values={"reason": f"{report.values['reason']} (on the machine {where})"})


def _look(file: str, token: str) -> str:
    """What a machine has against the folder of a file; empty for nothing."""
    try:
        if Path(file).read_text(encoding="ascii") != token:
            return "another file is there"
        mine = Path(f"{file}-{secrets.token_hex(4)}")
        mine.write_text(token, encoding="ascii")
        mine.unlink()
    except OSError as error:
        return f"{type(error).__name__}: {error}. Give a folder on shared storage with --out"
    return ""
