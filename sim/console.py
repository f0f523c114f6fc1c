"""What a person sees: progress on stderr, tables on stdout.

On a terminal progress is a live line; otherwise one plain line per round.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from sim.watch import Watch

if TYPE_CHECKING:
    from fedmlic.experiment import Experiment
    from fedmlic.protocol import Turn
    from fedmlic.record import RunFolder

SHOWN = ("mAP", "CF1", "OF1", "O-AP")
"""Test metrics of the closing table, besides prevalence and counts."""


def number(value: object, digits: int = 3) -> str:
    """A number for a table; a dash where it is undefined."""
    if isinstance(value, (int, float)) and value == value:  # noqa: PLR0124  (NaN)
        return f"{value:.{digits}f}"
    return "-"


def duration(seconds: float) -> str:
    """Seconds as 9s, 1m05s or 2h03m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


class Display(Watch):
    """Live progress of one run.

    Args:
        console: of stderr.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: Progress | None = None
        self._num_rounds = 0
        self._resumed_round = 0
        self._done: set[int] = set()
        self._round = 0
        self._started = time.monotonic()
        self._last_built = 0.0

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            columns = (
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
            )
            self._bars = Progress(*columns, console=self._console)
            self._bars.start()
            self._rounds_task = self._bars.add_task("starting", total=None, note="")
            self._clients_task = self._bars.add_task("clients", total=None, note="", visible=False)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def building(self, what: str, done: int, total: int) -> None:
        """Show that the corpus is being built."""
        if self._bars is not None:
            self._bars.update(self._rounds_task, description=f"building {what}", completed=done, total=total)
        elif done == total or time.monotonic() - self._last_built > 5:
            self._last_built = time.monotonic()
            self._console.print(f"building {what}: {done}/{total}", highlight=False, markup=False)

    def warning(self, text: str) -> None:
        """Show what a person should know of the data."""
        self._console.print(f"warning: {text}", style="yellow", highlight=False, markup=False, soft_wrap=True)

    def started(self, folder: RunFolder, experiment: Experiment, resumed_round: int) -> None:
        """Show what is run and where it is recorded."""
        self._num_rounds, self._resumed_round = experiment.num_rounds, resumed_round
        self._started = time.monotonic()
        sentence = (
            f"{experiment.dataset} split by {experiment.partition}, annotated under {experiment.regime}, "
            f"trained by {experiment.method}, merged by {experiment.strategy}"
        )
        self._console.print(sentence, style="dim", highlight=False, markup=False, soft_wrap=True)
        where = f"run folder: {folder.path}"
        if resumed_round:
            where += f" (resumed after round {resumed_round})"
        self._console.print(where, highlight=False, markup=False, soft_wrap=True)
        if self._bars is not None:
            self._bars.update(
                self._rounds_task, description="rounds", completed=resumed_round, total=experiment.num_rounds
            )

    def turn(self, round_number: int, turn: Turn, total: int) -> None:
        """Count a client's turn; name it if it failed."""
        if round_number != self._round:
            self._round, self._done = round_number, set()
        self._done.add(turn.client)
        if turn.error:
            reason = turn.error.splitlines()[0]
            line = f"round {round_number}: client {turn.client} failed: {reason}"
            self._console.print(line, style="yellow", highlight=False, markup=False, soft_wrap=True)
        if self._bars is not None:
            self._bars.update(self._clients_task, completed=len(self._done), total=total, visible=True)

    def event(self, kind: str, values: Mapping[str, object]) -> None:
        """Show a finished round."""
        if kind != "round":
            return
        done = int(str(values["round"]))
        elapsed = time.monotonic() - self._started
        left = elapsed / max(done - self._resumed_round, 1) * (self._num_rounds - done)
        quality = f"mAP {number(values.get('server/mAP'))}" if "server/mAP" in values else ""
        note = f"loss {number(values['loss'])}  {quality}  ETA {duration(left)}"
        if self._bars is not None:
            self._bars.update(self._rounds_task, completed=done, note=note)
        else:
            failed = f", {values['num-failed']} failed" if values["num-failed"] else ""
            line = f"round {done}/{self._num_rounds}  clients {values['num-clients']}{failed}  {note}"
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def results_table(result: Mapping[str, Any]) -> Table:
    """The closing table of a run."""
    metrics: Mapping[str, float] = result["metrics"]
    table = Table(title=f"after {result['rounds']} rounds, {duration(result['seconds'])}", title_justify="left")
    table.add_column("images")
    for name in SHOWN:
        table.add_column(name, justify="right")
    table.add_column("prevalence", justify="right")
    table.add_column("labels", justify="right")
    sides = {"test (server)": "server", "validation (server)": "server/val", "held out (clients, pooled)": "client"}
    for title, side in sides.items():
        if f"{side}/mAP" not in metrics:
            continue
        cells = [number(metrics.get(f"{side}/{name}")) for name in SHOWN]
        evaluable = metrics.get(f"{side}/num-evaluable", float("nan"))
        table.add_row(title, *cells, number(metrics.get(f"{side}/prevalence")), number(evaluable, 0))
    return table


def spread_line(metrics: Mapping[str, float]) -> str:
    """One line on how clients differ."""
    if "client/mAP/mean" not in metrics:
        return ""
    mean, std, worst = (number(metrics.get(f"client/mAP/{name}")) for name in ("mean", "std", "worst"))
    count = number(metrics.get("client/mAP/num-clients"), 0)
    return f"mAP per client: mean {mean}, standard deviation {std}, worst {worst} ({count} clients)"
