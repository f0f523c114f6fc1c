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
from tokenize import TokenError
from typing import TYPE_CHECKING, Annotated, Any, Literal
from zipfile import BadZipFile

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


def _image_list(path: Path, problems: Problems) -> list[str] | None:
    """Folder and file of each line, with forward slashes; None where the list cannot be read."""
    lines = problems.attempt(read_lines, path)
    if lines is None:
        return None
    names = [line.replace("\\", "/").removeprefix("./") for _, line in lines]
    if not names:
        problems.add(f"Expected {path} to name an image per line, got none. Download it again.")
    problems.attempt(check_unique, f"Expected {path} to name each image once", names)
    return names


def _label_column(path: Path, num_images: int | None) -> NDArray[np.int8]:
    """One file of 0 and 1, one a line; spaces and blank lines do not count."""
    try:
        content = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    except FileNotFoundError:
        raise InputError("no such file") from None
    except OSError as error:
        raise InputError(str(error)) from error
    digits = (content == ord("0")) | (content == ord("1"))
    if not (digits | np.isin(content, list(b" \t\r\n"))).all() or (digits[1:] & digits[:-1]).any():
        raise InputError("it holds more than single 0 and 1")
    column: NDArray[np.int8] = (content[digits] - ord("0")).astype(np.int8)
    if num_images is not None and len(column) != num_images:
        msg = f"{len(column)} labels for {num_images} images"
        raise InputError(msg)
    return column


def _label_columns(files: list[Path], num_images: int | None, problems: Problems) -> NDArray[np.int8]:
    """int8 ``[images, files]``.

    Args:
        files: one per concept.
        num_images: how many images the list names; None where it could not be read.
        problems: takes what is wrong with them.
    """
    labels = np.zeros((num_images or 0, len(files)), dtype=np.int8)
    own = problems.within("Expected label files to hold a 0 or 1 for every image, in order")
    for place, file in enumerate(files):
        try:
            column = _label_column(file, num_images)
        except InputError as error:
            own.add(f"{file}: {error}")
            continue
        if num_images is not None:
            labels[:, place] = column
    return labels


def _concepts(root: Path, problems: Problems) -> tuple[list[str], Path] | None:
    """The 81 concepts in the order of their list, and that list; None where there is none."""
    path = problems.attempt(
        first_existing, root, ("ConceptsList/Concepts81.txt", "Concepts81.txt"), "the list of concepts"
    )
    lines = None if path is None else problems.attempt(read_lines, path)
    if path is None or lines is None:
        return None
    names = [line for _, line in lines]
    own = problems.within(f"Expected {path} to name the {len(COUNTS)} concepts of NUS-WIDE, each once")
    for number, name in lines:
        if name not in COUNTS:
            own.add(f"line {number}: {name!r}. {nearest(name, COUNTS)}")
        elif names.count(name) > 1:
            own.add(f"line {number}: {name!r}, which stands there {names.count(name)} times")
    for name in COUNTS:
        if name not in names:
            own.add(f"no line {name!r}")
    return names, path


def _read_official(root: Path, which: Literal["auto", "all", "train_test"], problems: Problems) -> _Source | None:
    """What can be read; None after faults that leave nothing to check further."""
    listed = _concepts(root, problems)
    lists = [root / "ImageList" / f"{name}.txt" for name in ("TrainImagelist", "TestImagelist")]
    train, test = (_image_list(path, problems) for path in lists)
    truth = problems.attempt(first_existing, root, ("Groundtruth", "GroundTruth"), "the folder of labels")
    if listed is None or truth is None:
        return None
    concepts, concept_file = listed
    if which == "all" or (which == "auto" and (truth / "AllLabels").is_dir()):
        all_list = root / "ImageList" / "Imagelist.txt"
        names = _image_list(all_list, problems)
        files = [truth / "AllLabels" / f"Labels_{concept}.txt" for concept in concepts]
        labels = _label_columns(files, None if names is None else len(names), problems)
        if names is None or train is None or test is None:
            return None
        splits = _split_by_lists(names, train, test, all_list, problems)
        return _Source(names, concepts, labels, splits, [concept_file, *lists, all_list, *files])
    parts, files = [], []
    for part, some_names in (("Train", train), ("Test", test)):
        some = [truth / "TrainTestLabels" / f"Labels_{concept}_{part}.txt" for concept in concepts]
        parts.append(_label_columns(some, None if some_names is None else len(some_names), problems))
        files += some
    if train is None or test is None:
        return None
    for name in sorted(set(train) & set(test)):
        problems.add(f"Expected no image in both TrainImagelist.txt and TestImagelist.txt, got {name}")
    splits = np.repeat([TRAIN, TEST], [len(train), len(test)]).astype(np.int64)
    return _Source(train + test, concepts, np.concatenate(parts), splits, [concept_file, *lists, *files])


def _split_by_lists(
    names: list[str], train: list[str], test: list[str], path: Path, problems: Problems
) -> NDArray[np.int64]:
    own = problems.within(f"Expected each image of {path} to be in one of TrainImagelist.txt and TestImagelist.txt")
    split = dict.fromkeys(train, TRAIN)
    for name in test:
        if split.get(name) == TRAIN:
            own.add(f"{name} is in both")
        split[name] = TEST
    known = set(names)
    for name in split:
        if name not in known:
            own.add(f"{name} is in no line of {path.name}")
    for name in names:
        if name not in split:
            own.add(f"{name} is in neither")
    return np.array([split.get(name, TRAIN) for name in names], dtype=np.int64)


def _array(path: Path) -> NDArray[Any]:
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError, TypeError, MemoryError, BadZipFile, TokenError) as error:
        msg = f"Expected an array at {path}, got: {error}. Download it again."
        raise InputError(msg) from error
    if not isinstance(found, np.ndarray):
        msg = f"Expected one array at {path}, got an archive. Download it again."
        raise InputError(msg)
    return found


def _read_cole(root: Path, problems: Problems) -> _Source | None:
    """Cole et al. 2021: arrays of paths below ``Flickr`` and of labels; what they call val is the test part."""
    listed = _concepts(root, problems)
    names: list[str] = []
    parts, files, splits = [], [], []
    for part, split in (("train", TRAIN), ("val", TEST)):
        paths = [root / f"formatted_{part}_{what}.npy" for what in ("images", "labels")]
        images, labels = (problems.attempt(_array, path) for path in paths)
        if images is not None and (images.ndim != 1 or images.dtype.kind != "U"):
            problems.add(f"Expected {paths[0]} to hold one path per image, got {images.dtype} {list(images.shape)}.")
            images = None
        if images is None or labels is None or listed is None:
            continue
        if labels.shape != (len(images), len(listed[0])) or not np.isin(labels, (0, 1)).all():
            problems.add(
                f"Expected {paths[1]} to hold 0 and 1 for {len(images)} images and {len(listed[0])} concepts, "
                f"got {labels.dtype} {list(labels.shape)} with values {np.unique(labels)[:5].tolist()}."
            )
            continue
        names += [str(name).replace("\\", "/") for name in images.tolist()]
        parts.append(labels.astype(np.int8))
        splits += [split] * len(images)
        files += paths
    problems.attempt(check_unique, "Expected the arrays of images to name each image once", names)
    if listed is None or len(parts) < 2:
        return None
    concepts, concept_file = listed
    labels = np.concatenate(parts)
    return _Source(names, concepts, labels, np.array(splits, dtype=np.int64), [concept_file, *files])


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
        problems = Problems("Expected photographs (or give missing='drop')")
        problems.attempt(check_present, "nuswide", names, stamps, folder)
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
    problems = Problems(f"Expected {place} to be a whole and correct NUS-WIDE", complete=True)
    source = _read_cole(place, problems) if protocol == "cole" else _read_official(place, label_files, problems)
    folder = problems.attempt(first_existing, place, ("Flickr", "images"), "the folder of images")
    if problems or source is None or folder is None:
        if source is not None and folder is not None and missing == "error":
            problems.attempt(check_present, "nuswide", source.names, list_files(folder, depth=1), folder)
        raise problems.error()
    columns = _choose(source, concepts, top)
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
