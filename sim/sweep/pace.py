"""How long runs take, learned from those that are played, and how much disk they need."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from sim.sweep.plan import Job, Plan


class Cost(NamedTuple):
    """What a run was measured to cost.

    Attributes:
        fixed: seconds besides rounds.
        round: seconds per round.
        checkpoint: bytes of one checkpoint.
        other: bytes of a run folder per round, besides checkpoints and frozen tensors.
        frozen: bytes of the frozen tensors, which runs of a study share.
    """

    fixed: float
    round: float
    checkpoint: float = 0.0
    other: float = 0.0
    frozen: float = 0.0

    def seconds(self, rounds: int) -> float:
        """Of a run of so many rounds."""
        return self.fixed + rounds * self.round

    def bytes(self, rounds: int, keep: int) -> float:
        """Of a run that keeps so many checkpoints beside the best, without frozen tensors."""
        return min(keep + 1, max(rounds, 1)) * self.checkpoint + rounds * self.other


def measured(run: Path, wall: float, rounds: int, seconds: float) -> Cost:
    """The cost of a run that took ``wall`` seconds, ``seconds`` of them in its ``rounds``."""
    sizes = {file: file.stat().st_size for file in run.rglob("*") if file.is_file()}
    checkpoints = [size for file, size in sizes.items() if file.suffix == ".safetensors" and file.parent != run]
    each = statistics.fmean(checkpoints) if checkpoints else 0.0
    rounds = max(rounds, 1)  # a model that never trains
    frozen = sizes.get(run / "frozen.safetensors", 0)
    other = sum(sizes.values()) - sum(checkpoints) - frozen
    return Cost(max(wall - seconds, 0.0), seconds / rounds, each, other / rounds, frozen)


@dataclass
class _Underway:
    job: Job
    began: float
    first_round: int = 0
    started: float = 0.0
    rounds: int = 0


@dataclass
class Pace:
    """Estimates from what was measured; a row without a measured run costs what the others do on average."""

    costs: dict[int, list[Cost]] = field(default_factory=dict)
    _underway: dict[str, _Underway] = field(default_factory=dict)

    def note(self, job: Job, cost: Cost) -> None:
        """Learn from a run of a row."""
        self.costs.setdefault(id(job.row), []).append(cost)

    def begin(self, job: Job) -> None:
        """A run is being played."""
        now = time.monotonic()
        self._underway[job.identity] = _Underway(job, now, started=now)

    def start(self, identity: str, resumed_round: int) -> None:
        """Its rounds begin."""
        run = self._underway[identity]
        run.started, run.first_round, run.rounds = time.monotonic(), resumed_round, resumed_round

    def round(self, identity: str, number: int) -> None:
        """It has ended a round."""
        self._underway[identity].rounds = number

    def end(self, identity: str, folder: Path | None) -> None:
        """It is over; learn from it where it is complete."""
        run = self._underway.pop(identity, None)
        if run is None or folder is None:
            return
        wall, played = time.monotonic() - run.began, run.rounds - run.first_round
        if played > 0:
            self.note(run.job, measured(folder, wall, played, min(wall, time.monotonic() - run.started)))

    def cost(self, job: Job) -> Cost | None:
        """Of a run: the mean over its row's, else over all rows', else from rounds that are under way."""
        return _mean(self.costs[id(job.row)]) if self.costs.get(id(job.row)) else self._elsewhere()

    def _elsewhere(self) -> Cost | None:
        """Of a run of a row without a measured one."""
        known = [_mean(costs) for costs in self.costs.values()]
        if known:
            return _mean(known)
        now = time.monotonic()
        running = [
            Cost(run.started - run.began, (now - run.started) / (run.rounds - run.first_round))
            for run in self._underway.values()
            if run.rounds > run.first_round
        ]
        return _mean(running) if running else None

    def left(self, plan: Plan, num_players: int) -> float | None:
        """Seconds until the study is complete; ``None`` before a round was measured."""
        jobs = list(plan.ready())
        # Once for all jobs: there may be thousands of them, and this is asked for every second.
        own = {row: _mean(found) for row, found in self.costs.items() if found}
        other = self._elsewhere()
        costs = [(job, own.get(id(job.row), other)) for job in jobs]
        if any(cost is None for _, cost in costs):
            return None
        each = [cost.seconds(job.experiment.num_rounds) for job, cost in costs if cost is not None]
        total = sum(each) - sum(min(self._spent(job), seconds) for (job, _), seconds in zip(costs, each, strict=True))
        total += plan.num_unknown * (statistics.fmean(each) if each else 0.0)
        longest = max(each, default=0.0)
        return max(total / num_players, longest if len(each) <= num_players else 0.0)

    def _spent(self, job: Job) -> float:
        run = self._underway.get(job.identity)
        return time.monotonic() - run.began if run is not None else 0.0


def disk(plan: Plan, costs: Mapping[int, list[Cost]], keep: int) -> float | None:
    """Bytes of the runs that are left; ``None`` where nothing was measured."""
    known = [_mean(found) for found in costs.values()]
    if not known:
        return None
    own, other = {row: _mean(found) for row, found in costs.items()}, _mean(known)
    each = [own.get(id(job.row), other).bytes(job.experiment.num_rounds, keep) for job in plan.ready()]
    frozen = sum(cost.frozen for cost in known)  # a row's own, as its seeds share them
    return sum(each) + plan.num_unknown * (statistics.fmean(each) if each else 0.0) + frozen


def _mean(costs: list[Cost]) -> Cost:
    return Cost(*(statistics.fmean(values) for values in zip(*costs, strict=True)))
