"""Everything that a report shows, as numbers: from the records of runs, and from models that are asked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from fedmlic.errors import InputError
from fedmlic.evaluation import SIDES
from fedmlic.metrics import unannotated_columns
from sim.comparison.compare import Comparison, compare
from sim.reports.report.images import HardImage, hard_images
from sim.reports.report.read import Run, find_runs, nameless
from sim.reports.report.rows import Model, Row, asked_in_words, headline, model_in_words, rows_of
from sim.reports.report.scores import (
    PairErrors,
    Reliability,
    Thresholds,
    image_losses,
    pair_errors,
    reliability,
    thresholds,
)
from sim.reports.report.sites import CrossSite, Holdings, cross_site, federation_of, holdings_of, same_federation

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sim.outcome import Scores

MAX_FEDERATIONS = 3
"""Most federations of which a page says who holds what."""

CANNOT = (InputError, OSError, RuntimeError)
"""What keeps a model from being asked; the page says it and goes on. torch raises RuntimeError."""

Tell = Callable[[str], None]

Made = TypeVar("Made")


@dataclass(frozen=True)
class Judged:
    """What the scores of one run's model say.

    Attributes:
        split: whose images: ``test``, or ``val`` where there are none of test.
        label_names: columns.
        pooled: reliability over all entries.
        each: of every label.
        thresholds: chosen on validation, judged on test; ``None`` without one of both.
        pairs: errors by co-occurrence.
        losses: float64 ``[images]``.
        images: those with the highest loss.
    """

    split: str
    label_names: tuple[str, ...]
    pooled: Reliability
    each: Sequence[Reliability]
    thresholds: Thresholds | None
    pairs: PairErrors
    losses: NDArray[np.float64]
    images: Sequence[HardImage]


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
    """A run of which more than its record is shown.

    Attributes:
        place: of its row.
        run: which.
        model: which of its models, in words.
        judged: from its scores; ``None`` where they cannot be had.
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
        looked: runs of which more is shown.
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
        scored: rows of which one run's model is asked.
        tell: hears what is being done.

    Raises:
        InputError: no runs.
    """
    tell("reading runs")
    found = find_runs(paths)
    rows = rows_of(found.runs)
    comparison, uncompared = _compared(paths, rows, model)
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
    return Report(
        found.title, rows, model, headline(rows), found.problems, comparison, uncompared, held, held_notes, looked
    )


def _compared(paths: Sequence[Path], rows: Sequence[Row], model: Model) -> tuple[Comparison | None, str]:
    if len([row for row in rows if not row.reference]) < 2:
        return None, ""
    try:
        return compare(paths, model=model), ""
    except InputError as error:
        return None, str(error)


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
    run, notes = rows[place].first, list[str]()
    judged = sites = None
    if not run.checkpoints:
        notes.append(f"{run.name} has no checkpoint, so its model cannot be asked.")
    else:
        tell(f"asking the model of {run.name}")
        if run.is_personal:
            notes.append(
                f"Clients of {run.name} keep tensors of their own: no one model predicts for all, so there are no "
                "scores of test images."
            )
        else:
            judged = _tried(lambda: _judge(run, model, notes), notes)
        sites = _tried(lambda: cross_site(run, runs, federation_of(run), model), notes)
    notes = [nameless(text, run.path) for text in notes]
    recorded = _recorded(run, model)
    per_client = recorded if recorded is not None else _computed(sites)
    return Looked(place, run, asked_in_words(run, model), judged, sites, per_client, notes)


def _tried(what: Callable[[], Made], notes: list[str]) -> Made | None:
    try:
        return what()
    except CANNOT as error:
        notes.append(str(error))
        return None


def _judge(run: Run, model: Model, notes: list[str]) -> Judged:
    from sim.outcome import corpus_of, scores_of

    corpus = corpus_of(run.path)
    there = [split for split in SIDES if corpus.splits.get(split)]
    if not there:
        msg = f"{run.name} has neither test nor validation images on the server, so nothing is judged there."
        raise InputError(msg)
    found = {split: _annotated(run, scores_of(run.path, split, model), notes) for split in there}
    split = there[0]
    if split != "test":
        notes.append(f"{run.name} has no test images: validation images are judged, which also chose its best round.")
    shown = found[split]
    chosen = None
    if "test" in found and "val" in found:
        val, test = found["val"], found["test"]
        chosen = thresholds((val.scores, val.labels), (test.scores, test.labels), run.experiment.threshold)
    else:
        notes.append(f"{run.name} has no {'validation' if split == 'test' else 'test'} images: no threshold is chosen.")
    losses = image_losses(shown.scores, shown.labels)
    return Judged(
        split,
        shown.label_names,
        reliability(shown.scores, shown.labels),
        [reliability(shown.scores[:, k], shown.labels[:, k]) for k in range(len(shown.label_names))],
        chosen,
        pair_errors(shown.scores, shown.labels, run.experiment.threshold),
        losses,
        hard_images(corpus, shown, losses, run.experiment.threshold),
    )


def _annotated(run: Run, found: Scores, notes: list[str]) -> Scores:
    """Scores without the labels that nobody annotates: no number counts them with the others (docs/metrics.md)."""
    apart = unannotated_columns(found.label_names, run.data.get("unannotated_labels"))
    if not apart.any():
        return found
    text = f"{run.name}: {int(apart.sum())} of {len(apart)} labels, which nobody annotates, are left out here."
    notes += [text] * (text not in notes)
    names = tuple(name for name, out in zip(found.label_names, apart, strict=True) if not out)
    return replace(found, label_names=names, scores=found.scores[:, ~apart], labels=found.labels[:, ~apart])


def _recorded(run: Run, model: Model) -> PerClient | None:
    """The clients one by one from the run's own table, where it keeps one."""
    name = next((name for name in ("client/mAP", "mAP") if run.own and name in run.own[0]), "")
    if not name:
        return None
    rounds = sorted({int(row["round"]) for row in run.own})
    wanted = run.round_of("last" if run.is_personal else model)
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
