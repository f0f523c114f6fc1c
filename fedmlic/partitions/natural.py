"""Natural: a client is an owner of the data set (a photographer, a hospital, a camera).

Owners with fewer than ``min_images`` training images take no part, or, with
``merge_small``, are merged in random order into artificial clients: each takes
owners until it holds ``min_images``, and what is left at the end joins the last
one. Images that belong to nobody take no part. All of this is counted in
``Partition.notes``. Clients are numbered in the order of their owners' numbers,
artificial ones last.

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


def _choose(num_possible: int, num_clients: int, description: str, rng: np.random.Generator) -> NDArray[np.int64]:
    """Ascending positions of the possible clients that take part; 0 clients asked means all."""
    if not 0 <= num_clients <= num_possible or num_possible == 0:
        msg = (
            f"Expected num-clients to be 0 to {num_possible}, {description}, got {num_clients}. "
            "Use 0 for all of them, or a smaller min_images."
        )
        raise InputError(msg)
    if num_clients == 0:
        return np.arange(num_possible)
    return np.sort(rng.choice(num_possible, num_clients, replace=False))


def _merged(sizes: NDArray[np.int64], min_images: int) -> NDArray[np.int64]:
    """int64 ``[small owners]``: which artificial client takes each owner, in the given order; -1 without any.

    >>> _merged(np.array([1, 2, 2, 2, 1]), 3).tolist()
    [0, 0, 1, 1, 1]
    """
    groups = np.empty(len(sizes), dtype=np.int64)
    group = held = 0
    for owner, size in enumerate(sizes.tolist()):
        groups[owner] = group
        held += size
        if held >= min_images:
            group, held = group + 1, 0
    return np.minimum(groups, group - 1)


def _possible_clients(
    sizes: NDArray[np.int64], min_images: int, rng: np.random.Generator, *, merge_small: bool
) -> NDArray[np.int64]:
    """int64 ``[owners]``: a number per possible client, -1 for owners that take no part."""
    large = sizes >= min_images
    possible = np.where(large, np.cumsum(large) - 1, -1)
    if merge_small:
        small = rng.permutation(np.flatnonzero(~large))
        groups = _merged(sizes[small], min_images)
        possible[small] = np.where(groups >= 0, groups + large.sum(), -1)
    return possible


def _split(
    population: Population,
    num_clients: int,
    rng: np.random.Generator,
    *,
    min_images: int,
    max_images: int | None,
    merge_small: bool,
) -> Partition:
    owned = population.owners != NO_OWNER
    owners, owner_of_row, sizes = np.unique(population.owners[owned], return_inverse=True, return_counts=True)
    possible = _possible_clients(sizes, min_images, rng, merge_small=merge_small)
    num_possible = int(possible.max(initial=-1)) + 1
    merged = " and the small ones merged" if merge_small else ""
    chosen = _choose(num_possible, num_clients, f"the owners with {min_images} or more training images{merged}", rng)
    client_of_possible = np.full(num_possible + 1, -1, dtype=np.int64)  # the last one stands for -1
    client_of_possible[chosen] = np.arange(len(chosen))
    client_of_owner = client_of_possible[possible]
    client_of_row = np.full(len(owned), -1, dtype=np.int64)
    client_of_row[owned] = client_of_owner[owner_of_row]
    capped = np.zeros(len(owned), dtype=np.bool_)
    if max_images is not None:
        ranks = ranks_within(client_of_row, rng.random(len(client_of_row)))
        capped = (client_of_row >= 0) & (ranks >= max_images)
        client_of_row[capped] = -1
    dropped, small = possible < 0, sizes < min_images
    notes = {
        "owners": len(owners),
        "small_owners_left_out": int(dropped.sum()),
        "small_owners_images_left_out": int(sizes[dropped].sum()),
        "eligible_clients_not_chosen": num_possible - len(chosen),
        "images_not_chosen_left_out": int(sizes[(client_of_owner < 0) & ~dropped].sum()),
        "images_without_owner_left_out": int((~owned).sum()),
        "images_above_max_left_out": int(capped.sum()),
    }
    if merge_small:
        notes["small_owners_merged"] = int((small & ~dropped).sum())
        notes["artificial_clients_possible"] = num_possible - int((~small).sum())
    return Partition.from_clients(client_of_row, len(chosen), notes)


def natural(
    *,
    min_images: Annotated[int, Field(ge=1)] = 1,
    max_images: Annotated[int, Field(ge=1)] | None = None,
    merge_small: bool = False,
) -> Partitioner:
    """The data set's own owners: one client per owner.

    With ``num-clients = 0`` every eligible owner is a client; a smaller number is
    drawn uniformly among them.

    Args:
        min_images: owners with fewer training images take no part, or are merged.
        max_images: a larger client keeps a uniform random subset of this size.
        merge_small: merge small owners into artificial clients of ``min_images`` images or
            a little more instead of leaving them out.

    Raises:
        InputError: when ``max_images < min_images``, or when the partitioner is asked for
            more clients than there are eligible owners.
    """
    if max_images is not None and max_images < min_images:
        msg = f"Expected max_images of natural to be at least min_images ({min_images}), got {max_images}."
        raise InputError(msg)

    def partition(population: Population, num_clients: int, rng: np.random.Generator) -> Partition:
        return _split(
            population, num_clients, rng, min_images=min_images, max_images=max_images, merge_small=merge_small
        )

    return partition
