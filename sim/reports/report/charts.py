"""Charts as figures that read without JavaScript; a script adds the values under the pointer."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from fedmlic.record import jsonable
from sim.reports.report.markup import Child, Markup, details, element, joined, number
from sim.reports.report.svg import (
    NUM_COLOURS,
    WIDTH,
    Frame,
    frame,
    label,
    marker,
    padded,
    path,
    point,
    short,
    spaced,
    style_of,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEVELS = 10
"""Steps of a heat map's colours."""


@dataclass(frozen=True)
class Line:
    """One series of a chart.

    Attributes:
        name: for people.
        x, y: its points, none of them NaN.
        place: its number among the series, which decides its colour, dash and shape.
        low, high: the band around it; empty for none.
        switch: by what a reader shows and hides it: ``s3`` (row 3) or ``l5`` (label 5); empty for never.
        shown: whether it is shown at first.
        end: what stands at its right end.
        points: marks instead of a line.
        notes: what is said of each point besides its numbers; empty for nothing.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    place: int
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    switch: str = ""
    shown: bool = True
    end: str = ""
    points: bool = False
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Text:
    """What is written about a chart.

    Attributes:
        key: unique in the page.
        title: above it.
        about: what it shows, in a sentence or two, for readers and screen readers.
        x, y: of the axes.
    """

    key: str
    title: str
    about: str
    x: str = ""
    y: str = ""


@dataclass(frozen=True)
class Options:
    """How a line chart is drawn.

    Attributes:
        x_range, y_range: ends of the scales; ``None`` for those of the data.
        log_x, log_y: logarithmic scales.
        whole_x: ticks at whole numbers only.
        diagonal: draw where y equals x.
        uprights: x positions that are marked, with their words.
        levels: y positions that are marked, with their words.
    """

    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    log_x: bool = False
    log_y: bool = False
    whole_x: bool = False
    diagonal: bool = False
    uprights: Mapping[float, str] = field(default_factory=dict)
    levels: Mapping[float, str] = field(default_factory=dict)


def figure(text: Text, drawing: Markup, table: Markup | None, *below: Child) -> Markup:
    """A drawing with its title, what it shows, and the same as a table."""
    heading = element("h4", text.title, id=f"{text.key}-h")
    caption = element("figcaption", element("p", text.about), *below, details("As a table", table) if table else None)
    return element("figure", heading, drawing, caption, class_="chart", aria_labelledby=f"{text.key}-h")


def drawn(
    text: Text, height: float, parts: Sequence[Child], data: Mapping[str, Any] | None, width: float = WIDTH
) -> Markup:
    """An SVG that says what it is, and its numbers for the script."""
    ids = f"{text.key}-t {text.key}-d"
    svg = element(
        "svg",
        element("title", text.title, id=f"{text.key}-t"),
        element("desc", text.about, id=f"{text.key}-d"),
        *parts,
        viewBox=f"0 0 {point(width)} {point(height)}",
        role="img",
        aria_labelledby=ids,
        tabindex=0 if data else None,
    )
    return joined([svg, _script(data) if data else None])


def _script(data: Mapping[str, Any]) -> Markup:
    """Numbers for the script: JSON in which nothing can end the element."""
    found = json.dumps(jsonable(data), separators=(",", ":"), ensure_ascii=True).replace("<", "\\u003c")
    return Markup(f'<script type="application/json">{found}</script>')


def _brief(values: Sequence[float]) -> list[float]:
    return [float(f"{value:.4g}") for value in values]


def line_chart(text: Text, lines: Sequence[Line], options: Options | None = None) -> Markup:
    """Series over a common axis, with bands, marked positions and a mark at each end."""
    how = options or Options()
    every_x = [x for line in lines for x in line.x] + list(how.uprights)
    every_y = [y for line in lines for values in (line.y, line.low, line.high) for y in values] + list(how.levels)
    whole = how.whole_x and every_x
    x_range = how.x_range or ((min(every_x) - 0.5, max(every_x) + 0.5) if whole else padded(every_x))
    room = 24 if any(len(line.end) < 4 for line in lines) or not any(line.end for line in lines) else 92
    y_range = how.y_range or padded(every_y)
    at = frame(x_range, y_range, right=room, log_x=how.log_x, log_y=how.log_y)
    parts: list[Child] = [*at.axes(text.x, text.y, whole_x=how.whole_x)]
    if how.diagonal:
        low, high = max(x_range[0], y_range[0]), min(x_range[1], y_range[1])
        parts.append(element("path", d=path([(at.x(low), at.y(low)), (at.x(high), at.y(high))]), class_="guide"))
    parts += _guides(at, how)
    parts += [_series(at, line) for line in lines]
    parts += _ends(at, lines)
    data = {
        "kind": "lines",
        "frame": [at.x.start, at.y.stop, at.x.stop, at.y.start],
        "domain": [at.x.low, at.x.high, at.y.low, at.y.high],
        "log": [at.x.log, at.y.log],
        "x": text.x,
        "series": [_numbers(line) for line in lines],
    }
    return drawn(text, at.height, parts, data)


def _numbers(line: Line) -> dict[str, Any]:
    found: dict[str, Any] = {"n": line.name, "k": line.switch, "x": _brief(line.x), "y": _brief(line.y)}
    if line.low:
        found |= {"lo": _brief(line.low), "hi": _brief(line.high)}
    if line.notes:
        found["t"] = list(line.notes)
    return found


def _guides(at: Frame, how: Options) -> list[Markup]:
    made = []
    for line, (x, words) in enumerate(how.uprights.items()):
        place = at.x(x)
        made.append(element("path", d=f"M{point(place)} {point(at.y.stop)}V{point(at.y.start)}", class_="guide"))
        right = place > (at.x.start + at.x.stop) / 2
        made.append(
            label(place + (-4 if right else 4), at.y.stop + 9 + 13 * line, words, anchor="end" if right else "start")
        )
    for y, words in how.levels.items():
        place = at.y(y)
        made.append(element("path", d=f"M{point(at.x.start)} {point(place)}H{point(at.x.stop)}", class_="guide"))
        made.append(label(at.x.start + 4, place - 4, words))
    return made


def _series(at: Frame, line: Line) -> Markup:
    where = [(at.x(x), at.y(y)) for x, y in zip(line.x, line.y, strict=True)]
    parts: list[Child] = []
    if line.low and len(line.x) > 1:
        over = [(at.x(x), at.y(y)) for x, y in zip(line.x, line.high, strict=True)]
        under = [(at.x(x), at.y(y)) for x, y in zip(line.x, line.low, strict=True)]
        parts.append(element("path", d=path([*over, *reversed(under)]) + "z", class_="band"))
    if line.points or len(where) == 1:
        shape = line.place % NUM_COLOURS + line.place // NUM_COLOURS
        parts.append(element("path", d="".join(marker(shape, x, y, 3) for x, y in where), class_="mark"))
    else:
        parts.append(element("path", d=path(where), class_="line"))
    return element("g", *parts, class_=_class(line), data_k=line.switch or None)


def _class(line: Line) -> str:
    return style_of(line.place) + ("" if line.shown else " off")


def _ends(at: Frame, lines: Sequence[Line]) -> list[Markup]:
    """What stands at the right end of each line, moved apart where lines end close together."""
    ended = [line for line in lines if line.end and line.y]
    beside: dict[int, list[Line]] = {}
    for line in ended:
        if line.shown:
            beside.setdefault(round(at.x(line.x[-1]) / 16), []).append(line)
    places: dict[int, float] = {}
    for group in beside.values():
        moved = spaced([at.y(line.y[-1]) for line in group], 11, at.y.stop, at.y.start)
        places |= dict(zip(map(id, group), moved, strict=True))
    return [
        element(
            "g",
            label(at.x(line.x[-1]) + 5, places.get(id(line), at.y(line.y[-1])) + 3.6, line.end, class_="end"),
            class_=_class(line),
            data_k=line.switch or None,
        )
        for line in ended
    ]


@dataclass(frozen=True)
class Dots:
    """Values of one series in a dot plot, one per row; NaN for none."""

    name: str
    values: Sequence[float]
    place: int
    switch: str = ""
    shown: bool = True


def dot_plot(
    text: Text, names: Sequence[str], series: Sequence[Dots], base: Sequence[float] = (), base_name: str = ""
) -> Markup:
    """Named rows, a mark per series in each, and a tick at what would be reached anyway.

    Args:
        text: what is written about it.
        names: of the rows.
        series: whose marks.
        base: for each row where the tick stands; empty for no ticks.
        base_name: what the tick is.
    """
    every = [v for each in series for v in each.values if not math.isnan(v)] + [v for v in base if not math.isnan(v)]
    high = 1.0 if not every or max(every) > 0.6 else max(every) * 1.08
    step, left = 17, 126
    height = len(names) * step + 58
    at = frame((0.0, high or 1.0), (0.0, 1.0), height=height, left=left, right=14)
    parts: list[Child] = []
    ticks = at.x.ticks(4)
    for value in ticks:
        x = at.x(value)
        parts.append(element("path", d=f"M{point(x)} 14V{point(height - 40)}", class_="grid"))
        parts.append(label(x, height - 26, f"{value:.2g}", anchor="middle"))
    parts.append(label((left + WIDTH) / 2, height - 8, text.x, anchor="middle", class_="title"))
    hover: list[list[Any]] = []
    ys = [14 + step * (row + 0.5) for row in range(len(names))]
    for row, name in enumerate(names):
        parts.append(label(left - 8, ys[row] + 3.6, short(name), anchor="end"))
        if base and not math.isnan(base[row]):
            x = at.x(base[row])
            parts.append(element("path", d=f"M{point(x)} {point(ys[row] - 6)}v12", class_="base"))
            hover.append([round(x, 1), ys[row], f"{name}: {base_name} {number(base[row])}", ""])
    for order, each in enumerate(series):
        off = (order - (len(series) - 1) / 2) * min(5.0, 10 / len(series))
        marks = [(at.x(v), ys[row] + off, row) for row, v in enumerate(each.values) if not math.isnan(v)]
        shape = each.place % NUM_COLOURS + each.place // NUM_COLOURS
        drawn_ = element("path", d="".join(marker(shape, x, y) for x, y, _ in marks), class_="mark")
        hidden = "" if each.shown else " off"
        parts.append(element("g", drawn_, class_=style_of(each.place) + hidden, data_k=each.switch or None))
        hover += [
            [round(x, 1), round(y, 1), f"{names[row]}: {each.name} {number(each.values[row])}", each.switch]
            for x, y, row in marks
        ]
    return drawn(text, height, parts, {"kind": "points", "points": hover})


def bands(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.int64]:
    """Level 0 to 9 of each value between low and high; -1 where it is NaN."""
    share = (values - low) / (high - low) if high > low else np.zeros_like(values)
    level = np.clip(np.floor(np.nan_to_num(share) * LEVELS), 0, LEVELS - 1).astype(np.int64)
    return np.where(np.isnan(values), -1, level)


@dataclass(frozen=True)
class Heat:
    """What a heat map shows.

    Attributes:
        rows, columns: their names.
        values: float64 ``[rows, columns]``; NaN where there is none.
        low, high: ends of the colours.
        unit: what a value is, after its number.
        percent: whether values are shares.
        diverging: whether the middle of the colours is neutral.
        marked: cells with a frame (own models on own images).
    """

    rows: Sequence[str]
    columns: Sequence[str]
    values: NDArray[np.float64]
    low: float
    high: float
    unit: str
    percent: bool = False
    diverging: bool = False
    marked: Sequence[tuple[int, int]] = ()

    def shown(self, value: float) -> str:
        """A value as it is written."""
        if math.isnan(value):
            return "-"
        return f"{100 * value:.0f}" if self.percent else f"{value:.2f}".replace("0.", ".", 1)


def heat_map(text: Text, heat: Heat) -> Markup:
    """Cells in colour, with their numbers where there is room; a scale; a dot where there is no value."""
    num_rows, num_columns = heat.values.shape
    left, top = 122, 34
    wide = min(44.0, (WIDTH - left - 6) / max(num_columns, 1))
    tall = 20.0 if wide >= 22 else 15.0
    height = top + tall * num_rows + 48
    kind = "v" if heat.diverging else "h"
    levels = bands(heat.values, heat.low, heat.high)
    parts: list[Child] = [label(left, 11, text.x, class_="title")]
    parts += [
        label(left - 6, top + tall * (row + 0.5) + 3.6, short(name), anchor="end") for row, name in enumerate(heat.rows)
    ]
    step = (
        max(1, math.ceil(14 / wide))
        if max((len(c) for c in heat.columns), default=0) < 3
        else max(1, math.ceil(24 / wide))
    )
    parts += [
        label(
            left + wide * (column + 0.5), top - 6, short(heat.columns[column], max(3, int(wide / 6))), anchor="middle"
        )
        for column in range(0, num_columns, step)
    ]
    box = f"h{point(wide - 1)}v{point(tall - 1)}h-{point(wide - 1)}z"
    for level in range(-1, LEVELS):
        cells = np.argwhere(levels == level)
        if not len(cells):
            continue
        if level < 0:
            where = "".join(f"M{point(left + wide * (c + 0.5))} {point(top + tall * (r + 0.5))}h.01" for r, c in cells)
            parts.append(element("path", d=where, class_="none"))
            continue
        where = "".join(f"M{point(left + wide * c)} {point(top + tall * r)}{box}" for r, c in cells)
        parts.append(element("path", d=where, class_=f"{kind}{level}"))
    if wide >= 22:
        parts += [
            label(
                left + wide * (c + 0.5) - 0.5,
                top + tall * (r + 0.5) + 3.2,
                heat.shown(float(heat.values[r, c])),
                anchor="middle",
                class_=f"cell t{kind}{levels[r, c]}",
            )
            for r, c in np.ndindex(*heat.values.shape)
            if levels[r, c] >= 0
        ]
    parts += _framed(heat.marked, (left, top, wide, tall))
    parts += _scale_bar(heat, kind, left, height - 36)
    data = {
        "kind": "cells",
        "box": [left, top, wide, tall],
        "rows": list(heat.rows),
        "cols": list(heat.columns),
        "v": [[None if math.isnan(v) else float(f"{v:.3g}") for v in row] for row in heat.values.tolist()],
        "unit": heat.unit,
        "percent": heat.percent,
    }
    return drawn(text, height, parts, data)


def _framed(cells: Sequence[tuple[int, int]], place: tuple[float, float, float, float]) -> list[Markup]:
    """Frames around cells."""
    left, top, wide, tall = place
    box = f"h{point(wide - 1)}v{point(tall - 1)}h-{point(wide - 1)}z"
    return [
        element("path", d=f"M{point(left + wide * column)} {point(top + tall * row)}{box}", class_="own")
        for row, column in cells
    ]


def _scale_bar(heat: Heat, kind: str, left: float, top: float) -> list[Markup]:
    wide = 12
    made = [
        element("path", d=f"M{point(left + wide * level)} {point(top)}h{wide}v9h-{wide}z", class_=f"{kind}{level}")
        for level in range(LEVELS)
    ]
    ends = (f"{100 * v:.0f} %" if heat.percent else f"{v:.2f}" for v in (heat.low, heat.high))
    made += [
        label(left + at, top + 21, words, anchor=anchor)
        for words, at, anchor in zip(ends, (0, wide * LEVELS), ("start", "end"), strict=True)
    ]
    made.append(label(left + wide * LEVELS + 10, top + 9, "dot: none", class_="title"))
    made.append(label(left + wide * LEVELS + 10, top + 21, short(heat.unit, 24), class_="title"))
    return made
