"""Dirichlet label skew for images with many labels, keyed by the rarest label.

Every image gets one key: its rarest present label, by frequency over all
training images (ties: the lower column). Images without a present label share
a key of their own. For every key c, proportions q_c ~ Dir(alpha, ..., alpha)
over the clients are drawn and the key's images, in random order, are dealt out
by q_c. The whole draw is repeated until every client holds ``min_images``.

Rare labels end up concentrated on few clients; the frequent labels that occur
beside them stay mixed. Source: recipe "rarest-label Dirichlet" of "Dissecting
output-space methods for multi-label FL" (J. K. Li, 2026).

Departures:
- A key's n images are dealt by systematic sampling (equally spaced points with
  one random offset), so a client gets n*q rounded up or down, and n*q on average.
  Cutting at the floor of the cumulative shares would favour the later clients.
- The repetition is bounded, because for a small alpha or many clients no draw
  ever qualifies. After ``NUMBERS`` random numbers or ``DRAWS`` draws the one that
  lacks the fewest images is kept, and exactly as many images as are missing move,
  at random, from the largest clients (those above a common level) to the clients
  below ``min_images``. ``Partition.notes`` says how many draws and moves it took.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from fedmlic.labels import PRESENT
from fedmlic.partition import Partition, Partitioner, Population, check_feasible, ranks_within

if TYPE_CHECKING:
    from numpy.typing import NDArray

DRAWS = 100
"""Most draws of one partition."""

NUMBERS = 20_000_000
"""Most random numbers spent on draws; keeps 50,000 clients to seconds."""

_CHUNK = 65_536


def rarest_labels(labels: NDArray[np.int8]) -> NDArray[np.int64]:
    """int64 ``[images]``: the column of each image's rarest present label; ``num_labels`` where none is.

    >>> rarest_labels(np.array([[1, 1], [1, 0], [0, -1]], dtype=np.int8)).tolist()
    [1, 0, 2]
    """
    num_images, num_labels = labels.shape
    by_rarity = np.argsort((labels == PRESENT).sum(axis=0), kind="stable")
    keys = np.full(num_images, num_labels, dtype=np.int64)
    for start in range(0, num_images if num_labels else 0, _CHUNK):
        present = labels[start : start + _CHUNK, by_rarity] == PRESENT
        keys[start : start + _CHUNK] = np.where(present.any(axis=1), by_rarity[present.argmax(axis=1)], num_labels)
    return keys


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


def _move(client_of_row: NDArray[np.int64], lacking: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    sizes = np.bincount(client_of_row, minlength=len(lacking))
    gives = _level(sizes, int(lacking.sum()))
    ranks = ranks_within(client_of_row, rng.random(len(client_of_row)))
    leaving = rng.permutation(np.flatnonzero(ranks < gives[client_of_row]))
    moved = client_of_row.copy()
    moved[leaving] = np.repeat(np.arange(len(lacking)), lacking)
    return moved


def _split(
    population: Population, num_clients: int, rng: np.random.Generator, *, alpha: float, min_images: int
) -> Partition:
    check_feasible(population, num_clients, min_images)
    keys = rarest_labels(population.labels)
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
        best = _move(best, _lacking(best, num_clients, min_images), rng)
    return Partition.from_clients(best, num_clients, {"draws": draws, "moved_images": fewest})


def _groups(keys: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    order = np.argsort(keys, kind="stable")
    return np.split(order, np.cumsum(np.bincount(keys))[:-1])


def dirichlet(
    *, alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.3, min_images: Annotated[int, Field(ge=1)] = 8
) -> Partitioner:
    """Label skew: each rarest label is spread over the clients by its own Dirichlet draw.

    Args:
        alpha: concentration; 0.1 gives each client few labels, 100 is close to IID.
        min_images: least number of images per client.

    Raises:
        InputError: when the partitioner is asked for more clients than
            ``images / min_images``.
    """

    def partition(population: Population, num_clients: int, rng: np.random.Generator) -> Partition:
        return _split(population, num_clients, rng, alpha=alpha, min_images=min_images)

    return partition
