"""Chosen columns of a CSV file, row by row, however the file was written.

Public tables come with a byte order mark, CRLF line ends, no final newline, quoted commas,
blank lines, or a comma too many at the end of a line. All of that reads the same here. Cells
are stripped. A row too short for the chosen columns is an error, never a row less.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fedmlic.errors import InputError, listing, nearest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class Row(NamedTuple):
    """One line: its number in the file and its chosen cells, in the order that was asked for."""

    line: int
    cells: tuple[str, ...]


def columns(path: Path) -> list[str]:
    """The stripped names in a table's header.

    Raises:
        InputError: there is no such file, or its first line is blank.
    """
    header = next(_lines(path), (0, []))[1]
    if not any(header):
        msg = f"Expected {path} to begin with a header, got none. Download it again."
        raise InputError(msg)
    return header


def rows(path: Path, chosen: Sequence[str]) -> Iterator[Row]:
    """Every line below the header that is not blank, one at a time.

    Args:
        path: a table in UTF-8 with a header.
        chosen: columns to give, by name; each must be in the header once.

    Raises:
        InputError: no such file or column, no CSV, or, after the last row, all lines that
            are too short.
    """
    header = columns(path)
    wrong = [
        f"{name!r} {header.count(name)} times. {nearest(name, header)}" for name in chosen if header.count(name) != 1
    ]
    if wrong:
        expected = f"Expected the header of {path} to name each needed column once"
        raise listing(expected, wrong)
    places = [header.index(name) for name in chosen]
    needed = max(places, default=-1)
    short = []
    lines = _lines(path)
    next(lines)
    for number, cells in lines:
        if not any(cells):
            continue
        if len(cells) > needed:
            yield Row(number, tuple(cells[place] for place in places))
        else:
            short.append(f"line {number}: {len(cells)} cells")
    if short:
        expected = f"Expected every line of {path} to have at least {needed + 1} cells"
        raise listing(expected, short)


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    if not path.is_file():
        others = ", ".join(sorted(p.name for p in path.parent.glob("*.csv"))[:5]) or "no CSV file"
        msg = f"Expected a table at {path}, got {others} there. Download it, or name the right folder."
        raise InputError(msg)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            for cells in reader:
                yield reader.line_num, [cell.strip() for cell in cells]
    except (UnicodeDecodeError, csv.Error) as error:
        msg = f"Expected {path} to be a CSV file in UTF-8, got: {error}. Download it again."
        raise InputError(msg) from error
