"""Does memory grow over many rounds? A line fitted to the resident memory of every process.

For each engine a small federation plays its rounds, with evaluation on the server and on all
clients now and then. After every round the resident memory (RSS) of every process is read;
after a warm-up a line is fitted to it. The slope's standard error is widened by the residuals'
correlation from one round to the next, since memory moves in steps and not in white noise.

    uv run python benchmarks/soak.py
    uv run python benchmarks/soak.py --engines ray inprocess --rounds 500
    uv run python benchmarks/soak.py 'strategy=scaffold()' optimizer=sgd     # settings changed
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from measure import Program, end_cleanly, fedmlic, machine, memory_of, results_folder, role_of, write_json
from rich.console import Console
from rich.table import Table

SETTINGS = {
    "dataset": "multidigits(num_train=400, num_val=40, num_test=40, image_size=24, num_owners=40)",
    "partition": "iid()",
    "regime": "random_missing()",
    "model": "small_cnn(width=8)",
    "method": "bce()",
    "strategy": "fedavg()",
    "num-clients": 40,
    "cohort-size": 20,
    "local-epochs": 1,
    "batch-size": 10,
    "evaluate-every": 5,
    "evaluate-clients-every": 10,
    "device": "cpu",
}
LOOK_S = 0.02


@dataclass(frozen=True)
class Line:
    """A line fitted to one process's memory.

    Attributes:
        process: driver, worker 1, ... or the name of a program.
        judged: whether it is one of FedMLIC's own: the driver, or a process with PyTorch.
        points: rounds it was seen in after the warm-up.
        first_mib: memory at the first of them, by the line.
        slope: KiB per round.
        error: standard error of the slope.
        verdict: ``steady``, ``grows`` or ``undecided``.
    """

    process: str
    judged: bool
    points: int
    first_mib: float
    slope: float
    error: float
    verdict: str


def fit(rounds: list[int], kib: list[int]) -> tuple[float, float, float]:
    """Intercept at the first round, slope per round and its standard error.

    The error of ordinary least squares is multiplied by sqrt((1 + r) / (1 - r)), where r is the
    residuals' correlation from one point to the next (0 to 0.95).
    """
    x = np.asarray(rounds, dtype=np.float64) - rounds[0]
    y = np.asarray(kib, dtype=np.float64)
    centred = x - x.mean()
    spread = float(centred @ centred)
    slope = float(centred @ y) / spread
    residuals = y - y.mean() - slope * centred
    power = float(residuals @ residuals)
    error = (power / max(len(x) - 2, 1) / spread) ** 0.5
    correlation = float(residuals[:-1] @ residuals[1:]) / power if power else 0.0
    correlation = min(max(correlation, 0.0), 0.95)
    return float(y.mean() - slope * x.mean()), slope, error * ((1 + correlation) / (1 - correlation)) ** 0.5


def verdict_of(slope: float, error: float, tolerance: float) -> str:
    """Whether memory grows by more than ``tolerance`` KiB per round, at two standard errors."""
    if slope + 2 * error <= tolerance:
        return "steady"
    return "grows" if slope - 2 * error > tolerance else "undecided"


def play(engine: str, options: argparse.Namespace, folder: Path) -> tuple[Program, dict[int, list[tuple[int, int]]]]:
    """Run one engine; return the program and (round, KiB) of every process.

    Raises:
        RuntimeError: the run failed.
    """
    out = folder / f"run-{engine or 'default'}"
    settings = {**SETTINGS, "num-rounds": options.rounds, "home": str(folder / "home")}
    changes = dict(change.split("=", 1) for change in options.changes)
    pairs = [f"{key}={json.dumps(value)}" for key, value in settings.items() if key not in changes]
    pairs += options.changes
    choice = ["--engine", engine] if engine else []
    command = [*fedmlic(), "run", *pairs, *choice, "--workers", str(options.workers), "--out", str(out), "--json"]
    series: dict[int, list[tuple[int, int]]] = {}
    with Program(command, folder / f"log-{engine}.txt") as program:
        events, place, known = out / "events.jsonl", 0, 0
        deadline = time.monotonic() + options.limit
        while program.process.poll() is None and time.monotonic() < deadline:
            time.sleep(LOOK_S)
            text, place = _news(events, place)
            played = [json.loads(line)["round"] for line in text.splitlines() if '"event":"round"' in line]
            if not played or played[-1] <= known:
                continue
            known = played[-1]
            for pid in program.family.pids():
                memory = memory_of(pid)
                if memory:
                    series.setdefault(pid, []).append((known, memory.resident))
        if program.process.poll() != 0:
            msg = f"fedmlic run ended with {program.process.poll()}:\n{program.last_words()}"
            raise RuntimeError(msg)
    return program, series


def _news(path: Path, place: int) -> tuple[str, int]:
    """Complete lines after ``place`` bytes, and where they end."""
    if not path.exists():
        return "", place
    with path.open("rb") as log:
        log.seek(place)
        text = log.read()
    end = text.rfind(b"\n") + 1
    return text[:end].decode(), place + end


def lines_of(program: Program, series: dict[int, list[tuple[int, int]]], options: argparse.Namespace) -> list[Line]:
    """A line for each process that was there for at least half of the counted rounds."""
    found, workers = [], 0
    for pid, points in sorted(series.items()):
        counted = [(number, kib) for number, kib in points if number > options.warm_up]
        if not counted or counted[-1][0] - counted[0][0] < (options.rounds - options.warm_up) / 2:
            continue
        role = program.watch.commands.get(pid) or role_of(pid)
        driver = pid == program.process.pid
        judged = driver or role == "torch"
        workers += judged and not driver
        name = "driver" if driver else (f"worker {workers}" if judged else role)
        start, slope, error = fit(*map(list, zip(*counted, strict=True)))
        verdict = verdict_of(slope, error, options.tolerance)
        found.append(Line(name, judged, len(counted), start / 1024, slope, error, verdict))
    return sorted(found, key=lambda line: not line.judged)


def show(console: Console, engine: str, lines: list[Line], options: argparse.Namespace) -> None:
    """Print one engine's table."""
    counted = f"rounds {options.warm_up + 1} to {options.rounds}"
    table = Table(title=f"engine {engine or '(default)'}, {counted}", title_justify="left")
    table.add_column("process")
    for head in ("points", "MiB at first", "KiB per round", "standard error", "verdict"):
        table.add_column(head, justify="right")
    for line in lines:
        numbers = (f"{line.points}", f"{line.first_mib:.0f}", f"{line.slope:+.2f}", f"{line.error:.2f}")
        table.add_row(line.process, *numbers, line.verdict if line.judged else "(not ours)")
    console.print(table)


def read_options() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="settings of fedmlic run that differ")
    parser.add_argument("--engines", nargs="+", default=[""], help="of fedmlic run (default: its default)")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--warm-up", type=int, default=20, help="rounds that do not count")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--tolerance", type=float, default=20.0, help="KiB per round that pass for none")
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds after which a run is ended")
    parser.add_argument("--out", type=Path, help="folder for results (default benchmarks/results/soak-DATE)")
    options = parser.parse_args()
    wrong = [change for change in options.changes if "=" not in change]
    if wrong:
        parser.error(f"Expected KEY=VALUE, got {wrong[0]!r}.")
    if options.rounds < options.warm_up + 10:
        parser.error(f"Expected at least 10 rounds after the warm-up of {options.warm_up}, got {options.rounds}.")
    return options


def main() -> int:
    """Run all engines; 0 if no process of ours grows."""
    end_cleanly()
    options = read_options()
    console = Console(width=max(Console().width, 100))
    about = {"machine": machine(), "settings": SETTINGS, "changes": options.changes, "rounds": options.rounds}
    about["tolerance"] = options.tolerance
    results, failed = {}, False
    with tempfile.TemporaryDirectory() as name:
        for engine in options.engines:
            try:
                program, series = play(engine, options, Path(name))
            except RuntimeError as error:
                console.print(f"engine {engine or '(default)'}: {error}", style="red", highlight=False, markup=False)
                failed = True
                continue
            lines = lines_of(program, series, options)
            show(console, engine, lines, options)
            growing = [line.process for line in lines if line.judged and line.verdict == "grows"]
            unsure = [line.process for line in lines if line.judged and line.verdict == "undecided"]
            words = f"memory grows in {', '.join(growing)}" if growing else "no process grows"
            console.print(words + (f"; undecided: {', '.join(unsure)} (play more rounds)" if unsure else ""))
            failed |= bool(growing)
            results[engine or "default"] = {"lines": lines, "series": {str(k): v for k, v in series.items()}}
    out = results_folder("soak", options.out)
    write_json(out / "soak.json", {"about": about, "engines": results})
    console.print(f"written to {out / 'soak.json'}", highlight=False, markup=False, soft_wrap=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
