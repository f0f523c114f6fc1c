"""What every layout of FLAIR is read into: one record per image, label names as sparse entries."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedmlic.images import Resize

KINDS = ("coarse", "fine")
FIELDS = {"coarse": "labels", "fine": "fine_grained_labels"}
"""What FLAIR's files call the two kinds of labels."""


@dataclass(frozen=True)
class Entries:
    """Which labels records have.

    Attributes:
        record: int64 ``[entries]``, ascending.
        code: int64 ``[entries]``, a place in ``names``.
        names: label names; in the order in which the source first uses them, or its own.
    """

    record: NDArray[np.int64]
    code: NDArray[np.int64]
    names: list[str]


@dataclass(frozen=True)
class Records:
    """The images of a source, in its own order.

    Attributes:
        image_ids: one text per record.
        users: likewise.
        partitions: likewise, as the source writes it.
        entries: of each kind of labels that was asked for.
        where: file or place of each record, for messages.
        notes: counts worth keeping; JSON values.
        problems: what is wrong with the source, a complete line each; what is good of it was
            read all the same.
    """

    image_ids: list[str]
    users: list[str]
    partitions: list[str]
    entries: Mapping[str, Entries]
    where: list[str]
    notes: Mapping[str, Any]
    problems: Sequence[str] = ()


@dataclass(frozen=True)
class Layout:
    """One way FLAIR lies on disk.

    Attributes:
        name: for messages and the identity.
        names: label names of a kind, or ``None`` where only the records tell.
        records: reads everything but pixels; every call gives the same. Never raises ``InputError``.
        pixels: uint8 ``[size, size, channels]`` of a record, given size, channels and resize.
        identity: fingerprints of its files.
    """

    name: str
    names: Callable[[str], list[str] | None]
    records: Callable[[], Records]
    pixels: Callable[[int, int, int, Resize], NDArray[np.uint8]]
    identity: Mapping[str, Any]


class EntryList:
    """Collects the label names of one record after another.

    Args:
        names: names that have codes from the start.
    """

    def __init__(self, names: list[str] | None = None) -> None:
        self.index: dict[str, int] = {name: place for place, name in enumerate(names or [])}
        self.codes: list[int] = []
        self.counts: list[int] = []

    def add(self, labels: list[str]) -> None:
        """The labels of the next record."""
        index = self.index
        self.codes.extend([index.setdefault(label, len(index)) for label in labels])
        self.counts.append(len(labels))

    def finish(self) -> Entries:
        """All entries, with names in the order in which they came up."""
        record = np.repeat(np.arange(len(self.counts), dtype=np.int64), self.counts)
        return Entries(record, np.array(self.codes, dtype=np.int64), list(self.index))


def is_numbering(places: object) -> TypeGuard[dict[str, int]]:
    """Whether a JSON value numbers names from 0 without gaps."""
    if not isinstance(places, dict) or not all(type(place) is int for place in places.values()):
        return False
    return sorted(places.values()) == list(range(len(places)))
