"""Natural: a client is an owner of the data set (a photographer, a hospital, a camera).

Owners with fewer than ``min_images`` training images take no part, and neither
do images that belong to nobody; both are counted in ``Partition.notes``. Clients
are numbered in the order of their owners' numbers.

Source: the user split of FLAIR (arXiv 2207.08869); its first benchmark caps a
user at 512 images, which is ``max_images=512``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from fedmlic.dataset import NO_OWNER
from fedmlic.errors import InputError
from fedmlic.partition import Partition, Partitioner, Population, ranks_within

if TYPE_CHECKING:
    from numpy.typing import NDArray


def _choose(num_eligible: int, num_clients: int, min_images: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Ascending positions of the owners that take part; 0 clients asked means all."""
    if not 0 <= num_clients <= num_eligible or num_eligible == 0:
        msg = (
            f"Expected num-clients to be 0 to {num_eligible}, the owners with {min_images} or more training "
            f"images, got {num_clients}. Use 0 for all of them, or a smaller min_images."
        )
        raise InputError(msg)
    if num_clients == 0:
        return np.arange(num_eligible)
    return np.sort(rng.choice(num_eligible, num_clients, replace=False))


def _split(
    population: Population, num_clients: int, rng: np.random.Generator, min_images: int, max_images: int | None
) -> Partition:
    owned = population.owners != NO_OWNER
    owners, owner_of_row, sizes = np.unique(population.owners[owned], return_inverse=True, return_counts=True)
    eligible = np.flatnonzero(sizes >= min_images)
    chosen = eligible[_choose(len(eligible), num_clients, min_images, rng)]
    client_of_owner = np.full(len(owners), -1, dtype=np.int64)
    client_of_owner[chosen] = np.arange(len(chosen))
    client_of_row = np.full(len(owned), -1, dtype=np.int64)
    client_of_row[owned] = client_of_owner[owner_of_row]
    capped = np.zeros(len(owned), dtype=np.bool_)
    if max_images is not None:
        ranks = ranks_within(client_of_row, rng.random(len(client_of_row)))
        capped = (client_of_row >= 0) & (ranks >= max_images)
        client_of_row[capped] = -1
    notes = {
        "owners": len(owners),
        "small_owners_dropped": len(owners) - len(eligible),
        "small_owners_images_dropped": int(sizes.sum() - sizes[eligible].sum()),
        "eligible_owners_not_chosen": len(eligible) - len(chosen),
        "images_without_owner": int((~owned).sum()),
        "images_above_max_dropped": int(capped.sum()),
    }
    return Partition.from_clients(client_of_row, len(chosen), notes)


def natural(
    *, min_images: Annotated[int, Field(ge=1)] = 1, max_images: Annotated[int, Field(ge=1)] | None = None
) -> Partitioner:
    """The data set's own owners: one client per owner.

    With ``num-clients = 0`` every eligible owner is a client; a smaller number is
    drawn uniformly among them.

    Args:
        min_images: owners with fewer training images take no part.
        max_images: a larger owner keeps a uniform random subset of this size.

    Raises:
        InputError: when ``max_images < min_images``, or when the partitioner is asked for
            more clients than there are eligible owners.
    """
    if max_images is not None and max_images < min_images:
        msg = f"Expected max_images of natural to be at least min_images ({min_images}), got {max_images}."
        raise InputError(msg)

    def partition(population: Population, num_clients: int, rng: np.random.Generator) -> Partition:
        return _split(population, num_clients, rng, min_images, max_images)

    return partition
