"""An audit log: who asked for what, and what left this machine, one JSON object a line, only ever appended to.

What cannot be written down must not happen: ``write`` raises, and its caller sends nothing then.
"""

from __future__ import annotations

import datetime as dt
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedmlic.errors import InputError
from fedmlic.files import append_whole, locked
from fedmlic.record import jsonable


@dataclass(frozen=True)
class AuditLog:
    """A file of entries. When it is full, it is renamed to ``NAME.1``, the one before to ``NAME.2``, and so on.

    Attributes:
        path: of the file; its folder is made.
        most_bytes: after which it is full.
        kept: renamed files that stay; the oldest goes.
    """

    path: Path
    most_bytes: int = 16 << 20
    kept: int = 8

    def write(self, values: Mapping[str, Any]) -> None:
        """Append an entry with the time (UTC) and wait until it is on the disk.

        Raises:
            InputError: it cannot be written.
        """
        entry = {"time": dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds"), **values}
        line = json.dumps(jsonable(entry), ensure_ascii=True, allow_nan=False).encode() + b"\n"
        try:
            with locked(self.path.parent, self.path.name):
                self._rotate(len(line))
                handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
                try:
                    append_whole(handle, line, wait=True)
                finally:
                    os.close(handle)
        except OSError as error:
            msg = (
                f"Expected the audit log {self.path} to be writable, got: {error}. Make room, or give it to "
                "the service's user; until then nothing is sent."
            )
            raise InputError(msg) from error

    def _rotate(self, more: int) -> None:
        if not self.path.exists() or self.path.stat().st_size + more <= self.most_bytes:
            return
        names = [self.path, *(self.path.with_name(f"{self.path.name}.{n}") for n in range(1, self.kept + 1))]
        for older, newer in zip(reversed(names[1:]), reversed(names[:-1]), strict=True):
            if newer.exists():
                newer.replace(older)
