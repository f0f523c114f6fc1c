"""Workers that are processes of this machine, forked from one that has imported everything.

Importing torch takes seconds of processor time. A fork server imports it once, at the same
time as the driver, and every worker is a fork of it: there at once and sharing its memory.
The model and each worker's sum lie in shared memory, so a round moves nothing large: the
driver writes the model once, workers train from it where it is, and the driver reads their
sums where they are.

Only plain values cross the pipes, between processes that this one started.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import itertools
import multiprocessing
import multiprocessing.util
import os
import shutil
import signal
import socket
import struct
import sys
import tempfile
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from multiprocessing import connection, forkserver, resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fedmlic import spec
from fedmlic.errors import InputError
from sim.engines.endings import end_with_parent, own, remove_left
from sim.engines.sockets import socket_folder
from sim.engines.workers import Worker, WorkerDiedError

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, SpawnContext

    import torch
    from torch import Tensor

    from fedmlic.experiment import Runtime
    from fedmlic.protocol import Request
    from fedmlic.update import Update

PRELOADED = ("torch", "clients.opening")
"""What every worker needs; imported once, before it is forked.

An entry of a catalogue that imports a large package late names it in a constant ``IMPORTS``."""

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  (where Linux keeps shared memory)

STOP_S = 5.0
"""How long workers may take to end by themselves."""


class Call(NamedTuple):
    """One call to one worker process."""

    process: int
    number: int


@dataclass
class _Process:
    """One worker as the driver sees it: started at its first call."""

    number: int
    name: str
    process: Any = None
    pipe: connection.Connection | None = None
    sums: Tensor | None = None
    made: int = 0
    answered: int = 0
    outcomes: dict[int, tuple[bool, Any]] = field(default_factory=dict)


class Processes:
    """A carrier of forked processes (spawned ones on Windows).

    Args:
        imports: modules that workers need besides ``PRELOADED``.
        timeout: seconds that one message to or from a worker may take.
    """

    def __init__(self, imports: Sequence[str] = (), timeout: float = 3600.0) -> None:
        self._timeout = timeout
        self._context = context_of_processes(imports)
        self._processes: dict[int, _Process] = {}
        self._numbers = itertools.count()
        self._model: Tensor | None = None

    def open(self, size: int) -> None:
        """Make room for the model that all workers share."""
        import torch

        if self._model is None or len(self._model) != size:
            check_room(4 * size + 8 * size * len(self._processes))
            self._model = _shared(size, torch.float32)

    def start(self, name: str) -> int:
        """Note a worker; its process starts with its first call."""
        number = next(self._numbers)
        self._processes[number] = _Process(number, name)
        return number

    def call(self, worker: int, method: str, *arguments: object) -> Call:
        """Send a call down the worker's pipe."""
        held = self._processes[worker]
        if held.process is None:
            self._fork(held)
        call = Call(worker, held.made)
        held.made += 1
        # A worker that is gone is noticed when the answer is looked for.
        try:
            if held.pipe is not None:
                held.pipe.send((method, arguments))
        except OSError:
            self._end(held)  # half a message may be on its way, after which nothing would be understood
        return call

    def wait(self, calls: Sequence[Call], timeout: float) -> list[Call]:
        """Read what workers have sent until one of ``calls`` has ended."""
        ended = [call for call in calls if self._ended(call)]
        while not ended:
            open_pipes = {
                held.pipe: held
                for held in (self._processes[number] for number in {call.process for call in calls})
                if held.pipe is not None
            }
            readable = connection.wait(list(open_pipes), timeout)
            if not readable:
                return []
            for pipe in readable:
                self._receive(open_pipes[pipe])  # type: ignore[index]
            ended = [call for call in calls if self._ended(call)]
        return ended

    def result(self, call: Call) -> Any:  # noqa: ANN401  (what the worker's method returned)
        """The answer, or the exception that was raised in the worker."""
        held = self._processes[call.process]
        if call.number not in held.outcomes:
            code = held.process.exitcode if held.process is not None else None
            msg = f"process ended with {'signal ' + str(-code) if code is not None and code < 0 else f'code {code}'}"
            raise WorkerDiedError(msg)
        good, value = held.outcomes.pop(call.number)
        if not good:
            raise value
        return value

    def kill(self, worker: int) -> None:
        """Send SIGKILL."""
        self._end(self._processes[worker])

    @staticmethod
    def _end(held: _Process) -> None:
        """End a process, also one that is stopped, and everything that is under way to it or from it."""
        if held.process is not None:
            held.process.kill()
        if held.pipe is not None:
            held.pipe.close()
            held.pipe = None
        if held.process is not None:
            held.process.join(STOP_S)

    def share(self, request: Request) -> dict[str, Any]:
        """Write the model into the memory that all workers see."""
        if self._model is None:
            msg = "Expected open before share."
            raise RuntimeError(msg)
        self._model.copy_(request.flat)
        for number, held in list(self._processes.items()):
            held.outcomes.clear()  # nobody asks for the answers to begin
            if held.process is not None and held.pipe is None:
                held.process.join()
                del self._processes[number]
        plain = {part.name: getattr(request, part.name) for part in fields(request) if part.name != "flat"}
        return {**plain, "shared": _arrays(request.shared)}

    def take(self, worker: int, packed: Any) -> Update:  # noqa: ANN401
        """An update whose sums are in the worker's memory, or came along as an array."""
        import torch

        from fedmlic.update import Update

        about = packed["about"]
        tensors: dict[str, Any] = {name: torch.from_numpy(array) for name, array in packed["arrays"].items()}
        sums = self._processes[worker].sums
        held = None if sums is None else sums[: about["layout"].size]
        return Update(**{"sums": held, **tensors, **about, "extras": _tensors(about["extras"])})

    def close(self) -> None:
        """Let the workers end, and end those that do not."""
        for held in self._processes.values():
            if held.pipe is not None:
                held.pipe.close()
                held.pipe = None
        for held in self._processes.values():
            if held.process is not None:
                held.process.join(STOP_S)
                if held.process.exitcode is None:
                    held.process.kill()
                    held.process.join()
                held.process.close()
        self._processes.clear()

    def _ended(self, call: Call) -> bool:
        held = self._processes[call.process]
        return call.number < held.answered or held.pipe is None

    def _receive(self, held: _Process) -> None:
        """Take one answer, or note that there will be none any more."""
        try:
            if held.pipe is not None:
                held.outcomes[held.answered] = held.pipe.recv()
                held.answered += 1
        except (EOFError, OSError) as error:
            if isinstance(error, BlockingIOError):
                held.process.kill()  # it was stopped in the middle of an answer
            if held.pipe is not None:
                held.pipe.close()
                held.pipe = None
            held.process.join(STOP_S)

    def _fork(self, held: _Process) -> None:
        import torch

        if self._model is None:
            msg = "Expected open before the first call."
            raise RuntimeError(msg)
        held.sums = _shared(len(self._model), torch.float64)
        ours, theirs = self._context.Pipe()
        limit(ours, self._timeout)
        arguments = (theirs, held.name, self._model, held.sums, dict(os.environ), list(sys.path))
        held.process = self._context.Process(target=_serve, args=arguments, name=held.name, daemon=True)
        with nameless_main():
            held.process.start()
        theirs.close()
        held.pipe = ours


def gpu_of(number: int, runtime: Runtime) -> dict[str, Any]:
    """The setting that gives worker ``number`` its GPU: workers are dealt to GPUs in turn."""
    import torch

    count = torch.cuda.device_count() if runtime.device in {"auto", "cuda"} else 0
    return {"device": f"cuda:{number % count}"} if count else {}


def limit(pipe: connection.Connection, seconds: float) -> None:
    """Have a pipe raise ``BlockingIOError`` where the other end neither reads nor writes for so long.

    A process that is stopped keeps its end open; without a limit, a message that is larger than the
    pipe's buffer would wait for it for ever. Only where pipes are sockets (not on Windows).
    """
    if os.name == "nt":
        return
    value = struct.pack("@ll", int(seconds), int(seconds % 1 * 1_000_000) + (seconds < 1e-6))
    with socket.socket(fileno=os.dup(pipe.fileno())) as ours:
        for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
            ours.setsockopt(socket.SOL_SOCKET, option, value)


def _shared(size: int, dtype: torch.dtype) -> Tensor:
    """Zeros in memory that other processes can map; they get it when they start.

    The system clears the memory where it is first used: making it costs nothing, however large.
    """
    import torch

    new: Any = torch.UntypedStorage._new_shared  # noqa: SLF001  (as torch's DataLoader does)
    return torch.empty(0, dtype=dtype).set_(new(size * dtype.itemsize))


def check_room(num_bytes: int) -> None:
    """Raise ``InputError`` unless that much shared memory is free; writing beyond it would kill the process."""
    if not SHARED_MEMORY.is_dir():
        return
    free = shutil.disk_usage(SHARED_MEMORY).free
    if num_bytes > free:
        msg = (
            f"Expected {SHARED_MEMORY} to have {num_bytes / 1e6:.0f} MB free for the model and the workers' sums, got "
            f"{free / 1e6:.0f} MB. Use fewer workers, give a container more (docker run --shm-size), or engine=ray."
        )
        raise InputError(msg)


def late_imports(key: str, text: str) -> tuple[str, ...]:
    """What the entry ``text`` of the catalogue ``key`` says in ``IMPORTS``, read without importing it.

    >>> late_imports("model", "resnet(depth=18)"), late_imports("model", "small_cnn()")
    (('torchvision.models',), ())
    """
    name = spec.parse(text, key).name
    module = name.rpartition(".")[0] if "." in name else f"{spec.CATALOGUES[key]}.{name}"
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        found = None  # building it raises the error
    if found is None or not found.origin or not found.origin.endswith(".py"):
        return ()
    for node in ast.parse(Path(found.origin).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["IMPORTS"]:
            return tuple(ast.literal_eval(node.value))
    return ()


def context_of_processes(imports: Sequence[str] = ()) -> ForkServerContext | SpawnContext:
    """Where processes come from; a fork server starts importing now, while the caller goes on."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED, *imports])
    _shorten_sockets()
    with _without_interrupts():
        forkserver.ensure_running()
    return context


SOCKET_ROOM = len("/pymp-12345678/listener-12345678")
"""Bytes of the sockets that ``multiprocessing`` makes below the folder for temporary files."""


def _shorten_sockets() -> None:
    """Have ``multiprocessing`` make its sockets where their paths are short enough.

    It asks ``tempfile`` for a folder once and keeps to that; workers are told.
    """
    before = tempfile.tempdir
    tempfile.tempdir = socket_folder(SOCKET_ROOM)
    try:
        remove_left([before or tempfile.tempdir])
        own(Path(multiprocessing.util.get_temp_dir()))
    finally:
        tempfile.tempdir = before


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Processes started meanwhile are never interrupted by Ctrl-C; ours is, a moment later."""
    resource_tracker.ensure_running()  # it would let interrupts through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def nameless_main() -> Iterator[None]:
    """While a process starts: hide the main module, which workers would otherwise import again."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


# --- in the worker -------------------------------------------------------------------------


@dataclass(frozen=True)
class _Memory:
    """A worker's side: the model and its own sum lie in shared memory."""

    model: Tensor
    total: Tensor

    @property
    def sums(self) -> Tensor:
        """Where the round's sum is kept."""
        return self.total

    def read(self, shared: Mapping[str, Any]) -> Request:
        """The request, with the model where it lies."""
        from fedmlic.protocol import Request

        return Request(**{**shared, "flat": self.model, "shared": _tensors(shared["shared"])})

    def pack(self, update: Update, *, single: bool) -> dict[str, dict[str, Any]]:
        """The update as plain values, without its sums if they are in the shared memory."""
        about = {part.name: getattr(update, part.name) for part in fields(update)}
        arrays = {name: about.pop(name).cpu().numpy() for name in ("row_weights", "annotations")}
        sums: Tensor = about.pop("sums")
        about["extras"] = _arrays(update.extras)
        if single:
            arrays["sums"] = sums.cpu().numpy()
        elif sums.numel() and sums.data_ptr() != self.total.data_ptr():
            self.total[: len(sums)].copy_(sums)  # from a GPU
        return {"about": about, "arrays": arrays}


def _arrays(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}


def _tensors(arrays: Mapping[str, Any]) -> dict[str, Tensor]:
    import torch

    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _serve(
    pipe: connection.Connection,
    name: str,
    model: Tensor,
    sums: Tensor,
    environment: Mapping[str, str],
    search_path: Sequence[str],
) -> None:
    """Answer one call after another until the driver is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's business
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent()  # the fork server, which ends with the driver: not only after a whole turn
    os.environ.clear()
    os.environ.update(environment)  # the fork server was started earlier, perhaps in another state
    sys.stdout = sys.stderr  # what a plug-in prints must not end up beside the driver's JSON
    worker = Worker(name, _Memory(model, sums), search_path)
    while True:
        try:
            method, arguments = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            answer = (True, getattr(worker, method)(*arguments))
        except Exception as error:  # noqa: BLE001  (it is raised in the driver)
            answer = (False, error)
        try:
            pipe.send(answer)
        except (OSError, BrokenPipeError):
            return
