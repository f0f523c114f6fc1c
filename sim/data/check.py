"""Verify a download: everything that is wrong with it at once, and nothing built."""

from __future__ import annotations

import importlib.util
import inspect
import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from pydantic import ValidationError

from fedmlic import spec
from fedmlic.corpus import num_cores
from fedmlic.dataset import SPLITS, Dataset, Table
from fedmlic.errors import InputError
from fedmlic.formats.dicom import hounsfield
from fedmlic.images import decode, read_header
from fedmlic.labels import PRESENT, STATES
from fedmlic.pixels import equal_images, hash_pixels
from sim.data.prepare import Source, build_dataset, deviations, duplicate_warnings, row_blocks, untrained_warnings

if TYPE_CHECKING:
    from sim.data.prepare import Watch

IMAGE_SUFFIXES = frozenset(
    {
        ".avif",
        ".bmp",
        ".dcm",
        ".gif",
        ".heic",
        ".jp2",
        ".jpeg",
        ".jpg",
        ".pgm",
        ".png",
        ".ppm",
        ".tif",
        ".tiff",
        ".webp",
    }
)
"""Ends of file names that are counted as images when a download holds more than the data set uses."""

LOOK_IMAGES = 64
"""Images that a check decodes per task."""


@dataclass
class _Findings:
    """What a check has found so far."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    modes: Counter[str] = field(default_factory=Counter)
    counts: dict[str, Any] = field(default_factory=dict)
    hashes: list[int] = field(default_factory=list)
    turned: int = 0
    several_frames: int = 0
    missing: int = 0
    undecodable: int = 0


class _Looked(NamedTuple):
    """One image after it was decoded: its header where it is a file, a hash of its pixels, what is wrong."""

    header: Any
    hash: int
    problem: str
    missing: bool


def check_data(source: Source, watch: Watch | None = None, workers: int | None = None) -> dict[str, Any]:
    """Verify a download against its format and published counts, without building anything.

    Every image is decoded. Where the tables are already wrong, every image file below the root is
    decoded instead, so that one call shows everything.

    Returns:
        JSON values; ``problems`` holds all of them, ``ok`` says that there is none.

    Raises:
        InputError: wrong options; problems of the download are returned instead.
    """
    found = _Findings()
    table: Table | None = None
    dataset: Dataset | None = None
    try:
        dataset = build_dataset(source)
        table = dataset.table()
    except InputError as error:
        if isinstance(error.__context__, ValidationError) or not _arguments_known(source):
            raise
        found.problems += error.problems or [str(error)]
    files = _image_files(source.root)
    if dataset is not None and table is not None:
        _look_at_rows(found, dataset, table, watch, workers)
        _compare(found, dataset, table)
        used = {_plain_path(Path(text)) for text in table.sources}
        found.counts["extra_files"] = len(files - used) if used else 0
    else:
        _look_at_files(found, sorted(files), watch, workers)
    return {
        "dataset": str(source.spec),
        "ok": not found.problems,
        "num_problems": len(found.problems),
        "num_missing": found.missing,
        "num_undecodable": found.undecodable,
        **found.counts,
        "modes": dict(sorted(found.modes.items())),
        "exif_turned": found.turned,
        "several_frames": found.several_frames,
        "problems": found.problems,
        "warnings": found.warnings,
    }


def _arguments_known(source: Source) -> bool:
    return set(source.spec.arguments) <= set(inspect.signature(spec.factory("dataset", source.spec.name)).parameters)


def _plain_path(path: Path) -> str:
    return os.path.normpath(path.expanduser().absolute())


def _image_files(root: Path | None) -> set[str]:
    """Every file below the root that is an image by its name."""
    if root is None or not root.is_dir():
        return set()
    found = set()
    for folder, _, names in os.walk(root.absolute()):
        found |= {
            os.path.normpath(os.path.join(folder, name))  # noqa: PTH118  (half a million paths)
            for name in names
            if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122
        }
    return found


def _look_at_rows(found: _Findings, dataset: Dataset, table: Table, watch: Watch | None, workers: int | None) -> None:
    def look(row: int) -> _Looked:
        file = Path(table.sources[row]) if table.sources else None
        where = str(file) if file is not None else table.image_ids[row]
        header = None
        try:
            header = read_header(file) if file is not None and file.is_file() else None
            return _Looked(header, hash_pixels(dataset.image(row)), "", missing=False)
        except Exception as error:  # noqa: BLE001  (one file that a decoder trips over must not hide the others)
            # Of a source that keeps images inside of other files, "FILE, row 3" is no file either.
            if isinstance(error.__cause__, FileNotFoundError):
                return _Looked(None, 0, f"{where}: no such file", missing=True)
            return _Looked(header, 0, _problem(where, error), missing=False)

    good = _look_at_all(found, look, len(table.image_ids), watch, workers)
    ids, splits = ([values[row] for row in good] for values in (table.image_ids, table.splits))
    duplicates = equal_images(ids, splits, np.array(found.hashes, dtype=np.uint64))
    found.counts["num_duplicates"] = duplicates["images"]
    found.warnings += duplicate_warnings(duplicates)


def _problem(where: str, error: Exception) -> str:
    """One line that begins with the file's name."""
    text = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
    text = " ".join(text.split())
    return text if text.startswith(where) else f"{where}: {text}"


def _look_at_files(found: _Findings, files: list[str], watch: Watch | None, workers: int | None) -> None:
    def look(place: int) -> _Looked:
        path = Path(files[place])
        dicom = path.suffix.lower() == ".dcm"
        if dicom and importlib.util.find_spec("pydicom") is None:
            return _Looked(None, 0, "", missing=False)
        header = None
        try:
            if dicom:
                hounsfield(path, fix_intercept=False)
                return _Looked(None, 0, "", missing=False)
            header = read_header(path)
            decode(path, 32, 3, "squash")
        except Exception as error:  # noqa: BLE001  (as above)
            return _Looked(header, 0, _problem(str(path), error), missing=False)
        return _Looked(header, 0, "", missing=False)

    _look_at_all(found, look, len(files), watch, workers)


def _look_at_all(
    found: _Findings, look: Callable[[int], _Looked], total: int, watch: Watch | None, workers: int | None
) -> list[int]:
    """Look at every image, several at a time; the places of those that can be read."""
    good: list[int] = []

    def look_at(start: int) -> list[_Looked]:
        return [look(place) for place in range(start, min(start + LOOK_IMAGES, total))]

    with ThreadPoolExecutor(workers or num_cores()) as pool:
        try:
            for start, several in zip(
                range(0, total, LOOK_IMAGES), pool.map(look_at, range(0, total, LOOK_IMAGES)), strict=True
            ):
                for place, looked in enumerate(several, start):
                    _note(found, looked)
                    if not looked.problem:
                        good.append(place)
                        found.hashes.append(looked.hash)
                if watch is not None:
                    watch(start + len(several), total)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return good


def _note(found: _Findings, looked: _Looked) -> None:
    if looked.header is not None:
        found.modes[looked.header.mode] += 1
        found.turned += looked.header.turned
        found.several_frames += looked.header.frames > 1
    if looked.problem:
        found.problems.append(looked.problem)
        found.missing += looked.missing
        found.undecodable += not looked.missing


def _compare(found: _Findings, dataset: Dataset, table: Table) -> None:
    """Counts of the table, beside the published ones."""
    tally = Counter(table.splits)
    splits = {split: tally[split] for split in SPLITS}
    of_split = np.array([SPLITS.index(split) for split in table.splits])
    positives = np.zeros((len(SPLITS), table.labels.shape[1]), dtype=np.int64)
    totals = dict.fromkeys(STATES, 0)
    for rows in row_blocks(range(len(table.splits)), table.labels.shape[1]):
        block = table.labels[rows[0] : rows[-1] + 1]
        for place in range(len(SPLITS)):
            here = of_split[rows[0] : rows[-1] + 1] == place
            positives[place] += np.count_nonzero(block[here] == PRESENT, axis=0)
        for name, state in STATES.items():
            totals[name] += int(np.count_nonzero(block == state))
    found.counts |= {
        "num_images": len(table.image_ids),
        "num_labels": len(dataset.label_names),
        **{f"num_{name}": count for name, count in totals.items()},
        "num_owners": len(np.unique(table.owners[table.owners >= 0])),
        "splits": splits,
        "published": dict(dataset.expected),
    }
    named = dict(zip(dataset.label_names, positives.sum(axis=0).tolist(), strict=True))
    found.warnings += table.report.get("warnings", ())
    found.warnings += deviations(dataset.expected, splits, named)
    if splits["train"]:
        found.warnings += untrained_warnings(dataset.label_names, positives[0], positives[2])
