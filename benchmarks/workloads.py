"""The work that all contestants of ``rounds.py`` do: clients, images, network, local training.

W1 and W2 are the two workloads of many small clients; W3 has FLAIR's shape (most clients
hold a handful of images, a few hold hundreds) and needs a GPU to be pleasant. Images are
FedMLIC's own, dealt by FedMLIC's own partition, and written to one file that every
contestant reads into memory before its first round.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LEARNING_RATE = 0.01
SEED = 0


@dataclass(frozen=True)
class Workload:
    """One workload.

    Attributes:
        name: how it is asked for.
        cohort: clients a round (all clients take part in every round).
        num_images: training images of all clients.
        image_size: height and width, pixels.
        batch_size: images a step; one local epoch, plain SGD.
        model: the backbone.
        rounds: played by default: two to warm up, some that count, one for FedMLIC's evaluation.
        partition: how images are dealt.
    """

    name: str
    cohort: int
    num_images: int
    image_size: int
    batch_size: int
    model: str
    rounds: int
    partition: str = "iid()"

    @property
    def settings(self) -> dict[str, object]:
        """FedMLIC's settings, evaluation left out but for the last round."""
        return {
            "dataset": f"multidigits(num_train={self.num_images}, num_val=0, num_test=16, "
            f"image_size={self.image_size}, num_owners={self.cohort}, owner_spread={self.spread})",
            "partition": self.partition,
            "regime": "complete()",
            "model": self.model,
            "method": "bce()",
            "strategy": "fedavg()",
            "num-clients": self.cohort,
            "cohort-size": self.cohort,
            "local-epochs": 1,
            "batch-size": self.batch_size,
            "optimizer": "sgd",
            "learning-rate": LEARNING_RATE,
            "clip-norm": 0.0,
            "holdout-fraction": 0.0,
            "evaluate-every": 1_000_000,
            "seed": SEED,
        }

    @property
    def spread(self) -> float:
        """Log-standard deviation of owners' sizes; FLAIR's quartiles are 1, 2 and 5 images."""
        return 1.2 if self.partition.startswith("natural") else 0.8


WORKLOADS = {
    w.name: w
    for w in (
        Workload("W1", 100, 2000, 32, 10, "small_cnn()", 20),
        Workload("W2", 20, 160, 64, 4, "resnet(depth=18, norm='pooled')", 6),
        Workload("W3", 200, 800, 224, 16, "resnet(depth=18, norm='pooled')", 8, "natural()"),
    )
}


def workload_of(name: str) -> Workload:
    """The workload ``W3``, or with ``W3@0.1`` a tenth of its clients and images.

    Raises:
        ValueError: there is none of this name.
    """
    base, _, scale = name.partition("@")
    if base not in WORKLOADS:
        msg = f"Expected a workload among {', '.join(WORKLOADS)}, got {name!r}."
        raise ValueError(msg)
    whole = WORKLOADS[base]
    if not scale:
        return whole
    clients = max(2, round(whole.cohort * float(scale)))
    return replace(whole, name=name, cohort=clients, num_images=whole.num_images * clients // whole.cohort)


class Data(NamedTuple):
    """What a contestant reads.

    Attributes:
        client_ptr: int64 ``[clients + 1]``.
        images: uint8 ``[images, height, width, channels]``, client after client.
        labels: int8 ``[images, labels]``, complete.
    """

    client_ptr: NDArray[np.int64]
    images: NDArray[np.uint8]
    labels: NDArray[np.int8]

    @property
    def num_clients(self) -> int:
        """How many clients there are."""
        return len(self.client_ptr) - 1

    def of(self, client: int) -> tuple[NDArray[np.uint8], NDArray[np.int8]]:
        """Images and labels of one client."""
        part = slice(int(self.client_ptr[client]), int(self.client_ptr[client + 1]))
        return self.images[part], self.labels[part]


def export(workload: Workload, home: Path, target: Path) -> None:
    """Build the corpus and the federation in ``home`` and write what they hold to ``target``."""
    from fedmlic.experiment import split_settings
    from sim.run import describe_federation

    federation = describe_federation(*split_settings({**workload.settings, "home": str(home)}))
    shards = [federation.shard(client) for client in range(federation.num_clients)]
    np.savez(
        target,
        client_ptr=np.concatenate(([0], np.cumsum([shard.num_images for shard in shards]))),
        images=np.concatenate([shard.images.take(shard.rows) for shard in shards]),
        labels=np.concatenate([shard.labels for shard in shards]),
    )


def read(path: Path) -> Data:
    """What ``export`` wrote, in memory."""
    with np.load(path) as arrays:
        return Data(arrays["client_ptr"], arrays["images"], arrays["labels"])
