"""Large JSON files whose top level is one object, read an array element at a time.

Annotation files of COCO and LVIS hold hundreds of megabytes in a few top-level arrays. The
standard decoder wants the whole text in memory and builds every record at once; here it
decodes one record after another from a window of a few megabytes. Speed is that of
``json.loads``; memory is that of the window and the largest record.
"""

from __future__ import annotations

import codecs
import json
import re
from typing import TYPE_CHECKING, Any

from fedmlic.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO

WINDOW_BYTES = 1 << 22
"""Bytes read at a time."""

RECORD_CHARACTERS = 1 << 26
"""Longest record that is waited for; more is taken for a file without an end."""

SPACE = re.compile(r"[ \t\r\n]*")
NUMBER_TAIL = re.compile(r"[-+.eE0-9]*")
DECODER = json.JSONDecoder()


class _Window:
    """A part of the text, moved forward on demand."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.text = ""
        self.at = 0
        self.passed = 0
        self.ended = False

    def more(self) -> None:
        """Drop what was read and add at least as much as is left."""
        data = self.file.read(max(WINDOW_BYTES, len(self.text) - self.at))
        self.ended = not data
        self.text = self.text[self.at :] + self.decoder.decode(data, final=self.ended)
        self.passed += self.at
        self.at = 0

    def peek(self) -> str:
        """The next character that is not space, or nothing at the end."""
        while True:
            found = SPACE.match(self.text, self.at)
            self.at = found.end() if found else self.at
            if self.at < len(self.text):
                return self.text[self.at]
            if self.ended:
                return ""
            self.more()

    def take(self, allowed: str) -> str:
        """Move over the next character, which must be one of ``allowed``."""
        found = self.peek()
        if not found or found not in allowed:
            wanted = " or ".join(repr(character) for character in allowed)
            raise ValueError(self.place(f"{wanted} expected, got {found!r}" if found else f"it ends before {wanted}"))
        self.at += 1
        return found

    def value(self) -> Any:  # noqa: ANN401  (JSON is untyped)
        """Decode the next value whole and move behind it."""
        self.peek()
        while True:
            try:
                found, end = DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                if self.ended or len(self.text) - self.at > RECORD_CHARACTERS:
                    raise ValueError(self.place(error.msg, error.pos - self.at)) from None
            else:
                # A number may go on behind the window: 1, 1. and 1.5e begin 1.5e3.
                whole = type(found) not in {int, float} or NUMBER_TAIL.fullmatch(self.text, end) is None
                if whole or self.ended:
                    self.at = end
                    return found
            self.more()

    def place(self, what: str, ahead: int = 0) -> str:
        """A message with its place in the file."""
        return f"{what} (character {self.passed + self.at + ahead})"


def _members(window: _Window, kinds: dict[str, str]) -> Iterator[tuple[str, Any]]:
    """Keys of the top level with their elements, until the end."""
    window.take("{")
    mark = "," if window.peek() != "}" else window.take("}")
    while mark == ",":
        key = window.value()
        if type(key) is not str:
            raise ValueError(window.place(f"a key in quotes expected, got {key!r}"))
        if key in kinds:
            raise ValueError(window.place(f"the key {key!r} is there twice"))
        window.take(":")
        if window.peek() == "[":
            kinds[key] = "list"
            yield from ((key, element) for element in _elements(window))
        else:
            value = window.value()
            kinds[key] = type(value).__name__
            yield key, value
        mark = window.take(",}")
    if window.peek():
        raise ValueError(window.place("text behind the end"))


def _elements(window: _Window) -> Iterator[Any]:
    """Elements of the array that begins here."""
    window.take("[")
    mark = "," if window.peek() != "]" else window.take("]")
    while mark == ",":
        yield window.value()
        mark = window.take(",]")


def read_arrays(path: Path, kinds: dict[str, str] | None = None) -> Iterator[tuple[str, Any]]:
    """Yield (key, element) for every element of every top-level array, in the file's order.

    A top-level value that is no array is yielded whole; an empty array yields nothing.

    Args:
        path: a JSON file in UTF-8, with or without byte order mark, whose top level is an object.
        kinds: is filled with the Python type of every top-level value, by key, before its first
            element is yielded; an empty array has a key here and nothing else.

    Raises:
        InputError: it cannot be read, or is no such file; elements before the fault were yielded.
    """
    try:
        with path.open("rb") as file:
            window = _Window(file)
            yield from _members(window, {} if kinds is None else kinds)
    except (OSError, ValueError, RecursionError) as error:
        msg = f"Expected {path} to be JSON, got: {error}. Download it again."
        raise InputError(msg) from error
