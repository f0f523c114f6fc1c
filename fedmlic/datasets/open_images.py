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
from collections import Counter, defaultdict
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
    SUBSETS,
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
IMAGE_COUNTS = {"train": 9011219, "val": 41620, "test": 125436}
MAX_ENTRIES = 6_000_000_000
"""Images times labels above this do not fit into memory as they are here."""

SEEN, DENIED = 1, 2
"""Bits of an entry while rows are read: somebody said present, somebody said absent."""

MEANING = np.array([UNKNOWN, PRESENT, ABSENT, UNCERTAIN], dtype=np.int8)
"""State of an entry by its bits."""

BLOCK_ROWS = 4096

NAMES = {"train": "train", "val": "validation", "test": "test"}
"""How files name a split."""

REMEDY = {
    "human": "Download the human-verified labels of every split that you have images of.",
    "machine": "Download what programs claim, or choose another value of machine.",
}

ALL_NAMES, BOXABLE_NAMES = "class-descriptions.csv", "class-descriptions-boxable.csv"

HIERARCHIES = ("bbox_labels_600_hierarchy.json", "bbox_hierarchy.json", "hierarchy.json")


@dataclass(frozen=True)
class _Options:
    root: Path
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


def _label_files(root: Path, kind: str, problems: Problems) -> dict[str, list[Path]]:
    """The label files of people or of programs, by the split that their names tell."""
    found: dict[str, list[Path]] = {}
    for path in sorted(root.glob(f"*{kind}-imagelabels*.csv")):
        subset = re.search(r"(?:^|[-_])(train|validation|val|test)[-_]", path.name)
        if subset is None:
            problems.note(
                f"Expected the name of {path} to tell train, validation or test, got none. Use the official name."
            )
        else:
            found.setdefault(SUBSETS[subset[1]], []).append(path)
    return found


def _find(root: Path, machine: str, problems: Problems) -> _Files:
    human = _label_files(root, "human", problems)
    claimed = _label_files(root, "machine", problems) if machine != "ignore" else {}
    images, stamps, splits = _list_images(root, problems)
    # Of the images of a split without such a file nothing would be known, and nobody would say so.
    needed = [("human", split) for split in ("train", "val", "test") if split in {"train", *splits} - human.keys()]
    needed += [("machine", "train")] if machine == "present" and "train" not in claimed else []
    csv_files = ", ".join(sorted(path.name for path in root.glob("*.csv"))[:8]) or "no CSV file"
    for kind, split in needed:
        there = f" and images in {splits[split]}" if split in splits else ""
        name = f"*{NAMES[split]}*{kind}-imagelabels*.csv"
        problems.note(f"Expected {root} to hold {name}, got {csv_files}{there}. {REMEDY[kind]}")
    return _Files(human, claimed, sorted(root.glob("*rotation*.csv")), images, stamps)


def _list_images(root: Path, problems: Problems) -> tuple[dict[str, Path], dict[str, Stamp], dict[str, Path]]:
    """Path and stamp of every image by id, and a folder of each split that holds any.

    Images lie in the folders of all splits, also ``train_0`` to ``train_f``.
    """
    folders = sorted(path for path in root.iterdir() if path.is_dir() and path.name.split("_")[0] in SUBSETS)
    images: dict[str, Path] = {}
    stamps: dict[str, Stamp] = {}
    splits: dict[str, Path] = {}
    own = problems.within("Expected every image in one folder")
    for folder in folders:
        for name, stamp in list_files(folder).items():
            image_id, _, suffix = name.partition(".")
            if suffix.lower() not in {"jpg", "jpeg"}:
                continue
            if image_id in images:
                own.add(f"{images[image_id]} and {folder / name}")
            images[image_id], stamps[image_id] = folder / name, stamp
            splits.setdefault(SUBSETS[folder.name.split("_")[0]], folder)
    return images, stamps, splits


def _descriptions(root: Path, ending: str, problems: Problems) -> tuple[dict[str, str], Path | None]:
    """Names of the classes by id; of several versions the newest."""
    names = sorted((path.name for path in root.glob(f"*{ending}")), reverse=True) or [ending]
    path = problems.attempt(first_existing, root, names, "the names of the classes")
    return (read_descriptions(path, problems), path) if path is not None else ({}, None)


def _classes(root: Path, which: str, label_names: list[str] | None, problems: Problems) -> _Classes | None:
    """Columns in the order of the file that lists them, or as chosen by id or name; None where classes are missing."""
    before = len(problems)
    known, path = _descriptions(root, BOXABLE_NAMES if which == "boxable" else ALL_NAMES, problems)
    files = [path]
    every = dict(known)
    if which == "boxable" and any(root.glob(f"*{ALL_NAMES}")):
        others, other_path = _descriptions(root, ALL_NAMES, problems)
        every = others | known
        files.append(other_path)
    chosen = list(known)
    if which == "trainable":
        lists = sorted(path.name for path in root.glob("*classes-trainable.txt")) or ["classes-trainable.txt"]
        files.append(problems.attempt(first_existing, root, lists, "the list of trainable classes"))
        lines = problems.attempt(read_lines, files[-1]) if files[-1] is not None else None
        chosen = [line for _, line in lines or ()]
        if lines == []:
            problems.note(f"Expected {files[-1]} to hold a class id per line, got none. Download it again.")
    if len(problems) == before:
        chosen = _chosen(known, chosen, label_names, problems.within(f"Expected labels among the classes of {path}"))
    elif not known or path is None:
        return None
    columns = dict.fromkeys(every, NO_LABEL) | {label: place for place, label in enumerate(chosen)}
    times_of = Counter(known.get(label) for label in chosen)
    names = [known.get(label, label) for label in chosen]
    names = [_told_apart(n, label) if times_of[n] > 1 else n for n, label in zip(names, chosen, strict=True)]
    return _Classes(chosen, names, columns, [file for file in files if file is not None])


def _told_apart(name: str, label: str) -> str:
    """How a class is shown whose display name another one has too."""
    return f"{name} ({label})"


def _chosen(known: dict[str, str], listed: list[str], label_names: list[str] | None, own: Problems) -> list[str]:
    """The ids of the labels; one that is unknown or named twice is noted and left out."""
    wanted = listed
    if label_names is not None:
        ids_of: defaultdict[str, list[str]] = defaultdict(list)
        for label, name in known.items():
            ids_of[name].append(label)
            ids_of[_told_apart(name, label)].append(label)
        wanted, among = [], set(listed)
        for name in label_names:
            ids = [name] if name in known else ids_of.get(name, [name])
            ids = [label for label in ids if label in among] or ids
            if len(ids) > 1:
                own.add(f"{name!r}, the name of {len(ids)} classes: {', '.join(ids)}. Give one's id")
            else:
                wanted += ids
        if not label_names:
            own.add("no label")
    for label, times in Counter(wanted).items():
        if label not in known:
            own.add(f"{label!r}. {nearest(label, [*known, *known.values()])}")
        elif times > 1:
            own.add(f"{label!r}, which is named {times} times")
    return [label for label in dict.fromkeys(wanted) if label in known]


@dataclass(frozen=True)
class _Images:
    """All images that some file names: ids ascending, their split, author and quarter turns."""

    ids: NDArray[np.uint64]
    splits: NDArray[np.int64]
    authors: list[str]
    turns: NDArray[np.int8]


def _gather(annotations: Mapping[str, Annotations], listed: ImageList, files: _Files, problems: Problems) -> _Images:
    """The images of all files; one that is in two splits is a problem."""
    lists = [path.name for path in files.lists]
    human = [path.name for paths in files.human.values() for path in paths]
    once = problems.within(f"Expected every image in {', '.join(lists)} once")
    one = problems.within(f"Expected every image of {', '.join([*human, *lists])} in one of train, val and test")
    known = np.array([SPLITS.index(subset) for subset in listed.subset], dtype=np.int64)
    first, counts = np.unique(listed.image, return_counts=True)
    for number in first[counts > 1].tolist():
        once.add(f"{id_text(number)} more than once")
    own = [np.unique(found.image) for found in annotations.values()]
    ids = np.concatenate([*own, listed.image])
    splits = np.concatenate([*(np.full(len(o), SPLITS.index(s)) for o, s in zip(own, annotations, strict=True)), known])
    order = np.lexsort((splits, ids))
    ids, splits = ids[order], splits[order].astype(np.int64)
    new = np.concatenate(([True], ids[1:] != ids[:-1]))[: len(ids)]
    for place in np.flatnonzero(~new & np.concatenate(([False], splits[1:] != splits[:-1]))[: len(ids)]).tolist():
        names = [SPLITS[split] for split in splits[place - 1 : place + 1].tolist()]
        one.add(f"{id_text(int(ids[place]))} in {' and '.join(names)}")
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


@dataclass(frozen=True)
class _Read:
    """Everything that the files say, and which of the images are here."""

    said: dict[str, Annotations]
    claimed: dict[str, Annotations]
    listed: ImageList
    images: _Images
    texts: list[str]
    here: NDArray[np.bool_]


def _read(files: _Files, classes: _Classes | None, options: _Options, problems: Problems) -> _Read:
    """Read all files that are there; what is wrong with them, each and together, is noted."""
    column_of = classes.column_of if classes is not None else None
    said = {split: read_annotations(paths, column_of, problems) for split, paths in files.human.items()}
    claimed = {split: read_annotations(paths, column_of, problems) for split, paths in files.machine.items()}
    listed = read_image_lists(files.lists, problems)
    images = _gather(said, listed, files, problems)
    texts = [id_text(number) for number in images.ids.tolist()]
    here = np.array([files.stamps.get(text, (0, 0))[0] > 0 for text in texts], dtype=np.bool_)
    if options.missing == "error":
        problems.attempt(check_present, "open_images", texts, files.stamps, options.root)
    return _Read(said, claimed, listed, images, texts, here)


def _problems() -> Problems:
    return Problems("Expected the files of data set open_images to be whole and to agree", complete=True)


def _build(
    files: _Files, classes: _Classes, parents: Mapping[str, list[str]], options: _Options
) -> tuple[Table, list[Path], NDArray[np.int8]]:
    """The table, and the file and the quarter turns of each of its rows."""
    problems = _problems()
    read = _read(files, classes, options, problems)
    problems.finish()
    images, texts, here = read.images, read.texts, read.here
    labels = _read_states(read.said, images, here, classes, parents if options.expand else None)
    everything = [*read.said.values(), *read.claimed.values()]
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
        "rows_of_other_labels": sum(int((found.column == NO_LABEL).sum()) for found in read.said.values()),
        "contradictions": int((labels == UNCERTAIN).sum()),
        "missing_dropped": len(texts) - len(kept),
        "files_in_no_list": len(set(files.stamps) - set(texts)),
        "unlabelled": int((~labelled).sum()),
        "without_author": sum(not images.authors[place] for place in kept),
        "unknown_rotation": read.listed.unknown_rotation,
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
        label_names: ids or display names of some labels, and their order. A display name that
            several of ``classes`` share is an error that lists their ids; the name with the id
            behind it, as such labels are shown, is understood.
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
            too large; all problems at once.
    """
    top = source_root("open_images", root, "the CSV files and folders of images")
    problems = _problems()
    chosen = _classes(top, classes, label_names, problems)
    files = _find(top, machine, problems)
    tree = next((top / name for name in HIERARCHIES if (top / name).is_file()), None)
    if hierarchy == "expand" and tree is None:
        what = "the hierarchy of classes (or give hierarchy='none')"
        problems.attempt(first_existing, top, HIERARCHIES, what)
    parents = read_hierarchy(tree, problems) if tree is not None else {}
    options = _Options(top, machine, machine_confidence, hierarchy == "expand", owners, drop_unlabelled, missing)
    if problems or chosen is None:
        _read(files, chosen, options, problems)
        raise problems.error()
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
