"""CSV files: every line with its number, or chosen columns row by row.

Public tables come with a byte order mark, CRLF line ends, no final newline, quoted commas or
blank lines. All of that reads the same here. Cells are stripped.

Every row has as many cells as the header has names. A cell more or less moves all cells behind
it to wrong columns, so such a row is an error, never a guess. One exception is known in public
tables: a comma too many at the end of *every* line. Blank cells behind the last named column
are left out where every row has the same number of them, and where some row fills the last
named column, which shows that the surplus is at the end.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fedmlic.errors import InputError, listing, nearest
from fedmlic.formats.reading import undecodable
from fedmlic.problems import Problems

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
"""What else separates cells in files that are called CSV."""


class Row(NamedTuple):
    """One line: its number in the file and its chosen cells, in the order that was asked for."""

    line: int
    cells: tuple[str, ...]


def lines(path: Path, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """Every line of a table that is not blank: the number of the line that it begins on, and its stripped cells.

    Args:
        path: a table in UTF-8.
        delimiter: between cells.

    Raises:
        InputError: no such file, no UTF-8, or no CSV; with the line and the cause.
    """
    if not path.is_file():
        others = ", ".join(sorted(p.name for p in path.parent.glob("*.csv"))[:5]) or "no CSV file"
        msg = f"Expected a table at {path}, got {others} there. Download it, or name the right folder."
        raise InputError(msg)
    end = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            for cells in reader:
                stripped = [cell.strip() for cell in cells]
                if any(stripped):
                    yield end + 1, stripped
                end = reader.line_num
    except UnicodeDecodeError as error:
        raise undecodable(path, error) from error
    except csv.Error as error:
        msg = f"Expected {path} to be a CSV file, got line {end + 1}: {_cause(str(error))}. Correct that line."
        raise InputError(msg) from error
    except OSError as error:
        msg = f"Expected {path} to be a readable table, got: {error}. Check the file."
        raise InputError(msg) from error


def _cause(error: str) -> str:
    """What the csv module means."""
    if error.startswith("field larger"):
        limit = csv.field_size_limit()
        return f"a cell of more than {limit:,} characters, the most that is read (is a quotation mark missing?)"
    if error == "unexpected end of data":
        return "a quotation mark that opens there and is not closed before the end of the file"
    return f"{error}, as a cell that begins with a quotation mark has to end with one"


def columns(path: Path, *, flat: bool = False) -> list[str]:
    """The stripped names in a table's header.

    Args:
        path: the table.
        flat: a quoted name with commas stands for several columns, as it does in copies of
            tables whose own header did not quote ``[x,y]``.

    Raises:
        InputError: there is no such file, or it has no header.
    """
    header = next(lines(path), (0, []))
    if header[0] != 1:
        msg = f"Expected {path} to begin with a header, got none. Download it again."
        raise InputError(msg)
    return [part.strip() for name in header[1] for part in name.split(",")] if flat else header[1]


def rows(path: Path, chosen: Sequence[str], problems: Problems | None = None, *, flat: bool = False) -> Iterator[Row]:
    """Every line below the header that is not blank, one at a time.

    Args:
        path: a table in UTF-8 with a header.
        chosen: columns to give, by name; each must be in the header once.
        problems: takes what is wrong with single lines; those lines are not given. Without
            it they are raised after the last row, all at once.
        flat: see ``columns``.

    Raises:
        InputError: no such file or column, no CSV, or, after the last row, all lines that
            have too many or too few cells.
    """
    header = columns(path, flat=flat)
    _check_header(path, header, chosen)
    places = [header.index(name) for name in chosen]
    named = max(place for place, name in enumerate(header) if name) + 1
    wrong: list[tuple[int, str]] = []
    # Rows with blank cells too many or too few wait until it is known that all rows have them.
    waiting: list[tuple[int, Row]] = []
    regular, filled = 0, False
    for number, cells in lines(path):
        if number == 1:
            continue
        row = Row(number, tuple(cells[place] for place in places)) if len(cells) >= named else None
        if row is None or any(cells[named:]):
            wrong.append((number, f"{len(cells)} cells, where the header names {named}"))
        elif any("\0" in cell for cell in row.cells):
            wrong.append((number, "a NUL character in a cell"))
        elif len(cells) == len(header):
            regular += 1
            yield row
        else:
            waiting.append((len(cells), row))
            filled |= bool(cells[named - 1])
    if waiting and not regular and not wrong and _same_everywhere([width for width, _ in waiting], len(header), filled):
        yield from (row for _, row in waiting)
        waiting = []
    wrong += [(row.line, f"{width} cells, where the header names {named}") for width, row in waiting]
    expected = f"Expected every line of {path} to have one cell for each of {named} columns"
    own = Problems(expected, outer=problems)
    for number, what in sorted(wrong):
        own.add(f"line {number}: {what}")
    if problems is None:
        own.finish()


def _same_everywhere(widths: list[int], usual: int, filled: bool) -> bool:  # noqa: FBT001  (one question)
    """Whether all rows have the same blank cells at their end, which surely are at their end."""
    return len(set(widths)) == 1 and (widths[0] < usual or (len(widths) > 1 and filled))


def _check_header(path: Path, header: list[str], chosen: Sequence[str]) -> None:
    wrong = [
        f"{name!r} {header.count(name)} times. {nearest(name, header)}" for name in chosen if header.count(name) != 1
    ]
    if not wrong:
        return
    expected = f"Expected the header of {path} to name each needed column once"
    if len(header) == 1:
        found = [word for mark, word in DELIMITERS.items() if mark in header[0]]
        if found:
            expected = f"Expected the cells of {path} to be separated by commas (they look separated by {found[0]})"
    raise listing(expected, wrong)
