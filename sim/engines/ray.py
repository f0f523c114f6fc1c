"""Workers that are Ray actors, on this machine or on a cluster that exists.

A round puts the model into the object store once, from where every machine fetches it once;
each worker's sum comes back through it. Nothing else that is large passes through Ray:
workers open the corpus on their own disk.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fedmlic.errors import InputError
from sim.engines.sockets import socket_folder
from sim.engines.workers import Place, Worker, WorkerDiedError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fedmlic.experiment import Runtime
    from fedmlic.protocol import HostInfo, Request
    from fedmlic.update import Update

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # workers use this environment as it is, offline too
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
}


SOCKET_ROOM = len("/ray/session_2026-01-31_23-59-59_123456_12345678/sockets/plasma_store")
"""Bytes of the longest socket that Ray makes below the folder for temporary files."""

CONNECT_S = 10.0
"""How long a cluster may take to accept a connection."""


class RayCarrier:
    """A carrier of Ray actors.

    Args:
        num_workers: how many there will be; 0 means one per processor of the cluster.
        runtime: GPUs per worker, and the address of a cluster if there is one.

    Attributes:
        num_workers: how many it has room for and was asked for.

    Raises:
        InputError: no cluster at that address, or the GPUs asked for are not there.
    """

    def __init__(self, num_workers: int, runtime: Runtime) -> None:
        self._ray = start_ray(num_workers, runtime)
        self.num_workers = num_workers or int(self._ray.cluster_resources().get("CPU", 1))
        self._deaths = (self._ray.exceptions.RayActorError, self._ray.exceptions.OutOfMemoryError)
        self._runtime = runtime
        self._actors: list[Any] = []
        self._remote = self._ray.remote(_Actor)

    def open(self, size: int) -> None:
        """The object store needs no preparation."""

    def start(self, name: str) -> Any:  # noqa: ANN401  (Ray's handles are untyped)
        """Start an actor; it imports what it needs while the caller goes on."""
        resources = {"num_cpus": 1, "num_gpus": self._runtime.gpus_per_worker}
        actor = self._remote.options(**resources).remote(name, sys.path)
        self._actors.append(actor)
        return actor

    def call(self, worker: Any, method: str, *arguments: object) -> Any:  # noqa: ANN401
        """A remote method call; a large argument must be a reference."""
        return getattr(worker, method).remote(*arguments)

    def wait(self, calls: Sequence[Any], timeout: float) -> list[Any]:
        """Ray's own wait."""
        ready: list[Any] = self._ray.wait(list(calls), num_returns=1, timeout=timeout)[0]
        return ready

    def result(self, call: Any) -> Any:  # noqa: ANN401
        """What the actor returned or raised."""
        try:
            return self._ray.get(call)
        except self._deaths as error:
            raise WorkerDiedError(type(error).__name__) from error
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None

    def kill(self, worker: Any) -> None:  # noqa: ANN401
        """End an actor at once."""
        self._ray.kill(worker)

    def share(self, request: Request) -> Any:  # noqa: ANN401
        """Put the model into the object store, once for all."""
        shared = {name: tensor.cpu().numpy() for name, tensor in request.shared.items()}
        return self._ray.put(
            (replace(request, flat=request.flat[:0].cpu(), shared={}), request.flat.cpu().numpy(), shared)
        )

    def take(self, worker: Any, packed: _Packed) -> Update:  # noqa: ANN401
        """The update with its sums in memory of its own: the store's is read-only."""
        import torch

        del worker
        return replace(packed.update, sums=torch.from_numpy(packed.sums.copy()))

    def close(self) -> None:
        """Stop the actors, and Ray if it was started for them."""
        if self._ray.is_initialized():
            for actor in self._actors:
                self._ray.kill(actor)
        self._actors = []
        self._ray.shutdown()  # of a cluster that was there before, this is only our connection


@dataclass(frozen=True)
class _Packed:
    """An update whose large vector crosses Ray's object store without a copy."""

    update: Update
    sums: NDArray[np.float64]


class _Store:
    """An actor's side of the object store."""

    sums = None

    def read(self, shared: tuple[Request, NDArray[np.float32], dict[str, NDArray[Any]]]) -> Request:
        """The request with a copy of the model; the store's memory is read-only and not kept."""
        import torch

        request, flat, beside = shared
        copies = {name: torch.from_numpy(array.copy()) for name, array in beside.items()}
        return replace(request, flat=torch.from_numpy(flat.copy()), shared=copies)

    def pack(self, update: Update, *, single: bool) -> _Packed:
        """The update in two parts, both off the GPU: the server may have none."""
        import torch

        del single
        beside = {name: tensor.cpu() for name, tensor in update.extras.items()}
        return _Packed(
            replace(update, sums=torch.zeros(0, dtype=torch.float64), extras=beside), update.sums.cpu().numpy()
        )


class _Actor(Worker):
    """A worker that imports what it needs at once."""

    def __init__(self, name: str, search_path: Sequence[str]) -> None:
        super().__init__(name, _Store(), search_path)
        import clients.opening  # noqa: F401  (while the server still prepares the data)

    def setup(self, settings: dict[str, Any], place: Place) -> HostInfo:
        """As any worker; on another machine, bad input says on which."""
        import ray

        try:
            return super().setup(settings, place)
        except InputError as error:
            where = ray.util.get_node_ip_address()
            msg = f"On the machine {where}: {error}"
            raise InputError(msg) from error


def _knock(address: str) -> None:
    """Raise ``OSError`` if nobody listens at ``host:port``; Ray itself would try for minutes and then exit."""
    host, colon, port = address.rpartition(":")
    if colon and "://" not in address and port.isdecimal():
        socket.create_connection((host, int(port)), CONNECT_S).close()


@contextlib.contextmanager
def _own_handler() -> Iterator[None]:
    """Keep what SIGTERM does: Ray replaces it by a trace of its C++ parts and an exit with another code."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def start_ray(num_workers: int, runtime: Runtime) -> Any:  # noqa: ANN401  (the ray module, imported late)
    """Connect to the cluster at ``ray-address``, or start a private Ray on this machine; return the module.

    Raises:
        InputError: there is no such cluster, or it lacks the processors or GPUs asked for.
    """
    os.environ.update({key: os.environ.get(key, value) for key, value in ENVIRONMENT.items()})
    import ray

    quiet = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
    if runtime.ray_address:
        try:
            _knock(runtime.ray_address)
            with _own_handler():
                ray.init(address=runtime.ray_address, **quiet)
        except (OSError, ValueError, RuntimeError) as error:
            msg = (
                f"Expected ray-address to be that of a running Ray cluster, got {runtime.ray_address!r}: {error}. "
                "Start one with 'ray start --head', or leave ray-address empty."
            )
            raise InputError(msg) from error
    else:
        place = f"{socket_folder(SOCKET_ROOM, os.environ.get('RAY_TMPDIR', ''))}/ray"
        with _own_handler():
            ray.init(address="local", num_cpus=num_workers, include_dashboard=False, _temp_dir=place, **quiet)
    found = ray.cluster_resources()
    there = {"processors": found.get("CPU", 0.0), "GPUs": found.get("GPU", 0.0)}
    wanted = {"processors": float(num_workers), "GPUs": runtime.gpus_per_worker * num_workers}
    lacking = [f"{wanted[name]:g} {name} of {there[name]:g}" for name in wanted if wanted[name] > there[name] + 1e-9]
    if lacking:
        ray.shutdown()
        msg = (
            f"Expected {num_workers} workers x {runtime.gpus_per_worker:g} GPUs to fit the machine or cluster, "
            f"got {', '.join(lacking)}. Lower workers or gpus-per-worker."
        )
        raise InputError(msg)
    return ray
