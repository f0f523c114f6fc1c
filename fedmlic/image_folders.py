"""Image files on disk: where they lie, what counts as unchanged, and what their headers say."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fedmlic.errors import InputError
from fedmlic.images import UNREADABLE

EXIF_ORIENTATION = 0x0112


def existing_folder(root: str, dataset: str, holds: str) -> Path:
    """The folder that ``root`` names, with ``~`` as the home.

    Raises:
        InputError: it is no folder.
    """
    place = Path(root).expanduser()
    if not place.is_dir():
        msg = f"Expected root of data set {dataset} to be a folder, got {root!r}. Give the folder that holds {holds}."
        raise InputError(msg)
    return place


def scan(folders: Iterable[Path], suffixes: Sequence[str]) -> tuple[dict[str, Path], list[str]]:
    """Files that lie directly in the folders, by name, and a line for every name found twice.

    Args:
        folders: folders to look in; one that does not exist holds nothing.
        suffixes: endings to keep, in lower case with the dot.
    """
    found: dict[str, Path] = {}
    double = []
    for folder in folders:
        if not folder.is_dir():
            continue
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.name.lower().endswith(tuple(suffixes)))
        for name in names:
            if name in found:
                double.append(f"{name!r} lies in {found[name].parent} and in {folder}")
            found.setdefault(name, folder / name)
    return found, double


def fingerprint(names: Iterable[str], path_of: Callable[[str], Path | str]) -> str:
    """SHA-256 over name, size and time of last change of every file, in the order of their names.

    Where the folder lies does not count; what the bytes are is not read.
    """
    digest = hashlib.sha256()
    for name in sorted(names):
        stat = os.stat(path_of(name))  # noqa: PTH116  (a Path for each of 750,000 names is slow)
        digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def headers(files: Sequence[Path], workers: int = 8) -> dict[str, object]:
    """How many images have each Pillow mode and how many are turned by EXIF, from headers alone.

    Args:
        files: image files; one that cannot be read is counted as such, and named when the
            corpus is built.
        workers: threads; waiting for a disk takes longer than reading a header.
    """
    import PIL  # noqa: PLC0415  (only a build decodes)

    with ThreadPoolExecutor(workers) as pool:
        found = list(pool.map(_header, files))
    modes = Counter(mode for mode, _ in found)
    turned = sum(turned for _, turned in found)
    return {"modes": dict(sorted(modes.items())), "exif_turned": turned, "pillow": PIL.__version__}


def _header(file: Path) -> tuple[str, bool]:
    """Mode of a file, and whether EXIF turns it."""
    from PIL import Image  # noqa: PLC0415

    try:
        with Image.open(file) as picture:
            # Pillow decodes a whole PNG to look for EXIF behind its pixels.
            turned = picture.format != "PNG" and picture.getexif().get(EXIF_ORIENTATION, 1) != 1
            return picture.mode, turned
    except (*UNREADABLE, Image.DecompressionBombError):
        return "unreadable", False
