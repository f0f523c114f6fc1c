"""UC Merced Land Use with several labels per image: 2,100 aerial photographs of 21 land uses, 17 labels.

Yang and Newsam cut 100 images of each land use (256 x 256 pixels of one foot) out of the National Map of the United
States Geological Survey; Chaudhuri et al. later wrote down everything that is seen on them, one to seven of 17 labels.
There is no official split. An image's land use is in its name and is no label here.

Sources: Yang and Newsam 2010, "Bag-of-Visual-Words and Spatial Extensions for Land-Use Classification" (ACM GIS);
Chaudhuri et al. 2018, "Multilabel Remote Sensing Image Retrieval Using a Semisupervised Graph-Theoretic Method" (IEEE
TGRS). The lists: Neumann et al. 2019, arXiv 1911.06721.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from fedmlic.dataset import SPLITS, Dataset, Table
from fedmlic.errors import nearest
from fedmlic.files import Stamp, digest, files_sha256, list_files, stamps_sha256
from fedmlic.formats.fields import short
from fedmlic.formats.reading import read_lines, read_text
from fedmlic.images import Resize, decode
from fedmlic.labels import ABSENT, PRESENT
from fedmlic.problems import Problems
from fedmlic.sources.groups import deal_within, number_groups
from fedmlic.sources.options import Channels, HeldOut, ImageSize, Root, Seed
from fedmlic.sources.place import first_existing, source_root
from fedmlic.sources.rows import Rows, make_table

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = "1"

COUNTS = {
    "airplane": 100, "bare-soil": 718, "buildings": 691, "cars": 886, "chaparral": 115, "court": 105, "dock": 100,
    "field": 103, "grass": 975, "mobile-home": 102, "pavement": 1300, "sand": 294, "sea": 100, "ship": 102,
    "tanks": 100, "trees": 1009, "water": 203,
}  # fmt: skip
"""Labels in the order of the file, and the images of each, counted in the published ``LandUse_Multilabeled.txt``."""

LAND_USES = (
    "agricultural", "airplane", "baseballdiamond", "beach", "buildings", "chaparral", "denseresidential", "forest",
    "freeway", "golfcourse", "harbor", "intersection", "mediumresidential", "mobilehomepark", "overpass", "parkinglot",
    "river", "runway", "sparseresidential", "storagetanks", "tenniscourt",
)  # fmt: skip

NAME = re.compile(r"([a-z]+)([0-9]{2})")
"""Land use and number of an image."""

LABEL_FILES = tuple(
    f"{folder}LandUse_Multilabeled.txt" for folder in ("", "multilabels/", "UCMerced_LandUse/", "Labels/")
)
FOLDERS = ("UCMerced_LandUse/Images", "Images")


def _name_fault(name: str) -> str:
    """What is wrong with the name of an image, or nothing."""
    found = NAME.fullmatch(name)
    if found is None:
        return f"{short(name)} is no name such as agricultural00"
    if found.group(1) not in LAND_USES:
        return f"{name} begins with no land use. {nearest(found.group(1), LAND_USES)}"
    return ""


def _land_use(name: str) -> str:
    return name[:-2]


def _read_labels(path: Path, outer: Problems) -> tuple[list[str], dict[str, list[int]]] | None:
    """The labels of the header, and 0 or 1 for each of them by image; None where there is no header to go by."""
    problems = outer.within(f"Expected {path} to hold the 17 labels in its header, then 0 or 1 for each, by tabs")
    text = problems.attempt(read_text, path)
    if text is None:
        return None
    # Cells are separated by tabs, so a line that ends with an empty cell must keep its last tab.
    lines = [(number, line.split("\t")) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    names = [cell.strip() for cell in lines[0][1][1:]] if lines else []
    for name in names:
        if name not in COUNTS:
            problems.add(f"line {lines[0][0]}: the label {short(name)}. {nearest(name[:100], COUNTS)}")
    for name in COUNTS:
        if names.count(name) != 1:
            problems.add(f"line {lines[0][0] if lines else 1}: the label {name!r} {names.count(name)} times")
    if sorted(names) != sorted(COUNTS):
        return None
    return names, _cells(lines[1:], len(names), problems)


def _cells(lines: Sequence[tuple[int, list[str]]], num_labels: int, problems: Problems) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for number, line in lines:
        name, *cells = (cell.strip() for cell in line)
        fault = _name_fault(name)
        if fault:
            problems.add(f"line {number}: {fault}")
        elif name in found:
            problems.add(f"line {number}: {name} for the second time")
        elif len(cells) != num_labels or not set(cells) <= {"0", "1"}:
            problems.add(f"line {number}: {len(cells)} cells {short(cells)}")
        if not fault:
            found.setdefault(name, [int(cell == "1") for cell in cells])
    return found


def _images(folder: Path, labelled: Mapping[str, object], stamps: Mapping[str, Stamp], outer: Problems) -> None:
    """Every image has labels and every labelled image is there."""
    own = outer.within(f"Expected the images below {folder} to be those with labels", complete=True)
    for name in sorted(labelled):
        stamp = stamps.get(_file(name))
        if stamp is None or stamp[0] == 0:
            own.add(f"{folder / _file(name)}: {'no such' if stamp is None else 'empty'} file")
    known = {_file(name) for name in labelled}
    for file in sorted(set(stamps) - known):
        own.add(f"{folder / file}: an image without a line in the label file")


def _file(name: str) -> str:
    return f"{_land_use(name)}/{name}.tif"


@dataclass(frozen=True)
class _Options:
    split: Literal["random", "lists"]
    owners: Literal["land_use", "none"]
    val_fraction: float
    test_fraction: float
    seed: int


def _list_files(root: Path, problems: Problems) -> list[Path]:
    """The published lists of training, validation and test images."""
    found = []
    for split in SPLITS:
        names = (f"uc_merced-{split}.txt", f"UCMerced_LandUse/uc_merced-{split}.txt")
        found.append(problems.attempt(first_existing, root, names, f"the list of {split} images"))
    return [path for path in found if path is not None]


def _listed_splits(files: Sequence[Path], labelled: Sequence[str], outer: Problems) -> list[str]:
    """The split of every image by the lists; every image is in one of them."""
    problems = outer.within("Expected each image to be in one of the lists of training, validation and test images")
    split_of: dict[str, str] = {}
    for split, path in zip(SPLITS, files, strict=True):
        for number, line in problems.attempt(read_lines, path) or ():
            name = line.removesuffix(".tif")
            if name not in labelled:
                problems.add(f"{path}, line {number}: {short(line)}, which has no labels")
            elif name in split_of:
                problems.add(f"{path}, line {number}: {name}, which is in {split_of[name]} already")
            else:
                split_of[name] = split
    for name in labelled:
        if name not in split_of:
            problems.add(f"{name} in none of them")
    return [split_of.get(name, "train") for name in labelled]


def _random_splits(names: Sequence[str], options: _Options) -> list[str]:
    """The share of each split from every land use."""
    groups, _ = number_groups([_land_use(name) for name in names])
    fractions = {"test": options.test_fraction, "val": options.val_fraction}
    return deal_within(["train"] * len(names), groups, names, fractions, options.seed, "uc_merced")


def _build(
    folder: Path, names: Sequence[str], labels: NDArray[np.int8], splits: Sequence[str], options: _Options
) -> Table:
    places = np.array([SPLITS.index(split) for split in splits], dtype=np.int64)
    owners = [_land_use(name) for name in names] if options.owners == "land_use" else []
    sources = [str(folder / _file(name)) for name in names]
    return make_table(Rows(names, places, labels, sources, owners), {})[0]


def uc_merced(
    *,
    root: Root,
    split: Literal["random", "lists"] = "random",
    owners: Literal["land_use", "none"] = "none",
    image_size: ImageSize = 224,
    resize: Resize = "squash",
    channels: Channels = 3,
    val_fraction: HeldOut = 0.2,
    test_fraction: HeldOut = 0.2,
    seed: Seed = 0,
) -> Dataset:
    """UC Merced Land Use with 17 labels.

    Args:
        root: folder that holds ``UCMerced_LandUse`` and ``LandUse_Multilabeled.txt``; ``~`` is your home.
        split: ``random``, the same share of every land use, or ``lists``: the published ``uc_merced-train.txt``,
            ``uc_merced-val.txt`` and ``uc_merced-test.txt``.
        owners: ``land_use`` (21 of 100 images each), or ``none``.
        image_size: height and width of stored images, pixels.
        resize: ``squash``, ``crop`` or ``pad``; some images are not square.
        channels: 3 (colour) or 1 (grey).
        val_fraction: share of all images for validation, where the split is random.
        test_fraction: share of all images for testing, where the split is random.
        seed: of the random split.

    Raises:
        InputError: files are missing, damaged or contradict each other; all problems at once.
    """
    top = source_root("uc_merced", root, "UCMerced_LandUse and LandUse_Multilabeled.txt")
    problems = Problems(f"Expected {top} to be a whole and correct UC Merced Land Use", complete=True)
    options = _Options(split, owners, val_fraction, test_fraction, seed)
    folder = problems.attempt(first_existing, top, FOLDERS, "the folder of images")
    label_file = problems.attempt(first_existing, top, LABEL_FILES, "the labels (the .txt of multilabels.zip)")
    lists = _list_files(top, problems) if split == "lists" else []
    read = None if label_file is None else _read_labels(label_file, problems)
    stamps = {} if folder is None else list_files(folder, depth=1, suffixes=(".tif", ".tiff"))
    if read is None or folder is None or label_file is None:
        raise problems.error()
    label_names, found = read
    names = sorted(found)
    _images(folder, found, stamps, problems)
    listed = _listed_splits(lists, names, problems) if len(lists) == len(SPLITS) else []
    problems.finish()
    splits = listed or _random_splits(names, options)
    labels = np.where([found[name] for name in names], PRESENT, ABSENT).astype(np.int8)
    table = functools.cache(lambda: _build(folder, names, labels, splits, options))

    def image(row: int) -> NDArray[np.uint8]:
        return decode(folder / _file(table().image_ids[row]), image_size, channels, resize)

    return Dataset(
        name="uc_merced",
        version=VERSION,
        identity={
            "options": [split, owners, val_fraction, test_fraction, seed],
            "pixels": [image_size, channels, resize],
            "annotations": digest(files_sha256(top, [label_file, *lists])),
            "images": stamps_sha256(stamps, map(_file, names)),
        },
        label_names=tuple(label_names),
        image_shape=(image_size, image_size, channels),
        table=table,
        image=image,
        licence="images: USGS National Map, public domain; labels: cite Chaudhuri et al. 2018, no licence stated",
        expected={
            "labels": len(COUNTS),
            **{f"positives/{name}": count for name, count in COUNTS.items()},
        },
    )
