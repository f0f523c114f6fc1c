"""Text and JSON files of a download, read whole."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from fedmlic.errors import InputError


def undecodable(path: Path, error: UnicodeDecodeError) -> InputError:
    """The error for a file that is no UTF-8: the byte that is none, and its line.

    Args:
        path: the file.
        error: what decoding it, or a part of it, raised.
    """
    line, byte = "", error.object[error.start]
    try:
        # A file that is read in pieces does not know its line; the whole file does.
        content = path.read_bytes()
        content.decode("utf-8")
    except UnicodeDecodeError as whole:
        number = content.count(b"\n", 0, whole.start) + 1
        line, byte = f" on line {number}", content[whole.start]
    except OSError:
        pass
    return InputError(
        f"Expected {path} to be text in UTF-8, got byte 0x{byte:02x}{line}, which is none. "
        "Download it again, or save it as UTF-8."
    )


def read_text(path: Path) -> str:
    """A text file in UTF-8, with or without a byte order mark, its line ends those of Unix.

    Raises:
        InputError: it is missing or no UTF-8 text.
    """
    if not path.is_file():
        msg = f"Expected a file at {path}, got none. Download it, or give the folder that holds it as root."
        raise InputError(msg)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise undecodable(path, error) from error
    except OSError as error:
        msg = f"Expected {path} to be a readable text file, got: {error}. Check the file."
        raise InputError(msg) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Line numbers, from 1, and stripped texts of the lines that are not blank."""
    numbered = enumerate(read_text(path).split("\n"), 1)
    return [(number, line.strip()) for number, line in numbered if line.strip()]


def small_number(text: str) -> int | None:
    """The number from 0 that up to nine digits of ASCII write, or None.

    >>> small_number("007"), small_number("-1"), small_number("9" * 5000)
    (7, None, None)
    """
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 9 else None


def read_json(path: Path) -> Any:  # noqa: ANN401  (JSON is untyped)
    """A JSON file.

    Raises:
        InputError: it is missing, no JSON, nested without end, or gives a key of one object twice.
    """
    try:
        return json.loads(read_text(path), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        msg = f"Expected {path} to be a JSON file, got: {error}. Download it again."
        raise InputError(msg) from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys differ: JSON's own decoder would keep the last of equal ones."""
    found = dict(pairs)
    if len(found) < len(pairs):
        times = Counter(key for key, _ in pairs)
        msg = f"the key {next(key for key in times if times[key] > 1)!r} twice in one object"
        raise ValueError(msg)
    return found
