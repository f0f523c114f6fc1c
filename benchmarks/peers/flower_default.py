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
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
sys.path.extend(str(Path(__file__).resolve().parents[number]) for number in (0, 1))

from common import Clock, network_of, read_options
from flower_client import client_app
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from workloads import read, workload_of


def server_app(options: argparse.Namespace) -> ServerApp:
    """FedAvg over all nodes."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        del context
        clock, replies = Clock(options.log), []

        def gather(contents: list[RecordDict], weighted_by_key: str) -> MetricRecord:
            del weighted_by_key
            replies[:] = [content["metrics"] for content in contents]
            return MetricRecord()

        def count(server_round: int, arrays: ArrayRecord) -> MetricRecord:
            del arrays
            if server_round:  # 0 is the initial model
                images = sum(int(reply["num-examples"]) for reply in replies)
                loss = sum(float(reply["loss"]) for reply in replies) / max(len(replies), 1)
                clock.say("round", clients=len(replies), images=images, loss=loss)
                replies.clear()
            return MetricRecord()

        cohort = workload_of(options.workload).cohort
        strategy = FedAvg(
            fraction_train=1.0,
            fraction_evaluate=0.0,
            min_train_nodes=cohort,
            min_available_nodes=cohort,
            train_metrics_aggr_fn=gather,
        )
        labels = read(Path(options.data)).labels.shape[1]
        strategy.start(
            grid=grid,
            initial_arrays=ArrayRecord(network_of(options.workload, labels).state_dict()),
            num_rounds=options.rounds,
            train_config=ConfigRecord({key: getattr(options, key) for key in ("data", "log", "workload", "device")}),
            evaluate_fn=count,
        )

    return app


def main() -> None:
    """Simulate."""
    from flwr.simulation import run_simulation

    options = read_options()
    run_simulation(
        server_app(options),
        client_app,
        num_supernodes=workload_of(options.workload).cohort,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": options.gpus_per_process},
            "init_args": {"num_cpus": options.processes, "logging_level": "error", "log_to_driver": False},
        },
    )


if __name__ == "__main__":
    main()
