"""Powerset: a Dirichlet draw per label set, rare sets joined to the nearest frequent one.

The key of an image is its exact set of present labels. Most sets of a large
vocabulary occur once, and a key with one image is dealt out at random, so sets with
fewer than ``min_support`` images join the nearest set that has more: the smallest
Hamming distance, then the larger support. Images without a present label keep a key
of their own, whatever their number, and nothing is joined to it.

Clients differ in which labels they have and in which occur together.

Source: recipe (d) of the field's list (label-combination Dirichlet); the merging rule
is stated there, the cap ``max_sets`` is ours: it bounds the random numbers, which are
clients x keys. Systematic sampling and bounded repetition: ``fedmlic.partitioning.dealing``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from fedmlic.errors import InputError
from fedmlic.labels import PRESENT
from fedmlic.partition import Partition, Partitioner, Population, check_feasible
from fedmlic.partitioning.dealing import cardinalities, deal_by_key, label_sets

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ENTRIES = 1 << 23


def _nearest(rare: NDArray[np.bool_], kept: NDArray[np.bool_]) -> NDArray[np.int64]:
    """int64 ``[rare sets]``: the kept set at the smallest Hamming distance, the first one where several are."""
    frequent = kept.astype(np.float32)  # sums of ones: exact
    few = rare.astype(np.float32)
    return np.asarray((frequent.sum(axis=1) - 2 * few @ frequent.T).argmin(axis=1))


def _merge(labels: NDArray[np.int8], min_support: int, max_sets: int) -> tuple[NDArray[np.int64], dict[str, int]]:
    """int64 ``[images]``: the key of each image after merging, and notes."""
    set_of_image, example = label_sets(labels)
    support = np.bincount(set_of_image)
    empty = cardinalities(labels)[example] == 0
    by_support = np.argsort(np.where(empty, 0, -support), kind="stable")
    by_support = by_support[~empty[by_support]]
    kept = by_support[support[by_support] >= min_support][:max_sets]
    if len(by_support) and not len(kept):
        msg = (
            f"Expected min_support of powerset to be at most {support[by_support[0]]}, the images of the most "
            f"frequent label set, got {min_support}. Use a smaller min_support."
        )
        raise InputError(msg)
    key_of_set = np.full(len(support), len(kept), dtype=np.int64)
    key_of_set[kept] = np.arange(len(kept))
    rare = by_support[np.isin(by_support, kept, invert=True)]
    step = max(1, _ENTRIES // max(len(kept), labels.shape[1], 1))
    patterns = labels[example[kept]] == PRESENT
    for start in range(0, len(rare), step):
        some = rare[start : start + step]
        key_of_set[some] = _nearest(labels[example[some]] == PRESENT, patterns)
    notes = {
        "label_sets": len(support),
        "label_sets_kept": len(kept) + int(empty.any()),
        "images_of_merged_sets": int(support[rare].sum()),
    }
    return key_of_set[set_of_image], notes


def powerset(
    *,
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.3,
    min_images: Annotated[int, Field(ge=1)] = 8,
    min_support: Annotated[int, Field(ge=1)] = 10,
    max_sets: Annotated[int, Field(ge=1)] = 250,
) -> Partitioner:
    """Label-set skew: the images of each label set are spread over the clients by its own Dirichlet draw.

    Args:
        alpha: concentration, above 0; 0.1 gives each client few label sets, 100 is close to IID.
        min_images: least number of images per client, 1 or more.
        min_support: images a label set needs to be a key of its own, 1 or more.
        max_sets: most label sets that are keys, the most frequent ones, 1 or more.

    Raises:
        InputError: when the partitioner is asked for more clients than
            ``images / min_images``, or no label set reaches ``min_support``.
    """

    def partition(population: Population, num_clients: int, rng: np.random.Generator) -> Partition:
        check_feasible(population, num_clients, min_images)
        keys, notes = _merge(population.labels, min_support, max_sets)
        client_of_row, dealt = deal_by_key(keys, num_clients, rng, alpha=alpha, min_images=min_images)
        return Partition.from_clients(client_of_row, num_clients, notes | dealt)

    return partition
