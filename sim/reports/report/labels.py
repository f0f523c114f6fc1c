"""The section on labels one by one: average precision beside prevalence and annotation, and over rounds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from sim.reports.report.charts import Dots, Line, Options, Text, dot_plot, figure, line_chart
from sim.reports.report.curves import curve_line, key_of
from sim.reports.report.gather import Report
from sim.reports.report.markup import Cell, Markup, element, joined, named, note, paragraph, table
from sim.reports.report.overview import spread
from sim.reports.report.rows import LabelTable, label_curves, label_table
from sim.reports.report.sites import same_federation
from sim.reports.report.svg import short, swatch

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_LABEL_ROWS = 6
"""Most rows of which the labels are drawn."""

MAX_LABELS = 40
"""Most labels that are drawn one by one; of more, some from the most to the least annotated."""

FIRST_LABELS = 6
"""Labels whose curve is shown at first."""

MAX_CURVED = 4
"""Rows of which the labels are drawn over rounds."""


def labels_section(report: Report) -> Markup:
    """Average precision of each label, beside its prevalence and how much of it is annotated."""
    own = report.own[:MAX_LABEL_ROWS]
    places = [report.rows.index(row) for row in own]
    split = "test" if any(label_table(row, report.model) for row in own) else "val"
    tables = [
        (place, found)
        for place, row in zip(places, own, strict=True)
        if (found := label_table(row, report.model, split))
    ]
    if not tables:
        return note("The server evaluated no label: there is no test split, or no round was completed.", kind="missing")
    first = tables[0][1]
    tables = [(place, found) for place, found in tables if found.names == first.names]
    annotations = {place: annotation_counts(report, place, first.names) for place, _ in tables}
    order = label_order(first, annotations[tables[0][0]])
    images = {"test": "test images", "val": "validation images"}[split]
    known = any(found is not None for found in annotations.values())
    counted = " Annotations are known entries in the training images of all clients." * known
    lead = paragraph(
        f"Average precision on {images} of the chosen models, mean over seeds. Only images of which a label is known "
        f"count. The tick is the label's prevalence there: what a constant score reaches.{counted}"
    )
    cut = (
        f"{len(order)} of {len(first.names):,} labels, from the most to the least annotated; tables/labels.csv has all."
        if len(order) < len(first.names)
        else ""
    )
    key = key_of(report, places)
    figures = [_label_dots(report, tables, order), _label_scatter(report, tables, annotations)]
    more = len(report.own) - len(own)
    hint = f"{more} more rows are in tables/labels.csv." if more > 0 else ""
    return joined(
        [
            lead,
            paragraph(*(text + " " for text in (cut, hint) if text)) if cut or hint else None,
            key,
            element("div", *figures, class_="grid"),
            _label_table(report, tables, order, annotations),
            element("h3", "Labels over rounds"),
            _label_curves(report, tables, order, split),
        ]
    )


Annotations = Mapping[int, "NDArray[np.int64] | None"]
"""``annotation_counts`` of each row that is shown, by its place."""


def annotation_counts(report: Report, place: int, names: Sequence[str]) -> NDArray[np.int64] | None:
    """int64 ``[2, labels]``: annotations of each label, and those that say present, in the federation of a row.

    That of the row's first run; a reference has its counts from a row that dealt out the same images. ``None`` where
    the page has not counted that federation.
    """
    run = report.rows[place].first
    for held in report.held:
        its = place in held.rows or same_federation(held.run, run)
        if its and held.holdings.label_names == tuple(names):
            return np.stack([held.holdings.annotated.sum(axis=0), held.holdings.positives.sum(axis=0)])
    return None


def label_order(found: LabelTable, annotations: NDArray[np.int64] | None) -> list[int]:
    """Labels that are drawn, most annotated first; of many, evenly from the most to the least."""
    weight = found.num_present if annotations is None else annotations[1] + found.num_present / 1e9
    order = np.argsort(-weight, kind="stable")
    if len(order) > MAX_LABELS:
        order = order[np.linspace(0, len(order) - 1, MAX_LABELS).round().astype(int)]
    return [int(label) for label in order]


def _label_dots(report: Report, tables: Sequence[tuple[int, LabelTable]], order: Sequence[int]) -> Markup:
    first = tables[0][1]
    annotated = _in_any_row(tables)
    names = [first.names[label] + ("" if annotated[label] else " *") for label in order]
    series = [
        Dots(report.rows[place].label, [float(found.mean[label]) for label in order], place, f"s{place}")
        for place, found in tables
    ]
    marked = "; * nobody annotates it" if not annotated[order].all() else ""
    text = Text(
        "label-ap",
        "Average precision by label",
        f"One line per label, a mark per row of runs, a tick at prevalence{marked}.",
        "average precision",
    )
    return figure(
        text, dot_plot(text, names, series, [float(first.prevalence[label]) for label in order], "prevalence"), None
    )


def _in_any_row(tables: Sequence[tuple[int, LabelTable]]) -> NDArray[np.bool_]:
    """Bool ``[labels]``: whether a label is annotated in any of these rows."""
    return np.asarray(np.any([found.annotated for _, found in tables], axis=0), dtype=np.bool_)


def _label_scatter(report: Report, tables: Sequence[tuple[int, LabelTable]], annotations: Annotations) -> Markup | None:
    counted = {place: found[1] for place, found in annotations.items() if found is not None}
    what = "annotations that say present" if counted else f"present {tables[0][1].split} images"
    amounts = counted or {place: found.num_present for place, found in tables}
    every = np.concatenate(list(amounts.values()))
    if len(tables[0][1].names) < 3 or not (every > 0).any():
        return None
    lines = []
    for place, found in tables:
        if place not in amounts:
            continue
        amount = amounts[place]
        chosen = [k for k in range(len(amount)) if amount[k] > 0 and not math.isnan(found.mean[k])]
        notes = [found.names[k] for k in chosen] if len(chosen) <= 200 else []
        lines.append(
            Line(
                report.rows[place].label,
                amount[chosen].tolist(),
                found.mean[chosen].tolist(),
                place,
                switch=f"s{place}",
                points=True,
                notes=notes,
            )
        )
    zero = int(np.all([amount == 0 for amount in amounts.values()], axis=0).sum())
    without = f" {zero} labels without any are left out." if zero else ""
    uncounted = ", ".join(str(place + 1) for place, _ in tables if place not in amounts)
    without += f" Not shown, since their federations were not counted: rows {uncounted}." if uncounted else ""
    text = Text(
        "label-scatter",
        "Average precision against annotation",
        f"Each mark is a label; how many {what} it has (logarithmic) against its average precision.{without}",
        what,
        "average precision",
    )
    positive = every[every > 0]
    options = Options(
        x_range=(float(positive.min()) * 0.8, float(positive.max()) * 1.25), log_x=True, y_range=(0.0, 1.0)
    )
    return figure(text, line_chart(text, lines, options), None)


def _label_table(
    report: Report,
    tables: Sequence[tuple[int, LabelTable]],
    order: Sequence[int],
    annotations: Annotations,
) -> Markup:
    first = tables[0][1]
    federations = _by_federation(annotations)
    heads = ["label", *(f"{what}{rows}" for rows, _ in federations for what in ("annotations", "say present"))]
    heads += [f"present in {first.split}", f"known in {first.split}", "prevalence"]
    heads += [f"AP {place + 1}" for place, _ in tables]
    rows: list[list[Cell]] = []
    in_any = _in_any_row(tables)
    for label in order:
        cells: list[Cell] = [first.names[label] + ("" if in_any[label] else " *")]
        cells += [int(count) for _, counts in federations for count in counts[:, label]]
        cells += [int(first.num_present[label]), int(first.num_known[label]), float(first.prevalence[label])]
        for _, found in tables:
            shown = spread(found.ap[:, label])
            cells.append(joined([shown, " *"]) if in_any[label] and not found.annotated[label] else shown)
        rows.append(cells)
    columns = ", ".join(f"AP {place + 1}: {report.rows[place].label}" for place, _ in tables)
    star = " * Nobody annotates the label in any row; beside a number: in that row."
    starred = star * (not all(found.annotated.all() for _, found in tables))
    note_ = element("p", named(columns), f". Mean ± standard deviation over seeds.{starred}", class_="small")
    return joined([table("Labels", heads, rows), note_])


def _by_federation(annotations: Annotations) -> list[tuple[str, NDArray[np.int64]]]:
    """Counts that differ, each once, with the rows that they are of where they are not of all."""
    found: list[tuple[list[int], NDArray[np.int64]]] = []
    for place, counts in annotations.items():
        if counts is None:
            continue
        same = next((places for places, other in found if np.array_equal(other, counts)), None)
        if same is None:
            found.append(([place], counts))
        else:
            same.append(place)
    return [
        (f" (row {', '.join(str(place + 1) for place in places)})" * (len(places) < len(annotations)), counts)
        for places, counts in found
    ]


def _label_curves(report: Report, tables: Sequence[tuple[int, LabelTable]], order: Sequence[int], split: str) -> Markup:
    names = tables[0][1].names
    stride = max(1, len(order) // FIRST_LABELS)
    shown = {label: at for at, label in enumerate(order[::stride][:FIRST_LABELS])}
    places = {label: shown.get(label, FIRST_LABELS + at) for at, label in enumerate(order)}
    figures = []
    for place, _ in tables[:MAX_CURVED]:
        curves = label_curves(report.rows[place], split, order)
        lines = [
            curve_line(
                found,
                names[label],
                places[label],
                switch=f"l{label}",
                end=short(names[label], 14).ljust(4),
                shown=label in shown,
            )
            for label, found in curves.items()
        ]
        if not lines or max(len(line.x) for line in lines) < 2:
            continue
        text = Text(
            f"labels-{place}",
            report.row_name(place),
            "Average precision of some labels over rounds, mean over seeds; the band goes from the lowest to the "
            "highest seed.",
            "round",
            "average precision",
        )
        figures.append(figure(text, line_chart(text, lines, Options(whole_x=True, y_range=(0.0, 1.0))), None))
    if not figures:
        return note("Fewer than two rounds were evaluated, so there are no curves.", kind="missing")
    boxes = [
        element(
            "label",
            element("input", type="checkbox", value=f"l{label}", checked=label in shown),
            swatch(places[label]),
            named(names[label]),
        )
        for label in order
    ]
    key = element("fieldset", element("legend", "Labels"), *boxes, class_="key chooser", data_key="labels")
    first = ", ".join(names[label] for label in shown)
    lead = element("p", "At first these are shown, from the most to the least annotated: ", named(first), ".")
    return joined([lead, key, element("div", *figures, class_="grid")])
