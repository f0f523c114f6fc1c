"""Text files with one image id per line (VOC's image sets, released training lists)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from fedmlic.errors import InputError
from fedmlic.formats.fields import file_id_fault, is_control, whole
from fedmlic.problems import Problems

if TYPE_CHECKING:
    from pathlib import Path


def read_ids(path: Path, problems: Problems | None = None) -> list[str]:
    """The ids of a list, in its order.

    Line ends may be those of any system, the last line may have none, and there may be a
    byte order mark and blank lines.

    Args:
        path: the list.
        problems: where to note what is wrong; the good lines are returned all the same.

    Raises:
        InputError: it is no text, a line holds more than one word or a word that no file can be
            named by (a path, control characters), or an id stands twice; all problems at once,
            unless they are noted.
    """
    return list(_read(path, "one image id per line, each once", file_id_fault, problems))


def read_id_numbers(path: Path, problems: Problems | None = None) -> tuple[int, ...]:
    """The ids of a list whose ids are whole numbers, in its order; otherwise as ``read_ids``."""
    found = _read(path, "one whole number per line, each once", _number_fault, problems)
    return tuple(number for number in map(whole, found) if number is not None)


def _number_fault(name: str) -> str:
    return "" if whole(name) is not None else "is no whole number"


def _read(path: Path, holds: str, fault_of: Callable[[str], str], problems: Problems | None) -> dict[str, int]:
    """Line number of each good id."""
    expected = f"Expected {path} to hold {holds}"
    own = Problems(expected) if problems is None else problems.within(expected)
    found: dict[str, int] = {}
    times: Counter[str] = Counter()
    lines = own.attempt(_lines, path) or []
    for number, line in enumerate(lines, 1):
        name = line.strip(" \t")
        fault = "is not one word" if len(name.split()) > 1 or any(map(is_control, name)) else fault_of(name)
        if fault and name:
            own.add(f"line {number}: {line!r} {fault}")
        elif name:
            times[name] += 1
            found.setdefault(name, number)
    for name, count in times.items():
        if count > 1:
            own.add(f"{name} stands {count} times, first in line {found[name]}")
    if not found and not own:
        own.add("no ids")
    if problems is None:
        own.finish()
    return found


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        # Released lists named .pkl are text; a real pickle could run code when it is opened.
        msg = (
            f"Expected {path} to be text with one image id per line, got: {error}. Pickles are not opened; "
            "save its ids as text."
        )
        raise InputError(msg) from error
    # Not splitlines, which breaks a line at control characters too.
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
