"""Open Images: nine million Flickr photographs with labels that people confirmed or denied.

Labels are partial by nature: a person looked at some labels of an image and said present or
absent; nobody looked at the others, so they are unknown. Sources that contradict each other
make an entry uncertain. What a program claims is a flag, not a label, unless asked for.

The author of a photograph is its owner. Photographs are turned upright as the lists of images
say (degrees counterclockwise), not by EXIF.

Source: Kuznetsova et al. 2020, "The Open Images Dataset V4" (IJCV), storage.googleapis.com/openimages.
Deviation: the table is dense, so images times labels is limited; take a subset of either.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from fedmlic.dataset import MACHINE, SPLITS, Dataset, Flags, Table
from fedmlic.errors import InputError, nearest
from fedmlic.files import Stamp, check_present, digest, files_sha256, list_files, stamps_sha256
from fedmlic.formats.open_images import (
    NO_LABEL,
    Annotations,
    ImageList,
    ancestors,
    id_text,
    read_annotations,
    read_descriptions,
    read_hierarchy,
    read_image_lists,
)
from fedmlic.formats.reading import read_lines
from fedmlic.images import Resize, decode
from fedmlic.labels import ABSENT, PRESENT, UNCERTAIN, UNKNOWN
from fedmlic.problems import Problems
from fedmlic.sources.options import Channels, ImageSize, Root
from fedmlic.sources.place import first_existing, source_root
from fedmlic.sources.rows import Rows, make_table

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = "1"
SUBSETS = {"train": "train", "validation": "val", "val": "val", "test": "test"}
IMAGE_COUNTS = {"train": 9011219, "val": 41620, "test": 125436}
MAX_ENTRIES = 6_000_000_000
"""Images times labels above this do not fit into memory as they are here."""

SEEN, DENIED = 1, 2
"""Bits of an entry while rows are read: somebody said present, somebody said absent."""

MEANING = np.array([UNKNOWN, PRESENT, ABSENT, UNCERTAIN], dtype=np.int8)
"""State of an entry by its bits."""

BLOCK_ROWS = 4096

ALL_NAMES, BOXABLE_NAMES = "class-descriptions.csv", "class-descriptions-boxable.csv"

HIERARCHIES = ("bbox_labels_600_hierarchy.json", "bbox_hierarchy.json", "hierarchy.json")


@dataclass(frozen=True)
class _Options:
    machine: Literal["flag", "ignore", "present"]
    machine_confidence: float
    expand: bool
    owners: Literal["author", "none"]
    drop_unlabelled: bool
    missing: Literal["error", "drop"]


@dataclass(frozen=True)
class _Files:
    """Where everything lies."""

    human: dict[str, list[Path]]
    machine: dict[str, list[Path]]
    lists: list[Path]
    images: dict[str, Path]
    stamps: dict[str, Stamp]


@dataclass(frozen=True)
class _Classes:
    """Chosen labels, and the column of every class that exists."""

    ids: list[str]
    names: list[str]
    column_of: dict[str, int]
    files: list[Path]


def _subset(path: Path) -> str:
    """The split a label file belongs to, from its name."""
    found = re.search(r"(?:^|[-_])(train|validation|val|test)[-_]", path.name)
    if not found:
        msg = f"Expected the name of {path} to tell train, validation or test, got none. Use the official name."
        raise InputError(msg)
    return SUBSETS[found[1]]


def _find(root: Path, machine: str) -> _Files:
    human: dict[str, list[Path]] = {}
    for path in sorted(root.glob("*human-imagelabels*.csv")):
        human.setdefault(_subset(path), []).append(path)
    if "train" not in human:
        found = ", ".join(sorted(path.name for path in root.glob("*.csv"))[:8]) or "no CSV file"
        msg = f"Expected {root} to hold *train*human-imagelabels*.csv, got {found}. Download the human-verified labels."
        raise InputError(msg)
    claimed: dict[str, list[Path]] = {}
    for path in sorted(root.glob("*machine-imagelabels*.csv")) if machine != "ignore" else []:
        claimed.setdefault(_subset(path), []).append(path)
    images, stamps = _list_images(root)
    return _Files(human, claimed, sorted(root.glob("*rotation*.csv")), images, stamps)


def _list_images(root: Path) -> tuple[dict[str, Path], dict[str, Stamp]]:
    """Path and stamp of every image by id, from the folders of all splits, also ``train_0`` to ``train_f``."""
    folders = sorted(path for path in root.iterdir() if path.is_dir() and path.name.split("_")[0] in SUBSETS)
    images: dict[str, Path] = {}
    stamps: dict[str, Stamp] = {}
    problems = Problems("Expected every image in one folder")
    for folder in folders:
        for name, stamp in list_files(folder).items():
            image_id, _, suffix = name.partition(".")
            if suffix.lower() not in {"jpg", "jpeg"}:
                continue
            if image_id in images:
                problems.add(f"{images[image_id]} and {folder / name}")
            images[image_id], stamps[image_id] = folder / name, stamp
    problems.finish()
    return images, stamps


def _descriptions(root: Path, ending: str) -> tuple[dict[str, str], Path]:
    """Names of the classes by id; of several versions the newest."""
    names = sorted((path.name for path in root.glob(f"*{ending}")), reverse=True) or [ending]
    path = first_existing(root, names, "the names of the classes")
    return read_descriptions(path), path


def _classes(root: Path, which: str, label_names: list[str] | None) -> _Classes:
    """Columns in the order of the file that lists them, or as chosen by id or name."""
    known, path = _descriptions(root, BOXABLE_NAMES if which == "boxable" else ALL_NAMES)
    files = [path]
    every = dict(known)
    if which == "boxable" and any(root.glob(f"*{ALL_NAMES}")):
        others, other_path = _descriptions(root, ALL_NAMES)
        every = others | known
        files.append(other_path)
    chosen = list(known)
    if which == "trainable":
        lists = sorted(path.name for path in root.glob("*classes-trainable.txt")) or ["classes-trainable.txt"]
        files.append(first_existing(root, lists, "the list of trainable classes"))
        chosen = [line for _, line in read_lines(files[-1])]
    if label_names is not None:
        by_name = {name: image_id for image_id, name in reversed(known.items())}
        chosen = [name if name in known else by_name.get(name, name) for name in label_names]
    problems = Problems(f"Expected labels to be among the classes of {path.name}, each once")
    for label, times in Counter(chosen).items():
        if label not in known:
            problems.add(f"{label!r}. {nearest(label, [*known, *known.values()])}")
        elif times > 1:
            problems.add(f"{label!r} is named {times} times")
    problems.finish()
    columns = dict.fromkeys(every, NO_LABEL) | {label: place for place, label in enumerate(chosen)}
    times_of = Counter(known[label] for label in chosen)
    names = [known[label] if times_of[known[label]] == 1 else f"{known[label]} ({label})" for label in chosen]
    return _Classes(chosen, names, columns, files)


@dataclass(frozen=True)
class _Images:
    """All images that some file names: ids ascending, their split, author and quarter turns."""

    ids: NDArray[np.uint64]
    splits: NDArray[np.int64]
    authors: list[str]
    turns: NDArray[np.int8]


def _gather(annotations: Mapping[str, Annotations], listed: ImageList) -> _Images:
    """The images of all files; one that is in two splits is a problem."""
    problems = Problems("Expected every image in one of train, validation and test, and in the lists once")
    known = np.array([SPLITS.index(SUBSETS[name]) if name in SUBSETS else -1 for name in listed.subset], dtype=np.int64)
    for row in np.flatnonzero(known < 0).tolist():
        name = listed.subset[row]
        problems.add(f"{id_text(int(listed.image[row]))}: Subset {name!r}. {nearest(name, SUBSETS)}")
    first, counts = np.unique(listed.image, return_counts=True)
    for number in first[counts > 1].tolist():
        problems.add(f"{id_text(number)} is in the lists of images more than once")
    own = [np.unique(found.image) for found in annotations.values()]
    ids = np.concatenate([*own, listed.image])
    splits = np.concatenate([*(np.full(len(o), SPLITS.index(s)) for o, s in zip(own, annotations, strict=True)), known])
    order = np.lexsort((splits, ids))
    ids, splits = ids[order], splits[order].astype(np.int64)
    new = np.concatenate(([True], ids[1:] != ids[:-1]))
    for place in np.flatnonzero(~new & np.concatenate(([False], splits[1:] != splits[:-1]))).tolist():
        names = [("unknown", *SPLITS)[split + 1] for split in splits[place - 1 : place + 1].tolist()]
        problems.add(f"{id_text(int(ids[place]))} is in {names}")
    problems.finish()
    every = ids[new]
    authors = [""] * len(every)
    turns = np.zeros(len(every), dtype=np.int8)
    places = np.searchsorted(every, listed.image)
    turns[places] = listed.turns
    for place, author in zip(places.tolist(), listed.author, strict=True):
        authors[place] = author
    return _Images(every, splits[new], authors, turns)


def _fill(bits: NDArray[np.uint8], ids: NDArray[np.uint64], found: Annotations, row_of: NDArray[np.int64]) -> None:
    """Note who said what of chosen labels of images that stay."""
    row = row_of[np.searchsorted(ids, found.image)]
    used = (row >= 0) & (found.column >= 0) & ~found.machine
    for bit, value in ((SEEN, 1), (DENIED, 0)):
        chosen = used & (found.confidence == value)
        bits[row[chosen], found.column[chosen]] |= bit


def _expand(bits: NDArray[np.uint8], labels: list[str], parents: Mapping[str, list[str]]) -> None:
    """What is present makes everything above it present; what is absent makes everything below it absent."""
    column = {label: place for place, label in enumerate(labels)}
    above = [(place, column[up]) for label, place in column.items() for up in ancestors(parents, label) if up in column]
    for start in range(0, len(bits), BLOCK_ROWS):
        block = bits[start : start + BLOCK_ROWS]
        before = block.copy()
        for below, up in above:
            block[:, up] |= np.where(before[:, below] == SEEN, SEEN, 0).astype(np.uint8)
            block[:, below] |= np.where(before[:, up] == DENIED, DENIED, 0).astype(np.uint8)


def _to_states(bits: NDArray[np.uint8]) -> NDArray[np.int8]:
    """Bits to states, in the same memory."""
    states = bits.view(np.int8)
    for start in range(0, len(bits), BLOCK_ROWS):
        states[start : start + BLOCK_ROWS] = MEANING[bits[start : start + BLOCK_ROWS]]
    return states


def _claims(
    ids: NDArray[np.uint64], parts: list[Annotations], row_of: NDArray[np.int64], num_labels: int, least: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns, sorted and each once, of what programs claim with enough confidence."""
    cells: list[NDArray[np.int64]] = [np.empty(0, dtype=np.int64)]
    for found in parts:
        place = np.minimum(np.searchsorted(ids, found.image), len(ids) - 1)
        row = np.where(ids[place] == found.image, row_of[place], -1)
        used = (row >= 0) & (found.column >= 0) & found.machine & (found.confidence >= least)
        cells.append((row[used] * num_labels + found.column[used]).astype(np.int64))
    cell = np.unique(np.concatenate(cells))
    return cell // num_labels, cell % num_labels


def _read_states(
    said: Mapping[str, Annotations],
    images: _Images,
    here: NDArray[np.bool_],
    classes: _Classes,
    parents: Any,  # noqa: ANN401
) -> NDArray[np.int8]:
    """int8 ``[images that are here, labels]``: what people said."""
    shape = (int(here.sum()), len(classes.ids))
    if shape[0] * shape[1] > MAX_ENTRIES:
        msg = (
            f"Expected images times labels to be at most {MAX_ENTRIES:,}, got {shape[0]:,} x {shape[1]:,}. "
            "Choose fewer labels (classes, label_names) or images."
        )
        raise InputError(msg)
    bits = np.zeros(shape, dtype=np.uint8)
    row_of = _rows_of(here)
    for found in said.values():
        _fill(bits, images.ids, found, row_of)
    if parents:
        _expand(bits, classes.ids, parents)
    return _to_states(bits)


def _rows_of(here: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Row of each image that is here, -1 of the others."""
    return np.where(here, np.cumsum(here) - 1, -1).astype(np.int64)


def _build(
    files: _Files, classes: _Classes, parents: Mapping[str, list[str]], options: _Options
) -> tuple[Table, list[Path], NDArray[np.int8]]:
    """The table, and the file and the quarter turns of each of its rows."""
    said = {split: read_annotations(paths, classes.column_of) for split, paths in files.human.items()}
    claimed = {split: read_annotations(paths, classes.column_of) for split, paths in files.machine.items()}
    listed = read_image_lists(files.lists)
    images = _gather(said, listed)
    texts = [id_text(number) for number in images.ids.tolist()]
    here = np.array([files.stamps.get(text, (0, 0))[0] > 0 for text in texts], dtype=np.bool_)
    if options.missing == "error":
        check_present("open_images", texts, files.stamps, files.human["train"][0].parent)
    labels = _read_states(said, images, here, classes, parents if options.expand else None)
    everything = [*said.values(), *claimed.values()]
    least = options.machine_confidence if options.machine != "ignore" else np.inf
    row, column = _claims(images.ids, everything, _rows_of(here), labels.shape[1], least)
    if options.machine == "present":
        unknown = labels[row, column] == UNKNOWN
        labels[row[unknown], column[unknown]] = PRESENT
    labelled = (labels != UNKNOWN).any(axis=1)
    kept = np.flatnonzero(here).tolist()
    sources: Counter[str] = Counter()
    for found in everything:
        sources.update(found.sources)
    report = {
        "rows_by_source": dict(sorted(sources.items())),
        "rows_of_other_labels": sum(int((found.column == NO_LABEL).sum()) for found in said.values()),
        "contradictions": int((labels == UNCERTAIN).sum()),
        "missing_dropped": len(texts) - len(kept),
        "files_in_no_list": len(set(files.stamps) - set(texts)),
        "unlabelled": int((~labelled).sum()),
        "without_author": sum(not images.authors[place] for place in kept),
        "unknown_rotation": listed.unknown_rotation,
        "lists_of_images": len(files.lists),
    }
    paths = [files.images[texts[place]] for place in kept]
    rows = Rows(
        image_ids=[texts[place] for place in kept],
        splits=images.splits[here],
        labels=labels,
        sources=[str(path) for path in paths],
        owners=[images.authors[place] for place in kept] if options.owners == "author" else [],
        flags=Flags(row, column.astype(np.int16), np.full(len(row), MACHINE, dtype=np.uint8)),
    )
    table, order = make_table(rows, report, labelled if options.drop_unlabelled else None)
    return table, [paths[row] for row in order.tolist()], images.turns[here][order]


def open_images(
    *,
    root: Root,
    classes: Literal["all", "trainable", "boxable"] = "all",
    label_names: list[str] | None = None,
    machine: Literal["flag", "ignore", "present"] = "flag",
    machine_confidence: Annotated[float, Field(ge=0, le=1)] = 0.5,
    hierarchy: Literal["none", "expand"] = "none",
    owners: Literal["author", "none"] = "author",
    drop_unlabelled: bool = False,
    missing: Literal["error", "drop"] = "error",
    image_size: ImageSize = 224,
    resize: Resize = "squash",
    channels: Channels = 3,
) -> Dataset:
    """Open Images' image-level labels (V3 to V7 names of files).

    Args:
        root: folder that holds the CSV files and the folders of images; ``~`` is your home.
        classes: ``all`` of the class descriptions, the ``trainable`` ones, or the 600
            ``boxable`` ones.
        label_names: ids or display names of some labels, and their order.
        machine: what a program claims is a ``flag``, ignored, or ``present`` where no person
            looked.
        machine_confidence: least confidence of such a claim.
        hierarchy: ``expand`` makes what lies above a present label present and what lies
            below an absent one absent (needs ``bbox_labels_600_hierarchy.json``).
        owners: ``author`` of the photograph, or ``none``.
        drop_unlabelled: leave out images of which nothing is known.
        missing: images that files name and the disk lacks: ``error`` lists them, ``drop``
            counts them; say ``drop`` with a subset of the images.
        image_size: height and width of stored images, pixels.
        resize: ``squash``, ``crop`` or ``pad``.
        channels: 3 (colour) or 1 (grey).

    Raises:
        InputError: files are missing, damaged or contradict each other, or the table would be
            too large; all problems of a kind at once.
    """
    top = source_root("open_images", root, "the CSV files and folders of images")
    chosen = _classes(top, classes, label_names)
    files = _find(top, machine)
    tree = next((top / name for name in HIERARCHIES if (top / name).is_file()), None)
    if hierarchy == "expand" and tree is None:
        tree = first_existing(top, HIERARCHIES, "the hierarchy of classes (or give hierarchy='none')")
    parents = read_hierarchy(tree) if tree is not None else {}
    options = _Options(machine, machine_confidence, hierarchy == "expand", owners, drop_unlabelled, missing)
    built = functools.cache(lambda: _build(files, chosen, parents, options))

    def image(row: int) -> NDArray[np.uint8]:
        _, paths, turns = built()
        upright = np.rot90(decode(paths[row], image_size, channels, resize, upright=False), int(turns[row]))
        return np.ascontiguousarray(upright)

    every: list[Path] = [*chosen.files, *files.lists, *([tree] if tree else [])]
    every += [path for part in (files.human, files.machine) for paths in part.values() for path in paths]
    return Dataset(
        name="open_images",
        version=VERSION,
        identity={
            "options": [classes, label_names, machine, machine_confidence, hierarchy, owners, drop_unlabelled, missing],
            "pixels": [image_size, channels, resize],
            "annotations": digest(files_sha256(top, every)),
            "images": stamps_sha256(files.stamps),
        },
        label_names=tuple(chosen.names),
        image_shape=(image_size, image_size, channels),
        table=lambda: built()[0],
        image=image,
        licence="annotations CC BY 4.0; images listed as CC BY 2.0",
        label_ids=tuple(chosen.ids),
        parents=_parent_names(chosen, parents),
        expected={**IMAGE_COUNTS, **_expected_labels(classes, label_names)},
    )


def _expected_labels(classes: str, label_names: list[str] | None) -> dict[str, int]:
    """V6's class descriptions name 19,994 classes; other versions others."""
    return {"labels": 19994} if classes == "all" and label_names is None else {}


def _parent_names(classes: _Classes, parents: Mapping[str, list[str]]) -> tuple[str, ...]:
    """The first parent among the labels, or a label itself where it has none; nothing without a hierarchy."""
    if not parents:
        return ()
    name: dict[str, Any] = dict(zip(classes.ids, classes.names, strict=True))
    return tuple(
        next((name[above] for above in parents.get(label, ()) if above in name), name[label]) for label in classes.ids
    )
