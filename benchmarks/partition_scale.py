"""What every partition costs at the size of the largest federations: seconds and memory, entry by entry.

Each entry deals the same random images in a process of its own, on one core. The images have a
long tail of labels, one owner per client at least, a coarser label for every five labels and one
object per present label. The last row counts and summarises a federation (``fedmlic.statistics``).

    uv run python benchmarks/partition_scale.py
    uv run python benchmarks/partition_scale.py --labels 1628 --only statistics
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np

from fedmlic.dataset import Objects
from fedmlic.partition import Population
from fedmlic.seeds import stream
from fedmlic.spec import build, entries
from fedmlic.statistics import summarise, tally

STATISTICS = "statistics"
VARIANTS = (
    "natural(min_images=8, merge_small=True)",
    "quantity(rule='zipf_mandelbrot')",
    "quantity(rule='dirichlet')",
    "dirichlet(key='largest_object')",
    "dirichlet(key='random')",
    "dirichlet(key='first')",
    "cooccurrence_clusters(keep_marginals=False)",
    "pathological(spanning='drop')",
    "constant_size(num_images=5)",
    "constant_size(num_images=5, within_owners=True)",
)
EVERY_OWNER = ("natural", "constant_size")
"""Entries whose number of clients follows from the data: they are asked for all."""


def random_population(num_images: int, num_clients: int, num_labels: int) -> Population:
    """Images whose label c has prevalence 0.4 / (c + 1), drawn a few at a time."""
    rng = np.random.default_rng(0)
    prevalence = 0.4 / np.arange(1, num_labels + 1)
    labels = np.zeros((num_images, num_labels), dtype=np.int8)
    for start in range(0, num_images, 8192):
        labels[start : start + 8192] = rng.random(labels[start : start + 8192].shape) < prevalence
    owners = np.concatenate([np.arange(num_clients), rng.integers(0, num_clients, num_images - num_clients)])
    parts = [np.nonzero(labels[start : start + 8192]) for start in range(0, num_images, 8192)]
    row = np.concatenate([rows + 8192 * part for part, (rows, _) in enumerate(parts)])
    label = np.concatenate([columns for _, columns in parts])
    area = rng.random(len(row), dtype=np.float32)
    objects = Objects(row, label.astype(np.int16), np.zeros((len(row), 4), dtype=np.float32), area)
    names = tuple(f"label {label}" for label in range(num_labels))
    return Population(labels, owners, objects, names, tuple(f"group {label // 5}" for label in range(num_labels)))


def deal(text: str, population: Population, num_clients: int) -> dict[str, object]:
    """One run of an entry, or of the statistics."""
    if text != STATISTICS:
        asked = 0 if text.partition("(")[0] in EVERY_OWNER else num_clients
        partition = build("partition", text)(population, asked, stream(0, "partition"))
        return {"clients": partition.num_clients, "images": len(partition.rows)}
    truth = population.labels
    client_ptr = np.linspace(0, len(truth), num_clients + 1).astype(np.int64)
    found = tally(truth, truth, client_ptr, np.zeros(num_clients, dtype=np.int64))
    summarise(found, population.label_names)
    return {"clients": num_clients, "images": len(truth)}


def measure(text: str, num_images: int, num_clients: int, num_labels: int) -> dict[str, object]:
    """Seconds of one run, by the clock and of the processor, and the most a second run allocates beyond its images."""
    population = random_population(num_images, num_clients, num_labels)
    started, cpu_started = time.perf_counter(), time.process_time()
    made = deal(text, population, num_clients)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    tracemalloc.start()  # it slows down what it measures
    deal(text, population, num_clients)
    peak = tracemalloc.get_traced_memory()[1]
    times = {"seconds": round(seconds, 2), "cpu_seconds": round(cpu_seconds, 2)}
    return {"partition": text, **times, "megabytes": round(peak / 2**20), **made}


def main() -> None:
    """Measure all entries one after another, each in a fresh process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=500_000)
    parser.add_argument("--clients", type=int, default=50_000)
    parser.add_argument("--labels", type=int, default=80)
    parser.add_argument("--only", action="append", help="an entry such as 'powerset(alpha=0.1)', or statistics")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    parser.add_argument("--here", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        print(json.dumps(measure(options.here, options.images, options.clients, options.labels)))
        return
    rows = []
    for text in options.only or [*entries("partition"), *VARIANTS, STATISTICS]:
        command = [sys.executable, __file__, "--here", text]
        command += [f"--{name}={getattr(options, name)}" for name in ("images", "clients", "labels")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if done.returncode:
            raise SystemExit(done.stderr)
        rows.append(json.loads(done.stdout))
        print(
            "{partition:48} {seconds:8.2f} s {cpu_seconds:8.2f} s of CPU {megabytes:6} MB".format(**rows[-1]),
            flush=True,
        )
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
