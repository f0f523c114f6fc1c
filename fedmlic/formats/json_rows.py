"""Rows of JSON Lines, looked at one by one: which line is no JSON, or holds another type than those before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from fedmlic.formats.reading import read_lines

MAX_LINES = 10
"""Most lines of one file that are named."""


class _First(NamedTuple):
    """The first line that holds a value under a name, and its type."""

    line: int
    kind: str


def odd_rows(path: Path) -> list[str]:
    """A sentence for every line that does not fit: ``line 3: ...``, at most ``MAX_LINES``.

    A line fits if it is one JSON object whose values are of the same types as in earlier lines.
    Null fits everywhere; whole numbers and decimals are one type.

    Raises:
        InputError: no such file, or no text in UTF-8.
    """
    first: dict[str, _First] = {}
    problems: list[str] = []
    for number, text in read_lines(path):
        if len(problems) >= MAX_LINES:
            break
        try:
            row = json.loads(text)
        except ValueError as error:
            problems.append(f"line {number}: no JSON: {error}")
            continue
        if not isinstance(row, dict):
            problems.append(f"line {number}: {kind_of(row)}, where an object is expected")
            continue
        for name, value in row.items():
            kind = kind_of(value)
            seen = first.setdefault(name, _First(number, kind)) if not _is_open(kind) else None
            if "mixed" in kind:
                problems.append(f"line {number}: {name!r} holds a {kind}: {_shortened(value)}")
            elif seen is not None and seen.kind != kind:
                problems.append(
                    f"line {number}: {name!r} holds a {kind} ({_shortened(value)}), where line {seen.line} holds a "
                    f"{seen.kind}"
                )
    return problems


def _is_open(kind: str) -> bool:
    """Whether a type says nothing of what the column holds."""
    return kind == "null" or kind.endswith(("list of nothing", "list of null")) or "mixed" in kind


def _shortened(value: Any) -> str:  # noqa: ANN401  (JSON is any)
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def kind_of(value: Any) -> str:  # noqa: ANN401  (JSON is any)
    """The type of a JSON value in words.

    >>> kind_of([["a"], []]), kind_of([1, 2.5]), kind_of([1, "a"])
    ('list of list of text', 'list of number', 'list of mixed number and text')
    """
    if isinstance(value, list):
        kinds = sorted({kind_of(item) for item in value} - {"null"}) or ["null" if value else "nothing"]
        known = [kind for kind in kinds if not kind.endswith("nothing")] or kinds
        return f"list of {known[0]}" if len(known) == 1 else f"list of mixed {' and '.join(known)}"
    names = {bool: "boolean", int: "number", float: "number", str: "text", dict: "object", type(None): "null"}
    return names[type(value)]
