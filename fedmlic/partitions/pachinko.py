"""Pachinko: a Dirichlet draw over coarse labels, then one within each coarse label.

The key of an image is its rarest present label, and that label's parent is the coarse
key; images without a present label are a coarse key of their own. Client k draws
proportions over the coarse keys from Dir(alpha, ..., alpha) and, for each coarse key,
over its fine keys from Dir(beta, ..., beta). Client after client then takes its images:
a coarse key, a fine key within it, a random image that has it and is still there. A key
that has run out is removed and the rest are scaled up. All clients hold equally many
images, and every image is used; the last clients take what the others left.

Source: Pachinko allocation (Li and McCallum, ICML 2006) as TensorFlow Federated documents it
for its CIFAR-100 (alpha 0.1, beta 10, 100 images per client, one label per image;
tensorflow.org/federated, ``tff.simulation.datasets.cifar100.load_data``). Our departure: the
key for images with several labels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, NamedTuple

import numpy as np
from pydantic import Field

from fedmlic.errors import InputError
from fedmlic.partition import Partition, Partitioner, Population, check_feasible, ranks_within
from fedmlic.partitioning.dealing import rarest_labels
from fedmlic.partitioning.stratification import even_sizes

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ENTRIES = 1 << 19


class _Tree(NamedTuple):
    """The keys that occur, those of one coarse key side by side.

    Attributes:
        parent: int64 ``[keys]``, ascending from 0.
        first: int64 ``[coarse keys]``, where each begins.
    """

    parent: NDArray[np.int64]
    first: NDArray[np.int64]


def _keys(population: Population) -> tuple[NDArray[np.int64], _Tree]:
    """Int64 ``[images]``: each image's key, numbered along the tree."""
    num_labels = population.labels.shape[1]
    if len(population.parents) != num_labels or not num_labels:
        msg = (
            "Expected the data set to have a coarser label per label for partition pachinko, got none. "
            "Use dirichlet, or a data set with a hierarchy of labels."
        )
        raise InputError(msg)
    # A label without a parent is its own; images without a label come last.
    names = [parent or f"\0{label}" for label, parent in enumerate(population.parents)]
    coarse = np.append(np.unique(names, return_inverse=True)[1], num_labels)
    rarest = rarest_labels(population.labels)
    occurring = np.unique(rarest)
    occurring = occurring[np.argsort(coarse[occurring], kind="stable")]
    _, first, parent = np.unique(coarse[occurring], return_index=True, return_inverse=True)
    place = np.empty(num_labels + 1, dtype=np.int64)
    place[occurring] = np.arange(len(occurring))
    return place[rarest], _Tree(parent, first)


def _draw_shares(
    tree: _Tree, num_clients: int, alpha: float, beta: float, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Float64 ``[clients, coarse keys]`` and ``[clients, keys]``: proportions over and within coarse keys."""
    coarse = rng.dirichlet(np.full(len(tree.first), alpha), num_clients)
    sizes = np.diff(np.append(tree.first, len(tree.parent)))
    fine = np.concatenate([rng.dirichlet(np.full(size, beta), num_clients) for size in sizes], axis=1)
    return coarse, fine


def _over_what_is_left(
    coarse: NDArray[np.float64], fine: NDArray[np.float64], left: NDArray[np.int64], tree: _Tree
) -> NDArray[np.float64]:
    """Float64 ``[clients, keys]``: the probability of each key once those that ran out are removed.

    A client whose whole mass ran out takes the keys that are left alike.
    """
    alive = (left > 0).astype(np.float64)
    within = fine * alive
    sums = np.add.reduceat(within, tree.first, axis=1)
    num_alive = np.add.reduceat(alive, tree.first)
    lost = (sums <= 0) & (num_alive > 0)
    within += lost[:, tree.parent] * alive
    sums = np.where(lost, num_alive, sums)
    over = coarse * (num_alive > 0)
    over[over.sum(axis=1) <= 0] = num_alive > 0
    over /= over.sum(axis=1, keepdims=True)
    return np.asarray(within * (over / np.where(sums > 0, sums, 1))[:, tree.parent])


def _choose(shares: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.int64]:
    """int64, one per point in [0, 1): the key that each falls on; never one without a share."""
    edges = np.cumsum(shares)
    last = int(np.flatnonzero(shares)[-1])
    return np.asarray(np.minimum(np.searchsorted(edges, points * edges[-1], side="right"), last))


def _one_by_one(
    coarse: NDArray[np.float64], fine: NDArray[np.float64], left: NDArray[np.int64], wanted: NDArray[np.int64],
    tree: _Tree, rng: np.random.Generator,
) -> NDArray[np.int64]:  # fmt: skip
    """int64 ``[keys]``: how many images of each key one client takes that draws the keys ``wanted``, in that order.

    Draws count up to and with the first that takes the last image of a key; the rest are
    drawn again from what is left.
    """
    taken, size = np.zeros_like(left), len(wanted)
    while True:
        seen = ranks_within(wanted, np.arange(len(wanted), dtype=np.float64)) + 1
        last = np.flatnonzero(seen >= (left - taken)[wanted])
        taken += np.bincount(wanted[: last[0] + 1] if len(last) else wanted, minlength=len(left))
        missing = size - int(taken.sum())
        if not missing:
            return taken
        wanted = _choose(_over_what_is_left(coarse, fine, left - taken, tree)[0], rng.random(missing))


def _take(
    shares: tuple[NDArray[np.float64], NDArray[np.float64]], sizes: NDArray[np.int64], left: NDArray[np.int64],
    tree: _Tree, rng: np.random.Generator,
) -> NDArray[np.int64]:  # fmt: skip
    """int64 ``[clients, keys]``: how many images of each key every client takes.

    Clients are drawn together up to the first that takes the last image of a key; its
    draws are followed one by one, and the next clients start from there.
    """
    coarse, fine = shares
    num_clients, num_keys = fine.shape
    taken = np.zeros((num_clients, num_keys), dtype=np.int64)
    left = left.copy()
    start, step = 0, max(1, _ENTRIES // num_keys)
    while start < num_clients:
        some = slice(start, min(start + step, num_clients))
        probabilities = _over_what_is_left(coarse[some], fine[some], left, tree)
        counts = rng.multinomial(sizes[some], probabilities / probabilities.sum(axis=1, keepdims=True))
        ends_a_key = ((np.cumsum(counts, axis=0) >= left) & (left > 0)).any(axis=1)
        num_before = int(ends_a_key.argmax()) if ends_a_key.any() else len(counts)
        taken[start : start + num_before] = counts[:num_before]
        left -= counts[:num_before].sum(axis=0)
        start += num_before
        if num_before < len(counts):
            here = slice(start, start + 1)
            wanted = rng.permutation(np.repeat(np.arange(num_keys), counts[num_before]))
            taken[start] = _one_by_one(coarse[here], fine[here], left, wanted, tree, rng)
            left -= taken[start]
            start += 1
    return taken


def pachinko(
    *,
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1,
    beta: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 10.0,
) -> Partitioner:
    """Coarse-to-fine label skew: clients differ in coarse labels by alpha, in fine ones within by beta.

    Args:
        alpha: concentration over coarse labels, above 0; 0.1 gives each client few of them.
        beta: concentration within a coarse label, above 0; 10 makes clients alike there.

    Raises:
        InputError: when the partitioner is asked for more clients than images, or the data
            set's labels have no parents.
    """

    def partition(population: Population, num_clients: int, rng: np.random.Generator) -> Partition:
        check_feasible(population, num_clients)
        keys, tree = _keys(population)
        shares = _draw_shares(tree, num_clients, alpha, beta, rng)
        counts = np.bincount(keys, minlength=len(tree.parent))
        taken = _take(shares, even_sizes(len(keys), num_clients), counts, tree, rng)
        client_of_row = np.empty(len(keys), dtype=np.int64)
        images = np.lexsort((rng.random(len(keys)), keys))  # key after key, in random order within
        client_of_row[images] = np.repeat(np.tile(np.arange(num_clients), len(counts)), taken.T.ravel())
        notes = {"coarse_keys": len(tree.first), "fine_keys": len(tree.parent)}
        return Partition.from_clients(client_of_row, num_clients, notes)

    return partition
