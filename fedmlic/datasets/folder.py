"""A person's own images and one CSV file that says what is in them.

The CSV has a header. ``path`` is required: the image's path below ``root``. Labels come in
one of two forms:

* **list**: a column ``labels`` names what is present, ``cat;dog``; every other label is
  absent. A blank cell says nothing about any label, or with ``blank="absent"`` that none is
  there.
* **wide**: one column per label holds ``1`` (present), ``0`` (absent), ``-1`` (unknown),
  ``-2`` or ``u`` (uncertain) or blank (unknown, or with ``blank="absent"`` absent). An owner
  who annotates some labels only leaves the other columns blank.

``owner`` (any text, blank for nobody) and ``split`` (train, val or test) are optional.
Without ``split``, images are dealt at random, all images of an owner to one split.

Pixels: EXIF orientation is applied; 16-bit grey is divided by 257; transparency is laid over
black; palettes and CMYK are converted; of several frames the first is taken. A file that
cannot be decoded to its end is an error, never a grey half.

What counts as unchanged: the CSV's SHA-256 and, of every image, path, size and time of last
change. The folder's own place does not count, so a copy that keeps times is the same data set.
"""

from __future__ import annotations

import csv
import hashlib
import ntpath
import posixpath
from collections import Counter
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import numpy as np
from pydantic import Field

from fedmlic.dataset import NO_OWNER, SPLITS, Dataset, Table
from fedmlic.errors import InputError, listing, nearest
from fedmlic.files import stamps_of, stamps_sha256
from fedmlic.images import Resize, decode
from fedmlic.labels import ABSENT, PRESENT, UNCERTAIN, UNKNOWN
from fedmlic.seeds import stream
from fedmlic.sources.groups import number_groups
from fedmlic.sources.headers import read_headers
from fedmlic.sources.options import Channels, HeldOut, ImageSize, Root, Seed
from fedmlic.sources.place import source_root

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = "1"
RESERVED = ("path", "labels", "owner", "split")
"""Columns that never are labels."""

WIDE_VALUES = {
    "1": PRESENT,
    "1.0": PRESENT,
    "0": ABSENT,
    "0.0": ABSENT,
    "-1": UNKNOWN,
    "-1.0": UNKNOWN,
    "-2": UNCERTAIN,
    "-2.0": UNCERTAIN,
    "u": UNCERTAIN,
}
"""What a cell of the wide form may say, besides nothing."""


class _Row(NamedTuple):
    """One line of the CSV: its number and its cells by column, stripped."""

    line: int
    cells: dict[str, str]


def _read_csv(path: Path, delimiter: str) -> tuple[list[str], list[_Row], bytes]:
    """Column names, rows and the file's bytes."""
    if not path.is_file():
        others = ", ".join(sorted(p.name for p in path.parent.glob("*.csv"))[:5]) or "no CSV file"
        msg = f"Expected a table of labels at {path}, got {others} there. Create it or give its name as csv=..."
        raise InputError(msg)
    content = path.read_bytes()
    try:
        lines = csv.reader(StringIO(content.decode("utf-8-sig"), newline=""), delimiter=delimiter, strict=True)
        numbered = [(lines.line_num, [cell.strip() for cell in cells]) for cells in lines if any(map(str.strip, cells))]
    except (UnicodeDecodeError, csv.Error) as error:
        msg = f"Expected {path} to be a CSV file in UTF-8, got: {error}. Save it again as 'CSV UTF-8'."
        raise InputError(msg) from error
    if len(numbered) < 2:
        msg = f"Expected {path} to hold a header and at least one image, got {len(numbered)} lines."
        raise InputError(msg)
    columns = numbered[0][1]
    _check_columns(path, columns, delimiter)
    wrong = [f"line {n}: {len(cells)} cells" for n, cells in numbered[1:] if len(cells) != len(columns)]
    if wrong:
        expected = f"Expected every line of {path} to have {len(columns)} cells, as its header has"
        raise listing(expected, wrong)
    return columns, [_Row(n, dict(zip(columns, cells, strict=True))) for n, cells in numbered[1:]], content


def _check_columns(path: Path, columns: list[str], delimiter: str) -> None:
    if "path" not in columns:
        msg = (
            f"Expected {path} to have a column 'path', got {columns} when cells are separated by {delimiter!r}. "
            "Rename the column, or give the right delimiter=..."
        )
        raise InputError(msg)
    double = sorted({column for column in columns if columns.count(column) > 1 or not column})
    if double:
        msg = f"Expected columns of {path} to have different names, got {double} more than once or blank. Rename them."
        raise InputError(msg)


def _vocabulary(
    path: Path, columns: list[str], rows: list[_Row], chosen: list[str] | None, separator: str
) -> list[str]:
    """Label names, in order: as chosen, or sorted (list form), or as the columns stand (wide form)."""
    wide = "labels" not in columns
    if wide:
        found = [column for column in columns if column not in RESERVED]
    else:
        found = sorted({label for row in rows for label in _mentioned(row, separator)})
    names = found if chosen is None else list(chosen)
    if not names or len(set(names)) != len(names) or not all(names):
        msg = (
            f"Expected different label names, at least one, got {names}. "
            f"Give {path.name} a column 'labels' or one column per label."
        )
        raise InputError(msg)
    missing = [name for name in names if name not in found] if wide else []
    if missing:
        wrong = [f"{name!r}: {nearest(name, found)}" for name in missing]
        expected = f"Expected {path} to have a column for every name in label_names"
        raise listing(expected, wrong)
    return names


def _mentioned(row: _Row, separator: str) -> list[str]:
    return [label.strip() for label in row.cells["labels"].split(separator) if label.strip()]


@dataclass
class _Reader:
    """Turns rows into arrays and collects what is wrong on the way."""

    root: Path
    names: list[str]
    separator: str
    blank: int
    problems: list[tuple[int, str]]

    def wrong(self, row: _Row, what: str) -> None:
        """Note a problem of one line."""
        self.problems.append((row.line, what))

    def path(self, row: _Row) -> str:
        """The image's path below the root with forward slashes, or blank if it is none."""
        text = row.cells["path"].replace("\\", "/")
        path = posixpath.normpath(text)
        if not text:
            self.wrong(row, "no path")
        elif posixpath.isabs(text) or ntpath.splitdrive(text)[0] or path.split("/")[0] in {".", ".."}:
            self.wrong(row, f"{row.cells['path']!r} is not a path below the folder")
        elif not (self.root / path).is_file():
            self.wrong(row, f"no image {path!r}")
        else:
            return path
        return ""

    def labels(self, row: _Row) -> list[int]:
        """One state per label."""
        if "labels" in row.cells:
            return self._listed(row)
        return [self._state(row, name) for name in self.names]

    def _listed(self, row: _Row) -> list[int]:
        mentioned = _mentioned(row, self.separator)
        for label in mentioned:
            if label not in self.names:
                self.wrong(row, f"label {label!r}. {nearest(label, self.names)}")
        others = ABSENT if mentioned else self.blank
        return [PRESENT if name in mentioned else others for name in self.names]

    def _state(self, row: _Row, name: str) -> int:
        text = row.cells[name].lower()
        if text and text not in WIDE_VALUES:
            allowed = "1, 0, -1, -2, u or blank"
            self.wrong(row, f"{row.cells[name]!r} in column {name!r}, which may say {allowed}")
        return WIDE_VALUES.get(text, self.blank)

    def split(self, row: _Row) -> str:
        """The row's split, as its column says."""
        split = row.cells["split"].lower()
        if split not in SPLITS:
            self.wrong(row, f"split {row.cells['split']!r}. {nearest(split, SPLITS)}")
        return split

    def finish(self, rows: list[_Row], paths: list[str], table: Path) -> None:
        """Look for images named twice, then raise ``InputError`` if anything was wrong."""
        times = Counter(path for path in paths if path)
        for row, path in zip(rows, paths, strict=True):
            if times[path] > 1:
                self.wrong(row, f"{path!r} appears {times[path]} times")
        if self.problems:
            expected = f"Expected {table} to describe existing images correctly"
            raise listing(expected, [f"line {line}: {what}" for line, what in sorted(self.problems)])


def _deal(paths: list[str], owners: NDArray[np.int64], fractions: tuple[float, float], seed: int) -> list[str]:
    """Random splits: whole owners (or single images of nobody) go where most images are missing.

    The order of the rows does not matter.
    """
    groups: dict[tuple[int, str], list[int]] = {}
    for row, (path, owner) in enumerate(zip(paths, owners.tolist(), strict=True)):
        groups.setdefault((owner, path if owner == NO_OWNER else ""), []).append(row)
    keys = sorted(groups)
    missing = np.array([1 - sum(fractions), *fractions]) * len(paths)
    splits = [""] * len(paths)
    for place in stream(seed, "folder/splits").permutation(len(keys)).tolist():
        rows = groups[keys[place]]
        split = int(missing.argmax())
        missing[split] -= len(rows)
        for row in rows:
            splits[row] = SPLITS[split]
    wanted = dict(zip(SPLITS, (1.0, *fractions), strict=True))
    empty = [split for split in SPLITS if wanted[split] > 0 and split not in splits]
    if empty:
        msg = (
            f"Expected {len(keys)} owners or images to fill every split, got none left for {empty}. "
            "Add a column 'split', or set val_fraction and test_fraction."
        )
        raise InputError(msg)
    return splits


def folder(
    *,
    root: Root,
    csv: Annotated[str, Field(min_length=1)] = "labels.csv",
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] = ",",
    separator: Annotated[str, Field(min_length=1, max_length=1)] = ";",
    blank: Literal["unknown", "absent"] = "unknown",
    label_names: list[str] | None = None,
    image_size: ImageSize = 128,
    resize: Resize = "squash",
    channels: Channels = 3,
    val_fraction: HeldOut = 0.1,
    test_fraction: Annotated[float, Field(ge=0, le=0.5)] = 0.1,
    seed: Seed = 0,
) -> Dataset:
    """Your own images: a folder with a CSV of paths, labels and optionally owners and splits.

    Args:
        root: folder that paths start from; ``~`` is your home.
        csv: name of the table below ``root``, UTF-8 with a header.
        delimiter: between cells of the table.
        separator: between labels of one cell, in the list form.
        blank: what a blank cell means.
        label_names: the labels and their order. In the list form any other label is an
            error; in the wide form other columns are left out.
        image_size: height and width of stored images, pixels.
        resize: ``squash`` changes the aspect, ``crop`` cuts the longer side around the
            centre, ``pad`` adds black bars.
        channels: 3 (colour) or 1 (grey).
        val_fraction: share of images for validation, where the table has no ``split``.
        test_fraction: share of images for testing, where the table has no ``split``.
        seed: of that random split.

    Raises:
        InputError: the table or what it names is wrong; all problems at once.
    """
    place = source_root("folder", root, csv)
    columns, rows, content = _read_csv(place / csv, delimiter)
    names = _vocabulary(place / csv, columns, rows, label_names, separator)
    reader = _Reader(place, names, separator, UNKNOWN if blank == "unknown" else ABSENT, [])
    paths = [reader.path(row) for row in rows]
    labels = np.array([reader.labels(row) for row in rows], dtype=np.int8).reshape(len(rows), len(names))
    splits = [reader.split(row) for row in rows] if "split" in columns else []
    reader.finish(rows, paths, place / csv)
    owners, owner_names = number_groups([row.cells.get("owner", "") for row in rows])
    splits = splits or _deal(paths, owners, (val_fraction, test_fraction), seed)
    files = [place / path for path in paths]
    unused = [column for column in columns if column not in {*RESERVED, *names}]

    def table() -> Table:
        headers = read_headers(files)
        report = {**headers.report, "several_frames": headers.several_frames, "unused_columns": unused}
        return Table(paths, splits, labels, owners, None, [str(file) for file in files], owner_names, report)

    options = {"delimiter": delimiter, "separator": separator, "blank": blank, "resize": resize}
    dealt = {} if "split" in columns else {"fractions": [val_fraction, test_fraction], "seed": seed}
    return Dataset(
        name="folder",
        version=VERSION,
        identity={**options, **dealt, "label_names": names, "size": image_size, "channels": channels}
        | {
            "csv_sha256": hashlib.sha256(content).hexdigest(),
            "files_sha256": stamps_sha256(stamps_of(zip(paths, files, strict=True))),
        },
        label_names=tuple(names),
        image_shape=(image_size, image_size, channels),
        table=table,
        image=lambda row: decode(files[row], image_size, channels, resize),
        licence="yours",
    )
