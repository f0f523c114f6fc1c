"""What data sets in PASCAL VOC's format have in common: from image sets and XML files to a ``Dataset``.

VOC 2007, VOC 2012, their union and VOC-MLT differ in which lists train and which test; how
objects become label states, boxes and splits is here.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fedmlic.dataset import DIFFICULT_ONLY, NO_OWNER, Dataset, Flags, Objects, Table
from fedmlic.errors import InputError, nearest
from fedmlic.files import stamps_of, stamps_sha256
from fedmlic.formats.id_list import read_ids
from fedmlic.formats.voc_class_list import ABSENT as NONE
from fedmlic.formats.voc_class_list import DIFFICULT, read_class_file
from fedmlic.formats.voc_class_list import PRESENT as PLAIN
from fedmlic.formats.voc_xml import Annotation, Thing, read_annotation
from fedmlic.images import Resize, decode
from fedmlic.labels import ABSENT, PRESENT, UNKNOWN
from fedmlic.problems import Problems
from fedmlic.seeds import text_keys
from fedmlic.sources.groups import deal
from fedmlic.sources.headers import read_headers
from fedmlic.sources.label_names import choose_labels
from fedmlic.sources.objects import agree_on_sizes, outside_warnings, size_warnings, stored_objects
from fedmlic.sources.place import find_parts

VERSION = "1"

LABEL_NAMES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)

LICENCE = "images under Flickr's terms of use; research (host.robots.ox.ac.uk/pascal/VOC)"

GROUPS = {
    **dict.fromkeys(("aeroplane", "bicycle", "boat", "bus", "car", "motorbike", "train"), "vehicle"),
    **dict.fromkeys(("bird", "cat", "cow", "dog", "horse", "sheep"), "animal"),
    **dict.fromkeys(("bottle", "chair", "diningtable", "pottedplant", "sofa", "tvmonitor"), "indoor"),
    "person": "person",
}
"""The four groups in which VOC lists its labels."""

Difficult = Literal["ignore", "absent", "present"]


@dataclass(frozen=True)
class Part:
    """One list of images and the split that they go to.

    Attributes:
        year: folder of the images' release, ``"VOC2007"``.
        list: the list's file.
        split: ``"train"``, ``"val"`` or ``"test"``.
    """

    year: str
    list: Path
    split: Literal["train", "val", "test"]


@dataclass(frozen=True)
class Protocol:
    """What the field disagrees on, and how images are stored.

    Attributes:
        difficult: state of a label that only difficult objects show.
        label_names: the labels and their order; None for all.
        val_fraction: share of the training images that validate.
        seed: of that draw.
        image_size: side of stored images, pixels.
        resize: how pictures become squares.
        channels: 3 or 1.
        upright: turn pictures as their EXIF orientation says.
    """

    difficult: Difficult
    label_names: list[str] | None
    val_fraction: float
    seed: int
    image_size: int
    resize: Resize
    channels: Literal[1, 3]
    upright: bool


def voc_problems(name: str) -> Problems:
    """The collector of a data set in VOC's format."""
    return Problems(f"Expected the annotations of data set {name} to describe existing images correctly", complete=True)


def find_releases(root: str, releases: Mapping[str, Sequence[str]], name: str, problems: Problems) -> dict[str, Path]:
    """The folder of each release, such as ``VOC2007``, with its image sets of those names.

    Args:
        root: folder that holds the releases, or ``VOCdevkit`` with them, or is the one release.
        releases: names of the image sets needed of each release.
        name: the data set, for the message.
        problems: where to note what is not there.

    Raises:
        InputError: there is no such root.
    """
    parts = [
        (f"{year}/{inside}",)
        for year, sets in releases.items()
        for inside in (*(f"ImageSets/Main/{s}.txt" for s in sets), "Annotations", "JPEGImages")
    ]
    tried = ["VOCdevkit", "."]
    place = Path(root).expanduser()
    if len(releases) == 1 and place.name in releases:
        tried.append("..")
    first = find_parts(root, tried, parts, name, problems)[0]
    devkit = first.parents[len(Path(parts[0][0]).parts) - 1]
    return {year: devkit / year for year in releases}


def image_set(folder: Path, name: str) -> Path:
    """The file of an image set of one release."""
    return folder / "ImageSets" / "Main" / f"{name}.txt"


@dataclass(frozen=True)
class _Image:
    """One image of one list; names are unique over all releases."""

    part: Part
    name: str
    folder: Path

    @property
    def picture(self) -> Path:
        """Its pixels."""
        return self.folder / "JPEGImages" / f"{self.name}.jpg"

    @property
    def annotation(self) -> Path:
        """Its objects."""
        return self.folder / "Annotations" / f"{self.name}.xml"


def voc_dataset(
    name: str,
    parts: Sequence[Part],
    folders: Mapping[str, Path],
    protocol: Protocol,
    expected: Mapping[str, int],
    groups: Mapping[str, str] = GROUPS,
    problems: Problems | None = None,
) -> Dataset:
    """The data set of some lists; annotations are read when its table is asked for.

    Args:
        name: the factory's name.
        parts: the lists.
        folders: of each release, by name.
        protocol: what the user chose.
        expected: published counts.
        groups: the group of each label.
        problems: what is wrong already. If there is anything, or with label names or lists, all
            that is there is read at once.

    Raises:
        InputError: everything that is wrong, all problems at once.
    """
    problems = voc_problems(name) if problems is None else problems
    columns = problems.attempt(choose_labels, protocol.label_names, LABEL_NAMES, name) or []
    names = tuple(protocol.label_names or LABEL_NAMES)
    images = sorted(
        (
            _Image(part, image, folders[part.year])
            for part in parts
            if part.list.exists()
            for image in read_ids(part.list, problems)
        ),
        key=lambda image: image.name,
    )
    if problems:
        _read_all(_Reader(columns, protocol.difficult, problems), images)
        problems.finish()
    size, resize, channels = protocol.image_size, protocol.resize, protocol.channels
    return Dataset(
        name=name,
        version=VERSION,
        identity={
            "options": {**vars(protocol), "label_names": list(names)},
            "lists": sorted([image.name, image.part.split] for image in images),
            **_fingerprints(images),
        },
        label_names=names,
        image_shape=(size, size, channels),
        table=functools.cache(lambda: _table(name, images, columns, protocol)),
        image=lambda row: decode(images[row].picture, size, channels, resize, upright=protocol.upright),
        licence=LICENCE,
        parents=tuple(groups[LABEL_NAMES[place]] for place in columns),
        expected=expected,
    )


def _fingerprints(images: list[_Image]) -> dict[str, str]:
    """SHA-256 of all annotations, and of names, sizes and times of all images that exist."""
    annotations = hashlib.sha256()
    for image in images:
        content = _content(image)
        annotations.update(
            f"{image.name} {hashlib.sha256(content).hexdigest() if content is not None else ''}\n".encode()
        )
    stamps = stamps_of((image.name, image.picture) for image in images if image.picture.is_file())
    return {"annotations_sha256": annotations.hexdigest(), "files_sha256": stamps_sha256(stamps)}


def _content(image: _Image) -> bytes | None:
    try:
        return image.annotation.read_bytes()
    except OSError:
        return None


@dataclass
class _Reader:
    """Goes through the images and collects what is wrong on the way."""

    columns: list[int]
    difficult: Difficult
    problems: Problems
    things: list[tuple[int, int, Thing]] = field(default_factory=list)
    flags: list[tuple[int, int]] = field(default_factory=list)
    folders: dict[Path, bool] = field(default_factory=dict)

    def annotation(self, image: _Image) -> Annotation:
        """What an image's file says; missing files are problems."""
        if not image.picture.is_file() and self.is_there(image.picture.parent):
            self.problems.add(f"{image.part.year}/JPEGImages/{image.name}.jpg: no such image")
        content = _content(image)
        if content is None:
            if self.is_there(image.annotation.parent):
                self.problems.add(f"{image.part.year}/Annotations/{image.name}.xml: no such file")
            return Annotation((), (0, 0), 0, [])
        found = read_annotation(content)
        unknown = sorted({thing.name for thing in found.things} - set(LABEL_NAMES))
        wrong = [*found.problems, *(f"label {name!r}. {nearest(name, LABEL_NAMES)}" for name in unknown)]
        for what in wrong:
            self.problems.add(f"{image.part.year}/Annotations/{image.name}.xml: {what}")
        return found

    def is_there(self, folder: Path) -> bool:
        """Whether a folder is there; one that is not was named once and for all."""
        if folder not in self.folders:
            self.folders[folder] = folder.exists()
        return self.folders[folder]

    def states(self, row: int, things: Sequence[Thing]) -> list[int]:
        """One state per label of an image; keeps its flags and its objects that count."""
        states = []
        for column, place in enumerate(self.columns):
            mine = [thing for thing in things if thing.name == LABEL_NAMES[place]]
            plain = [thing for thing in mine if not thing.difficult]
            state = PRESENT if plain else ABSENT
            if mine and not plain:
                state = {"ignore": UNKNOWN, "absent": ABSENT, "present": PRESENT}[self.difficult]
                self.flags.append((row, column))
            if state == PRESENT:
                counted = mine if self.difficult == "present" else plain
                self.things += [(row, column, thing) for thing in counted]
            states.append(state)
        return states


def _table(name: str, images: list[_Image], columns: list[int], protocol: Protocol) -> Table:
    reader = _Reader(columns, protocol.difficult, voc_problems(name))
    found = _read_all(reader, images)
    reader.problems.finish()
    states = [reader.states(row, annotation.things) for row, annotation in enumerate(found)]
    ids = [image.name for image in images]
    files = [image.picture for image in images]
    headers = read_headers(files)
    said = np.array([annotation.size for annotation in found], dtype=np.float64).reshape(-1, 2)
    sizes, differing = agree_on_sizes(said, headers.sizes, ids)
    report: dict[str, Any] = {"equal_annotations_dropped": sum(annotation.duplicates for annotation in found)}
    differences = _class_file_differences(images, found)
    report["class_file_differences"] = len(differences)
    report["class_file_differences_first"] = differences[:10]
    objects = _objects(reader)
    report["warnings"] = size_warnings(differing) + outside_warnings(objects, sizes, ids)
    return Table(
        ids,
        _held_out(name, images, protocol),
        np.array(states, dtype=np.int8),
        np.full(len(images), NO_OWNER, dtype=np.int64),
        stored_objects(
            objects,
            sizes,
            protocol.image_size,
            protocol.resize,
            headers.orientations if protocol.upright else None,
        ),
        [str(file) for file in files],
        report={**report, **headers.report, **differing},
        flags=_flags(reader),
    )


def _read_all(reader: _Reader, images: list[_Image]) -> list[Annotation]:
    """The annotations of all images; what is wrong with them, each and together, is noted."""
    for leak in _leaks(images):
        reader.problems.add(leak)
    return [reader.annotation(image) for image in images]


def _leaks(images: list[_Image]) -> list[str]:
    """Images of two lists, and images of VOC 2007 in the lists of another year."""
    lists: dict[str, list[str]] = {}
    for image in images:
        lists.setdefault(image.name, []).append(str(image.part.list))
    problems = [f"{' and '.join(named)}: {name} is in both" for name, named in lists.items() if len(named) > 1]
    if len({image.part.year for image in images}) > 1:
        # VOC 2012 keeps some pictures of 2007, under other names, for segmentation alone.
        problems += [
            f"{image.part.list}: {image.name} is an image of 2007, whose test images it may be among"
            for image in images
            if image.part.year != "VOC2007" and image.name.startswith("2007_")
        ]
    return problems


def _class_file_differences(images: list[_Image], found: list[Annotation]) -> list[str]:
    """Where the class files that lie beside the lists say anything else than the annotations."""
    means: dict[tuple[Path, str], dict[str, int]] = {}
    for image, annotation in zip(images, found, strict=True):
        # False sorts before True: a plain object goes last and stays.
        things = sorted(annotation.things, key=lambda thing: not thing.difficult)
        means[image.part.list, image.name] = {t.name: DIFFICULT if t.difficult else PLAIN for t in things}
    differences = []
    for file in sorted({image.part.list for image in images}):
        for label in LABEL_NAMES:
            said = file.with_name(f"{label}_{file.name}")
            try:
                values = read_class_file(said) if said.is_file() else {}
            except InputError as error:
                differences.append(str(error))
                continue
            for name, value in values.items():
                expected = means.get((file, name), {}).get(label, NONE)
                if value != str(expected):
                    differences.append(f"{said.name}: {name} has {value or 'nothing'}, its annotation means {expected}")
    return differences


def _objects(reader: _Reader) -> Objects:
    things = reader.things
    box = np.array([thing.box for _, _, thing in things], dtype=np.float32).reshape(-1, 4)
    return Objects(
        np.array([row for row, _, _ in things], dtype=np.int64),
        np.array([column for _, column, _ in things], dtype=np.int16),
        box,
        box[:, 2] * box[:, 3],
    )


def _flags(reader: _Reader) -> Flags | None:
    if not reader.flags:
        return None
    row, label = np.array(reader.flags, dtype=np.int64).T
    return Flags(row, label.astype(np.int16), np.full(len(row), DIFFICULT_ONLY, dtype=np.uint8))


def _held_out(name: str, images: list[_Image], protocol: Protocol) -> list[str]:
    """The splits, after a share of the training images was set aside where no list validates."""
    splits = [image.part.split for image in images]
    if "val" in splits:
        return list[str](splits)
    groups = text_keys([image.name for image in images]).astype(np.int64)
    return deal(splits, groups, {"val": protocol.val_fraction}, protocol.seed, name)


def positives(counts: Mapping[str, int], protocol: Protocol) -> dict[str, int]:
    """Published image counts per label as expected counts, where all labels are kept."""
    return {f"positives/{name}": n for name, n in counts.items()} if protocol.label_names is None else {}
