"""Sections on how runs ran: bytes and seconds, failures, versions, and how to run them again."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from sim.console import client_title, cut, duration
from sim.reports.report.again import command_of
from sim.reports.report.charts import Line, Options, Text, figure, line_chart
from sim.reports.report.curves import curve_line, row_key
from sim.reports.report.gather import Report
from sim.reports.report.markup import Cell, Child, Markup, details, element, joined, named, note, paragraph, table
from sim.reports.report.read import Run
from sim.reports.report.rows import curve, differing
from sim.reports.report.svg import NUM_COLOURS
from sim.sweep.view import size

MAX_FAILURES = 30

MAX_REASON = 300

COSTS = {
    "bytes-up": ("Bytes to the server", "Bytes that the clients of a round send (MB)", 1e6, "MB"),
    "bytes-down": ("Bytes to clients", "Bytes that the clients of a round get (MB)", 1e6, "MB"),
    "round-seconds": ("Seconds of a round", "Wall time of a round with the server's evaluation", 1.0, "s"),
    "train-seconds": ("Seconds of training", "Wall time from handing out the model to having the new one", 1.0, "s"),
}


def cost_section(report: Report) -> Markup:
    """Bytes and seconds of each round and in all."""
    figures = [made for metric, words in COSTS.items() if (made := _cost_figure(report, metric, *words))]
    rows: list[list[Cell]] = []
    for place, row in enumerate(report.rows):
        runs = [run for run in row.runs if run.rounds]
        if runs:
            rows.append([f"{place + 1} {row.label}", *_cost_cells(runs)])
    if not rows:
        return note("No round was completed.", kind="missing")
    heads = ["row", "rounds", "down a round", "up a round", "down in all", "up in all", "time of a run"]
    lead = paragraph(
        "Bytes are counted as if each client were a device: what it gets and sends. Seconds are of the machine that "
        "the runs were played on, whatever else it did. Medians over the rounds and runs of a row; sums of a run."
    )
    return joined(
        [lead, table("Bytes and seconds", heads, rows), row_key(report.rows), element("div", *figures, class_="grid")]
    )


def _cost_cells(runs: list[Run]) -> list[Cell]:
    def each(name: str) -> list[float]:
        return [float(event.get(name) or 0) for run in runs for event in run.rounds]

    def whole(name: str) -> float:
        return statistics.median(sum(float(event.get(name) or 0) for event in run.rounds) for run in runs)

    taken = statistics.median(float(run.rounds[-1]["seconds"]) for run in runs)
    found: list[Cell] = [int(statistics.median(run.last_round for run in runs))]
    found += [_bytes(statistics.median(each(name))) for name in ("bytes-down", "bytes-up")]
    found += [_bytes(whole(name)) for name in ("bytes-down", "bytes-up")]
    return [*found, element("span", duration(taken), class_="n", data_v=f"{taken:.6g}")]


def _bytes(value: float) -> Markup:
    return element("span", size(value), class_="n", data_v=f"{value:.6g}")


def _cost_figure(report: Report, metric: str, title: str, about: str, unit: float, words: str) -> Markup | None:
    lines: list[Line] = []
    rows: list[list[Cell]] = []
    for place, row in enumerate(report.rows):
        found = curve(row, metric)
        if found is not None:
            scaled = type(found)(found.rounds, found.mean / unit, found.low / unit, found.high / unit, found.num_seeds)
            lines.append(
                curve_line(
                    scaled,
                    row.label,
                    place,
                    switch=f"s{place}",
                    end=f"{place + 1}",
                    shown=place < NUM_COLOURS,
                    bare=bool(row.reference),
                )
            )
            rows.append(
                [
                    f"{place + 1} {row.label}",
                    *(float(each) for each in (scaled.mean.mean(), scaled.low.min(), scaled.high.max())),
                ]
            )
    if max((len(line.x) for line in lines), default=0) < 2:
        return None
    text = Text(f"cost-{metric}", title, f"{about}, mean over seeds.", "round", words)
    top = max(max(line.high or line.y) for line in lines)
    options = Options(whole_x=True, y_range=(0.0, top * 1.06 or 1.0))
    return figure(text, line_chart(text, lines, options), table(title, ["row", "mean", "lowest", "highest"], rows))


def failures_section(report: Report) -> Markup:
    """Runs that failed, and turns of clients that failed."""
    made: list[Child] = []
    ended = [run for run in report.runs if run.status != "complete"]
    if ended:
        rows: list[list[Cell]] = [
            [
                run.name,
                run.status,
                run.last_round,
                run.experiment.num_rounds,
                cut(run.reason.strip() or "-", MAX_REASON),
            ]
            for run in ended[:MAX_FAILURES]
        ]
        made.append(table("Runs that are not complete", ["run", "state", "rounds", "of", "reason"], rows))
        made += [
            details(f"Whole reason of {run.name}", element("pre", run.reason))
            for run in ended[:5]
            if len(run.reason.strip().splitlines()) > 1
        ]
    turns = [(run, event) for run in report.runs for event in run.failures]
    if turns:
        total = sum(each.num for run in report.runs for each in run.turns.values())
        shown: list[list[Cell]] = [
            [
                run.name,
                int(event["round"]),
                client_title(int(event["client"]), list(run.data.get("client_names", []))),
                str(event.get("host", "")),
                cut(_reason(event), MAX_REASON),
            ]
            for run, event in turns[-MAX_FAILURES:]
        ]
        rest = f"; the last {len(shown)} of them" if len(shown) < len(turns) else ""
        made.append(
            paragraph(f"{len(turns):,} of {total:,} turns of clients failed; rounds went on with the others{rest}.")
        )
        made.append(table("Turns that failed", ["run", "round", "client", "host", "reason"], shown))
    return joined(made) if made else paragraph("No run and no client's turn failed.")


def _reason(event: Mapping[str, Any]) -> str:
    return (str(event["error"]).strip().splitlines() or ["no reason"])[0]


def again_section(report: Report) -> Markup:
    """Commands, settings and versions."""
    made: list[Child] = [
        paragraph(
            "One command per row plays its run of the lowest seed again; its other seeds are played with another ",
            element("code", "seed="),
            ".",
        )
    ]
    for place, row in enumerate(report.rows[:60]):
        seeds = ", ".join(map(str, row.seeds))
        head = element("p", element("b", f"{place + 1} "), named(row.label), f" (seeds {seeds})", class_="again")
        made += [head, element("pre", command_of(row.runs[0]), tabindex=0)]
    return joined(
        [
            *made[: 1 + 2 * 6],
            details("Commands of the other rows", *made[1 + 2 * 6 :]) if len(made) > 13 else None,
            _settings(report),
            *_versions(report),
        ]
    )


def _settings(report: Report) -> Markup:
    """All settings that rows share, and those in which they differ."""
    own = [row.first for row in report.own]
    varying = set(differing(own))
    first = own[0].settings
    rows: list[list[Cell]] = [
        [name, str(value)] for name, value in first.items() if name not in varying and name != "seed" and str(value)
    ]
    shared = details("All settings that rows share", table("Settings", ["setting", "value"], rows))
    if not varying:
        return shared
    names = [name for name in first if name in varying]
    differ: list[list[Cell]] = [
        [f"{report.rows.index(row) + 1} {row.label}", *(str(row.first.settings[name]) for name in names)]
        for row in report.own
    ]
    return joined([details("Settings in which rows differ", table("Settings by row", ["row", *names], differ)), shared])


def _versions(report: Report) -> list[Markup]:
    """Machines and versions, each once, with the runs that were made there."""
    found: dict[str, tuple[Mapping[str, Any], list[Run]]] = {}
    for run in report.runs:
        flat = _flat({key: value for key, value in run.environment.items() if key != "started"})
        key = repr(sorted(flat.items()))
        found.setdefault(key, (flat, []))[1].append(run)
    made = []
    for versions, runs in found.values():
        title = f"Versions of {runs[0].name}" if len(runs) == 1 else f"Versions of {len(runs)} runs"
        rows: list[list[Cell]] = [[name, str(value)] for name, value in versions.items()] or [
            ["environment.json", "missing or damaged"]
        ]
        made.append(details(title, table(title, ["what", "version"], rows), is_open=len(found) == 1))
    if len(found) > 1:
        made.insert(0, note(f"These runs were made in {len(found)} different environments.", kind="warning"))
    return made


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            out |= _flat(value, "" if key == "packages" else f"{prefix}{key} ")
        else:
            out[f"{prefix}{key}"] = " ".join(map(str, value)) if isinstance(value, list) else value
    return out
