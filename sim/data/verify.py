"""Compare a corpus, a federation or feature maps with what was written, to the last byte."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fedmlic.corpus import load_corpus, num_cores, open_hashed
from fedmlic.errors import InputError
from fedmlic.files import file_sha256
from fedmlic.stores import PIXELS, check_seal

MB = 1_000_000

MAX_NAMED = 10
"""Damaged images that are named."""

Watch = Callable[[int, int], None]


def verify(folder: Path, watch: Watch | None = None, workers: int | None = None) -> dict[str, Any]:
    """Read every file of a corpus, a federation or feature maps and compare it with its hash.

    A corpus of an earlier version, which holds no hash of its images, gets them if all of it is as it was written.

    Args:
        folder: of a corpus, a federation or feature maps.
        watch: called with (MB read, MB in all).
        workers: threads; one per core up to 8 by default.

    Returns:
        JSON values; ``problems`` holds all of them, ``ok`` says that there is none.

    Raises:
        InputError: the folder is none of these.
    """
    started = time.perf_counter()
    manifest = _manifest(folder)
    problems = [] if "sha256" not in manifest else list(_seal_problems(manifest))
    files: dict[str, Any] = manifest["files"]
    total, done = sum(about["bytes"] for about in files.values()), 0
    with ThreadPoolExecutor(workers or num_cores()) as pool:  # hashing releases Python's lock
        for name, problem in zip(
            files, pool.map(lambda name: _problem(folder / name, files[name]), files), strict=True
        ):
            done += files[name]["bytes"]
            problems += [problem] if problem else []
            if watch is not None and files[name]["bytes"] >= MB:
                watch(done // MB, total // MB)
    damaged = _damaged_images(folder) if any(problem.split()[0] in PIXELS.values() for problem in problems) else []
    added = False
    if not problems and manifest.get("schema") == "fedmlic-corpus":
        corpus = load_corpus(folder)
        added = not corpus.images.hashed and open_hashed(corpus).images.hashed
    return {
        "folder": str(folder.absolute()),
        "ok": not problems,
        "files": len(files),
        "bytes": total,
        "seconds": round(time.perf_counter() - started, 3),
        "hashes_added": added,
        "damaged_images": damaged,
        "problems": problems,
    }


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if all({"bytes", "sha256"} <= about.keys() for about in manifest["files"].values()):
            return manifest
        reason = "a manifest without hashes, as earlier versions wrote it"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
    msg = (
        f"Expected {folder} to be a corpus, a federation or feature maps, got {reason}. Check the path, or delete the "
        "folder to have it built again."
    )
    raise InputError(msg)


def _seal_problems(manifest: dict[str, Any]) -> Iterator[str]:
    try:
        check_seal(manifest)
    except ValueError as error:
        yield str(error)


def _problem(path: Path, about: dict[str, Any]) -> str:
    """What is wrong with a file, or nothing."""
    try:
        size = path.stat().st_size
        if size != about["bytes"]:
            return f"{path.name} has {size} bytes where {about['bytes']} were written"
        return "" if file_sha256(path) == about["sha256"] else f"{path.name} was changed after it was written"
    except OSError as error:
        return f"{path.name} cannot be read: {error}"


def _damaged_images(folder: Path) -> list[str]:
    """Ids of the first images whose pixels are not what was written, where the rest of the corpus can be read."""
    from fedmlic.corpus import damaged_rows

    try:
        rows = damaged_rows(folder)
        ids = json.loads((folder / "image_ids.json").read_text(encoding="utf-8"))
        return [ids[row] for row in rows[:MAX_NAMED]]
    except (OSError, ValueError, KeyError, IndexError, InputError):
        return []
