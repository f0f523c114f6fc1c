"""What a person sees of a sweep: on a terminal a live table of runs, otherwise a plain line for each that ended."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from rich.console import Group
from rich.live import Live

from sim.console import Grid, duration, number, plain, say

if TYPE_CHECKING:
    from rich.console import Console

BARS, ASCII_BARS = "▁▂▃▄▅▆▇█", "_.-=+*#@"
CURVE = 12
"""Most points of a curve."""

WIDE = 100
"""Columns of a terminal below which the loss is left out, for the sake of names."""


def curve(values: Sequence[float], *, ascii_only: bool = False) -> str:
    """A line of text whose letters rise with the values.

    >>> curve([0.1, 0.2, 0.4])
    '▁▃█'
    """
    bars = ASCII_BARS if ascii_only else BARS
    good = [value for value in values if not math.isnan(value)]
    if not good:
        return ""
    step = max(1, -(-len(good) // CURVE))
    shown = [*good[:-1][::step], good[-1]]
    low, high = min(shown), max(shown)
    return "".join(bars[round((value - low) / ((high - low) or 1) * (len(bars) - 1))] for value in shown)


def size(num_bytes: float) -> str:
    """Bytes as 3 kB, 12.1 MB or 4.0 GB."""
    for unit, power in (("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= power:
            return f"{num_bytes / power:.1f} {unit}"
    return f"{num_bytes / 1e3:.0f} kB"


@dataclass
class _Shown:
    label: str
    where: str
    rounds: int
    round: int = 0
    loss: float = math.nan
    scores: list[float] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)


class SweepView:
    """Shows a sweep as it goes on.

    Args:
        console: of stderr.
        num_runs: how many there are in all, as far as known.
        places: what runs play on: ``process`` or ``machine``.
    """

    def __init__(self, console: Console, num_runs: int, places: str = "process") -> None:
        self._console = console
        self._places = places
        self._num_runs = num_runs
        self._num_ended = 0
        self._left: float | None = None
        self._running: dict[str, _Shown] = {}
        self._live: Live | None = None
        self._said_pace = False

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=4, transient=True, get_renderable=self._table)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def line(self, text: str, style: str = "") -> None:
        """Say something that stays."""
        say(self._console, text, style)

    def warning(self, text: str) -> None:
        """Say what a person should know."""
        self.line(f"warning: {text}", "yellow")

    def counted(self, num_runs: int, num_ended: int, left: float | None) -> None:
        """How far the sweep is, and the seconds that are left."""
        self._num_runs, self._num_ended, self._left = num_runs, num_ended, left
        if left is not None and not self._said_pace:
            self._said_pace = True
            self.line(f"about {duration(left)} left for {num_runs - num_ended} runs, from measured rounds")

    def began(self, name: str, label: str, where: str, rounds: int) -> None:
        """A player has a run."""
        self._running[name] = _Shown(label, where, rounds)

    def placed(self, name: str, where: str) -> None:
        """A machine of a cluster has taken the run."""
        self._running[name].where = where

    def building(self, name: str, values: Mapping[str, Any]) -> None:
        """Images are being prepared for a run."""
        if values["done"] == values["total"]:
            self.line(f"built {values['what']}: {values['total']} ({self._running[name].label})", "dim")

    def round(self, name: str, values: Mapping[str, Any]) -> None:
        """A round of a run ended."""
        shown = self._running[name]
        shown.round, shown.loss = int(values.get("round", 0)), float(values.get("loss", math.nan))
        score = values.get("server/val/mAP", values.get("server/mAP", values.get("client/mAP/mean")))
        if score is not None:
            shown.scores.append(float(score))

    def ended(self, name: str, text: str, style: str = "") -> None:
        """A run is over."""
        shown = self._running.pop(name)
        took = duration(time.monotonic() - shown.began)
        self.line(f"[{self._num_ended + 1}/{self._num_runs}] {shown.label}: {text}, {took}", style)

    def _table(self) -> Group:
        left = f", about {duration(self._left)} left" if self._left is not None else ""
        head = plain(f"{self._num_ended} of {self._num_runs} runs{left}", "bold")
        if not self._running:
            return Group(head)
        ascii_only = self._console.options.ascii_only
        heads = ["run", self._places, "round", "loss", "val mAP", "curve"]
        rows = [
            [
                shown.label,
                shown.where,
                f"{shown.round}/{shown.rounds}",
                number(shown.loss),
                number(shown.scores[-1]) if shown.scores else "-",
                curve(shown.scores, ascii_only=ascii_only),
            ]
            for shown in self._running.values()
        ]
        if self._console.width < WIDE:
            heads, *rows = ([*row[:3], *row[4:]] for row in (heads, *rows))
        widths = [max(len(row[place]) for row in (heads, *rows)) for place in range(1, len(heads))]
        room = self._console.width - 3 * len(heads) - 1 - sum(widths)
        return Group(Grid("", heads, rows, most=max(16, room)), head)
