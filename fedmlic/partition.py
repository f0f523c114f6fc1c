"""Which client holds which image.

A partition assigns training images to clients: every image at most once, every
client at least one. Its kinds are in ``partitions/``; each is a factory that
returns a ``Partitioner``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedmlic.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Population:
    """What a partitioner may look at: the training images before they are dealt out.

    Attributes:
        labels: int8 ``[images, labels]``, the data set's own labels.
        owners: int64 ``[images]``, or ``NO_OWNER`` (-1).
    """

    labels: NDArray[np.int8]
    owners: NDArray[np.int64]


@dataclass(frozen=True)
class Partition:
    """Rows of the training images, client after client.

    Attributes:
        client_ptr: int64 ``[clients + 1]``; client k holds ``rows[client_ptr[k]:client_ptr[k+1]]``.
        rows: int64 ``[assigned images]``, indices into the training images, ascending
            within a client.
    """

    client_ptr: NDArray[np.int64]
    rows: NDArray[np.int64]

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
    def from_clients(client_of_row: NDArray[np.int64], num_clients: int) -> Partition:
        """Build from one client number per image; -1 leaves an image out."""
        order = np.argsort(client_of_row, kind="stable")
        order = order[np.searchsorted(client_of_row[order], 0) :]
        sizes = np.bincount(client_of_row[order], minlength=num_clients)
        return Partition(np.concatenate(([0], np.cumsum(sizes))).astype(np.int64), order.astype(np.int64))

    def check(self, num_images: int) -> None:
        """Raise ``InputError`` unless the invariants hold: rows valid and unique, no client empty."""
        if self.client_ptr[0] != 0 or self.client_ptr[-1] != len(self.rows) or (self.sizes < 0).any():
            msg = "Expected client_ptr to rise from 0 to the number of rows. Rebuild the federation."
            raise InputError(msg)
        if len(self.rows) and (self.rows.min() < 0 or self.rows.max() >= num_images):
            msg = f"Expected rows to be below {num_images}, got {self.rows.min()} to {self.rows.max()}."
            raise InputError(msg)
        if len(np.unique(self.rows)) != len(self.rows):
            msg = "Expected every image to belong to one client at most, got some images twice."
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
