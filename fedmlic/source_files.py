"""Files of a downloaded data set: found, listed, fingerprinted, and missing ones named together.

Annotation files are identified by SHA-256, images by name, size and time of last change:
reading every pixel at each start would take hours. Where the folder lies does not count.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedmlic.errors import InputError, listing

Stamp = tuple[int, int]
"""Size in bytes and time of last change in nanoseconds."""


def source_root(dataset: str, root: str, holds: str) -> Path:
    """The folder that a data set was downloaded to.

    Args:
        dataset: name of the data set, for messages.
        root: its path; ``~`` is the user's home.
        holds: what should lie there, for messages.

    Raises:
        InputError: there is no such folder.
    """
    place = Path(root).expanduser()
    if not place.is_dir():
        msg = f"Expected root of data set {dataset} to be a folder, got {root!r}. Give the folder that holds {holds}."
        raise InputError(msg)
    return place


def first_existing(root: Path, names: Sequence[str], what: str) -> Path:
    """The first of several places below ``root`` that exists.

    Raises:
        InputError: none does.
    """
    for name in names:
        if (root / name).exists():
            return root / name
    found = ", ".join(sorted(path.name for path in root.iterdir())[:8]) or "nothing"
    msg = f"Expected {what} at {root / names[0]}, got {found} in {root}. Download or move it there."
    if len(names) > 1:
        msg += f" Also looked for {', '.join(names[1:])}."
    raise InputError(msg)


def read_text(path: Path) -> str:
    """A text file in UTF-8, with or without a byte order mark, its line ends those of Unix.

    Raises:
        InputError: it is missing or no UTF-8 text.
    """
    if not path.is_file():
        msg = f"Expected a file at {path}, got none. Download it, or give the folder that holds it as root."
        raise InputError(msg)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"Expected {path} to be a text file in UTF-8, got: {error}. Download it again."
        raise InputError(msg) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Line numbers, from 1, and stripped texts of the lines that are not blank."""
    numbered = enumerate(read_text(path).split("\n"), 1)
    return [(number, line.strip()) for number, line in numbered if line.strip()]


def read_json(path: Path) -> Any:  # noqa: ANN401  (JSON is untyped)
    """A JSON file.

    Raises:
        InputError: it is missing or no JSON.
    """
    try:
        return json.loads(read_text(path))
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        msg = f"Expected {path} to be a JSON file, got: {error}. Download it again."
        raise InputError(msg) from error


def list_files(folder: Path, *, depth: int = 0) -> dict[str, Stamp]:
    """Size and time of every file in a folder, by path below it with forward slashes.

    Args:
        folder: where to look; nothing is found in a folder that does not exist.
        depth: how many levels of subfolders to enter.
    """
    found: dict[str, Stamp] = {}
    if not folder.is_dir():
        return found
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                if depth > 0:
                    below = list_files(folder / entry.name, depth=depth - 1)
                    found |= {f"{entry.name}/{name}": stamp for name, stamp in below.items()}
            elif entry.is_file():
                about = entry.stat()
                found[entry.name] = (about.st_size, about.st_mtime_ns)
    return found


def stamps_sha256(stamps: Mapping[str, Stamp], names: Iterable[str]) -> str:
    """Hash of name, size and time of the files ``names``, in any order."""
    lines = [f"{name}\t{stamps[name][0]}\t{stamps[name][1]}\n" for name in sorted(names)]
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def files_sha256(root: Path, paths: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of each file's content, by its path below ``root``."""
    hashes = {}
    for path in paths:
        with path.open("rb") as file:
            hashes[os.path.relpath(path, root).replace(os.sep, "/")] = hashlib.file_digest(file, "sha256").hexdigest()
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
        raise listing(expected, problems)


class Problems:
    """Collects what is wrong with a source, and raises all of it at once.

    Args:
        expected: how the message begins, such as "Expected X to hold Y".
    """

    def __init__(self, expected: str) -> None:
        self.expected = expected
        self.found: list[str] = []

    def add(self, problem: str) -> None:
        """Note one."""
        self.found.append(problem)

    def finish(self) -> None:
        """Raise ``InputError`` if there were any."""
        if self.found:
            raise listing(self.expected, self.found)


def once(make: Callable[[], Any]) -> Callable[[], Any]:
    """The same function, called at most once; its result is kept."""
    kept: list[Any] = []

    def made() -> Any:  # noqa: ANN401
        if not kept:
            kept.append(make())
        return kept[0]

    return made
