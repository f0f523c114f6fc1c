"""Object annotations in PASCAL VOC's XML: one file per image.

Source: the development kits of VOC 2007 and 2012 (host.robots.ox.ac.uk/pascal/VOC). Only
direct children count: a person's ``part`` has a name and a box of its own. ``difficult`` may
be missing and then is 0; coordinates may be fractions; the size may be missing. Corners count from 1 and include
their pixel, so a box from 1 to 10 is 10 pixels wide and begins at 0.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import NamedTuple

from fedmlic.formats.fields import coordinate, image_side, short, text_fault


class Thing(NamedTuple):
    """One object.

    Attributes:
        name: of its label.
        box: x, y, width, height in source pixels, counted from 0.
        difficult: marked as hard to recognise; the official evaluation leaves it out.
    """

    name: str
    box: tuple[float, float, float, float]
    difficult: bool


@dataclass(frozen=True)
class Annotation:
    """What one file says.

    Attributes:
        things: the objects, sorted; equal ones once.
        size: width and height of the image, 0 where it does not say.
        duplicates: equal objects that were dropped.
        problems: everything wrong with the file.
    """

    things: tuple[Thing, ...]
    size: tuple[float, float]
    duplicates: int
    problems: list[str]


def read_annotation(content: bytes) -> Annotation:
    """Read one file's bytes; what is wrong with it is in ``problems``.

    >>> text = b'''<annotation><object><name>dog</name><bndbox><xmin>1</xmin><ymin>30</ymin>
    ... <xmax>9</xmax><ymax>40</ymax></bndbox></object></annotation>'''
    >>> read_annotation(text).things
    (Thing(name='dog', box=(0.0, 29.0, 9.0, 11.0), difficult=False),)
    """
    # UTF-16 puts a NUL beside every ASCII character.
    plain = content.replace(b"\0", b"")
    if b"<!DOCTYPE" in plain or b"<!ENTITY" in plain:
        return Annotation((), (0, 0), 0, ["it declares a document type, which VOC's files never do"])
    try:
        root = ET.fromstring(content.removeprefix(b"\xef\xbb\xbf"))  # noqa: S314  (entities were refused)
    except (ET.ParseError, ValueError, LookupError) as error:
        return Annotation((), (0, 0), 0, [f"no XML: {error}"])
    problems = [] if root.tag == "annotation" else [f"<{root.tag}> instead of <annotation>"]
    things = []
    for place, element in enumerate(root.findall("object"), 1):
        try:
            things.append(_thing(element))
        except ValueError as error:
            problems.append(f"object {place}: {error}")
    unique = tuple(sorted(set(things)))
    try:
        size = _size(root)
    except ValueError as error:
        problems.append(str(error))
        size = (0.0, 0.0)
    return Annotation(unique, size, len(things) - len(unique), problems)


def _thing(element: ET.Element) -> Thing:
    names = element.findall("name")
    if len(names) != 1:
        raise ValueError("two names" if names else "no name")
    name = (names[0].text or "").strip()
    if fault := text_fault(name):
        msg = f"its name {fault}"
        raise ValueError(msg)
    difficult = (element.findtext("difficult") or "0").strip() or "0"
    if difficult not in {"0", "1"}:
        msg = f"difficult is {difficult!r}, not 0 or 1"
        raise ValueError(msg)
    left, top, right, bottom = (_coordinate(element, side) for side in ("xmin", "ymin", "xmax", "ymax"))
    if right < left or bottom < top:
        msg = f"its box ends before it begins, from ({left:g}, {top:g}) to ({right:g}, {bottom:g})"
        raise ValueError(msg)
    return Thing(name, (left - 1, top - 1, right - left + 1, bottom - top + 1), difficult == "1")


def _coordinate(element: ET.Element, side: str) -> float:
    text = element.findtext(f"bndbox/{side}")
    value = coordinate(_number(text))
    if value is None:
        msg = f"{side} of its box is {short(text)}, no number of pixels"
        raise ValueError(msg)
    return value


def _number(text: str | None) -> float | None:
    """What the text says in ASCII digits; Python's own rule takes 1_0 and digits of other scripts too."""
    try:
        return float(text) if text is not None and text.isascii() and "_" not in text else None
    except ValueError:
        return None


def _size(root: ET.Element) -> tuple[float, float]:
    """Width and height, or zeros where the file has no size."""
    if root.find("size") is None:
        return 0.0, 0.0
    texts = [root.findtext(f"size/{side}") for side in ("width", "height")]
    width, height = (image_side(_number(text)) for text in texts)
    if width is None or height is None:
        msg = f"its size is {short(texts[0])} x {short(texts[1])}, not two numbers of pixels above 0"
        raise ValueError(msg)
    return width, height
