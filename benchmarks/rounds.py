"""What a round costs: FedMLIC, Flower, pfl and a plain PyTorch loop do the same work, side by side.

Contestants take turns within a repeat, and ratios are taken within a repeat, so that a
machine that is busy for a while disturbs numbers but hardly ratios. Time per round leaves out
the first two rounds (warming up) and the last (in which FedMLIC evaluates).

    uv run python benchmarks/rounds.py
    uv run python benchmarks/rounds.py --quick --pfl-python PATH/bin/python
    uv run python benchmarks/rounds.py --workloads W1 W2 W3 --device cuda --processes 8
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from contestants import FLOWER, FLWR_RUN, Contestant, Job, Story, everybody
from measure import (
    GpuWatch,
    Middle,
    Program,
    end_cleanly,
    machine,
    memory_kind,
    middle,
    num_cores,
    probe,
    results_folder,
    write_json,
)
from rich.console import Console
from rich.table import Table
from workloads import export, workload_of

WARM_UP = 2
PFL_PACKAGES = ("torch", "pfl", "numpy")
QUANTITIES = {"time": "round_s", "start": "start_s", "memory": "peak_mib"}

FLOWER_PAUSE_S = 0.05
"""Flower's simulation looks for messages every 0.1 s, so one waits half of that on average."""

Record = dict[str, object]


class Aim(NamedTuple):
    """A ratio that FedMLIC is held to on two CPU cores.

    Attributes:
        text: what is compared.
        quantity: a key of ``QUANTITIES``.
        above: key of the contestant in the numerator; ``us`` is the first one.
        below: in the denominator.
        limit: the aim by workload.
        least: whether the ratio should be at least the limit, not at most.
        without: seconds that are taken off the numerator.
    """

    text: str
    quantity: str
    above: str
    below: str
    limit: dict[str, float]
    least: bool = False
    without: float = 0.0


def aims(processes: int) -> list[Aim]:
    """All aims, for so many processes."""
    both = {"W1": 1.0, "W2": 1.0}
    return [
        Aim("time of a round / plain loop in as many processes", "time", "us", f"loop-{processes}", both),
        Aim("time of a round / pfl in as many processes", "time", "us", f"pfl-{processes}", both),
        Aim("Flower's default way / time of a round", "time", FLOWER, "us", {"W1": 2.8, "W2": 2.2}, least=True),
        Aim("flwr run / time of a round", "time", FLWR_RUN, "us", {}),
        Aim(
            f"the same without Flower's pause of {FLOWER_PAUSE_S} s",
            "time",
            FLWR_RUN,
            "us",
            {"W1": 1.2, "W2": 1.2},
            without=FLOWER_PAUSE_S,
        ),
        Aim("start to first client / Flower's default way", "start", "us", FLOWER, {"W1": 1 / 3, "W2": 1 / 3}),
        Aim("peak memory / pfl in as many processes", "memory", "us", f"pfl-{processes}", both),
    ]


# --- measuring -------------------------------------------------------------------------


def play(contestant: Contestant, job: Job, limit_s: float) -> Record:
    """Run one contestant once and write down everything about it."""
    job.folder.mkdir()
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if job.device == "cpu" else {}
    environment = {**hidden, "FLWR_HOME": str(job.folder / "flwr")}
    with (
        GpuWatch() as gpus,
        Program(contestant.command(job), job.folder / "log.txt", environment) as program,
    ):
        code = program.wait(limit_s)
        ended = time.time()
    story = contestant.read(job)
    record: Record = {
        "contestant": contestant.key,
        "workload": job.workload,
        "exit_code": code,
        "seconds": round(ended - program.launched, 3),
        "start_s": None if story.first_client is None else round(story.first_client - program.launched, 3),
        "rounds": [{**r._asdict(), "time": round(r.time - program.launched, 4)} for r in story.rounds],
        "peak_mib": round(program.watch.peak_mib, 1),
        "memory_mib": [[round(t - program.launched, 1), round(kib / 1024, 1)] for t, kib in program.watch.samples],
    }
    problem = problem_of(code, story, job, limit_s)
    if problem:
        return {**record, "problem": problem, "log": program.last_words()}
    return {**record, **timing(story, gpus), "loss_fell": story.rounds[-1].loss < story.rounds[0].loss}


def problem_of(code: int | None, story: Story, job: Job, limit_s: float) -> str:
    """Why a run does not count; empty if it does."""
    workload = workload_of(job.workload)
    asked = (workload.cohort, workload.num_images)
    found = sorted({(r.clients, r.images) for r in story.rounds})
    problems = {
        f"took longer than {limit_s:g} s": code is None,
        f"ended with exit code {code}": bool(code),
        f"played {len(story.rounds)} of {job.rounds} rounds": len(story.rounds) != job.rounds,
        f"expected (clients, images) {asked} in every round, got {found}": found != [asked],
        "the training loss is not finite": not all(math.isfinite(r.loss) for r in story.rounds),
        "did not say when the first client began": story.first_client is None,
    }
    return next((text for text, holds in problems.items() if holds), "")


def timing(story: Story, gpus: GpuWatch) -> Record:
    """Seconds of the rounds that count, and what follows from them."""
    stamps = [r.time for r in story.rounds][WARM_UP - 1 : -1]
    seconds = [later - earlier for earlier, later in itertools.pairwise(stamps)]
    median, last = statistics.median(seconds), story.rounds[-1]
    return {
        "timed_s": [round(each, 4) for each in seconds],
        "round_s": round(median, 4),
        "clients_per_s": round(last.clients / median, 2),
        "images_per_s": round(last.images / median, 2),
        "gpu_percent": gpus.mean(stamps[0], stamps[-1]),
        "gpu_peak_mib": gpus.peak_mib(),
    }


def prepare(names: list[str], folder: Path) -> dict[str, Path]:
    """Build and export the data of all workloads before anything is timed."""
    files = {}
    for name in names:
        files[name] = folder / f"{name}.npz"
        export(workload_of(name), folder / "home", files[name])
    return files


# --- telling ---------------------------------------------------------------------------


def values_of(records: list[Record], workload: str, key: str, quantity: str) -> dict[int, float]:
    """A quantity of a contestant by repeat, where its run counts."""
    return {
        r["repeat"]: r[QUANTITIES[quantity]]
        for r in records
        if r["workload"] == workload and r["contestant"] == key and "problem" not in r
    }


def ratio(
    records: list[Record], workload: str, above: str, below: str, quantity: str, without: float = 0.0
) -> Middle | None:
    """Median and range over repeats of the ratio within a repeat; ``without`` is taken off its numerator."""
    top, bottom = (values_of(records, workload, key, quantity) for key in (above, below))
    return middle([(top[repeat] - without) / bottom[repeat] for repeat in top if bottom.get(repeat)])


def rows(records: list[Record], workload: str, contestants: list[Contestant], floor: str) -> list[Record]:
    """One summary for each contestant that has a run that counts."""
    found = []
    for contestant in contestants:
        runs = [
            r for r in records if r["workload"] == workload and r["contestant"] == contestant.key and "problem" not in r
        ]
        if not runs:
            continue
        columns = ("round_s", "start_s", "peak_mib", "clients_per_s", "images_per_s", "gpu_percent")
        numbers = {name: middle([r[name] for r in runs if r[name] is not None]) for name in columns}
        relative = ratio(records, workload, contestant.key, floor, "time")
        row = {"key": contestant.key, "title": contestant.title, "runs": len(runs), "relative": relative, **numbers}
        found.append(row)
    return found


def show(console: Console, workload: str, summary: list[Record]) -> None:
    """Print a workload's table."""
    if not summary:
        console.print(f"{workload}: no run counts", style="red")
        return
    what = workload_of(workload)
    title = f"{workload}: {what.cohort} clients a round, {what.num_images} images of {what.image_size}², {what.model}"
    table = Table(title=title, title_justify="left")
    table.add_column("contestant")
    kind = memory_kind()
    heads = ("s/round", "÷ loop", "clients/s", "images/s", "start s", f"peak {kind} MiB", "GPU %")
    for head in heads:
        table.add_column(head, justify="right")
    digits = {"round_s": 3, "relative": 2, "clients_per_s": 0, "images_per_s": 0, "start_s": 1, "peak_mib": 0}
    for row in summary:
        cells = [row[name].text(count) if row[name] else "-" for name, count in digits.items()]
        gpu = row["gpu_percent"]
        table.add_row(row["title"], *cells, gpu.text(0) if gpu else "-")
    console.print(table)


def judge(records: list[Record], workload: str, us: str, processes: int) -> list[Record]:
    """The aims of a workload that can be told from these runs; ``us`` is the contestant they are about."""
    found = []
    for aim in aims(processes):
        above, below = (us if key == "us" else key for key in (aim.above, aim.below))
        value = ratio(records, workload, above, below, aim.quantity, aim.without)
        if value is None:
            continue
        limit = aim.limit.get(workload)
        met = None if limit is None else (value.median >= limit if aim.least else value.median <= limit)
        found.append({"text": aim.text, "ratio": value, "limit": limit, "least": aim.least, "met": met})
    return found


def show_aims(console: Console, found: list[Record]) -> None:
    """Print aims and whether they are met."""
    if not found:
        return
    table = Table(box=None)
    for head in ("ratio", "measured", "aim", ""):
        table.add_column(head)
    for aim in found:
        limit = "-" if aim["limit"] is None else f"{'at least' if aim['least'] else 'at most'} {aim['limit']:.2f}"
        verdict = {None: "", True: "met", False: "missed"}[aim["met"]]
        table.add_row(aim["text"], aim["ratio"].text(), limit, verdict)
    console.print(table)


# --- the command -----------------------------------------------------------------------


def read_options() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workloads", nargs="+", default=["W1", "W2"], help="W1, W2, W3 (made for a GPU)")
    parser.add_argument("--scale", type=float, default=1.0, help="share of each workload's clients and images")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=0, help="per run (default: each workload's own number)")
    parser.add_argument("--processes", type=int, default=2, help="that train, for all who can (0: one per core)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--engines", nargs="+", default=[""], help="of fedmlic run: NAME or NAME,key=value,...")
    parser.add_argument("--only", nargs="+", default=[], help="contestants whose key contains one of these")
    parser.add_argument("--pfl-python", default="", help="interpreter of an environment with pfl")
    parser.add_argument("--limit", type=float, default=900.0, help="seconds after which a run is ended")
    parser.add_argument("--quick", action="store_true", help="one repeat, fewer rounds")
    parser.add_argument("--out", type=Path, help="folder for results (default benchmarks/results/rounds-DATE)")
    options = parser.parse_args()
    if options.quick:
        options.repeats, options.rounds = 1, options.rounds or 5
    options.processes = options.processes or num_cores()
    if options.rounds and options.rounds < WARM_UP + 2:
        parser.error(f"Expected at least {WARM_UP + 2} rounds, got {options.rounds}.")
    if not options.scale > 0:
        parser.error(f"Expected a scale above 0, got {options.scale:g}.")
    if options.scale != 1:
        options.workloads = [f"{name}@{options.scale:g}" for name in options.workloads]
    try:
        for name in options.workloads:
            workload_of(name)
    except ValueError as error:
        parser.error(str(error))
    return options


def spoken_command(options: argparse.Namespace) -> str:
    """The command line without the folders of this machine."""
    words = ["benchmarks/rounds.py", *sys.argv[1:]]
    private = {options.pfl_python, str(options.out)} - {""}
    for value in private:
        words = [word.replace(value, "PATH") for word in words]
    return " ".join(words)


def compete(options: argparse.Namespace, contestants: list[Contestant], base: Job, console: Console) -> list[Record]:
    """Run everybody in every workload and repeat, in turns."""
    records: list[Record] = []
    data = prepare(options.workloads, base.folder)
    for repeat in range(1, options.repeats + 1):
        for workload in options.workloads:
            turn = (repeat - 1) % len(contestants)
            for contestant in contestants[turn:] + contestants[:turn]:  # nobody is always first
                job = replace(
                    base,
                    workload=workload,
                    data=data[workload],
                    folder=base.folder / f"{workload}-{repeat}-{contestant.key}",
                    rounds=options.rounds or workload_of(workload).rounds,
                )
                record = {"repeat": repeat, **play(contestant, job, options.limit)}
                records.append(record)
                line = record.get("problem") or f"{record['round_s']:.3f} s/round, start {record['start_s']:.1f} s"
                console.print(f"{workload} repeat {repeat}: {contestant.title}: {line}", highlight=False, markup=False)
                if "problem" in record:
                    console.print(record["log"], style="red", highlight=False, markup=False)
    return records


def choose(options: argparse.Namespace, base: Job, console: Console) -> list[Contestant]:
    """Who takes part; says who does not and why."""
    everyone = everybody(options.engines, options.processes, options.pfl_python)
    chosen = []
    for contestant in everyone:
        obstacle = contestant.obstacle(base)
        if options.only and not any(word in contestant.key for word in options.only):
            continue
        if obstacle:
            console.print(f"without {contestant.title}: {obstacle}", highlight=False, markup=False)
        else:
            chosen.append(contestant)
    if not chosen:
        raise SystemExit("Expected contestants, got none. See --only and --engines.")
    return chosen


def main() -> int:
    """Measure, tell, write down; 0 if every run counts."""
    end_cleanly()
    options = read_options()
    console = Console(width=max(Console().width, 140))
    about = {"command": spoken_command(options), **machine()}
    seen = probe(sys.executable, ())
    device = options.device if options.device != "auto" else ("cuda" if seen["gpus"] else "cpu")
    about |= {"device": device, "gpus": seen["gpus"], "processes": options.processes}
    if options.pfl_python:
        about["versions_of_pfl"] = probe(options.pfl_python, PFL_PACKAGES)["versions"]
    out = results_folder("rounds", options.out)
    with tempfile.TemporaryDirectory() as name:
        num_gpus = len(seen["gpus"]) if device == "cuda" else 0
        base = Job("", Path(), Path(name) / "home", Path(name), 0, options.processes, device, num_gpus)
        contestants = choose(options, base, console)
        records = compete(options, contestants, base, console)
    summaries, verdicts = {}, {}
    us = next((c.key for c in contestants if c.key.startswith("fedmlic")), "")
    floor = f"loop-{options.processes}"
    for workload in options.workloads:
        summaries[workload] = rows(records, workload, contestants, floor)
        verdicts[workload] = judge(records, workload, us, options.processes)
        show(console, workload, summaries[workload])
        show_aims(console, verdicts[workload])
    for record in records:
        if record.get("loss_fell") is False:
            console.print(
                f"{record['contestant']} in {record['workload']}: the training loss did not fall", style="red"
            )
    plain = {"about": about, "summary": summaries, "ratios": verdicts, "runs": records}
    write_json(out / "rounds.json", plain)
    from picture import draw  # matplotlib, which nothing else here needs

    draw(summaries, about, out / "rounds.png")
    console.print(f"written to {out}", highlight=False, markup=False, soft_wrap=True)
    return int(any("problem" in record for record in records))


if __name__ == "__main__":
    sys.exit(main())
