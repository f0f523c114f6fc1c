"""How many bytes a device's sums take on the wire, and what packing costs, as trained and after mods that compress.

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


def main() -> None:
    """Pack, unpack, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--numbers", type=int, default=11_200_000)
    parser.add_argument("--tensors", type=int, default=60)
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(options.numbers, generator=generator) / 30
    change = torch.randn(options.numbers, generator=generator) / 1000
    least = change.abs().kthvalue(int(0.9 * options.numbers)).values
    sparse = change.where(change.abs() >= least, 0.0)
    changes = {
        "as trained": change,
        "int8": coarse(change, options.tensors),
        "top_k(0.1)": sparse,
        "both": coarse(sparse, options.tensors),
    }
    for name, values in changes.items():
        sums = ((start + values).double() * 37).numpy()  # a client sends its tensors, not their change
        began = time.process_time()
        form, data = pack(sums)
        packed = time.process_time()
        same = unpack(form, data, len(sums), sums.itemsize) == sums.tobytes()
        spent = time.process_time() - packed
        print(
            f"{name:12s}{form:18s}{len(data) / 1e6:7.1f} of {sums.nbytes / 1e6:.1f} MB, pack {packed - began:.2f} s, "
            f"unpack {spent:.2f} s, {'the same' if same else 'OTHER NUMBERS'}"
        )


if __name__ == "__main__":
    main()
