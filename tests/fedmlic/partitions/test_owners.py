"""Partitions over owners: natural with merged small owners, artificial users of constant size."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmlic.errors import InputError
from fedmlic.partition import Population
from fedmlic.seeds import stream
from fedmlic.spec import build

OWNERS = [5, 5, 5, 5, -1, 2, 2, 9, 9, 9, -1, 7]


def split(text, owners, num_clients=0, seed=0):
    population = Population(np.zeros((len(owners), 2), np.int8), np.array(owners, dtype=np.int64))
    partition = build("partition", text)(population, num_clients, stream(seed, "partition"))
    partition.check(len(owners))
    return partition


owner_lists = st.lists(st.integers(-1, 6), min_size=1, max_size=40)


# Natural


@settings(deadline=None)
@given(owner_lists, st.integers(1, 8), st.integers(0, 9))
def test_merged_owners_stay_whole_and_every_client_reaches_the_minimum(owners, min_images, seed):
    owned = [owner for owner in owners if owner >= 0]
    counts = {owner: owned.count(owner) for owner in owned}
    small = {owner for owner in counts if counts[owner] < min_images}
    in_small = sum(counts[owner] for owner in small)
    if not counts or (len(small) == len(counts) and in_small < min_images):
        with pytest.raises(InputError, match="and the small ones merged, got 0"):
            split(f"natural(min_images={min_images}, merge_small=True)", owners, 0, seed)
        return
    partition = split(f"natural(min_images={min_images}, merge_small=True)", owners, 0, seed)

    held = [{owners[row] for row in partition.of(client)} for client in range(partition.num_clients)]
    assert all(partition.sizes >= min_images)
    assert sum(map(len, held)) == len(set().union(*held))  # no owner is torn apart
    large = sorted(set(counts) - small)
    assert held[: len(large)] == [{owner} for owner in large]
    merged = set().union(*held[len(large) :])
    assert merged == (small if in_small >= min_images else set())
    assert partition.notes["small_owners_merged"] == len(merged)
    assert partition.notes["artificial_clients_possible"] == len(held) - len(large)
    assert partition.notes["small_owners_images_left_out"] == (0 if merged else in_small)


def test_artificial_clients_take_no_more_owners_than_they_need():
    partition = split("natural(min_images=4, merge_small=True)", np.arange(100).tolist())

    assert partition.sizes.tolist() == [4] * 25


def test_which_owners_are_merged_is_random():
    owners = np.arange(12).tolist()
    together = {tuple(split("natural(min_images=3, merge_small=True)", owners, 0, s).of(0).tolist()) for s in range(9)}

    assert len(together) > 3


def test_merged_clients_may_be_left_out_and_capped():
    owners = np.repeat(np.arange(20), 3).tolist()
    partition = split("natural(min_images=5, max_images=5, merge_small=True)", owners, 4)

    assert partition.sizes.tolist() == [5] * 4
    assert partition.notes["eligible_clients_not_chosen"] == 6
    assert partition.notes["images_not_chosen_left_out"] == 36
    assert partition.notes["images_above_max_left_out"] == 4


# Constant size


@settings(deadline=None)
@given(owner_lists, st.integers(1, 6), st.integers(0, 9))
def test_users_within_owners_are_pure_equal_and_as_many_as_fit(owners, num_images, seed):
    counts = [owners.count(owner) for owner in sorted(set(owners)) if owner >= 0]
    possible = sum(count // num_images for count in counts)
    text = f"constant_size(num_images={num_images}, within_owners=True)"
    if possible == 0:
        with pytest.raises(InputError, match="Expected num-clients to be 0 to 0"):
            split(text, owners, 0, seed)
        return
    partition = split(text, owners, 0, seed)

    assert partition.sizes.tolist() == [num_images] * possible
    assert all(len({owners[row] for row in partition.of(client)}) == 1 for client in range(possible))
    assert partition.notes["remaining_images_left_out"] == sum(counts) - possible * num_images
    assert partition.notes["images_without_owner_left_out"] == owners.count(-1)
    assert partition.notes["owners_without_a_user"] == sum(count < num_images for count in counts)


@pytest.mark.parametrize(("asked", "made"), [(0, 4), (3, 3), (4, 4)])
def test_pooled_users_ignore_owners(asked, made):
    partition = split("constant_size(num_images=3)", [*OWNERS, -1], asked)

    assert partition.sizes.tolist() == [3] * made
    assert partition.notes["users_possible"] == 4
    assert partition.notes["images_without_owner_left_out"] == 0
    assert partition.notes["remaining_images_left_out"] == 1
    assert partition.notes["images_not_chosen_left_out"] == 3 * (4 - made)


@pytest.mark.parametrize("within", [False, True])
def test_every_image_is_dealt_equally_often(within):
    owners = [0] * 7 + [1] * 7
    counts = np.zeros(14)
    for seed in range(600):
        counts[split(f"constant_size(num_images=2, within_owners={within})", owners, 3, seed).rows] += 1

    assert np.abs(counts - 600 * 6 / 14).max() < 4.5 * np.sqrt(600 * (6 / 14) * (8 / 14))


def test_more_users_than_fit_is_an_error():
    with pytest.raises(InputError, match=r"num-clients to be 0 to 4, the users of 3 images .* got 5"):
        split("constant_size(num_images=3)", OWNERS, 5)
