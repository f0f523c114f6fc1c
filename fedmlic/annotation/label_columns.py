"""From label names that a person wrote to columns: a wrong name gets the nearest right one."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedmlic.errors import InputError, listing, nearest

if TYPE_CHECKING:
    from numpy.typing import NDArray


def columns_of(names: Sequence[str], label_names: Sequence[str], what: str) -> NDArray[np.int64]:
    """int64 ``[names]``: the column of each name.

    Raises:
        InputError: names that the data set does not have, all at once.
    """
    column_of = {name: column for column, name in enumerate(label_names)}
    problems = [f"{name!r}: {nearest(name, label_names)}" for name in names if name not in column_of]
    if problems:
        expected = f"Expected {what} to name labels of the data set"
        raise listing(expected, problems)
    return np.array([column_of[name] for name in names], dtype=np.int64)


def names_of(labels: Sequence[str] | str, what: str) -> tuple[str, ...]:
    """Label names from a list of them, or from one text with commas between them.

    Unicode's composed form, as names of data sets are.

    Raises:
        InputError: a name is empty or there twice.

    >>> names_of("sea animal, kite", "labels")
    ('sea animal', 'kite')
    """
    pieces = labels.split(",") if isinstance(labels, str) else labels
    names = tuple(unicodedata.normalize("NFC", piece).strip() for piece in pieces)
    if not all(names):
        place = names.index("") + 1
        msg = f"Expected {what} to be names, got an empty one at place {place} of {len(names)}. Remove it."
        raise InputError(msg)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        msg = f"Expected {what} to name each label once, got {', '.join(map(repr, twice))} more often. Remove the rest."
        raise InputError(msg)
    return names


def per_label(
    values: Mapping[str, float] | Sequence[float], label_names: Sequence[str], what: str
) -> NDArray[np.float64]:
    """float64 ``[labels]``: one value per label, given by name or in column order.

    Raises:
        InputError: a label without a value, a value without a label.
    """
    if isinstance(values, Mapping):
        columns = columns_of(list(values), label_names, what)
        lacking = [name for name in label_names if name not in values]
        if lacking:
            expected = f"Expected {what} to have a value for every label"
            raise listing(expected, lacking)
        out = np.empty(len(label_names))
        out[columns] = list(values.values())
        return out
    if len(values) != len(label_names):
        msg = f"Expected {what} to have one value for each of the {len(label_names)} labels, got {len(values)}."
        raise InputError(msg)
    return np.array(values, dtype=np.float64)
