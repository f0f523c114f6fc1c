"""Play a study: hand its runs to processes until every row of the table is complete."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fedmlic.errors import InputError, listing
from fedmlic.experiment import Runtime, split_settings
from sim.comparison.read import metric_of
from sim.console import duration, number
from sim.engines.endings import own
from sim.engines.processes import late_imports
from sim.sweep.folder import StudyFolder
from sim.sweep.pace import Cost, Pace, disk, measured
from sim.sweep.plan import Choice, Job, Outcome, Plan, shown_choice
from sim.sweep.players import Order, Player, Players, Report
from sim.sweep.search import shown_value
from sim.sweep.study import rows_with
from sim.sweep.view import SweepView, size

if TYPE_CHECKING:
    from sim.sweep.search import Search
    from sim.sweep.study import Row, Study

MAX_DEATHS = 2
"""Processes that may die with a run before it counts as failed."""

CALIBRATED_ROWS = 6
"""Most rows of which a dry run plays two rounds."""

CALIBRATION_ROUNDS = 2


class Crew(NamedTuple):
    """How runs are shared out.

    Attributes:
        players: runs that are played at the same time.
        engine: that carries each.
        workers: of each.
        devices: that players are dealt to in turn; empty where the runtime says.
    """

    players: int
    engine: str
    workers: int
    devices: tuple[str, ...] = ()

    def changes(self, number: int) -> dict[str, Any]:
        """Runtime settings of a run of player ``number``."""
        device = {"device": self.devices[number % len(self.devices)]} if self.devices else {}
        return {"engine": self.engine, "workers": self.workers, "ray_address": "", **device}


def check_carrier(runtime: Runtime) -> None:
    """Refuse what a sweep does not play on.

    Raises:
        InputError: Flower, or Ray as the engine of single runs.
    """
    if runtime.engine in {"ray", "flower"}:
        msg = (
            f"Expected a sweep to play whole runs, on this machine or a cluster, got engine={runtime.engine}. Leave it "
            "out; --ray-address plays on a Ray cluster. Single runs play there with 'fedmlic run'."
        )
        raise InputError(msg)


def crew_for(runtime: Runtime, jobs: int, num_runs: int, cluster_room: int = 0) -> Crew:
    """How many runs at once, and how each is played.

    On CPUs as many runs as there are cores, each in one process: nothing is then shared or waited for. With fewer
    runs than that, or ``workers`` set, each has several worker processes. With GPUs one run per GPU, or
    as many as ``gpus-per-worker`` lets share one. More runs at once where ``jobs`` says so.

    Args:
        runtime: of every run.
        jobs: runs at the same time; 0 for as many as there is room for.
        num_runs: to play.
        cluster_room: runs that fit a cluster at the same time; 0 to play on this machine. There a run has ``workers``
            processes, one by default.
    """
    if cluster_room:
        engine = "processes" if runtime.workers > 1 else "inprocess"
        return Crew(min(jobs or cluster_room, max(1, num_runs)), engine, runtime.workers * (engine == "processes"))
    num_runs = max(1, num_runs)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpus = _gpus(runtime)
    if gpus:
        at_once = jobs or max(1, int(len(gpus) / (runtime.gpus_per_worker or 1.0) + 1e-9))
        return Crew(min(at_once, num_runs), "inprocess", 0, gpus)
    room = max(1, cores // runtime.threads)
    players = min(jobs or max(1, room // max(1, runtime.workers)), num_runs)
    workers = runtime.workers or max(1, room // players)
    if runtime.engine == "inprocess" or (workers == 1 and runtime.engine == "auto"):
        return Crew(players, "inprocess", 0)
    return Crew(players, "processes", workers)


def _gpus(runtime: Runtime) -> tuple[str, ...]:
    if runtime.device not in {"auto", "cuda"}:
        return ()
    import torch

    return tuple(f"cuda:{number}" for number in range(torch.cuda.device_count()))


def imports_of(rows: Sequence[Row]) -> list[str]:
    """Large packages that entries of the study import late."""
    found: dict[str, None] = {}
    for row in rows:
        experiment = row.experiment()
        for key in ("model", "method"):
            found |= dict.fromkeys(late_imports(key, getattr(experiment, key)))
    return list(found)


def check_rows(rows: Sequence[Row], search: Search | None, runtime: Runtime) -> None:
    """Refuse what cannot work, for all rows at once; of ranges their ends are looked at.

    References are looked at where all other rows can be run.

    Raises:
        InputError: entries or combinations that are wrong.
    """
    own = [row for row in rows if not row.reference]
    for checked in (own, [row for row in rows if row.reference]):
        problems = list(dict.fromkeys(_problems(checked, search, runtime)))
        if len(problems) == 1:
            raise InputError(problems[0])
        if problems:
            msg = "Expected the rows of a study to be experiments that can be run"
            raise listing(msg, problems, complete=True)


def _problems(rows: Sequence[Row], search: Search | None, runtime: Runtime) -> Iterator[str]:
    """What is wrong with rows, a text each."""
    from strategies.server.check import check_experiment

    for row in rows:
        for choice in search.ends() if search else [{}]:
            experiment = row.experiment(**choice)
            try:
                check_experiment(experiment, runtime)
            except InputError as error:
                text = str(error)
                if row.reference:
                    text = (
                        f"Expected reference {row.reference} to be an experiment that can be run, got this one of "
                        f"num-rounds={experiment.num_rounds}, which follows from the federation's rounds and clients: "
                        f"{text} Raise num-rounds, or leave this reference out (references = [...] in a study file)."
                    )
                yield text


@dataclass
class Throttle:
    """Does something repeatedly, but so seldom that it takes no more than a twentieth of the time.

    What a study writes and counts grows with its runs, of which there may be thousands that take a second each.
    """

    _not_before: float = 0.0

    def run(self, act: Callable[[], None]) -> None:
        """Do it, unless that was too short a time ago."""
        began = time.monotonic()
        if began < self._not_before:
            return
        act()
        ended = time.monotonic()
        self._not_before = ended + 19 * (ended - began)


@dataclass
class Sweep:
    """One study being played.

    Args:
        about: what ``study.json`` says besides its rows.
        plan: its runs.
        folder: where they lie.
        runtime: of every run.
        crew: how they are shared out.
        players: that play them.
        view: that shows it.
    """

    about: Mapping[str, Any]
    plan: Plan
    folder: StudyFolder
    runtime: Runtime
    crew: Crew
    players: Players
    view: SweepView
    _pace: Pace = field(default_factory=Pace)
    _jobs: dict[str, Job] = field(default_factory=dict)
    _deaths: dict[str, int] = field(default_factory=dict)
    _said: set[str] = field(default_factory=set)
    _counting: Throttle = field(default_factory=Throttle)
    _writing: Throttle = field(default_factory=Throttle)

    def run(self) -> None:
        """Play everything that is left; failed runs are in the plan's outcomes."""
        self.players.open(self.crew.players)
        self._settle()
        self._write()
        try:
            while self.players.busy or not self.plan.is_over:
                self._hand_out()
                self._counting.run(self._count)
                for report in self.players.wait(1.0):
                    self._take(report)
                self._writing.run(self._write)
        finally:
            self._write()

    def _hand_out(self) -> None:
        if not self.players.idle:
            return
        underway = {player.order.name for player in self.players.busy if player.order is not None}
        waiting = (job for job in self.plan.ready() if job.identity not in underway)
        for player, job in zip(self.players.idle, waiting, strict=False):
            self._play(player, job)

    def _play(self, player: Player, job: Job) -> None:
        self._jobs[job.identity] = job
        settings = {**job.experiment.model_dump(), **self.runtime.model_dump(), **self.crew.changes(player.number)}
        self.view.began(job.identity, job.label, player.where, job.experiment.num_rounds)
        self._pace.begin(job)
        self.players.play(player, Order(job.identity, settings, str(self.folder.run_of(job))))

    def _take(self, report: Report) -> None:
        """Act on what a player says."""
        name, values = report.name, report.values
        if report.kind == "placed":
            self.view.placed(name, str(values["where"]))
        elif report.kind == "started":
            self._pace.start(name, int(values["round"]))
        elif report.kind == "round":
            self._pace.round(name, int(values["round"]))
            self.view.round(name, values)
        elif report.kind == "building":
            self.view.building(name, values)
        elif report.kind == "warning":
            self._warn(str(values["text"]))
        elif report.kind == "died" and self._deaths.get(name, 0) + 1 < MAX_DEATHS:
            self._deaths[name] = self._deaths.get(name, 0) + 1
            self._pace.end(name, None)
            self.view.ended(name, f"{values['reason']}; it goes on from its last checkpoint", "yellow")
        else:
            self._end(self._jobs[name], str(values.get("reason", "")))

    def _end(self, job: Job, reason: str) -> None:
        place = self.folder.run_of(job)
        self._pace.end(job.identity, None if reason else place)
        self.plan.outcomes[job.identity] = Outcome(place, reason)
        if reason:
            self.view.ended(job.identity, f"FAILED: {reason.splitlines()[0]}", "red")
        else:
            self.folder.share_frozen(place)
            self.view.ended(job.identity, _scores(place))
        self._settle()

    def _settle(self) -> None:
        """Say what searches have come to since."""
        self.folder.note_complete(self.plan)
        for row in self.plan.rows if self.plan.search else ():
            choice = self.plan.choice(row) if row.like is None else None  # another row's choice was said with that row
            if choice is not None and choice.values != {} and row.label not in self._said:
                self._said.add(row.label)
                self._say_choice(row, choice)

    def _write(self) -> None:
        """Look at the data of complete runs, and write the table."""
        warn_of_data(self.view, self.folder, self.plan)
        self.folder.write(self.plan, self.about)

    def _say_choice(self, row: Row, choice: Choice) -> None:
        if choice.values is None:
            self.view.line(f"{row.label}: nothing chosen, every run of its search failed", "red")
            return
        metric = self.plan.search.metric if self.plan.search else ""
        self.view.line(f"{row.label}: chosen {shown_choice(choice.values)} ({metric} {number(choice.score)})")
        if choice.num_failed:
            self.view.warning(f"{row.label}: {choice.num_failed} runs of its search failed and were left out")
        for key in choice.edges:
            value = shown_value(choice.values[key])
            self.view.warning(
                f"{row.label}: best {key} {value} is at the border of what was searched: widen the grid or range"
            )

    def _warn(self, text: str) -> None:
        """Say a warning of the data once, however many runs repeat it."""
        if text not in self._said:
            self._said.add(text)
            self.view.warning(text)

    def _count(self) -> None:
        total = sum(1 for _ in self.plan.jobs()) + self.plan.num_unknown
        ended = sum(1 for job in self.plan.jobs() if job.identity in self.plan.outcomes)
        self.view.counted(total, ended, self._pace.left(self.plan, self.crew.players))


def warn_of_data(view: SweepView, folder: StudyFolder, plan: Plan) -> None:
    """Name complete runs that should not stand beside later ones, each once."""
    names = folder.newly_outdated(plan)
    if names:
        what = "1 complete run was" if len(names) == 1 else f"{len(names)} complete runs were"
        view.warning(
            f"{what} given other images or labels than later runs whose settings ask for the same: the data set, the "
            "code that reads it or deals it out, or a file that a regime reads was changed between them. Stop, delete "
            f"these folders and give the same command again to have them played again: {', '.join(names)}"
        )


def _scores(run: Path) -> str:
    found = []
    for title, metric in (("val mAP", "server/val/mAP"), ("test mAP", "server/mAP"), ("client mAP", "client/mAP/mean")):
        try:
            found.append(f"{title} {number(metric_of(run, metric))}")
        except InputError:
            continue
    return "  ".join(found) or "complete"


def about(study: Study, rows: Sequence[Row]) -> dict[str, Any]:
    """What ``study.json`` says besides its rows; whose the references are, only where not all rows have them.

    Args:
        study: what is asked.
        rows: all of it, without references.
    """
    search = study.search.model_dump() if study.search else None
    axes = {axis: list(values) for axis, values in study.axes.items()}
    seeds = list(dict.fromkeys(study.seeds))
    chosen = rows_with(rows, study.references_of)
    whose = [row.label for row in chosen] if len(chosen) < len(rows) else []
    return {"base": study.base, "axes": axes, "seeds": seeds, "search": search, "references_of": whose}


def calibrate(plan: Plan, runtime: Runtime, players: Players, crew: Crew) -> dict[int, list[Cost]]:
    """Play two rounds of some rows in a folder that is thrown away, and measure them.

    A run that needs more rounds, since its method trains in stages, is played as it is and ended after two.

    Returns:
        Costs by the ``id`` of a row; of at most ``CALIBRATED_ROWS`` rows.
    """
    costs: dict[int, list[Cost]] = {}
    firsts: dict[int, Job] = {}
    ready = list(plan.ready())
    # A model that never trains says nothing of rounds.
    for job in [job for job in ready if job.experiment.num_rounds] or ready:
        firsts.setdefault(id(job.row), job)
    with tempfile.TemporaryDirectory(prefix="fedmlic-") as temporary:
        own(Path(temporary))
        for number_, job in enumerate(list(firsts.values())[:CALIBRATED_ROWS]):
            rounds = min(CALIBRATION_ROUNDS, job.experiment.num_rounds)
            settings = {**job.experiment.model_dump(), **runtime.model_dump(), **crew.changes(0)}
            place = Path(temporary) / str(number_)
            ended_early = not _can_have(job, rounds, runtime)
            if not ended_early:
                settings["num_rounds"] = rounds
            began = time.monotonic()
            players.play(players.idle[0], Order(str(number_), settings, str(place)))
            wall, seconds = _played(players, began, rounds if ended_early else 0)
            costs[id(job.row)] = [measured(place, wall, rounds, seconds)]
    return costs


def _can_have(job: Job, rounds: int, runtime: Runtime) -> bool:
    """Whether a job's experiment would be one with so few rounds."""
    from strategies.server.check import check_experiment

    try:
        check_experiment(job.experiment.model_copy(update={"num_rounds": rounds}), runtime)
    except InputError:
        return False
    return True


def _played(players: Players, began: float, end_after: int) -> tuple[float, float]:
    """Wait for the one run under way.

    Args:
        players: one, which plays it.
        began: when it was sent.
        end_after: rounds after which it is ended; 0 to wait for its own end.

    Returns:
        Seconds that it took, without preparing images, which is done once; and those of them in rounds.
    """
    seconds = 0.0
    while players.busy:
        for report in players.wait(1.0):
            if report.kind == "building":
                began = time.monotonic()
            elif report.kind == "round":
                seconds = float(report.values["seconds"])
                if report.values["round"] == end_after:
                    wall = time.monotonic() - began
                    players.close()
                    players.open(1)
                    return wall, seconds
            elif report.kind in {"failed", "died"}:
                msg = f"Expected the first rounds to succeed, got: {report.values['reason']}."
                raise InputError(msg)
    return time.monotonic() - began, seconds


def in_first_stage(plan: Plan, costs: Mapping[int, list[Cost]]) -> list[str]:
    """Methods of measured rows whose last rounds are of a later stage than those that were measured."""
    from fedmlic import spec
    from fedmlic.method import Method, stretch_of

    found: dict[str, None] = {}
    asked = {(job.experiment.method, job.experiment.num_rounds) for job in plan.ready() if id(job.row) in costs}
    for text, num_rounds in sorted(asked):
        method: Method = spec.build("method", text)
        if stretch_of(method, CALIBRATION_ROUNDS).number < stretch_of(method, num_rounds).number:
            found[text] = None
    return list(found)


def announce(view: SweepView, plan: Plan, crew: Crew, folder: StudyFolder, place: str = "") -> None:
    """Say what will be played, before it is; ``place`` where it is not this machine."""
    jobs = list(plan.jobs())
    done = sum(job.identity in plan.outcomes for job in jobs)
    searches = sum(job.search for job in jobs) + plan.num_trials_left
    total = len(jobs) + plan.num_unknown
    view.line(
        f"study: {len(plan.rows)} rows x {len(plan.seeds)} seeds, {total} runs"
        + f" ({searches} of them to choose settings)" * bool(searches)
    )
    if done:
        view.line(f"  {done} are complete already and reused")
    unused = folder.num_unused(plan)
    if unused and not plan.num_unknown:
        view.line(f"  {unused} runs in the folder belong to no row of this study and are left alone")
    each = {"inprocess": "in one process each", "processes": f"with {crew.workers} worker processes each"}[crew.engine]
    place = place or ", ".join(crew.devices)
    view.line(f"  {crew.players} at a time, {each}" + f", on {place}" * bool(place))
    view.line(f"  folder: {folder.path}")


def announce_cost(
    view: SweepView, plan: Plan, costs: Mapping[int, list[Cost]], crew: Crew, folder: Path, keep: int
) -> dict[str, Any]:
    """Say how long the runs that are left will take and how much disk they need; what a dry run prints as JSON."""
    pace = Pace(dict(costs))
    seconds, num_bytes = pace.left(plan, crew.players), disk(plan, costs, keep)
    place = next(parent for parent in [folder.absolute(), *folder.absolute().parents] if parent.exists())
    free = shutil.disk_usage(place).free
    if seconds is not None and num_bytes is not None:
        view.line(
            f"  about {duration(seconds)}, from {CALIBRATION_ROUNDS} rounds of {len(costs)} of {len(plan.rows)} rows"
        )
        staged = in_first_stage(plan, costs)
        if staged:
            view.warning(
                f"the last rounds of {', '.join(staged)} are of a later stage than those that were measured: they may "
                "take longer or shorter"
            )
        view.line(f"  about {size(num_bytes)} of disk, {size(free)} are free")
        if num_bytes > free:
            view.warning("that is more than there is: fewer runs, or keep-checkpoints=1")
    left = sum(1 for _ in plan.ready()) + plan.num_unknown
    return {"runs_left": left, "seconds": seconds, "bytes": num_bytes, "bytes_free": free, "at_once": crew.players}


def runtime_of(study: Study) -> Runtime:
    """Where and how fast the study's runs are computed."""
    return split_settings(study.base)[1]
