"""What a client keeps from one of its turns to the next: named tensors, versioned by round.

The server says with every request which of a client's turns was the last that counted, and the
client recalls what it kept in that round. So a turn that is played again, because a worker died
or the run was resumed from a checkpoint, reads what it read the first time, and a turn that was
refused leaves the client as it was.

In a simulation any worker plays any client, so memory lies in the run's folder; on a device it
lies on the device, survives restarts, and never leaves it. One file per client and kept round::

    FOLDER/000/000123/round-00012.safetensors

Files are written under a temporary name and renamed, and are on the disk before an older one goes and
before the turn counts, as checkpoints are; each holds a hash of its tensors. Nothing is kept open, and
only the tensors of the client that is being played are in memory.
"""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from fedmlic.errors import InputError
from fedmlic.files import sync

if TYPE_CHECKING:
    from torch import Tensor

ROUND = "round-"
SUFFIX = ".safetensors"
STATED = "sha256"
"""Name of what a file says of itself: the hash of its tensors, a space, the client's last version that counted before.

It is one text, since safetensors writes several in any order, and equal runs have equal files.
"""
LEFT_S = 3600.0
"""Age of a temporary file that nobody writes any more."""

PROBE = ".shared-"
"""Begins the name of the file by which workers on other machines know the folder."""


class ClientMemory(Protocol):
    """Tensors that clients keep, by client and by the round in which they were kept."""

    def recall(self, client: int, version: int) -> dict[str, Tensor]:
        """What ``client`` kept in round ``version``; nothing for version 0.

        Raises:
            InputError: that version is gone or damaged.
        """

    def keep(
        self, client: int, version: int, tensors: Mapping[str, Tensor], *, last: int = 0, needed: Iterable[int] = ()
    ) -> None:
        """Keep ``tensors`` as of round ``version``, and remove what nobody will recall.

        Args:
            client: whose.
            version: the round.
            tensors: by name.
            last: the client's last version that counted; later ones are of turns that did not.
            needed: rounds that a resumed run may start from.
        """


class FolderMemory:
    """Client memory in a folder; see the module's docstring.

    Args:
        folder: made when the first client keeps something.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def recall(self, client: int, version: int) -> dict[str, Tensor]:
        """What ``client`` kept in round ``version``, as tensors of its own on the CPU."""
        if version == 0:
            return {}
        file = self._file(client, version)
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(file, "pt") as content:
                tensors: dict[str, Tensor] = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
                stated, _, _ = (content.metadata() or {}).get(STATED, "").partition(" ")
        except FileNotFoundError:
            msg = (
                f"Expected client {client} to have kept its tensors of round {version} in {file}, got no such file. "
                "Restore the folder, or start a new run."
            )
            raise InputError(msg) from None
        except (SafetensorError, OSError) as error:
            msg = f"Expected {file} to hold client {client}'s tensors, got {error}. Restore it, or start a new run."
            raise InputError(msg) from None
        if stated != digest(tensors):
            msg = f"Expected {file} to have the hash that it states, got another. Restore it, or start a new run."
            raise InputError(msg)
        return tensors

    def keep(
        self, client: int, version: int, tensors: Mapping[str, Tensor], *, last: int = 0, needed: Iterable[int] = ()
    ) -> None:
        """Write one file, wait until it is on the disk, then delete those of this client that are no longer needed."""
        import torch
        from safetensors.torch import save_file

        file = self._file(client, version)
        first = not file.parent.exists()
        file.parent.mkdir(parents=True, exist_ok=True)
        # Copies, since safetensors refuses names that share memory.
        plain = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
        }
        temporary = file.with_name(f".{uuid.uuid4().hex}.tmp")
        try:
            save_file(plain, temporary, metadata={STATED: f"{digest(plain)} {last}"})
            sync(temporary)
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)
        above = [file.parent.parent, self.folder, self.folder.parent] if first else []
        for folder in (file.parent, *above):
            sync(folder)
        self._prune(client, version, last, needed)

    def versions(self, client: int) -> list[int]:
        """Rounds in which ``client`` kept something that is still there, ascending."""
        found = self._file(client, 0).parent.glob(f"{ROUND}*{SUFFIX}")
        return sorted(int(file.stem.removeprefix(ROUND)) for file in found)

    def _prune(self, client: int, version: int, last: int, needed: Iterable[int]) -> None:
        """Keep, for this round, the last and each needed one, the newest version that counted until then.

        Newer ones stay: this turn may be one that the server has long given up, which ends beside or after a later one
        that counted. Those of rounds that a resumed run left behind go when it comes past them.
        """
        there = self.versions(client)
        counted = {version, *self._counted(client, last, there)}
        kept = {max((v for v in counted if v <= number), default=0) for number in (version, last, *needed)}
        for old in there:
            if old < version and old not in kept:
                self._file(client, old).unlink(missing_ok=True)
        _remove_left(self._file(client, version).parent)

    def _counted(self, client: int, last: int, there: Sequence[int]) -> Iterator[int]:
        """Versions up to ``last`` of turns that counted, the newest first: each names the one before it."""
        while last:
            yield last
            before = self._before(client, last)
            if before is None:  # of an earlier format, or damaged: any may have counted
                yield from (v for v in there if v < last)
                return
            last = before

    def _before(self, client: int, version: int) -> int | None:
        """The last version that counted when this one was kept; None if it does not say."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self._file(client, version), "pt") as content:
                _, _, stated = (content.metadata() or {}).get(STATED, "").partition(" ")
        except (SafetensorError, OSError):
            return None
        return int(stated) if stated.isdecimal() and int(stated) < version else None

    def _file(self, client: int, version: int) -> Path:
        return self.folder / f"{client // 1000:03d}" / f"{client:06d}" / f"{ROUND}{version:05d}{SUFFIX}"


class FolderRest:
    """The part of a run's model that is not exchanged at present, in a file of this node.

    One for all runs: what a run keeps takes the place of what the run before kept.

    Args:
        folder: of the device, the same for all runs; made when something is kept.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / "rest.safetensors"

    def recall(self, digest: str) -> Tensor | None:
        """float32 vector of that digest, or None if this node has another one or none."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self._file, "pt") as content:
                stated = (content.metadata() or {}).get("digest")
                values: Tensor | None = content.get_tensor("rest") if stated == digest else None
        except (OSError, SafetensorError):
            return None  # it is sent again
        sound = values is not None and hashlib.sha256(values.numpy().data).hexdigest() == digest
        return values if sound else None

    def keep(self, digest: str, values: Tensor) -> None:
        """Keep ``values`` in place of what was kept before."""
        from safetensors.torch import save_file

        self._file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._file.with_name(f".{uuid.uuid4().hex}.tmp")
        save_file({"rest": values.contiguous()}, temporary, metadata={"digest": digest})
        temporary.replace(self._file)
        _remove_left(self._file.parent)


def _remove_left(folder: Path) -> None:
    """Remove temporary files of turns that were killed while they wrote; a recent one may be being written."""
    for file in folder.glob(".*.tmp"):
        with suppress(FileNotFoundError):
            if time.time() - file.stat().st_mtime > LEFT_S:
                file.unlink()


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes, in the order of names."""
    import torch

    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def mark_shared(folder: Path) -> str:
    """Put a file into ``folder`` by whose name other machines can tell that they see the same folder.

    Returns:
        The name, for ``check_shared``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{PROBE}*"):
        old.unlink(missing_ok=True)
    name = f"{PROBE}{uuid.uuid4().hex}"
    (folder / name).touch()
    return name


def check_shared(folder: Path, name: str) -> None:
    """Make sure that this process sees the folder that the server marked.

    Raises:
        InputError: it does not: the folder is on another machine's disk.
    """
    if not (folder / name).is_file():
        msg = (
            f"Expected the run folder to be visible from all machines, since clients keep tensors there, got "
            f"no {folder} on {os.uname().nodename if hasattr(os, 'uname') else 'this machine'}. "
            "Choose an --out on a disk that all machines share."
        )
        raise InputError(msg)
