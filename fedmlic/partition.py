"""Which client holds which image.

A partition assigns training images to clients: every image at most once, every
client at least one. Its kinds are in ``partitions/``; each is a factory that
returns a ``Partitioner``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from fedmlic.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedmlic.dataset import Objects


@dataclass(frozen=True)
class Population:
    """What a partitioner may look at: the training images before they are dealt out.

    Attributes:
        labels: int8 ``[images, labels]``, the data set's own labels.
        owners: int64 ``[images]``, or ``NO_OWNER`` (-1).
        objects: instances on these images, where known; ``row`` counts these images.
        label_names: column names, in order.
        parents: the coarser label each label belongs to, in order; empty without a hierarchy.
        owner_names: name of owner 0, 1, ...; empty where they have none.
    """

    labels: NDArray[np.int8]
    owners: NDArray[np.int64]
    objects: Objects | None = None
    label_names: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()
    owner_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Partition:
    """Rows of the training images, client after client.

    Attributes:
        client_ptr: int64 ``[clients + 1]``; client k holds ``rows[client_ptr[k]:client_ptr[k+1]]``.
        rows: int64 ``[assigned images]``, indices into the training images, ascending
            within a client.
        notes: what the partitioner did besides the plain rule (draws it needed, images it
            moved or left out), as counts or rounded numbers; saved with the federation so that
            nothing is dropped silently. Names with ``images`` that end in ``_left_out`` add up
            to the images that no client holds.
        client_names: name of client 0, 1, ... where clients are owners that have names; else empty.
        warnings: what a user should hear of before training, one sentence each; saved with the
            federation and shown by ``fedmlic describe`` and ``fedmlic run``.
    """

    client_ptr: NDArray[np.int64]
    rows: NDArray[np.int64]
    notes: Mapping[str, float] = field(default_factory=dict)
    client_names: Sequence[str] = ()
    warnings: Sequence[str] = ()

    @property
    def num_clients(self) -> int:
        """How many clients there are."""
        return len(self.client_ptr) - 1

    @property
    def sizes(self) -> NDArray[np.int64]:
        """int64 ``[clients]``: images per client."""
        return np.diff(self.client_ptr)

    def of(self, client: int) -> NDArray[np.int64]:
        """The rows that ``client`` holds."""
        return self.rows[self.client_ptr[client] : self.client_ptr[client + 1]]

    @staticmethod
    def from_clients(
        client_of_row: NDArray[np.int64], num_clients: int, notes: Mapping[str, float] | None = None
    ) -> Partition:
        """Build from one client number per image; -1 leaves an image out."""
        order = np.argsort(client_of_row, kind="stable")
        order = order[np.searchsorted(client_of_row[order], 0) :]
        sizes = np.bincount(client_of_row[order], minlength=num_clients)
        client_ptr = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
        return Partition(client_ptr, order.astype(np.int64), dict(notes or {}))

    def check(self, num_images: int) -> None:
        """Raise ``InputError`` unless the invariants hold: rows valid, unique and in order, no client empty."""
        if self.client_ptr[0] != 0 or self.client_ptr[-1] != len(self.rows) or (self.sizes < 0).any():
            msg = "Expected client_ptr to rise from 0 to the number of rows. Rebuild the federation."
            raise InputError(msg)
        if len(self.rows) and (self.rows.min() < 0 or self.rows.max() >= num_images):
            msg = f"Expected rows to be below {num_images}, got {self.rows.min()} to {self.rows.max()}."
            raise InputError(msg)
        if len(np.unique(self.rows)) != len(self.rows):
            msg = "Expected every image to belong to one client at most, got some images twice."
            raise InputError(msg)
        falling = np.flatnonzero(np.diff(self.rows) < 0) + 1
        if not np.isin(falling, self.client_ptr).all():
            msg = "Expected rows to be ascending within a client. Build with Partition.from_clients."
            raise InputError(msg)
        empty = np.flatnonzero(self.sizes == 0)
        if len(empty):
            msg = (
                f"Expected every client to hold an image, got {len(empty)} empty clients of "
                f"{self.num_clients} (first {empty[:5].tolist()}). Use fewer clients or a milder partition."
            )
            raise InputError(msg)


Partitioner = Callable[[Population, int, np.random.Generator], Partition]
"""``(population, num_clients, rng) -> Partition``. Checks feasibility before it samples."""


def check_feasible(population: Population, num_clients: int, min_images: int = 1) -> None:
    """Raise ``InputError`` unless ``num_clients`` clients can each hold ``min_images`` images."""
    num_images = len(population.labels)
    if num_clients < 1:
        msg = (
            f"Expected num-clients to be 1 or more, got {num_clients}. Only the partitions natural and constant_size "
            "read 0, as every client there is."
        )
        raise InputError(msg)
    if num_clients * min_images > num_images:
        each = "" if min_images == 1 else f" with min_images = {min_images} each ({num_clients * min_images} in all)"
        msg = (
            f"Expected num-clients to be few enough for the {num_images} training images, got {num_clients}{each}. "
            "Use fewer clients, a smaller min_images or more images."
        )
        raise InputError(msg)


def ranks_within(groups: NDArray[np.int64], priority: NDArray[np.float64]) -> NDArray[np.int64]:
    """int64 ``[images]``: the place of each image among those of its group, lowest priority first.

    With uniform random priorities, ``ranks_within(...) < n`` is a random subset of ``n`` per group.

    >>> ranks_within(np.array([7, 5, 7]), np.array([0.9, 0.5, 0.1])).tolist()
    [1, 0, 0]
    """
    order = np.lexsort((priority, groups))
    ordered = groups[order]
    first = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1]))) if len(order) else order
    lengths = np.diff(np.concatenate((first, [len(order)])))
    ranks = np.empty(len(order), dtype=np.int64)
    ranks[order] = np.arange(len(order)) - np.repeat(first, lengths)
    return ranks
