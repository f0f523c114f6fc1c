"""Sections on what a model's scores say: calibration, thresholds, errors by co-occurrence, hardest images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sim.reports.report.asked import MAX_SEEDS, Judged
from sim.reports.report.charts import Heat, Line, Options, Text, figure, heat_map, line_chart
from sim.reports.report.gather import Looked, Report
from sim.reports.report.images import SIDE, HardImage
from sim.reports.report.markup import (
    Cell,
    Child,
    Markup,
    details,
    element,
    joined,
    named,
    note,
    number,
    paragraph,
    table,
)
from sim.reports.report.overview import spread, spread_text
from sim.reports.report.rows import asked_in_words, nan_mean
from sim.reports.report.scores import GRID, MIN_IMAGES, ONE, OWN, REPORTED, PairErrors, Thresholds
from sim.reports.report.svg import point, swatch

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_CALIBRATED = 40
"""Most labels in the table of calibration errors."""

MAX_PAIRS = 15
"""Most pairs of labels in the table of errors."""

MAX_MAP = 18
"""Most labels in the map of errors."""

IMAGES = {"test": "test images", "val": "validation images"}


def _judged(report: Report) -> list[tuple[Looked, Judged]]:
    return [(each, each.judged) for each in report.looked if each.judged is not None]


def _missing(report: Report) -> Markup:
    """Why there are no scores."""
    notes = list(dict.fromkeys(text for each in report.looked for text in each.notes))
    if not notes:
        return note("This is made from the scores of a model, and none was asked (--scored 0).", kind="missing")
    return joined([note(named(text), kind="missing") for text in notes])


def which(report: Report) -> Markup:
    """Which runs' models were asked, for the sections that need scores."""
    items = [
        element(
            "li",
            swatch(each.place),
            element("b", f"{each.place + 1} "),
            element("span", named(report.rows[each.place].label), f": {each.model}, {_seeds(found)}"),
        )
        for each, found in _judged(report)
    ]
    rest = len(report.own) - len(items)
    more = f" {rest} other rows were not asked (--scored)." if rest > 0 else ""
    notes = [note(named(text)) for each, _ in _judged(report) for text in each.notes]
    return joined(
        [
            paragraph(
                f"The models of these seeds were asked for their scores (of a row at most {MAX_SEEDS}). Reliability "
                "curves are over the entries of all seeds together. Calibration errors, thresholds and F1 are of each "
                f"seed's model: mean ± standard deviation over seeds.{more}"
            ),
            element("ul", *items, class_="key"),
            *notes,
        ]
    )


def _seeds(found: Judged) -> str:
    return f"seed{'s' * (len(found.runs) > 1)} {', '.join(str(run.seed) for run in found.runs)}"


def calibration_section(report: Report) -> Markup:
    """Reliability curves, calibration errors, and thresholds chosen on validation images."""
    asked = _judged(report)
    if not asked:
        return _missing(report)
    split = IMAGES[asked[0][1].split]
    lines: list[Line] = []
    rows: list[list[Cell]] = []
    for each, found in asked:
        pooled = found.pooled
        there = ~np.isnan(pooled.predicted)
        notes = [f"{count:,} entries" for count in pooled.count[there].tolist()]
        name = report.rows[each.place].label
        lines.append(
            Line(
                name,
                pooled.predicted[there].tolist(),
                pooled.observed[there].tolist(),
                each.place,
                switch=f"s{each.place}",
                end=f"{each.place + 1}",
                notes=notes,
            )
        )
        rows += [
            [f"{each.place + 1} {name}", f"{low / 10:.1f} to {(low + 1) / 10:.1f}", int(count), float(p), float(o)]
            for low, (count, p, o) in enumerate(zip(pooled.count, pooled.predicted, pooled.observed, strict=True))
        ]
    text = Text(
        "reliability",
        "Reliability",
        "Mean probability in ten bins of equal width against the share that is present, over all known entries of "
        f"{split}. On the diagonal a model is calibrated; below it, it is too sure.",
        "predicted probability",
        "share present",
    )
    curve = figure(
        text,
        line_chart(text, lines, Options((0, 1), (0, 1), diagonal=True)),
        table("Reliability", ["row", "bin", "entries", "mean probability", "share present"], rows),
    )
    made = [
        which(report),
        element("div", curve, *_threshold_figures(report, asked), class_="grid"),
        _ece_table(asked),
        _threshold_table(report, asked),
    ]
    return joined(made)


def _ece_table(asked: Sequence[tuple[Looked, Judged]]) -> Markup:
    """Calibration error and threshold of each label; rows may be about different labels."""
    first = asked[0][1]
    heads = ["label"]
    columns: list[dict[str, Markup]] = []
    for each, found in asked:
        heads.append(f"ECE {each.place + 1}")
        columns.append(_by_label(found, found.ece))
        if found.thresholds:
            heads.append(f"threshold {each.place + 1}")
            columns.append(_by_label(found, np.array([[one.chosen, *one.per_label] for one in found.thresholds]), 2))
    order = np.argsort(-np.nan_to_num(nan_mean(first.ece)[1:]), kind="stable")[:MAX_CALIBRATED]
    names = [first.label_names[label] for label in order.tolist()]
    rows: list[list[Cell]] = [
        [name or "all entries pooled", *(column.get(name, math.nan) for column in columns)] for name in ["", *names]
    ]
    total = len(first.label_names)
    cut = f"; the {len(names)} worst of {total:,} labels, calibration.csv has all" if len(names) < total else ""
    title = f"Expected calibration error on {IMAGES[first.split]}, and the threshold chosen on validation images{cut}"
    return details("Calibration error and threshold of each label", table(title, heads, rows))


def _by_label(found: Judged, values: NDArray[np.float64], digits: int = 3) -> dict[str, Markup]:
    """Mean ± standard deviation over seeds; ``values`` has a row per seed: of all labels, then of each."""
    return {name: spread(column, digits) for name, column in zip(("", *found.label_names), values.T, strict=True)}


def _threshold_figures(report: Report, asked: Sequence[tuple[Looked, Judged]]) -> list[Markup]:
    found = [(each, [one for one in judged.thresholds if not math.isnan(one.chosen)]) for each, judged in asked]
    return [_threshold_figure(report, each, chosen) for each, chosen in found if chosen]


def _threshold_figure(report: Report, each: Looked, chosen: Sequence[Thresholds]) -> Markup:
    lines = []
    for place, (name, end, curves) in enumerate(
        (
            ("validation", "val ", np.stack([one.val for one in chosen])),
            ("test", "test", np.stack([one.test for one in chosen])),
        )
    ):
        if not np.isnan(curves).any():
            low, high = (curves.min(axis=0).tolist(), curves.max(axis=0).tolist()) if len(curves) > 1 else ((), ())
            lines.append(Line(name, GRID.tolist(), curves.mean(axis=0).tolist(), place, low, high, end=end))
    mean = float(np.mean([one.chosen for one in chosen]))
    several = len(chosen) > 1
    words = f"Each seed's is chosen where its validation images have the highest macro-F1, {mean:.2f} on average"
    text = Text(
        f"threshold-{each.place}",
        f"F1 against threshold, {report.row_name(each.place)}",
        "Macro-F1 at every threshold"
        + (", mean over seeds; the band goes from the lowest to the highest seed. " if several else ". ")
        + (words if several else f"{mean:g} is chosen where validation images have the highest macro-F1")
        + "; test images choose nothing.",
        "threshold",
        "macro-F1",
    )
    own = each.run.experiment.threshold
    marks = {own: f"the run's {own:g}", mean: f"chosen {mean:.2f}"}
    rows = [cells[1:] for cells in _threshold_rows("", own, chosen)]
    alternative = table("On test images, by choice of the threshold", ["threshold", *REPORTED], rows)
    return figure(text, line_chart(text, lines, Options(x_range=(0, 1), uprights=marks)), alternative)


def _threshold_rows(title: str, own: float, chosen: Sequence[Thresholds]) -> list[list[Cell]]:
    """Metrics on test images by choice of the threshold, over seeds."""
    rows: list[list[Cell]] = []
    for kind in chosen[0].results:
        found = [one for one in chosen if kind in one.results]
        values = {OWN: f", {own:g}", ONE: f", {spread_text([one.chosen for one in found], 2)}"}
        metrics = [spread([one.results[kind][metric] for one in found]) for metric in REPORTED]
        rows.append([title, kind + values.get(kind, ""), *metrics])
    return rows


def _threshold_table(report: Report, asked: Sequence[tuple[Looked, Judged]]) -> Markup | None:
    rows: list[list[Cell]] = [
        row
        for each, found in asked
        if found.thresholds
        for row in _threshold_rows(report.row_name(each.place), each.run.experiment.threshold, found.thresholds)
    ]
    if not rows:
        return note(
            "Thresholds are chosen on validation images and judged on test images; one of both is missing.",
            kind="missing",
        )
    return table(
        "Test images by how the threshold is chosen (on validation images only)", ["row", "threshold", *REPORTED], rows
    )


# Co-occurrence


def cooccurrence_section(report: Report) -> Markup:
    """False positives of a label on images that have another and not it."""
    asked = _judged(report)
    if not asked:
        return _missing(report)
    lead = paragraph(
        "How often label k is predicted (at the run's threshold) on images that are known to have j and known not to "
        "have k, against k's false-positive rate over all images known not to have it. Pairs with at least "
        f"{MIN_IMAGES} such {IMAGES[asked[0][1].split]}; rates are means over the seeds, the excess ± its standard "
        "deviation. A high excess says that the model predicts k from j."
    )
    parts = [_pairs(report, each, found) for each, found in asked]
    return joined([lead, *parts])


def top_pairs(found: Judged, most: int = MAX_PAIRS) -> list[tuple[int, int]]:
    """Places (j, k) in ``found.pairs`` with the highest excess above 0, highest first."""
    excess = np.nan_to_num(found.pairs.excess, nan=-np.inf)
    order = np.argsort(-excess, axis=None, kind="stable")[:most]
    places = [tuple(map(int, divmod(int(place), excess.shape[1]))) for place in order]
    return [(j, k) for j, k in places if excess[j, k] > 0]


def _pairs(report: Report, each: Looked, found: Judged) -> Markup:
    pairs, names = found.pairs, [found.label_names[label] for label in found.pairs.labels]
    top = top_pairs(found)
    title = report.row_name(each.place)
    if not top:
        words = (
            "no pair of labels has enough images"
            if np.isnan(pairs.rate).all()
            else "no label is predicted more often beside another"
        )
        return note(f"{title}: {words}.", kind="missing")
    rows: list[list[Cell]] = [
        [
            f"{names[k]} given {names[j]}",
            int(pairs.images[j, k]),
            float(100 * pairs.rate[j, k]),
            float(100 * pairs.base[j, k]),
            _points(pairs, j, k),
        ]
        for j, k in top
    ]
    heads = ["k given j, without k", "images", "false positives (%)", "k's rate over all (%)", "excess (points)"]
    listed = table(f"Pairs with the highest excess, {title}", heads, rows, digits=1)
    shown = list(dict.fromkeys(place for pair in top for place in pair))[:MAX_MAP]
    values = pairs.excess[np.ix_(shown, shown)].T
    limit = max(0.05, float(np.nanmax(np.abs(values))) if np.isfinite(values).any() else 0.05)
    text = Text(
        f"pairs-{each.place}",
        f"Excess of false positives, {title}",
        "Lines: the label k that is wrongly predicted. Columns: the label j that is there, numbered as the lines. "
        "In points of k's false-positive rate.",
        "label that is there (number of the line)",
    )
    lines = [f"{at + 1} {names[place]}" for at, place in enumerate(shown)]
    heat = Heat(
        lines, [str(at + 1) for at in range(len(shown))], values, -limit, limit, "points", percent=True, diverging=True
    )
    return element("div", figure(text, heat_map(text, heat), None), listed, class_="pair")


def _points(pairs: PairErrors, j: int, k: int) -> Markup:
    """The excess in points, with its standard deviation over seeds."""
    mean, std = 100 * float(pairs.excess[j, k]), 100 * float(pairs.excess_std[j, k])
    return element("span", f"{mean:.1f}" + (f" ± {std:.1f}" if not math.isnan(std) else ""), class_="n", data_v=mean)


# Images

SIGNS = {"missed": "−", "wrong": "×", "found": "✓", "unknown": "?"}  # noqa: RUF001

KINDS = {
    "missed": "present, not predicted",
    "wrong": "absent, predicted",
    "found": "present and predicted",
    "unknown": "predicted, and nobody knows: neither right nor wrong",
}


def images_section(report: Report) -> Markup:
    """The images with the highest loss over their known labels."""
    asked = [(each, found) for each, found in _judged(report) if found.images]
    if not asked:
        return _missing(report)
    items = [
        element("li", element("b", f"{SIGNS[kind]} {kind}", class_=kind), f": {words}") for kind, words in KINDS.items()
    ]
    legend = element("ul", *items, class_="legend")
    lead = paragraph(
        "Images with the highest mean cross-entropy over their known labels, with the probabilities that the model "
        "of one seed gave. Boxes are objects of the data set, where it has them: dashed where the label was missed."
    )
    return joined([lead, legend, *(_sheet(report, each, found) for each, found in asked)])


def _sheet(report: Report, each: Looked, found: Judged) -> Markup:
    words = asked_in_words(found.runs[0], report.model)
    title = f"{report.row_name(each.place)}, seed {found.runs[0].seed}, {words}, on {IMAGES[found.split]}"
    shown = element("div", *(_image(image) for image in found.images), class_="sheet")
    first = each is report.looked[0]
    return element("details", element("summary", title), shown, open=first)


def _image(image: HardImage) -> Markup:
    spoken = ", ".join(f"{entry.label} {entry.kind}" for entry in image.entries) or "no label present or predicted"
    high, wide = image.shape
    shown = element(
        "img",
        src=image.picture,
        alt=f"Image {image.name}: {spoken}",
        width=SIDE,
        height=round(SIDE * high / wide),
        loading="lazy",
    )
    unknown = f", {image.num_unknown} labels unknown" if image.num_unknown else ""
    more = [element("li", f"and {image.num_more} more", class_="small")] * bool(image.num_more)
    lists = [_entries(image, kind) for kind in KINDS if any(entry.kind == kind for entry in image.entries)]
    words = element("div", named(image.name), f": loss {number(image.loss, 2)}{unknown}", class_="small")
    caption = element("figcaption", words, element("ul", *lists, *more))
    return element("figure", element("div", shown, _boxes(image), class_="picture"), caption, class_="hard")


def _boxes(image: HardImage) -> Markup | None:
    """Objects, drawn over the image."""
    high, wide = image.shape
    made = [
        element(
            "rect",
            element("title", name),
            x=point(x),
            y=point(y),
            width=point(w),
            height=point(h),
            class_=f"box {kind}",
            vector_effect="non-scaling-stroke",
        )
        for x, y, w, h, name, kind in image.boxes
    ]
    return element("svg", *made, viewBox=f"0 0 {wide} {high}", aria_hidden="true") if made else None


def _entries(image: HardImage, kind: str) -> Markup:
    """The labels of one kind, with their probabilities."""
    parts: list[Child] = []
    for entry in (entry for entry in image.entries if entry.kind == kind):
        parts += [", " if parts else None, named(entry.label), f" {entry.score:.2f}".replace(" 0.", " .")]
    return element("li", element("b", f"{SIGNS[kind]} {kind} ", class_=kind), *parts)
