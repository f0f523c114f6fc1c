"""FLAIR: 429,078 Flickr photographs of 51,414 people, with 17 coarse or 1,628 fine labels.

Every image belongs to the person who took it, and the official splits share no person, so
an owner is a natural client. Labels are complete; each fine label has one coarse parent.

The data come in five layouts, recognised by their files: the downloader's JSON and JPEG files,
Hugging Face's Parquet, two scripts' HDF5 (by user or central), and TFRecord files per user.

Source: Song, Granqvist and Talwar 2022, "FLAIR: Federated Learning Annotated Image
Repository" (arXiv 2207.08869), github.com/apple/ml-flair. Deviation: none known; rows are in
the order of split, person and image, not of the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fedmlic.dataset import SPLITS, Dataset, Table
from fedmlic.errors import InputError, nearest
from fedmlic.files import files_sha256
from fedmlic.formats.flair_files import METADATA, open_flair_files
from fedmlic.formats.flair_hdf5 import SUFFIXES, open_flair_hdf5
from fedmlic.formats.flair_parquet import open_flair_parquet, parquet_files
from fedmlic.formats.flair_records import KINDS, Entries, Layout, Records
from fedmlic.formats.flair_tfrecords import LABEL_INDEX, open_flair_tfrecords
from fedmlic.formats.reading import read_lines
from fedmlic.images import Resize
from fedmlic.problems import Problems
from fedmlic.sources.options import Channels, ImageSize, Root
from fedmlic.sources.place import contents, source_root

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = "1"
RELATIONSHIP = "label_relationship.txt"

COARSE_COUNTS = {
    "animal": 68858,
    "art": 37230,
    "celebration": 3769,
    "equipment": 225862,
    "fire": 3011,
    "food": 110792,
    "games": 1093,
    "interior_room": 32042,
    "light": 11326,
    "liquid": 68677,
    "material": 139733,
    "music": 2571,
    "outdoor": 131322,
    "plant": 123363,
    "recreation": 5651,
    "religion": 866,
    "structure": 228923,
}
"""Coarse labels and the images of each (ml-flair, ``explore_labels.ipynb``)."""

FINE_COUNTS = {
    "wood_processed": 82336,
    "material": 74807,
    "structure": 61517,
    "grass": 44741,
    "plate": 42392,
    "plant": 42009,
    "blue_sky": 41043,
    "foliage": 40793,
    "cloudy": 36225,
    "tree": 33984,
}
"""The ten commonest fine labels, from the same notebook."""

SPLIT_COUNTS = {"train": 345879, "val": 39239, "test": 43960}

LayoutName = Literal["files", "parquet", "hdf5", "tfrecords"]


def _layout_name(root: Path, file: str | None) -> LayoutName:
    """Which layout lies in a folder."""
    if file is not None:
        return "hdf5"
    if (root / METADATA).is_file():
        return "files"
    if _hdf5_files(root):
        return "hdf5"
    if (root / LABEL_INDEX).is_file():
        return "tfrecords"
    if parquet_files(root):
        return "parquet"
    msg = (
        f"Expected {root} to hold {METADATA}, {LABEL_INDEX}, *.parquet or *.hdf5, got {contents(root)}. "
        "Give FLAIR's folder."
    )
    raise InputError(msg)


def _hdf5_files(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.suffix in SUFFIXES)


def _open(root: Path, name: LayoutName, file: str | None, images: Literal["small", "raw"], kinds: Any) -> Layout:  # noqa: ANN401
    if name == "files":
        return open_flair_files(root, images)
    if name == "parquet":
        return open_flair_parquet(root)
    if name == "tfrecords":
        return open_flair_tfrecords(root)
    candidates = [root / file] if file is not None else _hdf5_files(root)
    if len(candidates) != 1 or not candidates[0].is_file():
        msg = f"Expected one HDF5 file in {root}, got {[path.name for path in candidates]}. Name it as file=..."
        raise InputError(msg)
    return open_flair_hdf5(candidates[0], kinds)


def _read_parents(path: Path, problems: Problems) -> dict[str, str]:
    """The coarse label of each fine one, from lines ``fine -> coarse``; more than are used."""
    own = problems.within(f"Expected every line of {path} to read 'fine -> coarse'")
    parents: dict[str, str] = {}
    for number, line in read_lines(path):
        parts = [part.strip() for part in line.split("->")]
        if len(parts) != 2 or not all(parts):
            own.add(f"line {number}: {line!r}")
        elif parts[1] not in COARSE_COUNTS:
            own.add(f"line {number}: coarse label {parts[1]!r}. {nearest(parts[1], COARSE_COUNTS)}")
        elif parents.setdefault(parts[0], parts[1]) != parts[1]:
            own.add(f"line {number}: {parts[0]!r} belongs to {parents[parts[0]]!r} already")
    return parents


def _vocabulary(layout: Layout, kind: str, order: str) -> list[str]:
    """Label names in order."""
    used = layout.names(kind)
    if used is None:
        used = layout.records().entries[kind].names
    if order == "first_seen":
        if layout.name != "files":
            msg = (
                f"Expected label_order='first_seen' with the downloader's JSON, got layout {layout.name!r}, "
                "which has lost that order. Use label_order='alphabetical'."
            )
            raise InputError(msg)
        return used if kind == "fine" else used + sorted(set(COARSE_COUNTS) - set(used))
    return sorted(used) if kind == "fine" else sorted(set(COARSE_COUNTS) | set(used))


def _check_names(names: list[str], parents: dict[str, str], kind: str, problems: Problems) -> None:
    """A label name is a word without control characters, and known where there is a list of them."""
    known = parents if kind == "fine" else COARSE_COUNTS
    own = problems.within(
        f"Expected every {kind} label to be in {RELATIONSHIP if kind == 'fine' else 'the list of 17'}"
    )
    for name in names:
        if known and name not in known:
            own.add(f"{name!r}. {nearest(name, known)}")
        elif not name.strip() or not name.isprintable():
            problems.add(f"Expected every {kind} label to be a word, got {name!r}")


def _check_hierarchy(records: Records, parents: dict[str, str], problems: Problems) -> None:
    """An image's coarse labels must be the parents of its fine ones; images with unknown labels are left out."""
    names = sorted(COARSE_COUNTS)
    place = {name: code for code, name in enumerate(names)}
    found = {}
    unknown = np.zeros(len(records.image_ids), dtype=np.bool_)
    for kind, entries in records.entries.items():
        coarse = [place.get(parents.get(name, "") if kind == "fine" else name, -1) for name in entries.names]
        codes = np.array([*coarse, 0], dtype=np.int64)[entries.code]
        unknown[entries.record[codes < 0]] = True
        found[kind] = _present(entries.record, codes, len(records.image_ids), len(names))
    different = np.flatnonzero((found["coarse"] != found["fine"]).any(axis=1) & ~unknown)
    own = problems.within("Expected coarse labels to be the parents of fine ones (or give check_parents=False)")
    for record in different.tolist():
        texts = [[names[code] for code in np.flatnonzero(found[kind][record])] for kind in KINDS]
        own.add(f"{records.where[record]}: coarse labels {texts[0]}, parents of fine labels {texts[1]}")


def _present(row: NDArray[np.int64], column: NDArray[np.int64], num_rows: int, num_columns: int) -> NDArray[np.int8]:
    labels = np.zeros((num_rows, num_columns), dtype=np.int8)
    labels[row, column] = 1
    return labels


@dataclass(frozen=True)
class _People:
    """Split (int64, a place in ``SPLITS``) and owner number (int64) of every record, and the owners' names."""

    splits: NDArray[np.int64]
    owners: NDArray[np.int64]
    names: list[str]


def _check_records(records: Records, problems: Problems) -> _People:
    own = problems.within("Expected FLAIR to name each image once and each user in one of train, val and test")
    rank = {name: place for place, name in enumerate(SPLITS)}
    splits = np.array([rank.get(partition, -1) for partition in records.partitions], dtype=np.int64)
    for record in np.flatnonzero(splits < 0).tolist():
        partition = records.partitions[record]
        own.add(f"{records.where[record]}: partition {partition!r}. {nearest(partition, SPLITS)}")
    for what, texts in (("user", records.users), ("image", records.image_ids)):
        for record in (place for place, text in enumerate(texts) if not text.strip() or not text.isprintable()):
            own.add(f"{records.where[record]}: {what} {texts[record]!r}, which is no id")
    users, owners = np.unique(np.array(records.users, dtype=np.str_), return_inverse=True)
    pairs = np.unique(owners * 4 + splits + 1)
    for user in np.flatnonzero(np.bincount(pairs // 4) > 1).tolist():
        parts = pairs[np.searchsorted(pairs, user * 4) : np.searchsorted(pairs, user * 4 + 4)] % 4
        own.add(f"user {users[user]} is in partitions {[('unknown', *SPLITS)[split] for split in parts.tolist()]}")
    ids, counts = np.unique(np.array(records.image_ids, dtype=np.str_), return_counts=True)
    for place in np.flatnonzero(counts > 1).tolist():
        own.add(f"image {ids[place]} appears {counts[place]} times")
    return _People(splits, owners.astype(np.int64), [str(user) for user in users])


def _checked(
    layout: Layout, parents: dict[str, str], kinds: Sequence[str], problems: Problems
) -> tuple[Records, _People]:
    """What a layout holds.

    Args:
        layout: it.
        parents: of the fine labels; empty where they are not known.
        kinds: of labels that are used; both if they are to be compared.
        problems: what was wrong before.

    Raises:
        InputError: all that was wrong before, and all that is.
    """
    records = layout.records()
    for line in records.problems:
        problems.note(line)
    if not records.image_ids and not problems:
        problems.add(f"Expected layout {layout.name!r} to hold images, got none. Download it again.")
    for kind in kinds:
        _check_names(records.entries[kind].names, parents, kind, problems)
    if len(kinds) > 1:
        _check_hierarchy(records, parents, problems)
    people = _check_records(records, problems)
    problems.finish()
    return records, people


def _table(
    records: Records, people: _People, kind: str, names: list[str], notes: dict[str, Any]
) -> tuple[Table, NDArray[np.int64]]:
    """The rows, and the record of each."""
    splits, owners = people.splits, people.owners
    order = np.lexsort((np.array(records.image_ids, dtype=np.str_), owners, splits))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    entries: Entries = records.entries[kind]
    column = {name: place for place, name in enumerate(names)}
    columns = np.array([*(column[name] for name in entries.names), 0], dtype=np.int64)[entries.code]
    labels = _present(rank[entries.record], columns, len(order), len(names))
    distinct = len(np.unique(entries.record * (len(entries.names) + 1) + entries.code))
    per_record = np.bincount(entries.record, minlength=len(order))
    report = {
        **notes,
        **records.notes,
        "unlabelled": int((per_record == 0).sum()),
        "repeated_labels": len(entries.code) - distinct,
    }
    rows = order.tolist()
    table = Table(
        image_ids=[records.image_ids[row] for row in rows],
        splits=[SPLITS[split] for split in splits[order].tolist()],
        labels=labels,
        owners=owners[order],
        sources=[records.where[row] for row in rows],
        owner_names=people.names,
        report=report,
    )
    return table, order


def flair(
    *,
    root: Root,
    labels: Literal["coarse", "fine"] = "coarse",
    layout: Literal["auto", "files", "parquet", "hdf5", "tfrecords"] = "auto",
    file: str | None = None,
    images: Literal["small", "raw"] = "small",
    label_order: Literal["alphabetical", "first_seen"] = "alphabetical",
    check_parents: bool = True,
    image_size: ImageSize = 224,
    resize: Resize = "squash",
    channels: Channels = 3,
) -> Dataset:
    """FLAIR, in any of its five layouts, with coarse or fine labels.

    Args:
        root: folder of the download or of what a script made of it; ``~`` is your home.
        labels: ``coarse`` (17 labels) or ``fine`` (those in use: 1,628).
        layout: how it lies on disk; ``auto`` looks.
        file: name of the HDF5 file below ``root``, where there are several.
        images: ``small_images`` (256 pixels) or ``raw_images`` of the downloader.
        label_order: ``alphabetical`` as in ml-flair and pfl-research, or ``first_seen`` as in
            FedLGT (needs the downloader's JSON). Trained weights depend on it.
        check_parents: insist that coarse labels are the parents of fine ones, where
            ``label_relationship.txt`` is there to tell.
        image_size: height and width of stored images, pixels.
        resize: ``squash``, ``crop`` or ``pad``; FLAIR's small images are square.
        channels: 3 (colour) or 1 (grey).

    Raises:
        InputError: files are missing, damaged or contradict each other; all problems at once.
    """
    place = source_root("flair", root, METADATA)
    relationship = place / RELATIONSHIP
    whole = f"Expected {place} to be a whole and correct FLAIR"
    early = Problems(whole, complete=True)
    parents = (early.attempt(_read_parents, relationship, early) if relationship.is_file() else None) or {}
    trusted = {} if early else parents
    kinds = KINDS if trusted and check_parents else (labels,)
    chosen = _layout_name(place, file) if layout == "auto" else layout
    opened = early.attempt(_open, place, chosen, file, images, kinds)
    if opened is None:
        raise early.error()

    def checked() -> tuple[Records, _People]:
        problems = Problems(whole, complete=True)
        for line in early.lines:
            problems.note(line)
        return _checked(opened, trusted, kinds, problems)

    if early:
        checked()
    names = _vocabulary(opened, labels, label_order)
    order: list[NDArray[np.int64]] = []

    def table() -> Table:
        records, people = checked()
        notes = {"layout": opened.name, "hierarchy": "read" if parents else f"no {RELATIONSHIP}"}
        made, rows = _table(records, people, labels, names, notes)
        order[:] = [rows]
        return made

    def image(row: int) -> NDArray[np.uint8]:
        if not order:
            table()
        return opened.pixels(int(order[0][row]), image_size, channels, resize)

    options = {"labels": labels, "label_order": label_order, "size": image_size, "channels": channels, "resize": resize}
    hierarchy = files_sha256(place, [relationship]) if parents else {}
    counts = COARSE_COUNTS if labels == "coarse" else FINE_COUNTS
    return Dataset(
        name="flair",
        version=VERSION,
        identity={**options, **opened.identity, "layout": opened.name, "hierarchy": hierarchy},
        label_names=tuple(names),
        image_shape=(image_size, image_size, channels),
        table=table,
        image=image,
        licence="annotations CC BY-NC 4.0; images under their Flickr owners' licences (ATTRIBUTION.txt)",
        parents=tuple(parents.get(name, "") for name in names) if labels == "fine" and parents else (),
        expected={
            **SPLIT_COUNTS,
            "labels": len(COARSE_COUNTS) if labels == "coarse" else 1628,
            **{f"positives/{name}": count for name, count in counts.items()},
        },
    )
