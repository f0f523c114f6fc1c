"""Seconds and memory of building and describing a federation of 50,000 owners, as large as FLAIR.

A corpus of empty pictures is generated: owners with lognormal numbers of images (median 3, mean 7.6)
and labels of falling frequency, in each image on its own, with a box per present label. Each step runs
in a process of its own, whose peak is the largest resident set (``ru_maxrss``).

    uv run python benchmarks/many_owners.py --labels 17 --regime "random_missing()"
    uv run python benchmarks/many_owners.py --labels 1628 --no-boxes
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedmlic.corpus import Corpus, open_corpus
from fedmlic.dataset import Dataset, Objects, Table
from fedmlic.federation import Federation, build_federation
from sim.reports.describe import describe

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = 2


def table(num_owners: int, num_labels: int, *, boxes: bool) -> Table:
    """Rows of the generated data set."""
    rng = np.random.default_rng(0)
    sizes = np.minimum(np.ceil(rng.lognormal(0.9, 1.45, num_owners)), 4151).astype(np.int64)
    owners = np.repeat(np.arange(num_owners), sizes)
    frequency = np.minimum(0.7, 0.9 / np.arange(1, num_labels + 1))
    labels = np.empty((len(owners), num_labels), dtype=np.int8)
    for start in range(0, len(labels), 20_000):
        block = labels[start : start + 20_000]
        block[:] = rng.random(block.shape, dtype=np.float32) < frequency
    objects = None
    if boxes:
        row, label = np.nonzero(labels)
        box = rng.random((len(row), 4), dtype=np.float32) * SIZE / 2
        objects = Objects(row, label.astype(np.int16), box, box[:, 2] * box[:, 3])
    return Table([f"{i:07d}" for i in range(len(owners))], ["train"] * len(owners), labels, owners, objects)


def corpus(options: argparse.Namespace, home: Path) -> Corpus:
    """The generated data set on disk."""
    shape = (SIZE, SIZE, 1)
    identity = {"owners": options.owners, "labels": options.labels, "boxes": options.boxes}
    dataset = Dataset(
        name="many_owners",
        version="1",
        identity=identity,
        label_names=tuple(f"label {i}" for i in range(options.labels)),
        image_shape=shape,
        table=lambda: table(options.owners, options.labels, boxes=options.boxes),
        image=lambda _: np.zeros(shape, np.uint8),
        images=lambda rows: np.zeros((len(rows), *shape), np.uint8),
    )
    return open_corpus(dataset, home)


def federation(options: argparse.Namespace, home: Path) -> Federation:
    """Built, or opened once it is."""
    return build_federation(
        corpus(options, home),
        partition="natural()",
        regime=options.regime,
        num_clients=0,
        seed=0,
        holdout_fraction=0.1,
        home=home,
    )


def measured(step: Callable[..., Any], *arguments: Any) -> dict[str, float]:  # noqa: ANN401
    """Seconds (by the clock and of the processor) and peak megabytes of one step in a process of its own."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(send, step, *arguments))
    process.start()
    send.close()  # else a step that fails would be waited for without end
    try:
        found: dict[str, float] = receive.recv()
    except EOFError:
        process.join()
        msg = f"Expected {step.__name__} to finish, got exit code {process.exitcode}."
        raise SystemExit(msg) from None
    process.join()
    return found


def _run(send: Any, step: Callable[..., Any], *arguments: Any) -> None:  # noqa: ANN401
    began = time.perf_counter()
    step(*arguments)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seconds = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time()}
    send.send({name: round(value, 1) for name, value in seconds.items()} | {"peak_mb": round(peak)})


def report(options: argparse.Namespace, home: Path) -> None:
    """The report with all its files."""
    describe(federation(options, home), home / "report")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--owners", type=int, default=50_000)
    parser.add_argument("--labels", type=int, default=17)
    parser.add_argument("--regime", default="random_missing()")
    parser.add_argument("--boxes", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        for name, step in {"corpus": corpus, "federation": federation, "describe": report}.items():
            print(name, json.dumps(measured(step, options, home)), flush=True)


if __name__ == "__main__":
    main()
