"""A run's record, read back: what it was, how it went, where it stands."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from fedmlic.record import open_run, read_json
from sim.console import number
from sim.reports.describe import client_title

if TYPE_CHECKING:
    from rich.console import Console

MAX_ROWS = 15


def summary(path: Path) -> dict[str, Any]:
    """The run in ``path`` as one JSON object: settings, status, curve, labels, failures.

    Raises:
        InputError: ``path`` is not a run.
    """
    folder = open_run(path)
    experiment, runtime = folder.settings()
    rounds, labels, failures = [], {}, []
    slow: Counter[int] = Counter()
    ended: dict[str, Any] = {}
    for event in folder.events():
        kind = event.pop("event")
        if kind == "round":
            rounds.append(event)
            slow[event.get("slowest-client", -1)] += 1
        elif kind == "labels":
            labels[event["split"]] = event
        elif kind == "client" and event.get("error"):
            failures.append(event)
        elif kind == "failed":
            ended = event
    complete = (path / "result.json").exists()
    checkpoints = folder.checkpoints()
    return {
        "run": str(path.absolute()),
        "status": "complete" if complete else "failed" if ended else "interrupted or running",
        "reason": ended.get("reason", ""),
        "experiment": experiment.model_dump(),
        "runtime": runtime.model_dump(),
        "rounds": rounds,
        "checkpoint": checkpoints[-1] if checkpoints else None,
        "best_round": rounds[-1]["best-round"] if rounds else None,
        "labels": labels,
        "failures": failures,
        **folder.data(),
        "balance": _balance(rounds, slow),
        "result": read_json(path / "result.json") if complete else None,
    }


def _balance(rounds: list[dict[str, Any]], slow: Counter[int]) -> dict[str, Any]:
    """How much hosts waited for each other, and which client was the slowest of its round most often."""
    shares = [event["idle-share"] for event in rounds if "idle-share" in event]
    if not shares:
        return {}
    client, times = slow.most_common(1)[0]
    longest = max(event["slowest-seconds"] for event in rounds if "slowest-seconds" in event)
    return {
        "idle_share": statistics.median(shares),
        "slowest_client": client,
        "slowest_in_rounds": times,
        "slowest_seconds": longest,
    }


def show(found: Mapping[str, Any], console: Console) -> None:
    """Print ``summary`` as tables."""
    experiment = found["experiment"]
    names = ("dataset", "partition", "regime", "model", "method", "strategy")
    head = f"[bold]{escape(found['run'])}[/]  {found['status']} {escape(found['reason'])}"
    console.print(head, soft_wrap=True, highlight=False)
    for name in names:
        console.print(f"  {name:<10} {experiment[name]}", highlight=False, markup=False, soft_wrap=True)
    console.print(
        f"  {experiment['num_clients']} clients, {experiment['cohort_size'] or 'all'} a round, "
        f"{experiment['num_rounds']} rounds, seed {experiment['seed']}",
        highlight=False,
    )
    if found["rounds"]:
        console.print(_curve(found["rounds"], found["best_round"]))
    if found["balance"]:
        told = found["balance"]
        slowest = client_title(told["slowest_client"], found["client_names"])
        console.print(
            f"hosts waited {told['idle_share']:.0%} of a round (median); client {slowest} was the "
            f"slowest of {told['slowest_in_rounds']} rounds; the longest turn took {told['slowest_seconds']:.2f} s",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    for split, event in found["labels"].items():
        console.print(_labels(split, event, found["untrained_labels"]))
    if found["failures"]:
        console.print(_failures(found["failures"], found["client_names"]))
    for text in found["warnings"]:
        console.print(f"warning: {text}", style="yellow", highlight=False, markup=False, soft_wrap=True)


def _curve(rounds: list[dict[str, Any]], best: int | None) -> Table:
    columns = {"loss": "loss", "test mAP": "server/mAP", "val mAP": "server/val/mAP", "test CF1": "server/CF1"}
    table = Table(title="rounds", title_justify="left")
    for title in ("round", *columns, "failed", "seconds"):
        table.add_column(title, justify="right")
    step = max(1, -(-len(rounds) // MAX_ROWS))
    shown = [event for i, event in enumerate(rounds) if i % step == step - 1 or event["round"] == best]
    if rounds[-1] not in shown:
        shown.append(rounds[-1])
    for event in shown:
        mark = " *" if event["round"] == best else ""
        cells = [number(event.get(key)) for key in columns.values()]
        table.add_row(f"{event['round']}{mark}", *cells, str(event["num-failed"]), number(event["seconds"], 1))
    table.caption = "* best on validation"
    return table


def _labels(split: str, event: Mapping[str, Any], untrained: Sequence[str] = ()) -> Table:
    table = Table(title=f"labels on {split}, round {event['round']}", title_justify="left")
    table.add_column("label")
    for title in ("AP", "precision", "recall", "F1", "present", "known"):
        table.add_column(title, justify="right")
    columns = [event[name] for name in ("ap", "precision", "recall", "f1", "num_present", "num_known")]
    rows = list(zip(event["label"], *columns, strict=True))
    for label, *values in rows[: 4 * MAX_ROWS]:
        mark = " *" if label in untrained else ""
        table.add_row(escape(label) + mark, *[number(v) for v in values[:4]], *[str(v) for v in values[4:]])
    captions = ["* present on no training image as annotated"] if untrained else []
    if len(rows) > 4 * MAX_ROWS:
        captions.append(f"{len(rows) - 4 * MAX_ROWS} more labels in labels.parquet")
    table.caption = "; ".join(captions) or None
    return table


def _failures(failures: list[dict[str, Any]], client_names: Sequence[str] = ()) -> Table:
    table = Table(title=f"{len(failures)} failed turns", title_justify="left")
    for title in ("round", "client", "host", "reason"):
        table.add_column(title)
    for event in failures[-MAX_ROWS:]:
        client = escape(client_title(event["client"], client_names))
        table.add_row(str(event["round"]), client, event["host"], escape(event["error"].splitlines()[0]))
    return table
