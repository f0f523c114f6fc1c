"""The section on curves over rounds, and what all curves share."""

from __future__ import annotations

from collections.abc import Sequence

from sim.reports.report.charts import Line, Options, Text, figure, line_chart
from sim.reports.report.gather import Report
from sim.reports.report.markup import Cell, Markup, element, joined, named, note, paragraph, table
from sim.reports.report.rows import Curve, Row, curve, thinned
from sim.reports.report.svg import NUM_COLOURS, swatch

CURVES = {
    "server/mAP": ("Test mAP", "mAP"),
    "server/val/mAP": ("Validation mAP", "mAP"),
    "loss": ("Training loss", "loss"),
    "server/CF1": ("Test CF1", "CF1"),
    "client/mAP/mean": ("Mean mAP of clients on their held-out images", "mAP"),
    "client/mAP/worst": ("mAP of the worst client", "mAP"),
}
"""Metrics with a curve, where more than one round has them."""


def row_key(rows: Sequence[Row]) -> Markup:
    """Which line is which row; a script lets a reader choose."""
    items = [
        element(
            "label",
            element("input", type="checkbox", value=f"s{place}", checked=place < NUM_COLOURS),
            swatch(place),
            element("b", f"{place + 1} "),
            named(row.label),
        )
        for place, row in enumerate(rows)
    ]
    return element("fieldset", element("legend", "Rows"), *items, class_="key", data_key="rows")


def curve_line(found: Curve, name: str, place: int, **more: str | bool) -> Line:
    """A curve as a line with its band over seeds."""
    thin = thinned(found)
    band = bool((found.num_seeds > 1).any()) and not more.get("bare")
    notes = [f"{n} seeds" for n in thin.num_seeds.tolist()] if band else []
    low, high = (thin.low.tolist(), thin.high.tolist()) if band else ((), ())
    switch, end, shown = str(more.get("switch", "")), str(more.get("end", "")), bool(more.get("shown", True))
    return Line(name, thin.rounds.tolist(), thin.mean.tolist(), place, low, high, switch, shown, end, notes=notes)


def curves_section(report: Report) -> Markup:
    """How numbers went over rounds, with bands over seeds."""
    made = [made for metric, words in CURVES.items() if (made := _curve_figure(report, metric, *words))]
    if not made:
        return note("There are fewer than two rounds to draw: the results above are all.", kind="missing")
    lead = paragraph(
        "Each line is the mean over the seeds of a row and ends with the row's number; the band goes from the lowest "
        "to the highest seed (references have none). These curves are of all rounds; the model that other sections "
        "speak of was chosen on validation images or is the last."
    )
    more = ""
    if len(report.rows) > NUM_COLOURS:
        more = f"At first {NUM_COLOURS} of {len(report.rows)} rows are shown; choose others."
    return joined(
        [
            lead,
            element("p", more, class_="script") if more else None,
            row_key(report.rows),
            element("div", *made, class_="grid"),
        ]
    )


def _curve_figure(report: Report, metric: str, title: str, axis: str) -> Markup | None:
    found = [(place, curve(row, metric)) for place, row in enumerate(report.rows)]
    there = [(place, each) for place, each in found if each is not None]
    if max((len(each.rounds) for _, each in there), default=0) < 2:
        return None
    lines = [
        curve_line(
            each,
            report.rows[place].label,
            place,
            switch=f"s{place}",
            end=f"{place + 1}",
            shown=place < NUM_COLOURS,
            bare=bool(report.rows[place].reference),
        )
        for place, each in there
    ]
    rows: list[list[Cell]] = [
        [
            report.row_name(place),
            int(c.rounds[-1]),
            *(float(values[-1]) for values in (c.mean, c.low, c.high)),
            float(c.mean.max()),
            int(c.rounds[c.mean.argmax()]),
        ]
        for place, c in there
    ]
    heads = ["row", "last round", "mean", "lowest seed", "highest seed", "highest mean", "in round"]
    key = "curve-" + metric.replace("/", "-")
    text = Text(key, title, f"{title} ({metric}) over rounds, one line per row.", "round", axis)
    options = Options(whole_x=True, y_range=None)
    return figure(text, line_chart(text, lines, options), table(f"{title}: last and highest", heads, rows))


def key_of(report: Report, places: Sequence[int]) -> Markup:
    """Which mark is which row, for figures of some rows."""
    items = [
        element("li", swatch(place), element("b", f"{place + 1} "), named(report.rows[place].label)) for place in places
    ]
    return element("ul", *items, class_="key")
