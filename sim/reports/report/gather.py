"""Everything that a report shows, as numbers: from the records of runs, and from models that are asked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from fedmlic.errors import InputError
from sim.comparison.compare import Comparison, compare
from sim.reports.report.asked import CANNOT, MAX_SEEDS, Judged, judge
from sim.reports.report.read import Run, find_runs, nameless
from sim.reports.report.rows import Model, Row, all_asked_in_words, headline, model_in_words, of_other_data, rows_of
from sim.reports.report.sites import CrossSite, Holdings, cross_site, federation_of, holdings_of, same_federation

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_FEDERATIONS = 3
"""Most federations of which a page says who holds what."""

Tell = Callable[[str], None]

Made = TypeVar("Made")


@dataclass(frozen=True)
class PerClient:
    """mAP of one model on each client's held-out images.

    Attributes:
        source: where it comes from, in words.
        clients: ids.
        map: float64 ``[clients]``; NaN where no label counts.
        chance: float64 ``[clients]``, of a random order; NaN where it is not known.
    """

    source: str
    clients: tuple[int, ...]
    map: NDArray[np.float64]
    chance: NDArray[np.float64]


@dataclass(frozen=True)
class Looked:
    """A row of which more than its records is shown.

    Attributes:
        place: of the row.
        run: of its lowest seed that has a model.
        model: which models, in words.
        judged: from the scores of its seeds; ``None`` where they cannot be had.
        sites: models against clients' images; ``None`` where that cannot be had.
        per_client: its clients one by one; ``None`` where nothing says it.
        notes: what is missing and why.
    """

    place: int
    run: Run
    model: str
    judged: Judged | None
    sites: CrossSite | None
    per_client: PerClient | None
    notes: Sequence[str]


@dataclass(frozen=True)
class Held:
    """A federation, with the run that it is of."""

    run: Run
    rows: Sequence[int]
    holdings: Holdings


@dataclass(frozen=True)
class Report:
    """Everything that a page shows.

    Attributes:
        title: names of the folders.
        rows: of runs.
        model: which model of a run is meant.
        metric: by which rows are shown first; empty where no run has any.
        problems: what could not be read, and what is missing.
        comparison: of the complete runs; ``None`` where they cannot be compared.
        uncompared: why not.
        held: who holds what.
        held_notes: federations that cannot be shown, and why.
        looked: rows of which more is shown.
    """

    title: str
    rows: Sequence[Row]
    model: Model
    metric: str
    problems: Sequence[str]
    comparison: Comparison | None
    uncompared: str
    held: Sequence[Held]
    held_notes: Sequence[str]
    looked: Sequence[Looked]

    @property
    def runs(self) -> list[Run]:
        """Of all rows."""
        return [run for row in self.rows for run in row.runs]

    def row_name(self, place: int) -> str:
        """The number and the label of a row.

        Numbers begin with 1, as on the page.
        """
        return f"{place + 1} {self.rows[place].label}"

    @property
    def own(self) -> list[Row]:
        """Rows that are no references, or all if there are only such."""
        return [row for row in self.rows if not row.reference] or list(self.rows)


def gather(paths: Sequence[Path], model: Model = "best", scored: int = 4, tell: Tell = lambda text: None) -> Report:  # noqa: ARG005
    """Read runs, compare them, and ask the models of some.

    Args:
        paths: folders of runs and studies.
        model: which model of a run is meant; the last where validation chooses none.
        scored: rows whose models are asked.
        tell: hears what is being done.

    Raises:
        InputError: no runs, or runs that cannot be rows of one page.
    """
    tell("reading runs")
    found = find_runs(paths)
    rows = rows_of(found.runs)
    metric = headline(rows)
    comparison, uncompared = _compared(paths, rows, model, metric)
    own = [place for place, row in enumerate(rows) if not row.reference] or list(range(len(rows)))
    held, held_notes = _held(rows, own, tell)
    looked = [_looked(place, rows, found.runs, model, tell) for place in own[: max(scored, 0)]]
    asked = {each.place for each in looked}
    recorded = [(place, row.first, _recorded(row.first, model)) for place, row in enumerate(rows) if place not in asked]
    looked += [
        Looked(place, run, model_in_words(run, model), None, None, per_client, ())
        for place, run, per_client in recorded
        if per_client is not None
    ]
    problems = [*found.problems, *of_other_data(found.runs)]
    return Report(found.title, rows, model, metric, problems, comparison, uncompared, held, held_notes, looked)


def _compared(paths: Sequence[Path], rows: Sequence[Row], model: Model, metric: str) -> tuple[Comparison | None, str]:
    if len([row for row in rows if not row.reference]) < 2:
        return None, ""
    try:
        # Of a run that has no best round the page shows the last.
        found = compare(paths, model="best-or-last" if model == "best" else model, metric=metric)
    except InputError as error:
        return None, _nameless(str(error), rows)
    return replace(found, notes=[_nameless(text, rows) for text in found.notes]), ""


def _nameless(text: str, rows: Sequence[Row]) -> str:
    for run in (run for row in rows for run in row.runs):
        text = nameless(text, run.path)
    return text


def _held(rows: Sequence[Row], places: Sequence[int], tell: Tell) -> tuple[list[Held], list[str]]:
    """Each federation of the rows' first runs once."""
    distinct: list[tuple[Run, list[int]]] = []
    for place in places:
        run = rows[place].first
        same = next((each for each in distinct if same_federation(each[0], run)), None)
        if same is None:
            distinct.append((run, [place]))
        else:
            same[1].append(place)
    held, notes = [], []
    for run, its in distinct[:MAX_FEDERATIONS]:
        tell(f"who holds what in {run.name}")
        try:
            held.append(Held(run, its, holdings_of(federation_of(run))))
        except CANNOT as error:
            notes.append(nameless(f"{run.name}: {error}", run.path))
    if len(distinct) > MAX_FEDERATIONS:
        notes.append(
            f"{len(distinct) - MAX_FEDERATIONS} more federations of these rows; report their runs by themselves."
        )
    return held, notes


def _looked(place: int, rows: Sequence[Row], runs: Sequence[Run], model: Model, tell: Tell) -> Looked:
    asked, notes = rows[place].asked[:MAX_SEEDS], list[str]()
    run = asked[0]
    judged = sites = None
    if not run.checkpoints:
        notes.append(f"{run.name} has no checkpoint, so its model cannot be asked.")
    else:
        tell(f"asking the model{'s' * (len(asked) > 1)} of {', '.join(each.name for each in asked)}")
        if run.keeps_private:
            notes.append(
                f"Clients of {run.name} keep tensors of their own: no one model predicts for all, so there are no "
                "scores of test images."
            )
        else:
            judged = _tried(lambda: judge(asked, model, notes), notes)
        sites = _tried(lambda: cross_site(run, runs, federation_of(run), model), notes)
    for each in asked:
        notes = [nameless(text, each.path) for text in notes]
    recorded = _recorded(run, model)
    per_client = recorded if recorded is not None else _computed(sites)
    words = all_asked_in_words(judged.runs if judged is not None else [run], model)
    return Looked(place, run, words, judged, sites, per_client, notes)


def _tried(what: Callable[[], Made], notes: list[str]) -> Made | None:
    try:
        return what()
    except CANNOT as error:
        notes.append(str(error))
        return None


def _recorded(run: Run, model: Model) -> PerClient | None:
    """The clients one by one from the run's own table, where it keeps one."""
    name = next((name for name in ("client/mAP", "mAP") if run.own and name in run.own[0]), "")
    if not name:
        return None
    rounds = sorted({int(row["round"]) for row in run.own})
    wanted = run.round_of(model)
    number = wanted if wanted in rounds else rounds[-1]
    rows = [row for row in run.own if int(row["round"]) == number and str(row.get("split", "holdout")) != "train"]
    chance = name.replace("mAP", "chance")
    return PerClient(
        f"the record, after round {number}",
        tuple(int(row["client"]) for row in rows),
        np.array([_float(row.get(name)) for row in rows]),
        np.array([_float(row.get(chance)) for row in rows]),
    )


def _float(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan


def _computed(sites: CrossSite | None) -> PerClient | None:
    """The clients one by one from the matrix: the shared model, or each client's own."""
    if sites is None:
        return None
    if -1 in sites.owners:
        values, words = sites.map[sites.owners.index(-1)], "the shared model"
    else:
        own = [sites.map[row, sites.clients.index(client)] for row, client in enumerate(sites.owners)]
        of = dict(zip(sites.owners, own, strict=True))
        values, words = np.array([of.get(client, math.nan) for client in sites.clients]), "each client's own model"
    return PerClient(f"scores of {words}, made for this page", sites.clients, values, sites.chance)
