"""What a person sees: progress on stderr, tables on stdout.

On a terminal progress is a live line below the evaluated rounds; otherwise one plain line per round.

Names of labels, files and data sets, and messages that quote them, are never markup: they reach
the terminal through ``plain``, ``TextTable`` and ``Grid``, in consoles of ``open_console``.
"""

from __future__ import annotations

import io
import sys
import time
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from fedmlic.frequency import GROUPS
from sim.watch import Watch

if TYPE_CHECKING:
    from rich.console import ConsoleOptions

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


def open_console(*, stderr: bool = False) -> Console:
    """The console of a standard stream: text is not markup, and what the encoding lacks is written as an escape."""
    stream = sys.stderr if stderr else sys.stdout
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def visible(text: str) -> str:
    r"""The text with what nothing can show as escapes; line ends stay.

    That is control characters, which a terminal would obey, and bytes of file names that are no UTF-8.

    >>> visible("\x1b[31mred"), visible("dog [red]"), visible("caf\udce9")
    ('\\x1b[31mred', 'dog [red]', 'caf\\udce9')
    """
    return "".join(c if c == "\n" or unicodedata.category(c) not in {"Cc", "Cs"} else ascii(c)[1:-1] for c in text)


def plain(text: object, style: str = "") -> Text:
    """Text from data or a person as it is: no markup."""
    return Text(visible(str(text)), style)


def say(console: Console, text: object, style: str = "") -> None:
    """Print a line as it is; the terminal, not the console, breaks it."""
    console.print(plain(text, style), soft_wrap=True)


def cut(text: str, width: int) -> str:
    """At most ``width`` columns of a terminal: both ends are kept, names often differ in the last letters.

    >>> cut("Enlarged Cardiomediastinum", 15)
    'Enlarg...tinum'
    """
    if cell_len(text) <= width:
        return text
    keep = max(width - 3, 2)
    return f"{set_cell_size(text, keep - keep // 2).rstrip()}...{set_cell_size(text[::-1], keep // 2)[::-1].lstrip()}"


class TextTable(Table):
    """A table whose titles and cells are shown as they are."""

    def __init__(self, title: str = "", *heads: str, **options: Any) -> None:  # noqa: ANN401  (those of Table)
        named = plain(title, "table.title") if title else None
        super().__init__(title=named, title_justify="left", caption_justify="left", **options)
        for head in heads:
            self.add_column(plain(head), overflow="fold")

    def add_row(self, *cells: Any, **options: Any) -> None:  # noqa: ANN401  (those of Table)
        """Add cells; text is never markup."""
        super().add_row(*(plain(cell) if isinstance(cell, str) else cell for cell in cells), **options)


HEAD_WIDTH = 32
"""Most columns of a terminal that a head has before it is cut."""

WORD_WIDTH = 12
"""Above this, a word of a head is broken."""


@dataclass
class Grid:
    """Rows of numbers under heads, as a table that fits the terminal.

    Where it does not fit, it goes on below with its first column repeated.

    Attributes:
        title: above the table.
        heads: one per column.
        rows: cells; the first of a row is its name.
        caption: below the table.
        first: how the first column is aligned, ``"left"`` or ``"right"``.
        most: columns of the terminal that the first column may take; 0 for a third of them.
    """

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    first: Literal["left", "right"] = "left"
    most: int = 0

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        """One table, or several that fit."""
        del console
        most = self.most or max(16, options.max_width // 3)
        rows = [[cut(_line(row[0]), most), *row[1:]] for row in self.rows]
        heads = [cut(_line(head), HEAD_WIDTH) for head in self.heads]
        cells = [max((cell_len(row[place]) for row in rows), default=1) for place in range(len(heads))]
        wide = [max(cell, cell_len(head)) for cell, head in zip(cells, heads, strict=True)]
        if _table_width(wide) <= options.max_width:
            yield self._table(heads, rows, range(len(heads)), wide)
            return
        words = [max((min(cell_len(word), WORD_WIDTH) for word in head.split()), default=1) for head in heads]
        narrow = [max(cell, word) for cell, word in zip(cells, words, strict=True)]
        for columns in _parts(narrow, options.max_width):
            yield self._table(heads, rows, columns, narrow)

    def _table(
        self, heads: Sequence[str], rows: Sequence[Sequence[str]], columns: Sequence[int], widths: Sequence[int]
    ) -> Table:
        begins, ends = 1 in columns or len(heads) == 1, columns[-1] == len(heads) - 1
        table = TextTable(self.title if begins else f"{self.title} (continued)")
        table.caption = plain(self.caption, "table.caption") if self.caption and ends else None
        for place in columns:
            table.add_column(
                plain(heads[place]), justify="right" if place else self.first, width=widths[place], overflow="fold"
            )
        for row in rows:
            table.add_row(*(row[place] for place in columns))
        return table


def _line(text: str) -> str:
    return visible(text).replace("\n", " ")


def _table_width(widths: Sequence[int]) -> int:
    return sum(width + 3 for width in widths) + 1


def _parts(widths: Sequence[int], most: int) -> list[list[int]]:
    """The first column with as many others as fit, again and again until all have been shown."""
    parts = [[0]]
    for place in range(1, len(widths)):
        if len(parts[-1]) > 1 and _table_width([widths[column] for column in [*parts[-1], place]]) > most:
            parts.append([0])
        parts[-1].append(place)
    return parts


def progress_bars(console: Console, *, transient: bool = False) -> Progress:
    """Live lines: what is done, a bar, how many of how many, a note (field ``note``), time elapsed."""
    columns = (
        TextColumn("{task.description}", style="bold", markup=False),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console, transient=transient)


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

    Attributes:
        folder: of the run, once it exists.
    """

    def __init__(self, console: Console) -> None:
        self.folder: RunFolder | None = None
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
            self._bars = progress_bars(self._console)
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
            say(self._console, f"building {what}: {done}/{total}")

    def warning(self, text: str) -> None:
        """Show what a person should know of the data."""
        self._console.print(f"warning: {text}", style="yellow", highlight=False, markup=False, soft_wrap=True)

    def started(self, folder: RunFolder, experiment: Experiment, resumed_round: int) -> None:
        """Show what is run and where it is recorded."""
        self.folder = folder
        self._num_rounds, self._resumed_round = experiment.num_rounds, resumed_round
        self._started = time.monotonic()
        sentence = (
            f"{experiment.dataset} split by {experiment.partition}, annotated under {experiment.regime}, "
            f"trained by {experiment.method}, merged by {experiment.strategy}"
        )
        say(self._console, sentence, "dim")
        where = f"run folder: {folder.path}"
        if resumed_round:
            where += f" (resumed after round {resumed_round})"
        say(self._console, where)
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
            say(self._console, f"round {round_number}: client {turn.client} failed: {reason}", "yellow")
        if self._bars is not None:
            self._bars.update(self._clients_task, completed=len(self._done), total=total, visible=True)

    def event(self, kind: str, values: Mapping[str, object]) -> None:
        """Show a finished round, or a warning."""
        if kind == "warning":
            text = f"warning: {values['text']}"
            self._console.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)
        if kind != "round":
            return
        done = int(str(values["round"]))
        elapsed = time.monotonic() - self._started
        left = elapsed / max(done - self._resumed_round, 1) * (self._num_rounds - done)
        evaluated = "server/mAP" in values
        note = f"loss {number(values['loss'])}" + f"  mAP {number(values.get('server/mAP'))}" * evaluated
        estimate = f"ETA {duration(left)}"
        if self._bars is None or evaluated:
            failed = f", {values['num-failed']} failed" if values["num-failed"] else ""
            line = f"round {done}/{self._num_rounds}  clients {values['num-clients']}{failed}  {note}"
            say(self._console, line if self._bars is not None else f"{line}  {estimate}")
        if self._bars is not None:
            self._bars.update(self._rounds_task, completed=done, note=estimate)


SPLITS = {"test": "server", "validation": "server/val", "held out": "client"}
"""Title of each side of the closing table, and how the names of its metrics begin."""


def client_title(client: int, names: Sequence[str]) -> str:
    """How a client is called: its number and, where it has one, its name.

    >>> client_title(1, ["ward A", "ward B"]), client_title(1, [])
    ('1 ward B', '1')
    """
    return f"{client} {names[client]}" if client < len(names) else str(client)


def results_table(result: Mapping[str, Any]) -> Grid:
    """The closing table of a run: its last model and, where that is another, the best one.

    Validation images choose that; where clients keep tensors, which the server has no model of, their held-out images.
    """
    last, best = result["rounds"], result["best_round"]
    models = _models(result)
    rows = [
        _result_row(title + model, metrics, side)
        for title, side in SPLITS.items()
        for model, metrics in models.items()
        if f"{side}/mAP" in metrics
    ]
    rounds = f"{last} round{'s' if last != 1 else ''}"
    chosen_on = "validation" if any(map(is_of_server, result["metrics"])) else "clients' held-out images"
    title = f"after {rounds}, which took {duration(result['seconds'])}"
    notes = ["test and validation images are the server's, held-out ones the clients'"]
    if len(models) > 1:
        notes.append(f"last: the model after round {last}; best: after round {best}, chosen on {chosen_on}")
    elif last == 0:
        notes.append("the model as it begins, which never trained")
    elif best == last:
        notes.append(f"the model after round {last}, which is also the best on {chosen_on}")
    else:
        notes.append(f"the model after round {last}")
    return Grid(title, ("images", *SHOWN, "prevalence", "labels"), rows, "; ".join(notes))


def is_of_server(metric: str) -> bool:
    """Whether a metric is of the server's images; without any such, clients chose the best round."""
    return metric.startswith("server/")


def _result_row(title: str, metrics: Mapping[str, Any], side: str) -> list[str]:
    cells = [number(metrics.get(f"{side}/{name}")) for name in SHOWN]
    return [title, *cells, number(metrics.get(f"{side}/prevalence")), number(metrics.get(f"{side}/num-evaluable"), 0)]


def _models(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Metrics of the last model and, where it is another and was evaluated, of the best, by what follows a title."""
    if result["best_round"] in {0, result["rounds"]} or not result.get("best_metrics"):
        return {"": result["metrics"]}
    return {", last": result["metrics"], ", best": result["best_metrics"]}


def groups_table(result: Mapping[str, Any], tail_below: int, head_above: int) -> Grid | None:
    """The mAP of the frequency groups on test images; None unless there are several.

    Args:
        result: as ``results_table`` takes it.
        tail_below: where groups begin, see ``fedmlic.frequency``.
        head_above: likewise.
    """
    groups = [group for group in GROUPS if f"server/mAP/{group}" in result["metrics"]]
    if len(groups) < 2:
        return None
    rows = []
    for group in groups:
        for model, metrics in _models(result).items():
            shares = [number(metrics.get(f"server/{name}/{group}")) for name in ("mAP", "prevalence")]
            counts = [number(metrics.get(f"server/{name}/{group}"), 0) for name in ("num-evaluable", "num-labels")]
            rows.append([group + model, *shares, *counts])
    caption = f"annotated as present in training: head more than {head_above} times, tail fewer than {tail_below}"
    return Grid("test, labels by frequency", ("labels", "mAP", "prevalence", "judged", "of"), rows, caption)


def apart_line(metrics: Mapping[str, float], side: str) -> str:
    """One line on the labels that nobody annotates, empty where there are none."""
    if f"{side}/mAP/unannotated" not in metrics:
        return ""
    ap, chance = (number(metrics.get(f"{side}/{name}/unannotated")) for name in ("mAP", "prevalence"))
    judged, labels = (number(metrics.get(f"{side}/{name}/unannotated"), 0) for name in ("num-evaluable", "num-labels"))
    what = {"server": "test", "server/val": "validation", "client": "held-out"}[side]
    return (
        f"unannotated labels, {what} images: mAP {ap} (a constant score: {chance}) over {judged} of {labels}; "
        "no other number counts them"
    )


def spread_line(metrics: Mapping[str, float], client_names: Sequence[str] = ()) -> str:
    """One line on how clients differ.

    Args:
        metrics: of a model.
        client_names: of clients that are owners with names.
    """
    if "client/mAP/mean" not in metrics:
        return ""
    found = {name: metrics.get(f"client/mAP/{name}") for name in ("mean", "std", "worst", "prevalence", "chance")}
    count, total, pairs, entries = (
        number(metrics.get(f"client/mAP/{name}"), 0)
        for name in ("num-clients", "num-evaluated", "num-pairs", "min-entries")
    )
    if entries == "-":  # of a run before there was such a rule
        entries, total = "1", count
    rule = f"labels count with at least {entries} present and {entries} absent held-out images of a client"
    if count == "0":
        return f"mAP per client: none of {total} clients has a label that counts ({rule})"
    mean, std, worst, prevalence, chance = (number(value) for value in found.values())
    whose = metrics.get("client/mAP/worst-client")  # runs of earlier versions do not say
    if whose is not None:
        worst += f" (client {client_title(int(whose), client_names)})"
    return (
        f"mAP per client: mean {mean}, standard deviation {std}, worst {worst} over {count} of {total} clients; "
        f"by chance: {prevalence} for a constant score, {chance} for a random order "
        f"({rule}: {pairs} pairs of client and label)"
    )
