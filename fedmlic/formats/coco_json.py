"""Instance annotations in COCO's JSON: images, boxes and categories as arrays (COCO and LVIS).

Source: the data format page of cocodataset.org and, for ``coco_url``, ``neg_category_ids``
and ``not_exhaustive_category_ids``, the LVIS v1 files. Only what image-level labels and boxes
need is read; segmentations are passed over. Ids are 64-bit whole numbers, or text that
holds one. The result does not depend on the order of the file's arrays, and equal
annotations of one image are kept once.
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
from fedmlic.formats.json_arrays import read_arrays

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    Ints = NDArray[np.int64]
    Bools = NDArray[np.bool_]

STREAMED_BYTES = 1 << 24
"""Smaller files are read from the start to find their categories."""

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
        problems: everything wrong with the file, a line each.
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
    problems: list[str]


def whole(value: object) -> int | None:
    """A 64-bit id given as number or text, or None.

    >>> whole(7), whole("0042"), whole(7.5), whole(True), whole(-1)
    (7, 42, None, None, None)
    """
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdecimal():
        value = int(value)
    if type(value) is not int or not 0 <= value < 1 << 63:
        return None
    return value


def _number(value: object) -> float | None:
    """A finite number of at least 0, or None."""
    # Not a float such as NaN, which compares as false, nor text nor a boolean.
    if type(value) not in {int, float} or not 0 <= value < 1e9:  # type: ignore[operator]
        return None
    return float(value)  # type: ignore[arg-type]


@dataclass
class _Collector:
    """Takes in records of any order."""

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

    def add(self, key: str, place: int, record: Any) -> None:  # noqa: ANN401  (JSON is untyped)
        """Take in one element of the array ``key``."""
        if not isinstance(record, dict):
            self.wrong(key, place, f"{type(record).__name__} instead of a record")
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
        if number is None or not isinstance(name, str) or not name.strip():
            self.wrong("categories", place, f"id {record.get('id')!r} and name {name!r} are no number and name")
            return
        others = {key: text for key, text in record.items() if isinstance(text, str) and key not in {"id", "name"}}
        self.categories.append(Category(number, name.strip(), tuple(sorted(others.items()))))

    def image(self, place: int, record: dict[str, Any]) -> None:
        """Take in one image."""
        number = whole(record.get("id"))
        if number is None:
            self.wrong("images", place, f"id {record.get('id')!r} is no whole number")
            return
        path = record.get("file_name")
        if path is None:
            # LVIS v1 names files by their address alone.
            path = "/".join(str(record.get("coco_url") or "").split("/")[-2:])
        if not isinstance(path, str) or not path.strip():
            self.wrong("images", place, f"image {number} has neither file_name nor coco_url")
            path = ""
        size = [_number(record.get(side, 0)) for side in ("width", "height")]
        if None in size:
            self.wrong("images", place, f"image {number} has size {record.get('width')!r} x {record.get('height')!r}")
        self.image_ids.append(number)
        self.files.append(path.strip().replace("\\", "/"))
        self.sizes.extend([side or 0.0 for side in size])
        for key, pairs in self.pairs.items():
            listed = record.get(key, [])
            categories = [whole(category) for category in listed] if isinstance(listed, list) else [None]
            if None in categories:
                self.wrong("images", place, f"{key} of image {number} is {listed!r}, not a list of whole numbers")
            for category in categories:
                pairs.extend((number, -1 if category is None else category))

    def annotation(self, place: int, record: dict[str, Any]) -> None:
        """Take in one annotation."""
        image, category = whole(record.get("image_id")), whole(record.get("category_id"))
        box = record.get("bbox")
        crowd, ignore = record.get("iscrowd", 0), record.get("ignore", 0)
        if image is None or category is None:
            ids = f"image_id {record.get('image_id')!r} and category_id {record.get('category_id')!r}"
            self.wrong("annotations", place, f"{ids} are no whole numbers")
        elif not isinstance(box, list) or len(box) != 4 or None in (sides := _sides(box)):
            self.wrong("annotations", place, f"bbox {box!r} is not x, y, width, height")
        elif (area := _number(record.get("area", sides[2] * sides[3]))) is None:
            self.wrong("annotations", place, f"area {record['area']!r} is no number of pixels")
        elif crowd not in (0, 1) or ignore not in (0, 1):
            self.wrong("annotations", place, f"iscrowd {crowd!r} and ignore {ignore!r} are not 0 or 1")
        else:
            self.image_of.append(image)
            self.category_of.append(category)
            self.numbers.extend((*sides, area))
            self.marks.append(int(crowd) + 2 * int(ignore))
            self.places.append(place)


def _sides(box: list[Any]) -> list[Any]:
    """Four numbers, with None for what is none; corners may lie left of or above the image."""
    corner = [x if type(x) in {int, float} and abs(x) < 1e9 else None for x in box[:2]]
    return [*corner, _number(box[2]), _number(box[3])]


def read_instances(path: Path) -> Instances:
    """Read one file; what is wrong with it is in ``problems``."""
    found = _Collector()
    places: Counter[str] = Counter()
    seen: set[str] = set()
    try:
        for key, record in read_arrays(path):
            seen.add(key)
            if key in {"images", "annotations", "categories"}:
                found.add(key, places[key], record)
                places[key] += 1
    except InputError as error:
        found.problems.append(str(error))
    else:
        missing = [key for key in ("images", "categories") if not places[key]]
        found.problems += [f"no {key}" for key in missing]
    return _arrange(found)


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
        for wrong in np.flatnonzero(place < 0).tolist():
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
        found.problems,
    )


def _unique_categories(found: _Collector) -> tuple[Category, ...]:
    categories = tuple(sorted(set(found.categories)))
    for what, times in (
        ("id", Counter(category.id for category in categories)),
        ("name", Counter(category.name for category in categories)),
    ):
        found.problems += [f"category {what} {key!r} appears {n} times" for key, n in times.items() if n > 1]
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
    for image, number in ids[(category < 0) & (ids[:, 1] >= 0)].tolist():
        found.problems.append(f"image {image}: {key} names category {number}, which is not described")
    pairs = np.stack([_places(ids[:, 0], image_ids), category], axis=1)[category >= 0]
    return np.unique(pairs, axis=0)


def read_categories(path: Path) -> tuple[Category, ...]:
    """The categories of a file by ascending id, without reading a large file whole.

    Raises:
        InputError: the file is no JSON or its categories are wrong.
    """
    found = _Collector()
    records = _last_categories(path) if path.stat().st_size > STREAMED_BYTES else None
    if records is None:
        records = [record for key, record in read_arrays(path) if key == "categories"]
    for place, record in enumerate(records):
        found.add("categories", place, record)
    categories = _unique_categories(found)
    if not categories and not found.problems:
        found.problems.append("no categories")
    if found.problems:
        expected = f"Expected {path} to describe its categories"
        raise listing(expected, found.problems)
    return categories


def _last_categories(path: Path) -> list[Any] | None:
    """The list behind the last key ``"categories"``, or None if there is none that can be read."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start = content.rfind(b'"categories"')
        tail = content[start + 12 : start + 12 + CATEGORIES_BYTES] if start >= 0 else b""
    text = tail.decode(errors="replace").lstrip()
    try:
        records, _ = json.JSONDecoder().raw_decode(text.removeprefix(":").lstrip())
    except ValueError:
        return None
    return records if isinstance(records, list) else None
