"""What a study plays: the runs of every row, and first the runs that choose its searched settings."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fedmlic.errors import InputError
from fedmlic.resolved import identity_of
from sim.comparison.read import metric_of
from sim.sweep.search import edges_of, shown_value

if TYPE_CHECKING:
    from fedmlic.experiment import Experiment
    from sim.sweep.search import Search
    from sim.sweep.study import Row
    from sim.sweep.trials import Trials


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
        return f"{self.row.label}, search " + shown_choice(self.choice)


class Outcome(NamedTuple):
    """What became of a run: its folder, and a reason where it failed."""

    folder: Path
    reason: str = ""


class Choice(NamedTuple):
    """What a search came to.

    Attributes:
        values: chosen, by setting; ``None`` where every run of the search failed.
        score: validation metric of the choice.
        edges: settings whose best value lies at the border of what was tried.
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
        trials: that propose it, where a range is searched.
        outcomes: of runs that ended, by identity.
    """

    rows: Sequence[Row]
    seeds: Sequence[int]
    search: Search | None = None
    trials: Trials | None = None
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    _jobs: dict[tuple[int, str], list[Job]] = field(default_factory=dict)
    _choices: dict[int, Choice] = field(default_factory=dict)

    def searches(self, row: Row) -> list[Job]:
        """The runs that choose a row's settings, of trials those proposed by now; none without a search."""
        if self.search is None or row.like is not None:
            return []
        if self.trials is None:
            known = self._jobs.get((id(row), "search"))  # asked for often: the grid is made once
            return self._made(row, "search", [self.search.seed], self.search.ends()) if known is None else known
        jobs = self._made(row, "search", [self.search.seed], [])
        if len(jobs) < self._num_searched and self._all_ended(jobs):
            scores = [self._score(job, self.search) for job in jobs]
            for choice in self.trials.proposed(identity_of(row.experiment()), scores)[len(jobs) :]:
                jobs.append(_job(row, self.search.seed, choice, search=True))
        return jobs

    def runs(self, row: Row) -> list[Job]:
        """The runs of a row, once its settings are chosen; empty before, and where nothing could be chosen."""
        choice = self.choice(row)
        if choice is None or choice.values is None:
            return []
        return self._made(row, "run", self.seeds, [choice.values])

    def choice(self, row: Row) -> Choice | None:
        """What is chosen for a row; ``None`` before all runs of its search have ended."""
        if self.search is None:
            return Choice({})
        if id(row) not in self._choices:
            found = self._found(row, self.search)
            if found is None:
                return None
            self._choices[id(row)] = found
        return self._choices[id(row)]

    def _found(self, row: Row, search: Search) -> Choice | None:
        if row.like is None:
            jobs = self.searches(row)
            if len(jobs) < self._num_searched or not self._all_ended(jobs):
                return None
            return self._choose(jobs, search)
        if search.settings.keys() <= row.fixed:  # nothing to wait for
            return Choice({})
        found = self.choice(row.like)
        if found is None or found.values is None:
            return found
        return found._replace(values={key: v for key, v in found.values.items() if key not in row.fixed})

    def edges(self, row: Row) -> Sequence[str]:
        """Settings whose chosen value lies at the border of what was tried."""
        choice = self.choice(row)
        return () if choice is None else choice.edges

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
    def num_trials_left(self) -> int:
        """Runs of searches that are not proposed yet."""
        if self.search is None or self.trials is None:
            return 0
        return sum(self._num_searched - len(self.searches(row)) for row in self.rows if row.like is None)

    @property
    def num_unknown(self) -> int:
        """Runs that are not known yet: trials to propose, and runs of rows whose settings are not chosen."""
        return self.num_trials_left + len(self.seeds) * sum(self.choice(row) is None for row in self.rows)

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to play."""
        return next(self.ready(), None) is None and self.num_unknown == 0

    def _made(self, row: Row, kind: str, seeds: Sequence[int], choices: Sequence[Mapping[str, Any]]) -> list[Job]:
        """The list of a row's runs of a kind, the same object every time."""
        if (id(row), kind) not in self._jobs:
            wanted = itertools.product(choices, seeds)
            self._jobs[id(row), kind] = [_job(row, seed, choice, search=kind == "search") for choice, seed in wanted]
        return self._jobs[id(row), kind]

    @cached_property
    def _num_searched(self) -> int:
        """Runs that choose the settings of a row."""
        return self.search.num_runs if self.search else 0

    def _all_ended(self, jobs: Sequence[Job]) -> bool:
        return all(job.identity in self.outcomes for job in jobs)

    def _score(self, job: Job, search: Search) -> float:
        """Of a run that ended; NaN where it failed."""
        outcome = self.outcomes[job.identity]
        if outcome.reason:
            return math.nan
        try:
            return metric_of(outcome.folder, search.metric, search.model)
        except InputError as error:
            # A run that failed is left out; one that cannot have the metric would leave all rows out.
            msg = f"{error} A search needs it; see 'metric' under [search]."
            raise InputError(msg) from None

    def _choose(self, jobs: Sequence[Job], search: Search) -> Choice:
        """The highest score; of equal ones the first."""
        scores = [self._score(job, search) for job in jobs]
        good = [place for place, score in enumerate(scores) if not math.isnan(score)]
        if not good:
            return Choice(None, num_failed=len(jobs))
        best = max(good, key=lambda place: scores[place])
        values = jobs[best].choice
        return Choice(values, scores[best], edges_of(values, search.settings), len(jobs) - len(good))


def _job(row: Row, seed: int, choice: Mapping[str, Any], *, search: bool) -> Job:
    experiment = row.experiment(**{**choice, "seed": seed})
    return Job(row, seed, choice, experiment, identity_of(experiment), search)


def shown_choice(choice: Mapping[str, Any]) -> str:
    """Values of searched settings, for people."""
    return ", ".join(f"{key} {shown_value(value)}" for key, value in choice.items())


def distinct(rows: Sequence[Row]) -> tuple[list[Row], list[tuple[Row, Row]]]:
    """Rows without those that ask for the same as an earlier one, and each of these beside the one that stays."""
    first: dict[str, Row] = {}
    twice = []
    for row in rows:
        kept = first.setdefault(identity_of(row.experiment()), row)
        if kept is not row:
            twice.append((row, kept))
    return list(first.values()), twice
