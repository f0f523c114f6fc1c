"""Run an experiment on this machine: data, workers, round loop, record.

The order matters for the clock: workers start importing first, and the corpus
and the federation are built meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmlic.errors import InputError
from fedmlic.experiment import home_of, split_settings
from fedmlic.record import RunFolder, check_new, create, open_run, read_json, write_json

if TYPE_CHECKING:
    from torch import Tensor

    from clients.host import Host
    from fedmlic.corpus import Corpus
    from fedmlic.experiment import Experiment, Runtime
    from fedmlic.federation import Federation
    from fedmlic.protocol import Turn
    from sim.engines.workers import Workers
    from strategies.server.server import Server
    from strategies.server.transport import Transport


class Watch:
    """What a display may want to hear of; every hook does nothing by default."""

    def building(self, what: str, done: int, total: int) -> None:
        """A corpus or federation is being built."""

    def started(self, folder: RunFolder, experiment: Experiment, resumed_round: int) -> None:
        """The run folder exists and rounds are about to start."""

    def turn(self, round_number: int, turn: Turn, total: int) -> None:
        """A client's turn ended; ``total`` clients take part in this round."""

    def event(self, kind: str, values: Mapping[str, object]) -> None:
        """Something was written to the event log."""


def num_workers(experiment: Experiment, runtime: Runtime) -> int:
    """Workers to start: as asked, else one per core, never more than there are clients a round.

    With ``gpus-per-worker`` as many as fit the GPUs, if that is fewer.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = runtime.workers or cores
    if runtime.gpus_per_worker and not runtime.workers and not runtime.ray_address:
        import torch  # only where there are GPUs to count

        wanted = max(1, min(wanted, int(torch.cuda.device_count() / runtime.gpus_per_worker + 1e-9)))
    cohort = experiment.cohort_size or experiment.num_clients or wanted
    return max(1, min(wanted, cohort))


def engine_of(runtime: Runtime) -> str:
    """What carries the rounds: ``auto`` means Ray where it shares out GPUs or machines, else processes."""
    if runtime.engine != "auto":
        return runtime.engine
    return "ray" if runtime.ray_address or runtime.gpus_per_worker else "processes"


def open_federation(experiment: Experiment, runtime: Runtime, corpus: Corpus) -> Federation:
    """The experiment's federation over its corpus, built first if it is not there."""
    from fedmlic.federation import build_federation

    return build_federation(
        corpus,
        partition=experiment.partition,
        regime=experiment.regime,
        num_clients=experiment.num_clients,
        seed=experiment.seed,
        holdout_fraction=experiment.holdout_fraction,
        home=home_of(runtime),
    )


def describe_federation(experiment: Experiment, runtime: Runtime) -> Federation:
    """The experiment's federation, without building any network."""
    from fedmlic import spec
    from fedmlic.corpus import open_corpus

    corpus = open_corpus(spec.build("dataset", experiment.dataset), home_of(runtime))
    return open_federation(experiment, runtime, corpus)


def build_host(name: str, settings: dict[str, Any], label_names: tuple[str, ...], memory: Tensor | None = None) -> Host:
    """A host for any client of the federation, in the process that calls this.

    Args:
        name: how records call it.
        settings: the run's.
        label_names: what the server expects to see.
        memory: where to keep a round's sum.
    """
    from clients.host import Host
    from strategies.server.server import build_server

    experiment, runtime = split_settings(settings)
    server = build_server(experiment, runtime)
    if tuple(server.learner.task.label_names) != label_names:
        msg = f"Expected worker {name} to see the labels {label_names[:5]}, got {server.learner.task.label_names[:5]}."
        raise InputError(msg)
    federation = open_federation(experiment, runtime, server.corpus)
    return Host(name, experiment, federation, server.learner, vectorize=runtime.vectorize, memory=memory)


def run(experiment: Experiment, runtime: Runtime, out: Path | None, watch: Watch | None = None) -> dict[str, Any]:
    """Run ``experiment`` into the new folder ``out`` (``runs/DATE-TIME`` if None); return what ``--json`` prints.

    Raises:
        InputError: bad configuration or data; nothing was written to ``out``.
        RunFailedError: a round could not be completed; ``resume`` goes on from the checkpoint.
    """
    if out is not None:
        check_new(out)  # before minutes are spent on data
    return _play(experiment, runtime, lambda: create(out, experiment, runtime), watch or Watch())


def resume(path: Path, watch: Watch | None = None, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Go on with an interrupted run from its last checkpoint, to the same final weights.

    Args:
        path: the run folder.
        watch: hears of progress.
        changes: runtime settings to change (engine, workers, ...); they do not change weights.

    Raises:
        InputError: not a run, or a checkpoint that is damaged or foreign.
    """
    folder = open_run(path)
    if (path / "result.json").exists():
        return read_json(path / "result.json")
    experiment, runtime = folder.settings()
    experiment, runtime = split_settings({**experiment.model_dump(), **runtime.model_dump(), **(changes or {})})
    return _play(experiment, runtime, lambda: folder, watch or Watch())


def _play(
    experiment: Experiment, runtime: Runtime, open_folder: Callable[[], RunFolder], watch: Watch
) -> dict[str, Any]:
    engine = engine_of(runtime)
    workers = _start_workers(engine, experiment, runtime)
    try:
        from strategies.server.server import build_server, serve  # imports torch

        server = build_server(experiment, runtime, lambda done, total: watch.building("images", done, total))
        federation = open_federation(experiment, runtime, server.corpus)
        _check_cohort(experiment, federation)
        if engine == "flower":
            folder = open_folder()
            check_data(folder, federation)
            return _under_flower(experiment, runtime, folder, watch)
        transport: Transport
        if workers is not None:
            workers.setup(experiment, server.learner)
            transport = workers
        else:
            transport = _in_process(experiment, runtime, server, federation)
        folder = open_folder()
        check_data(folder, federation)
        folder.listeners.append(watch.event)
        with folder.alone():
            watch.started(folder, experiment, max(folder.checkpoints(), default=0))
            serve(server, transport, folder, watch.turn)
        return read_json(folder.path / "result.json")
    finally:
        if workers is not None:
            workers.close()


def check_data(folder: RunFolder, federation: Federation) -> None:
    """Keep what the clients of a new run hold as ``data.json``, and make sure that one that goes on has the same.

    Raises:
        InputError: code of the partition or regime that was edited since deals out other images or labels.
    """
    path = folder.path / "data.json"
    if not path.exists() or not folder.checkpoints():
        write_json(path, {"corpus": federation.corpus.content, "federation": federation.content})
        return
    if read_json(path).get("federation") != federation.content:
        msg = (
            f"Expected the images and labels that {folder.path} was started with, got others: the code of the "
            "partition or regime was edited since. Restore it, or start a new run."
        )
        raise InputError(msg)


def _under_flower(experiment: Experiment, runtime: Runtime, folder: RunFolder, watch: Watch) -> dict[str, Any]:
    """Have Flower play the rounds, and pass on what its ServerApp writes down."""
    from fedmlic.protocol import Turn
    from sim.engines.flower import run_flower

    total = experiment.cohort_size or experiment.num_clients

    def relay(kind: str, values: Mapping[str, Any]) -> None:
        if kind == "client":
            turn = Turn(values["client"], values["host"], error=values.get("error", ""))
            watch.turn(values["round"], turn, total)
        watch.event(kind, values)

    watch.started(folder, experiment, max(folder.checkpoints(), default=0))
    return run_flower(experiment, runtime, folder, relay)


def _check_cohort(experiment: Experiment, federation: Federation) -> None:
    """With num-clients 0 only the partition knows how many clients there are."""
    if experiment.cohort_size > federation.num_clients:
        msg = (
            f"Expected cohort-size to be at most the {federation.num_clients} clients that "
            f"{experiment.partition} made, got {experiment.cohort_size}. Lower it, or use 0 for all clients."
        )
        raise InputError(msg)


def _start_workers(engine: str, experiment: Experiment, runtime: Runtime) -> Workers | None:
    """Worker processes that begin to import what they need; None for an engine without them."""
    if engine not in {"processes", "ray"}:
        return None
    from sim.engines.workers import Workers

    if engine == "processes":
        from sim.engines.processes import Processes, gpu_of, late_imports

        carrier = Processes([*late_imports("model", experiment.model), *late_imports("method", experiment.method)])
        return Workers(carrier, num_workers(experiment, runtime), runtime, lambda number: gpu_of(number, runtime))
    from sim.engines.ray import RayCarrier

    on_cluster = runtime.ray_address and not runtime.workers
    ray_carrier = RayCarrier(0 if on_cluster else num_workers(experiment, runtime), runtime)
    cohort = experiment.cohort_size or experiment.num_clients or ray_carrier.num_workers
    return Workers(ray_carrier, min(ray_carrier.num_workers, cohort), runtime)


def _in_process(experiment: Experiment, runtime: Runtime, server: Server, federation: Federation) -> Transport:
    from clients.host import Host
    from fedmlic.learner import build_learner
    from sim.engines.inprocess import InProcess

    # A network of its own: the server evaluates in the other one.
    task = server.learner.task
    learner = build_learner(
        experiment,
        task.label_names,
        task.image_shape,
        server.learner.device,
        channels_last=runtime.channels_last,
    )
    return InProcess(Host("in-process", experiment, federation, learner, vectorize=runtime.vectorize))
