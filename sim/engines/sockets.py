"""Folders whose paths are short enough for local sockets.

The path of a local (AF_UNIX) socket has at most 107 bytes on Linux and 103 on macOS, whatever the
file system allows. Batch systems set ``TMPDIR`` to longer folders than that leaves room for.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from fedmlic.errors import InputError

LONGEST = 103
"""Bytes that the path of a socket has at most on every system."""

SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108  (tempfile makes the names in them)
"""Where sockets go if the folder for temporary files is too long."""


def socket_folder(room: int, wanted: str = "") -> str:
    """A folder for temporary files whose path leaves ``room`` bytes for what is made below it.

    Args:
        room: bytes of the longest path below the folder, its first slash included.
        wanted: the folder to use if it is short enough; empty: the system's for temporary files.

    Raises:
        InputError: there is no folder short enough that can be written.
    """
    wanted = wanted or tempfile.gettempdir()
    for folder in (wanted, *SHORT_FOLDERS):
        if (
            len(os.fsencode(folder)) + room <= LONGEST
            and Path(folder).is_dir()
            and os.access(folder, os.W_OK | os.X_OK)
        ):
            return folder
    msg = (
        f"Expected a folder for temporary files with at most {LONGEST - room} bytes in its path, for sockets, got "
        f"{wanted!r}, and cannot write to {', '.join(SHORT_FOLDERS)}. Set TMPDIR to a shorter folder, or use "
        "engine=inprocess."
    )
    raise InputError(msg)
