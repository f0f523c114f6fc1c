"""What does one sweep save beside separate commands? The same short runs, played both ways.

    uv run python benchmarks/sweep.py               # 18 runs, 3 methods x 2 strategies x 3 seeds
    uv run python benchmarks/sweep.py --seeds 1     # 6 runs

Both ways begin with prepared images and federations and end with equal weights, which is checked. Separate commands are
those of a person: one after another, each with the default engine on all cores.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BASE = {
    "dataset": "multidigits(num_train=600,num_val=100,num_test=100,image_size=24)",
    "model": "small_cnn(width=8,num_blocks=1)",
    "num-rounds": "5",
    "local-epochs": "1",
    "num-clients": "10",
    "cohort-size": "4",
}
METHODS = ("bce()", "asl()", "fedlgt(layers=1)")
STRATEGIES = ("fedavg()", "labelwise()")


def fedmlic(*arguments: str) -> tuple[float, str]:
    """Seconds that a command takes, and what it prints."""
    command = [sys.executable, "-c", "from sim.command import main; main()", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr)
    return time.monotonic() - began, done.stdout


def separate(folder: Path, seeds: int) -> tuple[float, set[str]]:
    """Seconds of all runs as commands of their own, and the hashes of their weights."""
    total, hashes = 0.0, set()
    for place, (method, strategy, seed) in enumerate(itertools.product(METHODS, STRATEGIES, range(seeds))):
        settings = {**BASE, "method": method, "strategy": strategy, "seed": str(seed)}
        arguments = [f"{key}={value}" for key, value in settings.items()]
        seconds, text = fedmlic("run", *arguments, "--out", str(folder / str(place)), "--json")
        total += seconds
        hashes.add(json.loads(text)["weights_sha256"])
    return total, hashes


def together(folder: Path, seeds: int) -> tuple[float, set[str]]:
    """The same as one sweep."""
    axes = [f"method={','.join(METHODS)}", f"strategy={','.join(STRATEGIES)}", f"seed=0..{seeds - 1}"]
    arguments = [f"{key}={value}" for key, value in BASE.items()]
    seconds, _ = fedmlic("sweep", *arguments, *axes, "--out", str(folder))
    with (folder / "table.csv").open(encoding="utf-8") as file:
        return seconds, {row["weights-sha256"] for row in csv.DictReader(file)}


def main() -> None:
    """Prepare, play both ways, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        together(folder / "prepared", options.seeds)  # images and federations, which both ways share
        swept, ours = together(folder / "sweep", options.seeds)
        single, theirs = separate(folder / "runs", options.seeds)
    if ours != theirs:
        raise SystemExit("Expected equal weights of both ways, got others.")
    count = len(METHODS) * len(STRATEGIES) * options.seeds
    print(f"{count} runs: one sweep {swept:.1f} s, separate commands {single:.1f} s, ratio {swept / single:.2f}")


if __name__ == "__main__":
    main()
