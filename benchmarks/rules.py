"""Do FedMLIC's rules give the numbers that peers' give? FedProx and SCAFFOLD beside pfl's, on the same three clients.

    uv run python benchmarks/rules.py --pfl-python pfl-env/bin/python

A linear model, full-batch steps, two of three clients a round, all weighted alike (as pfl weighs them); both sides
start from the same numbers and the models after every round are compared. ``docs/benchmarks.md`` says how to make an
environment with pfl. Of FedMLIC's rules and mods Flower has FedAvg, FedProx, whose server side is FedAvg's, and the
clipping of changes: ``tests/strategies/test_rules.py`` runs Flower's mean and clipping on the same numbers.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from clients.host import Host
from clients.memory import FolderMemory
from fedmlic import spec
from fedmlic.arrays import Resident
from fedmlic.experiment import Experiment
from fedmlic.learner import Learner
from fedmlic.losses import mean_binary_cross_entropy
from fedmlic.method import Method, Objective, Task
from fedmlic.pixel_scale import to_float
from fedmlic.protocol import Request
from fedmlic.shard import Shard
from fedmlic.training import trainer
from fedmlic.update import units_for
from strategies.strategy import Round

SIZES = (3, 5, 4)
COHORTS = ((0, 1), (1, 2), (0, 2), (1, 0), (2, 1))
EPOCHS, RATE, MU = 3, 0.3, 0.7
RULES: dict[str, tuple[str, dict[str, object]]] = {
    "FedProx": ("fedprox(mu=0.7, weights='uniform')", {"rule": "fedprox"}),
    "SCAFFOLD, option I": ("scaffold(option=1)", {"rule": "scaffold", "option": 1}),
    "SCAFFOLD, option I, pfl mended": ("scaffold(option=1)", {"rule": "scaffold", "option": 1, "mend": True}),
    "SCAFFOLD, option II": ("scaffold(option=2)", {"rule": "scaffold", "option": 2}),
    "SCAFFOLD, option II, pfl mended": ("scaffold(option=2)", {"rule": "scaffold", "option": 2, "mend": True}),
}


class Pixels:
    """Images in memory."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The images of these rows."""
        return np.asarray(self.pixels[rows])


class Federation:
    """What a host asks of a federation."""

    def __init__(self, shards: list[Shard]) -> None:
        self._shards = shards
        self.clients = range(len(shards))
        self.sizes = np.array([shard.num_images for shard in shards])
        self.label_names = shards[0].label_names

    def shard(self, client: int) -> Shard:
        """One client's data."""
        return self._shards[client]


def shards() -> list[Shard]:
    """Three clients with a few random images of 2 x 2 pixels and two labels."""
    rng = np.random.default_rng(0)
    none, no_labels = np.zeros(0, np.int64), np.zeros((0, 2), np.int8)
    return [
        Shard(
            client,
            ("one", "two"),
            Pixels(rng.integers(0, 256, (size, 2, 2, 1), dtype=np.uint8)),  # type: ignore[arg-type]
            np.arange(size),
            rng.integers(0, 2, (size, 2)).astype(np.int8),
            none,
            no_labels,
        )
        for client, size in enumerate(SIZES)
    ]


def linear() -> nn.Module:
    """One linear layer over the pixels."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        network[1].weight.copy_(torch.linspace(-0.3, 0.4, 8).view(2, 4))  # type: ignore[operator]
        network[1].bias.copy_(torch.tensor([0.1, -0.2]))  # type: ignore[operator]
    return network


def ours(strategy: str, folder: Path) -> list[Tensor]:
    """FedMLIC's models after every round."""
    held = shards()
    experiment = Experiment(
        num_clients=len(held),
        cohort_size=0,
        optimizer="sgd",
        learning_rate=RATE,
        clip_norm=0.0,
        batch_size=100,
        local_epochs=EPOCHS,
    )
    objective = Objective(lambda network, images, labels: mean_binary_cross_entropy(network(images), labels))
    method = Method(
        lambda _: linear(),
        trainer(objective),
        lambda network, images: torch.sigmoid(network(images)),
        objective=objective,
    )
    resident = Resident(linear(), num_labels=2)
    learner = Learner(method, resident, Task(("one", "two"), (2, 2, 1), None, 0), torch.device("cpu"))  # type: ignore[arg-type]
    host = Host("h", experiment, Federation(held), learner, memory=lambda _: FolderMemory(folder))  # type: ignore[arg-type]
    rule, layout = spec.build("strategy", strategy), resident.layout
    state, last, models = rule.init(resident.flat.clone(), layout), dict[int, int](), []
    for number, cohort in enumerate(COHORTS, 1):
        request = Request(
            kind="train",
            round=number,
            flat=state.flat,
            units=units_for(rule.weighting, [held[client].num_images for client in cohort], 2),
            weighting=rule.weighting,
            each=rule.needs == "each",
            shared=state.shared,
            mods=rule.mods,
            last=dict(last),
        )
        reply = host.play(request, cohort)
        state = rule.aggregate(state, iter(reply.updates), Round(number, len(held), len(cohort), layout))
        last.update(dict.fromkeys(cohort, number))
        tensors = layout.unpack(state.flat)
        models.append(torch.cat([tensors["1.weight"].flatten(), tensors["1.bias"]]))
    return models


def theirs(python: str, job: dict[str, object], folder: Path) -> list[Tensor]:
    """Pfl's models after every round."""
    start = linear()[1]  # type: ignore[index]
    held = [
        (
            to_float(torch.from_numpy(shard.images.take(shard.rows))).flatten(1).tolist(),
            shard.labels.astype(float).tolist(),
        )
        for shard in shards()
    ]
    path = folder / "job.json"
    path.write_text(
        json.dumps(
            {
                "clients": held,
                "weight": start.weight.tolist(),
                "bias": start.bias.tolist(),
                "cohorts": COHORTS,
                "epochs": EPOCHS,
                "rate": RATE,
                "mu": MU,
                **job,
            }
        )
    )
    script = Path(__file__).parent / "peers" / "pfl_rules.py"
    done = subprocess.run([python, script, path], check=True, capture_output=True, text=True)
    return [torch.tensor(model) for model in json.loads(done.stdout.strip().splitlines()[-1])]


def main() -> None:
    """Print the largest difference after every round."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pfl-python", required=True, help="interpreter of an environment with pfl")
    options = parser.parse_args()
    for name, (strategy, job) in RULES.items():
        with tempfile.TemporaryDirectory() as folder:
            here, there = ours(strategy, Path(folder)), theirs(options.pfl_python, job, Path(folder))
        differences = [float((a - b).abs().max()) for a, b in zip(here, there, strict=True)]
        print(f"{name:32s} largest difference after each round: " + "  ".join(f"{each:.1e}" for each in differences))


if __name__ == "__main__":
    main()
