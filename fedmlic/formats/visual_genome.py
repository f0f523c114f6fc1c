"""Visual Genome's ``objects.json``, ``image_data.json`` and ``object_alias.txt``.

Names are free text. They are made lower case, blanks are collapsed, a comma separates several
names, and an alias stands for the first name of its line. Nothing else is guessed: a plural is
another name unless the alias file says otherwise.

Source: homes.cs.washington.edu/~ranjay/visualgenome; the reading of the alias file follows
github.com/danfei/scene-graph-TF-release.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedmlic.errors import InputError
from fedmlic.formats.fields import MAX_PIXELS, coordinate, length, short, text_fault, whole
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
        listed: ids of all images that the file has, ascending, those without objects too.
        nameless: objects without a name, which name nothing.
    """

    image_id: NDArray[np.int64]
    name: NDArray[np.int64]
    box: NDArray[np.float32]
    names: list[str]
    listed: list[int]
    nameless: int


def read_image_data(path: Path, problems: Problems) -> dict[int, ImageData]:
    """Size and origin of every image, by id; what is wrong with the others is noted."""
    own = problems.within(f"Expected every object of {path} to describe one image")
    found: dict[int, ImageData] = {}
    for number, item in enumerate(_items(path, own)):
        about: dict[str, Any] = item if isinstance(item, dict) else {}
        image_id, width, height = (whole(about.get(name)) for name in ("image_id", "width", "height"))
        in_coco = about.get("coco_id", "")
        if any(type(about.get(key)) is not int for key in ("image_id", "width", "height")) or not (
            image_id and width and height and max(width, height) < MAX_PIXELS
        ):
            said = [about.get(key) for key in ("image_id", "width", "height")]
            own.add(f"object {number}: image_id, width and height are {short(said)}")
            continue
        if in_coco is not None and (type(in_coco) is not int or whole(in_coco) is None):
            what = short(in_coco) if "coco_id" in about else "missing"
            own.add(f"object {number}: coco_id of image {image_id} is {what}; null or the number of an image of COCO")
        if image_id in found:
            own.add(f"object {number}: image_id {image_id} appears again")
        found[image_id] = ImageData(width, height, in_coco is not None)
    if not found and not own:
        own.add("no object")
    return found


def _items(path: Path, own: Problems) -> Iterator[Any]:
    """The items of a list up to the first that cannot be read, which is noted."""
    try:
        yield from read_json_list(path)
    except InputError as error:
        own.take(error)


def normalise(name: str) -> list[str]:
    """The names in one text, lower case and without spare blanks.

    >>> normalise(" Street  sign, Pole")
    ['street sign', 'pole']
    """
    parts = (" ".join(part.split()).lower() for part in name.split(","))
    return [part for part in parts if part]


def read_aliases(path: Path, problems: Problems) -> dict[str, str]:
    """The name each alias stands for: the first of its line, itself resolved."""
    own = problems.within(f"Expected every line of {path} to hold names with commas between them")
    aliases: dict[str, str] = {}
    for number, line in own.attempt(read_lines, path) or ():
        names = normalise(line)
        own_faults = [f"name {name!r} {fault}" for name in names if (fault := text_fault(name))]
        for fault in own_faults or ([] if names else ["no name"]):
            own.add(f"line {number}: {fault}")
        if names:
            target = aliases.get(names[0], names[0])
            for name in names:
                aliases.setdefault(name, target)
    return aliases


class _Names:
    """Numbers the names that come up, aliases resolved."""

    def __init__(self, aliases: Mapping[str, str]) -> None:
        self.aliases = aliases
        self.index: dict[str, int] = {}
        self.texts: dict[str, list[int]] = {}
        self.faults: dict[str, str] = {}

    def codes(self, text: str) -> list[int]:
        """Numbers of the names in one text; what is wrong with it is in ``faults``."""
        found = self.texts.get(text)
        if found is None:
            names = {self.aliases.get(name, name): None for name in normalise(text)}
            for name in names:
                if fault := text_fault(name):
                    self.faults[text] = fault
            found = self.texts[text] = [self.index.setdefault(name, len(self.index)) for name in names]
        return found


def read_objects(path: Path, aliases: Mapping[str, str], problems: Problems) -> NamedBoxes:
    """Every name of every good object of ``objects.json``, aliases resolved; the others are noted."""
    own = problems.within(f"Expected every object of {path} to list the objects of one image")
    known = _Names(aliases)
    ids, names, boxes = array("q"), array("q"), array("f")
    seen: set[int] = set()
    nameless = 0
    for number, item in enumerate(_items(path, own)):
        about = item if isinstance(item, dict) else {}
        said, objects = about.get("image_id"), about.get("objects")
        image_id = whole(said) if type(said) is int else None
        if image_id is None or type(objects) is not list or image_id in seen:
            what = "appears again" if image_id in seen else f"and objects are {short(objects, 40)}"
            own.add(f"object {number}: image_id {short(said)} {what}")
            continue
        seen.add(image_id)
        for place, one in enumerate(objects):
            where = f"object {number}, object {place} of image {image_id}"
            box, texts = _box(one)
            if box is None or texts is None:
                own.add(f"{where}: {short(one)}")
                continue
            # Nearly every object has one name.
            codes = known.codes(texts[0]) if len(texts) == 1 else {c: None for text in texts for c in known.codes(text)}
            for fault in [known.faults[text] for text in texts if text in known.faults] if known.faults else ():
                own.add(f"{where}: a name of {short(texts)} {fault}")
            nameless += not codes
            for code in codes:
                ids.append(image_id)
                names.append(code)
                boxes.extend(box)
    if not seen and not own:
        own.add("no object")
    return NamedBoxes(
        np.array(ids, dtype=np.int64),
        np.array(names, dtype=np.int64),
        np.array(boxes, dtype=np.float32).reshape(-1, 4),
        list(known.index),
        sorted(seen),
        nameless,
    )


def _box(one: Any) -> tuple[list[float] | None, list[str] | None]:  # noqa: ANN401  (JSON is untyped)
    """x, y, width and height of an object, and its names; None for what is damaged."""
    if not isinstance(one, dict):
        return None, None
    sides = [coordinate(one.get("x")), coordinate(one.get("y")), length(one.get("w")), length(one.get("h"))]
    box = [side for side in sides if side is not None]
    names = one.get("names")
    good = type(names) is list and set(map(type, names)) <= {str}
    return box if len(box) == 4 else None, names if good else None


def commonest(boxes: NamedBoxes, images: Iterable[int], min_images: int) -> list[int]:
    """Places of names in order of the images that have them, those alike alphabetically."""
    kept = np.isin(boxes.image_id, np.fromiter(images, dtype=np.int64))
    pairs = np.unique(np.stack([boxes.image_id[kept], boxes.name[kept]]), axis=1)
    counts = np.bincount(pairs[1], minlength=len(boxes.names))
    enough = np.flatnonzero(counts >= max(min_images, 1)).tolist()
    return sorted(enough, key=lambda place: (-counts[place], boxes.names[place]))
