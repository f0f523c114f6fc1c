"""Instance annotations in COCO's JSON: images, boxes and categories as arrays (COCO and LVIS).

Source: the data format page of cocodataset.org and, for ``coco_url``, ``neg_category_ids``
and ``not_exhaustive_category_ids``, the LVIS v1 files. Only what image-level labels and boxes
need is read; segmentations are passed over. Ids are 64-bit whole numbers, or text that
holds one. The result does not depend on the order of the file's arrays, and equal
annotations of one image are kept once. A key that says which labels an image has is required:
where it is missing nothing is known, which is not the same as no label.
"""

from __future__ import annotations

import json
import mmap
from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedmlic.errors import InputError, listing
from fedmlic.formats.fields import coordinate, image_side, length, short, text_fault, whole
from fedmlic.formats.json_arrays import read_arrays

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    Ints = NDArray[np.int64]
    Bools = NDArray[np.bool_]

ARRAYS = ("images", "annotations", "categories")
"""Keys of the top level that are read; each must be there."""

STREAMED_BYTES = 1 << 24
"""Smaller files are read from the start to find their categories."""

TEXTS = frozenset({"supercategory", "frequency"})
"""Texts of a category that become names of groups."""

CATEGORIES_BYTES = 1 << 24
"""Longest list of categories that is looked for at the end of a larger file."""


class Category(NamedTuple):
    """One category: its id, its name and every other text it comes with."""

    id: int
    name: str
    texts: tuple[tuple[str, str], ...]

    def text(self, key: str) -> str:
        """Its text of that key, such as ``supercategory`` or ``frequency``, or blank."""
        return dict(self.texts).get(key, "")


@dataclass(frozen=True)
class Instances:
    """What one file says.

    Attributes:
        categories: by ascending id.
        image_ids: int64 ``[images]``, ascending.
        files: of each image ``name`` or ``folder/name``, blank where the file does not say.
        sizes: float64 ``[images, 2]``, width and height in pixels, 0 where the file does not say.
        row: int64 ``[objects]``, the image, ascending.
        category: int64 ``[objects]``, a place in ``categories``.
        box: float32 ``[objects, 4]`` as x, y, width, height in source pixels.
        area: float32 ``[objects]``, source pixels.
        crowd: bool ``[objects]``, a region of many instances.
        ignore: bool ``[objects]``, marked to be ignored.
        negative: int64 ``[entries, 2]``, image and category known to be absent.
        not_exhaustive: int64 ``[entries, 2]``, image and category with unmarked instances.
        duplicates: equal annotations that were dropped.
        whole: whether all three arrays are there and could be read to their ends; otherwise what
            seems to be missing may be in the part that was not read.
        problems: everything wrong with the file, a line each that begins with its name.
    """

    categories: tuple[Category, ...]
    image_ids: Ints
    files: list[str]
    sizes: NDArray[np.float64]
    row: Ints
    category: Ints
    box: NDArray[np.float32]
    area: NDArray[np.float32]
    crowd: Bools
    ignore: Bools
    negative: Ints
    not_exhaustive: Ints
    duplicates: int
    whole: bool
    problems: list[str]


@dataclass
class _Collector:
    """Takes in records of any order.

    Attributes:
        name: of the file.
        partial: image records must say which categories are absent and which not exhaustive.
    """

    name: str
    partial: bool = False
    categories: list[Category] = field(default_factory=list)
    image_ids: array[int] = field(default_factory=lambda: array("q"))
    files: list[str] = field(default_factory=list)
    sizes: array[float] = field(default_factory=lambda: array("d"))
    image_of: array[int] = field(default_factory=lambda: array("q"))
    category_of: array[int] = field(default_factory=lambda: array("q"))
    numbers: array[float] = field(default_factory=lambda: array("f"))
    marks: bytearray = field(default_factory=bytearray)
    places: array[int] = field(default_factory=lambda: array("q"))
    pairs: dict[str, array[int]] = field(
        default_factory=lambda: {"neg_category_ids": array("q"), "not_exhaustive_category_ids": array("q")}
    )
    problems: list[str] = field(default_factory=list)
    whole: bool = False
    broken: list[str] = field(default_factory=list)

    def add(self, key: str, place: int, record: Any) -> None:  # noqa: ANN401  (JSON is untyped)
        """Take in one element of the array ``key``."""
        if not isinstance(record, dict):
            self.wrong(key, place, f"{short(record)} instead of a record")
        elif key == "annotations":
            self.annotation(place, record)
        elif key == "images":
            self.image(place, record)
        else:
            self.category(place, record)

    def wrong(self, key: str, place: int, what: str) -> None:
        """Note a problem of one record."""
        self.problems.append(f"{key}[{place}]: {what}")

    def category(self, place: int, record: dict[str, Any]) -> None:
        """Take in one category."""
        number, name = whole(record.get("id")), record.get("name")
        if number is None:
            self.wrong("categories", place, f"id {short(record.get('id'))} is no whole number")
        if fault := text_fault(name):
            self.wrong("categories", place, f"name {short(name)} {fault}")
        texts = {key: text for key, text in record.items() if isinstance(text, str) and key not in {"id", "name"}}
        for key in sorted(TEXTS & record.keys()):
            if fault := text_fault(record[key]):
                self.wrong("categories", place, f"{key} {short(record[key])} {fault}")
        if number is not None:
            # One without a name is still described: its annotations are not wrong, too.
            named = name.strip() if isinstance(name, str) else ""
            self.categories.append(Category(number, named, tuple(sorted(texts.items()))))

    def image(self, place: int, record: dict[str, Any]) -> None:
        """Take in one image."""
        number = whole(record.get("id"))
        if number is None:
            self.wrong("images", place, f"id {short(record.get('id'))} is no whole number")
            return
        self.image_ids.append(number)
        self.files.append(self.file(place, number, record))
        self.sizes.extend(self.size(place, number, record))
        for key, pairs in self.pairs.items():
            if key not in record and not self.partial:
                continue
            listed = record.get(key)
            categories = [whole(category) for category in listed] if isinstance(listed, list) else [None]
            if None in categories:
                what = f"is {short(listed)}, not a list of whole numbers" if key in record else "is missing"
                self.wrong("images", place, f"{key} of image {number} {what}")
            for category in categories:
                pairs.extend((number, -1 if category is None else category))

    def file(self, place: int, number: int, record: dict[str, Any]) -> str:
        """Where an image lies, as its record says, or blank."""
        # LVIS v1 names files by their address alone.
        key = "file_name" if "file_name" in record or "coco_url" not in record else "coco_url"
        path = record.get(key)
        if key not in record:
            self.wrong("images", place, f"image {number} has neither file_name nor coco_url")
            return ""
        if fault := text_fault(path):
            self.wrong("images", place, f"{key} {short(path)} of image {number} {fault}")
            return ""
        path = str(path).strip().replace("\\", "/")
        return "/".join(path.split("/")[-2:]) if key == "coco_url" else path

    def size(self, place: int, number: int, record: dict[str, Any]) -> list[float]:
        """Width and height, or zeros where the record has neither key."""
        keys = [key for key in ("width", "height") if key in record]
        sides = [image_side(record[key]) for key in keys]
        if len(keys) == 1 or None in sides:
            said = " x ".join(short(record[key]) if key in record else "nothing" for key in ("width", "height"))
            self.wrong("images", place, f"image {number} has size {said}, not two numbers of pixels above 0")
            return [0.0, 0.0]
        return [side or 0.0 for side in sides] or [0.0, 0.0]

    def annotation(self, place: int, record: dict[str, Any]) -> None:
        """Take in one annotation."""
        image, category = whole(record.get("image_id")), whole(record.get("category_id"))
        box = record.get("bbox")
        crowd, ignore = record.get("iscrowd", 0), record.get("ignore", 0)
        if image is None or category is None:
            ids = f"image_id {short(record.get('image_id'))} and category_id {short(record.get('category_id'))}"
            self.wrong("annotations", place, f"{ids} are no whole numbers")
        elif not isinstance(box, list) or len(box) != 4 or None in (sides := _sides(box)):
            self.wrong("annotations", place, f"bbox {short(box)} is not x, y, width, height")
        elif (area := length(said := record.get("area", sides[2] * sides[3]))) is None:
            self.wrong("annotations", place, f"area {short(said)} is no number of pixels")
        elif not (_is_mark(crowd) and _is_mark(ignore)):
            self.wrong("annotations", place, f"iscrowd {short(crowd)} and ignore {short(ignore)} are not 0 or 1")
        else:
            self.image_of.append(image)
            self.category_of.append(category)
            self.numbers.extend((*sides, area))
            self.marks.append(int(crowd) + 2 * int(ignore))
            self.places.append(place)


def _is_mark(value: object) -> bool:
    # 1 == True == 1.0, but a file of this format holds neither.
    return type(value) is int and value in {0, 1}


def _sides(box: list[Any]) -> list[Any]:
    """Four numbers, with None for what is none; corners may lie left of or above the image."""
    return [coordinate(box[0]), coordinate(box[1]), length(box[2]), length(box[3])]


def read_instances(path: Path, *, partial: bool = False) -> Instances:
    """Read one file; what is wrong with it is in ``problems``.

    Args:
        path: the file.
        partial: whether the format demands ``neg_category_ids`` and
            ``not_exhaustive_category_ids`` of every image, as LVIS does.
    """
    found = _Collector(path.name, partial)
    places: Counter[str] = Counter()
    kinds: dict[str, str] = {}
    try:
        for key, record in read_arrays(path, kinds):
            if key in ARRAYS and kinds[key] == "list":
                found.add(key, places[key], record)
                places[key] += 1
    except InputError as error:
        found.broken.append(str(error))
    else:
        faults = [fault for key in ARRAYS if (fault := _array_fault(key, kinds, places))]
        found.problems += faults
        found.whole = not faults
    return _arrange(found)


JSON_WORDS = {"dict": "an object", "str": "text", "int": "a number", "float": "a number", "bool": "true or false"}
JSON_WORDS["NoneType"] = "null"
"""JSON's own words for what is not an array, by the Python type that it is decoded to."""


def _array_fault(key: str, kinds: dict[str, str], places: Counter[str]) -> str:
    """What is wrong with one of the three arrays as a whole; there may be no annotations in it."""
    if key not in kinds:
        return f"the key {key!r} is missing"
    if kinds[key] != "list":
        return f"{key} is {JSON_WORDS[kinds[key]]}, not a list"
    return "" if places[key] or key == "annotations" else f"no {key}"


def _arrange(found: _Collector) -> Instances:
    """Everything in the order of ids, ids replaced by places."""
    categories = _unique_categories(found)
    category_ids = np.array([category.id for category in categories], dtype=np.int64)
    image_ids = np.frombuffer(found.image_ids, dtype=np.int64) if found.image_ids else np.empty(0, np.int64)
    order = np.argsort(image_ids, kind="stable")
    unique, first, times = np.unique(image_ids[order], return_index=True, return_counts=True)
    found.problems += [
        f"image {number} appears {n} times" for number, n in zip(unique.tolist(), times.tolist(), strict=True) if n > 1
    ]
    image_ids, order = unique, order[first]
    row = _places(np.array(found.image_of, dtype=np.int64), image_ids)
    category = _places(np.array(found.category_of, dtype=np.int64), category_ids)
    for name, place, ids in (("image", row, found.image_of), ("category", category, found.category_of)):
        for wrong in np.flatnonzero(place < 0).tolist() if found.whole else ():
            found.wrong("annotations", found.places[wrong], f"{name} {ids[wrong]} is not described")
    numbers = np.array(found.numbers, dtype=np.float32).reshape(-1, 5)
    marks = np.frombuffer(bytes(found.marks), dtype=np.uint8)
    known = np.flatnonzero((row >= 0) & (category >= 0))
    keys = [*numbers[known].T[::-1], marks[known], category[known], row[known]]
    chosen, duplicates = _distinct(known, keys)
    return Instances(
        categories,
        image_ids,
        [found.files[place] for place in order.tolist()],
        np.array(found.sizes, dtype=np.float64).reshape(-1, 2)[order],
        row[chosen],
        category[chosen],
        numbers[chosen, :4],
        numbers[chosen, 4],
        (marks[chosen] & 1).astype(np.bool_),
        (marks[chosen] & 2).astype(np.bool_),
        _pairs(found, "neg_category_ids", image_ids, category_ids),
        _pairs(found, "not_exhaustive_category_ids", image_ids, category_ids),
        duplicates,
        found.whole,
        found.broken + [f"{found.name}: {problem}" for problem in found.problems],
    )


def _unique_categories(found: _Collector) -> tuple[Category, ...]:
    categories = tuple(sorted(found.categories))
    for what, times in (
        ("id", Counter(category.id for category in categories)),
        ("name", Counter(category.name for category in categories)),
    ):
        found.problems += [
            f"category {what} {key!r} appears {n} times" for key, n in times.items() if n > 1 and key != ""
        ]
    return categories


def _places(ids: Ints, known: Ints) -> Ints:
    """Place of each id among the ascending known ones, or -1."""
    if not len(known):
        return np.full(len(ids), -1, dtype=np.int64)
    place = np.minimum(np.searchsorted(known, ids), len(known) - 1)
    return np.where(known[place] == ids, place, -1)


def _distinct(known: Ints, keys: list[NDArray[Any]]) -> tuple[Ints, int]:
    """``known`` in the order of its keys (the last counts most), equal ones once; and how many were dropped."""
    order = np.lexsort(keys)
    new = np.ones(len(order), dtype=np.bool_)
    if len(order):
        new[1:] = np.logical_or.reduce([key[order][1:] != key[order][:-1] for key in keys])
    return known[order[new]], int((~new).sum())


def _pairs(found: _Collector, key: str, image_ids: Ints, category_ids: Ints) -> Ints:
    """int64 ``[entries, 2]`` of image and category places, sorted, each once."""
    ids = np.array(found.pairs[key], dtype=np.int64).reshape(-1, 2)
    category = _places(ids[:, 1], category_ids)
    for image, number in ids[(category < 0) & (ids[:, 1] >= 0)].tolist() if found.whole else ():
        found.problems.append(f"image {image}: {key} names category {number}, which is not described")
    pairs = np.stack([_places(ids[:, 0], image_ids), category], axis=1)[category >= 0]
    return np.unique(pairs, axis=0)


def read_categories(path: Path) -> tuple[Category, ...]:
    """The categories of a file by ascending id, without reading a large file whole.

    Raises:
        InputError: the file is no JSON or its categories are wrong; lines as ``read_instances``
            has them.
    """
    found = _Collector(path.name)
    kinds: dict[str, str] = {"categories": "list"}
    records = _last_categories(path) if path.stat().st_size > STREAMED_BYTES else None
    if records is None:
        kinds = {}
        records = [record for key, record in read_arrays(path, kinds) if key == "categories"]
    if fault := _array_fault("categories", kinds, Counter(categories=len(records))):
        found.problems.append(fault)
    for place, record in enumerate(records if kinds.get("categories") == "list" else []):
        found.add("categories", place, record)
    categories = _unique_categories(found)
    if found.problems:
        expected = f"Expected {path} to describe its categories"
        raise listing(expected, [f"{path.name}: {problem}" for problem in found.problems], complete=True)
    return categories


def _last_categories(path: Path) -> list[Any] | None:
    """The list behind the last key ``"categories"``, or None if there is none that can be read."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start = content.rfind(b'"categories"')
        tail = content[start + 12 : start + 12 + CATEGORIES_BYTES] if start >= 0 else b""
    text = tail.decode(errors="replace").lstrip()
    try:
        records, _ = json.JSONDecoder().raw_decode(text.removeprefix(":").lstrip())
    except (ValueError, RecursionError):
        return None
    return records if isinstance(records, list) else None
