"""A kit on this machine: its own files with other paths and ports, and its services as processes.

What is changed of a file is said in ``Stage.moved`` and must be there: a kit that was edited so that it no longer
says where it listens is an error, not a rehearsal of something else.
"""

from __future__ import annotations

import http.client
import os
import re
import shlex
import shutil
import signal
import ssl
import subprocess
import sys
import sysconfig
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fedmlic.errors import InputError
from sim.engines.endings import MARK, send, service_processes
from sim.engines.flower import SERVICE_VARIABLES, free_port

WAIT_S: Final = 120.0
"""Longest wait for a service, on a machine that is busy."""

STOP_S: Final = 15.0
LOOK_S: Final = 0.2


@dataclass
class Stage:
    """A copy of a kit, and what plays on it.

    Attributes:
        folder: of the copy, the services' states and logs.
        kit: what ``server/kit.json`` says.
        devices: names of those that are played.
        port: of the proxy here; that of the SuperLink if there is no proxy.
        control_port: of the SuperLink here.
        running: services by name.
        nodes: devices by the node id that Flower gave their key.
    """

    folder: Path
    kit: Mapping[str, Any]
    devices: list[str]
    proxy: bool
    control_port: int = field(default_factory=free_port)
    port: int = 0
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    nodes: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Choose the port that devices use."""
        self.port = free_port() if self.proxy else self.control_port

    # --- files ---

    def copy_kit(self, source: Path) -> None:
        """Copy the server's and the devices' folders, and move them here."""
        shutil.copytree(source / "server", self.folder / "server")
        for name in self.devices:
            shutil.copytree(source / "devices" / name, self.folder / "devices" / name)
        for name in ("log", "run", "state/server/empty", "state/proxy", "images", "log/server"):
            (self.folder / name).mkdir(parents=True)
        for path in (self.folder / "server").iterdir():
            if path.suffix in {".conf", ".service"}:
                self._move_file(path)
        for name in self.devices:
            (self.folder / "state" / name / "empty").mkdir(parents=True)
            self._move_file(self.folder / "devices" / name / "fedmlic-device.service", name)

    def _move_file(self, path: Path, device: str = "") -> None:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        text = "".join(self._moved(line, device) for line in lines)
        for pattern, new in self._ports(path.name).items():
            text, count = re.subn(pattern, new, text, flags=re.MULTILINE)
            if not count:
                msg = f"Expected {path.name} of the kit to say {pattern!r}, got no such line. Make the kit again."
                raise InputError(msg)
        if path.name == "nginx.conf" and os.geteuid() == 0:
            text = f"user root;\n{text}"  # else its workers are another user, who may not enter this folder
        path.write_text(text, encoding="utf-8")

    def _moved(self, line: str, device: str) -> str:
        """A line with this machine's places; in a command line a place with a blank stays one word."""
        is_command = line.startswith("Exec")
        for old, new in self._places(device).items():
            line = line.replace(old, shlex.quote(new) if is_command else new)
        program = f"{shlex.quote(str(Path(sys.executable).parent))}/fedmlic "
        return line.replace(program, f"{shlex.quote(sys.executable)} -m sim.command ") if is_command else line

    def _places(self, device: str) -> dict[str, str]:
        here = str(self.folder)
        return {
            "/etc/fedmlic-server": f"{here}/server",
            "/etc/fedmlic-device": f"{here}/devices/{device}",
            "/var/lib/fedmlic-server": f"{here}/state/server",
            "/var/lib/fedmlic-device": f"{here}/state/{device}",
            "/var/lib/fedmlic-proxy": f"{here}/state/proxy",
            "/var/log/fedmlic-server": f"{here}/log/server",
            "/var/log/fedmlic-proxy": f"{here}/log",
            "/run/fedmlic-proxy": f"{here}/run",
            "/opt/fedmlic/bin": str(Path(sys.executable).parent),
            "/usr/sbin/nginx": nginx() if self.proxy else "/usr/sbin/nginx",
        }

    def _ports(self, name: str) -> dict[str, str]:
        if name == "nginx.conf":
            control = rf"\g<1>{self.control_port}\g<2>"
            return {
                r"listen \d+ ssl;": f"listen 127.0.0.1:{self.port} ssl;",
                r"listen \[::\]:\d+ ssl;.*": "",
                r"(proxy_pass https://127\.0\.0\.1:)\d+(/)": control,
            }
        if name == "fedmlic-superlink.service":
            return {r"(--host 127\.0\.0\.1 --port )\d+": rf"\g<1>{self.control_port}"}
        if name == "fedmlic-device.service":
            return {
                r"--superlink \S+": f"--superlink localhost:{self.port}",
                r"(--host 127\.0\.0\.1 --port )\d+": rf"\g<1>{free_port()}",
            }
        return {}

    # --- services ---

    def start_unit(self, unit: Path, name: str, **environment: str) -> None:
        """Start what a systemd unit of the kit would start, as this user."""
        found = _read_unit(unit)
        given = dict(line.split("=", 1) for line in found["Environment"])
        folder = Path(found["WorkingDirectory"][0]) if found["WorkingDirectory"] else self.folder / "run"
        self.start(name, shlex.split(found["ExecStart"][0]), folder, {**given, **environment})

    def start(self, name: str, command: list[str], folder: Path, environment: Mapping[str, str]) -> None:
        """Start a process that writes into ``log/NAME.log``, and belongs to this stage."""
        with (self.folder / "log" / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(  # noqa: S603  (the kit's own commands)
                command,
                cwd=folder,
                env={**self.environment(), **environment, "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def environment(self) -> dict[str, str]:
        """Of every process here: nothing of the user's but where programs are."""
        root = str(Path(__file__).resolve().parents[2])
        own = "" if root in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")} else root
        kept = {key: os.environ[key] for key in ("LANG", "LC_ALL", "TMPDIR") if key in os.environ}
        return {
            **kept,
            **SERVICE_VARIABLES,
            MARK: self.mark,
            "HOME": str(self.folder / "state"),
            "OMP_NUM_THREADS": "1",
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
            **({"PYTHONPATH": own} if own else {}),
        }

    def log(self, name: str) -> str:
        """What a service has written."""
        path = self.folder / "log" / f"{name}.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def kill(self, name: str) -> None:
        """Pull the plug: the service and everything that it started."""
        process = self.running.pop(name)
        send([int(each) for each in _descendants(process.pid)], signal.SIGKILL)
        process.wait()

    def close(self) -> list[int]:
        """End everything; return the ids of processes that did not end (none)."""
        for process in self.running.values():
            process.terminate()
        deadline = time.monotonic() + STOP_S
        while time.monotonic() < deadline and self.processes():
            for process in self.running.values():
                process.poll()
            time.sleep(LOOK_S)
        send(self.processes(), signal.SIGKILL)
        for process in self.running.values():
            process.wait()
        time.sleep(LOOK_S)
        return self.processes()

    def processes(self) -> list[int]:
        """Ids of all processes of this stage that are alive."""
        return service_processes(self.mark, self.folder)

    # --- asking ---

    def wait(self, ready: Callable[[], bool], seconds: float = WAIT_S, *names: str) -> bool:
        """Whether something became true in time; not if one of the named services ended first."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if ready():
                return True
            if any(self.running[name].poll() is not None for name in names if name in self.running):
                return ready()
            time.sleep(LOOK_S)
        return False

    def answers(self) -> bool:
        """Whether the SuperLink is up."""
        connection = http.client.HTTPSConnection("localhost", self.control_port, timeout=5, context=self.trust())
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == http.HTTPStatus.OK
        except OSError:
            return False
        finally:
            connection.close()

    def trust(self) -> ssl.SSLContext:
        """Trust in the kit's authority, as every receiver of its ``ca.crt`` has it."""
        return ssl.create_default_context(cafile=str(self.folder / "server" / "ca.crt"))

    def flwr(self, *arguments: str, address: str = "") -> subprocess.CompletedProcess[str]:
        """Run Flower's command as the operator on the server, or as somebody outside who has ``address`` and ca.crt."""
        home = self.folder / "state" / ("outside" if address else "operator")
        home.mkdir(exist_ok=True)
        place = address or f"127.0.0.1:{self.control_port}"
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "{place}"\n'
            f'root-certificates = "{self.folder / "server" / "ca.crt"}"\n',
            encoding="utf-8",
        )
        return subprocess.run(  # noqa: S603  (our own arguments)
            [str(Path(sys.executable).parent / "flwr"), *arguments],
            cwd=self.folder / "state" / "server" / "empty",
            env={**self.environment(), "FLWR_HOME": str(home)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=WAIT_S,
        )


def nginx() -> str:
    """Where nginx is.

    Raises:
        InputError: nowhere.
    """
    found = shutil.which("nginx", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))
    if found is None:
        msg = (
            "Expected nginx, the proxy of the kit, to be installed, got none. Run apt-get install nginx-light, "
            "or rehearse --without-proxy."
        )
        raise InputError(msg)
    return found


def _read_unit(path: Path) -> dict[str, list[str]]:
    """The values of a unit's [Service] section, by key."""
    found: dict[str, list[str]] = {"Environment": [], "WorkingDirectory": [], "ExecStart": []}
    for line in path.read_text(encoding="utf-8").splitlines():
        key, equals, value = line.partition("=")
        if equals and key in found:
            found[key].append(value)
    return found


def _descendants(process: int) -> list[int]:
    """A process and everything below it (Linux; elsewhere itself)."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        parents.setdefault(parent, []).append(int(folder.name))
    found, waiting = [], [process]
    while waiting:
        found.append(waiting.pop())
        waiting += parents.get(found[-1], [])
    return found
