"""How a process that trains networks is set up: threads, freed memory, and lines of progress."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable
from typing import Final

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
