"""What a study plays: the runs of every row, and first the runs that choose its searched settings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fedmlic.errors import InputError
from fedmlic.resolved import identity_of
from sim.comparison.read import metric_of

if TYPE_CHECKING:
    from fedmlic.experiment import Experiment
    from sim.sweep.study import Row, Search


@dataclass(frozen=True)
class Job:
    """One run of a study.

    Attributes:
        row: of the table.
        seed: of the run.
        choice: values of searched settings.
        experiment: with all of these.
        identity: of the resolved experiment; two rows may ask for the same run.
        search: whether it is played to choose.
    """

    row: Row
    seed: int
    choice: Mapping[str, Any]
    experiment: Experiment
    identity: str
    search: bool = False

    @property
    def label(self) -> str:
        """Its name for people."""
        if not self.search:
            return f"{self.row.label}, seed {self.seed}"
        return f"{self.row.label}, search " + ", ".join(f"{key} {value}" for key, value in self.choice.items())


class Outcome(NamedTuple):
    """What became of a run: its folder, and a reason where it failed."""

    folder: Path
    reason: str = ""


class Choice(NamedTuple):
    """What a search came to.

    Attributes:
        values: chosen, by setting; ``None`` where every run of the search failed.
        score: validation metric of the choice.
        edges: settings whose best value is the smallest or largest that was tried.
        num_failed: runs of the search that gave no score.
    """

    values: Mapping[str, Any] | None
    score: float = math.nan
    edges: Sequence[str] = ()
    num_failed: int = 0


@dataclass
class Plan:
    """The runs of a study, and what is known of them.

    Attributes:
        rows: of the table.
        seeds: of every row.
        search: what is chosen, if anything is.
        outcomes: of runs that ended, by identity.
    """

    rows: Sequence[Row]
    seeds: Sequence[int]
    search: Search | None = None
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    _jobs: dict[tuple[int, str], list[Job]] = field(default_factory=dict)
    _choices: dict[int, Choice] = field(default_factory=dict)

    def searches(self, row: Row) -> list[Job]:
        """The runs that choose a row's settings; none without a search."""
        if self.search is None or row.like is not None:
            return []
        seed = self.search.seed
        return self._made(row, "search", [(seed, choice) for choice in self.search.choices()])

    def runs(self, row: Row) -> list[Job]:
        """The runs of a row, once its settings are chosen; empty before, and where nothing could be chosen."""
        choice = self.choice(row)
        if choice is None or choice.values is None:
            return []
        return self._made(row, "run", [(seed, choice.values) for seed in self.seeds])

    def choice(self, row: Row) -> Choice | None:
        """What is chosen for a row; ``None`` before all runs of its search have ended."""
        if self.search is None:
            return Choice({})
        if row.like is not None:
            return self.choice(row.like)
        if id(row) not in self._choices:
            jobs = self.searches(row)
            if not all(job.identity in self.outcomes for job in jobs):
                return None
            self._choices[id(row)] = self._choose(jobs, self.search)
        return self._choices[id(row)]

    def ready(self) -> Iterator[Job]:
        """Runs that can be played now and have not ended, each once, in order."""
        seen = set(self.outcomes)
        for row in self.rows:
            for job in (*self.searches(row), *self.runs(row)):
                if job.identity not in seen:
                    seen.add(job.identity)
                    yield job

    def jobs(self) -> Iterator[Job]:
        """Every run that is known by now, each once."""
        seen: set[str] = set()
        for row in self.rows:
            for job in (*self.searches(row), *self.runs(row)):
                if job.identity not in seen:
                    seen.add(job.identity)
                    yield job

    @property
    def num_unknown(self) -> int:
        """Runs of rows whose settings are not chosen yet."""
        return len(self.seeds) * sum(self.choice(row) is None for row in self.rows)

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to play."""
        return next(self.ready(), None) is None and self.num_unknown == 0

    def _made(self, row: Row, kind: str, wanted: Sequence[tuple[int, Mapping[str, Any]]]) -> list[Job]:
        if (id(row), kind) not in self._jobs:
            made = []
            for seed, choice in wanted:
                experiment = row.experiment(**{**choice, "seed": seed})
                made.append(Job(row, seed, choice, experiment, identity_of(experiment), kind == "search"))
            self._jobs[id(row), kind] = made
        return self._jobs[id(row), kind]

    def _choose(self, jobs: Sequence[Job], search: Search) -> Choice:
        """The highest score; of equal ones the first."""
        scores: list[float] = []
        for job in jobs:
            outcome = self.outcomes[job.identity]
            try:
                scores.append(math.nan if outcome.reason else metric_of(outcome.folder, search.metric, search.model))
            except InputError as error:
                # A run that failed is left out; one that cannot have the metric would leave all rows out.
                msg = f"{error} A search needs it; see 'metric' under [search]."
                raise InputError(msg) from None
        good = [place for place, score in enumerate(scores) if not math.isnan(score)]
        if not good:
            return Choice(None, num_failed=len(jobs))
        best = max(good, key=lambda place: scores[place])
        values = jobs[best].choice
        return Choice(values, scores[best], edges_of(values, search.settings), len(jobs) - len(good))


def distinct(rows: Sequence[Row]) -> tuple[list[Row], list[tuple[Row, Row]]]:
    """Rows without those that ask for the same as an earlier one, and each of these beside the one that stays."""
    first: dict[str, Row] = {}
    twice = []
    for row in rows:
        kept = first.setdefault(identity_of(row.experiment()), row)
        if kept is not row:
            twice.append((row, kept))
    return list(first.values()), twice


def edges_of(values: Mapping[str, Any], tried: Mapping[str, Sequence[Any]]) -> list[str]:
    """Settings whose value is the smallest or largest number of several that were tried.

    >>> edges_of({"learning-rate": 0.01}, {"learning-rate": [0.001, 0.01]})
    ['learning-rate']
    """
    found = []
    for key, value in values.items():
        numbers = tried[key]
        if len(set(map(str, numbers))) > 1 and all(_is_number(number) for number in numbers):
            found += [key] if value in {min(numbers), max(numbers)} else []
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
