"""Deal out images so that every client comes close to a wanted number of positives per label.

Iterative stratification (Sechidis, Tsoumakas and Vlahavas, "On the stratification
of multi-label data", ECML PKDD 2011): as long as images are left, take the label with
the fewest remaining positives; each of its images goes to the client that still wants
most positives of that label, ties to the client with most room, then at random; what
the image carries is taken off the client's wishes.

While one label is dealt, an image takes one off the wish and one off the room of the
client that gets it. The order in which clients are picked is therefore known before
the first image is dealt, and a label is dealt at once instead of image by image: the
same rule in ``labels`` steps instead of ``images`` steps.

Departures:
- A client that is full takes no more, so sizes are exact. In the paper, the wish for a
  label goes before the size.
- Which image of the label goes to which of the picked clients is random there; here it
  can follow an affinity between clients and groups of images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedmlic.labels import PRESENT
from fedmlic.partitioning.dealing import chunks

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BALANCING_STEPS = 15


@dataclass(frozen=True)
class Affinity:
    """Which groups of images clients prefer, among images that serve their wishes equally.

    Attributes:
        group_of_image: int64 ``[images]``.
        preference: float64 ``[clients, groups]``, 0 or more.
    """

    group_of_image: NDArray[np.int64]
    preference: NDArray[np.float64]


def even_sizes(num_images: int, num_clients: int) -> NDArray[np.int64]:
    """int64 ``[clients]``: sizes that differ by one at most and add up, larger ones first.

    >>> even_sizes(8, 3).tolist()
    [3, 3, 2]
    """
    return num_images // num_clients + (np.arange(num_clients) < num_images % num_clients)


def stratify(
    labels: NDArray[np.int8],
    wanted: NDArray[np.float32],
    sizes: NDArray[np.int64],
    rng: np.random.Generator,
    affinity: Affinity | None = None,
) -> NDArray[np.int64]:
    """int64 ``[images]``: a client per image, sizes exact, positives near ``wanted``.

    Args:
        labels: int8 ``[images, labels]``.
        wanted: float32 ``[labels, clients]``, positives that each client should get.
        sizes: int64 ``[clients]``, adding up to the images.
        rng: breaks ties and picks among equal images.
        affinity: which of these go to whom; ``None`` is at random.
    """
    wanted, room = wanted.copy(), sizes.copy()
    image_ptr, columns = _positives(labels)
    num_labels, num_clients = wanted.shape
    by_label = np.split(
        np.repeat(np.arange(len(labels)), np.diff(image_ptr))[np.argsort(columns, kind="stable")],
        np.cumsum(np.bincount(columns, minlength=num_labels))[:-1],
    )
    remaining = np.bincount(columns, minlength=num_labels)
    client_of_row = np.full(len(labels), -1, dtype=np.int64)
    while remaining.any():
        label = int(np.where(remaining > 0, remaining, len(labels) + 1).argmin())
        images = by_label[label][client_of_row[by_label[label]] < 0]
        clients = pick(wanted[label], room, len(images), rng)
        images, clients = _pair(images, clients, rng, affinity)
        client_of_row[images] = clients
        counts = image_ptr[images + 1] - image_ptr[images]
        starts = image_ptr[images] - (np.cumsum(counts) - counts)
        carried = columns[np.repeat(starts, counts) + np.arange(counts.sum())]
        np.subtract.at(wanted, (carried, np.repeat(clients, counts)), np.float32(1))
        remaining -= np.bincount(carried, minlength=num_labels)
        room -= np.bincount(clients, minlength=num_clients)
    rest = np.flatnonzero(client_of_row < 0)
    client_of_row[rest] = rng.permutation(np.repeat(np.arange(num_clients), room))
    return client_of_row


def _positives(labels: NDArray[np.int8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Present labels image after image: int64 ``[images + 1]`` bounds and int64 columns."""
    counts, columns = [np.zeros(1, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    for images in chunks(len(labels)):
        present = labels[images] == PRESENT
        counts.append(present.sum(axis=1))
        columns.append(np.nonzero(present)[1])
    return np.cumsum(np.concatenate(counts)), np.concatenate(columns)


def pick(
    wishes: NDArray[np.float32], room: NDArray[np.int64], num_images: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """int64 ``[num_images]``: the clients that a pass image by image would pick, ascending.

    The pass picks ``num_images`` times the client with the largest wish among those with
    room, ties to most room, then at random, and takes one off both numbers. It so picks
    the largest of the numbers wish, wish - 1, ..., of which each client has ``room`` many:
    all that exceed a common level, then the largest between the level and the level less one.
    """
    most = np.minimum(room, num_images)
    low, high = int(np.floor(wishes.min())) - num_images - 1, int(np.ceil(wishes.max()))
    while low < high:
        level = (low + high) // 2
        if np.minimum(most, np.maximum(np.ceil(wishes - level), 0)).sum() > num_images:
            low = level + 1
        else:
            high = level
    above = np.maximum(np.ceil(wishes - low), 0).astype(np.int64)
    taken = np.minimum(most, above)
    rest = num_images - int(taken.sum())
    if rest:
        candidates = np.flatnonzero((wishes > low - 1) & (above < most))
        next_wish = wishes[candidates] - above[candidates]
        last = np.partition(next_wish, len(next_wish) - rest)[len(next_wish) - rest]
        sure = candidates[next_wish > last]
        tied = candidates[next_wish == last]
        order = np.lexsort((rng.random(len(tied)), taken[tied] - room[tied]))
        taken[sure] += 1
        taken[tied[order[: rest - len(sure)]]] += 1
    return np.repeat(np.arange(len(wishes)), taken)


def _pair(
    images: NDArray[np.int64], clients: NDArray[np.int64], rng: np.random.Generator, affinity: Affinity | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The images and the picked clients, in orders such that the i-th image goes to the i-th client."""
    images = rng.permutation(images)
    if affinity is None:
        return images, clients
    groups = affinity.group_of_image[images]
    num_in_group = np.bincount(groups, minlength=affinity.preference.shape[1])
    drawn = _draw_groups(affinity.preference, clients, num_in_group, rng)
    return images[np.argsort(groups, kind="stable")], clients[np.argsort(drawn, kind="stable")]


def _draw_groups(
    preference: NDArray[np.float64],
    clients: NDArray[np.int64],
    num_in_group: NDArray[np.int64],
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """int64 ``[picked]``: a random group for each of the picked ``clients``, about ``num_in_group`` of each.

    Proportional fitting (Sinkhorn) scales groups so that the expected numbers agree and
    every client's preferences keep their proportions as far as possible.
    """
    chosen, place, times = np.unique(clients, return_inverse=True, return_counts=True)
    groups = np.flatnonzero(num_in_group)
    sizes = num_in_group[groups]
    shares = preference[np.ix_(chosen, groups)]
    # Nobody's preference is zero, or there would be no solution when a group must go somewhere.
    shares += 1e-12 * max(float(shares.max(initial=0)), 1e-300)
    shares /= shares.sum(axis=1, keepdims=True)
    for _ in range(_BALANCING_STEPS):
        shares *= sizes / (shares * times[:, None]).sum(axis=0)
        shares /= shares.sum(axis=1, keepdims=True)
    edges = np.cumsum(shares, axis=1)
    drawn = np.empty(len(clients), dtype=np.int64)
    for some in chunks(len(clients)):
        points = rng.random(len(place[some]))[:, None] * edges[place[some], -1:]
        drawn[some] = (points >= edges[place[some]]).sum(axis=1)
    return np.asarray(groups[np.minimum(drawn, len(groups) - 1)])
