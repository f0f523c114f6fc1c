"""CUB-200-2011: 11,788 photographs of 200 species of birds, 312 attributes with the annotator's certainty.

Three label spaces are in use, and two of them have 312 columns:

* the 312 attributes of each image, as Cole et al. 2021 use them. What the annotator guessed is
  uncertain, what was not visible is unknown and flagged;
* 112 attributes that most images of at least ten species have, with one value per species:
  the majority of its training images (Koh et al. 2020, "Concept Bottleneck Models");
* these 112 and the 200 species, which C-Tran (Lanchantin et al. 2021) calls CUB-312.

Source: Wah et al. 2011, "The Caltech-UCSD Birds-200-2011 Dataset". Deviations: values per
species are voted by the whole official training part, where Koh et al. first take a random
fifth of it away; an attribute said to be present though not visible is unknown too.
"""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from fedmlic.dataset import NOT_VISIBLE, Dataset, Flags, Table
from fedmlic.errors import InputError
from fedmlic.files import check_present, files_sha256, list_files, stamps_sha256
from fedmlic.formats.reading import read_lines, small_number
from fedmlic.images import Resize, decode
from fedmlic.labels import ABSENT, PRESENT, UNCERTAIN, UNKNOWN
from fedmlic.problems import Problems, check_unique
from fedmlic.sources.options import Channels, HeldOut, ImageSize, Root, Seed
from fedmlic.sources.place import first_existing, source_root
from fedmlic.sources.rows import TEST, TRAIN, Rows, hold_out_val, make_table

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = "1"

CLASS_ATTRIBUTES = (
    1, 4, 6, 7, 10, 14, 15, 20, 21, 23, 25, 29, 30, 35, 36, 38, 40, 44, 45, 50, 51, 53, 54, 56, 57, 59, 63, 64, 69, 70,
    72, 75, 80, 84, 90, 91, 93, 99, 101, 106, 110, 111, 116, 117, 119, 125, 126, 131, 132, 134, 145, 149, 151, 152, 153,
    157, 158, 163, 164, 168, 172, 178, 179, 181, 183, 187, 188, 193, 194, 196, 198, 202, 203, 208, 209, 211, 212, 213,
    218, 220, 221, 225, 235, 236, 238, 239, 240, 242, 243, 244, 249, 253, 254, 259, 260, 262, 268, 274, 277, 283, 289,
    292, 293, 294, 298, 299, 304, 305, 308, 309, 310, 311,
)  # fmt: skip
"""Places, from 0, of the 112 attributes of Koh et al. (github.com/yewsiang/ConceptBottleneck)."""

NUM_ATTRIBUTES = 312
GUESSING, NOT_SEEN, NUM_CERTAINTIES = 2, 1, 4
"""Ids in ``certainties.txt``: 1 not visible, 2 guessing, 3 probably, 4 definitely."""

Space = Literal["attributes", "class_attributes", "ctran"]


@dataclass(frozen=True)
class _Source:
    """What the files say, images in the order of their ids.

    ``present`` (bool) and ``certainty`` (int8) are ``[images, attributes]``; ``species`` and
    ``train`` are per image, species from 0.
    """

    names: list[str]
    species: NDArray[np.int64]
    train: NDArray[np.bool_]
    classes: list[str]
    attributes: list[str]
    present: NDArray[np.bool_]
    certainty: NDArray[np.int8]
    files: list[Path]


def _find(root: Path) -> Path:
    """The folder of ``images.txt``, up to two levels down."""
    nested = ("images.txt", "CUB_200_2011/images.txt", "CUB_200_2011/CUB_200_2011/images.txt")
    return first_existing(root, nested, "the list of images").parent


def _numbered(path: Path, problems: Problems) -> dict[int, str]:
    """What follows the number of each line, by number, in ascending order; lines that are wrong are left out."""
    own = problems.within(f"Expected every line of {path} to be a number from 1 and a text, each number once")
    found: dict[int, str] = {}
    lines = problems.attempt(read_lines, path)
    for line, text in lines or ():
        digits, _, rest = text.partition(" ")
        number, rest = small_number(digits), rest.strip()
        if not number or not rest.isprintable() or not rest or number in found:
            own.add(f"line {line}: {text!r:.80}")
        else:
            found[number] = rest
    if lines is not None and not found and not own:
        own.add("no lines")
    return dict(sorted(found.items()))


def _per_image(path: Path, ids: list[int], allowed: range, problems: Problems, *, whole: bool) -> NDArray[np.int64]:
    """One number of each image.

    Args:
        path: the file.
        ids: the images.
        allowed: what a number may be.
        problems: takes what is wrong.
        whole: every line of the list of images could be read.
    """
    before = len(problems)
    found = _numbered(path, problems)
    own = problems.within(f"Expected {path} to give every image a number from {allowed.start} to {allowed.stop - 1}")
    # After faulty lines, images that lack a line are no news.
    known = ids if len(problems) == before else [image_id for image_id in ids if image_id in found]
    numbers = {image_id: small_number(found.get(image_id, "")) for image_id in known}
    for image_id, number in numbers.items():
        if number is None or number not in allowed:
            own.add(f"image {image_id}: {found.get(image_id, 'nothing'):.80}")
    for image_id in sorted(set(found) - set(ids)) if whole else ():
        own.add(f"image {image_id} is not in images.txt")
    return np.array([numbers.get(image_id) or 0 for image_id in ids], dtype=np.int64)


def _read(base: Path, problems: Problems) -> _Source:
    """What the files say; ``problems`` takes what is wrong with them."""
    images = _numbered(base / "images.txt", problems)
    whole = not problems
    classes = _numbered(base / "classes.txt", problems)
    species = range(1, len(classes) + 1 if classes else sys.maxsize)
    ids = list(images)
    beside = (base.parent / "attributes.txt", base / "attributes.txt")
    attribute_file = next((path for path in beside if path.is_file()), base / "attributes" / "attributes.txt")
    attributes = _numbered(attribute_file, problems)
    for path, names in ((base / "images.txt", images), (attribute_file, attributes), (base / "classes.txt", classes)):
        problems.attempt(check_unique, f"Expected {path} to give each name once", list(names.values()))
    label_file = base / "attributes" / "image_attribute_labels.txt"
    present, certainty = _attribute_labels(label_file, ids, list(attributes), problems)
    files = [base / name for name in ("images.txt", "classes.txt", "image_class_labels.txt", "train_test_split.txt")]
    return _Source(
        names=list(images.values()),
        species=_per_image(files[2], ids, species, problems, whole=whole) - 1,
        train=_per_image(files[3], ids, range(2), problems, whole=whole) == 1,
        classes=list(classes.values()),
        attributes=list(attributes.values()),
        present=present,
        certainty=certainty,
        files=[*files, attribute_file, label_file],
    )


def _attribute_labels(
    path: Path, images: list[int], attributes: list[int], problems: Problems
) -> tuple[NDArray[np.bool_], NDArray[np.int8]]:
    """Presence and certainty of every image and attribute, from 3.7 million lines."""
    present = np.zeros((len(images), len(attributes)), dtype=np.bool_)
    certainty = np.zeros((len(images), len(attributes)), dtype=np.int8)
    before = len(problems)
    rows = problems.attempt(_first_four, path, problems)
    if rows is None:
        return present, certainty
    places = [_places(rows[:, column], known) for column, known in ((0, images), (1, attributes))]
    possible = np.isin(rows[:, 2], (0, 1)) & (rows[:, 3] >= 1) & (rows[:, 3] <= NUM_CERTAINTIES)
    known = (places[0] >= 0) & (places[1] >= 0)
    valid = possible & known
    times = np.bincount(places[0][valid] * len(attributes) + places[1][valid], minlength=len(images) * len(attributes))
    own = problems.within(
        f"Expected {path} to hold one line 'image attribute present(0|1) certainty(1-4)' for each pair"
    )
    # After faults of the lists of images and attributes, those that they lack are no news.
    for number in np.flatnonzero(~possible if before else ~valid).tolist():
        own.add(f"entry {number}: {rows[number].tolist()}")
    for cell in np.flatnonzero(times != 1).tolist() if len(problems) - len(own) == before else ():
        image, attribute = images[cell // len(attributes)], attributes[cell % len(attributes)]
        own.add(f"image {image}, attribute {attribute}: {times[cell]} lines")
    present[places[0][valid], places[1][valid]] = rows[valid, 2] == 1
    certainty[places[0][valid], places[1][valid]] = rows[valid, 3]
    return present, certainty


def _first_four(path: Path, problems: Problems) -> NDArray[np.int64]:
    """int64 ``[lines, 4]``: the first four fields of every line. Some lines of the release have more than five."""
    import pandas as pd  # only a build reads

    if not path.is_file():
        msg = f"Expected the attributes of every image at {path}, got no such file. Unpack the archive again."
        raise InputError(msg)
    try:
        frame = pd.read_csv(path, sep=r"\s+", header=None, usecols=[0, 1, 2, 3], dtype=np.int64, encoding="utf-8-sig")
    except (ValueError, OverflowError, OSError, pd.errors.ParserError, pd.errors.EmptyDataError):
        own = problems.within(f"Expected every line of {path} to begin with four whole numbers")
        rows = []
        for line, text in read_lines(path):
            numbers = [small_number(field) for field in text.split()[:4]]
            if len(numbers) == 4 and None not in numbers:
                rows.append(numbers)
            else:
                own.add(f"line {line}: {text!r:.80}")
        return np.array(rows, dtype=np.int64).reshape(-1, 4)
    return frame.to_numpy()


def _places(values: NDArray[np.int64], known: list[int]) -> NDArray[np.int64]:
    """Places of values in an ascending list; -1 where they are not in it."""
    array = np.array(known, dtype=np.int64)
    if not len(array):
        return np.full(len(values), -1, dtype=np.int64)
    places = np.minimum(np.searchsorted(array, values), len(array) - 1)
    return np.where(array[places] == values, places, -1)


def _states(source: _Source) -> NDArray[np.int8]:
    """What the annotator was sure of; guesses are uncertain, what was not visible is unknown."""
    states = np.where(source.present, PRESENT, ABSENT).astype(np.int8)
    states[source.certainty == GUESSING] = UNCERTAIN
    states[source.certainty == NOT_SEEN] = UNKNOWN
    return states


def species_values(source: _Source) -> NDArray[np.bool_]:
    """Bool ``[species, attributes]``: the majority of a species' training images; ties are present.

    Images on which the attribute is absent because it is not visible do not vote.
    """
    votes = np.zeros((2, len(source.classes), len(source.attributes)), dtype=np.int64)
    counted = source.train[:, None] & (source.present | (source.certainty != NOT_SEEN))
    for value in (False, True):
        np.add.at(votes[int(value)], source.species, (source.present == value) & counted)
    return np.asarray(votes[1] >= votes[0])


def _label_space(
    source: _Source, space: Space, certainty: str
) -> tuple[NDArray[np.int8], list[str], list[str], list[str]]:
    """Labels, names, ids and groups."""
    groups = [name.split("::", 1)[0] for name in source.attributes]
    ids = [str(number) for number in range(1, len(groups) + 1)]
    if space == "attributes":
        states = _states(source) if certainty == "states" else source.present.astype(np.int8)
        return states, source.attributes, ids, groups
    if len(source.attributes) != NUM_ATTRIBUTES:
        msg = (
            f"Expected attributes.txt to name {NUM_ATTRIBUTES} attributes for labels={space!r}, "
            f"got {len(source.attributes)}. Use labels='attributes', or the official file."
        )
        raise InputError(msg)
    chosen = list(CLASS_ATTRIBUTES)
    labels = species_values(source)[source.species][:, chosen].astype(np.int8)
    names, ids, groups = ([column[place] for place in chosen] for column in (source.attributes, ids, groups))
    if space == "ctran":
        species = (source.species[:, None] == np.arange(len(source.classes))).astype(np.int8)
        labels = np.concatenate([labels, species], axis=1)
        names = names + source.classes
        ids = ids + [f"class {number}" for number in range(1, len(source.classes) + 1)]
        groups = groups + ["species"] * len(source.classes)
    return labels, names, ids, groups


def cub(
    *,
    root: Root,
    labels: Space = "attributes",
    certainty: Literal["states", "ignore"] = "states",
    owners: Literal["none", "species"] = "none",
    image_size: ImageSize = 224,
    resize: Resize = "squash",
    channels: Channels = 3,
    val_fraction: HeldOut = 0.1,
    seed: Seed = 0,
) -> Dataset:
    """CUB-200-2011 as a multi-label data set.

    Args:
        root: folder that holds ``CUB_200_2011`` and ``attributes.txt``; ``~`` is your home.
        labels: ``attributes`` (312 per image), ``class_attributes`` (112 per species), or
            ``ctran`` (these 112 and the 200 species).
        certainty: ``states``: guesses are uncertain and what was not visible is unknown;
            ``ignore``: present or absent, as Cole et al. use them. For ``attributes`` only.
        owners: ``species`` makes a natural client of each, or ``none``.
        image_size: height and width of stored images, pixels.
        resize: ``squash``, ``crop`` or ``pad``.
        channels: 3 (colour) or 1 (grey).
        val_fraction: share of the training images for validation (Cole et al.: 0.2).
        seed: of that random split.

    Raises:
        InputError: files are missing, damaged or contradict each other; all problems at once.
    """
    top = source_root("cub", root, "CUB_200_2011 and attributes.txt")
    base = _find(top)
    problems = Problems(f"Expected {base} to be a whole and correct CUB-200-2011", complete=True)
    source = _read(base, problems)
    folder = base / "images"
    stamps = list_files(folder, depth=1)
    if problems:
        problems.attempt(check_present, "cub", source.names, stamps, folder)
    problems.finish()
    states, names, ids, groups = _label_space(source, labels, certainty)

    def build() -> tuple[Table, NDArray[np.int64]]:
        check_present("cub", source.names, stamps, folder)
        flags = None
        if labels == "attributes":
            row, column = np.nonzero(source.certainty == NOT_SEEN)
            flags = Flags(row.astype(np.int64), column.astype(np.int16), np.full(len(row), NOT_VISIBLE, dtype=np.uint8))
        splits = np.where(source.train, TRAIN, TEST).astype(np.int64)
        splits = hold_out_val(splits, source.names, val_fraction, seed, "cub")
        species = [source.classes[number] for number in source.species.tolist()] if owners == "species" else []
        sources = [str(folder / name) for name in source.names]
        return make_table(Rows(source.names, splits, states, sources, species, flags=flags), {})

    built = functools.cache(build)
    return Dataset(
        name="cub",
        version=VERSION,
        identity={
            "options": [labels, certainty, owners, val_fraction, seed],
            "pixels": [image_size, channels, resize],
            "annotations": files_sha256(top, source.files),
            "images": stamps_sha256(stamps, source.names),
        },
        label_names=tuple(names),
        image_shape=(image_size, image_size, channels),
        table=lambda: built()[0],
        image=lambda row: decode(folder / source.names[built()[1][row]], image_size, channels, resize),
        licence="non-commercial research; images under their Flickr owners' licences",
        label_ids=tuple(ids),
        parents=tuple(groups),
        expected={
            "test": 5794,
            "labels": len(CLASS_ATTRIBUTES) if labels == "class_attributes" else NUM_ATTRIBUTES,
            **({"train": 5994} if val_fraction == 0 else {}),
        },
    )
