"""From the rows of a source, in its own order, to a table in stored order.

Stored order is split, owner, image id, so that shuffling a source changes nothing. Owners are
texts here; the table numbers those that are left alphabetically.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from fedmlic.dataset import NO_OWNER, SPLITS, Flags, Objects, Table
from fedmlic.errors import InputError, listing
from fedmlic.splits import hold_out

if TYPE_CHECKING:
    from numpy.typing import NDArray

TRAIN, VAL, TEST = range(3)
"""Places in ``SPLITS``."""


@dataclass(frozen=True)
class Rows:
    """Rows of a source.

    Attributes:
        image_ids: one unique text per row.
        splits: int64 ``[rows]``, places in ``SPLITS``.
        labels: int8 ``[rows, labels]``.
        sources: file of each row, for messages.
        owners: text per row, blank for nobody; empty where the source has no owners.
        objects: in source rows, sorted by row.
        flags: likewise.
    """

    image_ids: Sequence[str]
    splits: NDArray[np.int64]
    labels: NDArray[np.int8]
    sources: Sequence[str]
    owners: Sequence[str] = field(default_factory=list)
    objects: Objects | None = None
    flags: Flags | None = None


def make_table(
    rows: Rows, report: Mapping[str, Any], keep: NDArray[np.bool_] | None = None
) -> tuple[Table, NDArray[np.int64]]:
    """The table, and the source row of each of its rows.

    Args:
        rows: what was read.
        report: kept with the table.
        keep: bool ``[rows]``; the others are left out.

    Raises:
        InputError: nothing is left, or image ids are not unique.
    """
    ids = np.array(rows.image_ids, dtype=np.str_)
    numbers = number_owners(rows.owners) if len(rows.owners) else np.full(len(ids), NO_OWNER, dtype=np.int64)
    order = np.lexsort((ids, numbers, rows.splits))
    if keep is not None:
        order = order[keep[order]]
    if not len(order):
        msg = f"Expected an image to be left, got none of {len(ids)}. Check the folder of images and the options."
        raise InputError(msg)
    kept, owners = np.unique(numbers[order], return_inverse=True)
    names = sorted(set(rows.owners) - {""})
    owned = kept[kept != NO_OWNER].tolist()
    table = Table(
        image_ids=ids[order].tolist(),
        splits=[SPLITS[split] for split in rows.splits[order].tolist()],
        labels=rows.labels if np.array_equal(order, np.arange(len(ids))) else rows.labels[order],
        owners=owners.astype(np.int64) - (len(kept) - len(owned)),
        objects=rows.objects.take(order) if rows.objects is not None else None,
        sources=[rows.sources[row] for row in order.tolist()],
        owner_names=[names[number] for number in owned],
        report=report,
        flags=rows.flags.take(order) if rows.flags is not None else None,
    )
    return table, order


def number_owners(owners: Sequence[str]) -> NDArray[np.int64]:
    """int64 ``[rows]``: places in the sorted names; ``NO_OWNER`` where the name is blank."""
    number = {name: place for place, name in enumerate(sorted(set(owners) - {""}))} | {"": NO_OWNER}
    return np.fromiter((number[name] for name in owners), dtype=np.int64, count=len(owners))


def hold_out_val(
    splits: NDArray[np.int64], groups: Sequence[str], fraction: float, seed: int, purpose: str
) -> NDArray[np.int64]:
    """The splits with about ``fraction`` of the training rows moved to validation, whole groups at a time.

    Args:
        splits: int64 ``[rows]``, places in ``SPLITS``.
        groups: text per row; rows of one group stay together.
        fraction: share in [0, 1] of the training rows.
        seed: of the draw.
        purpose: name of the random stream.
    """
    train = np.flatnonzero(splits == TRAIN)
    if not len(train) or fraction == 0:
        return splits
    _, numbers = np.unique(np.array([groups[row] for row in train.tolist()], dtype=np.str_), return_inverse=True)
    moved = splits.copy()
    moved[train[hold_out(numbers.astype(np.int64), fraction, seed, purpose)]] = VAL
    return moved


def check_unique(expected: str, names: Sequence[str]) -> None:
    """Raise ``InputError`` that lists the names given more than once."""
    if len(set(names)) == len(names):
        return
    values, counts = np.unique(np.array(names, dtype=np.str_), return_counts=True)
    double = np.flatnonzero(counts > 1).tolist()
    raise listing(expected, [f"{values[place]} appears {counts[place]} times" for place in double])
