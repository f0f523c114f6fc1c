"""Text files with one image id per line (VOC's image sets, released training lists)."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from fedmlic.errors import InputError, listing
from fedmlic.formats.coco_json import whole

if TYPE_CHECKING:
    from pathlib import Path


def read_ids(path: Path) -> list[str]:
    """The ids of a list, in its order.

    Line ends may be those of any system, the last line may have none, and there may be a
    byte order mark and blank lines.

    Raises:
        InputError: it is no text, a line holds more than one word, or an id stands twice;
            all problems at once.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        # Released lists named .pkl are text; a real pickle could run code when it is opened.
        msg = (
            f"Expected {path} to be text with one image id per line, got: {error}. Pickles are not opened; "
            "save its ids as text."
        )
        raise InputError(msg) from error
    ids = [line.strip() for line in lines if line.strip()]
    times = Counter(ids)
    problems = [f"line {n}: {line!r}" for n, line in enumerate(lines, 1) if len(line.split()) > 1]
    problems += [f"{name} stands {n} times" for name, n in times.items() if n > 1]
    if problems or not ids:
        expected = f"Expected {path} to hold one image id per line, each once"
        raise listing(expected, problems or ["no ids"])
    return ids


def number_ids(ids: list[str], path: Path) -> tuple[int, ...]:
    """The ids of a list as numbers.

    Raises:
        InputError: some are none.
    """
    numbers = [whole(name) for name in ids]
    wrong = [f"{name!r} is no number" for name, number in zip(ids, numbers, strict=True) if number is None]
    if wrong:
        expected = f"Expected {path} to hold numbers"
        raise listing(expected, wrong)
    return tuple(number for number in numbers if number is not None)
