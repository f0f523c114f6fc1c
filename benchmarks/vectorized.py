"""Where training many clients at once pays: seconds per client one after another and K at once, side by side.

One process, one thread (or one GPU), the clients of W1 and the same with fewer images, SGD. Sizes take
turns within a repeat; ratios are taken within a repeat.

    uv run python benchmarks/vectorized.py --device cuda --sizes 1 10 50 100
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table
from workloads import WORKLOADS

from clients.host import Host
from fedmlic.experiment import split_settings
from fedmlic.learner import build_learner, choose_device
from fedmlic.process import prepare
from fedmlic.protocol import Request
from fedmlic.update import Weighting, units_for
from sim.run import describe_federation

MODELS = ("small_cnn(width=8)", "small_cnn()", "resnet(depth=18)")


def seconds(host: Host, request: Request, clients: list[int]) -> float:
    """Seconds per client of one pass over ``clients``."""
    began = time.perf_counter()
    turns = host.play(request, clients).turns
    if any(turn.error for turn in turns):
        raise SystemExit(next(turn.error for turn in turns if turn.error))
    return (time.perf_counter() - began) / len(clients)


def measure(model: str, sizes: list[int], options: argparse.Namespace, home: str) -> dict[int, list[float]]:
    """Seconds per client by clients at once, one number per repeat."""
    settings = {**WORKLOADS["W1"].settings, "model": model, "home": home}
    experiment, runtime = split_settings(settings)
    federation = describe_federation(experiment, runtime)
    shape = federation.corpus.image_shape
    device = choose_device(options.device)
    hosts = {}
    for size in sizes:
        learner = build_learner(experiment, federation.label_names, shape, device)
        hosts[size] = (Host("test", experiment, federation, learner, vectorize=size), learner.resident.flat.clone())
    clients = list(range(options.clients))
    units = units_for(Weighting(), [20] * options.clients, len(federation.label_names))
    found: dict[int, list[float]] = {size: [] for size in sizes}
    for number in track(range(options.repeats + 1), description=model, console=Console(stderr=True)):
        for size, (host, flat) in hosts.items():
            taken = seconds(host, Request("train", number + 1, flat, units), clients)
            if number:  # the first pass warms up
                found[size].append(taken)
    return found


def main() -> None:
    """Measure every model and print ratios."""
    parser = argparse.ArgumentParser(description="Seconds per client, one after another and many at once.")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 5, 20])
    parser.add_argument("--clients", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    prepare(1)
    sizes = sorted({1, *options.sizes})
    table = Table("network", *(f"{size} at once" for size in sizes), title="seconds per client, relative to one by one")
    raw = {}
    with tempfile.TemporaryDirectory() as home:
        for model in options.models:
            found = raw[model] = measure(model, sizes, options, home)
            cells = [f"{found[1][0] * 1e3:.1f} ms"]
            for size in sizes[1:]:
                ratios = [many / one for many, one in zip(found[size], found[1], strict=True)]
                cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
            table.add_row(model, *cells)
    Console().print(table)
    if options.out:
        options.out.write_text(json.dumps(raw, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
