"""NUS-WIDE: 269,648 Flickr photographs, 81 concepts checked by people.

No file of labels has a key: row i of ``Labels_<concept>.txt`` is line i of the list of images.
Six photo ids occur in two folders, so an image is named by folder and file, and both copies
go to one side of a validation split. The folder (the word that was searched for, 704 of
them) is the owner: a natural split by topic.

Source: Chua et al. 2009, "NUS-WIDE: A Real-World Web Image Database from National University
of Singapore" (CIVR). Counts per concept: recomputed from github.com/Dreamerzp/NUS-WIDE.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from fedmlic.dataset import Dataset, Table
from fedmlic.errors import InputError, nearest
from fedmlic.files import Stamp, check_present, digest, files_sha256, list_files, stamps_sha256
from fedmlic.formats.reading import read_lines
from fedmlic.images import Resize, decode
from fedmlic.labels import ABSENT, PRESENT
from fedmlic.problems import Problems, check_unique
from fedmlic.sources.options import Channels, HeldOut, ImageSize, Root, Seed
from fedmlic.sources.place import first_existing, source_root
from fedmlic.sources.rows import TEST, TRAIN, Rows, hold_out_val, make_table

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = "1"

COUNTS = {
    "airport": 864, "animal": 33887, "beach": 5239, "bear": 1271, "birds": 3780, "boats": 4038, "book": 338,
    "bridge": 2337, "buildings": 17835, "cars": 1612, "castle": 537, "cat": 2376, "cityscape": 2236, "clouds": 54087,
    "computer": 591, "coral": 1601, "cow": 830, "dancing": 841, "dog": 2504, "earthquake": 63, "elk": 832,
    "fire": 1114, "fish": 1681, "flags": 386, "flowers": 8605, "food": 2685, "fox": 668, "frost": 1149,
    "garden": 2929, "glacier": 504, "grass": 22561, "harbor": 541, "horses": 1748, "house": 3916, "lake": 13392,
    "leaf": 1821, "map": 60, "military": 3340, "moon": 941, "mountain": 5099, "nighttime": 3925, "ocean": 11307,
    "person": 51577, "plane": 2663, "plants": 14345, "police": 1392, "protest": 845, "railroad": 1023, "rainbow": 420,
    "reflection": 7875, "road": 9524, "rocks": 6327, "running": 484, "sand": 2114, "sign": 1483, "sky": 74190,
    "snow": 5404, "soccer": 152, "sports": 1810, "statue": 995, "street": 2556, "sun": 3645, "sunset": 8418,
    "surf": 193, "swimmers": 495, "tattoo": 426, "temple": 1666, "tiger": 710, "tower": 2683, "town": 2344,
    "toy": 2770, "train": 951, "tree": 5352, "valley": 3843, "vehicle": 6099, "water": 35264, "waterfall": 627,
    "wedding": 1353, "whales": 399, "window": 15051, "zebra": 309,
}  # fmt: skip
"""Images of each concept among all 269,648."""

NUM_TRAIN, NUM_TEST = 161789, 107859

PLACEHOLDERS = (b"GIF8", b"\x89PNG")
"""Beginnings of what Flickr sends for a photograph that is gone; photographs are JPEG files."""


@dataclass(frozen=True)
class _Source:
    """What the annotation files say, in their own order."""

    names: list[str]
    concepts: list[str]
    labels: NDArray[np.int8]
    splits: NDArray[np.int64]
    files: list[Path]


def _image_list(path: Path) -> list[str]:
    """Folder and file of each line, with forward slashes."""
    names = [line.replace("\\", "/").removeprefix("./") for _, line in read_lines(path)]
    check_unique(f"Expected {path} to name each image once", names)
    return names


def _label_column(path: Path, num_images: int) -> NDArray[np.int8]:
    """One file of 0 and 1, one a line; spaces and blank lines do not count."""
    if not path.is_file():
        raise InputError("no such file")
    content = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    digits = (content == ord("0")) | (content == ord("1"))
    if not (digits | np.isin(content, list(b" \t\r\n"))).all() or (digits[1:] & digits[:-1]).any():
        raise InputError("it holds more than single 0 and 1")
    column: NDArray[np.int8] = (content[digits] - ord("0")).astype(np.int8)
    if len(column) != num_images:
        msg = f"{len(column)} labels for {num_images} images"
        raise InputError(msg)
    return column


def _label_columns(files: list[Path], num_images: int) -> NDArray[np.int8]:
    labels = np.empty((num_images, len(files)), dtype=np.int8)
    problems = Problems("Expected label files to hold a 0 or 1 for every image, in order")
    for place, file in enumerate(files):
        try:
            labels[:, place] = _label_column(file, num_images)
        except InputError as error:
            problems.add(f"{file}: {error}")
    problems.finish()
    return labels


def _concepts(root: Path) -> tuple[list[str], Path]:
    path = first_existing(root, ("ConceptsList/Concepts81.txt", "Concepts81.txt"), "the list of concepts")
    names = [line for _, line in read_lines(path)]
    check_unique(f"Expected {path} to name each concept once", names)
    return names, path


def _read_official(root: Path, which: Literal["auto", "all", "train_test"]) -> _Source:
    concepts, concept_file = _concepts(root)
    lists = [root / "ImageList" / f"{name}.txt" for name in ("TrainImagelist", "TestImagelist")]
    train, test = (_image_list(path) for path in lists)
    truth = first_existing(root, ("Groundtruth", "GroundTruth"), "the folder of labels")
    if which == "all" or (which == "auto" and (truth / "AllLabels").is_dir()):
        all_list = root / "ImageList" / "Imagelist.txt"
        names = _image_list(all_list)
        splits = _split_by_lists(names, train, test, all_list)
        files = [truth / "AllLabels" / f"Labels_{concept}.txt" for concept in concepts]
        return _Source(
            names, concepts, _label_columns(files, len(names)), splits, [concept_file, *lists, all_list, *files]
        )
    parts, files = [], []
    for part, names in (("Train", train), ("Test", test)):
        some = [truth / "TrainTestLabels" / f"Labels_{concept}_{part}.txt" for concept in concepts]
        parts.append(_label_columns(some, len(names)))
        files += some
    check_unique("Expected no image in both TrainImagelist.txt and TestImagelist.txt", train + test)
    splits = np.repeat([TRAIN, TEST], [len(train), len(test)]).astype(np.int64)
    return _Source(train + test, concepts, np.concatenate(parts), splits, [concept_file, *lists, *files])


def _split_by_lists(names: list[str], train: list[str], test: list[str], path: Path) -> NDArray[np.int64]:
    problems = Problems(f"Expected each image of {path} to be in one of TrainImagelist.txt and TestImagelist.txt")
    split = dict.fromkeys(train, TRAIN)
    for name in test:
        if name in split:
            problems.add(f"{name} is in both")
        split[name] = TEST
    known = set(names)
    for name in split:
        if name not in known:
            problems.add(f"{name} is in no line of {path.name}")
    for name in names:
        if name not in split:
            problems.add(f"{name} is in neither")
    problems.finish()
    return np.array([split[name] for name in names], dtype=np.int64)


def _read_cole(root: Path) -> _Source:
    """Cole et al. 2021: arrays of paths below ``Flickr`` and of labels; what they call val is the test part."""
    concepts, concept_file = _concepts(root)
    names: list[str] = []
    parts, files, splits = [], [concept_file], []
    for part, split in (("train", TRAIN), ("val", TEST)):
        paths = [root / f"formatted_{part}_{what}.npy" for what in ("images", "labels")]
        try:
            images, labels = (np.load(path, allow_pickle=False) for path in paths)
        except (OSError, ValueError) as error:
            msg = f"Expected arrays {paths[0].name} and {paths[1].name} in {root}, got: {error}. Download them again."
            raise InputError(msg) from error
        if labels.shape != (len(images), len(concepts)) or not np.isin(labels, (0, 1)).all():
            msg = (
                f"Expected {paths[1]} to hold 0 and 1 for {len(images)} images and {len(concepts)} concepts, "
                f"got {labels.dtype} {list(labels.shape)} with values {np.unique(labels)[:5].tolist()}."
            )
            raise InputError(msg)
        names += [str(name).replace("\\", "/") for name in images.tolist()]
        parts.append(labels.astype(np.int8))
        splits += [split] * len(images)
        files += paths
    check_unique("Expected the arrays of images to name each image once", names)
    return _Source(names, concepts, np.concatenate(parts), np.array(splits, dtype=np.int64), files)


def _choose(source: _Source, concepts: list[str] | None, top: int | None) -> list[int]:
    """Columns to keep, in order."""
    if concepts is not None and top is not None:
        msg = f"Expected concepts or top, got both ({concepts} and {top}). Give one of them."
        raise InputError(msg)
    if top is not None:
        counts = source.labels.sum(axis=0, dtype=np.int64)
        return sorted(np.argsort(-counts, kind="stable")[:top].tolist())
    problems = Problems("Expected concepts to be among those of the data set, each once")
    chosen = source.concepts if concepts is None else concepts
    for place, name in enumerate(chosen):
        if name not in source.concepts:
            problems.add(f"{name!r}. {nearest(name, source.concepts)}")
        elif name in chosen[:place]:
            problems.add(f"{name!r} is named twice")
    problems.finish()
    return [source.concepts.index(name) for name in chosen]


def _photo_id(name: str) -> str:
    """Flickr's number: what follows the underscore of ``actor/0001_2124494179.jpg``."""
    return name.rsplit("/", 1)[-1].rsplit(".", 1)[0].rsplit("_", 1)[-1]


def _placeholders(folder: Path, names: Sequence[str]) -> list[str]:
    found = []
    for name in names:
        with (folder / name).open("rb") as file:
            if file.read(4).startswith(PLACEHOLDERS):
                found.append(name)
    return found


@dataclass(frozen=True)
class _Options:
    missing: Literal["error", "drop"]
    drop_unlabelled: bool
    owners: Literal["folder", "none"]
    val_fraction: float
    seed: int


def _build(
    source: _Source,
    columns: list[int],
    folder: Path,
    stamps: Mapping[str, Stamp],
    options: _Options,
) -> tuple[Table, NDArray[np.int64]]:
    """The table and the source row of each of its rows."""
    names = source.names
    here = [name for name in names if name in stamps and stamps[name][0] > 0]
    gone = set(_placeholders(folder, here))
    available = np.array([name in stamps and stamps[name][0] > 0 and name not in gone for name in names])
    if options.missing == "error":
        check_present("nuswide", names, stamps, folder)
        problems = Problems("Expected photographs (or give missing='drop')")
        for name in sorted(gone):
            problems.add(f"{folder / name}: Flickr's picture for a photograph that is not available")
        problems.finish()
    labels = source.labels[:, columns]
    labelled = (labels == PRESENT).any(axis=1)
    keep = available & labelled if options.drop_unlabelled else available
    photos = [_photo_id(name) for name in names]
    splits = hold_out_val(source.splits, photos, options.val_fraction, options.seed, "nuswide")
    report = {
        "missing_dropped": int((~available).sum()) - len(gone),
        "placeholders_dropped": len(gone),
        "unlabelled": int((available & ~labelled).sum()),
        "unlabelled_dropped": int((available & ~labelled).sum()) if options.drop_unlabelled else 0,
        "photos_in_two_folders": len(photos) - len(set(photos)),
    }
    owners = [name.split("/", 1)[0] if "/" in name else "" for name in names] if options.owners == "folder" else []
    sources = [str(folder / name) for name in names]
    return make_table(
        Rows(names, splits, np.where(labels, PRESENT, ABSENT).astype(np.int8), sources, owners), report, keep
    )


def nuswide(
    *,
    root: Root,
    protocol: Literal["official", "cole"] = "official",
    label_files: Literal["auto", "all", "train_test"] = "auto",
    concepts: list[str] | None = None,
    top: Annotated[int, Field(ge=1)] | None = None,
    drop_unlabelled: bool = False,
    missing: Literal["error", "drop"] = "error",
    owners: Literal["folder", "none"] = "folder",
    image_size: ImageSize = 224,
    resize: Resize = "squash",
    channels: Channels = 3,
    val_fraction: HeldOut = 0.1,
    seed: Seed = 0,
) -> Dataset:
    """NUS-WIDE with its 81 concepts.

    Args:
        root: folder that holds ``Flickr``, ``ImageList``, ``ConceptsList`` and
            ``Groundtruth``; ``~`` is your home.
        protocol: ``official`` (161,789 and 107,859 images), or ``cole``: the arrays
            ``formatted_*.npy`` of Cole et al. 2021.
        label_files: ``all`` reads ``AllLabels``, ``train_test`` reads ``TrainTestLabels``,
            ``auto`` the first of them that is there.
        concepts: the labels and their order, if not all.
        top: keep only that many of the commonest concepts (the retrieval subset has 21).
        drop_unlabelled: leave out images with none of the labels (60,301 of all 81).
        missing: what to do about photographs that a crawl did not get, or got Flickr's
            placeholder for: ``error`` lists them, ``drop`` counts them.
        owners: ``folder``, the word that Flickr was searched for, or ``none``.
        image_size: height and width of stored images, pixels.
        resize: ``squash``, ``crop`` or ``pad``.
        channels: 3 (colour) or 1 (grey).
        val_fraction: share of the training images for validation; copies stay together.
        seed: of that random split.

    Raises:
        InputError: files are missing, damaged or contradict each other; all problems at once.
    """
    place = source_root("nuswide", root, "Flickr, ImageList, ConceptsList and Groundtruth")
    source = _read_cole(place) if protocol == "cole" else _read_official(place, label_files)
    columns = _choose(source, concepts, top)
    folder = first_existing(place, ("Flickr", "images"), "the folder of images")
    stamps = list_files(folder, depth=1)
    options = _Options(missing, drop_unlabelled, owners, val_fraction, seed)
    build = functools.cache(lambda: _build(source, columns, folder, stamps, options))
    names = [source.concepts[column] for column in columns]

    def image(row: int) -> NDArray[np.uint8]:
        return decode(folder / source.names[build()[1][row]], image_size, channels, resize)

    full = protocol == "official" and not drop_unlabelled
    return Dataset(
        name="nuswide",
        version=VERSION,
        identity={
            "protocol": protocol,
            "label_names": names,
            "options": [missing, drop_unlabelled, owners, val_fraction, seed],
            "pixels": [image_size, channels, resize],
            "annotations": digest(files_sha256(place, source.files)),
            "images": stamps_sha256(stamps, source.names),
        },
        label_names=tuple(names),
        image_shape=(image_size, image_size, channels),
        table=lambda: build()[0],
        image=image,
        licence="non-commercial research; images under their Flickr owners' licences",
        expected={
            "labels": len(names) if concepts or top else len(COUNTS),
            **({f"positives/{name}": COUNTS[name] for name in names if name in COUNTS} if full else {}),
            **({"test": NUM_TEST} if full else {}),
            **({"train": NUM_TRAIN} if full and val_fraction == 0 else {}),
        },
    )
