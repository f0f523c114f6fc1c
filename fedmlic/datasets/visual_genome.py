"""Visual Genome: 108,077 photographs whose objects people named freely.

``vg500`` and ``vg200`` are the released lists of SSGRL: files of image names and of indices,
without the labels' names. ``topk`` counts names in ``objects.json`` and keeps the commonest; no
published definition of "VG-256" was found, so such numbers compare only under one name list,
whose hash is in the report.

Annotators named what they saw and no more: an absent label is unknown in truth, though every
paper scores it as absent.

Source: Krishna et al. 2017, "Visual Genome" (IJCV); Chen et al. 2019, "Learning Semantic-Specific
Graph Representation for Multi-Label Image Recognition" (github.com/HCPLab-SYSU/SSGRL).
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from fedmlic.dataset import Dataset, Objects, Table
from fedmlic.files import Stamp, check_present, files_sha256, list_files, stamps_sha256
from fedmlic.formats.fields import short, text_fault
from fedmlic.formats.id_list import read_ids
from fedmlic.formats.reading import read_json, read_lines
from fedmlic.formats.visual_genome import (
    ImageData,
    NamedBoxes,
    commonest,
    read_aliases,
    read_image_data,
    read_objects,
)
from fedmlic.images import Resize, decode
from fedmlic.labels import ABSENT, PRESENT, UNKNOWN
from fedmlic.problems import Problems
from fedmlic.sources.groups import number_groups
from fedmlic.sources.objects import boxed_objects, outside_warnings
from fedmlic.sources.options import Channels, HeldOut, ImageSize, Root, Seed
from fedmlic.sources.place import first_existing, source_root
from fedmlic.sources.rows import TEST, TRAIN, Rows, hold_out_val, make_table
from fedmlic.splits import hold_out

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = "1"
FOLDERS = ("VG_100K", "VG_100K_2", "images/VG_100K", "images2/VG_100K_2")
LIST_FOLDERS = ("", "ssgrl/", "ssgrl_partition/", "annotations/")
SIZES = {"vg500": 500, "vg200": 200}
RELEASED_COUNTS = {"train": 82904, "test": 10000}

Labels = Literal["vg500", "vg200", "topk"]


@dataclass(frozen=True)
class _Source:
    """Rows before splitting: file names, present entries and where the lists put each row."""

    names: list[str]
    row: NDArray[np.int64]
    column: NDArray[np.int64]
    label_names: list[str]
    listed: NDArray[np.int64] | None
    files: list[Path]
    objects: Objects | None = None
    left_out: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class _Options:
    labels: Labels
    k: int
    min_images: int
    aliases: bool
    absent: Literal["absent", "unknown"]
    split: Literal["auto", "lists", "random"]
    coco: Literal["keep", "drop"]
    drop_unlabelled: bool
    missing: Literal["error", "drop"]
    image_size: int
    resize: Resize
    val_fraction: float
    test_fraction: float
    seed: int


def _problems() -> Problems:
    return Problems("Expected the files of data set visual_genome to be whole and to agree", complete=True)


def _released(root: Path, name: str) -> Path:
    return first_existing(root, [f"{folder}{name}" for folder in LIST_FOLDERS], f"the released file {name}")


def _read_lists(root: Path, problems: Problems) -> tuple[dict[str, int], list[Path]]:
    """The split of each image name, from the two released lists."""
    files = [problems.attempt(_released, root, f"{part}_list_500.txt") for part in ("train", "test")]
    there = [path for path in files if path is not None]
    own = problems.within(f"Expected {' and '.join(map(str, there))} to name each image once")
    splits: dict[str, int] = {}
    for path, split in zip(files, (TRAIN, TEST), strict=True):
        names = read_ids(path, problems) if path is not None else []
        for name in names:
            if name in splits:
                own.add(f"{name} appears 2 times")
            splits[name] = split
    return splits, there


def _read_released(root: Path, labels: Labels, names_file: str | None, problems: Problems) -> _Source:
    size = SIZES[labels]
    lists, files = _read_lists(root, problems)
    own = [root / f"{folder}vg_category_200_labels_index.json" for folder in LIST_FOLDERS]
    found = [path for path in own if labels == "vg200" and path.is_file()]
    # Where the file of 200 is not there, it is that of 500 without what lies above.
    index_file = found[0] if found else problems.attempt(_released, root, "vg_category_500_labels_index.json")
    entries = _read_index(index_file, lists, size if found else SIZES["vg500"], problems) if index_file else []
    pairs = np.array([(number, label) for number, label in entries if label < size], dtype=np.int64).reshape(-1, 2)
    label_names = [f"{labels}_{place:03d}" for place in range(size)]
    if names_file is not None:
        files.append(root / names_file)
        label_names = _read_names(files[-1], size, problems)
    files += [index_file] if index_file else []
    return _Source(list(lists), pairs[:, 0], pairs[:, 1], label_names, np.array(list(lists.values())), files)


def _read_index(path: Path, names: Iterable[str], limit: int, problems: Problems) -> list[tuple[int, int]]:
    """Place of the image and number of the label of every entry of the listed images."""
    own = problems.within(f"Expected {path} to give every listed image a list of indices below {limit}")
    index = own.attempt(read_json, path)
    if own:
        return []
    if not isinstance(index, dict):
        own.add(short(index))
        return []
    entries: list[tuple[int, int]] = []
    for number, name in enumerate(names):
        labels = index.get(name)
        if type(labels) is not list or not all(type(i) is int and 0 <= i < limit for i in labels):
            own.add(f"{name}: {short(labels)}" if name in index else f"{name}: nothing")
            continue
        entries += [(number, label) for label in labels]
    return entries


def _read_names(path: Path, size: int, problems: Problems) -> list[str]:
    """Names of the labels, a line each."""
    own = problems.within(f"Expected {path} to name {size} labels, a line each, each once")
    lines = own.attempt(read_lines, path)
    seen: dict[str, int] = {}
    for number, name in lines or ():
        if fault := text_fault(name):
            own.add(f"line {number}: {name!r} {fault}")
        if name in seen:
            own.add(f"line {number}: {name!r}, as in line {seen[name]}")
        seen.setdefault(name, number)
    if lines is not None and len(lines) != size:
        own.add(f"{len(lines)} names")
    return [name for _, name in lines or ()]


def _read_topk(root: Path, options: _Options, problems: Problems) -> _Source:
    """The counted labels; the images alone if anything is wrong."""
    files = [root / "image_data.json", root / "objects.json"]
    aliases: dict[str, str] = {}
    if options.aliases:
        what = "the alias file (or give aliases=False)"
        alias_file = problems.attempt(first_existing, root, ("object_alias.txt",), what)
        if alias_file is not None:
            files.append(alias_file)
            aliases = read_aliases(alias_file, problems)
    before = len(problems)
    images = read_image_data(files[0], problems)
    boxes = read_objects(files[1], aliases, problems)
    if len(problems) == before:
        # What could not be read of one file is not missing there.
        _compare(images, boxes, files, problems)
    lists: dict[str, int] | None = None
    if options.split == "lists":
        lists, list_files_ = _read_lists(root, problems)
        files += list_files_
    ids = sorted(i for i in images if lists is None or f"{i}.jpg" in lists)
    kept = [i for i in ids if options.coco == "keep" or not images[i].in_coco]
    ranked = commonest(boxes, kept, options.min_images)
    if len(ranked) < options.k and not problems:
        problems.note(
            f"Expected k to be at most {len(ranked)}, the names that {max(options.min_images, 1)} or more images "
            f"have, got {options.k}. Use a smaller k or min_images."
        )
    if problems:
        nothing = np.empty(0, dtype=np.int64)
        return _Source([f"{i}.jpg" for i in kept], nothing, nothing, [], None, files, left_out={})
    objects = _objects(boxes, kept, images, ranked[: options.k], options)
    listed = None if lists is None else np.array([lists[f"{i}.jpg"] for i in kept], dtype=np.int64)
    left_out = {
        "not_in_lists": len(images) - len(ids),
        "coco_dropped": len(ids) - len(kept),
        "objects_without_name": boxes.nameless,
        "warnings": _outside(boxes, images),
    }
    names = [boxes.names[place] for place in ranked[: options.k]]
    columns = objects.label.astype(np.int64)
    return _Source([f"{i}.jpg" for i in kept], objects.row, columns, names, listed, files, objects, left_out)


def _outside(boxes: NamedBoxes, images: Mapping[int, ImageData]) -> list[str]:
    """A warning if boxes lie outside of their images."""
    ids = sorted(images)
    sizes = np.array([images[i][:2] for i in ids], dtype=np.float64).reshape(-1, 2)
    row = np.searchsorted(np.array(ids, dtype=np.int64), boxes.image_id)
    every = Objects(row.astype(np.int64), np.zeros(len(row), dtype=np.int16), boxes.box, boxes.box[:, 2])
    return outside_warnings(every, sizes, [f"{i}.jpg" for i in ids])


def _compare(images: Mapping[int, ImageData], boxes: NamedBoxes, files: list[Path], problems: Problems) -> None:
    """Note images that only one of the two files has; one without objects is listed with none."""
    for image_id in sorted(set(boxes.listed) - set(images)):
        problems.note(f"Expected {files[0]} to describe every image of {files[1]}, got nothing of image {image_id}.")
    for image_id in sorted(set(images) - set(boxes.listed)):
        problems.note(f"Expected {files[1]} to list the objects of every image, got nothing of image {image_id}.")


def _objects(
    boxes: NamedBoxes, kept: list[int], images: Mapping[int, ImageData], labels: list[int], options: _Options
) -> Objects:
    """The boxes of chosen names on chosen images, in pixels of the stored images."""
    column = np.full(len(boxes.names), -1, dtype=np.int64)
    column[labels] = np.arange(len(labels))
    ids = np.array(kept, dtype=np.int64)
    row = np.minimum(np.searchsorted(ids, boxes.image_id), len(ids) - 1)
    chosen = np.flatnonzero((ids[row] == boxes.image_id) & (column[boxes.name] >= 0))
    chosen = chosen[np.argsort(row[chosen], kind="stable")]
    sizes = np.array([images[i][:2] for i in kept], dtype=np.float64)[row[chosen]]
    label = column[boxes.name[chosen]]
    return boxed_objects(row[chosen], label, boxes.box[chosen], sizes, options.image_size, options.resize)


def _drop_coco(source: _Source, root: Path, options: _Options, problems: Problems) -> NDArray[np.bool_]:
    """Which rows of the released lists stay."""
    if options.labels == "topk" or options.coco == "keep":
        return np.ones(len(source.names), dtype=np.bool_)
    images = read_image_data(root / "image_data.json", problems)
    own = problems.within(f"Expected {root / 'image_data.json'} to say which listed images are in COCO")
    about = {f"{image_id}.jpg": image for image_id, image in images.items()}
    if not problems:
        for name in source.names:
            if name not in about:
                own.add(f"nothing of {name}")
    return np.array([name not in about or not about[name].in_coco for name in source.names], dtype=np.bool_)


def _locate(root: Path, problems: Problems) -> tuple[dict[str, Path], dict[str, Stamp], int]:
    """The file, size and time of every image by name, and how many lie in two folders."""
    folders = [root / name for name in FOLDERS if (root / name).is_dir()]
    if not folders:
        problems.attempt(first_existing, root, FOLDERS, "the folders of images")
    own = problems.within("Expected an image that lies in two folders to be the same")
    paths: dict[str, Path] = {}
    stamps: dict[str, Stamp] = {}
    double = 0
    for folder in folders:
        for name, stamp in list_files(folder).items():
            if name in paths:
                double += 1
                if stamps[name][0] != stamp[0]:
                    own.add(f"{paths[name]} and {folder / name} have {stamps[name][0]} and {stamp[0]} bytes")
                continue
            paths[name], stamps[name] = folder / name, stamp
    return paths, stamps, double


def _kept(
    root: Path, source: _Source, stamps: Mapping[str, Stamp], options: _Options, problems: Problems
) -> NDArray[np.bool_]:
    """Which rows stay, whether or not their files are here; missing ones are noted unless they may be."""
    keep = _drop_coco(source, root, options, problems)
    if options.missing == "error" and any((root / folder).exists() for folder in FOLDERS):
        wanted = [source.names[row] for row in np.flatnonzero(keep).tolist()]
        problems.attempt(check_present, "visual_genome", wanted, stamps, root / FOLDERS[0])
    return keep


def _splits(source: _Source, options: _Options) -> NDArray[np.int64]:
    if source.listed is not None and options.split != "random":
        splits = source.listed.astype(np.int64)
    else:
        test = hold_out(number_groups(source.names)[0], options.test_fraction, options.seed, "visual_genome/test")
        splits = np.where(test, TEST, TRAIN).astype(np.int64)
    return hold_out_val(splits, source.names, options.val_fraction, options.seed, "visual_genome")


def _build(
    root: Path,
    source: _Source,
    stamps: Mapping[str, Stamp],
    paths: Mapping[str, Path],
    report: Mapping[str, Any],
    options: _Options,
) -> tuple[Table, NDArray[np.int64]]:
    """The table and the source row of each of its rows."""
    problems = _problems()
    keep = _kept(root, source, stamps, options, problems)
    problems.finish()
    here = np.array([name in stamps and stamps[name][0] > 0 for name in source.names])
    absent = ABSENT if options.absent == "absent" else UNKNOWN
    labels = np.full((len(source.names), len(source.label_names)), absent, dtype=np.int8)
    labels[source.row, source.column] = PRESENT
    labelled = (labels == PRESENT).any(axis=1)
    about = {
        **report,
        **(source.left_out or {"coco_dropped": int((~keep).sum())}),
        "missing_dropped": int((keep & ~here).sum()),
        "unlabelled": int((keep & here & ~labelled).sum()),
        "label_names_sha256": hashlib.sha256(json.dumps(source.label_names).encode()).hexdigest(),
    }
    keep &= here & (labelled | np.bool_(not options.drop_unlabelled))
    sources = [str(paths.get(name, root / FOLDERS[0] / name)) for name in source.names]
    rows = Rows(source.names, _splits(source, options), labels, sources, objects=source.objects)
    return make_table(rows, about, keep)


def visual_genome(
    *,
    root: Root,
    labels: Labels = "vg500",
    k: Annotated[int, Field(ge=1, le=5000)] = 256,
    min_images: Annotated[int, Field(ge=0)] = 0,
    aliases: bool = True,
    label_names: str | None = None,
    absent: Literal["absent", "unknown"] = "absent",
    split: Literal["auto", "lists", "random"] = "auto",
    coco: Literal["keep", "drop"] = "keep",
    drop_unlabelled: bool = False,
    missing: Literal["error", "drop"] = "error",
    image_size: ImageSize = 224,
    resize: Resize = "squash",
    channels: Channels = 3,
    val_fraction: HeldOut = 0.1,
    test_fraction: Annotated[float, Field(ge=0, le=0.5)] = 0.1,
    seed: Seed = 0,
) -> Dataset:
    """Visual Genome with the released labels of SSGRL or its k commonest object names.

    Args:
        root: folder that holds ``VG_100K``, ``VG_100K_2`` and the annotation files; ``~`` is
            your home.
        labels: ``vg500`` or ``vg200`` (released lists), or ``topk`` (from ``objects.json``).
        k: how many names ``topk`` keeps.
        min_images: ``topk`` keeps names that so many images have.
        aliases: ``topk`` joins names as ``object_alias.txt`` says.
        label_names: a text file below ``root`` with a name per label, for the released lists,
            which have none.
        absent: what a label that nobody named means: ``absent`` as in every paper, or
            ``unknown`` as in truth.
        split: ``lists`` uses the released lists, ``random`` deals; ``auto`` is ``lists`` for
            ``vg500`` and ``vg200`` and ``random`` for ``topk``.
        coco: ``drop`` leaves out the 51,000 images or so that are also in COCO (needs
            ``image_data.json``).
        drop_unlabelled: leave out images with none of the labels.
        missing: images that the disk lacks, or empty files: ``error`` lists them, ``drop``
            counts them.
        image_size: height and width of stored images, pixels.
        resize: ``squash``, ``crop`` or ``pad``.
        channels: 3 (colour) or 1 (grey).
        val_fraction: share of the training images for validation.
        test_fraction: share of the images for testing, where the split is random.
        seed: of the random splits.

    Raises:
        InputError: files are missing, damaged or contradict each other; all problems at once.
    """
    options = _Options(
        labels, k, min_images, aliases, absent, split, coco, drop_unlabelled, missing, image_size, resize, val_fraction,
        test_fraction, seed,
    )  # fmt: skip
    top = source_root("visual_genome", root, "VG_100K, VG_100K_2 and the annotation files")
    problems = _problems()
    if labels == "topk":
        source = _read_topk(top, options, problems)
    else:
        source = _read_released(top, labels, label_names, problems)
    paths, stamps, double = _locate(top, problems)
    if problems:
        _kept(top, source, stamps, options, problems)
        problems.finish()
    built = functools.cache(lambda: _build(top, source, stamps, paths, {"in_two_folders": double}, options))

    def image(row: int) -> NDArray[np.uint8]:
        path = paths[source.names[built()[1][row]]]
        return decode(path, image_size, channels, resize, upright=False)

    chosen = [k, min_images, aliases, test_fraction] if labels == "topk" else [label_names, test_fraction]
    released = labels != "topk" and coco == "keep" and split != "random"
    return Dataset(
        name="visual_genome",
        version=VERSION,
        identity={
            "labels": [labels, *chosen],
            "options": [absent, split, coco, drop_unlabelled, missing, val_fraction, seed],
            "pixels": [image_size, channels, resize],
            "annotations": files_sha256(top, source.files),
            "images": stamps_sha256(stamps, source.names),
        },
        label_names=tuple(source.label_names),
        image_shape=(image_size, image_size, channels),
        table=lambda: built()[0],
        image=image,
        licence="CC BY 4.0",
        expected={
            "labels": len(source.label_names),
            **({"test": RELEASED_COUNTS["test"]} if released else {}),
            **({"train": RELEASED_COUNTS["train"]} if released and val_fraction == 0 else {}),
        },
    )
