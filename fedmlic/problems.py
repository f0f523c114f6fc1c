"""What is wrong with a source, collected over all stages of reading it and raised at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

import numpy as np

from fedmlic.errors import InputError, listing

LONGEST = 1000
"""Characters of a line that are kept: a damaged file can hold a cell of any length."""

P = ParamSpec("P")
T = TypeVar("T")


class Problems:
    """Collects what is wrong with a source, and raises all of it at once.

    A data set makes one collector and reads everything that it can before it calls
    ``finish``, so that a fault of one file does not hide those of another:

    - ``attempt`` runs a stage that raises ``InputError``. After a failure it returns None, and
      stages that need the result are left out; all others are read all the same.
    - ``within`` begins a collector for one file. What is added to it goes to the outer one, so
      a reader that notes bad lines there can return the good ones, and later stages go on.

    Every problem that comes from another stage keeps the beginning of that stage's message, so
    that each line names its file.

    Args:
        expected: how the message begins, such as "Expected X to hold Y".
        complete: lines that are added say all by themselves, where and what; otherwise they
            are read after ``expected``.

    >>> def read_names(lines: list[str], problems: Problems) -> list[str]:
    ...     own = problems.within("Expected names.txt to hold one word per line")
    ...     for number, line in enumerate(lines, 1):
    ...         if " " in line:
    ...             own.add(f"line {number}: {line!r}")
    ...     return [line for line in lines if " " not in line]
    >>> def read_size(text: str) -> int:
    ...     if not text.isdecimal():
    ...         raise InputError(f"Expected size.txt to hold a number, got {text!r}. Download it again.")
    ...     return int(text)
    >>> problems = Problems("Expected data set toy to be complete")
    >>> names = read_names(["cat", "a dog"], problems)
    >>> size = problems.attempt(read_size, "three")
    >>> if size is not None and size != len(names):  # needs both
    ...     problems.add(f"{len(names)} names for size {size}")
    >>> problems.finish()
    Traceback (most recent call last):
    fedmlic.errors.InputError: Expected data set toy to be complete, got 2 problems. Correct and start again:
      Expected names.txt to hold one word per line, got line 2: 'a dog'
      Expected size.txt to hold a number, got 'three'. Download it again.
    """

    def __init__(self, expected: str, *, complete: bool = False, outer: Problems | None = None) -> None:
        self.expected = expected
        self.complete = complete
        self.outer = outer
        self.found: dict[str, str] = {}

    def __len__(self) -> int:
        """How many there are; equal ones count once."""
        return len(self.found)

    @property
    def lines(self) -> list[str]:
        """All of them, each a line that says by itself what is meant."""
        return list(self.found)

    def add(self, problem: str) -> None:
        """Note one."""
        self._keep(problem, problem if self.complete else f"{self.expected}, got {problem}")

    def note(self, line: str) -> None:
        """Note one that says all by itself."""
        self._keep(line, line)

    def _keep(self, shown: str, line: str) -> None:
        if len(line) > LONGEST:
            shown, line = shown[:LONGEST] + "...", line[:LONGEST] + "..."
        # A file may be read by two stages; a second line that says the same helps nobody.
        if line in self.found:
            return
        self.found[line] = shown
        if self.outer is not None:
            self.outer.note(line)

    def take(self, error: InputError) -> None:
        """Note all problems of an error that another stage has raised."""
        for line in error.problems or [str(error)]:
            self.note(line)

    def attempt(self, read: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """What a stage returns, or None after it raised ``InputError``, which is noted."""
        try:
            return read(*args, **kwargs)
        except InputError as error:
            self.take(error)
            return None

    def within(self, expected: str, *, complete: bool = False) -> Problems:
        """A collector for one file or stage; what is noted there is noted here too."""
        return Problems(expected, complete=complete, outer=self)

    def error(self) -> InputError:
        """All of them as one exception, to be raised where a stage without a result ends the work."""
        error = listing(self.expected, list(self.found.values()))
        error.problems = tuple(self.found)
        return error

    def finish(self) -> None:
        """Raise ``InputError`` if there were any."""
        if self.found:
            raise self.error()


def check_unique(expected: str, names: Sequence[str]) -> None:
    """Raise ``InputError`` that lists the names given more than once."""
    if len(set(names)) == len(names):
        return
    values, counts = np.unique(np.array(names, dtype=np.str_), return_counts=True)
    double = np.flatnonzero(counts > 1).tolist()
    raise listing(expected, [f"{values[place]} appears {counts[place]} times" for place in double])
