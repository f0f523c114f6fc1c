"""The closing table of a sweep: a line for each row of the study."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sim.console import Grid, number
from sim.sweep.search import shown_value

SHOWN = {"test mAP": "server/mAP", "val mAP": "server/val/mAP", "client mAP": "client/mAP/mean"}

SIDES = {"test mAP": "server", "val mAP": "server/val"}

CLIENT = "single-client"
"""Setting of a run of one client."""

BESIDE = {
    "seed",
    CLIENT,
    "reference",
    "at-border",
    "state",
    "run",
    "rounds",
    "best-round",
    "weights-sha256",
}
"""Columns of the table that are neither an axis nor a searched setting nor a metric."""


def is_beside(column: str) -> bool:
    """Whether a column of a study's table is neither an axis nor a searched setting."""
    return column in BESIDE or column.startswith(("server/", "client/"))


def study_table(rows: Sequence[dict[str, Any]]) -> Grid:
    """Mean and standard deviation over seeds, of the model after the last round."""
    keys = [key for key in dict.fromkeys(key for row in rows for key in row) if not is_beside(key)]
    # Local-only training has it in every row; elsewhere it is an axis.
    keys += [CLIENT] * any(CLIENT in row and not row["reference"] for row in rows)
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        own = row | {CLIENT: ""} if row["reference"] == "local-only" else row
        groups.setdefault(tuple(shown_value(own.get(key, "")) for key in (*keys, "reference")), []).append(row)
    metrics = {title: name for title, name in SHOWN.items() if any(name in row for row in rows)}
    if len(metrics) > 1:  # of few clients, where there is a number for all images
        metrics.pop("client mAP", None)
    lines = []
    for (*values, reference), found in groups.items():
        title = ", ".join(filter(None, [reference, *map(_short, values)])) or "base"
        title = "* " * any(row.get("at-border") for row in found) + title
        lines += _lines(title, reference, found, list(metrics.values()))
    constant = {
        title: [row[f"{side}/prevalence"] for row in rows if f"{side}/prevalence" in row]
        for title, side in SIDES.items()
    }
    if any(constant.values()):
        lines.append(["a constant score", *(spread(constant.get(title, [])) for title in metrics), ""])
    caption = "mean ± standard deviation over seeds, of the model after the last round"
    keys_at_border = dict.fromkeys(row["at-border"] for row in rows if row.get("at-border"))
    if keys_at_border:
        caption += f"\n* best at the border of what was searched: widen the grid or range ({', '.join(keys_at_border)})"
    return Grid("study", (", ".join(keys) or "row", *metrics, "seeds"), lines, caption)


def _lines(title: str, reference: str, rows: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> list[list[str]]:
    """The line of a row of the study; of local-only training one for the mean, one for the worst client."""
    seeds = {row["seed"] for row in rows}
    whole = {seed for seed in seeds if all(row["state"] == "complete" for row in rows if row["seed"] == seed)}
    kinds: dict[str, Callable[[list[float]], float]] = {"": statistics.fmean}
    if reference == "local-only":
        kinds = {"mean": statistics.fmean, "worst": min, "spread": statistics.pstdev}
    lines = []
    for kind, merged in kinds.items():
        cells = []
        for metric in metrics:
            found = {seed: [row.get(metric, math.nan) for row in rows if row["seed"] == seed] for seed in sorted(whole)}
            cells.append(spread([merged(values) for values in found.values() if not any(map(math.isnan, values))]))
        lines.append(
            [
                title.replace(reference, f"{reference} {kind}", 1) if kind else title,
                *cells,
                f"{len(whole)} of {len(seeds)}",
            ]
        )
    return lines


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation; a mean alone for one value, a dash for none."""
    good = [value for value in values if not math.isnan(value)]
    if not good:
        return "-"
    if len(good) == 1:
        return number(good[0])
    return f"{number(statistics.mean(good))} ± {number(statistics.stdev(good))}"


def _short(text: str) -> str:
    return text.replace("()", "")
