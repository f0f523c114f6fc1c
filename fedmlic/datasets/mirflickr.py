"""MIRFLICKR-25k: 25,000 Flickr photographs, 24 labels, 14 of them annotated twice.

Annotators first named every image that *potentially* shows a label, then, for 14 labels, those
to which it is *relevant*. The second set lies within the first, so it serves as a strict
reading, as 14 further labels (38 in all), or as a grade: potential but not relevant is
uncertain. There is no official split. The photographer, read from ``meta/license``, owns an image.

Source: Huiskes and Lew 2008, "The MIR Flickr Retrieval Evaluation" (MIR). Deviation: the form
of the licence files was not seen; a photographer is what follows ``flickr.com/photos/`` or
``/people/``, or else a line such as ``Owner: name``.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from fedmlic.dataset import Dataset, Table
from fedmlic.errors import InputError
from fedmlic.files import Stamp, check_present, digest, files_sha256, list_files, stamps_sha256
from fedmlic.formats.reading import read_lines, small_number
from fedmlic.images import Resize, decode
from fedmlic.labels import ABSENT, PRESENT, UNCERTAIN
from fedmlic.problems import Problems
from fedmlic.sources.groups import number_groups
from fedmlic.sources.options import Channels, HeldOut, ImageSize, Root, Seed
from fedmlic.sources.place import first_existing, source_root
from fedmlic.sources.rows import TEST, TRAIN, Rows, hold_out_val, make_table
from fedmlic.splits import hold_out

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = "1"

COUNTS = {
    "animals": 3216, "baby": 259, "bird": 742, "car": 1177, "clouds": 3700, "dog": 684, "female": 6189, "flower": 1823,
    "food": 990, "indoor": 8313, "lake": 791, "male": 6079, "night": 2711, "people": 10373, "plant_life": 8763,
    "portrait": 3931, "river": 894, "sea": 1322, "sky": 7912, "structures": 9992, "sunset": 2135, "transport": 2895,
    "tree": 4683, "water": 3331,
}  # fmt: skip
"""Potential labels and the images of each, from memory of the annotations' README."""

RELEVANT_COUNTS = {
    "baby": 116, "bird": 492, "car": 380, "clouds": 1353, "dog": 589, "female": 4007, "flower": 1077, "male": 3644,
    "night": 672, "people": 7849, "portrait": 3829, "river": 136, "sea": 215, "tree": 669,
}  # fmt: skip
"""Relevant labels and the images of each, from memory too."""

NUM_IMAGES = 25000
TRAIN_OF_FIRST = 15000

IMAGE = re.compile(r"im([0-9]{1,9})\.jpg")
FLICKR_USER = re.compile(r"flickr\.com/(?:photos|people)/([^/\s]+)", re.IGNORECASE)
NAMED_USER = re.compile(
    r"^[ \t]*(?:(?:picture|photo|image)[ \t]+)?(?:owner|author|photographer|creator|user(?:[ \t]?name)?)"
    r"[ \t]*[:=]\s*(\S[^\n]*)$",
    re.IGNORECASE | re.MULTILINE,
)

Split = Literal["odd_even", "first_15000", "random"]


@dataclass(frozen=True)
class _Options:
    labels: Literal[24, 38]
    annotations: Literal["potential", "relevant", "graded"]
    split: Split
    owners: Literal["auto", "photographer", "none"]
    min_tag_count: int
    drop_unlabelled: bool
    missing: Literal["error", "drop"]
    val_fraction: float
    test_fraction: float
    seed: int


def _label_names(num_labels: int) -> list[str]:
    names = sorted(COUNTS)
    return names if num_labels == 24 else names + [f"{name}_r1" for name in sorted(RELEVANT_COUNTS)]


def _numbers(path: Path, problems: Problems) -> set[int]:
    """Image numbers, one a line."""
    found: set[int] = set()
    if not path.is_file():
        problems.add(f"{path}: no such file")
        return found
    for line, text in problems.attempt(read_lines, path) or ():
        number = small_number(text)
        if not number:
            problems.add(f"{path}, line {line}: {text!r:.80} is no image number")
        else:
            found.add(number)
    return found


def _annotation_names(folder: Path, options: _Options) -> list[str]:
    """Stems of the files that are needed, and of relevant ones that are there."""
    every = _label_names(38)
    needed = every if options.labels == 38 or options.annotations != "potential" else _label_names(24)
    return [name for name in every if name in needed or (folder / f"{name}.txt").is_file()]


def _read_annotations(folder: Path, names: list[str], outer: Problems) -> dict[str, set[int]]:
    """Image numbers by file stem; relevant ones must lie within potential ones."""
    problems = outer.within(f"Expected {folder} to hold the annotations of MIRFLICKR-25k, an image number a line")
    found = {name: _numbers(folder / f"{name}.txt", problems) for name in names}
    for name in sorted(RELEVANT_COUNTS):
        outside = sorted(found.get(f"{name}_r1", set()) - found[name])
        if outside and (folder / f"{name}.txt").is_file():
            problems.add(f"{folder / name}_r1.txt names {outside[:5]}, which {name}.txt does not")
    return found


def _labels(numbers: list[int], found: Mapping[str, set[int]], options: _Options) -> NDArray[np.int8]:
    """int8 ``[images, labels]``."""
    place = {number: row for row, number in enumerate(numbers)}
    names = _label_names(options.labels)
    labels = np.full((len(numbers), len(names)), ABSENT, dtype=np.int8)
    for column, name in enumerate(names):
        rows = [place[number] for number in found[name] if number in place]
        twice = options.labels == 24 and options.annotations != "potential" and name in RELEVANT_COUNTS
        if not twice:
            labels[rows, column] = PRESENT
            continue
        labels[rows, column] = UNCERTAIN if options.annotations == "graded" else ABSENT
        labels[[place[number] for number in found[f"{name}_r1"] if number in place], column] = PRESENT
    return labels


def _split(numbers: NDArray[np.int64], owners: list[str], options: _Options) -> NDArray[np.int64]:
    if options.split == "odd_even":
        test = numbers % 2 == 0
    elif options.split == "first_15000":
        test = numbers > TRAIN_OF_FIRST
    else:
        groups, _ = number_groups(_groups(numbers, owners))
        test = hold_out(groups, options.test_fraction, options.seed, "mirflickr/test")
    return np.where(test, TEST, TRAIN).astype(np.int64)


def _groups(numbers: NDArray[np.int64], owners: list[str]) -> list[str]:
    """What a random split keeps together: a photographer's images."""
    own = owners or [""] * len(numbers)
    return [owner or f"/{number}" for owner, number in zip(own, numbers.tolist(), strict=True)]


def photographer(text: str) -> str:
    """Who a licence file says took the photograph; blank if it does not.

    >>> photographer("Picture URL: http://www.flickr.com/photos/jane/12/")
    'jane'
    """
    for pattern in (FLICKR_USER, NAMED_USER):
        found = pattern.search(text)
        if found:
            return found.group(1).strip()
    return ""


def _owners(folder: Path, numbers: list[int], how: str, outer: Problems) -> list[str]:
    """The photographer of each image; empty where nobody is to be an owner."""
    if how == "none" or (how == "auto" and not folder.is_dir()):
        return []
    owners = []
    problems = outer.within("Expected meta/license to name every photographer (or give owners='auto')")
    for number in numbers:
        path = folder / f"license{number}.txt"
        owner = photographer(path.read_bytes().decode("utf-8", "replace")) if path.is_file() else ""
        if not owner and how == "photographer":
            problems.add(f"{path}: {'no photographer' if path.is_file() else 'no such file'}")
        owners.append(owner)
    return owners


def _tagged(folder: Path, numbers: list[int], min_count: int, outer: Problems) -> NDArray[np.bool_]:
    """Which images have a tag that at least ``min_count`` of the images have."""
    if min_count == 0:
        return np.ones(len(numbers), dtype=np.bool_)
    problems = outer.within("Expected meta/tags to hold the tags of every image (or give min_tag_count=0)")
    tags: list[set[str]] = []
    for number in numbers:
        path = folder / f"tags{number}.txt"
        if not path.is_file():
            problems.add(f"{path}: no such file")
        text = path.read_bytes().decode("utf-8", "replace") if path.is_file() else ""
        tags.append({line.strip() for line in text.splitlines() if line.strip()})
    counts = Counter(tag for own in tags for tag in own)
    return np.array([any(counts[tag] >= min_count for tag in own) for own in tags])


@dataclass(frozen=True)
class _Place:
    images: Path
    annotations: Path
    meta: Path
    stamps: Mapping[str, Stamp]


def _build(
    place: _Place, found: Mapping[str, set[int]], options: _Options, problems: Problems
) -> tuple[Table, NDArray[np.int64]]:
    """The table and the image number of each of its rows.

    Raises:
        InputError: all ``problems``, those that are there already included.
    """
    numbers = sorted(int(match[1]) for match in map(IMAGE.fullmatch, place.stamps) if match)
    annotated = set().union(*found.values())
    lost = sorted(annotated - set(numbers))
    if options.missing == "error":
        names = [f"im{number}.jpg" for number in sorted({*numbers, *lost})]
        problems.attempt(check_present, "mirflickr", names, place.stamps, place.images)
    owners = _owners(place.meta / "license", numbers, options.owners, problems)
    tagged = _tagged(place.meta / "tags", numbers, options.min_tag_count, problems)
    problems.finish()
    labels = _labels(numbers, found, options)
    array = np.array(numbers, dtype=np.int64)
    splits = _split(array, owners, options)
    groups = _groups(array, owners) if options.split == "random" else [str(number) for number in numbers]
    splits = hold_out_val(splits, groups, options.val_fraction, options.seed, "mirflickr")
    whole = np.array([place.stamps[f"im{number}.jpg"][0] > 0 for number in numbers], dtype=np.bool_)
    labelled = (labels != ABSENT).any(axis=1)
    keep = whole & tagged & (labelled if options.drop_unlabelled else True)
    report = {
        "missing_dropped": len(lost) + int((~whole).sum()),
        "untagged_dropped": int((whole & ~tagged).sum()),
        "unlabelled": int((whole & tagged & ~labelled).sum()),
        "without_photographer": owners.count("") if owners else len(numbers),
    }
    ids = [f"im{number:05d}" for number in numbers]
    sources = [str(place.images / f"im{number}.jpg") for number in numbers]
    table, order = make_table(Rows(ids, splits, labels, sources, owners), report, keep)
    return table, array[order]


def _places(root: Path, problems: Problems) -> _Place | None:
    """Where the parts lie; None where one of them does not."""
    images: Path | None = root
    if not any(root.glob("im*.jpg")):
        names: tuple[str, ...] = ("mirflickr", "images", "mirflickr25k")
        images = problems.attempt(first_existing, root, names, "the folder of images")
    names = ("annotations", "mirflickr25k_annotations_v080", "annotations_v080", "mirflickr/annotations", "animals.txt")
    annotations = problems.attempt(first_existing, root, names, "the folder of annotations")
    if images is None or annotations is None:
        return None
    annotations = root if annotations.name == "animals.txt" else annotations
    return _Place(images, annotations, first_existing(images, ("meta", "."), "meta"), list_files(images))


def mirflickr(
    *,
    root: Root,
    labels: Literal[24, 38] = 24,
    annotations: Literal["potential", "relevant", "graded"] = "potential",
    split: Split = "odd_even",
    owners: Literal["auto", "photographer", "none"] = "auto",
    min_tag_count: Annotated[int, Field(ge=0)] = 0,
    drop_unlabelled: bool = False,
    missing: Literal["error", "drop"] = "error",
    image_size: ImageSize = 224,
    resize: Resize = "squash",
    channels: Channels = 3,
    val_fraction: HeldOut = 0.1,
    test_fraction: Annotated[float, Field(ge=0, le=0.9)] = 0.5,
    seed: Seed = 0,
) -> Dataset:
    """MIRFLICKR-25k with 24 or 38 labels.

    Args:
        root: folder that holds ``mirflickr`` (images and ``meta``) and ``annotations``; ``~``
            is your home.
        labels: 24, or 38 with the 14 relevant ones as labels of their own (``baby_r1``).
        annotations: how the 14 twice annotated labels read among 24: ``potential`` (what may
            be there), ``relevant`` (what matters), or ``graded`` (potential only is uncertain).
        split: ``odd_even`` image numbers (12,500 each), ``first_15000`` for training, or
            ``random``, a photographer on one side. None is official.
        owners: ``photographer`` of the licence file; ``auto`` where it is there; ``none``.
        min_tag_count: keep images with a tag that so many images have (hashing papers: 20).
        drop_unlabelled: leave out images with none of the labels.
        missing: images that annotations name and the disk lacks, or empty files: ``error``
            lists them, ``drop`` counts them.
        image_size: height and width of stored images, pixels.
        resize: ``squash``, ``crop`` or ``pad``.
        channels: 3 (colour) or 1 (grey).
        val_fraction: share of the training images for validation.
        test_fraction: share of the images for testing, where ``split`` is random.
        seed: of the random splits.

    Raises:
        InputError: files are missing, damaged or contradict each other; all problems at once.
    """
    if labels == 38 and annotations != "potential":
        msg = (
            f"Expected annotations='potential' with 38 labels, which hold both kinds, got {annotations!r}. "
            "Use labels=24 with it."
        )
        raise InputError(msg)
    top = source_root("mirflickr", root, "mirflickr and annotations")
    whole = f"Expected {top} to be a whole and correct MIRFLICKR-25k"
    problems = Problems(whole, complete=True)
    place = _places(top, problems)
    if place is None:
        raise problems.error()
    options = _Options(
        labels, annotations, split, owners, min_tag_count, drop_unlabelled, missing, val_fraction, test_fraction, seed
    )
    needed = _annotation_names(place.annotations, options)
    found = _read_annotations(place.annotations, needed, problems)
    build = functools.cache(lambda: _build(place, found, options, Problems(whole, complete=True)))
    if problems:
        _build(place, found, options, problems)
    names = _label_names(labels)
    files = [place.annotations / f"{name}.txt" for name in needed]
    counts = {
        name: RELEVANT_COUNTS.get(name, count) if annotations == "relevant" else count for name, count in COUNTS.items()
    }
    counts |= {f"{name}_r1": count for name, count in RELEVANT_COUNTS.items()} if labels == 38 else {}
    filtered = drop_unlabelled or min_tag_count or annotations == "graded"
    meta = list_files(place.meta, depth=1)

    return Dataset(
        name="mirflickr",
        version=VERSION,
        identity={
            "options": [labels, annotations, split, owners, min_tag_count, drop_unlabelled, missing],
            "split": [val_fraction, test_fraction, seed],
            "pixels": [image_size, channels, resize],
            "annotations": digest(files_sha256(top, files)),
            "images": stamps_sha256(place.stamps, filter(IMAGE.fullmatch, place.stamps)),
            "meta": stamps_sha256(meta, [name for name in meta if name.startswith(("license/", "tags/"))]),
        },
        label_names=tuple(names),
        image_shape=(image_size, image_size, channels),
        table=lambda: build()[0],
        image=lambda row: decode(place.images / f"im{build()[1][row]}.jpg", image_size, channels, resize),
        licence="Creative Commons, one licence per image (meta/license)",
        parents=tuple(name.removesuffix("_r1") for name in names) if labels == 38 else (),
        expected={
            "labels": labels,
            **({} if filtered else {f"positives/{name}": counts[name] for name in names}),
            **({"test": NUM_IMAGES // 2} if split == "odd_even" and not filtered else {}),
        },
    )
