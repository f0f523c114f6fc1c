"""What is left of a run, whatever its state, in one pass over its events."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fedmlic.errors import InputError
from fedmlic.record import is_run, open_run, read_json
from fedmlic.resolved import resolved
from sim.comparison.named import ALONE, HasStudy, OfStudy, rows_in
from sim.comparison.read import LOCAL, is_complete, keeps_private
from sim.sweep.folder import FILE as STUDY
from sim.sweep.folder import is_study

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedmlic.experiment import Experiment, Runtime
    from fedmlic.record import RunFolder

Status = Literal["complete", "failed", "unfinished"]

CLIENT_EVALUATIONS = "client-evaluations.parquet"
"""The table with a row per client and evaluation, in runs that keep one."""

REFERENCES = "references"
"""Folder in a run that holds the study of its references."""


@dataclass(frozen=True)
class LabelHistory:
    """Numbers per label on one split over the evaluated rounds.

    Attributes:
        names: of the labels.
        rounds: int64 ``[rounds]``, ascending.
        ap: float64 ``[rounds, labels]``, average precision; NaN where it does not exist.
        f1: float64 ``[rounds, labels]``, at the run's threshold.
        num_present: int64 ``[labels]``, images known to have the label.
        num_known: int64 ``[labels]``, images of which it is known.
        annotated: bool ``[labels]``, whether some client annotates it; all true where that is not known.
    """

    names: tuple[str, ...]
    rounds: NDArray[np.int64]
    ap: NDArray[np.float64]
    f1: NDArray[np.float64]
    num_present: NDArray[np.int64]
    num_known: NDArray[np.int64]
    annotated: NDArray[np.bool_]

    def at(self, number: int) -> int | None:
        """Place of a round; ``None`` if it was not evaluated."""
        found = np.flatnonzero(self.rounds == number)
        return int(found[0]) if len(found) else None

    @property
    def prevalence(self) -> NDArray[np.float64]:
        """float64 ``[labels]``: present over known entries, NaN where nothing is known."""
        known = np.maximum(self.num_known, 1)
        return np.where(self.num_known > 0, self.num_present / known, np.nan)


@dataclass
class Turns:
    """What one client did in all rounds of a run.

    Attributes:
        num: turns.
        failed: those that failed.
        images: training images in its last turn that succeeded.
        annotations: known entries among these.
    """

    num: int = 0
    failed: int = 0
    images: int = 0
    annotations: int = 0


@dataclass(frozen=True)
class Run(HasStudy):
    """One run as it was found.

    Attributes:
        path: its folder.
        experiment: its settings.
        runtime: where it was computed.
        settings: resolved, by dashed name.
        status: how it ended, if it did.
        reason: why it failed; empty otherwise.
        of: what its study says of it.
        rounds: events of completed rounds, ascending.
        labels: by split.
        evaluations: events of evaluations on all clients' held-out images.
        own: rows of ``client-evaluations.parquet``, where there is one.
        turns: by client.
        failures: events of turns that failed.
        notes: warnings of the run, and what of its folder could not be read.
        data: what ``data.json`` says.
        environment: what ``environment.json`` says.
        checkpoints: rounds that have one.
        kept_best: the round that its last checkpoint calls the best on validation; 0 for none.
    """

    path: Path
    experiment: Experiment
    runtime: Runtime
    settings: Mapping[str, Any]
    status: Status
    reason: str
    of: OfStudy = ALONE
    rounds: Sequence[Mapping[str, Any]] = ()
    labels: Mapping[str, LabelHistory] = field(default_factory=dict)
    evaluations: Sequence[Mapping[str, Any]] = ()
    own: Sequence[Mapping[str, Any]] = ()
    turns: Mapping[int, Turns] = field(default_factory=dict)
    failures: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    checkpoints: Sequence[int] = ()
    kept_best: int = 0

    @property
    def seed(self) -> int:
        """Of its random streams."""
        return self.experiment.seed

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.path.resolve().name

    @property
    def last_round(self) -> int:
        """The last completed round, 0 before the first."""
        return int(self.rounds[-1]["round"]) if self.rounds else 0

    @property
    def best_round(self) -> int:
        """The round that is best on validation, 0 without one."""
        return int(self.rounds[-1].get("best-round") or 0) if self.rounds else 0

    @cached_property
    def keeps_private(self) -> bool:
        """Whether clients keep tensors of the network to themselves, so that a model is asked for by its client."""
        evaluated = any(name.startswith("server/") for event in self.rounds for name in event)
        return keeps_private(self.experiment, evaluated=evaluated)

    @property
    def is_personal(self) -> bool:
        """Whether each client has a model of its own, so that no one model predicts for all."""
        return self.reference == LOCAL or self.keeps_private

    def round_of(self, model: Literal["best", "last"]) -> int:
        """After which round a model was taken; the last where there is no best."""
        return (self.best_round or self.last_round) if model == "best" else self.last_round

    def asked_round(self, model: Literal["best", "last"]) -> int:
        """The round of the checkpoint that is asked for scores, as ``sim.outcome`` chooses it; 0 without one."""
        if model == "best" and self.kept_best and self.kept_best in self.checkpoints:
            return self.kept_best
        return max(self.checkpoints, default=0)

    def metric(self, name: str, number: int) -> float:
        """A number of one round; NaN where there is none."""
        events = self.rounds if name.startswith("server/") or "/" not in name else self.evaluations
        for event in reversed(events):
            if event["round"] == number and event.get(name) is not None:
                return float(event[name])
        return math.nan


@dataclass(frozen=True)
class Found:
    """Runs in the folders that were asked for.

    Attributes:
        runs: in the order of their studies.
        problems: folders that cannot be read, and runs that are missing, a sentence each.
        title: for the page.
    """

    runs: Sequence[Run]
    problems: Sequence[str]
    title: str


def find_runs(paths: Sequence[Path]) -> Found:
    """Read the runs of folders of runs and studies; a run's own references count.

    Raises:
        InputError: a folder is neither, or no run can be read at all.
    """
    runs: dict[Path, Run] = {}
    problems: list[str] = []
    for path in paths:
        if is_study(path):
            asked = _of_study(path, problems)
        elif is_run(path):
            asked = [(path, ALONE)]
            if is_study(path / REFERENCES):
                asked += [each for each in _of_study(path / REFERENCES, problems) if each[1].reference]
        else:
            msg = f"Expected {path} to be the folder of a run or of a study, got something else. Check the path."
            raise InputError(msg)
        for place, of in asked:
            try:
                runs.setdefault(place.resolve(), read_run(place, of))
            except InputError as error:
                problems.append(nameless(f"{place.name} cannot be read: {error}", place))
    if not runs:
        msg = f"Expected runs to report, got none that can be read in {', '.join(map(str, paths))}. " + " ".join(
            problems
        )
        raise InputError(msg)
    title = " and ".join(path.resolve().name for path in paths[:3]) + ", ..." * (len(paths) > 3)
    return Found(list(runs.values()), problems, title)


def _of_study(path: Path, problems: list[str]) -> list[tuple[Path, OfStudy]]:
    """Run folders of a study with what it says of them, and sentences on what is missing."""
    about = read_json(path / STUDY)
    found = []
    for row, of in rows_in(path, about):
        there = [path / run["run"] for run in row["runs"] if is_run(path / run["run"])]
        found += [(run, of) for run in there]
        missing = len(about["seeds"]) - len(there)
        if missing:
            problems.append(f"{row['label']}: {missing} of {len(about['seeds'])} runs of the study have not begun.")
    return found


def nameless(text: str, path: Path) -> str:
    """A message about a run without the place of its folder, which is nobody's business but the writer's.

    >>> nameless("Expected /home/ann/runs/one/data.json, got none.", Path("/home/ann/runs/one"))
    'Expected one/data.json, got none.'
    """
    for place in (path.resolve(), path.absolute(), path):
        text = text.replace(str(place), path.resolve().name) if str(place) not in {"", "."} else text
    return text


def read_run(path: Path, of: OfStudy = ALONE) -> Run:
    """Read a run in whatever state it is.

    Raises:
        InputError: its settings cannot be read.
    """
    folder = open_run(path)
    experiment, runtime = folder.settings()
    events = _Events()
    for event in folder.events():
        events.take(event)
    notes = [*events.warnings]
    data, environment = (_tolerant(path / name, notes) for name in ("data.json", "environment.json"))
    kept_best, own = _kept_best(folder, notes), _own(path, notes)
    status: Status = "complete" if is_complete(path) else "failed" if events.reason else "unfinished"
    return Run(
        path=path,
        experiment=experiment,
        runtime=runtime,
        settings=resolved(experiment),
        status=status,
        reason="" if status == "complete" else events.reason,
        of=of,
        rounds=events.rounds,
        labels={split: _history(rows) for split, rows in events.labels.items()},
        evaluations=events.evaluations,
        own=own,
        turns=events.turns,
        failures=events.failures,
        notes=[*map(str, data.get("warnings", [])), *(nameless(text, path) for text in notes)],
        data=data,
        environment=environment,
        checkpoints=folder.checkpoints(),
        kept_best=kept_best,
    )


class _Events:
    """Events of a run, sorted by what they are about."""

    def __init__(self) -> None:
        self.rounds: list[dict[str, Any]] = []
        self.labels: dict[str, list[dict[str, Any]]] = {}
        self.evaluations: list[dict[str, Any]] = []
        self.turns: dict[int, Turns] = {}
        self.failures: list[dict[str, Any]] = []
        self.warnings: list[str] = []
        self.reason = ""

    def take(self, event: dict[str, Any]) -> None:
        kind = event.pop("event")
        if kind == "round":
            self.rounds.append(event)
        elif kind == "labels":
            self.labels.setdefault(event["split"], []).append(event)
        elif kind == "clients-evaluated":
            self.evaluations.append(event)
        elif kind == "client":
            self._turn(event)
        elif kind == "warning":
            self.warnings.append(str(event.get("text", "")))
        elif kind in {"failed", "start"}:  # a run that goes on has not failed
            self.reason = str(event.get("reason", ""))

    def _turn(self, event: dict[str, Any]) -> None:
        turns = self.turns.setdefault(int(event["client"]), Turns())
        turns.num += 1
        if event.get("error"):
            turns.failed += 1
            self.failures.append(event)
        else:
            turns.images = int(event.get("num-images") or 0)
            turns.annotations = int(event.get("num-annotations") or 0)


def _history(events: Sequence[Mapping[str, Any]]) -> LabelHistory:
    """Events of one split; where the labels of a run changed, those of the last event."""
    names = tuple(map(str, events[-1]["label"]))
    same = [event for event in events if len(event["label"]) == len(names)]
    last = same[-1]

    def table(name: str) -> NDArray[np.float64]:
        empty = [None] * len(names)
        return np.array([event.get(name, empty) for event in same], dtype=np.float64).reshape(len(same), len(names))

    return LabelHistory(
        names=names,
        rounds=np.array([event["round"] for event in same], dtype=np.int64),
        ap=table("ap"),
        f1=table("f1"),
        num_present=np.array(last["num_present"], dtype=np.int64),
        num_known=np.array(last["num_known"], dtype=np.int64),
        annotated=np.array(last.get("annotated", [True] * len(names)), dtype=np.bool_),
    )


def _own(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    """Rows of the table of clients' own evaluations; none where a run keeps no such table."""
    file = path / CLIENT_EVALUATIONS
    if not file.is_file():
        return []
    import pandas as pd

    try:
        rows: list[dict[str, Any]] = [
            {str(name): value for name, value in row.items()} for row in pd.read_parquet(file).to_dict("records")
        ]
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        notes.append(f"{file.name} cannot be read: {error}")
        return []
    return rows


def _tolerant(file: Path, notes: list[str]) -> dict[str, Any]:
    """A JSON object, empty where it is missing or damaged, which is noted."""
    try:
        return read_json(file)
    except InputError as error:
        notes.append(str(error))
        return {}


def _kept_best(folder: RunFolder, notes: list[str]) -> int:
    numbers = folder.checkpoints()
    try:
        return int(folder.checkpoint_values(numbers[-1]).get("best_round") or 0) if numbers else 0
    except InputError as error:
        notes.append(str(error))
        return 0
