"""Where a download lies: its folder, and its parts, which may be at any of several places below it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedmlic.errors import InputError
from fedmlic.problems import Problems


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


def contents(folder: Path) -> str:
    """Some names of what lies in a folder, for messages."""
    return ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"


def first_existing(root: Path, names: Sequence[str], what: str) -> Path:
    """The first of several places below ``root`` that exists.

    Raises:
        InputError: none does.
    """
    for name in names:
        if (root / name).exists():
            return root / name
    msg = f"Expected {what} at {root / names[0]}, got {contents(root)} in {root}. Download or move it there."
    if len(names) > 1:
        msg += f" Also looked for {', '.join(names[1:])}."
    raise InputError(msg)


def find_parts(
    root: str, tried: Sequence[str], parts: Sequence[Sequence[str]], name: str, problems: Problems | None = None
) -> list[Path]:
    """Where the parts of a download are, below the first of the folders ``tried`` that holds them all.

    Args:
        root: as the user wrote it; ``~`` is home.
        tried: paths below it, ``"."`` for itself.
        parts: paths below such a folder; each part may lie at any of several places.
        name: the data set, for the message.
        problems: where to note what is missing, so that the rest can be read; raised otherwise.

    Returns:
        A path for every part; that of its first place where it is missing.

    Raises:
        InputError: no folder holds them all; the message names everything that is missing. There
            is no such root, whether problems are noted or not.
    """
    base = Path(root).expanduser()
    found: dict[str, list[Path | None]] = {}
    for place in tried:
        found[place] = [
            next((base / place / at for at in part if (base / place / at).exists()), None) for part in parts
        ]
        if None not in found[place]:
            return [path for path in found[place] if path is not None]
    # The folder that comes closest tells most.
    best = min(tried, key=lambda place: found[place].count(None))
    missing = ", ".join(part[0] for part, path in zip(parts, found[best], strict=True) if path is None)
    folder = base / best
    holds = contents(folder) if folder.is_dir() else ""
    msg = (
        f"Expected root of data set {name} to hold {', '.join(part[0] for part in parts)}, got "
        + (f"{str(folder)!r} without {missing}; it holds {holds}. " if holds else f"{str(folder)!r}, no such folder. ")
        + "Give the folder of the unpacked download."
    )
    if problems is None or not holds:
        raise InputError(msg)
    problems.note(msg)
    return [path or folder / part[0] for part, path in zip(parts, found[best], strict=True)]
