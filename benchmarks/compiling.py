"""When does ``torch.compile`` pay for itself? A training step with and without it, and what compiling takes.

One process, one thread (or one GPU), forward and backward pass of a network and its loss; the two take
turns within a repeat. Compiling starts with an empty cache (``--warm``: with that of the user). Every
batch size is compiled apart, so a shard whose last batch is smaller compiles twice. Printed is the number
of steps after which compiling has paid.

    uv run python benchmarks/compiling.py
    uv run python benchmarks/compiling.py --device cuda
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from fedmlic import spec
from fedmlic.learner import choose_device
from fedmlic.losses import binary_cross_entropy
from fedmlic.model import Classifier
from fedmlic.process import prepare

NUM_LABELS = 10


class Case(NamedTuple):
    """A network and what it is fed."""

    model: str
    image_size: int
    batch_size: int


CASES = (
    Case("small_cnn()", 32, 10),
    Case("resnet(depth=18, norm='pooled')", 64, 4),
    Case("resnet(depth=18, norm='pooled')", 224, 16),
)


class Stepper:
    """Forward and backward passes of one network, compiled or not."""

    def __init__(self, case: Case, device: torch.device, *, compiled: bool) -> None:
        torch.manual_seed(0)
        shape = (3, case.image_size, case.image_size)
        self._network: nn.Module = Classifier(spec.build("model", case.model).build(3), NUM_LABELS).to(device)
        self._images = torch.randn(case.batch_size, *shape, device=device)
        self._labels = torch.randint(0, 2, (case.batch_size, NUM_LABELS), dtype=torch.int8, device=device)
        self._loss = torch.compile(self._value) if compiled else self._value
        self._device = device

    def seconds(self, steps: int) -> float:
        """Seconds per step."""
        began = time.perf_counter()
        for _ in range(steps):
            for parameter in self._network.parameters():
                parameter.grad = None
            self._loss(self._images, self._labels).backward()
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - began) / steps

    def _value(self, images: Tensor, labels: Tensor) -> Tensor:
        return binary_cross_entropy(self._network(images), labels).mean()


def measure(case: Case, device: torch.device, length_s: float, repeats: int) -> dict[str, float]:
    """Seconds to compile, seconds of a step without and with, medians."""
    plain, compiled = Stepper(case, device, compiled=False), Stepper(case, device, compiled=True)
    plain.seconds(2)
    steps = max(2, round(length_s / plain.seconds(2)))
    began = time.perf_counter()
    compiled.seconds(1)
    took = time.perf_counter() - began
    compiled.seconds(2)
    pairs = [(plain.seconds(steps), compiled.seconds(steps)) for _ in range(repeats)]
    without, with_it = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(b / a for a, b in pairs)
    return {"compile": took, "without": without, "with": with_it, "ratio": ratio}


def main() -> None:
    """Measure every case and print when compiling has paid, in a cache of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one measured pass")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--warm", action="store_true", help="use what earlier programs have compiled")
    options = parser.parse_args()
    prepare(1)
    with tempfile.TemporaryDirectory() as folder:
        if not options.warm:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        show(options)


def show(options: argparse.Namespace) -> None:
    """Measure and print the table."""
    device = choose_device(options.device)
    columns = ("network", "images", "batch", "compile", "a step", "compiled", "ratio", "pays after")
    table = Table(*columns, title=f"torch.compile on {device}", title_justify="left")
    for case in CASES:
        found = measure(case, device, options.seconds, options.repeats)
        gain = found["without"] - found["with"]
        pays = f"{found['compile'] / gain:,.0f} steps" if gain > 0 else "never"
        table.add_row(
            case.model,
            f"{case.image_size}²",
            str(case.batch_size),
            f"{found['compile']:.1f} s",
            f"{1e3 * found['without']:.1f} ms",
            f"{1e3 * found['with']:.1f} ms",
            f"{found['ratio']:.2f}",
            pays,
        )
    Console(width=max(Console().width, 120)).print(table)


if __name__ == "__main__":
    main()
