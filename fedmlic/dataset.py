"""Images with their labels, objects and owners, before anyone has split or hidden anything.

A data set is a *description*: a table of rows that is cheap to hold, and a
function that renders or decodes one image. ``fedmlic.corpus`` turns it into
memory-mapped files once; nothing else in the program reads a ``Dataset``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedmlic import code
from fedmlic.errors import InputError
from fedmlic.labels import check_labels

if TYPE_CHECKING:
    from numpy.typing import NDArray

SPLITS = ("train", "val", "test")
"""Names of the splits. Clients train on ``train``; selection may use ``val`` only."""

NO_OWNER = -1
"""Owner of an image that belongs to nobody in particular."""


@dataclass(frozen=True)
class Objects:
    """Where things are: one entry per object instance, in image pixels.

    Attributes:
        row: int64 ``[objects]``, the image (a row of the table this belongs to), ascending.
        label: int16 ``[objects]``, the column.
        box: float32 ``[objects, 4]`` as x, y, width, height in pixels of the stored image.
        area: float32 ``[objects]``, visible pixels.
    """

    row: NDArray[np.int64]
    label: NDArray[np.int16]
    box: NDArray[np.float32]
    area: NDArray[np.float32]

    def take(self, rows: NDArray[np.int64]) -> Objects:
        """The objects of the images ``rows``, renumbered to 0, 1, ... in that order."""
        chosen, new_row = _entries_of(self.row, rows)
        return Objects(new_row, self.label[chosen], self.box[chosen], self.area[chosen])


DIFFICULT_ONLY, CROWD_ONLY, NOT_EXHAUSTIVE, MACHINE, NOT_VISIBLE = 1, 2, 4, 8, 16
"""Bits of a flag: what a source says of one entry beyond its state."""


@dataclass(frozen=True)
class Flags:
    """What a source says of single entries beyond their state, as a sparse matrix in row order.

    Attributes:
        row: int64 ``[flags]``, the image, ascending.
        label: int16 ``[flags]``, the column.
        bits: uint8 ``[flags]``: ``DIFFICULT_ONLY`` (present through instances marked difficult
            alone), ``CROWD_ONLY`` (through crowd regions alone), ``NOT_EXHAUSTIVE`` (not every
            instance is marked), ``MACHINE`` (a program said so), ``NOT_VISIBLE`` (annotators
            could not see it).
    """

    row: NDArray[np.int64]
    label: NDArray[np.int16]
    bits: NDArray[np.uint8]

    def take(self, rows: NDArray[np.int64]) -> Flags:
        """The flags of the images ``rows``, renumbered to 0, 1, ... in that order."""
        chosen, new_row = _entries_of(self.row, rows)
        return Flags(new_row, self.label[chosen], self.bits[chosen])


def _entries_of(row: NDArray[np.int64], rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places of the entries of ``rows`` in a table sorted by ``row``, and their new row numbers."""
    starts = np.searchsorted(row, rows, side="left")
    counts = np.searchsorted(row, rows, side="right") - starts
    first = np.repeat(starts - np.concatenate(([0], np.cumsum(counts)[:-1])), counts)
    return first + np.arange(counts.sum()), np.repeat(np.arange(len(rows), dtype=np.int64), counts)


@dataclass(frozen=True)
class Table:
    """All rows of a data set.

    Attributes:
        image_ids: unique text per image, stable across builds.
        splits: ``"train"``, ``"val"`` or ``"test"`` per image.
        labels: int8 ``[images, labels]``; the truth, or natively partial.
        owners: int64 ``[images]``, dense owner numbers or ``NO_OWNER``.
        objects: instances, where known.
        sources: file each image comes from, for messages; empty where there is none.
        owner_names: name of owner 0, 1, ...; empty where they have none.
        report: anything about the source worth keeping (image modes, rows left out);
            JSON values only. Texts under ``warnings`` are shown when the data set is checked
            or built: what is strange in the source but no reason to refuse it.
        flags: what the source says of single entries beyond their state, where it does.
    """

    image_ids: list[str]
    splits: list[str]
    labels: NDArray[np.int8]
    owners: NDArray[np.int64]
    objects: Objects | None = None
    sources: list[str] = field(default_factory=list)
    owner_names: list[str] = field(default_factory=list)
    report: Mapping[str, Any] = field(default_factory=dict)
    flags: Flags | None = None

    def __post_init__(self) -> None:
        """Check lengths, unique ids, split names, label states, owners and objects."""
        check_labels(self.labels)
        count = len(self.image_ids)
        lengths = {"splits": len(self.splits), "labels": len(self.labels), "owners": len(self.owners)}
        for name, length in lengths.items():
            if length != count:
                msg = f"Expected {name} to have one entry per image ({count}), got {length}."
                raise InputError(msg)
        if len(set(self.image_ids)) != count:
            seen: set[str] = set()
            double = [i for i in self.image_ids if i in seen or seen.add(i)]  # type: ignore[func-returns-value]
            msg = f"Expected image ids to be unique, got {len(double)} duplicates, first {double[:10]}."
            raise InputError(msg)
        wrong = sorted(set(self.splits) - set(SPLITS))
        if wrong:
            msg = f"Expected splits to be among {SPLITS}, got {wrong}."
            raise InputError(msg)
        self._check_owners()
        for what in ("objects", "flags"):
            self._check_entries(what)

    def _check_owners(self) -> None:
        if self.owners.size and self.owners.min() < NO_OWNER:
            msg = f"Expected owners to be 0 or more, or NO_OWNER ({NO_OWNER}), got {self.owners.min()}."
            raise InputError(msg)
        if self.owner_names and self.owners.size and self.owners.max() >= len(self.owner_names):
            msg = (
                f"Expected every owner to have a name, got owner {self.owners.max()} of {len(self.owner_names)} names."
            )
            raise InputError(msg)

    def _check_entries(self, what: str) -> None:
        entries: Objects | Flags | None = getattr(self, what)
        if entries is None or not len(entries.row):
            return
        row, label = entries.row, entries.label
        if (np.diff(row) < 0).any() or row[0] < 0 or row[-1] >= len(self.image_ids):
            msg = f"Expected {what} to be sorted by row, from 0 to {len(self.image_ids) - 1}. Sort them first."
            raise InputError(msg)
        if label.min() < 0 or label.max() >= self.labels.shape[1]:
            msg = f"Expected labels of {what} to be below {self.labels.shape[1]}, got {label.min()} to {label.max()}."
            raise InputError(msg)


@dataclass(frozen=True)
class Dataset:
    """A data set as its factory describes it.

    Attributes:
        name: the factory's name.
        version: raised whenever the same identity would give other pixels or labels.
        identity: every argument (and fingerprint of every source file) that decides the
            content; JSON values only. Two data sets with equal name, version and identity
            are byte-identical.
        label_names: column names, in order.
        image_shape: height, width, channels (3 or 1) of every stored image.
        table: makes the rows; may raise ``InputError`` listing everything wrong at once.
        image: uint8 ``[height, width, channels]`` of one row of the table; a pure function,
            called from several threads. Raises ``InputError`` for an image that cannot be read.
        licence: one line.
        images: the same for many rows at once, uint8 ``[rows, height, width, channels]``,
            where drawing them together is faster; the bytes must equal those of ``image``.
        label_ids: the source's own id of each label, in order; empty where it has none.
        parents: name of the coarser label or group each label belongs to, in order; empty
            where labels have no hierarchy.
        expected: published counts by name, such as ``{"train": 82783, "labels": 80}``: a
            split's name stands for its images, ``positives/NAME`` for the images on which
            label NAME is present. They are compared softly (``fedmlic data check`` warns);
            a subset of a data set is not an error.
        built: the corpus folder that this already is; it is opened as it is, never built.
        own: whether images and labels are the user's own rather than a public benchmark: a
            regime that hides some of their labels is warned of.
        code: hash of each of this project's files that it is made by; kept with a corpus, so
            that it can be told when they have changed. ``version`` is what decides.
    """

    name: str
    version: str
    identity: Mapping[str, Any]
    label_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    table: Callable[[], Table]
    image: Callable[[int], NDArray[np.uint8]]
    licence: str = "unknown"
    images: Callable[[NDArray[np.int64]], NDArray[np.uint8]] | None = None
    label_ids: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()
    expected: Mapping[str, int] = field(default_factory=dict)
    built: Path | None = None
    own: bool = False
    code: Mapping[str, str] = field(default_factory=dict)

    def by(self, *modules: str) -> Dataset:
        """The same, made by these modules: the code of a plug-in is part of its identity.

        An entry of this project has its ``version`` for that: editing a comment must not cost hours of decoding.
        """
        if self.built is not None:
            return self
        files = code.files_behind(*modules)
        plugin = code.outside(files)
        own = {name: value for name, value in files.items() if name not in plugin}
        identity = {**self.identity, "code": code.digest(plugin)} if plugin else self.identity
        return replace(self, identity=identity, code=own)
