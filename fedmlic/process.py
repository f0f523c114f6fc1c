"""How a process that trains networks is set up: threads, and what happens to freed memory."""

from __future__ import annotations

import ctypes
import sys
from typing import Final

import torch

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's ``mallopt``."""

LARGEST_MMAP_THRESHOLD: Final = 32 << 20
"""The most that glibc accepts."""


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
