"""How a process that trains networks is set up and stays so: threads, freed memory, global state, lines of progress."""

from __future__ import annotations

import ctypes
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's ``mallopt``."""

LARGEST_MMAP_THRESHOLD: Final = 32 << 20
"""The most that glibc accepts."""

LINE_S: Final = 5.0
"""Seconds between two lines of progress."""


def prepare(threads: int) -> None:
    """Set torch's threads, and keep memory that is freed for the next training step.

    By default glibc gives large blocks back to the system as soon as they are freed and the
    system clears them when they are asked for again, so every step of a ResNet-18 faults in
    thousands of pages: measured on small images, a quarter to a third of the step's time. With
    other C libraries nothing changes.
    """
    torch.set_num_threads(threads)
    if sys.platform.startswith("linux"):
        library = ctypes.CDLL(None)
        if hasattr(library, "mallopt"):
            library.mallopt(MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
            library.mallopt(TRIM_THRESHOLD, 2**31 - 1)


def progress_lines(what: str, say: Callable[[str], None]) -> Callable[[int, int], None]:
    """Progress for a log: a line at most every ``LINE_S`` seconds, and one at the end.

    Args:
        what: is counted, such as ``"features"``.
        say: gets each line.
    """
    last_s = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal last_s
        now = time.monotonic()
        if done == total or now - last_s > LINE_S:
            last_s = now
            say(f"building {what}: {done:,}/{total:,}")

    return tell


@contextmanager
def restored() -> Iterator[None]:
    """Run a client's code; whatever it changed of the process for good is put back for the next client.

    That is the global switches of torch (gradients, default type and device, deterministic
    algorithms, cuDNN, precision of products, anomaly detection, threads), NumPy's treatment of
    errors, the working folder, the module search path, and the global random generators of Python,
    NumPy and torch (that of the current GPU only where one has been used).
    """
    before = [read() for read, _ in _STATE]
    try:
        yield
    finally:
        for (read, write), value in zip(_STATE, before, strict=True):
            if write in _ALWAYS or read() != value:
                write(value)


def _folder() -> str:
    try:
        return str(Path.cwd())
    except FileNotFoundError:  # it was removed
        return ""


def _enter(folder: str) -> None:
    if folder:
        os.chdir(folder)


def _algorithms() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _choose_algorithms(chosen: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(chosen[0], warn_only=chosen[1])


def _cudnn() -> tuple[bool, ...]:
    cudnn = torch.backends.cudnn
    return cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32


def _set_cudnn(values: tuple[bool, ...]) -> None:
    cudnn = torch.backends.cudnn
    cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32 = values


def _search_path(entries: list[str]) -> None:
    sys.path[:] = entries


def _gpu_state() -> torch.Tensor | None:
    used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return torch.cuda.get_rng_state() if used else None


def _set_gpu_state(state: torch.Tensor | None) -> None:
    if state is not None:
        torch.cuda.set_rng_state(state)


def _set_random(state: tuple[Any, ...]) -> None:
    random.setstate(state)


def _set_numpy(state: dict[str, Any]) -> None:
    np.random.set_state(state)  # noqa: NPY002  (the global one, which a plug-in may have used)


def _numpy_errors(found: Mapping[str, Any]) -> None:
    np.seterr(**found)


_STATE: Final[tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...]] = (
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_default_device, torch.set_default_device),
    (torch.get_num_threads, torch.set_num_threads),
    (_algorithms, _choose_algorithms),
    (_cudnn, _set_cudnn),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    (np.geterr, _numpy_errors),
    (_folder, _enter),
    (lambda: list(sys.path), _search_path),
    (random.getstate, _set_random),
    (lambda: np.random.get_state(legacy=False), _set_numpy),  # noqa: NPY002
    (torch.get_rng_state, torch.set_rng_state),
    (_gpu_state, _set_gpu_state),
)
"""How each part of a process's state is read and set."""

_ALWAYS: Final = (_set_random, _set_numpy, torch.set_rng_state, _set_gpu_state)
"""Setting these costs less than comparing them."""
