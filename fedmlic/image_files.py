"""Image files of a source as they lie on disk: which there are, whether they changed, how large they are."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedmlic.errors import InputError
from fedmlic.images import UNREADABLE

if TYPE_CHECKING:
    from numpy.typing import NDArray


SUFFIXES = (".jpg", ".jpeg", ".png")

EXIF_ORIENTATION = 0x0112

BATCH = 64
"""Headers that one task reads."""

ROUNDING_PIXELS = 1.0
"""How far a side of a picture saved in another size may be off its exact length."""


def find_parts(root: str, tried: Sequence[str], parts: Sequence[Sequence[str]], name: str) -> list[Path]:
    """Where the parts of a download are, below the first of the folders ``tried`` that holds them all.

    Args:
        root: as the user wrote it; ``~`` is home.
        tried: paths below it, ``"."`` for itself.
        parts: paths below such a folder; each part may lie at any of several places.
        name: the data set, for the message.

    Returns:
        A path for every part.

    Raises:
        InputError: no folder holds them all; the message names everything that is missing.
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
    holds = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing" if folder.is_dir() else ""
    msg = (
        f"Expected root of data set {name} to hold {', '.join(part[0] for part in parts)}, got "
        + (f"{str(folder)!r} without {missing}; it holds {holds}. " if holds else f"{str(folder)!r}, no such folder. ")
        + "Give the folder of the unpacked download."
    )
    raise InputError(msg)


def list_files(folder: Path, suffixes: tuple[str, ...] = SUFFIXES) -> dict[str, tuple[int, int]]:
    """Size in bytes and time of last change (ns) of every file with such a suffix, by name; empty without folder."""
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        files = [entry for entry in entries if entry.name.lower().endswith(suffixes) and entry.is_file()]
    return {entry.name: ((found := entry.stat()).st_size, found.st_mtime_ns) for entry in files}


def fingerprint(files: Mapping[str, tuple[int, int]]) -> str:
    """SHA-256 over names, sizes and times; the order does not count."""
    return hashlib.sha256(json.dumps(sorted(files.items())).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Headers(NamedTuple):
    """What image files say of themselves before their pixels.

    Attributes:
        sizes: float64 ``[images, 2]``, width and height in stored pixels; 0 of unreadable files.
        orientations: int64 ``[images]``, EXIF's code for how to turn the picture; 1 is not at all.
        report: counts of modes, of files whose EXIF asks for turning, and Pillow's version.
    """

    sizes: NDArray[np.float64]
    orientations: NDArray[np.int64]
    report: dict[str, object]


def read_headers(files: Sequence[Path], workers: int = 8) -> Headers:
    """Read headers of image files; unreadable ones are counted here and fail by name when decoded."""
    import PIL  # noqa: PLC0415  (only a build looks at files)

    modes: Counter[str] = Counter()
    sizes = np.zeros((len(files), 2))
    orientations = np.ones(len(files), dtype=np.int64)
    with ThreadPoolExecutor(workers) as pool:
        batches = pool.map(_headers, [files[start : start + BATCH] for start in range(0, len(files), BATCH)])
        for place, (mode, size, orientation) in enumerate(itertools.chain.from_iterable(batches)):
            modes[mode] += 1
            sizes[place] = size
            orientations[place] = orientation
    turned = int((orientations != 1).sum())
    report = {"modes": dict(sorted(modes.items())), "exif_turned": turned, "pillow": PIL.__version__}
    return Headers(sizes, orientations, report)


def _headers(files: Sequence[Path]) -> list[tuple[str, tuple[int, int], int]]:
    return [_header(file) for file in files]


def _header(file: Path) -> tuple[str, tuple[int, int], int]:
    from PIL import Image  # noqa: PLC0415

    try:
        with Image.open(file) as picture:
            # Pillow decodes a whole PNG to look for EXIF behind its pixels.
            exif = picture.getexif() if picture.format != "PNG" else {}
            orientation = exif.get(EXIF_ORIENTATION, 1)
            return picture.mode, picture.size, orientation if orientation in range(2, 9) else 1
    except (*UNREADABLE, Image.DecompressionBombError):
        return "unreadable", (0, 0), 1


def agree_on_sizes(
    said: NDArray[np.float64], stored: NDArray[np.float64], names: Sequence[str]
) -> tuple[NDArray[np.float64], dict[str, object]]:
    """The sizes that boxes are measured in, and what to report of those that differ.

    Boxes belong to the size that the annotation says, so a file saved smaller in the same
    proportions keeps its boxes. Where proportions differ, or the annotation says nothing,
    the file is right.

    Args:
        said: ``[images, 2]``, width and height of the annotation; 0 where it says nothing.
        stored: ``[images, 2]``, of the file; 0 where it cannot be read.
        names: of the images, for the report.

    Returns:
        float64 ``[images, 2]``, all at least 1, and a report with JSON values.
    """
    both = (said > 0).all(axis=1) & (stored > 0).all(axis=1)
    scale = np.divide(stored[:, 0], said[:, 0], out=np.zeros(len(said)), where=both)
    same_shape = both & (np.abs(said[:, 1] * scale - stored[:, 1]) <= ROUNDING_PIXELS)
    unreadable = (stored <= 0).any(axis=1)
    sizes = np.where((same_shape | unreadable)[:, None], said, stored)
    resized = np.flatnonzero(same_shape & (said != stored).any(axis=1))
    other = np.flatnonzero(both & ~same_shape)
    report: dict[str, object] = {"resized_files": len(resized), "other_proportions": len(other)}
    if len(other):
        report["other_proportions_first"] = [names[place] for place in other[:10].tolist()]
    return np.maximum(sizes, 1.0), report
