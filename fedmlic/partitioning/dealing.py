"""How images are dealt to clients: keys read from labels, Dirichlet shares of every key, a minimum per client.

Partitions that skew one property of an image (its rarest label, its number of
labels, its label set, its cluster) give each image that property as a key and
let ``deal_by_key`` spread every key over the clients by a draw of its own.

The draw is repeated until every client holds the minimum, and the repetition is
bounded, because for a small alpha or many clients no draw ever qualifies. After
``NUMBERS`` random numbers or ``DRAWS`` draws the one that lacks the fewest images
is kept, and ``fill_up`` moves exactly as many images as are missing.

A change here that gives other partitions raises ``fedmlic.federation.SCHEMA_VERSION``:
a federation's key covers the file of its partition, not what that file imports.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedmlic.labels import PRESENT
from fedmlic.partition import ranks_within

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

DRAWS = 100
"""Most draws of one partition."""

NUMBERS = 20_000_000
"""Most random numbers spent on draws; keeps 50,000 clients to seconds."""

_CHUNK = 65_536


def chunks(num_rows: int) -> Iterator[slice]:
    """Slices over ``num_rows`` rows, a bounded number at a time."""
    return (slice(start, start + _CHUNK) for start in range(0, num_rows, _CHUNK))


def positives(labels: NDArray[np.int8]) -> NDArray[np.int64]:
    """int64 ``[labels]``: on how many images each label is present."""
    counts = np.zeros(labels.shape[1], dtype=np.int64)
    for images in chunks(len(labels)):
        counts += (labels[images] == PRESENT).sum(axis=0)
    return counts


def cardinalities(labels: NDArray[np.int8]) -> NDArray[np.int64]:
    """int64 ``[images]``: how many labels are present on each image."""
    parts = [(labels[images] == PRESENT).sum(axis=1) for images in chunks(len(labels))]
    return np.concatenate([np.empty(0, dtype=np.int64), *parts])


def rarest_labels(labels: NDArray[np.int8]) -> NDArray[np.int64]:
    """int64 ``[images]``: the column of each image's rarest present label; ``num_labels`` where none is.

    Rarity is counted over these images; ties go to the lower column.

    >>> rarest_labels(np.array([[1, 1], [1, 0], [0, -1]], dtype=np.int8)).tolist()
    [1, 0, 2]
    """
    return first_labels(labels, np.argsort(positives(labels), kind="stable"))


def first_labels(labels: NDArray[np.int8], order: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64 ``[images]``: the first column of ``order`` that is present; ``num_labels`` where none of them is.

    >>> first_labels(np.array([[1, 1], [1, 0], [0, 1]], dtype=np.int8), np.array([1])).tolist()
    [1, 2, 1]
    """
    num_images, num_labels = labels.shape
    keys = np.full(num_images, num_labels, dtype=np.int64)
    for images in chunks(num_images if len(order) else 0):
        present = labels[images, order] == PRESENT
        keys[images] = np.where(present.any(axis=1), order[present.argmax(axis=1)], num_labels)
    return keys


def label_sets(labels: NDArray[np.int8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which images carry the same set of present labels.

    Returns:
        int64 ``[images]``: the number of each image's set, and int64 ``[sets]``: one image
        of each set. Sets are numbered in an order that depends on the sets alone.
    """
    num_images, num_labels = labels.shape
    packed = np.zeros((num_images, max(1, (num_labels + 7) // 8)), dtype=np.uint8)
    for images in chunks(num_images if num_labels else 0):
        packed[images] = np.packbits(labels[images] == PRESENT, axis=1)
    rows = packed.view(f"V{packed.shape[1]}").ravel()
    _, example, set_of_image = np.unique(rows, return_index=True, return_inverse=True)
    return set_of_image.astype(np.int64), example.astype(np.int64)


def deal_by_key(
    keys: NDArray[np.int64], num_clients: int, rng: np.random.Generator, *, alpha: float, min_images: int
) -> tuple[NDArray[np.int64], dict[str, int]]:
    """Spread the images of every key over the clients by proportions q ~ Dir(alpha, ..., alpha).

    A key's n images, in random order, are dealt by systematic sampling (equally spaced
    points with one random offset), so a client gets n*q rounded up or down, and n*q on
    average. Cutting at the floor of the cumulative shares would favour the later clients.

    Args:
        keys: int64 ``[images]``, 0 or more.
        num_clients: how many clients; ``num_clients * min_images`` images at least are there.
        rng: where the draws come from.
        alpha: concentration, above 0.
        min_images: least images per client.

    Returns:
        int64 ``[images]``: a client per image, and notes: how many ``draws`` it took and how
        many ``moved_images`` the minimum asked for.
    """
    images_of_key = [images for images in _groups(keys) if len(images)]
    cost = num_clients * len(images_of_key) + len(keys)
    allowed = max(1, min(DRAWS, NUMBERS // cost))
    best = np.empty(0, dtype=np.int64)
    fewest = len(keys) + 1
    draws = 0
    while fewest and draws < allowed:
        draws += 1
        drawn = _deal(images_of_key, alpha, num_clients, rng)
        missing = int(_lacking(drawn, num_clients, min_images).sum())
        if missing < fewest:
            best, fewest = drawn, missing
    if fewest:
        best = fill_up(best, num_clients, min_images, rng)
    return best, {"draws": draws, "moved_images": fewest}


def fill_up(
    client_of_row: NDArray[np.int64], num_clients: int, min_images: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Move as many images as clients lack below ``min_images``, at random, from the largest clients.

    The images come from the clients above a common level, so no client falls below the
    minimum. Every image has a client, and there are enough of them.
    """
    lacking = _lacking(client_of_row, num_clients, min_images)
    gives = _level(np.bincount(client_of_row, minlength=num_clients), int(lacking.sum()))
    ranks = ranks_within(client_of_row, rng.random(len(client_of_row)))
    leaving = rng.permutation(np.flatnonzero(ranks < gives[client_of_row]))
    moved = client_of_row.copy()
    moved[leaving] = np.repeat(np.arange(num_clients), lacking)
    return moved


def _groups(keys: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    order = np.argsort(keys, kind="stable")
    return np.split(order, np.cumsum(np.bincount(keys))[:-1])


def _deal(
    images_of_key: list[NDArray[np.int64]], alpha: float, num_clients: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    client_of_row = np.empty(sum(map(len, images_of_key)), dtype=np.int64)
    for images in images_of_key:
        edges = np.cumsum(rng.dirichlet(np.full(num_clients, alpha)))
        points = (np.arange(len(images)) + rng.random()) / len(images) * edges[-1]
        clients = np.searchsorted(edges, points, side="right")
        client_of_row[rng.permutation(images)] = np.minimum(clients, num_clients - 1)
    return client_of_row


def _lacking(client_of_row: NDArray[np.int64], num_clients: int, min_images: int) -> NDArray[np.int64]:
    return np.maximum(min_images - np.bincount(client_of_row, minlength=num_clients), 0)


def _level(sizes: NDArray[np.int64], num_moves: int) -> NDArray[np.int64]:
    """How many images each client gives so that the ``num_moves`` come from the largest ones."""
    low, high = 0, int(sizes.max())
    while low < high:
        middle = (low + high) // 2
        if np.maximum(sizes - middle, 0).sum() > num_moves:
            low = middle + 1
        else:
            high = middle
    gives = np.maximum(sizes - low, 0)
    short = num_moves - int(gives.sum())
    gives[np.flatnonzero(sizes >= low)[:short]] += 1
    return gives
