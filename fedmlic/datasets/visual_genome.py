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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from fedmlic.dataset import Dataset, Objects, Table
from fedmlic.errors import InputError
from fedmlic.files import Stamp, check_present, files_sha256, list_files, stamps_sha256
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
from fedmlic.problems import Problems, check_unique
from fedmlic.sources.groups import number_groups
from fedmlic.sources.objects import boxed_objects
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
    left_out: Mapping[str, int] | None = None


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


def _released(root: Path, name: str) -> Path:
    return first_existing(root, [f"{folder}{name}" for folder in LIST_FOLDERS], f"the released file {name}")


def _read_lists(root: Path) -> tuple[dict[str, int], list[Path]]:
    """The split of each image name, from the two released lists."""
    files = [_released(root, f"{part}_list_500.txt") for part in ("train", "test")]
    train, test = ([line for _, line in read_lines(path)] for path in files)
    check_unique("Expected the released lists to name each image once", train + test)
    return {**dict.fromkeys(train, TRAIN), **dict.fromkeys(test, TEST)}, files


def _read_released(root: Path, labels: Labels, names_file: str | None) -> _Source:
    size = SIZES[labels]
    lists, files = _read_lists(root)
    own = [root / f"{folder}vg_category_200_labels_index.json" for folder in LIST_FOLDERS]
    found = [path for path in own if labels == "vg200" and path.is_file()]
    # Where the file of 200 is not there, it is that of 500 without what lies above.
    index_file = found[0] if found else _released(root, "vg_category_500_labels_index.json")
    limit = size if found else SIZES["vg500"]
    index = read_json(index_file)
    problems = Problems(f"Expected {index_file} to give every listed image a list of indices below {limit}")
    rows: list[int] = []
    columns: list[int] = []
    for number, name in enumerate(lists):
        own_labels = index.get(name) if isinstance(index, dict) else None
        if type(own_labels) is not list or not all(type(i) is int and 0 <= i < limit for i in own_labels):
            problems.add(f"{name}: {str(own_labels)[:80]}")
            continue
        rows += [number] * len(own_labels)
        columns += own_labels
    problems.finish()
    row, column = np.array(rows, dtype=np.int64), np.array(columns, dtype=np.int64)
    used = column < size
    label_names = [f"{labels}_{place:03d}" for place in range(size)]
    if names_file is not None:
        files = [*files, root / names_file]
        label_names = [line for _, line in read_lines(root / names_file)]
        check_unique(f"Expected {root / names_file} to name each label once", label_names)
        if len(label_names) != size:
            msg = f"Expected {root / names_file} to name {size} labels, a line each, got {len(label_names)}."
            raise InputError(msg)
    return _Source(
        list(lists), row[used], column[used], label_names, np.array(list(lists.values())), [*files, index_file]
    )


def _read_topk(root: Path, options: _Options) -> _Source:
    files = [root / "image_data.json", root / "objects.json"]
    images = read_image_data(files[0])
    aliases: dict[str, str] = {}
    if options.aliases:
        files.append(first_existing(root, ("object_alias.txt",), "the alias file (or give aliases=False)"))
        aliases = read_aliases(files[-1])
    boxes = read_objects(files[1], aliases)
    strangers = sorted(set(np.unique(boxes.image_id).tolist()) - set(images))
    if strangers:
        msg = f"Expected {files[0]} to describe every image of {files[1]}, got none of {strangers[:10]}."
        raise InputError(msg)
    lists: dict[str, int] | None = None
    if options.split == "lists":
        lists, list_files_ = _read_lists(root)
        files += list_files_
    ids = sorted(i for i in images if lists is None or f"{i}.jpg" in lists)
    kept = [i for i in ids if options.coco == "keep" or not images[i].in_coco]
    ranked = commonest(boxes, kept, options.min_images)
    if len(ranked) < options.k:
        msg = (
            f"Expected k to be at most {len(ranked)}, the names that {max(options.min_images, 1)} or more images "
            f"have, got {options.k}. Use a smaller k or min_images."
        )
        raise InputError(msg)
    objects = _objects(boxes, kept, images, ranked[: options.k], options)
    listed = None if lists is None else np.array([lists[f"{i}.jpg"] for i in kept], dtype=np.int64)
    left_out = {"not_in_lists": len(images) - len(ids), "coco_dropped": len(ids) - len(kept)}
    names = [boxes.names[place] for place in ranked[: options.k]]
    columns = objects.label.astype(np.int64)
    return _Source([f"{i}.jpg" for i in kept], objects.row, columns, names, listed, files, objects, left_out)


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


def _drop_coco(source: _Source, root: Path, labels: Labels, coco: str) -> NDArray[np.bool_]:
    """Which rows of the released lists stay."""
    if labels == "topk" or coco == "keep":
        return np.ones(len(source.names), dtype=np.bool_)
    images = read_image_data(root / "image_data.json")
    in_coco = {f"{image_id}.jpg" for image_id, about in images.items() if about.in_coco}
    return np.array([name not in in_coco for name in source.names])


def _locate(root: Path) -> tuple[dict[str, Path], dict[str, Stamp], int]:
    """The file, size and time of every image by name, and how many lie in two folders."""
    folders = [root / name for name in FOLDERS if (root / name).is_dir()]
    if not folders:
        first_existing(root, FOLDERS, "the folders of images")
    problems = Problems("Expected an image that lies in two folders to be the same")
    paths: dict[str, Path] = {}
    stamps: dict[str, Stamp] = {}
    double = 0
    for folder in folders:
        for name, stamp in list_files(folder).items():
            if name in paths:
                double += 1
                if stamps[name][0] != stamp[0]:
                    problems.add(f"{paths[name]} and {folder / name} have {stamps[name][0]} and {stamp[0]} bytes")
                continue
            paths[name], stamps[name] = folder / name, stamp
    problems.finish()
    return paths, stamps, double


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
    keep = _drop_coco(source, root, options.labels, options.coco)
    here = np.array([name in stamps and stamps[name][0] > 0 for name in source.names])
    if options.missing == "error":
        wanted = [source.names[row] for row in np.flatnonzero(keep).tolist()]
        check_present("visual_genome", wanted, stamps, root / FOLDERS[0])
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
    source = _read_topk(top, options) if labels == "topk" else _read_released(top, labels, label_names)
    paths, stamps, double = _locate(top)
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
