"""``fedmlic run --engine flower``: Flower's Simulation Runtime, started and ended with the run.

A bare ``flwr run`` leaves a service behind, ends with exit code 0 when the run
failed, re-installs the dependencies for every run, and may play the clients with
code from the folder in which the service was first started. Here every run has a
service of its own: its own ``FLWR_HOME``, port and copy of the app, started in an
empty folder, ended with everything it started whatever happens, also if the run is killed
(``sim.engines.endings``). Flower's own
files of the user are neither read nor written. Progress is read from the run
folder's event log, and so is success.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fedmlic import corpus
from fedmlic.errors import InputError
from fedmlic.experiment import flower_config, home_of
from fedmlic.record import Listener, RunFolder, read_json
from sim.engines.endings import MARK, Watcher, own, remove_left, send, service_processes
from sim.toml import toml_value

if TYPE_CHECKING:
    from fedmlic.experiment import Experiment, Runtime

PACKAGES: Final = ("fedmlic", "clients", "strategies")
"""What goes into the app that Flower runs."""

FAILURE_FILE: Final = "FEDMLIC_FAILURE_FILE"
LOOK_S: Final = 0.25
START_S: Final = 60.0
STOP_S: Final = 10.0
STATUS_S: Final = (15.0, 60.0)
"""Seconds without an event until Flower is asked how the run stands, which costs a process: at first, and at most."""

SERVICE_VARIABLES: Final = {
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",  # else every run needs the network
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
    "PYTHONUNBUFFERED": "1",
}


def run_flower(
    experiment: Experiment, runtime: Runtime, folder: RunFolder, on_event: Listener | None = None
) -> dict[str, Any]:
    """Have Flower play the rounds that are left of the run in ``folder``.

    Args:
        experiment: what to do; already checked, with its data prepared.
        runtime: workers, GPUs and time limits.
        folder: of the run, new or unfinished.
        on_event: hears of every event of the run's log.

    Returns:
        What ``result.json`` holds.

    Raises:
        InputError: bad input that only Flower's side met.
        RunFailedError: a round could not be completed; the last checkpoint is kept.
        RuntimeError: anything else that went wrong inside Flower, with the end of its log.
    """
    from sim.engines.workers import num_workers

    out = folder.path.absolute()
    with folder.alone():
        start = _rewind(folder)
    for text in folder.damage if on_event else ():
        on_event("warning", {"text": text})  # type: ignore[misc]
    with _service(runtime.threads) as service:
        home = str((home_of(runtime) or corpus.home()).absolute())
        settings = runtime.model_copy(update={"engine": "flower", "out": str(out), "home": home})
        app = stage_app(service.folder / "app", flower_config(experiment, settings))
        run_id = service.submit(app, num_workers(experiment, runtime), runtime.gpus_per_worker)
        try:
            _follow(service, run_id, out, start, on_event)
        finally:
            shutil.copyfile(service.log, out / "flower.log")
    return read_json(out / "result.json")


def _rewind(folder: RunFolder) -> int:
    """Cut the log of an unfinished run back to its last checkpoint; return its length then."""
    newest = folder.newest_checkpoint()
    folder.rewind(int(newest[1]["events_bytes"]) if newest else 0)
    return folder.events_path.stat().st_size if folder.events_path.exists() else 0


# --- the app ---------------------------------------------------------------------------


def stage_app(folder: Path, settings: Mapping[str, bool | int | float | str]) -> Path:
    """A copy of this project's code as a Flower app whose configuration is ``settings``.

    Args:
        folder: where to put it; made anew.
        settings: as ``flower_config`` gives them.
    """
    root = Path(__file__).resolve().parents[2]
    for name in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
        shutil.copytree(root / name, folder / name, ignore=ignored)
    lines = [
        "[project]",
        'name = "fedmlic"',
        'version = "0.1.0"',
        'description = "FedMLIC"',
        'license = "Apache-2.0"',
        "[tool.flwr.app]",
        'publisher = "fedmlic"',
        "[tool.flwr.app.components]",
        'serverapp = "strategies.app:app"',
        'clientapp = "clients.app:app"',
        "[tool.flwr.app.config]",
        *(f"{key} = {toml_value(value)}" for key, value in settings.items()),
    ]
    (folder / "pyproject.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


# --- the service -----------------------------------------------------------------------


@dataclass(frozen=True)
class Service:
    """A SuperLink of our own.

    Attributes:
        folder: private; deleted in the end.
        log: what it and everything it started printed.
        environment: of its processes.
        process: the SuperLink.
    """

    folder: Path
    log: Path
    environment: Mapping[str, str]
    process: subprocess.Popen[bytes]

    @property
    def failure_file(self) -> Path:
        """Where the ServerApp says what went wrong."""
        return Path(self.environment[FAILURE_FILE])

    def flwr(self, *arguments: str) -> dict[str, Any]:
        """Run Flower's command and return the JSON it prints."""
        try:
            done = self._call(*arguments, "--format", "json")
        except subprocess.TimeoutExpired:
            msg = (
                f"Expected flwr {arguments[0]} to answer within {START_S:g} s, got nothing: this machine may be too "
                f"busy. The end of Flower's log:\n{_tail(self.log)}"
            )
            raise RuntimeError(msg) from None
        try:
            found: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
        except ValueError:
            msg = f"Expected flwr {arguments[0]} to answer, got: {(done.stderr or done.stdout).strip()[-2000:]}"
            raise RuntimeError(msg) from None
        return found

    def _call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(  # noqa: S603  (our own arguments)
            [program("flwr"), *arguments],
            cwd=self.folder / "empty",
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=START_S,
        )

    def last_words(self, run_id: str) -> str:
        """The end of what the run printed, which Flower keeps apart from its own log."""
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            printed = self._call("log", run_id, "fedmlic", "--show").stdout
            with self.log.open("a", encoding="utf-8") as log:
                log.write(printed)
        return _tail(self.log)

    def submit(self, app: Path, workers: int, gpus: float) -> str:
        """Start a run of ``app`` with one node per worker and return its id."""
        federation = (
            f"num-supernodes={workers} client-resources-num-cpus=1 client-resources-num-gpus={float(gpus)} "
            f"init-args-num-cpus={workers}"
        )
        answer = self.flwr("run", str(app), "fedmlic", "--federation-config", federation)
        if not answer.get("success"):
            msg = f"Expected Flower to accept the run, got: {answer}"
            raise RuntimeError(msg)
        return str(answer["run-id"])

    def status(self, run_id: str) -> str:
        """Flower's word for how the run stands, such as ``running`` or ``finished:failed``."""
        answer = self.flwr("ls", "fedmlic", "--run-id", run_id)
        if not answer.get("runs"):
            msg = f"Expected Flower to say how the run stands, got: {answer}"
            raise RuntimeError(msg)
        return str(answer["runs"][0]["status"])


@contextlib.contextmanager
def _service(threads: int) -> Iterator[Service]:
    """Start a SuperLink, and end it and everything it started."""
    remove_left()
    folder = Path(tempfile.mkdtemp(prefix="fedmlic-")).resolve()
    own(folder)
    mark = uuid.uuid4().hex
    watcher, process = Watcher(mark, folder), None
    try:
        for name in ("empty", "flwr"):
            (folder / name).mkdir()
        port = free_port()
        (folder / "flwr" / "config.toml").write_text(
            f'[superlink]\ndefault = "fedmlic"\n\n[superlink.fedmlic]\naddress = "127.0.0.1:{port}"\ninsecure = true\n',
            encoding="utf-8",
        )
        environment = _environment(folder, mark, threads)
        process = _start_superlink(folder, environment, port)
        service = Service(folder, folder / "flower.log", environment, process)
        _wait_until_up(service, port)
        yield service
    finally:
        _stop(process, mark, folder)
        shutil.rmtree(folder, ignore_errors=True)
        watcher.close()


def _start_superlink(folder: Path, environment: Mapping[str, str], port: int) -> subprocess.Popen[bytes]:
    command = [program("flower-superlink"), "--insecure", "--simulation", "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "flower.log").open("wb") as log:
        return subprocess.Popen(  # noqa: S603  (our own arguments)
            command,
            cwd=folder / "empty",
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # the terminal's Ctrl-C reaches us only, and we end the service
        )


def _environment(folder: Path, mark: str, threads: int) -> dict[str, str]:
    own = {
        **SERVICE_VARIABLES,
        MARK: mark,
        FAILURE_FILE: str(folder / "failure.json"),
        "FEDMLIC_WORK_FOLDER": str(Path.cwd()),
        "FLWR_HOME": str(folder / "flwr"),
        "OMP_NUM_THREADS": str(threads),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        # Last on the path: plug-ins beside the user are found, the app's own packages come first.
        "PYTHONPATH": os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH", ""), str(Path.cwd())])),
        "NO_PROXY": ",".join(filter(None, [os.environ.get("NO_PROXY", ""), "127.0.0.1,localhost"])),
    }
    own["no_proxy"] = own["NO_PROXY"]
    ray = folder / "ray"
    if len(str(ray)) <= 40:  # longer ones do not leave room for the names of Ray's sockets
        own["RAY_TMPDIR"] = str(ray)
        ray.mkdir()
    return {**os.environ, **own}


def program(name: str) -> str:
    """The path of one of Flower's commands, beside this interpreter or on the path."""
    path = Path(sys.executable).parent / name
    found = str(path) if path.exists() else shutil.which(name)
    if not found:
        msg = f"Expected Flower's command {name} to be installed, got none. Install flwr[simulation]."
        raise InputError(msg)
    return found


def free_port() -> int:
    """A port of 127.0.0.1 that nothing uses at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_up(service: Service, port: int) -> None:
    import http.client

    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and service.process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status < 300:
                return
        except OSError:
            time.sleep(LOOK_S)
        finally:
            connection.close()
    msg = f"Expected Flower's SuperLink to start within {START_S:g} s, got none.\n{_tail(service.log)}"
    raise RuntimeError(msg)


def _tail(log: Path, num_lines: int = 30) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-num_lines:])


# --- the end ---------------------------------------------------------------------------


def _stop(process: subprocess.Popen[bytes] | None, mark: str, home: Path) -> None:
    """Ask the service to end; then end what is left of it."""
    if process is not None and process.poll() is None:
        process.terminate()
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + STOP_S
        while time.monotonic() < deadline:
            alive = service_processes(mark, home)
            if not alive and (process is None or process.poll() is not None):
                return
            if number == signal.SIGKILL or time.monotonic() > deadline - 0.8 * STOP_S:
                send(alive, number)
            time.sleep(LOOK_S)
    if process is not None and process.poll() is None:
        process.kill()
        process.wait()


# --- the run ---------------------------------------------------------------------------


def _follow(service: Service, run_id: str, out: Path, start: int, on_event: Listener | None) -> None:
    """Pass on the run's events until it is complete; raise what it failed of."""
    listeners = [on_event] if on_event else []
    events, status = _Tail(out / "events.jsonl", start), _Status(service, run_id)
    while not (out / "result.json").exists():
        if events.read(listeners):
            status.heard()
        if service.failure_file.exists():
            _raise(read_json(service.failure_file))
        ended = "the SuperLink ended" if service.process.poll() is not None else status.ended()
        # A result or a failure is written before Flower calls the run finished.
        if ended and not service.failure_file.exists() and not (out / "result.json").exists():
            words = service.last_words(run_id)
            msg = f"Expected Flower to complete the run, got: {ended}. The end of its log:\n{words}"
            raise RuntimeError(msg)
        time.sleep(LOOK_S)
    events.read(listeners)


class _Status:
    """Asks Flower how a run stands that has been silent for long, without holding up who asks.

    Args:
        service: whose run it is.
        run_id: which.
    """

    def __init__(self, service: Service, run_id: str) -> None:
        self._service = service
        self._run_id = run_id
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.heard()

    def heard(self) -> None:
        """Note a sign of life: there is nothing to ask for a while."""
        self._pause, self._longest = STATUS_S
        self._next = time.monotonic() + self._pause

    def ended(self) -> str:
        """Flower's word for how the run ended, or nothing while it goes on."""
        if time.monotonic() > self._next:
            self._pause = min(2 * self._pause, self._longest)
            self._next = time.monotonic() + self._pause
            threading.Thread(target=self._ask, daemon=True).start()
        try:
            status = self._answers.get_nowait()
        except queue.Empty:
            return ""
        return status if status.startswith("finished") else ""

    def _ask(self) -> None:
        with contextlib.suppress(RuntimeError, OSError, subprocess.SubprocessError):
            self._answers.put(self._service.status(self._run_id))


class _Tail:
    """Reads the complete lines that were added to an event log.

    Args:
        path: the log; it need not exist yet.
        position: byte to start from.
    """

    def __init__(self, path: Path, position: int) -> None:
        self._path = path
        self._position = position

    def read(self, listeners: list[Listener]) -> bool:
        """Tell the listeners what is new; return whether anything was."""
        start = self._position
        if not self._path.exists():
            return False
        with self._path.open("rb") as log:
            log.seek(self._position)
            for line in log:
                if not line.endswith(b"\n"):
                    break
                self._position += len(line)
                values = json.loads(line)
                kind = values.pop("event")
                for listener in listeners:
                    listener(kind, values)
        return self._position > start


def _raise(failure: Mapping[str, Any]) -> None:
    from strategies.server.rounds import RunFailedError  # imports torch

    kinds: dict[str, type[Exception]] = {"InputError": InputError, "RunFailedError": RunFailedError}
    kind, text = str(failure["kind"]), str(failure["text"])
    if kind in kinds:
        raise kinds[kind](text)
    msg = f"{kind}: {text}"
    raise RuntimeError(msg)
