"""Does FedMLIC reproduce a published table? Fashion-MNIST under label skew, four aggregation rules.

The table is that of Flower's ``niid_bench`` baseline (its README): 10 clients, all in every round, 50 rounds of 10
local epochs, batches of 64, SGD with momentum 0.9, a small network with 6 and 16 channels, accuracy on the test
images, mean and standard deviation over three seeds. Its configuration files (``niid_bench/conf``) give the rest:
learning rate 0.01, weight decay 1e-5, mu 0.01 (its authors also tried 0.001, 0.1 and 1), pixels between 0 and 1. Who
holds which labels follows ``dataset_preparation.py``: client i has label i and others drawn at random, and the images
of a label are shared out evenly among those who have it. SCAFFOLD corrects after the momentum, as there; its control
variates start at zero, where that code starts them at the weights. One-hot labels are multi-label data with one
present label; the loss is cross-entropy over the labels, the accuracy that of the largest output.

    uv run python benchmarks/known_answers.py --splits two-labels --seeds 3
    uv run python benchmarks/known_answers.py --rounds 5 --seeds 1     # a look, not an answer

Needs the files of Fashion-MNIST (``docs/datasets/fashion_mnist.md``). A run that was killed goes on in ``--out``, and a
finished one adds its line to ``--results`` (``benchmarks/results/known_answers.csv``); a line that is there is not
played again, so that the table can be played in pieces. One round takes 16 to 43 s on two cores, a run 13 to 36
minutes. A client whose loss or sums are no finite numbers fails and is left out of the round; the original goes on
with NaN.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from fedmlic.labels import PRESENT
from fedmlic.method import Method, Objective
from fedmlic.model import Backbone, Model
from fedmlic.models.lenet import lenet
from fedmlic.partition import Partition, Partitioner, Population
from fedmlic.pixel_scale import PIXEL_MEAN, PIXEL_STD
from fedmlic.training import classifier, trainer

PUBLISHED = {
    ("iid", "fedavg"): (89.23, 0.45),
    ("iid", "scaffold"): (89.33, 0.27),
    ("iid", "fedprox"): (89.42, 0.09),
    ("iid", "fednova"): (89.36, 0.09),
    ("dirichlet", "fedavg"): (88.09, 0.29),
    ("dirichlet", "scaffold"): (88.44, 0.25),
    ("dirichlet", "fedprox"): (88.15, 0.42),
    ("dirichlet", "fednova"): (88.22, 0.12),
    ("one-label", "fedavg"): (28.39, 17.09),
    ("one-label", "scaffold"): (10.00, 0.00),
    ("one-label", "fedprox"): (32.65, 6.68),
    ("one-label", "fednova"): (16.86, 9.30),
    ("two-labels", "fedavg"): (78.10, 2.51),
    ("two-labels", "scaffold"): (33.80, 41.22),
    ("two-labels", "fedprox"): (78.05, 0.99),
    ("two-labels", "fednova"): (71.67, 2.34),
    ("three-labels", "fedavg"): (82.43, 1.52),
    ("three-labels", "scaffold"): (80.32, 5.03),
    ("three-labels", "fedprox"): (82.99, 0.48),
    ("three-labels", "fednova"): (81.97, 1.34),
}
"""Accuracy in percent, mean and standard deviation over three seeds, by split and rule."""

PARTITIONS = {
    "iid": "iid()",
    "dirichlet": "dirichlet(alpha=0.5)",
    "one-label": "known_answers.label_quantity(labels_per_client=1)",
    "two-labels": "known_answers.label_quantity(labels_per_client=2)",
    "three-labels": "known_answers.label_quantity(labels_per_client=3)",
}

RULES = {
    "fedavg": "fedavg()",
    "scaffold": "scaffold(correct='step', weights='images')",
    "fedprox": "fedprox(mu=0.01)",
    "fednova": "fednova()",
}


def label_quantity(*, labels_per_client: int = 2) -> Partitioner:
    """Client i holds label i and others drawn at random; the images of a label are shared out evenly.

    Args:
        labels_per_client: labels that a client holds images of.
    """

    def deal(population: Population, num_clients: int, rng: np.random.Generator) -> Partition:
        labels = (population.labels == PRESENT).argmax(axis=1)
        num_labels = population.labels.shape[1]
        held = [[client % num_labels] for client in range(num_clients)]
        for own in held:
            while len(own) < labels_per_client:
                drawn = int(rng.choice(num_labels))
                if drawn not in own:
                    own.append(drawn)
        client_of_row = np.full(len(labels), -1, dtype=np.int64)
        for label in range(num_labels):
            holders = [client for client, own in enumerate(held) if label in own]
            images = rng.permutation(np.flatnonzero(labels == label))
            for holder, part in zip(holders, np.array_split(images, len(holders)), strict=True):
                client_of_row[part] = holder
        return Partition.from_clients(client_of_row, num_clients)

    return deal


class _UnitPixels(Backbone):
    """A LeNet whose pixels lie between 0 and 1, as torchvision's ``ToTensor`` makes them."""

    bn_policy = "none"

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.network = lenet().build(channels)
        self.num_features = self.network.num_features

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.network((images * PIXEL_STD + PIXEL_MEAN) / 255)
        return features


def unit_lenet() -> Model:
    """LeNet on pixels between 0 and 1."""
    return Model(_UnitPixels)


def softmax_method() -> Method:
    """A classifier of images with exactly one present label, trained by cross-entropy over the labels."""

    def loss(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(network(images), labels.argmax(dim=1))

    def predict(network: nn.Module, images: Tensor) -> Tensor:
        probs: Tensor = network(images).softmax(dim=1)
        return probs

    objective = Objective(loss)
    return classifier(lambda logits, labels: logits.sum() * labels.sum())._replace(
        train=trainer(objective), predict=predict, objective=objective
    )


def settings(split: str, rule: str, seed: int, rounds: int) -> list[str]:
    """One cell's run as arguments of ``fedmlic run``."""
    return [
        "dataset=fashion_mnist(val_fraction=0)",
        f"partition={PARTITIONS[split]}",
        "regime=complete()",
        "model=known_answers.unit_lenet()",
        "method=known_answers.softmax_method()",
        f"strategy={RULES[rule]}",
        "num-clients=10",
        "cohort-size=0",
        f"num-rounds={rounds}",
        "local-epochs=10",
        "batch-size=64",
        "optimizer=sgd",
        "momentum=0.9",
        "weight-decay=1e-5",
        "learning-rate=0.01",
        "clip-norm=0",
        "holdout-fraction=0",
        "channels-last=true",
        f"evaluate-every={rounds}",
        f"seed={seed}",
    ]


def accuracy(run: Path) -> float:
    """Share of test images, in percent, whose largest output is their label, of a run's last model."""
    from fedmlic.record import open_run
    from strategies.server.server import build_server

    folder = open_run(run)
    server = build_server(*folder.settings())
    tensors, _ = folder.load_checkpoint(folder.checkpoints()[-1])
    layout = server.learner.resident.layout
    server.learner.resident.load(layout.pack({name: tensors[f"model/{name}"] for name in layout.names}))
    span = server.corpus.splits["test"]
    rows = np.arange(span.start, span.stop)
    scores = server.learner.predict(server.learner.stored(server.corpus), rows)
    truth = (server.corpus.labels.take(rows) == PRESENT).argmax(axis=1)
    return 100 * float((scores.argmax(axis=1) == truth).mean())


COLUMNS = ("split", "rule", "seed", "rounds", "accuracy")


def known(results: Path) -> dict[tuple[str, ...], float]:
    """The accuracies that a file of results holds, by split, rule, seed and rounds."""
    if not results.exists():
        return {}
    with results.open(newline="") as lines:
        return {tuple(line[name] for name in COLUMNS[:4]): float(line["accuracy"]) for line in csv.DictReader(lines)}


def cell(out: Path, results: Path, split: str, rule: str, seed: int, rounds: int) -> float:
    """The accuracy of one run, played now unless its line is there already."""
    key = (split, rule, str(seed), str(rounds))
    if key in (lines := known(results)):
        return lines[key]
    run = out / "-".join(key)
    command = [sys.executable, "-m", "sim.command"]
    start = (
        ["resume", str(run)] if (run / "experiment.json").exists() else ["run", *settings(split, rule, seed, rounds)]
    )
    where = [] if start[0] == "resume" else ["--out", str(run)]
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    subprocess.run([*command, *start, *where], check=True, env={**os.environ, "PYTHONPATH": path})
    found = accuracy(run)
    with results.open("a", newline="") as lines_out:
        table = csv.writer(lines_out, lineterminator="\n")
        if not lines:
            table.writerow(COLUMNS)
        table.writerow([*key, f"{found:.2f}"])
    return found


def main() -> None:
    """Play the cells that are asked for, one seed after the other, and print them beside the published ones."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--splits", nargs="+", choices=list(PARTITIONS), default=["two-labels"])
    parser.add_argument("--rules", nargs="+", choices=list(RULES), default=list(RULES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--out", type=Path, default=Path("runs/known_answers"))
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "known_answers.csv")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    options.results.parent.mkdir(parents=True, exist_ok=True)
    cells = [(split, rule) for split in options.splits for rule in options.rules]
    found: dict[tuple[str, str], list[float]] = {name: [] for name in cells}
    for seed in range(options.seeds):
        for split, rule in cells:
            got = cell(options.out, options.results, split, rule, seed, options.rounds)
            found[split, rule].append(got)
            print(f"{split} {rule} seed {seed}: {got:.2f}", flush=True)
    for (split, rule), values in found.items():
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        mean, deviation = PUBLISHED[split, rule]
        print(
            f"{split:14s}{rule:10s} here {statistics.mean(values):6.2f} +- {spread:5.2f}   "
            f"published {mean:6.2f} +- {deviation:5.2f}   {[round(value, 2) for value in values]}"
        )


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
