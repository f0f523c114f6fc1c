"""What is wrong with a source, collected so that all of it is told at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedmlic.errors import listing


class Problems:
    """Collects what is wrong with a source, and raises all of it at once.

    Args:
        expected: how the message begins, such as "Expected X to hold Y".
    """

    def __init__(self, expected: str) -> None:
        self.expected = expected
        self.found: list[str] = []

    def add(self, problem: str) -> None:
        """Note one."""
        self.found.append(problem)

    def finish(self) -> None:
        """Raise ``InputError`` if there were any."""
        if self.found:
            raise listing(self.expected, self.found)


def check_unique(expected: str, names: Sequence[str]) -> None:
    """Raise ``InputError`` that lists the names given more than once."""
    if len(set(names)) == len(names):
        return
    values, counts = np.unique(np.array(names, dtype=np.str_), return_counts=True)
    double = np.flatnonzero(counts > 1).tolist()
    raise listing(expected, [f"{values[place]} appears {counts[place]} times" for place in double])
