"""Files and folders: listed, fingerprinted, synced, locked, and missing ones named together.

Annotation files are identified by SHA-256, images by name, size and time of last change:
reading every pixel at each start would take hours. Where the folder lies does not count.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from fedmlic.errors import listing

Stamp = tuple[int, int]
"""Size in bytes and time of last change in nanoseconds."""

IMAGES = (".jpg", ".jpeg", ".png")
"""Suffixes of the images of public data sets."""


def list_files(folder: Path, *, depth: int = 0, suffixes: tuple[str, ...] = ("",)) -> dict[str, Stamp]:
    """Size and time of every file in a folder, by path below it with forward slashes.

    Args:
        folder: where to look; nothing is found in a folder that does not exist.
        depth: how many levels of subfolders to enter.
        suffixes: endings to keep, in lower case with the dot; all by default.
    """
    found: dict[str, Stamp] = {}
    if not folder.is_dir():
        return found
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                if depth > 0:
                    below = list_files(folder / entry.name, depth=depth - 1, suffixes=suffixes)
                    found |= {f"{entry.name}/{name}": stamp for name, stamp in below.items()}
            elif entry.name.lower().endswith(suffixes) and entry.is_file():
                about = entry.stat()
                found[entry.name] = (about.st_size, about.st_mtime_ns)
    return found


def find_files(folders: Iterable[Path], suffixes: tuple[str, ...]) -> tuple[dict[str, Path], list[str]]:
    """Files that lie directly in the folders, by name, and a line for every name found twice.

    Args:
        folders: folders to look in; one that does not exist holds nothing.
        suffixes: endings to keep, in lower case with the dot.
    """
    found: dict[str, Path] = {}
    double = []
    for folder in folders:
        for name in sorted(list_files(folder, suffixes=suffixes)):
            if name in found:
                double.append(f"{name!r} lies in {found[name].parent} and in {folder}")
            found.setdefault(name, folder / name)
    return found, double


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk; nothing where there is none."""
    if not path.exists() or (os.name == "nt" and path.is_dir()):
        return  # Windows cannot open a folder
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def append_whole(handle: int, data: bytes, *, wait: bool) -> None:
    """Append all of ``data`` to an open file; where that fails, what was written of it is taken away.

    Args:
        handle: of a file that is open for appending, by this process only.
        data: what to append.
        wait: until it is on the disk.

    Raises:
        OSError: it could not be written.
    """
    before, rest = os.fstat(handle).st_size, data
    try:
        while rest:  # a disk that is nearly full takes a part, and refuses the next
            rest = rest[os.write(handle, rest) :]
        if wait:
            os.fsync(handle)
    except OSError:
        with suppress(OSError):  # the first error says more
            os.ftruncate(handle, before)
        raise


@contextmanager
def locked(base: Path, name: str) -> Iterator[None]:
    """Hold the lock under which ``name`` is built in the folder ``base``, which is made; other processes wait.

    Raises:
        OSError: the folder cannot be made or written to.
    """
    from filelock import FileLock  # only builders need it

    base.mkdir(parents=True, exist_ok=True)
    with FileLock(base / f".{name}.lock"):
        yield


def stamps_of(files: Iterable[tuple[str, Path]]) -> dict[str, Stamp]:
    """Size and time of each file, by the name that is given with it."""
    found = {}
    for name, file in files:
        about = file.stat()
        found[name] = (about.st_size, about.st_mtime_ns)
    return found


def stamps_sha256(stamps: Mapping[str, Stamp], names: Iterable[str] | None = None) -> str:
    """Hash of name, size and time of files, in any order.

    Args:
        stamps: by name.
        names: those that count, each once; one without a stamp is left out. All by default.
    """
    counted = stamps if names is None else [name for name in names if name in stamps]
    return hashlib.sha256(json.dumps(sorted((name, *stamps[name]) for name in counted)).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_sha256(root: Path, paths: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of each file's content, by its path below ``root``."""
    hashes = {os.path.relpath(path, root).replace(os.sep, "/"): file_sha256(path) for path in paths}
    return dict(sorted(hashes.items()))


def digest(hashes: Mapping[str, str]) -> str:
    """One SHA-256 in place of those of many files: a manifest travels with every corpus."""
    return hashlib.sha256(json.dumps(dict(sorted(hashes.items()))).encode()).hexdigest()


def check_present(dataset: str, names: Iterable[str], stamps: Mapping[str, Stamp], where: Path) -> None:
    """Raise ``InputError`` that names the files of ``names`` missing from ``stamps``, and empty ones."""
    problems = []
    for name in names:
        if name not in stamps:
            problems.append(f"{where / name}: no such file")
        elif stamps[name][0] == 0:
            problems.append(f"{where / name}: empty file")
    if problems:
        expected = f"Expected every image of data set {dataset} to lie below {where}"
        raise listing(expected, problems, complete=True)
