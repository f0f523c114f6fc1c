"""Natural: a client is an owner of the data set (a photographer, a hospital, a camera).

Owners with fewer than ``min_images`` training images take no part, or, with
``merge_small``, are merged in random order into artificial clients: each takes
owners until it holds ``min_images``, and what is left at the end joins the last
one. Images that belong to nobody take no part, with a warning, or with
``no_owner="client"`` make one client more. All of this is counted in
``Partition.notes``. Clients are numbered in the order of their owners' numbers
and bear their names; artificial ones come behind them, and last the one of nobody's images.

Source: the user split of FLAIR (arXiv 2207.08869); its first benchmark caps a
user at 512 images, which is ``max_images=512``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

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


class _Rule(NamedTuple):
    """The arguments of ``natural``."""

    min_images: int
    max_images: int | None
    merge_small: bool
    no_owner: str

    @property
    def eligible(self) -> str:
        """Who may be a client, for messages."""
        merged = " and the small ones merged" if self.merge_small else ""
        return f"the owners with {self.min_images} or more training images{merged}"


def _owners(population: Population, rule: _Rule) -> NDArray[np.int64]:
    """int64 ``[images]``: owners; with ``no_owner="client"`` images of nobody have one behind all others."""
    owners = population.owners
    if (owners == NO_OWNER).all():
        msg = (
            f"Expected clients of partition natural to be {rule.eligible}, got 0: none of the {len(owners):,} training "
            "images has an owner. Say whose they are (a column 'owner' of data set folder, owner_column of "
            "huggingface), or use another partition, such as dirichlet()."
        )
        raise InputError(msg)
    if rule.no_owner == "client":
        behind = max(int(owners.max()) + 1, len(population.owner_names))  # some owners have no training images
        return np.where(owners == NO_OWNER, behind, owners)
    return owners


def _client_names(
    population: Population, owners: NDArray[np.int64], client_of_owner: NDArray[np.int64], num_clients: int
) -> list[str]:
    """Name of each client: its owner's, or how many owners were merged; none where owners have none."""
    if not population.owner_names:
        return []
    held: list[list[str]] = [[] for _ in range(num_clients)]
    for owner, client in zip(owners.tolist(), client_of_owner.tolist(), strict=True):
        if client >= 0:
            named = owner < len(population.owner_names)
            held[client].append(population.owner_names[owner] if named else "(no owner)")
    return [names[0] if len(names) == 1 else f"({len(names)} small owners)" for names in held]


def _warnings(num_unowned: int, num_images: int) -> list[str]:
    if not num_unowned:
        return []
    line = (
        f"{num_unowned:,} of {num_images:,} training images have no owner, so that no client holds them. Name their "
        "owner, or give natural(no_owner='client') to make them one client more"
    )
    return [line]


def _split(population: Population, num_clients: int, rng: np.random.Generator, rule: _Rule) -> Partition:
    of_row = _owners(population, rule)
    owned = of_row != NO_OWNER
    owners, owner_of_row, sizes = np.unique(of_row[owned], return_inverse=True, return_counts=True)
    possible = _possible_clients(sizes, rule.min_images, rng, merge_small=rule.merge_small)
    num_possible = int(possible.max(initial=-1)) + 1
    chosen = _choose(num_possible, num_clients, rule.eligible, rng)
    client_of_possible = np.full(num_possible + 1, -1, dtype=np.int64)  # the last one stands for -1
    client_of_possible[chosen] = np.arange(len(chosen))
    client_of_owner = client_of_possible[possible]
    client_of_row = np.full(len(owned), -1, dtype=np.int64)
    client_of_row[owned] = client_of_owner[owner_of_row]
    capped = np.zeros(len(owned), dtype=np.bool_)
    if rule.max_images is not None:
        ranks = ranks_within(client_of_row, rng.random(len(client_of_row)))
        capped = (client_of_row >= 0) & (ranks >= rule.max_images)
        client_of_row[capped] = -1
    dropped, small, num_unowned = possible < 0, sizes < rule.min_images, int((~owned).sum())
    notes = {
        "owners": len(owners),
        "small_owners_left_out": int(dropped.sum()),
        "small_owners_images_left_out": int(sizes[dropped].sum()),
        "eligible_clients_not_chosen": num_possible - len(chosen),
        "images_not_chosen_left_out": int(sizes[(client_of_owner < 0) & ~dropped].sum()),
        "images_without_owner_left_out": num_unowned,
        "images_above_max_left_out": int(capped.sum()),
    }
    if rule.merge_small:
        notes["small_owners_merged"] = int((small & ~dropped).sum())
        notes["artificial_clients_possible"] = num_possible - int((~small).sum())
    return replace(
        Partition.from_clients(client_of_row, len(chosen), notes),
        client_names=_client_names(population, owners, client_of_owner, len(chosen)),
        warnings=_warnings(num_unowned, len(owned)),
    )


def natural(
    *,
    min_images: Annotated[int, Field(ge=1)] = 1,
    max_images: Annotated[int, Field(ge=1)] | None = None,
    merge_small: bool = False,
    no_owner: Literal["leave_out", "client"] = "leave_out",
) -> Partitioner:
    """The data set's own owners: one client per owner.

    With ``num-clients = 0`` every eligible owner is a client; a smaller number is
    drawn uniformly among them.

    Args:
        min_images: owners with fewer training images take no part, or are merged.
        max_images: a larger client keeps a uniform random subset of this size.
        merge_small: merge small owners into artificial clients of ``min_images`` images or
            a little more instead of leaving them out.
        no_owner: what becomes of images that belong to nobody: they are left out, counted and
            warned of, or make one client together.

    Raises:
        InputError: when ``max_images < min_images``, or when the partitioner is asked for
            more clients than there are eligible owners, or images without any owner.
    """
    if max_images is not None and max_images < min_images:
        msg = f"Expected max_images of natural to be at least min_images ({min_images}), got {max_images}."
        raise InputError(msg)

    rule = _Rule(min_images, max_images, merge_small, no_owner)

    def partition(population: Population, num_clients: int, rng: np.random.Generator) -> Partition:
        return _split(population, num_clients, rng, rule)

    return partition
