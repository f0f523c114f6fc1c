"""A run's record, read back: what it was, how it went, where it stands."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmlic.evaluation import SIDES
from fedmlic.metrics import UNANNOTATED
from fedmlic.record import RunFolder, metrics_at, open_run, read_json
from sim.console import (
    Grid,
    TextTable,
    apart_line,
    client_title,
    cut,
    groups_table,
    is_of_server,
    number,
    plain,
    results_table,
    say,
    spread_line,
)

if TYPE_CHECKING:
    from rich.console import Console

MAX_ROWS = 15
MAX_OWN = 4
"""Most metrics of the method in the table of rounds."""

METHOD = "method/"

APART = f"server/mAP{UNANNOTATED}"

MAX_REASON = 300
"""Most letters of a reason that a table shows."""


def summary(path: Path) -> dict[str, Any]:
    """The run in ``path`` as one JSON object: settings, status, curve, labels, failures.

    Raises:
        InputError: ``path`` is not a run.
    """
    folder = open_run(path)
    experiment, runtime = folder.settings()
    rounds, labels, failures = [], {}, []
    slow: Counter[int] = Counter()
    evaluated: dict[str, Any] = {}
    own: list[dict[str, Any]] = []
    ended: dict[str, Any] = {}
    for event in folder.events():
        kind = event.pop("event")
        if kind == "round":
            rounds.append(event)
            slow[event.get("slowest-client", -1)] += 1
        elif kind == "labels":
            labels[event["split"]] = event
        elif kind == "client-evaluation":
            own = [event, *(each for each in own if each["round"] == event["round"])]
        elif kind == "clients-evaluated":
            evaluated = event
        elif kind == "client" and event.get("error"):
            failures.append(event)
        elif kind == "failed":
            ended = event
    complete = (path / "result.json").exists()
    checkpoints = folder.checkpoints()
    best_round = rounds[-1]["best-round"] if rounds else None
    return {
        "run": str(path.absolute()),
        "status": "complete" if complete else "failed" if ended else "interrupted or running",
        "reason": ended.get("reason", ""),
        "experiment": experiment.model_dump(),
        "runtime": runtime.model_dump(),
        "rounds": rounds,
        "checkpoint": checkpoints[-1] if checkpoints else None,
        "best_round": best_round,
        "models": _models(folder, rounds, best_round),
        "clients_evaluated": evaluated,
        "client_evaluations": sorted(own, key=lambda event: event["client"]),
        "labels": labels,
        "failures": failures,
        **folder.data(),
        "balance": _balance(rounds, slow),
        "result": read_json(path / "result.json") if complete else None,
    }


def _models(folder: RunFolder, rounds: list[dict[str, Any]], best_round: int | None) -> dict[str, Any]:
    """The last evaluated model and the best on validation, each with its round and all its metrics; None without."""
    judged = [event["round"] for event in rounds if any(map(is_of_server, event))]
    last = judged[-1] if judged else rounds[-1]["round"] if rounds else 0
    return {
        name: {"round": number, "metrics": metrics_at(folder, number)} if there else None
        for name, number, there in (("last", last, bool(rounds)), ("best", best_round or 0, bool(best_round)))
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
    console.print(plain(found["run"], "bold"), soft_wrap=True)
    say(console, f"  {found['status']} {found['reason']}")
    for name in [*names, *["inference"] * (experiment["inference"] not in {"plain", "plain()"})]:
        say(console, f"  {name:<10} {experiment[name]}")
    say(
        console,
        f"  {experiment['num_clients']} clients, {experiment['cohort_size'] or 'all'} a round, "
        f"{experiment['num_rounds']} round{'s' if experiment['num_rounds'] != 1 else ''}, seed {experiment['seed']}",
    )
    if found["rounds"]:
        console.print(_curve(found["rounds"], found["best_round"]))
    _show_models(found, console)
    line = spread_line(found["clients_evaluated"], found["client_names"])
    if line:
        text = f"after round {found['clients_evaluated']['round']}: {line}"
        say(console, text)
    if found["balance"]:
        balance = found["balance"]
        slowest = client_title(balance["slowest_client"], found["client_names"])
        say(
            console,
            f"hosts waited {balance['idle_share']:.0%} of a round (median); client {slowest} was the "
            f"slowest in {balance['slowest_in_rounds']} of {len(found['rounds'])} rounds; the longest turn took "
            f"{balance['slowest_seconds']:.2f} s",
        )
    for split, event in found["labels"].items():
        console.print(_labels(split, event, found["untrained_labels"], found["best_round"]))
        apart = _apart(split, found["rounds"], event["round"])
        if apart:
            say(console, apart)
    if found["failures"]:
        console.print(_failures(found["failures"], found["client_names"]))
    for text in found["warnings"]:
        say(console, f"warning: {text}", "yellow")


def _show_models(found: Mapping[str, Any], console: Console) -> None:
    """What the last model and the best one reach."""
    last, best = found["models"]["last"], found["models"]["best"]
    if last is None or not last["metrics"]:
        return
    shown = {
        "rounds": last["round"],
        "best_round": 0 if best is None else best["round"],
        "metrics": last["metrics"],
        "best_metrics": {} if best is None else best["metrics"],
        "seconds": found["rounds"][-1]["seconds"],
    }
    console.print(results_table(shown))
    groups = groups_table(shown, found["experiment"]["tail_below"], found["experiment"]["head_above"])
    if groups is not None:
        console.print(groups)


def _curve(rounds: list[dict[str, Any]], best: int | None) -> Grid:
    columns = {"loss": "loss", "test mAP": "server/mAP", "val mAP": "server/val/mAP", "test CF1": "server/CF1"}
    common = len(columns)
    if any(APART in event for event in rounds):
        columns["not annotated"] = APART
        common += 1
    own = sorted({key for event in rounds for key in event if key.startswith(METHOD)})
    columns |= {key.removeprefix(METHOD): key for key in own[:MAX_OWN]}
    step = max(1, -(-len(rounds) // MAX_ROWS))
    shown = [event for i, event in enumerate(rounds) if i % step == step - 1 or event["round"] == best]
    if rounds[-1] not in shown:
        shown.append(rounds[-1])
    rows = []
    for event in shown:
        mark = " *" if event["round"] == best else ""
        cells = [number(event.get(key)) for key in columns.values()]
        rows.append([f"{event['round']}{mark}", *cells, str(event["num-failed"]), number(event["seconds"], 1)])
    # Time is counted from the start of the run, as in the record.
    heads = ("round", *columns, "failed", "total seconds")
    chosen_on = "validation" if any(any(map(is_of_server, event)) for event in rounds) else "clients' held-out images"
    notes = [f"* best on {chosen_on}"] if best else []
    if APART in columns.values():
        notes.append("not annotated: test mAP of the labels that nobody annotates, which no other column counts")
    if own:
        more = f" ({len(own) - MAX_OWN} more in rounds.parquet)" if len(own) > MAX_OWN else ""
        notes.append(f"{', '.join(list(columns)[common:])}: the method's sums over a round's clients{more}")
    return Grid("rounds", heads, rows, caption="; ".join(notes), first="right")


def _labels(split: str, event: Mapping[str, Any], untrained: Sequence[str], best_round: int | None) -> Grid:
    heads = ("label", "AP", "precision", "recall", "F1", "present", "known")
    columns = [event[name] for name in ("ap", "precision", "recall", "f1", "num_present", "num_known")]
    every = list(zip(event["label"], *columns, strict=True))
    annotated = dict(zip(event["label"], event.get("annotated", [True] * len(every)), strict=True))
    marks = {label: " *" * (label in untrained) if annotated[label] else " **" for label in event["label"]}
    rows = [
        [label + marks[label], *[number(v) for v in values[:4]], *[str(v) for v in values[4:]]]
        for label, *values in every[: 4 * MAX_ROWS]
    ]
    captions = ["* present on no training image as annotated"] if " *" in marks.values() else []
    if " **" in marks.values():
        captions.append("** annotated on no training image: in no average but mAP/unannotated")
    if len(every) > len(rows):
        captions.append(f"{len(every) - len(rows)} more labels in labels.parquet")
    best = ", the best on validation" if best_round and event["round"] == best_round else ""
    return Grid(f"labels on {split}, model after round {event['round']}{best}", heads, rows, "; ".join(captions))


def _apart(split: str, rounds: list[dict[str, Any]], round_number: int) -> str:
    """One line on the labels that nobody annotates, where there are such."""
    evaluated = [event for event in rounds if event["round"] == round_number]
    return apart_line(evaluated[-1], SIDES[split]) if evaluated else ""


def _failures(failures: list[dict[str, Any]], client_names: Sequence[str] = ()) -> TextTable:
    table = TextTable(f"{len(failures)} failed turns", "round", "client", "host", "reason")
    for event in failures[-MAX_ROWS:]:
        reason = cut(event["error"].splitlines()[0], MAX_REASON)
        table.add_row(str(event["round"]), client_title(event["client"], client_names), event["host"], reason)
    return table
