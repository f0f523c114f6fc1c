"""pfl's FedProx and SCAFFOLD on three clients whose numbers are read from a file; run by an interpreter with pfl.

    pfl-env/bin/python benchmarks/peers/pfl_rules.py JOB.json

The job holds images float32 ``[images, pixels]`` and labels ``[images, labels]`` of every client, the initial weight
and bias, and the settings; the model after every round is printed as JSON.

pfl 0.6 takes a client's change as (new - start), so its control variates are the negative of the paper's, and adds
(server - client) to the gradient all the same; and option I keeps a client's control variate in a buffer that the next
client overwrites. With ``mend`` in the job both are put right here (the two are handed over in the other order, what is
kept is copied), and nothing else is touched.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("PFL_PYTORCH_DEVICE", "cpu")


def play(job: dict[str, object]) -> list[list[float]]:
    """The weight and bias after every round, flat."""
    import torch
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.fedprox import FedProx, FedProxParams
    from pfl.algorithm.scaffold import SCAFFOLD, SCAFFOLDParams
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.user_state import InMemoryUserStateStorage
    from pfl.hyperparam import NNTrainHyperParams
    from pfl.internal.bridge import FrameworkBridgeFactory
    from pfl.metrics import Metrics, Weighted
    from pfl.model.pytorch import PyTorchModel

    if job.get("mend"):
        bridge = FrameworkBridgeFactory.scaffold_bridge()
        descend = bridge.do_control_variate_sgd

        def in_order(*arguments: object, local_c: object, server_c: object) -> None:
            descend(*arguments, local_c=server_c, server_c=local_c)

        bridge.do_control_variate_sgd = staticmethod(in_order)

    class Storage(InMemoryUserStateStorage):
        """Keeps copies where that is asked for."""

        def save_state(self, state: object, *where: object) -> None:
            kept = state.apply_elementwise(torch.clone) if job.get("mend") else state  # type: ignore[attr-defined]
            super().save_state(kept, *where)

    clients = [(torch.tensor(images), torch.tensor(labels)) for images, labels in job["clients"]]
    linear = torch.nn.Linear(clients[0][0].shape[1], clients[0][1].shape[1])
    with torch.no_grad():
        linear.weight.copy_(torch.tensor(job["weight"]))
        linear.bias.copy_(torch.tensor(job["bias"]))
    models: list[list[float]] = []

    class Network(torch.nn.Module):
        """The linear model with the two functions that pfl asks for."""

        def __init__(self) -> None:
            super().__init__()
            self.linear = linear

        def loss(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.binary_cross_entropy_with_logits(self.linear(images), labels)

        def metrics(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, object]:
            return {"count": Weighted.from_unweighted(len(images) + 0 * len(labels))}

    class Note(TrainingProcessCallback):
        """Keeps the model after every round."""

        def after_central_iteration(self, *_: object, **__: object) -> tuple[bool, Metrics]:
            models.append(torch.cat([linear.weight.detach().flatten(), linear.bias.detach()]).tolist())
            return False, Metrics()

    turns = iter(int(client) for cohort in job["cohorts"] for client in cohort)
    users = FederatedDataset(lambda client: Dataset(clients[client], user_id=str(client)), lambda: next(turns))
    common = {
        "central_num_iterations": len(job["cohorts"]),
        "evaluation_frequency": 1_000_000,
        "train_cohort_size": len(job["cohorts"][0]),
        "val_cohort_size": 0,
    }
    if job["rule"] == "fedprox":
        algorithm, params = FedProx(), FedProxParams(mu=job["mu"], **common)
    else:
        algorithm = SCAFFOLD()
        params = SCAFFOLDParams(
            population=len(clients),
            use_gradient_as_control_variate=job["option"] == 1,
            user_state_storage=Storage(),
            **common,
        )
    model = PyTorchModel(Network(), torch.optim.SGD, torch.optim.SGD(linear.parameters(), lr=1.0))
    local = NNTrainHyperParams(local_num_epochs=job["epochs"], local_learning_rate=job["rate"], local_batch_size=None)
    algorithm.run(params, SimulatedBackend(users, users), model, local, callbacks=[Note()])
    return models


if __name__ == "__main__":
    print(json.dumps(play(json.loads(Path(sys.argv[1]).read_text()))))
