"""Visual Genome's ``objects.json``, ``image_data.json`` and ``object_alias.txt``.

Names are free text. They are made lower case, blanks are collapsed, a comma separates several
names, and an alias stands for the first name of its line. Nothing else is guessed: a plural is
another name unless the alias file says otherwise.

Source: homes.cs.washington.edu/~ranjay/visualgenome; the reading of the alias file follows
github.com/danfei/scene-graph-TF-release.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedmlic.formats.json_list import read_json_list
from fedmlic.formats.reading import read_lines
from fedmlic.problems import Problems

if TYPE_CHECKING:
    from numpy.typing import NDArray


class ImageData(NamedTuple):
    """What ``image_data.json`` says of one image."""

    width: int
    height: int
    in_coco: bool


@dataclass(frozen=True)
class NamedBoxes:
    """Every name of every object.

    Attributes:
        image_id: int64 ``[boxes]``, in the order of the file.
        name: int64 ``[boxes]``, a place in ``names``.
        box: float32 ``[boxes, 4]`` as x, y, width, height in pixels of the source image.
        names: normalised names in the order in which they come up.
    """

    image_id: NDArray[np.int64]
    name: NDArray[np.int64]
    box: NDArray[np.float32]
    names: list[str]


def read_image_data(path: Path) -> dict[int, ImageData]:
    """Size and origin of every image, by id."""
    problems = Problems(f"Expected every object of {path} to describe one image")
    found: dict[int, ImageData] = {}
    for number, item in enumerate(read_json_list(path)):
        about: dict[str, Any] = item if isinstance(item, dict) else {}
        image_id, width, height = (about.get(name) for name in ("image_id", "width", "height"))
        whole = all(type(value) is int and value > 0 for value in (image_id, width, height))
        if not whole or image_id is None or width is None or height is None:
            problems.add(f"object {number}: image_id, width and height are {[image_id, width, height]}")
            continue
        if image_id in found:
            problems.add(f"object {number}: image_id {image_id} appears again")
        found[image_id] = ImageData(width, height, about.get("coco_id") is not None)
    problems.finish()
    return found


def normalise(name: str) -> list[str]:
    """The names in one text, lower case and without spare blanks.

    >>> normalise(" Street  sign, Pole")
    ['street sign', 'pole']
    """
    parts = (" ".join(part.split()).lower() for part in name.split(","))
    return [part for part in parts if part]


def read_aliases(path: Path) -> dict[str, str]:
    """The name each alias stands for: the first of its line, itself resolved."""
    aliases: dict[str, str] = {}
    for _, line in read_lines(path):
        names = normalise(line)
        if names:
            target = aliases.get(names[0], names[0])
            for name in names:
                aliases.setdefault(name, target)
    return aliases


def read_objects(path: Path, aliases: Mapping[str, str]) -> NamedBoxes:
    """Every name of every object of ``objects.json``, aliases resolved."""
    problems = Problems(f"Expected every object of {path} to list the objects of one image")
    index: dict[str, int] = {}
    texts: dict[str, list[int]] = {}

    def codes(text: str) -> list[int]:
        found = texts.get(text)
        if found is None:
            names = {aliases.get(name, name): None for name in normalise(text)}
            found = texts[text] = [index.setdefault(name, len(index)) for name in names]
        return found

    ids, names, boxes = array("q"), array("q"), array("f")
    seen: set[int] = set()
    for number, item in enumerate(read_json_list(path)):
        about = item if isinstance(item, dict) else {}
        image_id, objects = about.get("image_id"), about.get("objects")
        if type(image_id) is not int or type(objects) is not list or image_id in seen:
            what = "appears again" if image_id in seen else f"and objects are {str(objects)[:40]}"
            problems.add(f"object {number}: image_id {image_id!r} {what}")
            continue
        seen.add(image_id)
        for place, one in enumerate(objects):
            box = _box(one)
            if box is None:
                problems.add(f"object {number}, object {place} of image {image_id}: {str(one)[:80]}")
                continue
            own = one["names"]
            # Nearly every object has one name.
            unique = codes(own[0]) if len(own) == 1 else {code: None for text in own for code in codes(text)}
            for code in unique:
                ids.append(image_id)
                names.append(code)
                boxes.extend(box)
    problems.finish()
    return NamedBoxes(
        np.array(ids, dtype=np.int64),
        np.array(names, dtype=np.int64),
        np.array(boxes, dtype=np.float32).reshape(-1, 4),
        list(index),
    )


def _box(one: Any) -> tuple[float, float, float, float] | None:  # noqa: ANN401  (JSON is untyped)
    """x, y, width and height of an object, or nothing if it is damaged."""
    try:
        box = (float(one["x"]), float(one["y"]), float(one["w"]), float(one["h"]))
        names = one["names"]
    except (TypeError, KeyError, ValueError):
        return None
    whole = type(names) is list and set(map(type, names)) <= {str}
    return box if whole and math.isfinite(sum(box)) else None


def commonest(boxes: NamedBoxes, images: Iterable[int], min_images: int) -> list[int]:
    """Places of names in order of the images that have them, those alike alphabetically."""
    kept = np.isin(boxes.image_id, np.fromiter(images, dtype=np.int64))
    pairs = np.unique(np.stack([boxes.image_id[kept], boxes.name[kept]]), axis=1)
    counts = np.bincount(pairs[1], minlength=len(boxes.names))
    enough = np.flatnonzero(counts >= max(min_images, 1)).tolist()
    return sorted(enough, key=lambda place: (-counts[place], boxes.names[place]))
