"""The ClientApp of ``flower_default.py``.

In a module of its own, so that an actor imports it once and its cache lives as long as the
actor. What a script defines itself would be pickled with every message, cache and all.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

if TYPE_CHECKING:
    from torch import Tensor, nn
    from workloads import Data

client_app = ClientApp()


class Actor:
    """What an actor keeps between messages: the network, the data, the tensors of clients it has met."""

    def __init__(self, workload: str, data: str, device: str) -> None:
        import torch
        from common import network_of
        from workloads import read, workload_of

        torch.set_num_threads(1)
        self.device = device
        self.data: Data = read(Path(data))
        self.network: nn.Module = network_of(workload, self.data.labels.shape[1]).to(device)
        self.batch_size = workload_of(workload).batch_size
        self._shards: dict[int, tuple[Tensor, Tensor]] = {}

    def shard(self, client: int) -> tuple[Tensor, Tensor]:
        """A client's images and labels on the device."""
        from common import to_tensors

        if client not in self._shards:
            self._shards[client] = to_tensors(self.data, client, self.device)
        return self._shards[client]


_actors: list[Actor] = []


@client_app.train()
def train_client(message: Message, context: Context) -> Message:
    """Load, train, reply."""
    from common import Clock, order_of, train

    config = message.content["config"]
    if not _actors:
        _actors.append(Actor(str(config["workload"]), str(config["data"]), str(config["device"])))
    actor = _actors[0]
    if not Path(str(config["log"])).exists():
        Clock(str(config["log"])).say("first-client")
    actor.network.load_state_dict(message.content["arrays"].to_torch_state_dict())
    client = int(context.node_config["partition-id"])
    images, labels = actor.shard(client)
    order = order_of(client, int(config["server-round"]), len(images)).to(images.device)
    loss = train(actor.network, images, labels, actor.batch_size, order)
    content = {
        "arrays": ArrayRecord(actor.network.state_dict()),
        "metrics": MetricRecord({"num-examples": len(images), "loss": loss}),
    }
    return Message(RecordDict(content), reply_to=message)
