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
from fedmlic.errors import InputError
from fedmlic.sources.groups import deal, number_groups

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
    numbers, names = number_groups(rows.owners or [""] * len(ids))
    order = np.lexsort((ids, numbers, rows.splits))
    if keep is not None:
        order = order[keep[order]]
    if not len(order):
        msg = f"Expected an image to be left, got none of {len(ids)}. Check the folder of images and the options."
        raise InputError(msg)
    kept, owners = np.unique(numbers[order], return_inverse=True)
    owned = kept[kept != NO_OWNER].tolist()
    table = Table(
        image_ids=ids[order].tolist(),
        splits=[SPLITS[split] for split in rows.splits[order].tolist()],
        labels=rows.labels if np.array_equal(order, np.arange(len(ids))) else rows.labels[order],
        owners=owners.astype(np.int64) - (len(kept) - len(owned)),
        objects=rows.objects.take(order) if rows.objects is not None else None,
        sources=[rows.sources[row] for row in order.tolist()],
        owner_names=[names[place] for place in owned],
        report=report,
        flags=rows.flags.take(order) if rows.flags is not None else None,
    )
    return table, order


def hold_out_val(
    splits: NDArray[np.int64], groups: Sequence[str], fraction: float, seed: int, purpose: str
) -> NDArray[np.int64]:
    """The splits with about ``fraction`` of the training rows moved to validation, whole groups at a time.

    Args:
        splits: int64 ``[rows]``, places in ``SPLITS``.
        groups: text per row; rows of one group stay together.
        fraction: share in [0, 1] of the training rows.
        seed: of the draw.
        purpose: begins the name of the random stream, which ends in ``/val``.
    """
    numbers, _ = number_groups(groups)
    dealt = deal([SPLITS[split] for split in splits.tolist()], numbers, {"val": fraction}, seed, purpose)
    return np.array([SPLITS.index(split) for split in dealt], dtype=np.int64)
