"""The first sections of a page: the sentence of the experiment, what came out, and whether the seeds can tell."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sim.comparison.compare import Pair
from sim.comparison.output import PAIR_HEADS, pair_row
from sim.reports.report.gather import Report
from sim.reports.report.markup import (
    Child,
    Markup,
    bullets,
    element,
    joined,
    named,
    note,
    number,
    paragraph,
    table,
)
from sim.reports.report.read import Run
from sim.reports.report.rows import Model, Row, differing, model_in_words, written
from sim.reports.report.svg import swatch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

WORDS = (
    ("", "dataset"),
    ("split by", "partition"),
    ("annotated under", "regime"),
    ("trained by", "method"),
    ("on", "model"),
    ("merged by", "strategy"),
)
"""The sentence of an experiment."""

METRICS = {
    "test mAP": "server/mAP",
    "val mAP": "server/val/mAP",
    "test CF1": "server/CF1",
    "test OF1": "server/OF1",
    "client mAP": "client/mAP/mean",
    "worst client": "client/mAP/worst",
}
"""Columns of the table of rows, where any run has them."""

FEW_SEEDS = 3

MAX_PAIRS = 28
"""Most differences in the page: all pairs of 8 rows."""


def sentence(report: Report) -> Markup:
    """What was done, in one sentence; what differs between rows is named."""
    runs = [row.first for row in report.own]
    parts: list[Child] = []
    for words, key in WORDS:
        values = list(dict.fromkeys(written(run, key) for run in runs))
        shown: list[Child] = []
        for place, value in enumerate(values[:4]):
            shown += [" or " if place == len(values[:4]) - 1 else ", "] * bool(place) + [element("code", value)]
        shown += [f" or {len(values) - 4} others"] * (len(values) > 4)
        parts += [f" {words} " if words else "", *shown]
    first = runs[0].experiment
    clients = f"{first.num_clients or 'all owners as'} clients, {first.cohort_size or 'all'} a round"
    clients += f", {first.num_rounds} round{'s' if first.num_rounds != 1 else ''}"
    other = [key for key in differing(runs) if key not in {key for _, key in WORDS}]
    varied = f"; rows differ also in {', '.join(other)}" if other else ""
    return element("p", *parts, f"; {clients}{varied}.", class_="sentence")


def summary_section(report: Report) -> Markup:
    """Key numbers, what is damaged or missing, and warnings."""
    runs = report.runs
    states = {state: sum(run.status == state for run in runs) for state in ("complete", "unfinished", "failed")}
    seeds = sorted({run.seed for row in report.own for run in row.runs})
    facts = [
        ("Runs", ", ".join(f"{count} {state}" for state, count in states.items() if count)),
        (
            "Rows",
            f"{len(report.own)}"
            + f" and {len(report.rows) - len(report.own)} references" * bool(len(report.rows) - len(report.own)),
        ),
        ("Seeds", _seeds(seeds)),
        ("Model", _models(report)),
    ]
    best = _best(report)
    if best:
        facts.append((f"Highest {report.metric}", best))
    shown = element(
        "dl", *(element("div", element("dt", name), element("dd", value)) for name, value in facts), class_="facts"
    )
    return joined([shown, *_troubles(report), *_warnings(runs)])


def _seeds(seeds: Sequence[int]) -> str:
    return f"{len(seeds)} ({', '.join(map(str, seeds[:8]))}{', ...' if len(seeds) > 8 else ''})"


def _models(report: Report) -> str:
    runs = [run for row in report.own for run in row.runs if run.rounds]
    if not runs:
        return "none: no round was completed"
    if all(run.is_personal for run in runs):
        return "each client's own"
    if report.model == "last":
        return "after the last round"
    without = sum(not run.best_round for run in runs)
    if without == len(runs):
        return "after the last round, since no validation images choose one"
    return "best on validation" + f"; after the last round in {without} runs without one" * bool(without)


def _best(report: Report) -> str:
    found = [
        (statistics.fmean(values.values()), row)
        for row in report.own
        if (values := row.values(report.metric, report.model))
    ]
    if not found:
        return ""
    mean, row = max(found, key=lambda each: each[0])
    return f"{mean:.3f} ({row.label}, {_of_seeds(len(row.values(report.metric, report.model)))})"


def _of_seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"mean of {count} seeds"


def _troubles(report: Report) -> list[Markup]:
    """What a reader must know before believing a number."""
    made = []
    for run in report.runs:
        if run.status == "failed":
            why = run.reason.splitlines()[0] if run.reason else "no reason was recorded"
            made.append(note(named(run.name), f" failed after round {run.last_round}: ", named(why), kind="warning"))
        elif run.status == "unfinished":
            where = (
                f"after round {run.last_round} of {run.experiment.num_rounds}"
                if run.rounds
                else "before its first round ended"
            )
            made.append(
                note(named(run.name), f" is not complete: interrupted or still running, {where}.", kind="warning")
            )
    if len(made) > 6:
        made = [*made[:6], note(f"{len(made) - 6} more runs are not complete, see Failures.", kind="warning")]
    return made + [note(named(problem), kind="warning") for problem in report.problems[:12]]


def _warnings(runs: Sequence[Run]) -> list[Markup]:
    """Warnings of runs, each once."""
    texts = list(dict.fromkeys(text for run in runs for text in run.notes))
    if not texts:
        return []
    heading = element("summary", f"{len(texts)} note{'s' if len(texts) > 1 else ''} of these runs on data and record")
    return [element("details", heading, bullets(named(text) for text in texts[:40]), open=len(texts) < 4)]


def results_section(report: Report) -> Markup:
    """Mean and spread over seeds of each row, and paired differences between rows."""
    shown = {
        title: name for title, name in METRICS.items() if any(_whole(row, name, report.model) for row in report.rows)
    }
    if not shown:
        return note("No run has an evaluated round.", kind="missing")
    chance = [row.values("server/prevalence", report.model) for row in report.rows]
    rows: list[list[Child | float | int]] = []
    for place, row in enumerate(report.rows):
        cells: list[Child | float | int] = [_row_name(place, row)]
        values = [_whole(row, name, report.model) for name in shown.values()]
        cells += [*map(spread, values), num_seeds(values), _model_of(row, report)]
        rows.append(cells)
    made = [
        paragraph(
            "Mean ± standard deviation over seeds, of the model that the last column names. “test” is the server's "
            "test images, which choose nothing; “val” its validation images, which choose the best round; “client” the "
            "clients' own held-out images. “seeds” are those that have these numbers."
        ),
        table("Rows of runs that differ in the seed only", ["row", *shown, "seeds", "model"], rows),
    ]
    constant = [value for values in chance for value in values.values()]
    if constant:
        low, high = min(constant), max(constant)
        span = f"{low:.3f}" + f" to {high:.3f}" * (high - low >= 5e-4)
        made.append(paragraph(f"A constant score, which has learned nothing, reaches test mAP {span} (prevalence)."))
    seeds = max(len(row.seeds) for row in report.own)
    if seeds < FEW_SEEDS:
        made.append(
            note(
                f"With {seeds} seed{'s' if seeds > 1 else ''} a difference between rows may be chance.", kind="warning"
            )
        )
    return joined([*made, *_compared(report)])


def _whole(row: Row, metric: str, model: Model) -> list[float]:
    """Values over seeds; of clients only where all seeds have one: they may not be evaluated at the best round."""
    found = list(row.values(metric, model).values())
    return found if len(found) == len(row.seeds) or metric.startswith("server/") else []


def num_seeds(columns: Sequence[Sequence[float]]) -> int | str:
    """Seeds that the values of a row are over; from the fewest to the most where its columns differ.

    >>> num_seeds([[0.5, 0.6], []]), num_seeds([[0.5, 0.6], [0.4]]), num_seeds([])
    (2, '1 to 2', 0)
    """
    counts = sorted({len(values) for values in columns if values})
    return f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else sum(counts)


def _row_name(place: int, row: Row) -> Markup:
    return element("span", swatch(place), element("b", f"{place + 1} "), named(row.label), class_="row")


def spread(values: Sequence[float] | NDArray[np.float64], digits: int = 3) -> Markup:
    """Mean ± standard deviation of those that exist, sorted by the mean."""
    there = [float(value) for value in values if not math.isnan(value)]
    if not there:
        return element("span", number(float("nan")), class_="n")
    return element("span", spread_text(there, digits), class_="n", data_v=f"{statistics.fmean(there):.6g}")


def spread_text(values: Sequence[float], digits: int = 3) -> str:
    """Mean ± standard deviation; a mean alone for one value.

    >>> spread_text([0.25, 0.75], 2), spread_text([0.25])
    ('0.50 ± 0.35', '0.250')
    """
    text = f"{statistics.fmean(values):.{digits}f}"
    return text + (f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else "")


def _model_of(row: Row, report: Report) -> str:
    words = list(dict.fromkeys(model_in_words(run, report.model).split(" (")[0] for run in row.runs if run.rounds))
    rounds = sorted({run.round_of(report.model) for run in row.runs})
    span = f"round {rounds[0]}" if len(rounds) == 1 else f"rounds {rounds[0]} to {rounds[-1]}"
    return f"{' or '.join(words) or 'none'}, {span}"


def told_first(pairs: Sequence[Pair], most: int = MAX_PAIRS) -> list[Pair]:
    """All pairs; of too many those with the smallest p, of equal ones those that differ most."""
    if len(pairs) <= most:
        return list(pairs)
    return sorted(pairs, key=lambda pair: (math.isnan(pair.found.p), pair.found.p, -abs(pair.found.mean)))[:most]


def _compared(report: Report) -> list[Markup]:
    found = report.comparison
    if found is None:
        return [note(f"Differences between rows: {report.uncompared}", kind="missing")] * bool(report.uncompared)
    made = [element("h3", "Differences between rows")]
    if found.pairs:
        shown = told_first(found.pairs)
        rows = [
            [named(first), *(element("span", cell, class_="n") for cell in rest)]
            for first, *rest in (pair_row(pair) for pair in shown)
        ]
        cut = f" Of {len(found.pairs):,} pairs {len(shown)} are shown; tables/comparison.csv has all."
        made.append(
            paragraph(
                f"Paired over seeds, {found.metric} of the model {found.model}; {found.test} test; 95 % bootstrap "
                "interval of the mean difference; p corrected by Holm for all pairs; P(better) is the probability that "
                "a run of the first row is better than one of the second." + cut * (len(shown) < len(found.pairs))
            )
        )
        made.append(table("Paired differences", PAIR_HEADS, rows))
    return [*made, *([bullets(named(text) for text in found.notes)] if found.notes else [])]
