"""What one field of an annotation file may hold: ids, sizes, coordinates and names, one rule each.

JSON has no types of its own, and a reader that takes whatever is there turns null into a label
called "None" and true into the number 1. Every field of the formats here is read by one of
these rules; None stands for a value that breaks it.
"""

from __future__ import annotations

import unicodedata

ID_DIGITS = 19
"""Digits of the largest 64-bit id."""

MAX_PIXELS = 1e9
"""Sides and coordinates from here on are no pixels."""

MAX_NAME = 255
"""Longest name of a file on common systems, in bytes."""


def whole(value: object) -> int | None:
    """A 64-bit id given as number or text, or None.

    >>> whole(7), whole("0042"), whole(7.5), whole(True), whole(-1)
    (7, 42, None, None, None)
    """
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdecimal():
        digits = value.strip().lstrip("0") or "0"
        value = int(digits) if len(digits) <= ID_DIGITS else None
    if type(value) is not int or not 0 <= value < 1 << 63:
        return None
    return value


def length(value: object) -> float | None:
    """A side of a box or an area in pixels, a finite number from 0 on, or None.

    >>> length(2), length(0.5), length(-1), length(float("nan")), length("3"), length(True)
    (2.0, 0.5, None, None, None, None)
    """
    # NaN compares as false.
    if type(value) not in {int, float} or not 0 <= value < MAX_PIXELS:  # type: ignore[operator]
        return None
    return float(value)  # type: ignore[arg-type]


def coordinate(value: object) -> float | None:
    """A finite number of pixels, which may lie left of or above the image, or None."""
    if type(value) not in {int, float} or not -MAX_PIXELS < value < MAX_PIXELS:  # type: ignore[operator]
        return None
    return float(value)  # type: ignore[arg-type]


def image_side(value: object) -> float | None:
    """Width or height of an image, a finite number of pixels above 0, or None."""
    return length(value) or None


def text_fault(value: object) -> str:
    r"""What is wrong with a name of a label, group or file, or nothing.

    It is text, not blank, and free of control characters, line ends and halves of characters
    (which JSON can write and UTF-8 cannot).

    >>> text_fault("hot dog"), text_fault(" "), text_fault(None), text_fault("a" + chr(0))
    ('', 'is blank', 'is null, no text', "holds the control character '\\x00'")
    """
    if not isinstance(value, str):
        return f"is {'null' if value is None else short(value)}, no text"
    if not value.strip():
        return "is blank"
    # Nearly all names are printable; some printable ones would not be by Python's rule.
    wrong = "" if value.isprintable() else next((character for character in value if is_control(character)), "")
    return f"holds the control character {wrong!r}" if wrong else ""


def is_control(character: str) -> bool:
    """Whether a character cannot be part of a name: controls, line and paragraph ends, surrogates."""
    return unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"}


def file_id_fault(name: str) -> str:
    """What is wrong with an image id that files are named by, or nothing: it is one name, no path."""
    if fault := text_fault(name):
        return fault
    if any(mark in name for mark in "/\\") or name in {".", ".."}:
        return "is a path, not the name of an image"
    if len(name.encode()) > MAX_NAME - len(".jpeg"):
        return f"has {len(name)} characters"
    return ""


def short(value: object, most: int = 80) -> str:
    """How a value is shown in a message, however large it is.

    >>> short({"a": 1}), short(1 << 40000, 30)
    ("{'a': 1}", 'int of 40001 bits')
    """
    if type(value) is int and value.bit_length() > 200:
        return f"int of {value.bit_length()} bits"
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        # A number inside has more digits than Python writes, or lists lie in lists without end.
        return f"{type(value).__name__} that is too large to show"
    return text if len(text) <= most else f"{text[:most]}..."
