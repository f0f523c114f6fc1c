"""Does a federation of 50,000 clients cost more than one of 500? Start, rounds and memory.

Owners' sizes have FLAIR's shape (quartiles near 1, 2 and 5 images, a mean of 8, a long tail;
a client keeps at most 512); images are tiny, so that what is measured is the federation and not
the arithmetic. A client takes one step on at most 16 of its images, which makes a round of
200 clients the same work in both federations. Corpora are built before anything is timed.
Three things are timed apart: the start with the federation still to be dealt, the start with
everything there, and the closing evaluation, which visits all clients.

    uv run python benchmarks/scale.py
    uv run python benchmarks/scale.py --clients 500 5000 --rounds 6 --engine inprocess
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from measure import (
    Middle,
    Program,
    end_cleanly,
    fedmlic,
    machine,
    memory_kind,
    middle,
    read_events,
    results_folder,
    write_json,
)
from rich.console import Console
from rich.table import Table

BATCH_SIZE = 16
WARM_UP = 2
LOOK_S = 0.05
START_AIM_S, MEMORY_AIM_MIB = 10.0, 1024.0

Record = dict[str, object]


def settings_of(num_clients: int, options: argparse.Namespace, home: Path) -> dict[str, object]:
    """The experiment."""
    return {
        "dataset": f"multidigits(num_train={round(num_clients * options.images)}, num_val=0, num_test=16, "
        f"image_size=16, glyph_size=[0.5, 0.6], max_glyphs=3, num_owners={num_clients}, owner_spread=1.9)",
        "partition": "natural(max_images=512)",
        "regime": options.regime,
        "model": "small_cnn()",
        "method": "bce()",
        "strategy": "fedavg()",
        "num-clients": num_clients,
        "cohort-size": options.cohort,
        "num-rounds": options.rounds,
        "local-steps": 1,
        "batch-size": BATCH_SIZE,
        "optimizer": "sgd",
        "learning-rate": 0.01,
        "holdout-fraction": options.holdout,
        "evaluate-every": 1_000_000,
        "device": "cpu",
        "home": str(home),
    }


def build_corpus(settings: dict[str, object], home: Path) -> float:
    """Build the images if they are not there; return the seconds it took."""
    from fedmlic import spec
    from fedmlic.corpus import open_corpus

    started = time.monotonic()
    open_corpus(spec.build("dataset", str(settings["dataset"])), home)
    return time.monotonic() - started


def run(settings: dict[str, object], options: argparse.Namespace, folder: Path) -> Record:
    """Run once; what happened when, and how much memory whoever took part had.

    Raises:
        RuntimeError: the run failed.
    """
    out = folder / "run"
    folder.mkdir()
    pairs = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    choice = ["--engine", options.engine] if options.engine else []
    command = [*fedmlic(), "run", *pairs, *choice, "--workers", str(options.workers), "--out", str(out), "--json"]
    in_rounds: dict[int, int] = {}
    evaluated = 0.0
    with Program(command, folder / "log.txt", interval_s=0.25, rest=0.0) as program:
        deadline = time.monotonic() + options.limit
        while program.process.poll() is None and time.monotonic() < deadline:
            time.sleep(LOOK_S)
            kinds = {event["event"]: event for event in itertools.islice(_last_events(out), 4)}
            last = "round" in kinds and kinds["round"]["round"] == settings["num-rounds"]
            if not in_rounds and (last or "clients-evaluated" in kinds):
                in_rounds = {pid: memory.shared_out for pid, memory in program.watch.peaks.items()}
            if not evaluated and "clients-evaluated" in kinds:
                evaluated = time.time()
        code = program.process.poll()
        if code != 0:
            msg = f"fedmlic run ended with {code}:\n{program.last_words()}"
            raise RuntimeError(msg)
    model_mib = json.loads((out / "result.json").read_text(encoding="utf-8"))["num_values"] * 4 / 2**20
    return {
        **_times(out, program.launched, evaluated),
        **_memory(program, in_rounds or {pid: m.shared_out for pid, m in program.watch.peaks.items()}, model_mib),
    }


def _last_events(out: Path) -> list[dict[str, object]]:
    """The last few events, newest first, read from the end of the log."""
    path = out / "events.jsonl"
    if not path.exists():
        return []
    with path.open("rb") as log:
        size = log.seek(0, 2)
        log.seek(max(0, size - 20_000))
        lines = log.read().split(b"\n")[1:-1]
    return [json.loads(line) for line in reversed(lines)]


def _times(out: Path, launched: float, evaluated: float) -> Record:
    events = list(read_events(out / "events.jsonl"))
    clients = [e for e in events if e["event"] == "client"]
    stamps = [e["time"] for e in events if e["event"] == "round"]
    seconds = [later - earlier for earlier, later in itertools.pairwise(stamps[WARM_UP - 1 : -1])]
    images = [min(e["num-images"], e["num-steps"] * BATCH_SIZE) for e in clients]
    median = statistics.median(seconds) if seconds else None
    num_clients, num_images = len(clients) / len(stamps), sum(images) / len(stamps)
    return {
        "start_s": min(e["started"] for e in clients) - launched,
        "rounds_s": seconds,
        "round_s": median,
        "client_ms": median and 1000 * median / num_clients,
        "image_ms": median and 1000 * median / num_images,
        "turn_ms": 1000 * statistics.median(e["seconds"] for e in clients),
        "images_per_round": num_images,
        "evaluation_s": evaluated - stamps[-1] if evaluated else None,
    }


def _memory(program: Program, in_rounds: dict[int, int], model_mib: float) -> Record:
    """Peaks of the server and of the largest worker, without the model."""
    peaks = {pid: memory.shared_out for pid, memory in program.watch.peaks.items()}

    def largest(sizes: dict[int, int], *, server: bool) -> float | None:
        own = [
            kib / 1024 - model_mib
            for pid, kib in sizes.items()
            if (pid == program.process.pid) == server and (server or program.watch.commands[pid] == "torch")
        ]
        return max(own, default=None)

    return {
        "server_mib": largest(in_rounds, server=True),
        "worker_mib": largest(in_rounds, server=False),
        "server_end_mib": largest(peaks, server=True),
        "worker_end_mib": largest(peaks, server=False),
        "all_mib": program.watch.peak_mib,
        "model_mib": model_mib,
    }


# --- telling ---------------------------------------------------------------------------

ROWS = {
    "deal_start_s": ("launch to first client, federation still to be dealt (s)", 1),
    "start_s": ("launch to first client, everything there (s)", 1),
    "round_s": ("a round (s)", 3),
    "client_ms": ("a round, per client (ms)", 2),
    "image_ms": ("a round, per image trained on (ms)", 2),
    "turn_ms": ("a client's turn in its worker (ms)", 2),
    "images_per_round": ("images trained on in a round", 0),
    "server_mib": ("server in rounds, model apart (MiB)", 0),
    "worker_mib": ("largest worker in rounds, model apart (MiB)", 0),
    "server_end_mib": ("server, closing evaluation included (MiB)", 0),
    "worker_end_mib": ("largest worker, closing evaluation included (MiB)", 0),
    "all_mib": ("all processes together (MiB)", 0),
    "evaluation_s": ("closing evaluation on all clients (s)", 1),
}


def summary(records: list[Record], num_clients: int) -> dict[str, Middle | None]:
    """Median and range over repeats of every row."""
    own = [record for record in records if record["clients"] == num_clients]
    return {name: middle([r[name] for r in own if r.get(name) is not None]) for name in ROWS}


def ratios(records: list[Record], most: int, least: int) -> dict[str, Middle | None]:
    """The largest federation against the smallest, within a repeat."""
    found = {}
    for name in ROWS:
        sides = [{r["repeat"]: r[name] for r in records if r["clients"] == n and r.get(name)} for n in (most, least)]
        found[name] = middle([sides[0][repeat] / sides[1][repeat] for repeat in sides[0] if repeat in sides[1]])
    return found


def show(console: Console, records: list[Record], counts: list[int]) -> dict[str, object]:
    """Print the table and the aims; return both as values."""
    table = Table(title=f"memory is peak {memory_kind()}", title_justify="left")
    table.add_column("")
    for count in counts:
        table.add_column(f"{count:,} clients", justify="right")
    relative = ratios(records, max(counts), min(counts)) if len(counts) > 1 else {}
    table.add_column("ratio" if relative else "", justify="right")
    found = {count: summary(records, count) for count in counts}
    for name, (title, digits) in ROWS.items():
        cells = [found[count][name] for count in counts]
        last = relative.get(name)
        table.add_row(title, *(c.text(digits) if c else "-" for c in cells), last.text(2) if last else "")
    console.print(table)
    large = found[max(counts)]
    aims = {
        f"start below {START_AIM_S:g} s": large["start_s"].median < START_AIM_S,
        f"start below {START_AIM_S:g} s, federation to be dealt": large["deal_start_s"].median < START_AIM_S,
        f"server and workers below {MEMORY_AIM_MIB:g} MiB each, beyond the model": all(
            large[name].high < MEMORY_AIM_MIB for name in ROWS if name.startswith(("server", "worker")) and large[name]
        ),
    }
    if relative.get("client_ms"):
        aims["a round costs at most 1.1 times as much per client"] = relative["client_ms"].median <= 1.1
    for text, met in aims.items():
        console.print(f"{'met   ' if met else 'missed'}  {text}", highlight=False)
    return {"summary": {str(count): found[count] for count in counts}, "ratios": relative, "aims": aims}


def read_options() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[500, 50_000], help="sizes of federations")
    parser.add_argument("--images", type=float, default=8.0, help="mean images per client")
    parser.add_argument("--cohort", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--regime", default="random_missing()")
    parser.add_argument("--holdout", type=float, default=0.0, help="share of images kept for the closing evaluation")
    parser.add_argument("--engine", default="", help="of fedmlic run (default: its default)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--limit", type=float, default=1800.0, help="seconds after which a run is ended")
    parser.add_argument("--home", type=Path, help="folder that keeps corpora from one call to the next")
    parser.add_argument("--out", type=Path, help="folder for results (default benchmarks/results/scale-DATE)")
    options = parser.parse_args()
    if options.rounds < WARM_UP + 2:
        parser.error(f"Expected at least {WARM_UP + 2} rounds, got {options.rounds}.")
    if min(options.clients) < options.cohort:
        parser.error(f"Expected federations of at least the cohort of {options.cohort}, got {min(options.clients)}.")
    return options


def measure(options: argparse.Namespace, folder: Path, home: Path, console: Console) -> list[Record]:
    """All federations in turns, repeat by repeat."""
    records: list[Record] = []
    for count in options.clients:
        took = build_corpus(settings_of(count, options, home), home)
        console.print(f"corpus of {count:,} owners: {took:.1f} s", highlight=False)
    for repeat in range(1, options.repeats + 1):
        for count in options.clients:
            settings = settings_of(count, options, home)
            # The folder is this program's own: without it the federation has to be dealt anew.
            shutil.rmtree(home / "federations", ignore_errors=True)
            dealt = run({**settings, "num-rounds": 1}, options, folder / f"deal-{count}-{repeat}")
            found = run(settings, options, folder / f"run-{count}-{repeat}")
            records.append({"clients": count, "repeat": repeat, "deal_start_s": dealt["start_s"], **found})
            line = f"start {found['start_s']:.1f} s, {found['round_s']:.3f} s/round"
            console.print(f"{count:,} clients, repeat {repeat}: {line}", highlight=False)
    return records


def main() -> int:
    """Measure, tell, write down; 0 if all aims are met."""
    end_cleanly()
    options = read_options()
    console = Console(width=max(Console().width, 110))
    about = {"machine": machine(), "settings": {k: v for k, v in vars(options).items() if k not in {"home", "out"}}}
    with tempfile.TemporaryDirectory() as name:
        home = (options.home or Path(name)).absolute() / "scale-home"
        try:
            records = measure(options, Path(name), home, console)
        except RuntimeError as error:
            console.print(str(error), style="red", highlight=False, markup=False)
            return 1
    found = show(console, records, options.clients)
    out = results_folder("scale", options.out)
    write_json(out / "scale.json", {"about": about, **found, "runs": records})
    console.print(f"written to {out / 'scale.json'}", highlight=False, markup=False, soft_wrap=True)
    return int(not all(found["aims"].values()))


if __name__ == "__main__":
    sys.exit(main())
