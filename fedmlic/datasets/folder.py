"""A person's own images and one CSV file that says what is in them.

The CSV has a header. ``path`` is required: the image's path below ``root``. Labels come in
one of two forms:

* **list**: a column ``labels`` names what is present, ``cat;dog``; every other label is
  absent. A blank cell says nothing about any label, or with ``blank="absent"`` that none is
  there.
* **wide**: one column per label holds ``1`` or ``true`` (present), ``0`` or ``false`` (absent),
  ``-1`` (unknown), ``-2`` or ``u`` (uncertain) or blank (unknown, or with ``blank="absent"`` absent). An owner
  who annotates some labels only leaves the other columns blank.

``owner`` (any text, blank for nobody) and ``split`` (train, val or test) are optional.
Without ``split``, images are dealt at random: within each owner where there are a few (clinics),
whole owners where there are many (patients); ``split_by`` decides otherwise.

Texts are compared in Unicode's composed form, so one word is one label however it was typed.

Pixels: EXIF orientation is applied; 16-bit grey is divided by 257; transparency is laid over
black; palettes and CMYK are converted; of several frames the first is taken. A file that
cannot be decoded to its end is an error, never a grey half.

What counts as unchanged: the CSV's SHA-256 and, of every image, path, size and time of last
change. The folder's own place does not count, so a copy that keeps times is the same data set.
"""

from __future__ import annotations

import hashlib
import ntpath
import os
import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import numpy as np
from pydantic import Field

from fedmlic.dataset import NO_OWNER, SPLITS, Dataset, Table
from fedmlic.errors import InputError, listing, nearest
from fedmlic.files import stamps_of, stamps_sha256
from fedmlic.formats.csv_rows import lines
from fedmlic.images import Resize, decode
from fedmlic.labels import ABSENT, PRESENT, UNCERTAIN, UNKNOWN
from fedmlic.problems import Problems
from fedmlic.seeds import stream
from fedmlic.sources.groups import SplitBy, deal_within, number_groups, owner_warnings, owners_whole
from fedmlic.sources.headers import read_headers
from fedmlic.sources.label_names import SEPARATORS, check_names, composed, look_alike
from fedmlic.sources.options import Channels, HeldOut, ImageSize, Root, Seed
from fedmlic.sources.place import source_root

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = "2"
RESERVED = ("path", "labels", "owner", "split")
"""Columns that never are labels."""

NUMBERS = ("index", "idx", "id", "row", "#", "nr", "level0", "imageid", "uid")
"""Names, as ``look_alike`` gives them, of columns that number rows and would pass for labels of 0 and 1."""

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
    "true": PRESENT,
    "false": ABSENT,
}
"""What a cell of the wide form may say, besides nothing."""


class _Row(NamedTuple):
    """One line of the CSV: its number and its cells by column, stripped."""

    line: int
    cells: dict[str, str]


class _Sheet(NamedTuple):
    """The CSV file.

    Attributes:
        path: where it lies.
        columns: their names, in order, without those left out.
        rows: its lines below the header.
        sha256: of its bytes.
        left_out: columns without a name that hold nothing, or a number of each line.
    """

    path: Path
    columns: list[str]
    rows: list[_Row]
    sha256: str
    left_out: list[str]

    @property
    def wide(self) -> bool:
        """Whether there is a column per label."""
        return "labels" not in self.columns


FOREIGN = {
    b"PK\x03\x04": "an Excel workbook or another ZIP file",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"\xff\xfe": "text in UTF-16",
    b"\xfe\xff": "text in UTF-16",
    b"PAR1": "a Parquet file",
    b"{": "JSON",
    b"[": "JSON",
    b"<": "HTML or XML",
}
"""What files that are given for a CSV begin with."""


def _read_csv(path: Path, delimiter: str) -> _Sheet:
    if not path.is_file():
        others = ", ".join(sorted(p.name for p in path.parent.glob("*.csv"))[:5]) or "no CSV file"
        msg = f"Expected a table of labels at {path}, got {others} there. Create it or give its name as csv=..."
        raise InputError(msg)
    content = path.read_bytes()
    start = content.removeprefix(b"\xef\xbb\xbf").lstrip()
    foreign = next((what for mark, what in FOREIGN.items() if start.startswith(mark)), None)
    if foreign is not None:
        msg = (
            f"Expected {path} to be a CSV file in UTF-8, got {foreign}. Export it as 'CSV UTF-8' with a header: "
            "path,labels or path and a column per label."
        )
        raise InputError(msg)
    _check_encoding(path, content)
    numbered = list(lines(path, delimiter))
    if len(numbered) < 2:
        found = "a header alone" if numbered else "an empty file"
        msg = f"Expected {path} to hold a header and at least one image, got {found}. Add one line per image."
        raise InputError(msg)
    header = [composed(name) for name in numbered[0][1]]
    wrong = [f"line {n}: {len(cells)} cells" for n, cells in numbered[1:] if len(cells) != len(header)]
    if len(header) > 1 and wrong:
        expected = f"Expected every line of {path} to have {len(header)} cells, as its header has"
        raise listing(expected, wrong)
    kept, left_out = _kept_columns(header, [cells for _, cells in numbered[1:]])
    columns = [header[place] for place in kept]
    _check_columns(path, columns, delimiter)
    rows = [_Row(n, dict(zip(columns, [cells[place] for place in kept], strict=True))) for n, cells in numbered[1:]]
    return _Sheet(path, columns, rows, hashlib.sha256(content).hexdigest(), left_out)


def _check_encoding(path: Path, content: bytes) -> None:
    try:
        content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        msg = (
            f"Expected {path} to be a CSV file in UTF-8, got byte 0x{content[error.start]:02x} on line {line}, which "
            "is none. Save it again as 'CSV UTF-8'."
        )
        raise InputError(msg) from error


def _kept_columns(header: list[str], rows: list[list[str]]) -> tuple[list[int], list[str]]:
    """Places of the columns that count, and a text for each that does not.

    A column without a name is left out if it is blank, or if it numbers the lines as pandas does.
    """
    kept, left_out = [], []
    for place, name in enumerate(header):
        cells = {row[place] for row in rows if place < len(row)}
        numbers = len(cells) == len(rows) and all(cell.isdecimal() for cell in cells)
        if not _is_unnamed(name) or not (cells <= {""} or numbers):
            kept.append(place)
        elif numbers:
            left_out.append(name or f"column {place + 1} without a name")
    return kept, left_out


def _is_unnamed(name: str) -> bool:
    return not name or re.fullmatch(r"Unnamed: \d+(_level_\d+)?", name) is not None


def _check_columns(path: Path, columns: list[str], delimiter: str) -> None:
    if "path" not in columns:
        usual = next((mark for mark in (";", ",", "\t", "|") if mark != delimiter and mark in "".join(columns)), None)
        hint = f", here surely delimiter={usual!r}" if usual and len(columns) == 1 else ""
        msg = (
            f"Expected {path} to have a column 'path', got {columns} when cells are separated by {delimiter!r}. "
            f"Rename the column, or give the right delimiter=...{hint}."
        )
        raise InputError(msg)
    double = sorted({column for column in columns if columns.count(column) > 1 or _is_unnamed(column)})
    if double:
        msg = f"Expected columns of {path} to have different names, got {double} more than once or blank. Rename them."
        raise InputError(msg)


def _vocabulary(sheet: _Sheet, chosen: list[str] | None, separator: str) -> tuple[list[str], list[str]]:
    """Label names, in order: as chosen, or sorted (list form), or as the columns stand (wide form); and warnings."""
    mentioned = [] if sheet.wide else [_mentioned(row, separator) for row in sheet.rows]
    found = [column for column in sheet.columns if column not in RESERVED]
    if not sheet.wide:
        found = sorted({label for labels in mentioned for label in labels})
    names = found if chosen is None else [composed(name) for name in chosen]
    if not names or len(set(names)) != len(names) or not all(names):
        do = f"Give {sheet.path.name} a column 'labels' or one column per label."
        if chosen is not None:
            do = "Name every label in label_names once, and none that is blank."
        msg = f"Expected different label names, at least one, got {names}. {do}"
        raise InputError(msg)
    _check_reserved(sheet, names if chosen is not None else [])
    missing = [name for name in names if name not in found] if sheet.wide else []
    if missing:
        wrong = [f"{name!r}: {nearest(name, found)}" for name in missing]
        expected = f"Expected {sheet.path} to have a column for every name in label_names"
        raise listing(expected, wrong)
    if chosen is not None:
        return names, []
    divided = sheet.wide or any(len(labels) > 1 for labels in mentioned)
    _check_vectors(sheet, mentioned)
    check_names(names, str(sheet.path), divided=divided, separable="" if sheet.wide else "separator")
    odd = [name for name in names if any(mark in name for mark in SEPARATORS)]
    return names, [f"labels kept as one name each: {', '.join(map(repr, odd[:8]))}"] if odd else []


def _check_reserved(sheet: _Sheet, chosen: list[str]) -> None:
    """Refuse columns such as ``Split``, which nobody would read."""
    meant = {look_alike(name): name for name in RESERVED}
    wrong = [
        f"{column!r}: Did you mean {meant[look_alike(column)]!r}?"
        for column in sheet.columns
        if column not in {*RESERVED, *chosen} and look_alike(column) in meant
    ]
    if sheet.wide and not chosen:
        numbers = [column for column in sheet.columns if look_alike(column) in NUMBERS]
        wrong += [
            f"{column!r}: does it number the rows? label_names=[...] says which columns are labels"
            for column in numbers
        ]
    if wrong:
        expected = f"Expected columns of {sheet.path} that are no labels to be named as they are known"
        raise listing(expected, wrong)


def _check_vectors(sheet: _Sheet, mentioned: list[list[str]]) -> None:
    """Refuse lists of states (``1;0;0``), which would pass for lists of labels called 0 and 1."""
    states = {"0", "1", "-1", "-2", "0.0", "1.0"}
    several = [labels for labels in mentioned if len(labels) > 1]
    if several and all(label in states for labels in mentioned for label in labels):
        msg = (
            f"Expected column 'labels' of {sheet.path} to name the labels that are present, got states such as "
            f"{several[0]}. Make one column per label instead, or give label_names=[...] if labels are called so."
        )
        raise InputError(msg)


def _mentioned(row: _Row, separator: str) -> list[str]:
    return [composed(label) for label in row.cells["labels"].split(separator) if label.strip()]


class _Images:
    """Finds images below the root as tables name them.

    A path may be absolute where it leads into the root, and may be in another Unicode form than
    the file's own name, where that leaves no doubt.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._bases = {os.path.abspath(root), os.path.realpath(root)}  # noqa: PTH100  (resolve() follows links)
        self._names: dict[Path, dict[str, list[str]]] = {}

    def below(self, text: str) -> str | None:
        """The path below the root with forward slashes; ``None`` if it leads elsewhere."""
        given = text.replace("\\", "/")
        if posixpath.isabs(given) or ntpath.splitdrive(given)[0]:
            whole = posixpath.normpath(given)
            bases = [base.replace("\\", "/").rstrip("/") + "/" for base in self._bases]
            inside = [whole.removeprefix(base) for base in bases if whole.startswith(base)]
            return inside[0] if inside else None
        path = posixpath.normpath(given)
        return None if path.split("/")[0] in {".", ".."} else path

    def find(self, path: str) -> Path | None:
        """The file at a path below the root, or ``None``."""
        place = self._root / path
        if _is_file(place):
            return place
        place = self._root
        for part in path.split("/"):
            if not os.path.exists(place / part):  # noqa: PTH110
                same = self._listing(place, _nfc).get(_nfc(part), [])
                if len(same) != 1:
                    return None
                part = same[0]  # noqa: PLW2901
            place /= part
        return place if place.is_file() else None

    def hint(self, path: str) -> str:
        """What may have been meant by a path that leads to no file; blank if nothing comes close."""
        head, name = posixpath.split(path)
        folder = self._root / head
        known = [*self._listing(folder, str.lower).get(name.lower(), []), *self._listing(folder, _stem).get(name, [])]
        near = [posixpath.join(head, other) for other in known if _is_file(folder / other)][:1]
        near += [
            tail for tail in ("/".join(path.split("/")[n:]) for n in (1, 2)) if tail and _is_file(self._root / tail)
        ]
        return f". Did you mean {near[0]!r}?" if near else ""

    def _listing(self, folder: Path, form: Callable[[str], str]) -> dict[str, list[str]]:
        key = folder / form.__name__
        if key not in self._names:
            names: dict[str, list[str]] = {}
            for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:  # noqa: PTH112, PTH208
                names.setdefault(form(name), []).append(name)
            self._names[key] = names
        return self._names[key]


def _is_file(path: Path) -> bool:
    """Whether a file is there; unlike ``Path.is_file`` also for names that are too long for one."""
    return os.path.isfile(path)  # noqa: PTH113


def _stem(name: str) -> str:
    return posixpath.splitext(name)[0]


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


class _Image(NamedTuple):
    """A path as the table names it, and its file; blank where there is none."""

    path: str
    file: Path


NOWHERE = _Image("", Path())

MAX_CELLS = 3
"""Wrong cells of one column that are named one by one."""


@dataclass
class _Reader:
    """Turns rows into arrays and collects what is wrong on the way."""

    sheet: _Sheet
    images: _Images
    names: list[str]
    separator: str
    blank: int
    problems: list[tuple[int, str]] = field(default_factory=list)

    def wrong(self, row: _Row, what: str) -> None:
        """Note a problem of one line."""
        self.problems.append((row.line, what))

    def image(self, row: _Row) -> _Image:
        """The image of a row, or ``NOWHERE``."""
        text = row.cells["path"]
        path = self.images.below(text) if text else None
        file = self.images.find(path) if path is not None else None
        if not text:
            self.wrong(row, "no path")
        elif path is None:
            self.wrong(row, f"{text!r} is not a path below the folder")
        elif file is None:
            shown = path if len(path) <= 200 else f"{path[:200]}..."
            self.wrong(row, f"no image {shown!r}{self.images.hint(path)}")
        else:
            return _Image(path, file)
        return NOWHERE

    def labels(self) -> NDArray[np.int8]:
        """int8 ``[images, labels]``, one state per label."""
        rows = self.sheet.rows
        if not self.sheet.wide:
            return np.array([self._listed(row) for row in rows], dtype=np.int8).reshape(len(rows), len(self.names))
        return np.stack([self._column(name) for name in self.names], axis=1)

    def _listed(self, row: _Row) -> list[int]:
        mentioned = _mentioned(row, self.separator)
        for label in mentioned:
            if label not in self.names:
                self.wrong(row, f"label {label!r}. {nearest(label, self.names)}")
        others = ABSENT if mentioned else self.blank
        return [PRESENT if name in mentioned else others for name in self.names]

    def _column(self, name: str) -> NDArray[np.int8]:
        states, wrong = [], []
        for row in self.sheet.rows:
            text = row.cells[name].lower()
            if text and text not in WIDE_VALUES:
                wrong.append(row)
            states.append(WIDE_VALUES.get(text, self.blank))
        allowed = "1, 0, -1, -2, u or blank"
        for row in wrong[:1] if len(wrong) > MAX_CELLS else wrong:
            self.wrong(row, f"{row.cells[name]!r} in column {name!r}, which may say {allowed}")
        if len(wrong) > MAX_CELLS:
            self.wrong(
                wrong[1],
                f"and {len(wrong) - 1} more such cells in column {name!r}. If it is no label, name those that are: "
                "label_names=[...]; names of labels go into one column 'labels'",
            )
        return np.array(states, dtype=np.int8)

    def split(self, row: _Row) -> str:
        """The row's split, as its column says."""
        split = row.cells["split"].lower()
        if split not in SPLITS:
            self.wrong(row, f"split {row.cells['split']!r}. {nearest(split, SPLITS)}")
        return split

    def finish(self, images: list[_Image], problems: Problems) -> None:
        """Look for images named twice, then pass on what was wrong, in the order of the lines."""
        times = Counter(image.file for image in images if image != NOWHERE)
        for row, image in zip(self.sheet.rows, images, strict=True):
            if times[image.file] > 1:
                self.wrong(row, f"{image.path!r} appears {times[image.file]} times")
        for line, what in sorted(self.problems):
            problems.add(f"line {line}: {what}")


def _deal(
    paths: list[str], owners: NDArray[np.int64], fractions: tuple[float, float], seed: int, *, whole: bool
) -> list[str]:
    """Random splits, of whole owners or within each owner. The order of the rows does not matter."""
    if whole:
        splits = _deal_owners(paths, owners, fractions, seed)
    else:
        shares = dict(zip(SPLITS[1:], fractions, strict=True))
        splits = deal_within(["train"] * len(paths), owners, paths, shares, seed, "folder/splits")
    wanted = dict(zip(SPLITS, (1.0, *fractions), strict=True))
    empty = [split for split in SPLITS if wanted[split] > 0 and split not in splits]
    if empty:
        hint = ", or split_by='image'" if whole and owners.max() != NO_OWNER else ""
        what = f"{len(np.unique(owners))} owners" if whole else f"{len(paths)} images"
        msg = (
            f"Expected {what} to fill every split, got none left for {empty}. "
            f"Add a column 'split', or set val_fraction and test_fraction{hint}."
        )
        raise InputError(msg)
    return splits


def _deal_owners(paths: list[str], owners: NDArray[np.int64], fractions: tuple[float, float], seed: int) -> list[str]:
    """Whole owners (or single images of nobody) go where most images are missing."""
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
    split_by: SplitBy = "auto",
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
            error; in the wide form other columns are left out. Names that are listed here are
            meant: without them, names that look alike or like several labels are refused.
        image_size: height and width of stored images, pixels.
        resize: ``squash`` changes the aspect, ``crop`` cuts the longer side around the
            centre, ``pad`` adds black bars.
        channels: 3 (colour) or 1 (grey).
        val_fraction: share of images for validation, where the table has no ``split``.
        test_fraction: share of images for testing, where the table has no ``split``.
        split_by: ``owner`` puts all images of an owner into one split, ``image`` gives each owner
            its share of every split; ``auto`` is ``owner`` for 20 owners or more, else ``image``.
        seed: of that random split.

    Raises:
        InputError: the table or what it names is wrong; all problems at once.
    """
    place = source_root("folder", root, csv)
    sheet = _read_csv(place / csv, delimiter)
    problems = Problems(f"Expected {sheet.path} to describe existing images correctly")
    names, warnings = problems.attempt(_vocabulary, sheet, label_names, separator) or ([], [])
    reader = _Reader(sheet, _Images(place), names, separator, UNKNOWN if blank == "unknown" else ABSENT)
    images = [reader.image(row) for row in sheet.rows]
    labels = reader.labels() if names else np.empty((len(images), 0), dtype=np.int8)
    splits = [reader.split(row) for row in sheet.rows] if "split" in sheet.columns else []
    reader.finish(images, problems)
    problems.finish()
    paths, files = [image.path for image in images], [image.file for image in images]
    owners, owner_names = number_groups([composed(row.cells.get("owner", "")) for row in sheet.rows])
    dealt: dict[str, object] = {}
    if not splits:
        # Images of nobody are dealt one by one either way.
        whole = owners_whole(split_by, owners) or not owner_names
        splits = _deal(paths, owners, (val_fraction, test_fraction), seed, whole=whole)
        split_as = {"split_by": "owner" if whole else "image"} if owner_names else {}
        dealt = {"fractions": [val_fraction, test_fraction], "seed": seed, **split_as}
    unused = [column for column in sheet.columns if column not in {*RESERVED, *names}] + sheet.left_out
    if unused and label_names is None:
        warnings.append(f"columns of {csv} that are not read: {', '.join(map(repr, unused[:8]))}")
    warnings += owner_warnings(owner_names, owners, splits if dealt else [], split_by)

    def table() -> Table:
        headers = read_headers(files)
        report = {**headers.report, "several_frames": headers.several_frames, "unused_columns": unused}
        report |= {"warnings": warnings} if warnings else {}
        return Table(paths, splits, labels, owners, None, [str(file) for file in files], owner_names, report)

    options = {"delimiter": delimiter, "separator": separator, "blank": blank, "resize": resize}
    return Dataset(
        name="folder",
        version=VERSION,
        identity={**options, **dealt, "label_names": names, "size": image_size, "channels": channels}
        | {"csv_sha256": sheet.sha256, "files_sha256": stamps_sha256(stamps_of(zip(paths, files, strict=True)))},
        label_names=tuple(names),
        image_shape=(image_size, image_size, channels),
        table=table,
        image=lambda row: decode(files[row], image_size, channels, resize),
        licence="yours",
        own=True,
    )
