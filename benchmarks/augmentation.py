"""What each change of the setting ``augmentation`` costs, beside a training step of ResNet-18 on the same images.

    OMP_NUM_THREADS=1 uv run python benchmarks/augmentation.py --side 224

One thread, float32, a batch of 16; the median of the repeats, in which all take turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import TYPE_CHECKING

import torch

from fedmlic import spec
from fedmlic.augmentation import CHANGES
from fedmlic.views import augment

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

BATCH = 16


def step_of(images: Tensor) -> Callable[[], object]:
    """Forward and backward pass of a ResNet-18 from scratch."""
    network = spec.build("model", "resnet(depth=18)").build(images.shape[1]).train()
    return lambda: network(images).square().mean().backward()


def main() -> None:
    """Print milliseconds an image, and what part of a step that is."""
    parser = argparse.ArgumentParser(description="what augmentation costs")
    parser.add_argument("--side", type=int, default=224, help="of images, in pixels")
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rng = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, given.side, given.side, generator=rng).clamp(-2, 2)
    acts = {"step": step_of(images)}
    acts |= {name: lambda name=name: augment(images, name, rng) for name in (*CHANGES, "flip+crop+randaugment")}
    took: dict[str, list[float]] = {name: [] for name in acts}
    for _ in range(given.repeats):
        for name, act in acts.items():
            began = time.perf_counter()
            act()
            took[name].append((time.perf_counter() - began) / BATCH * 1000)
    found = {name: statistics.median(times) for name, times in took.items()}
    for name, each in found.items():
        print(f"{name:>22}  {each:7.2f} ms an image  {each / found['step']:6.1%} of a step")


if __name__ == "__main__":
    main()
