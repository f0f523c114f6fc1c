"""Parts of a chart in SVG: scales, ticks, axes, marks. Colours are classes, so that a page's themes decide them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sim.console import cut, visible
from sim.reports.report.markup import Child, Markup, Value, element

NUM_COLOURS = 8
"""Colours that a page has; the next ones are the same with another dash."""

NUM_DASHES = 4

WIDTH = 400
"""Of a chart, so that its letters are readable on a telephone; wider pages set charts side by side."""


@dataclass(frozen=True)
class Scale:
    """From numbers to places on a page.

    Attributes:
        low, high: ends of the numbers.
        start, stop: where these lie.
        log: logarithmic; numbers are above 0.
    """

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The place of a number.

        >>> Scale(0, 10, 100, 200)(2.5)
        125.0
        """
        low, high, at = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (at - low) / (high - low) * (self.stop - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """Round numbers within the ends."""
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            steps = (1, 2, 5) if last - first <= 2 else (1,)
            every = [step * 10.0**power for power in range(first, last + 1) for step in steps]
            return [value for value in every if self.low <= value <= self.high] or [self.low, self.high]
        step = round_step((self.high - self.low) / max(count, 1))
        first = math.ceil(self.low / step - 1e-9)
        return [place * step for place in range(first, math.floor(self.high / step + 1e-9) + 1)]


def round_step(rough: float) -> float:
    """The smallest of 1, 2, 5, 10, ... times a power of ten that is not below ``rough``.

    >>> round_step(0.13), round_step(3)
    (0.2, 5.0)
    """
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def padded(values: Sequence[float], *, floor: float | None = None, ceiling: float | None = None) -> tuple[float, float]:
    """Ends of a scale that show all values, with some room, within floor and ceiling."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    room = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    low, high = low - room, high + room
    low = low if floor is None else max(low, floor)
    high = high if ceiling is None else min(high, ceiling)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def point(value: float) -> str:
    """A coordinate, short.

    >>> point(12.0), point(3.14159)
    ('12', '3.1')
    """
    return f"{value:.1f}".rstrip("0").rstrip(".")


def path(points: Sequence[tuple[float, float]]) -> str:
    """Straight lines through points."""
    return "M" + "L".join(f"{point(x)} {point(y)}" for x, y in points) if points else ""


def label(x: float, y: float, *words: Child, anchor: str = "start", **more: Value) -> Markup:
    """Text at a point."""
    return element("text", *words, x=point(x), y=point(y), text_anchor=anchor if anchor != "start" else None, **more)


def short(name: str, letters: int = 18) -> str:
    """A name on one line, as long as there is room; hovering and tables have it in full."""
    return cut(" ".join(visible(name).split()), letters)


def marker(shape: int, x: float, y: float, radius: float = 3.6) -> str:
    """Path of a circle, square, triangle or diamond: series differ in shape, not in colour alone."""
    r = radius
    at = f"M{point(x)} {point(y)}"
    if shape % NUM_DASHES == 0:
        return f"{at}m-{r} 0a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 -{2 * r} 0z"
    if shape % NUM_DASHES == 1:
        return f"{at}m-{r} -{r}h{2 * r}v{2 * r}h-{2 * r}z"
    if shape % NUM_DASHES == 2:
        return f"{at}m0 -{r + 0.8}l{r + 0.6} {2 * r}h-{2 * r + 1.2}z"
    return f"{at}m0 -{r + 1}l{r + 1} {r + 1}l-{r + 1} {r + 1}l-{r + 1} -{r + 1}z"


def style_of(place: int) -> str:
    """Classes of the colour and the dash of series number ``place``.

    >>> style_of(0), style_of(9)
    ('c0 d0', 'c1 d2')
    """
    colour = place % NUM_COLOURS
    return f"c{colour} d{(colour + place // NUM_COLOURS) % NUM_DASHES}"


def swatch(place: int) -> Markup:
    """A sample of a series' line and marker for keys."""
    line = element("path", d="M1 7H27", class_="line")
    shape = element("path", d=marker(place % NUM_COLOURS + place // NUM_COLOURS, 14, 7), class_="mark")
    return element(
        "svg",
        line,
        shape,
        class_=f"swatch {style_of(place)}",
        viewBox="0 0 28 14",
        width=28,
        height=14,
        aria_hidden="true",
    )


def tick_text(value: float, step: float) -> str:
    """A tick's number with as many decimals as its step needs.

    >>> tick_text(0.30000000000000004, 0.1), tick_text(20000, 5000)
    ('0.3', '20,000')
    """
    if abs(value) >= 1e6:
        return f"{value:.3g}"
    decimals = max(0, -math.floor(math.log10(step) + 1e-9)) if step < 1 else 0
    return f"{0.0 if abs(value) < step / 1e6 else value:,.{decimals}f}"


@dataclass(frozen=True)
class Frame:
    """Where a chart's numbers lie.

    Attributes:
        x, y: scales; y grows downwards on the page.
        height: of the chart.
    """

    x: Scale
    y: Scale
    height: float

    def axes(self, x_label: str, y_label: str, *, whole_x: bool = False) -> list[Markup]:
        """Grid, ticks and titles."""
        left, right = self.x.start, self.x.stop
        bottom, top = self.y.start, self.y.stop
        made = []
        ticks = self.y.ticks(4)
        for value in ticks:
            at = self.y(value)
            made.append(element("path", d=f"M{point(left)} {point(at)}H{point(right)}", class_="grid"))
            text = f"{value:,g}" if self.y.log else tick_text(value, _step(ticks))
            made.append(label(left - 5, at + 3.6, text, anchor="end"))
        ticks = [value for value in self.x.ticks(5) if not whole_x or value == round(value)]
        for value in ticks:
            at = self.x(value)
            made.append(element("path", d=f"M{point(at)} {point(bottom)}v4", class_="axis"))
            text = f"{value:,g}" if self.x.log else tick_text(value, _step(ticks))
            made.append(label(at, bottom + 15, text, anchor="middle"))
        made.append(element("path", d=f"M{point(left)} {point(bottom)}H{point(right)}", class_="axis"))
        made.append(label((left + right) / 2, bottom + 31, x_label, anchor="middle", class_="title"))
        made.append(label(2, top - 14, y_label, class_="title"))
        return made


def _step(ticks: Sequence[float]) -> float:
    return ticks[1] - ticks[0] if len(ticks) > 1 else abs(ticks[0]) or 1.0 if ticks else 1.0


def frame(
    x: tuple[float, float],
    y: tuple[float, float],
    *,
    height: float = 250,
    left: float = 46,
    right: float = 24,
    log_x: bool = False,
    log_y: bool = False,
) -> Frame:
    """The frame of a chart of the usual width."""
    return Frame(
        Scale(*x, left, WIDTH - right, log_x and x[0] > 0), Scale(*y, height - 40, 26, log_y and y[0] > 0), height
    )


def spaced(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places moved apart as little as is needed, in the same order, within ``low`` and ``high``.

    >>> spaced([10, 11, 40], 10, 0, 100)
    [10, 20, 40]
    """
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = list(places)
    last = low - gap
    for i in order:
        moved[i] = last = max(places[i], last + gap)
    edge = high + gap
    for i in reversed(order):
        moved[i] = edge = min(moved[i], edge - gap)
    return moved
