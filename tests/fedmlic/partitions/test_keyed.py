"""Partitions that deal a key of every image: number of labels, label set."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedmlic.errors import InputError
from fedmlic.partition import Population
from fedmlic.partitions.powerset import _merge
from fedmlic.seeds import stream
from fedmlic.spec import build


def split(text, labels, num_clients, seed=0):
    labels = np.asarray(labels, dtype=np.int8)
    population = Population(labels, np.full(len(labels), -1))
    return build("partition", text)(population, num_clients, stream(seed, "partition"))


def random_labels(num_images, num_labels, seed=0, prevalence=0.3):
    return (np.random.default_rng(seed).random((num_images, num_labels)) < prevalence).astype(np.int8)


# Count strata


def test_a_large_alpha_spreads_every_number_of_labels_evenly():
    labels = random_labels(2000, 4)
    partition = split("count_strata(alpha=1e9)", labels, 5)

    counts = labels.sum(axis=1)
    for number in range(5):
        here = [int((counts[partition.of(client)] == number).sum()) for client in range(5)]
        assert max(here) - min(here) <= 1
    assert partition.notes["strata"] == 5


def test_a_small_alpha_gives_whole_strata_and_leaves_labels_mixed():
    """Each image has one of four labels, or the same four in pairs: two strata, one marginal."""
    ones, pairs = np.eye(4, dtype=np.int8), np.array([[1, 1, 0, 0], [0, 0, 1, 1]] * 2, dtype=np.int8)
    labels = np.concatenate([np.tile(ones, (100, 1)), np.tile(pairs, (100, 1))])
    for seed in range(20):
        partition = split("count_strata(alpha=1e-6, min_images=1)", labels, 2, seed)
        sums = [np.unique(labels[partition.of(client)].sum(axis=1)).tolist() for client in range(2)]
        if partition.notes["moved_images"] == 0:
            break

    assert sorted(sums) == [[1], [2]]
    for client in range(2):
        rates = labels[partition.of(client)].sum(axis=0)
        assert rates.min() == rates.max()


# Powerset


@given(
    hnp.arrays(np.int8, st.tuples(st.integers(1, 30), st.integers(1, 5)), elements=st.integers(-1, 1)),
    st.integers(1, 4),
    st.integers(1, 4),
)
def test_sets_are_merged_as_a_loop_merges_them(labels, min_support, max_sets):
    sets = [frozenset(np.flatnonzero(row == 1).tolist()) for row in labels]
    support = {one: sets.count(one) for one in sets}
    frequent = [one for one in support if one and support[one] >= min_support]
    if not frequent and any(sets):
        with pytest.raises(InputError, match="Expected min_support of powerset to be at most"):
            _merge(labels, min_support, max_sets)
        return
    keys, notes = _merge(labels, min_support, max_sets)

    keys_of = {one: {key for other, key in zip(sets, keys.tolist(), strict=True) if other == one} for one in support}
    num_kept = min(len(frequent), max_sets)
    assert all(len(found) == 1 for found in keys_of.values())  # a set is never torn apart
    assert len(set.union(set(), *(keys_of[one] for one in support if one))) == num_kept
    assert all(keys_of[one] != keys_of.get(frozenset()) for one in support if one)
    assert notes["label_sets_kept"] == num_kept + (frozenset() in support)
    assert notes["label_sets"] == len(support)
    if max_sets >= len(frequent):  # then which sets are kept is known without ties
        merged = [one for one in sets if one and one not in frequent]
        assert notes["images_of_merged_sets"] == len(merged)
        for one in merged:
            distances = {other: len(one ^ other) for other in frequent}
            nearest = [other for other in frequent if distances[other] == min(distances.values())]
            largest = max(support[other] for other in nearest)
            assert keys_of[one] in [keys_of[other] for other in nearest if support[other] == largest]


def test_a_large_alpha_spreads_every_label_set_evenly():
    labels = random_labels(3000, 3)
    partition = split("powerset(alpha=1e9)", labels, 4)

    codes = labels @ np.array([1, 2, 4])
    for code in range(8):
        here = [int((codes[partition.of(client)] == code).sum()) for client in range(4)]
        assert max(here) - min(here) <= 1


def test_only_the_most_frequent_sets_are_kept():
    labels = np.repeat(np.array([[1, 1, 0], [1, 0, 0], [0, 0, 1], [0, 0, 0]], dtype=np.int8), [9, 8, 7, 6], axis=0)
    keys, notes = _merge(labels, 1, 2)

    assert [len(set(keys[start:stop].tolist())) for start, stop in [(0, 9), (9, 17), (17, 24), (24, 30)]] == [1] * 4
    # {2} is at distance 2 from {0} and 3 from {0, 1}.
    assert keys[17] == keys[9] != keys[0]
    assert keys[24] not in {keys[0], keys[9]}
    assert notes == {"label_sets": 4, "label_sets_kept": 3, "images_of_merged_sets": 7}
