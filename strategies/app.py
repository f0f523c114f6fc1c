"""The ServerApp: one run of the round loop, started by Flower.

The run's configuration is the experiment. Flower starts this far from where the
user typed, so ``out`` must be absolute; without it the run folder is made below
``$FEDMLIC_HOME/runs``. If ``out`` holds a run of the same experiment that did not
finish, it goes on from its last checkpoint: starting again is resuming.

What goes wrong is raised, so that Flower marks the run as failed, and written as
JSON to the file that ``FEDMLIC_FAILURE_FILE`` names, since Flower's own command
does not report it.
"""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from flwr.serverapp import Grid, ServerApp

from fedmlic import corpus, wire
from fedmlic.audit import AuditLog
from fedmlic.errors import InputError
from fedmlic.experiment import Experiment, Runtime, home_of, split_settings
from fedmlic.process import progress_lines
from fedmlic.record import RunFolder, create, default_path, is_run, open_run, write_json
from strategies.server.first_model import first_model
from strategies.server.flower import FlowerTransport
from strategies.server.introductions import simulated_by
from strategies.server.server import build_server, serve

if TYPE_CHECKING:
    from flwr.app import Context

    from strategies.server.rounds import Outcome

FAILURE_FILE: Final = "FEDMLIC_FAILURE_FILE"
"""Environment variable: where to write why a run failed."""

AUDIT_FILE: Final = "audit.jsonl"
"""In the run folder, unless ``audit-log`` names another file."""

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run or continue the experiment that the run's configuration describes."""
    try:
        folder, outcome = play(grid, context.run_config, str(context.run_id))
    except BaseException as error:
        _report(error)
        raise
    score = outcome.metrics.get("server/mAP")
    shown = "no images to evaluate on" if score is None else f"server/mAP {score:.4f}"
    _say(f"{shown}, weights {outcome.weights_sha256[:12]}, run folder {folder.path}")


def play(grid: Grid, run_config: Mapping[str, bool | int | float | str], run_id: str = "") -> tuple[RunFolder, Outcome]:
    """Check everything, open the run folder, and play the rounds that are left.

    Args:
        grid: Flower's connection.
        run_config: the settings.
        run_id: Flower's name of the run, for the audit log.

    Raises:
        InputError: bad configuration or data; a new run folder is not made then.
        RunFailedError: a round could not be completed; the last checkpoint is kept.
    """
    wire.check_packages(__file__)
    experiment, runtime = split_settings(run_config)
    runtime = runtime.model_copy(update={"engine": "flower"})
    path = run_path(runtime)
    check_run(path, experiment)
    transport = FlowerTransport(grid, experiment, runtime)
    if wire.WORK_FOLDER in os.environ:
        # Ray lets its workers import from what is the current folder when it starts, which must stay an empty one;
        # once the nodes have answered it has started.
        transport.hosts()
        wire.enter_work_folder()
    lines = {what: progress_lines(what, _say) for what in ("images", "features")}
    server = build_server(experiment, runtime, lambda what, done, total: lines[what](done, total))
    transport.layout = server.learner.resident.layout
    transport.label_names = server.learner.task.label_names
    transport.image_shape = server.learner.task.image_shape
    if not is_run(path):
        first_model(experiment, server.learner)  # refused while there is no folder yet
    folder = open_run(path) if is_run(path) else create(path, experiment, runtime)
    folder.listeners.append(_show)
    _say(f"run folder {folder.path}")
    if simulated_by(grid) is False:
        transport.audit = AuditLog(Path(runtime.audit_log or folder.path / AUDIT_FILE).expanduser())
        about = {"run": run_id, "folder": str(folder.path), "identity": experiment.identity()}
        transport.audit.write({"event": "started", **about, "code": wire.code_digest(), "user": _user()})
    with folder.alone():
        return folder, serve(server, transport, folder)


def run_path(runtime: Runtime) -> Path:
    """Where the run folder is: absolute ``out``, or a new one in the folder of corpora.

    Raises:
        InputError: ``out`` is relative.
    """
    if not runtime.out:
        return default_path((home_of(runtime) or corpus.home()) / "runs")
    path = Path(runtime.out).expanduser()
    if not path.is_absolute():
        msg = (
            f"Expected out to be an absolute path, got {runtime.out!r}. Under Flower a relative one would start where "
            "the SuperLink was started."
        )
        raise InputError(msg)
    return path


def check_run(path: Path, experiment: Experiment) -> None:
    """Make sure that an existing run folder is one to go on with.

    Raises:
        InputError: it is complete, or of another experiment.
    """
    if not is_run(path):
        return
    if open_run(path).identity() != experiment.identity():
        msg = f"Expected {path} to hold a run of this experiment, got one of another. Choose another out."
        raise InputError(msg)
    if (path / "result.json").exists():
        msg = f"Expected {path} to hold a run to go on with, got a complete one. Choose another out."
        raise InputError(msg)


def _user() -> str:
    """Who this process runs as; who asked Flower for the run only Flower's account log can say."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # an id without a name, as in containers
        return str(os.getuid()) if hasattr(os, "getuid") else ""


def _report(error: BaseException) -> None:
    target = os.environ.get(FAILURE_FILE)
    if target:
        write_json(Path(target), {"kind": type(error).__name__, "text": str(error)})


def _show(kind: str, values: Mapping[str, object]) -> None:
    """One line per round in Flower's log."""
    if kind == "round":
        names = ("round", "num-clients", "num-failed", "loss", "server/mAP", "seconds")
        shown = (f"{name} {_short(values[name])}" for name in names if name in values)
        _say(", ".join(shown))
    elif kind == "warning":
        _say(f"warning: {values['text']}")


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _say(text: str) -> None:
    sys.stdout.write(f"fedmlic: {text}\n")
    sys.stdout.flush()
