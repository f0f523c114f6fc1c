"""Who takes part in ``rounds.py``: how each is started, and how its log is read.

Every contestant gets the same clients, images, network, local training, number of rounds and
of processes. Each says when its first client began to train and when each round ended, with
the clients and images that took part and the mean training loss.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from measure import fedmlic, read_events
from workloads import workload_of

PEERS = Path(__file__).resolve().parent / "peers"
LOOP, FLOWER, PFL, FLWR_RUN = "loop", "flower-default", "pfl", "flwr-run"


@dataclass(frozen=True)
class Job:
    """One run of one contestant.

    Attributes:
        workload: its name.
        data: the exported images.
        home: FedMLIC's corpora and federations, built.
        folder: private to this run.
        rounds: how many.
        processes: that train.
        device: ``cpu`` or ``cuda``.
        num_gpus: of the machine, if they are used.
    """

    workload: str
    data: Path
    home: Path
    folder: Path
    rounds: int
    processes: int
    device: str
    num_gpus: int

    @property
    def gpus_per_process(self) -> float:
        """The share of a GPU that each process gets."""
        return self.num_gpus * 10_000 // self.processes / 10_000 if self.num_gpus else 0.0


class Round(NamedTuple):
    """One round as its contestant saw it.

    Attributes:
        time: its end, seconds since 1970.
        clients: that trained.
        images: they trained on.
        loss: mean over clients of the mean loss of their steps.
    """

    time: float
    clients: int
    images: int
    loss: float


class Story(NamedTuple):
    """What a contestant wrote down."""

    first_client: float | None
    rounds: list[Round]


@dataclass(frozen=True)
class Contestant:
    """One contestant.

    Attributes:
        key: a short name without spaces.
        title: for people.
        command: of a job.
        read: what the job wrote down.
        obstacle: why a job cannot be done; empty if it can.
    """

    key: str
    title: str
    command: Callable[[Job], list[str]]
    read: Callable[[Job], Story]
    obstacle: Callable[[Job], str] = lambda _: ""


# --- FedMLIC ---------------------------------------------------------------------------


def ours(engine: str, key: str, title: str) -> Contestant:
    """``fedmlic run`` with an engine; ``NAME,key=value,...`` changes further settings."""
    name, *changes = engine.split(",") if engine else ("",)

    def command(job: Job) -> list[str]:
        settings = {
            **workload_of(job.workload).settings,
            "num-rounds": job.rounds,
            "device": job.device,
            "home": str(job.home),
        }
        pairs = [f"{setting}={json.dumps(value)}" for setting, value in settings.items()]
        shares = ["--workers", str(job.processes), "--gpus-per-worker", str(job.gpus_per_process)]
        choice = ["--engine", name] if name else []
        return [*fedmlic(), "run", *pairs, *changes, *choice, *shares, "--out", str(job.folder / "run"), "--json"]

    return Contestant(key, title, command, read_run)


def read_run(job: Job) -> Story:
    """From the event log of a run folder."""
    events = list(read_events(job.folder / "run" / "events.jsonl"))
    rounds = [
        Round(e["time"], e["num-clients"] - e["num-failed"], e["num-images"], e["loss"])
        for e in events
        if e["event"] == "round"
    ]
    started = [e["started"] for e in events if e["event"] == "client"]
    return Story(min(started, default=None), rounds)


# --- the others ------------------------------------------------------------------------


def read_clock(job: Job) -> Story:
    """From what ``peers/common.Clock`` wrote."""
    events = list(read_events(job.folder / "clock.jsonl"))
    rounds = [Round(e["time"], int(e["clients"]), int(e["images"]), e["loss"]) for e in events if e["event"] == "round"]
    return Story(next((e["time"] for e in events if e["event"] == "first-client"), None), rounds)


def peer(script: str, job: Job, processes: int, start: Sequence[str]) -> list[str]:
    """The command line of a script of ``peers/``."""
    share = job.gpus_per_process if processes > 1 else float(job.num_gpus > 0)
    options = ["--rounds", job.rounds, "--processes", processes, "--device", job.device, "--gpus-per-process", share]
    arguments = [job.workload, job.data, job.folder / "clock.jsonl", *options]
    return [*start, str(PEERS / script), *map(str, arguments)]


def loop(processes: int) -> Contestant:
    """A plain PyTorch loop."""
    return Contestant(
        f"{LOOP}-{processes}",
        f"plain loop, {processes} process{'es' * (processes > 1)}",
        lambda job: peer("loop.py", job, processes, [sys.executable]),
        read_clock,
    )


def flower_default(processes: int) -> Contestant:
    """Flower with one node per client."""
    return Contestant(
        FLOWER,
        "Flower, one node per client",
        lambda job: peer("flower_default.py", job, processes, [sys.executable]),
        read_clock,
    )


def pfl(processes: int, python: str) -> Contestant:
    """The peer pfl in an environment of its own, under ``torchrun`` if there are several processes."""

    def command(job: Job) -> list[str]:
        start = [python]
        if processes > 1:
            count = ["--nproc-per-node", str(processes)]
            start = [python, "-m", "torch.distributed.run", "--standalone", "--nnodes", "1", *count]
        return peer("pfl_peer.py", job, processes, start)

    def obstacle(job: Job) -> str:
        if not python:
            return "give --pfl-python the interpreter of an environment with pfl (docs/benchmarks.md says how)"
        if processes > 1 and 0 < job.num_gpus < processes:
            return f"pfl gives every process a GPU of its own, and there are {job.num_gpus} for {processes}"
        return ""

    title = f"pfl, {processes} process{'es' * (processes > 1)}"
    return Contestant(f"{PFL}-{processes}", title, command, read_clock, obstacle)


def everybody(engines: Sequence[str], processes: int, pfl_python: str) -> list[Contestant]:
    """All contestants; the first is the one that the others are compared with.

    Args:
        engines: of ``fedmlic run``; empty text is the default engine.
        processes: that train.
        pfl_python: an interpreter with pfl, or empty text.
    """
    own = [ours(e, f"fedmlic-{e}" if e else "fedmlic", f"fedmlic run{f' ({e})' if e else ''}") for e in engines]
    counts = sorted({1, processes})
    return [
        *own,
        ours("flower", FLWR_RUN, "flwr run (--engine flower)"),
        *(loop(count) for count in counts),
        flower_default(processes),
        *(pfl(count, pfl_python) for count in counts),
    ]
