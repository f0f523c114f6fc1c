"""Constant size: artificial users who all hold the same number of images.

The IID counterpart of a federation of natural users: the images of all owners are
pooled, permuted at random and cut into users of ``num_images``. With
``within_owners=True`` the images of each owner are cut instead, so label skew stays
and only the differences in size go; what is left of an owner is too small for
another user and takes no part.

Source: the IID variant of the FLAIR benchmark in pfl-research (arXiv 2404.06430),
50 images per user. ``within_owners`` is ours.
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


def _choose(num_users: int, num_clients: int, num_images: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """int64 ``[users]``: the client number of each possible user, -1 where it takes no part."""
    if not 0 <= num_clients <= num_users or num_users == 0:
        msg = (
            f"Expected num-clients to be 0 to {num_users}, the users of {num_images} images that the data set "
            f"gives, got {num_clients}. Use 0 for all of them, or a smaller num_images."
        )
        raise InputError(msg)
    client_of_user = np.full(num_users, -1, dtype=np.int64)
    wanted = num_clients or num_users
    client_of_user[np.sort(rng.choice(num_users, wanted, replace=False))] = np.arange(wanted)
    return client_of_user


def _cut(
    population: Population, num_clients: int, rng: np.random.Generator, num_images: int, *, within_owners: bool
) -> Partition:
    owners = population.owners if within_owners else np.zeros(len(population.labels), dtype=np.int64)
    owned = owners != NO_OWNER
    numbers, owner_of_row, sizes = np.unique(owners[owned], return_inverse=True, return_counts=True)
    users_of_owner = sizes // num_images
    first_user = np.cumsum(users_of_owner) - users_of_owner
    place = ranks_within(owner_of_row.astype(np.int64), rng.random(len(owner_of_row))) // num_images
    whole = place < users_of_owner[owner_of_row]
    client_of_user = _choose(int(users_of_owner.sum()), num_clients, num_images, rng)
    client_of_row = np.full(len(owned), -1, dtype=np.int64)
    rows = np.flatnonzero(owned)[whole]
    client_of_row[rows] = client_of_user[(first_user[owner_of_row] + place)[whole]]
    notes = {
        "users_possible": len(client_of_user),
        "images_without_owner_left_out": int((~owned).sum()),
        "remaining_images_left_out": int((~whole).sum()),
        "images_not_chosen_left_out": int((client_of_row[rows] < 0).sum()),
    }
    if within_owners:
        notes["owners_without_a_user"] = int((users_of_owner == 0).sum()) if len(numbers) else 0
    return Partition.from_clients(client_of_row, num_clients or len(client_of_user), notes)


def constant_size(*, num_images: Annotated[int, Field(ge=1)] = 50, within_owners: bool = False) -> Partitioner:
    """Equal client sizes: artificial users of ``num_images`` images each.

    With ``num-clients = 0`` as many users as the data set gives are clients; a smaller
    number is drawn uniformly among them.

    Args:
        num_images: images of every client, 1 or more.
        within_owners: cut the images of each owner instead of all images together.

    Raises:
        InputError: when the partitioner is asked for more clients than users of that
            size can be made.
    """

    def partition(population: Population, num_clients: int, rng: np.random.Generator) -> Partition:
        return _cut(population, num_clients, rng, num_images, within_owners=within_owners)

    return partition
