"""What the plain contestants share: the network, one client's training, and a clock.

Written as one would write it in a script, without FedMLIC's flat vectors: a state dict is
loaded, ``torch.optim`` steps, a state dict comes out.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

# FedMLIC need not be installed, and after the standard library nothing of this folder shadows anything.
sys.path.extend(str(Path(__file__).resolve().parents[number]) for number in (1, 2))

from workloads import LEARNING_RATE, SEED, Data, workload_of

State = dict[str, Tensor]


def read_options() -> argparse.Namespace:
    """The arguments that ``contestants.py`` gives to every peer."""
    parser = argparse.ArgumentParser()
    for name in ("workload", "data", "log"):
        parser.add_argument(name)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--gpus-per-process", type=float, default=0.0)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


class Clock:
    """Appends what happened when to a file, for ``contestants.py``."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)

    def say(self, kind: str, **values: float) -> None:
        """Note an event at this moment."""
        with self._path.open("a", encoding="utf-8") as log:
            log.write(json.dumps({"event": kind, "time": time.time(), **values}) + "\n")


def network_of(name: str, num_labels: int) -> nn.Module:
    """The workload's network with its initial weights."""
    from fedmlic import spec
    from fedmlic.model import Classifier

    torch.manual_seed(SEED)
    backbone = spec.build("model", workload_of(name).model).build(3)
    return Classifier(backbone, num_labels)


def to_tensors(data: Data, client: int, device: str) -> tuple[Tensor, Tensor]:
    """A client's images as float32 ``[images, channels, height, width]`` and its labels as float32."""
    images, labels = data.of(client)
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float().sub_(127.5).div_(63.75)
    return pixels.contiguous().to(device), torch.from_numpy(labels).float().to(device)


def train(network: nn.Module, images: Tensor, labels: Tensor, batch_size: int, order: Tensor) -> float:
    """One local epoch of plain SGD in the given order; return the mean loss of its steps."""
    network.train()
    optimiser = torch.optim.SGD(network.parameters(), lr=LEARNING_RATE)
    criterion = nn.BCEWithLogitsLoss()
    losses = []
    for start in range(0, len(images), batch_size):
        rows = order[start : start + batch_size]
        optimiser.zero_grad()
        loss = criterion(network(images[rows]), labels[rows])
        loss.backward()
        optimiser.step()
        losses.append(loss.detach())
    return float(torch.stack(losses).mean())


def order_of(client: int, round_number: int, num_images: int) -> Tensor:
    """A random order of the client's images in this round."""
    generator = torch.Generator().manual_seed(SEED + 1_000_003 * round_number + client)
    return torch.randperm(num_images, generator=generator)
