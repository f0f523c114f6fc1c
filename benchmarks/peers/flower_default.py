"""Flower's default way: one simulated node per client, one message per client and round, FedAvg.

The network is cached in each actor, which is more than most apps do. ``run_simulation`` is
deprecated in favour of ``flwr run``, which starts the same engine some seconds later.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
sys.path.insert(0, str(Path(__file__).resolve().parent))

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

client_app = ClientApp()
_cache: dict[str, object] = {}


@client_app.train()
def train_client(message: Message, context: Context) -> Message:
    """Load, train, reply."""
    import torch  # noqa: PLC0415
    from common import Clock, network_of, order_of, to_tensors, train  # noqa: PLC0415
    from workloads import WORKLOADS, read  # noqa: PLC0415

    torch.set_num_threads(1)
    config = message.content["config"]
    client = int(context.node_config["partition-id"])
    if not _cache:
        data = read(Path(str(config["data"])))
        _cache["data"] = data
        _cache["network"] = network_of(str(config["workload"]), data.labels.shape[1]).to(str(config["device"]))
    network, data = _cache["network"], _cache["data"]
    if not Path(str(config["log"])).exists():
        Clock(str(config["log"])).say("first-client")
    network.load_state_dict(message.content["arrays"].to_torch_state_dict())
    if ("shard", client) not in _cache:
        _cache[("shard", client)] = to_tensors(data, client, str(config["device"]))
    images, labels = _cache[("shard", client)]
    order = order_of(client, int(config["server-round"]), len(images)).to(images.device)
    train(network, images, labels, WORKLOADS[str(config["workload"])].batch_size, order)
    content = {
        "arrays": ArrayRecord(network.state_dict()),
        "metrics": MetricRecord({"num-examples": len(images)}),
    }
    return Message(RecordDict(content), reply_to=message)


def server_app(options: argparse.Namespace) -> ServerApp:
    """FedAvg over all nodes."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        del context
        from common import Clock, network_of  # noqa: PLC0415
        from workloads import WORKLOADS, read  # noqa: PLC0415

        clock = Clock(options.log)
        rounds = 0

        def count(server_round: int, arrays: ArrayRecord) -> MetricRecord:
            del arrays
            nonlocal rounds
            if server_round:
                clock.say("round")
            return MetricRecord()

        labels = read(Path(options.data)).labels.shape[1]
        cohort = WORKLOADS[options.workload].cohort
        strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=cohort, min_available_nodes=cohort)
        config = {key: getattr(options, key) for key in ("data", "log", "workload", "device")}
        strategy.start(
            grid=grid,
            initial_arrays=ArrayRecord(network_of(options.workload, labels).state_dict()),
            num_rounds=options.rounds,
            train_config=ConfigRecord(config),
            evaluate_fn=count,
        )

    return app


def main() -> None:
    """Simulate."""
    from flwr.simulation import run_simulation  # noqa: PLC0415
    from workloads import WORKLOADS  # noqa: PLC0415

    parser = argparse.ArgumentParser()
    for name in ("workload", "data", "log"):
        parser.add_argument(name)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    gpus = 0.0 if options.device == "cpu" else 1 / options.processes
    run_simulation(
        server_app(options),
        client_app,
        num_supernodes=WORKLOADS[options.workload].cohort,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": gpus},
            "init_args": {"num_cpus": options.processes, "logging_level": "error", "log_to_driver": False},
        },
    )


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    main()
