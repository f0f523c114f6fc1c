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
    """int64 ``[names]``: the column of each name, however its letters are composed.

    Raises:
        InputError: names that the data set does not have, all at once; a name is there twice.
    """
    column_of = {_composed(name): column for column, name in enumerate(label_names)}
    chosen = [_composed(name) for name in names]
    problems = [f"{name!r}: {nearest(name, label_names)}" for name in chosen if name not in column_of]
    if problems:
        expected = f"Expected {what} to name labels of the data set"
        raise listing(expected, problems)
    _check_once(chosen, what)
    return np.array([column_of[name] for name in chosen], dtype=np.int64)


def _composed(name: str) -> str:
    """Unicode's composed form without space around it."""
    return unicodedata.normalize("NFC", name).strip()


def _check_once(names: Sequence[str], what: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        msg = f"Expected {what} to name each label once, got {', '.join(map(repr, twice))} more often. Remove the rest."
        raise InputError(msg)


def names_of(labels: Sequence[str] | str, what: str) -> tuple[str, ...]:
    """Label names from a list of them, or from one text with commas between them.

    Unicode's composed form, as names of data sets are.

    Raises:
        InputError: a name is empty or there twice.

    >>> names_of("sea animal, kite", "labels")
    ('sea animal', 'kite')
    """
    pieces = labels.split(",") if isinstance(labels, str) else labels
    names = tuple(_composed(piece) for piece in pieces)
    if not all(names):
        place = names.index("") + 1
        msg = f"Expected {what} to be names, got an empty one at place {place} of {len(names)}. Remove it."
        raise InputError(msg)
    _check_once(names, what)
    return names


def per_label(
    values: Mapping[str, float] | Sequence[float], label_names: Sequence[str], what: str
) -> NDArray[np.float64]:
    """float64 ``[labels]``: one value per label, given by name or in column order.

    Raises:
        InputError: a label without a value or with two, a value without a label.
    """
    if isinstance(values, Mapping):
        columns = columns_of(list(values), label_names, what)
        given = set(columns.tolist())
        lacking = [name for column, name in enumerate(label_names) if column not in given]
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
