"""How many bytes a device's training takes on the wire: the sum as trained, the change after mods that shorten it.

OMP_NUM_THREADS=1 uv run python benchmarks/packing.py
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor

from fedmlic.mods.int8 import quantised
from fedmlic.packing import pack, unpack


def coarse(change: Tensor, num_tensors: int) -> Tensor:
    """The change after ``int8(rounding='nearest')``, tensor by tensor."""
    return torch.cat([quantised(part, None) for part in change.split(-(-len(change) // num_tensors))])


def largest(change: Tensor, fraction: float) -> Tensor:
    """The change after ``top_k(fraction)``."""
    least = change.abs().kthvalue(int((1 - fraction) * len(change))).values
    return change.where(change.abs() >= least, 0.0)


def main() -> None:
    """Pack, unpack, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--numbers", type=int, default=11_200_000)
    parser.add_argument("--tensors", type=int, default=60)
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(options.numbers, generator=generator) / 30
    change = torch.randn(options.numbers, generator=generator) / 1000
    sent = {
        "as trained": (start + change).double() * 37,  # the sum, which no mod changed
        "clip": change * 0.7,
        "int8": coarse(change, options.tensors),
        "top_k(0.1)": largest(change, 0.1),
        "top_k(0.01)": largest(change, 0.01),
        "both(0.1)": coarse(largest(change, 0.1), options.tensors),
    }
    for name, values in sent.items():
        numbers = values.numpy()
        began = time.process_time()
        form, data = pack(numbers)
        packed = time.process_time()
        same = unpack(form, data, len(numbers), numbers.itemsize) == numbers.tobytes()
        spent = time.process_time() - packed
        print(
            f"{name:12s}{form:18s}{len(data) / 1e6:7.2f} of {numbers.nbytes / 1e6:.1f} MB, pack "
            f"{packed - began:.2f} s, unpack {spent:.2f} s, {'the same' if same else 'OTHER NUMBERS'}"
        )


if __name__ == "__main__":
    main()
