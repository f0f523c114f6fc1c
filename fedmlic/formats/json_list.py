"""A JSON file that is one long list, read item by item so that it never lies in memory whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from fedmlic.errors import InputError

CHUNK = 1 << 22
"""Characters read at a time."""

LONGEST_ITEM = 1 << 26
"""A syntax error that more than this many characters do not cure is one."""

BLANK = " \t\r\n"


def read_json_list(path: Path) -> Iterator[Any]:
    """The items of the list in ``path``, in order.

    Raises:
        InputError: the file is missing, not UTF-8, no list, or damaged, with the number of
            the first item that cannot be read.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from _items(file)
    except (OSError, ValueError, RecursionError) as error:
        msg = f"Expected {path} to be a JSON list, got: {error}. Download it again."
        raise InputError(msg) from error


class _Buffer:
    """Text of a file from some place on."""

    def __init__(self, file: IO[str]) -> None:
        self.file = file
        self.text = ""
        self.place = 0

    def more(self) -> bool:
        """Read on; false at the end of the file."""
        read = self.file.read(CHUNK)
        self.text = self.text[self.place :] + read
        self.place = 0
        return bool(read)

    def skip(self) -> str:
        """Pass blanks; the next character, or blank at the end of the file."""
        while True:
            while self.place < len(self.text) and self.text[self.place] in BLANK:
                self.place += 1
            if self.place < len(self.text):
                return self.text[self.place]
            if not self.more():
                return ""


def _items(file: IO[str]) -> Iterator[Any]:
    buffer = _Buffer(file)
    if buffer.skip() != "[":
        raise ValueError("it does not begin with [")
    buffer.place += 1
    number = 0
    if buffer.skip() == "]":
        _end(buffer)
        return
    while True:
        yield _item(buffer, number)
        number += 1
        mark = buffer.skip()
        if mark not in {",", "]"}:
            msg = f"after item {number - 1} there is {mark or 'the end of the file'} instead of , or ]"
            raise ValueError(msg)
        buffer.place += 1
        if mark == "]":
            _end(buffer)
            return


def _end(buffer: _Buffer) -> None:
    if buffer.text[buffer.place : buffer.place + 1] == "]":
        buffer.place += 1
    if buffer.skip():
        raise ValueError("there is text after the list")


def _item(buffer: _Buffer, number: int) -> Any:  # noqa: ANN401
    buffer.skip()
    decoder = json.JSONDecoder()
    while True:
        try:
            item, end = decoder.raw_decode(buffer.text, buffer.place)
        except json.JSONDecodeError as error:
            # Either the item goes on behind the buffer's end, or it is damaged.
            if len(buffer.text) - buffer.place > LONGEST_ITEM or not buffer.more():
                msg = f"item {number} is damaged ({error.msg})"
                raise ValueError(msg) from error
            continue
        ended = isinstance(item, dict | list | str) or buffer.text[end : end + 1] in {*BLANK, ",", "]"}
        if not ended and buffer.more():
            continue  # a number may go on
        buffer.place = end
        return item
