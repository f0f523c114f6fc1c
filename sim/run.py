"""Run an experiment on this machine: data, workers, round loop, record.

The order matters for the clock: workers start importing first, and the corpus
and the federation are built meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmlic.errors import InputError
from fedmlic.experiment import split_settings
from fedmlic.record import RunFolder, check_new, create, open_run, read_json, write_json
from sim.watch import Watch
from strategies.server.check import check_experiment

if TYPE_CHECKING:
    from fedmlic.experiment import Experiment, Runtime
    from fedmlic.federation import Federation
    from sim.data.federation_warnings import Findings
    from sim.engines.workers import Place, Workers
    from strategies.server.server import Server
    from strategies.server.transport import Transport


def engine_of(runtime: Runtime) -> str:
    """What carries the rounds: ``auto`` means Ray where it shares out GPUs or machines, else processes."""
    if runtime.engine != "auto":
        return runtime.engine
    return "ray" if runtime.ray_address or runtime.gpus_per_worker else "processes"


def describe_federation(experiment: Experiment, runtime: Runtime) -> Federation:
    """The experiment's federation, without building any network."""
    from clients.opening import images_of, open_federation

    federation = open_federation(experiment, runtime, images_of(experiment, runtime))
    return federation.whole or federation


def run(experiment: Experiment, runtime: Runtime, out: Path | None, watch: Watch | None = None) -> dict[str, Any]:
    """Run ``experiment`` into the new folder ``out`` (``runs/DATE-TIME`` if None); return what ``--json`` prints.

    Raises:
        InputError: bad configuration or data; nothing was written to ``out``.
        RunFailedError: a round could not be completed; ``resume`` goes on from the checkpoint.
    """
    if out is not None:
        check_new(out)  # before minutes are spent on data

    def begin(server: Server) -> RunFolder:
        from strategies.server.first_model import first_model

        first_model(experiment, server.learner)  # refused while there is no folder yet
        return create(out, experiment, runtime)

    return _play(experiment, runtime, begin, watch or Watch())


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
        return _result(folder)
    experiment, runtime = folder.settings()
    experiment, runtime = split_settings({**experiment.model_dump(), **runtime.model_dump(), **(changes or {})})
    return _play(experiment, runtime, lambda _: folder, watch or Watch())


def _play(
    experiment: Experiment, runtime: Runtime, open_folder: Callable[[Server], RunFolder], watch: Watch
) -> dict[str, Any]:
    engine = engine_of(runtime)
    workers = _start_workers(engine, experiment, runtime)
    try:
        check_experiment(experiment, runtime)  # imports torch, as the workers do at the same time
        from clients.opening import MEMORY_FOLDER, open_federation
        from strategies.server.server import build_server, serve  # imports torch

        server = build_server(experiment, runtime, watch.building)
        federation = open_federation(experiment, runtime, server.corpus)
        _check_cohort(experiment, federation)
        from sim.data.federation_warnings import examine

        found = examine(federation.whole or federation, experiment.method)
        for text in found.warnings:
            watch.warning(text)
        folder = open_folder(server)
        if engine == "flower":
            with folder.alone():  # Flower's own process takes the folder after this
                _note(folder, federation, found)
            _under_flower(experiment, runtime, folder, watch)
            return _result(folder)
        with folder.alone():  # before anything is written into it
            _note(folder, federation, found)
            transport: Transport
            if workers is not None:
                workers.setup(experiment, server.learner, _place(engine, server, folder.path / MEMORY_FOLDER))
                transport = workers
            else:
                transport = _in_process(experiment, runtime, federation, folder.path / MEMORY_FOLDER)
            folder.listeners.append(watch.event)
            watch.started(folder, experiment, max(folder.checkpoints(), default=0))
            serve(server, transport, folder, watch.turn)
        return _result(folder)
    finally:
        if workers is not None:
            workers.close()


def _note(folder: RunFolder, federation: Federation, found: Findings) -> None:
    """Write ``data.json``, which says what the clients hold; a run that goes on must have the same.

    Raises:
        InputError: code of the partition or regime that was edited since deals out other images or labels.
    """
    path = folder.path / "data.json"
    before = read_json(path).get("federation") if path.exists() and folder.checkpoints() else None
    if before not in {None, federation.content}:
        msg = (
            f"Expected the images and labels that {folder.path} was started with, got others: the code of the "
            "partition or regime was edited since. Restore it, or start a new run."
        )
        raise InputError(msg)
    about = {
        "corpus": federation.corpus.content,
        "federation": federation.content,
        "warnings": found.warnings,
        "untrained_labels": found.untrained,
        "unannotated_labels": found.unannotated,
        "present_counts": found.present_counts,
        "client_names": list(federation.client_names),
    }
    write_json(path, about)


def _result(folder: RunFolder) -> dict[str, Any]:
    """What ``--json`` prints of a complete run."""
    return {**read_json(folder.path / "result.json"), "warnings": folder.data()["warnings"]}


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
    from sim.engines.workers import Workers, num_workers

    if engine == "processes":
        from sim.engines.processes import Processes, gpu_of, late_imports

        imports = [*late_imports("model", experiment.model), *late_imports("method", experiment.method)]
        carrier = Processes(imports, runtime.round_timeout)
        return Workers(carrier, num_workers(experiment, runtime), runtime, lambda number: gpu_of(number, runtime))
    from sim.engines.ray import RayCarrier

    on_cluster = runtime.ray_address and not runtime.workers
    ray_carrier = RayCarrier(0 if on_cluster else num_workers(experiment, runtime), runtime)
    cohort = experiment.cohort_size or experiment.num_clients or ray_carrier.num_workers
    return Workers(ray_carrier, min(ray_carrier.num_workers, cohort), runtime)


def _place(engine: str, server: Server, memory: Path) -> Place:
    """What workers should find; the folder of client memory is marked where they may be on other machines."""
    from clients.memory import mark_shared
    from sim.engines.workers import Place

    folder = str(memory.absolute()) if server.remembers else ""
    mark = mark_shared(memory) if folder and engine == "ray" else ""
    return Place(tuple(server.learner.task.label_names), str(server.corpus.path.absolute()), folder, mark)


def _in_process(experiment: Experiment, runtime: Runtime, federation: Federation, memory: Path) -> Transport:
    from clients.host import Host
    from clients.opening import learner_for, memory_in
    from sim.engines.inprocess import InProcess

    # A network of its own: the server evaluates in the other one.
    learner = learner_for(experiment, runtime, federation)
    held = memory_in(str(memory.absolute()))
    return InProcess(Host("in-process", experiment, federation, learner, vectorize=runtime.vectorize, memory=held))
