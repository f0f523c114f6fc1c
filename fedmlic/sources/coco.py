"""What data sets in COCO's format have in common: from annotation files and image folders to a ``Dataset``.

COCO 2014 and 2017, COCO-MLT and LVIS differ in their files, in their labels and in what an
unlisted category means; how annotations become label states, boxes and splits is here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from fedmlic.dataset import CROWD_ONLY, NO_OWNER, NOT_EXHAUSTIVE, Dataset, Flags, Objects, Table
from fedmlic.errors import InputError
from fedmlic.files import IMAGES, file_sha256, list_files, stamps_sha256
from fedmlic.formats.coco_json import Category, Instances, read_categories, read_instances
from fedmlic.images import Resize, decode
from fedmlic.labels import ABSENT, PRESENT, UNKNOWN
from fedmlic.problems import Problems
from fedmlic.sources.groups import deal
from fedmlic.sources.headers import read_headers
from fedmlic.sources.label_names import choose_labels
from fedmlic.sources.objects import agree_on_sizes, outside_warnings, size_warnings, stored_objects

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]
    Bools = NDArray[np.bool_]

VERSION = "1"

Crowd = Literal["present", "ignore", "absent"]
Degenerate = Literal["present", "drop"]
RowOrder = Literal["id", "cole"]

ID_DIGITS = 12
"""Digits of an image id in COCO's file names."""


@dataclass(frozen=True)
class Part:
    """One annotation file and the split that its images go to.

    Attributes:
        annotations: the file.
        folder: where an image lies whose file name has no folder of its own.
        split: ``"train"`` (a share of which validates) or ``"test"``.
        only: ids of the images to take; None for all.
    """

    annotations: Path
    folder: str
    split: Literal["train", "test"]
    only: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Pixels:
    """How images are stored."""

    image_size: int
    resize: Resize
    channels: Literal[1, 3]
    upright: bool


@dataclass(frozen=True)
class Protocol:
    """What the field disagrees on.

    Attributes:
        val_fraction: share of the training images that validate.
        seed: of that draw.
        label_names: the labels and their order; None for all.
        crowd: state of a label that only crowd regions show.
        degenerate: whether annotations without an area count.
        drop_unlabelled: leave out images without any annotation of the labels.
        row_order: ``"id"`` sorts image ids as numbers, ``"cole"`` as text.
        unlisted: state of a label that the source does not mention.
    """

    val_fraction: float
    seed: int
    label_names: list[str] | None = None
    crowd: Crowd = "present"
    degenerate: Degenerate = "present"
    drop_unlabelled: bool = False
    row_order: RowOrder = "id"
    unlisted: Literal[0, -1] = ABSENT


@dataclass(frozen=True)
class Source:
    """A data set in COCO's format.

    Attributes:
        name: the factory's name.
        licence: one line.
        folders: the image folders by name.
        parts: the annotation files.
        group_of: the coarser label or group of a category, or blank.
        wanted: whether a category is a label.
        fault_of: what is wrong with a category beyond COCO's rules, or blank.
        partial: whether image records say which categories are absent and which not exhaustive.
        lists: further files that decide the content.
    """

    name: str
    licence: str
    folders: Mapping[str, Path]
    parts: tuple[Part, ...]
    group_of: Callable[[Category], str] = lambda category: category.text("supercategory")
    wanted: Callable[[Category], bool] = lambda _: True
    fault_of: Callable[[Category], str] = lambda _: ""
    partial: bool = False
    lists: tuple[Path, ...] = ()


class _Rows(NamedTuple):
    """All images of all parts in table order, with what is known of each annotation."""

    ids: Ints
    files: list[str]
    splits: list[str]
    labels: NDArray[np.int8]
    flags: Flags
    objects: Objects
    sizes: NDArray[np.float64]
    report: dict[str, Any]


def coco_problems(name: str) -> Problems:
    """The collector of a data set in COCO's format."""
    expected = f"Expected the annotations of data set {name} to describe existing images correctly"
    return Problems(expected, complete=True)


def coco_dataset(
    source: Source,
    pixels: Pixels,
    protocol: Protocol,
    expected: Mapping[str, int] | None = None,
    problems: Problems | None = None,
) -> Dataset:
    """The data set of a source; annotation files are read when its table or an image is asked for.

    Args:
        source: where it is and what it means.
        pixels: how images are stored.
        protocol: what the user chose.
        expected: published counts.
        problems: what is wrong already. If there is anything, or with label names or categories,
            all files that are there are read at once.

    Raises:
        InputError: everything that is wrong, all problems at once.
    """
    problems = coco_problems(source.name) if problems is None else problems
    listed = {name: list_files(folder, suffixes=IMAGES) for name, folder in source.folders.items() if folder.is_dir()}
    stats = {f"{folder}/{file}": stat for folder, files in listed.items() for file, stat in files.items()}
    categories = _categories(source, problems)
    columns = problems.attempt(_columns, source, protocol, categories) or list(categories)
    if problems:
        there = {name for name, folder in source.folders.items() if folder.exists()}
        _read_parts(_Reader(source, protocol, categories, columns, there, set(stats), problems))
        problems.finish()
    names = tuple(protocol.label_names or [category.name for category in columns])
    rows = functools.cache(lambda: _read(source, protocol, categories, columns, set(stats)))

    def path(file: str) -> Path:
        folder, _, name = file.partition("/")
        return source.folders[folder] / name

    identity = {
        "options": {**vars(protocol), **vars(pixels)},
        "label_names": list(names),
        "parts": [[part.split, part.folder, part.only is not None] for part in source.parts],
        "annotations_sha256": [file_sha256(file) for file in (*(p.annotations for p in source.parts), *source.lists)],
        "files_sha256": stamps_sha256(stats),
    }
    parents = tuple(source.group_of(category) for category in columns)
    return Dataset(
        name=source.name,
        version=VERSION,
        identity=identity,
        label_names=names,
        image_shape=(pixels.image_size, pixels.image_size, pixels.channels),
        table=lambda: _table(rows(), [path(file) for file in rows().files], pixels, protocol),
        image=lambda row: decode(
            path(rows().files[row]), pixels.image_size, pixels.channels, pixels.resize, upright=pixels.upright
        ),
        licence=source.licence,
        label_ids=tuple(str(category.id) for category in columns),
        parents=parents if all(parents) else (),
        expected=expected or {},
    )


def _categories(source: Source, problems: Problems) -> tuple[Category, ...]:
    """The categories, which all parts must share; those of the first part that says them."""
    known: dict[Path, tuple[Category, ...]] = {}
    for file in (part.annotations for part in source.parts if part.annotations.exists()):
        if (found := problems.attempt(read_categories, file)) is not None:
            known[file] = found
            faults = [(category, source.fault_of(category)) for category in found]
            for category, fault in faults:
                if fault:
                    problems.add(f"{file.name}: category {category.id} ({category.name!r}): {fault}")
    files = list(known)
    for file in files[1:]:
        if [category[:2] for category in known[file]] != [category[:2] for category in known[files[0]]]:
            ids = sorted({category[:2] for category in known[file]} ^ {category[:2] for category in known[files[0]]})
            problems.note(
                f"Expected {file} to describe the categories of {files[0]}, "
                f"got {len(ids)} others, first {ids[:4]}. Take both files from one release."
            )
    return known[files[0]] if files else ()


def _columns(source: Source, protocol: Protocol, categories: tuple[Category, ...]) -> list[Category]:
    """The categories that are labels, in order."""
    if not categories:
        return []
    wanted = [category for category in categories if source.wanted(category)]
    places = choose_labels(protocol.label_names, [category.name for category in wanted], source.name)
    return [wanted[place] for place in places]


class _Entries(NamedTuple):
    """Entries of a label matrix, each as row times labels plus column.

    Attributes:
        annotated: int64 ``[annotations]``.
        crowd: bool ``[annotations]``.
        negative: int64, known to be absent.
        not_exhaustive: int64, with unmarked instances.
    """

    annotated: Ints
    crowd: Bools
    negative: Ints
    not_exhaustive: Ints


@dataclass
class _Reader:
    """Goes through the parts and collects what is wrong on the way."""

    source: Source
    protocol: Protocol
    categories: tuple[Category, ...]
    columns: list[Category]
    folders: set[str]
    present_files: set[str]
    problems: Problems

    def file(self, part: Part, named: str) -> str:
        """``folder/name`` of an image as it lies on disk, or blank."""
        *folders, name = named.split("/")
        folder = folders[-1] if folders and folders[-1] in self.source.folders else part.folder
        # LVIS v0.5 gives 2014's names to files that 2017 named by their number alone.
        for candidate in (f"{folder}/{name}", f"{folder}/{name[-(ID_DIGITS + 4) :]}"):
            if candidate in self.present_files:
                return candidate
        if folder in self.folders:
            self.problems.add(f"{part.annotations.name}: {folder}/{name}: no such image")
        return ""

    def chosen(self, part: Part, found: Instances) -> Bools:
        """Which images of a part are taken, as its list says."""
        if part.only is None:
            return np.ones(len(found.image_ids), dtype=np.bool_)
        wanted = np.array(part.only, dtype=np.int64)
        for number in np.setdiff1d(wanted, found.image_ids).tolist() if found.whole else ():
            self.problems.add(f"{part.annotations.name}: image {number} of the list is not described")
        return np.isin(found.image_ids, wanted)

    def columns_of(self, part: Part, found: Instances) -> Ints:
        """Column of every category of a file, or -1."""
        if not self.problems and [c[:2] for c in found.categories] != [c[:2] for c in self.categories]:
            self.problems.add(f"{part.annotations.name}: it changed while it was read")
        place = {category.id: column for column, category in enumerate(self.columns)}
        return np.array([place.get(category.id, -1) for category in found.categories] or [-1], dtype=np.int64)

    def part(self, part: Part) -> _Rows:
        """Everything of one part, in table order."""
        found = read_instances(part.annotations, partial=self.source.partial)
        for problem in found.problems:
            self.problems.note(problem)
        column_of = self.columns_of(part, found)
        column = column_of[found.category]
        taken = self.chosen(part, found)
        dropped = np.zeros(len(taken), dtype=np.bool_)
        if self.protocol.drop_unlabelled:
            dropped = taken & ~np.isin(np.arange(len(taken)), found.row[column >= 0])
        order = _order(found.image_ids, self.protocol.row_order, taken & ~dropped)
        new_row = np.full(len(taken), -1, dtype=np.int64)
        new_row[order] = np.arange(len(order))
        row = new_row[found.row]
        counts = (row >= 0) & (column >= 0)
        if self.protocol.degenerate == "drop":
            counts &= (found.area > 0) & (found.box[:, 2:] >= 1).all(axis=1) & ~found.ignore
        entries = _Entries(
            row[counts] * len(self.columns) + column[counts],
            found.crowd[counts],
            self.keys(found.negative, new_row, column_of),
            self.keys(found.not_exhaustive, new_row, column_of),
        )
        labels, flags = self.states(part, entries, found.image_ids[order])
        chosen = np.flatnonzero(counts)[labels.reshape(-1)[entries.annotated] == PRESENT]
        chosen = chosen[np.argsort(row[chosen], kind="stable")]
        objects = Objects(row[chosen], column[chosen].astype(np.int16), found.box[chosen], found.area[chosen])
        files = [self.file(part, found.files[place]) if found.files[place] else "" for place in order.tolist()]
        report = {
            "unlabelled_dropped": int(dropped.sum()),
            "equal_annotations_dropped": found.duplicates,
            "not_exhaustive_without_annotation": int((labels.reshape(-1)[entries.not_exhaustive] != PRESENT).sum()),
        }
        ids, sizes = found.image_ids[order], found.sizes[order]
        return _Rows(ids, files, [part.split] * len(order), labels, flags, objects, sizes, report)

    def keys(self, pairs: Ints, new_row: Ints, column_of: Ints) -> Ints:
        """Row times labels plus column, of pairs of image and category."""
        row, column = new_row[pairs[:, 0]], column_of[pairs[:, 1]]
        known = (row >= 0) & (column >= 0)
        return row[known] * len(self.columns) + column[known]

    def states(self, part: Part, entries: _Entries, image_ids: Ints) -> tuple[NDArray[np.int8], Flags]:
        """Labels and flags of the images of one part."""
        num_labels = len(self.columns)
        solid = np.unique(entries.annotated[~entries.crowd])
        crowd = np.setdiff1d(entries.annotated[entries.crowd], solid)
        labels = np.full(len(image_ids) * num_labels, self.protocol.unlisted, dtype=np.int8)
        labels[entries.negative] = ABSENT
        labels[crowd] = {"present": PRESENT, "ignore": UNKNOWN, "absent": ABSENT}[self.protocol.crowd]
        labels[solid] = PRESENT
        for key in np.intersect1d(entries.negative, entries.annotated).tolist():
            image, label = image_ids[key // num_labels], self.columns[key % num_labels].name
            self.problems.add(f"{part.annotations.name}: image {image}: {label!r} is annotated and in neg_category_ids")
        flagged = np.union1d(crowd, entries.not_exhaustive)
        bits = CROWD_ONLY * np.isin(flagged, crowd) + NOT_EXHAUSTIVE * np.isin(flagged, entries.not_exhaustive)
        row, label = np.divmod(flagged, num_labels)
        flags = Flags(row, label.astype(np.int16), bits.astype(np.uint8))
        return labels.reshape(len(image_ids), num_labels), flags


def _order(image_ids: Ints, row_order: RowOrder, taken: Bools) -> Ints:
    places = np.flatnonzero(taken)
    if row_order == "cole":
        return places[np.argsort(image_ids[places].astype(np.str_), kind="stable")]
    return places[np.argsort(image_ids[places], kind="stable")]


def _read(
    source: Source,
    protocol: Protocol,
    categories: tuple[Category, ...],
    columns: list[Category],
    present_files: set[str],
) -> _Rows:
    """All parts one after another; ``InputError`` if anything is wrong with any."""
    problems = coco_problems(source.name)
    reader = _Reader(source, protocol, categories, columns, set(source.folders), present_files, problems)
    parts = _read_parts(reader)
    problems.finish()
    starts = np.cumsum([0, *(len(part.ids) for part in parts)])
    rows = _Rows(
        np.concatenate([part.ids for part in parts]),
        [file for part in parts for file in part.files],
        [split for part in parts for split in part.splits],
        np.concatenate([part.labels for part in parts]),
        Flags(*_joined([part.flags for part in parts], starts)),
        Objects(*_joined([part.objects for part in parts], starts)),
        np.concatenate([part.sizes for part in parts]),
        {key: sum(part.report[key] for part in parts) for key in parts[0].report},
    )
    rows.report["nothing_known"] = int((rows.labels < 0).all(axis=1).sum())
    rows.report["unused_files"] = len(present_files - set(rows.files))
    return rows._replace(splits=_held_out(source, protocol, rows))


def _read_parts(reader: _Reader) -> list[_Rows]:
    """Every part that is there; what is wrong with them, each and together, is noted."""
    there = [part for part in reader.source.parts if part.annotations.exists()]
    parts = [reader.part(part) for part in there]
    for what, names in (("image", [p.ids.tolist() for p in parts]), ("file", [p.files for p in parts])):
        by: dict[Any, list[str]] = {}
        for part, own in zip(there, names, strict=True):
            for name in own:
                by.setdefault(name, []).append(part.annotations.name)
        for name in sorted(name for name, files in by.items() if len(files) > 1 and name != ""):
            where = " and ".join(dict.fromkeys(by[name]))
            reader.problems.add(f"{where}: {what} {name} is described {len(by[name])} times")
    return parts


def _joined(parts: list[Any], starts: Ints) -> list[NDArray[Any]]:
    """The arrays of several parts' entries, with the row numbers of all parts together."""
    arrays = [
        [part.row + start, *(array for name, array in vars(part).items() if name != "row")]
        for part, start in zip(parts, starts[:-1], strict=True)
    ]
    return [np.concatenate(column) for column in zip(*arrays, strict=True)]


def _held_out(source: Source, protocol: Protocol, rows: _Rows) -> list[str]:
    """The splits, after a share of the training images was set aside for validation."""
    if "train" not in rows.splits:
        msg = f"Expected data set {source.name} to hold a training image, got none. Check its annotations."
        raise InputError(msg)
    return deal(rows.splits, rows.ids, {"val": protocol.val_fraction}, protocol.seed, source.name)


def _table(rows: _Rows, files: list[Path], pixels: Pixels, protocol: Protocol) -> Table:
    digits = max(ID_DIGITS, len(str(rows.ids.max())))
    # A corpus sorts ids as text: padded they keep the order of numbers, bare that of Cole's lists.
    ids = [str(number) if protocol.row_order == "cole" else f"{number:0{digits}}" for number in rows.ids.tolist()]
    headers = read_headers(files)
    sizes, differing = agree_on_sizes(rows.sizes, headers.sizes, ids)
    warnings = size_warnings(differing) + outside_warnings(rows.objects, sizes, ids)
    orientations = headers.orientations if pixels.upright else None
    objects = stored_objects(rows.objects, sizes, pixels.image_size, pixels.resize, orientations)
    return Table(
        ids,
        rows.splits,
        rows.labels,
        np.full(len(ids), NO_OWNER, dtype=np.int64),
        objects,
        [str(file) for file in files],
        report={**rows.report, **headers.report, **differing, "warnings": warnings},
        flags=rows.flags if len(rows.flags.row) else None,
    )
