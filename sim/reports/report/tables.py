"""The tables behind the figures, as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from fedmlic.evaluation import SIDES
from sim.comparison.output import render
from sim.reports.report.again import command_of
from sim.reports.report.asked import Judged
from sim.reports.report.curves import CURVES
from sim.reports.report.gather import Looked, Report
from sim.reports.report.labels import annotation_counts, label_order
from sim.reports.report.rows import Curve, curve, label_curves, label_table, nan_mean, nan_std
from sim.reports.report.running import COSTS
from sim.reports.report.scores import GRID

if TYPE_CHECKING:
    from numpy.typing import NDArray

Rows = list[dict[str, object]]

Column: TypeAlias = "NDArray[np.generic] | Sequence[object]"

HELD = ("native", "present", "annotated", "positives", "wrong")
"""Counts of a client's holdings, by label."""


def tables_of(report: Report) -> dict[str, str]:
    """CSV text by file name; a table without rows is left out."""
    made = {
        "runs.csv": _runs(report),
        "curves.csv": _curves(report),
        "labels.csv": _labels(report),
        "label-curves.csv": _label_curves(report),
        "holdings.csv": list(_holdings(report)),
        "clients.csv": list(_clients(report)),
        "cross-site.csv": list(_sites(report)),
        "reliability.csv": list(_reliability(report)),
        "calibration.csv": list(_calibration(report)),
        "thresholds.csv": list(_thresholds(report)),
        "cooccurrence.csv": list(_pairs(report)),
        "images.csv": list(_images(report)),
        "failures.csv": list(_failures(report)),
    }
    found = {name: text_of(rows) for name, rows in made.items() if rows}
    if report.comparison is not None:
        found["comparison.csv"] = render(report.comparison, "csv")
    return found


def text_of(rows: Sequence[dict[str, object]]) -> str:
    """Rows as CSV; a number that does not exist is empty."""
    heads = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, heads, restval="")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: "" if isinstance(v, float) and math.isnan(v) else v for name, v in row.items()})
    return text.getvalue()


def _runs(report: Report) -> Rows:
    rows: Rows = []
    for place, row in enumerate(report.rows, 1):
        for run in row.runs:
            number = run.round_of(report.model)
            about = {"row": place, "label": row.label, "reference": row.reference, "seed": run.seed, "run": run.name}
            state = {"state": run.status, "rounds": run.last_round, "best-round": run.best_round, "round": number}
            names = {name: None for event in (*run.rounds[-1:], *run.evaluations[-1:]) for name in event}
            metrics = {name: run.metric(name, number) for name in names if name.startswith(("server/", "client/"))}
            rows.append({**about, **state, "command": command_of(run), **metrics})
    return rows


def _curves(report: Report) -> Rows:
    rows: Rows = []
    for place, row in enumerate(report.rows, 1):
        for metric in (*CURVES, *COSTS):
            found = curve(row, metric)
            if found is not None:
                about = {"row": place, "label": row.label, "metric": metric}
                rows += _side_by_side(about, **_points(found), seeds=found.num_seeds)
    return rows


def _points(found: Curve, mean: str = "mean") -> dict[str, Column]:
    return {"round": found.rounds, mean: found.mean, "low": found.low, "high": found.high}


def _side_by_side(about: Mapping[str, object], **columns: Column) -> Rows:
    """A row for every place of the columns, each with what all are about; ``_`` in a name is written ``-``."""
    values = [column.tolist() if isinstance(column, np.ndarray) else column for column in columns.values()]
    names = [name.replace("_", "-") for name in columns]
    return [{**about, **dict(zip(names, row, strict=True))} for row in zip(*values, strict=True)]


def _labels(report: Report) -> Rows:
    rows: Rows = []
    for place, row in enumerate(report.rows, 1):
        for split in SIDES:
            found = label_table(row, report.model, split)
            if found is None:
                continue
            counts = annotation_counts(report, place - 1, found.names)
            columns: dict[str, Column] = {"label": found.names, "annotated": found.annotated}
            if counts is not None:
                columns |= {"annotations": counts[0], "annotated_present": counts[1]}
            columns |= {"present": found.num_present, "known": found.num_known, "prevalence": found.prevalence}
            columns |= {"ap": found.mean, "ap_std": found.std, "seeds": (~np.isnan(found.ap)).sum(axis=0)}
            rows += _side_by_side({"row": place, "row-label": row.label, "split": split}, **columns)
    return rows


def _label_curves(report: Report) -> Rows:
    rows: Rows = []
    for place, row in enumerate(report.rows, 1):
        found = None if row.reference else label_table(row, report.model)
        if found is None:
            continue
        order = label_order(found, annotation_counts(report, place - 1, found.names))
        for label, each in label_curves(row, "test", order).items():
            rows += _side_by_side({"row": place, "label": found.names[label]}, **_points(each, "ap"))
    return rows


def _holdings(report: Report) -> Iterator[dict[str, object]]:
    for held in report.held:
        what = held.holdings
        if what.annotated.size > 200_000:
            continue  # of so many, the federation's own arrays are the table
        for client, images in enumerate(what.images.tolist()):
            about = {"run": held.run.name, "client": client}
            counts = {name: getattr(what, name)[client] for name in HELD}
            yield from _side_by_side(about, label=what.label_names, images=[images] * len(what.label_names), **counts)


def _of_run(each: Looked) -> dict[str, object]:
    """What a row of a table is about that is of one run."""
    return {"row": each.place + 1, "run": each.run.name}


def _judged(report: Report) -> Iterator[tuple[dict[str, object], Judged]]:
    """What the models of a row say, and what a row of a table is about that is of all its seeds."""
    for each in report.looked:
        if each.judged is not None:
            seeds = " ".join(str(run.seed) for run in each.judged.runs)
            yield {"row": each.place + 1, "row-label": report.rows[each.place].label, "seeds": seeds}, each.judged


def _clients(report: Report) -> Iterator[dict[str, object]]:
    for each in report.looked:
        found = each.per_client
        if found is not None:
            for row in _side_by_side(_of_run(each), client=found.clients, mAP=found.map, chance=found.chance):
                yield {**row, "source": found.source}


def _sites(report: Report) -> Iterator[dict[str, object]]:
    for each in report.looked:
        if each.sites is not None:
            for model, values in zip(each.sites.models, each.sites.map, strict=True):
                about = {**_of_run(each), "model": model}
                yield from _side_by_side(about, client=each.sites.clients, mAP=values, labels=each.sites.num_labels)


def _reliability(report: Report) -> Iterator[dict[str, object]]:
    for about, judged in _judged(report):
        named = [("", judged.pooled), *zip(judged.label_names, judged.each, strict=True)]
        for name, found in named if len(named) <= 200 else named[:1]:
            columns = {"entries": found.count, "predicted": found.predicted, "observed": found.observed}
            yield from _side_by_side({**about, "label": name}, bin=range(len(found.count)), **columns)


def _calibration(report: Report) -> Iterator[dict[str, object]]:
    for about, judged in _judged(report):
        columns: dict[str, Column] = {"ece": nan_mean(judged.ece), "ece_std": nan_std(judged.ece)}
        if judged.thresholds:
            chosen = np.array([[one.chosen, *one.per_label] for one in judged.thresholds])
            columns |= {"threshold": nan_mean(chosen), "threshold_std": nan_std(chosen)}
        yield from _side_by_side(about, label=("", *judged.label_names), **columns)


def _thresholds(report: Report) -> Iterator[dict[str, object]]:
    for about, judged in _judged(report):
        if judged.thresholds:
            columns: dict[str, Column] = {"threshold": GRID}
            for side, curves in (
                ("validation", np.stack([one.val for one in judged.thresholds])),
                ("test", np.stack([one.test for one in judged.thresholds])),
            ):
                columns |= {f"{side}-macro-F1": nan_mean(curves), f"{side}-macro-F1-std": nan_std(curves)}
            yield from _side_by_side(about, **columns)


def _pairs(report: Report) -> Iterator[dict[str, object]]:
    for about, judged in _judged(report):
        found, names = judged.pairs, judged.label_names
        order = np.argsort(-np.nan_to_num(found.excess, nan=-np.inf), axis=None, kind="stable")[:5000]
        for j, k in (divmod(place, len(found.labels)) for place in order.tolist()):
            if np.isnan(found.rate[j, k]):
                break
            pair = {"given": names[found.labels[j]], "predicted": names[found.labels[k]]}
            rates = {"rate": float(found.rate[j, k]), "base": float(found.base[j, k])}
            spread = {"excess-std": float(found.excess_std[j, k])}
            yield {**about, **pair, "images": int(found.images[j, k]), **rates, **spread}


def _images(report: Report) -> Iterator[dict[str, object]]:
    for each in report.looked:
        if each.judged is not None:
            about = {"row": each.place + 1, "run": each.judged.runs[0].name}
            for image in each.judged.images:
                said = "; ".join(f"{entry.label}: {entry.kind} {entry.score:.3f}" for entry in image.entries)
                yield {**about, "image": image.name, "loss": image.loss, "known": image.num_known, "labels": said}


def _failures(report: Report) -> Iterator[dict[str, object]]:
    for run in report.runs:
        for event in run.failures:
            yield {
                "run": run.name,
                "round": event["round"],
                "client": event["client"],
                "host": event.get("host", ""),
                "reason": event["error"],
            }
