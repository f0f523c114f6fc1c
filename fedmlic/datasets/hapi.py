"""HAPI's benchmarks: images of COCO, VOC or MIRFLICKR with the labels that HAPI counts as true.

Source: Chen et al., "HAPI" (NeurIPS 2022 Datasets and Benchmarks), github.com/lchen001/HAPI;
for the labels of 2020 also FrugalMCT (ICML 2022). HAPI holds no images: they come from the
benchmarks themselves. Label names, their number and every image's label set are HAPI's, which
makes this the truth that its APIs were measured against; the regime ``hapi`` makes their
predictions the observed labels. For everything else about these images use ``coco2014``,
``voc2012`` or ``mirflickr``, which the regime joins as well.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from fedmlic.dataset import NO_OWNER, Dataset, Table
from fedmlic.errors import InputError, listing, nearest
from fedmlic.files import IMAGES, find_files, stamps_of, stamps_sha256
from fedmlic.formats import frugalmct
from fedmlic.formats import hapi as files
from fedmlic.images import Resize, decode
from fedmlic.labels import ABSENT, PRESENT
from fedmlic.problems import Problems
from fedmlic.sources.groups import deal, number_groups
from fedmlic.sources.headers import read_headers
from fedmlic.sources.options import Channels, HeldOut, ImageSize, Seed
from fedmlic.sources.place import source_root

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = "1"
FOLDERS = ("", "train2014", "val2014", "JPEGImages", "VOC2012/JPEGImages", "mirflickr")
"""Where images lie below the folder of images."""


def _names(true: files.Answers, chosen: list[str] | None) -> tuple[str, ...]:
    found = sorted({name for names in true.names for name in names})
    if chosen is None:
        return tuple(found)
    wrong = [f"{name!r}: {nearest(name, found)}" for name in chosen if name not in found]
    if wrong:
        raise listing("Expected label_names of hapi to be labels of the benchmark", wrong)
    if not chosen or len(set(chosen)) != len(chosen):
        msg = f"Expected label_names of hapi to be different labels, at least one, got {chosen}."
        raise InputError(msg)
    return tuple(chosen)


def _truth(place: Path, benchmark: str, problems: Problems) -> files.Answers:
    """The labels, from whichever of the two forms lies there."""
    older = not files.runs(place, benchmark) and frugalmct.runs(place, benchmark)
    return frugalmct.truth(place, benchmark, problems) if older else files.truth(place, benchmark, problems)


def _labels(true: files.Answers, rows: list[int], names: tuple[str, ...]) -> NDArray[np.int8]:
    """int8 ``[images, labels]``; a name that repeats is one label."""
    column = {name: place for place, name in enumerate(names)}
    labels = np.full((len(rows), len(names)), ABSENT, dtype=np.int8)
    for place, row in enumerate(rows):
        labels[place, [column[name] for name in true.names[row] if name in column]] = PRESENT
    return labels


def _found(place: Path, true: files.Answers, missing: str, problems: Problems) -> tuple[list[int], dict[str, Path]]:
    """Rows of the labels in the order of their ids, and the file of every id among them.

    Images that the disk lacks or has twice are ``problems``.
    """
    found, double = find_files([place / folder for folder in FOLDERS], IMAGES)
    own = problems.within(f"Expected {place} to hold every image of the benchmark once")
    for line in double:
        own.add(line)
    file_of = {path.stem: path for path in found.values()}
    rows = sorted(range(len(true.example_ids)), key=true.example_ids.__getitem__)
    for row in rows if missing == "error" else ():
        if true.example_ids[row] not in file_of:
            own.add(f"no image {true.example_ids[row]!r}")
    return [row for row in rows if true.example_ids[row] in file_of], file_of


def hapi(
    *,
    root: str = "",
    images: Annotated[str, Field(min_length=1)],
    benchmark: Literal["coco", "pascal", "mir"] = "pascal",
    label_names: list[str] | None = None,
    missing: Literal["error", "leave_out"] = "error",
    image_size: ImageSize = 224,
    resize: Resize = "squash",
    channels: Channels = 3,
    val_fraction: HeldOut = 0.1,
    test_fraction: Annotated[float, Field(ge=0, le=0.4)] = 0.2,
    seed: Seed = 0,
) -> Dataset:
    """The images of a benchmark with HAPI's true labels.

    Args:
        root: HAPI's data folder (it holds ``tasks``) or FrugalMCT's (it holds
            ``mlserviceperformance_...``); blank is ``$HAPI_DATA_DIR``, else ``~/.hapi``.
        images: folder of the benchmark's images: they lie in it or in its ``train2014``,
            ``val2014``, ``JPEGImages``, ``VOC2012/JPEGImages`` or ``mirflickr``.
        benchmark: ``coco`` (train and val 2014), ``pascal`` (VOC 2012 trainval) or ``mir``
            (MIRFLICKR-25k).
        label_names: the labels to keep and their order; all, alphabetically, by default.
        missing: what to do with images that the disk lacks: an error, or leave them out and
            count them.
        image_size: height and width of stored images, pixels.
        resize: ``squash`` changes the aspect, ``crop`` cuts the longer side around the
            centre, ``pad`` adds black bars.
        channels: 3 (colour) or 1 (grey).
        val_fraction: share of the images for validation.
        test_fraction: share of the images for testing; for ``coco`` the images of val 2014
            are the test images instead.
        seed: of the random split.

    Raises:
        InputError: the labels or the images are wrong; all problems at once.
    """
    problems = Problems(f"Expected the labels and images of {benchmark} to be whole and correct", complete=True)
    place = problems.attempt(files.data_folder, root)
    answers = None if place is None else problems.attempt(_truth, place, benchmark, problems)
    true = answers or files.Answers([], [], np.empty(0, dtype=np.float32), [])
    folder = problems.attempt(source_root, "hapi", images, f"the images of {benchmark}")
    rows, file_of = _found(folder, true, missing, problems) if folder is not None else ([], {})
    problems.finish()
    names = _names(true, label_names)
    ids = [true.example_ids[row] for row in rows]
    labels = _labels(true, rows, names)
    paths = [file_of[example_id] for example_id in ids]
    fixed = ["test" if "_val2014_" in example_id else "train" for example_id in ids]
    shares = {"val": val_fraction} if benchmark == "coco" else {"test": test_fraction, "val": val_fraction}
    splits = deal(fixed, number_groups(ids)[0], shares, seed, "hapi")

    def table() -> Table:
        nobody = np.full(len(ids), NO_OWNER, dtype=np.int64)
        report = {**read_headers(paths).report, "left_out": {"no_file": len(true.example_ids) - len(ids)}}
        return Table(ids, splits, labels, nobody, None, [str(path) for path in paths], [], report)

    digest = hashlib.sha256(repr(sorted(zip(true.example_ids, true.names, strict=True))).encode()).hexdigest()
    return Dataset(
        name="hapi",
        version=VERSION,
        identity={
            "options": [benchmark, resize],
            "size": [image_size, channels],
            "dealt": {**shares, "seed": seed},
            "label_names": list(names),
            "labels_sha256": digest,
            "files": stamps_sha256(stamps_of(zip(ids, paths, strict=True))),
        },
        label_names=names,
        image_shape=(image_size, image_size, channels),
        table=table,
        image=lambda row: decode(paths[row], image_size, channels, resize, upright=False),
        licence="HAPI: Apache-2.0; the images have the licences of their benchmark",
        expected={} if benchmark != "coco" or val_fraction else {"train": 82783, "test": 40504},
    )
