"""Pathological: every client owns a few labels and holds images of these only.

An image's key is its rarest present label (ties: the lower column). The images of each key
are cut into equal shards, more for frequent keys, clients x ``labels_per_client``
shards in all; every client gets ``labels_per_client`` shards of different labels, its
own labels. Images without a present label are spread evenly over all clients.

An image often carries labels of several clients. Two rules are offered:

- ``spanning="primary"`` (default): it goes by its key alone, and brings its other labels
  along. The notes count those that carry a label their client does not own.
- ``spanning="drop"``: it goes to a client that owns all its labels, spread evenly over
  those, or to nobody. Every client then holds its own labels only, and the notes count
  the images left out. Here a label has more owners the more images carry it that one
  client may cover, those with ``labels_per_client`` labels at most.

With fewer shards than labels, some labels have no owner; an image is keyed by its
rarest label that has one. If none has, it is left out and counted, with ``"primary"`` also
warned of.

Source: the shards of McMahan et al., "Communication-efficient learning of deep networks
from decentralized data", for one label per image; clients with positives of one label are
the setting of FedAwS (arXiv 2004.10342). What happens to images that span clients is our rule.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from fedmlic.errors import InputError
from fedmlic.labels import PRESENT
from fedmlic.partition import Partition, Partitioner, Population, check_feasible, ranks_within
from fedmlic.partitioning.dealing import cardinalities, chunks, first_labels, label_sets, positives, rarest_labels

if TYPE_CHECKING:
    from numpy.typing import NDArray

DRAWS = 10
"""Most draws of who owns what before ``spanning="drop"`` gives up."""


def _num_owners(
    num_images: NDArray[np.int64], num_clients: int, labels_per_client: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """int64 ``[labels]``: clients that own each label, about in proportion to its images, ``num_shards`` in all.

    A label has no more owners than clients or images, and at least one where there are
    enough shards; otherwise the labels with an owner are drawn at random.
    """
    num_shards = num_clients * labels_per_client
    most = np.minimum(num_images, num_clients)
    if most.sum() < num_clients:
        msg = (
            f"Expected num-clients of partition pathological to be at most {num_images.sum()}, the images it can "
            f"deal by a label, got {num_clients}. Use fewer clients or another partition."
        )
        raise InputError(msg)
    if most.sum() < num_shards:
        msg = (
            f"Expected labels_per_client of pathological to be at most {most.sum() // num_clients} for {num_clients} "
            f"clients and these labels, got {labels_per_client}. Use fewer labels per client or fewer clients."
        )
        raise InputError(msg)
    owners = np.zeros(len(num_images), dtype=np.int64)
    occurring = np.flatnonzero(num_images)
    if num_shards <= len(occurring):
        owners[rng.choice(occurring, num_shards, replace=False)] = 1
        return owners
    # The largest level of images per shard that makes enough shards, found by bisection.
    low, high = 0.0, float(num_images.max())
    for _ in range(100):
        middle = (low + high) / 2
        if np.clip(np.floor(num_images / middle), num_images > 0, most).sum() >= num_shards:
            low = middle
        else:
            high = middle
    owners[:] = np.clip(np.floor(num_images / max(low, 1e-300)), num_images > 0, most)
    excess = int(owners.sum()) - num_shards
    several = rng.permutation(np.flatnonzero(owners > 1))
    owners[several[:excess]] -= 1
    return owners


def _assign(num_owners: NDArray[np.int64], num_clients: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """int64 ``[2, shards]``: label and owner of every shard; labels ascend, no client owns a label twice.

    Labels go, one after another, to the clients that own fewest so far. Since no label has
    more owners than there are clients, all clients end with equally many.
    """
    owned = np.zeros(num_clients, dtype=np.int64)
    owners_of: dict[int, NDArray[np.int64]] = {}
    for label in rng.permutation(np.flatnonzero(num_owners)).tolist():
        order = np.lexsort((rng.random(num_clients), owned))
        owners_of[label] = order[: num_owners[label]]
        owned[owners_of[label]] += 1
    labels = np.repeat(np.arange(len(num_owners)), num_owners)
    return np.stack([labels, np.concatenate([owners_of[label] for label in sorted(owners_of)])])


def _spread(
    keys: NDArray[np.int64], shards: NDArray[np.int64], num_labels: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """int64 ``[images]``: each key's images spread evenly over its owners, -1 where it has none."""
    num_owners = np.bincount(shards[0], minlength=num_labels + 1)
    first = np.cumsum(num_owners) - num_owners
    ranks = ranks_within(keys, rng.random(len(keys)))
    places = first[keys] + ranks % np.maximum(num_owners[keys], 1)
    owned = num_owners[keys] > 0
    return np.where(owned, shards[1][np.where(owned, places, 0)], -1)


def _covered(
    labels: NDArray[np.int8], keys: NDArray[np.int64], shards: NDArray[np.int64], num_clients: int,
    rng: np.random.Generator,
) -> NDArray[np.int64]:  # fmt: skip
    """int64 ``[images]``: a client that owns every label of the image, -1 where there is none.

    The images of one label set are spread evenly, in random order, over the clients that own it.
    """
    num_labels = labels.shape[1]
    owns = np.zeros((num_clients, num_labels), dtype=np.bool_)
    owns[shards[1], shards[0]] = True
    set_of_image, example = label_sets(labels)
    client_of_row = np.full(len(labels), -1, dtype=np.int64)
    ranks = ranks_within(set_of_image, rng.random(len(labels)))
    small = cardinalities(labels)[example] <= owns[0].sum()
    images = np.flatnonzero(small[set_of_image] & (keys < num_labels))
    images = images[np.argsort(keys[images], kind="stable")]
    bounds = np.searchsorted(keys[images], np.arange(num_labels + 1))
    for label in range(num_labels):
        here = images[bounds[label] : bounds[label + 1]]
        owners = np.flatnonzero(owns[:, label])
        sets, place = np.unique(set_of_image[here], return_inverse=True)
        patterns = (labels[example[sets]] == PRESENT).astype(np.float32)
        fits = patterns @ owns[owners].astype(np.float32).T == patterns.sum(axis=1, keepdims=True)
        counts = fits.sum(axis=1)
        of_set, owner = np.nonzero(fits)
        owner = owners[owner[np.lexsort((rng.random(len(owner)), of_set))]]
        here, place = here[counts[place] > 0], place[counts[place] > 0]
        client_of_row[here] = owner[(np.cumsum(counts) - counts)[place] + ranks[here] % counts[place]]
    return client_of_row


def _foreign(labels: NDArray[np.int8], client_of_row: NDArray[np.int64], shards: NDArray[np.int64]) -> int:
    """How many dealt images carry a label that their client does not own."""
    owns = np.zeros((int(shards[1].max()) + 1, labels.shape[1]), dtype=np.bool_)
    owns[shards[1], shards[0]] = True
    count = 0
    for images in chunks(len(labels)):
        clients = client_of_row[images]
        count += int(((labels[images] == PRESENT) & ~owns[clients]).any(axis=1)[clients >= 0].sum())
    return count


def _dealable(labels: NDArray[np.int8], labels_per_client: int) -> NDArray[np.int64]:
    """int64 ``[labels]``: images of each label that one client may cover, those with few enough labels."""
    counts = np.zeros(labels.shape[1], dtype=np.int64)
    for images in chunks(len(labels)):
        present = labels[images] == PRESENT
        counts += present[present.sum(axis=1) <= labels_per_client].sum(axis=0)
    return counts


def _deal(
    population: Population, num_clients: int, rng: np.random.Generator, labels_per_client: int, *, drop: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """One draw: a client per image and the shards."""
    labels = population.labels
    num_labels = labels.shape[1]
    rarest = rarest_labels(labels)
    num_keyed = np.bincount(rarest, minlength=num_labels + 1)[:num_labels]
    num_images = _dealable(labels, labels_per_client) if drop else num_keyed
    num_owners = _num_owners(num_images, num_clients, labels_per_client, rng)
    shards = _assign(num_owners, num_clients, rng)
    if drop:
        client_of_row = _covered(labels, rarest, shards, num_clients, rng)
    else:
        by_rarity = np.argsort(positives(labels), kind="stable")
        keys = first_labels(labels, by_rarity[num_owners[by_rarity] > 0])
        client_of_row = _spread(keys, shards, num_labels, rng)
    empty = np.flatnonzero(rarest == num_labels)
    client_of_row[empty] = rng.permutation(np.arange(len(empty)) % num_clients)
    return client_of_row, shards


def _warnings(num_left_out: int, num_images: int, num_clients: int, labels_per_client: int) -> list[str]:
    if not num_left_out:
        return []
    line = (
        f"{num_left_out:,} of {num_images:,} training images have only labels that no client owns, so that no client "
        f"holds them: {num_clients} clients with {labels_per_client} each own fewer labels than there are. Use more "
        "clients or a larger labels_per_client"
    )
    return [line]


def pathological(
    *, labels_per_client: Annotated[int, Field(ge=1)] = 2, spanning: Literal["primary", "drop"] = "primary"
) -> Partitioner:
    """Label-set skew: every client owns a few labels and gets images of these.

    Args:
        labels_per_client: labels that a client owns, 1 or more.
        spanning: what happens to an image whose labels have different owners: it goes by its
            rarest label that has one (``"primary"``), or it is left out unless one client owns all its
            labels (``"drop"``).

    Raises:
        InputError: when the partitioner is asked for more clients than images, when there are
            too few labels or images for ``labels_per_client``, or when ``"drop"`` leaves a
            client empty in each of 10 draws.
    """

    def partition(population: Population, num_clients: int, rng: np.random.Generator) -> Partition:
        check_feasible(population, num_clients)
        drop = spanning == "drop"
        for draw in range(1, DRAWS + 1):
            client_of_row, shards = _deal(population, num_clients, rng, labels_per_client, drop=drop)
            num_left_out = int((client_of_row < 0).sum())
            empty = num_clients - len(np.unique(client_of_row[client_of_row >= 0]))
            if not empty:
                notes = {
                    "draws": draw,
                    "labels_without_owner": population.labels.shape[1] - len(np.unique(shards[0])),
                    "images_with_foreign_labels": _foreign(population.labels, client_of_row, shards),
                    "images_without_client_left_out": num_left_out,
                }
                dealt = Partition.from_clients(client_of_row, num_clients, notes)
                if drop:  # leaving images out is what it is for
                    return dealt
                warnings = _warnings(num_left_out, len(client_of_row), num_clients, labels_per_client)
                return replace(dealt, warnings=warnings)
        msg = (
            f"Expected num-clients to be few enough that each finds images whose labels are all among its "
            f"{labels_per_client} own, got {num_clients}, of which {empty} stay empty after {DRAWS} draws. "
            "Use fewer clients, a larger labels_per_client or spanning='primary'."
        )
        raise InputError(msg)

    return partition
