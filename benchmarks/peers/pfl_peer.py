"""pfl: FederatedAveraging on its SimulatedBackend, in one process or, under torchrun, in several.

Data sets are tensors in memory, made once per client; every round hands them over in a new
order, since pfl itself does not shuffle. Clients' work is balanced by pfl where sizes
differ. pfl exchanges parameters only: BatchNorm statistics go from client to client.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from common import Clock, network_of, order_of, read_options, to_tensors
from workloads import LEARNING_RATE, Data, read, workload_of


def build(options: argparse.Namespace, clock: Clock) -> tuple[object, ...]:
    """The algorithm's parameters, the backend, the model and the callbacks."""
    import numpy as np
    import torch
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.aggregate.weighting import WeightByDatapoints
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.callback.base import TrainingProcessCallback
    from pfl.hyperparam import NNTrainHyperParams
    from pfl.metrics import Metrics, Weighted
    from pfl.model.pytorch import PyTorchModel

    np.random.seed(0)  # noqa: NPY002  (pfl draws from NumPy's global state, alike on all ranks)
    data = read(Path(options.data))
    workload = workload_of(options.workload)
    progress = {"round": 0}
    first = int(os.environ.get("RANK", "0")) == 0
    losses: list[torch.Tensor] = []
    classifier = network_of(options.workload, data.labels.shape[1])
    criterion = torch.nn.BCEWithLogitsLoss()

    class Network(torch.nn.Module):
        """The workload's network with the two functions that pfl asks for."""

        def __init__(self) -> None:
            super().__init__()
            self.classifier = classifier

        def loss(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            self.train()
            loss = criterion(self.classifier(images), labels)
            losses.append(loss.detach())
            return loss

        def metrics(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, object]:
            return {"count": Weighted.from_unweighted(len(images) + 0 * len(labels))}

    class Note(TrainingProcessCallback):
        """Says that a round ended. The loss is of the first rank's clients."""

        def after_central_iteration(self, aggregate_metrics: Metrics, *_: object, **__: object) -> tuple[bool, Metrics]:
            progress["round"] += 1
            if first:
                found = {str(name): float(value) for name, value in aggregate_metrics.to_simple_dict().items()}
                clients, images_each = _of(found, "number of devices"), _of(found, "number of data points")
                loss = float(torch.stack(losses).mean())
                clock.say("round", clients=clients, images=round(clients * images_each), loss=loss)
            losses.clear()
            return False, Metrics()

    model = PyTorchModel(
        Network(),
        torch.optim.SGD,
        torch.optim.SGD(classifier.parameters(), lr=1.0),
    )
    params = NNAlgorithmParams(
        central_num_iterations=options.rounds,
        evaluation_frequency=1_000_000,
        train_cohort_size=workload.cohort,
        val_cohort_size=0,
    )
    local = NNTrainHyperParams(
        local_num_epochs=1, local_learning_rate=LEARNING_RATE, local_batch_size=workload.batch_size
    )
    users = federated(data, options.device, progress, clock if first else None)
    return params, SimulatedBackend(users, users, [WeightByDatapoints()]), model, local, [Note()]


def _of(metrics: dict[str, float], word: str) -> float:
    return next((value for name, value in metrics.items() if word in name), float("nan"))


class InTurn:
    """Every client once a round. A class, since pfl pickles it into a process that balances the work."""

    def __init__(self, num_clients: int) -> None:
        self._num_clients = num_clients
        self._next = 0

    def __call__(self) -> int:
        """The next client."""
        client = self._next
        self._next = (client + 1) % self._num_clients
        return client


def federated(data: Data, device: str, progress: dict[str, int], clock: Clock | None) -> object:
    """All clients in turn, round after round."""
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset

    tensors = functools.cache(lambda client: to_tensors(data, client, device))
    begun = []

    def make(client: int) -> Dataset:
        if clock and not begun:
            begun.append(client)
            clock.say("first-client")
        images, labels = tensors(client)
        order = order_of(client, progress["round"] + 1, len(images)).to(images.device)
        return Dataset((images[order], labels[order]), user_id=str(client))

    sizes = (data.client_ptr[1:] - data.client_ptr[:-1]).tolist()
    weights = dict(enumerate(sizes)) if len(set(sizes)) > 1 else None
    return FederatedDataset(make, InTurn(data.num_clients), weights)


def main() -> None:
    """Play the rounds."""
    options = read_options()
    rank = os.environ.get("LOCAL_RANK", "0")
    options.device = f"cuda:{rank}" if options.device == "cuda" else options.device
    os.environ["PFL_PYTORCH_DEVICE"] = options.device
    import torch
    from pfl.algorithm.federated_averaging import FederatedAveraging

    torch.set_num_threads(1)
    params, backend, model, local, callbacks = build(options, Clock(options.log))
    FederatedAveraging().run(params, backend, model, local, callbacks=callbacks, send_metrics_to_platform=False)


if __name__ == "__main__":
    main()
