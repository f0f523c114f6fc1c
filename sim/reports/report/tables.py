"""The tables behind the figures, as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence

import numpy as np

from fedmlic.evaluation import SIDES
from sim.comparison.output import render
from sim.reports.report.again import command_of
from sim.reports.report.curves import CURVES
from sim.reports.report.gather import Report
from sim.reports.report.labels import annotation_counts, label_order
from sim.reports.report.rows import curve, label_curves, label_table
from sim.reports.report.running import COSTS
from sim.reports.report.scores import GRID

Rows = list[dict[str, object]]


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
            if found is None:
                continue
            columns = (
                found.rounds.tolist(),
                found.mean.tolist(),
                found.low.tolist(),
                found.high.tolist(),
                found.num_seeds.tolist(),
            )
            for number, mean, low, high, seeds in zip(*columns, strict=True):
                about = {"row": place, "label": row.label, "metric": metric, "round": number}
                rows.append({**about, "mean": mean, "low": low, "high": high, "seeds": seeds})
    return rows


def _labels(report: Report) -> Rows:
    rows: Rows = []
    for place, row in enumerate(report.rows, 1):
        for split in SIDES:
            found = label_table(row, report.model, split)
            if found is None:
                continue
            counts = annotation_counts(report, found.names)
            mean = found.mean
            for label, name in enumerate(found.names):
                about: dict[str, object] = {"row": place, "row-label": row.label, "split": split, "label": name}
                about["annotated"] = bool(found.annotated[label])
                if counts is not None:
                    about |= {"annotations": int(counts[0, label]), "annotated-present": int(counts[1, label])}
                about |= {"present": int(found.num_present[label]), "known": int(found.num_known[label])}
                there = found.ap[:, label][~np.isnan(found.ap[:, label])]
                std = float(there.std(ddof=1)) if len(there) > 1 else math.nan
                rows.append(
                    {
                        **about,
                        "prevalence": float(found.prevalence[label]),
                        "ap": float(mean[label]),
                        "ap-std": std,
                        "seeds": len(there),
                    }
                )
    return rows


def _label_curves(report: Report) -> Rows:
    rows: Rows = []
    for place, row in enumerate(report.rows, 1):
        found = None if row.reference else label_table(row, report.model)
        if found is None:
            continue
        order = label_order(found, annotation_counts(report, found.names))
        for label, each in label_curves(row, "test", order).items():
            for number, mean, low, high in zip(
                each.rounds.tolist(), each.mean.tolist(), each.low.tolist(), each.high.tolist(), strict=True
            ):
                rows.append(
                    {"row": place, "label": found.names[label], "round": number, "ap": mean, "low": low, "high": high}
                )
    return rows


def _holdings(report: Report) -> Iterator[dict[str, object]]:
    for held in report.held:
        what = held.holdings
        if what.annotated.size > 200_000:
            continue  # of so many, the federation's own arrays are the table
        for client, label in np.ndindex(*what.annotated.shape):
            names = {"client": client, "label": what.label_names[label], "images": int(what.images[client])}
            counts = {
                name: int(getattr(what, name)[client, label])
                for name in ("native", "present", "annotated", "positives", "wrong")
            }
            yield {"run": held.run.name, **names, **counts}


def _clients(report: Report) -> Iterator[dict[str, object]]:
    for each in report.looked:
        found = each.per_client
        if found is not None:
            for client, value, chance in zip(found.clients, found.map.tolist(), found.chance.tolist(), strict=True):
                yield {
                    "row": each.place + 1,
                    "run": each.run.name,
                    "client": client,
                    "mAP": value,
                    "chance": chance,
                    "source": found.source,
                }


def _sites(report: Report) -> Iterator[dict[str, object]]:
    for each in report.looked:
        if each.sites is not None:
            for model, values in zip(each.sites.models, each.sites.map.tolist(), strict=True):
                for client, value, labels in zip(
                    each.sites.clients, values, each.sites.num_labels.tolist(), strict=True
                ):
                    yield {
                        "row": each.place + 1,
                        "run": each.run.name,
                        "model": model,
                        "client": client,
                        "mAP": value,
                        "labels": labels,
                    }


def _reliability(report: Report) -> Iterator[dict[str, object]]:
    for each in report.looked:
        if each.judged is not None:
            named = [("", each.judged.pooled), *zip(each.judged.label_names, each.judged.each, strict=True)]
            for label, found in named if len(named) <= 200 else named[:1]:
                for number, (count, p, o) in enumerate(
                    zip(found.count.tolist(), found.predicted.tolist(), found.observed.tolist(), strict=True)
                ):
                    yield {
                        "row": each.place + 1,
                        "run": each.run.name,
                        "label": label,
                        "bin": number,
                        "entries": count,
                        "predicted": p,
                        "observed": o,
                    }


def _calibration(report: Report) -> Iterator[dict[str, object]]:
    for each in report.looked:
        if each.judged is not None:
            chosen = each.judged.thresholds
            yield {
                "row": each.place + 1,
                "run": each.run.name,
                "label": "",
                "ece": each.judged.pooled.ece,
                "threshold": chosen.chosen if chosen else "",
            }
            for label, (name, found) in enumerate(zip(each.judged.label_names, each.judged.each, strict=True)):
                threshold = float(chosen.per_label[label]) if chosen else ""
                yield {
                    "row": each.place + 1,
                    "run": each.run.name,
                    "label": name,
                    "ece": found.ece,
                    "threshold": threshold,
                }


def _thresholds(report: Report) -> Iterator[dict[str, object]]:
    for each in report.looked:
        if each.judged is not None and each.judged.thresholds is not None:
            found = each.judged.thresholds
            for threshold, val, test in zip(GRID.tolist(), found.val.tolist(), found.test.tolist(), strict=True):
                yield {
                    "row": each.place + 1,
                    "run": each.run.name,
                    "threshold": threshold,
                    "validation-macro-F1": val,
                    "test-macro-F1": test,
                }


def _pairs(report: Report) -> Iterator[dict[str, object]]:
    for each in report.looked:
        if each.judged is not None:
            found, names = each.judged.pairs, each.judged.label_names
            order = np.argsort(-np.nan_to_num(found.excess, nan=-np.inf), axis=None, kind="stable")[:5000]
            for place in order.tolist():
                j, k = divmod(place, len(found.labels))
                if np.isnan(found.rate[j, k]):
                    break
                about = {
                    "row": each.place + 1,
                    "run": each.run.name,
                    "given": names[found.labels[j]],
                    "predicted": names[found.labels[k]],
                }
                yield {
                    **about,
                    "images": int(found.images[j, k]),
                    "rate": float(found.rate[j, k]),
                    "base": float(found.base[k]),
                }


def _images(report: Report) -> Iterator[dict[str, object]]:
    for each in report.looked:
        for image in each.judged.images if each.judged is not None else ():
            said = "; ".join(f"{entry.label}: {entry.kind} {entry.score:.3f}" for entry in image.entries)
            yield {
                "row": each.place + 1,
                "run": each.run.name,
                "image": image.name,
                "loss": image.loss,
                "known": image.num_known,
                "labels": said,
            }


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
