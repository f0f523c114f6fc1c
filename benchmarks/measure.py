"""Start a program, watch the memory of everything it starts, end what is left of it.

Memory is the proportional set size (PSS) added up over all processes: a page that three
processes share counts a third in each, so nothing is counted twice. Where the system does
not tell PSS, the resident set size (RSS) stands in, which counts shared pages once per
process; every result says which one it is.

Processes are found through an environment variable that the program's children inherit,
and through their parents, because some programs overwrite their own environment.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import NamedTuple, Self

MARK = "FEDMLIC_BENCHMARK"
PROC = Path("/proc")
ROOT = Path(__file__).resolve().parents[1]
STOP_S = 10.0
REST = 50.0
"""Looking at memory takes a fiftieth of a core, however many processes there are."""

COLOURS = re.compile("\x1b\\[[0-9;]*m")

QUIET = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PYTHONUNBUFFERED": "1",
}
"""What every program gets: one thread per process, and no calls home."""


class Memory(NamedTuple):
    """Memory of one process in KiB.

    Attributes:
        shared_out: PSS, or RSS where there is no PSS.
        anonymous: the part of it that no file backs (0 where unknown).
        resident: RSS.
    """

    shared_out: int
    anonymous: int
    resident: int


def memory_of(pid: int) -> Memory | None:
    """Memory of a process; None if it is gone."""
    try:
        resident = int((PROC / str(pid) / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024
    except (OSError, IndexError):
        return None
    try:
        lines = (PROC / str(pid) / "smaps_rollup").read_text().splitlines()[1:]
        sizes = {line.split()[0]: int(line.split()[1]) for line in lines}
        return Memory(sizes["Pss:"], sizes.get("Pss_Anon:", 0), resident)
    except (OSError, KeyError, ValueError):
        return Memory(resident, 0, resident)


def memory_kind() -> str:
    """``PSS`` or ``RSS``: what ``Memory.shared_out`` is on this machine."""
    return "PSS" if (PROC / "self" / "smaps_rollup").exists() else "RSS"


class Family:
    """The live processes of one program.

    Args:
        root: the process that was started.
        mark: the value of ``MARK`` in its environment.
    """

    def __init__(self, root: int, mark: str) -> None:
        self._root = root
        self._needle = f"{MARK}={mark}".encode()
        self._seen: dict[tuple[int, str], bool] = {}

    def pids(self) -> list[int]:
        """Ids, ascending; zombies are dead."""
        parents: dict[int, int] = {}
        found: set[int] = set()
        for folder in PROC.glob("[0-9]*"):
            pid = int(folder.name)
            with contextlib.suppress(OSError, IndexError):
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                if fields[0] == "Z":
                    continue
                parents[pid] = int(fields[1])
                if pid == self._root or self._marked(folder, (pid, fields[19])):
                    found.add(pid)
        pending = True
        while pending:
            children = {pid for pid, parent in parents.items() if parent in found and pid not in found}
            found |= children
            pending = bool(children)
        return sorted(found)

    def _marked(self, folder: Path, identity: tuple[int, str]) -> bool:
        """Whether the process inherited the mark; asked once, since environments get overwritten."""
        if identity not in self._seen:
            self._seen[identity] = self._needle in (folder / "environ").read_bytes().split(b"\0")
        return self._seen[identity]

    def end(self) -> None:
        """Wait a little for the processes to end by themselves, then end them."""
        for number in (None, signal.SIGTERM, signal.SIGKILL):
            for pid in self.pids() if number else ():
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)
            deadline = time.monotonic() + STOP_S
            while self.pids():
                if time.monotonic() > deadline:
                    break
                time.sleep(0.1)
            else:
                return


@dataclass
class Watch:
    """A thread that adds up a family's memory about once a second.

    A look takes processor time that the family would use, the more the more processes it has; so
    that nobody is slowed down more than others, there is a rest in proportion.

    Attributes:
        family: whose.
        interval_s: seconds between looks, at least.
        rest: seconds without looking for every second of processor time that a look took.
        samples: time since 1970 and KiB of all processes together.
        peaks: the most that each process had, by id.
        commands: what each process is.
    """

    family: Family
    interval_s: float = 1.0
    rest: float = REST
    samples: list[tuple[float, int]] = field(default_factory=list)
    peaks: dict[int, Memory] = field(default_factory=dict)
    commands: dict[int, str] = field(default_factory=dict)

    def __enter__(self) -> Self:
        """Start looking."""
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look_on, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop looking."""
        self._done.set()
        self._thread.join()

    @property
    def peak_mib(self) -> float:
        """The most that all processes had together."""
        return max((total for _, total in self.samples), default=0) / 1024

    def _look_on(self) -> None:
        while not self._done.is_set():
            began = time.thread_time()
            self.look()
            self._done.wait(max(self.interval_s, self.rest * (time.thread_time() - began)))

    def look(self) -> None:
        """Take one sample."""
        total = 0
        for pid in self.family.pids():
            memory = memory_of(pid)
            if memory is None:
                continue
            total += memory.shared_out
            before = self.peaks.get(pid, Memory(0, 0, 0))
            self.peaks[pid] = Memory(*map(max, memory, before))
            self.commands[pid] = role_of(pid, self.commands.get(pid, ""))
        self.samples.append((time.time(), total))


def role_of(pid: int, before: str = "") -> str:
    """``torch`` for a process that has loaded PyTorch, else the name of its program."""
    if before == "torch":
        return before
    try:
        if "libtorch" in (PROC / str(pid) / "maps").read_text(errors="replace"):
            return "torch"
        words = (PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return before
    return Path(words[0]).name[:40] if words[0] else before


class Program:
    """A program under way.

    Args:
        command: its command line.
        log: where its output goes.
        environment: variables to set beside the usual ones.
        interval_s: seconds between looks at its memory, at least.
        rest: as for ``Watch``; 0 where times are not compared.
    """

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str] | None = None,
        interval_s: float = 1.0,
        rest: float = REST,
    ) -> None:
        mark = uuid.uuid4().hex
        self.log = log
        with log.open("wb") as output:
            self.launched = time.time()
            self.process = subprocess.Popen(
                list(command),
                cwd=ROOT,
                env={**os.environ, **QUIET, **(environment or {}), MARK: mark},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # the terminal's Ctrl-C reaches us only, and we end it
            )
        self.family = Family(self.process.pid, mark)
        self.watch = Watch(self.family, interval_s, rest)

    def __enter__(self) -> Self:
        """Watch it."""
        self.watch.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        """End it and everything it started."""
        self.watch.__exit__()
        if self.process.poll() is None:
            self.process.terminate()
        self.family.end()
        self.process.wait()

    def wait(self, limit_s: float) -> int | None:
        """Its exit code; None if it took longer than ``limit_s``."""
        try:
            return self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return None

    def last_words(self, num_lines: int = 15) -> str:
        """The end of its log."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-num_lines:]
        return COLOURS.sub("", "\n".join(lines))


class GpuWatch:
    """Utilisation of all GPUs as ``nvidia-smi`` tells it twice a second; nothing where it is absent."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, float, float]] = []
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        """Start looking."""
        program = shutil.which("nvidia-smi")
        if program:
            query = ["--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits", "-lms", "500"]
            self._process = subprocess.Popen(
                [program, *query], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            threading.Thread(target=self._read, daemon=True).start()
        return self

    def _read(self) -> None:
        for line in self._process.stdout if self._process and self._process.stdout else ():
            with contextlib.suppress(ValueError):
                busy, used = (float(part) for part in line.split(","))
                self.samples.append((time.time(), busy, used))

    def __exit__(self, *_: object) -> None:
        """Stop looking."""
        if self._process:
            self._process.terminate()
            self._process.wait()

    def mean(self, start: float, stop: float) -> float | None:
        """Mean utilisation in percent between two times."""
        inside = [busy for moment, busy, _ in self.samples if start <= moment <= stop]
        return statistics.fmean(inside) if inside else None

    def peak_mib(self) -> float | None:
        """The most memory in use on one GPU."""
        return max((used for *_, used in self.samples), default=None)


@dataclass(frozen=True)
class Middle:
    """Median and range of some numbers."""

    median: float
    low: float
    high: float

    def text(self, digits: int = 2) -> str:
        """For a table."""
        if self.low == self.high:
            return f"{self.median:.{digits}f}"
        return f"{self.median:.{digits}f} [{self.low:.{digits}f}..{self.high:.{digits}f}]"


def middle(values: Sequence[float]) -> Middle | None:
    """Median and range; None of nothing."""
    return Middle(statistics.median(values), min(values), max(values)) if values else None


def read_events(path: Path) -> Iterator[dict[str, object]]:
    """The complete lines of a log of JSON objects; none if there is no log."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            yield json.loads(line)


PROBE = """
import json, torch, sys
gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
from importlib import metadata
versions = {n: metadata.version(n) for n in sys.argv[1:] if next(iter(metadata.distributions(name=n)), None)}
print(json.dumps({"gpus": gpus, "versions": versions}))
"""


def probe(python: str, packages: Sequence[str]) -> dict[str, object]:
    """GPUs and versions as another interpreter sees them.

    Raises:
        RuntimeError: it has no PyTorch, or does not start.
    """
    try:
        done = subprocess.run([python, "-c", PROBE, *packages], capture_output=True, text=True, check=False)
        found: dict[str, object] = json.loads(done.stdout)
    except (OSError, ValueError) as error:
        msg = f"Expected {python} to be a Python with PyTorch, got: {error}."
        raise RuntimeError(msg) from None
    return found


def machine() -> dict[str, object]:
    """What the numbers were measured on; no names of hosts or people."""
    info = PROC / "cpuinfo"
    models = [line.partition(":")[2].strip() for line in _lines(info) if line.startswith("model name")]
    memory = [int(line.split()[1]) // 1024 for line in _lines(PROC / "meminfo") if line.startswith("MemTotal")]
    packages = ("torch", "torchvision", "flwr", "ray", "numpy")
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": num_cores(),
        "memory_mib": memory[0] if memory else None,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
        "memory_measure": memory_kind(),
        "versions": {name: metadata.version(name) for name in packages},
    }


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def fedmlic() -> list[str]:
    """The ``fedmlic`` command of this environment."""
    script = Path(sys.executable).parent / "fedmlic"
    return [str(script)] if script.exists() else [sys.executable, "-m", "sim.command"]


def end_cleanly() -> None:
    """Have SIGTERM unwind the program as Ctrl-C does, so that nothing it started is left behind."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def results_folder(kind: str, asked: Path | None) -> Path:
    """The folder for results, made if it is not there."""
    folder = asked or ROOT / "benchmarks" / "results" / time.strftime(f"{kind}-%Y%m%d-%H%M%S")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_json(path: Path, value: object) -> None:
    """Write ``value`` for people and programs."""
    path.write_text(json.dumps(value, indent=1, default=asdict) + "\n", encoding="utf-8")
