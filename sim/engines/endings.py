"""What a run started ends with it, also where it is killed, and temporary folders that killed runs left are removed.

Nothing of a process that is killed with SIGKILL runs any more, so somebody else has to notice. Workers of
this machine have the system end them (``end_with_parent``). Flower's services start further services, so beside
them waits a process of its own (``Watcher``) that reads a pipe whose other end only the run holds: when the run is gone
the pipe ends, and the watcher ends everything that carries the run's mark.

This file is also the watcher's program; it imports the standard library only.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

MARK: Final = "FEDMLIC_SERVICE"
"""Environment variable that every process of a service carries, so that all of them can be found."""

OWNER: Final = "fedmlic-owner.json"
"""File in a temporary folder that says which process made it."""

PREFIXES: Final = ("fedmlic-", "pymp-")
"""Beginnings of the names of our temporary folders; ``multiprocessing`` gives the second."""

WATCH_S: Final = 20.0
"""How long the watcher goes on ending processes that appear after the run has gone."""

SET_DEATH_SIGNAL: Final = 1
"""``PR_SET_PDEATHSIG`` of Linux's ``prctl``."""


def end_with_parent() -> None:
    """Have the system send this process SIGKILL when its parent ends (Linux; elsewhere nothing).

    To be called in the child itself, once it runs: between fork and exec of a process with threads little is safe.
    """
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    ctypes.CDLL(None, use_errno=True).prctl(SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)


def service_processes(mark: str, home: Path) -> list[int]:
    """Ids of the processes of a service that are alive (Linux; elsewhere none are found).

    Args:
        mark: what its processes carry in their environment.
        home: its folder. Ray's agents write their title over their environment, but stay in it.
    """
    needle = f"{MARK}={mark}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            zombie = (folder / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            inside = (folder / "cwd").readlink().is_relative_to(home)
            if not zombie and (inside or needle in (folder / "environ").read_bytes().split(b"\0")):
                found.append(int(folder.name))
    return found


def send(processes: Iterable[int], number: int) -> None:
    """Send a signal to those that are still there."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process, number)


class Watcher:
    """A process that ends a service and removes its folder when the run is gone.

    Args:
        mark: of the service's processes.
        folder: of the service.
    """

    def __init__(self, mark: str, folder: Path) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        if not Path("/proc/self/environ").exists():
            return
        self._process = subprocess.Popen(  # noqa: S603  (this file)
            [sys.executable, "-I", "-S", __file__, mark, str(folder)],
            cwd="/",
            env={},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C of the terminal is not for it
        )

    def close(self) -> None:
        """Send it away: the service has been ended."""
        if self._process is None or self._process.stdin is None:
            return
        with contextlib.suppress(OSError):
            self._process.stdin.write(b"ended")
            self._process.stdin.close()
        try:
            self._process.wait(WATCH_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


def _watch(mark: str, folder: Path) -> None:
    """Wait for the end of the run; unless it was an orderly one, end what is left of it."""
    if sys.stdin.buffer.read():
        return
    deadline, quiet = time.monotonic() + WATCH_S, 0
    while time.monotonic() < deadline and quiet < 3:  # one that was just being started may appear a moment later
        alive = service_processes(mark, folder)
        send(alive, signal.SIGKILL)
        quiet = 0 if alive else quiet + 1
        time.sleep(0.2)
    shutil.rmtree(folder, ignore_errors=True)


# --- temporary folders ---------------------------------------------------------------------


def own(folder: Path) -> None:
    """Note in a temporary folder that it is this process's.

    A process that ``multiprocessing`` started has the folder of its parent: a note of one that is alive stays.
    """
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        about = json.loads((folder / OWNER).read_text(encoding="utf-8"))
        if about["started"] and _started(int(about["process"])) == about["started"]:
            return
    with contextlib.suppress(OSError):
        about = {"process": os.getpid(), "started": _started(os.getpid())}
        (folder / OWNER).write_text(json.dumps(about), encoding="utf-8")


def remove_left(places: Iterable[str | Path] = ()) -> list[Path]:
    """Remove the temporary folders that runs of this user left which were killed.

    Folders without a note (``own``), of another user, of a process that is alive, and of another machine, container
    or start of this machine's system stay. Linux only.

    Args:
        places: folders to look in besides the system's for temporary files.

    Returns:
        Those that were removed.
    """
    removed = []
    for place in dict.fromkeys(Path(each) for each in (tempfile.gettempdir(), *places)):
        for folder in (found for prefix in PREFIXES for found in place.glob(f"{prefix}*")):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                if _is_left(folder):
                    shutil.rmtree(folder, ignore_errors=True)
                    removed.append(folder)
    return removed


def _is_left(folder: Path) -> bool:
    if folder.is_symlink() or not hasattr(os, "getuid") or folder.lstat().st_uid != os.getuid():
        return False
    about = json.loads((folder / OWNER).read_text(encoding="utf-8"))
    place, slash, _ = str(about["started"]).rpartition("/")
    # Without /proc nothing is known of a process, and a shared folder may hold those of another machine or container.
    here = _started(os.getpid()).rpartition("/")[0]
    return bool(slash) and place == here and _started(int(about["process"])) != about["started"]


def _started(process: int) -> str:
    """The machine's boot and the process's start in clock ticks since, or nothing where there is no such process."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        state, *others = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state == "Z" else f"{boot}/{_namespace()}/{others[18]}"


def _namespace() -> str:
    """The process ids' namespace: those of another container mean nothing here."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


if __name__ == "__main__":
    _watch(sys.argv[1], Path(sys.argv[2]))
