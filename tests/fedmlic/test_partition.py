"""Partitions against plain loops, hand examples and the Dirichlet distribution's moments."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedmlic.errors import InputError
from fedmlic.partition import Partition, Population, check_feasible, ranks_within
from fedmlic.partitioning.dealing import DRAWS, _level, fill_up, rarest_labels
from fedmlic.seeds import stream
from fedmlic.spec import build

states = hnp.arrays(np.int8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(-2, 1))


def people(labels, owners=None):
    labels = np.asarray(labels, dtype=np.int8)
    return Population(labels, np.full(len(labels), -1) if owners is None else np.asarray(owners, dtype=np.int64))


def one_label_each(num_images, num_labels):
    labels = np.zeros((num_images, num_labels), dtype=np.int8)
    labels[np.arange(num_images), np.arange(num_images) % num_labels] = 1
    return people(labels)


def split(text, population, num_clients, seed=0):
    partition = build("partition", text)(population, num_clients, stream(seed, "partition"))
    partition.check(len(population.labels))
    return partition


def client_of_row(partition, num_images):
    out = np.full(num_images, -1)
    for client in range(partition.num_clients):
        out[partition.of(client)] = client
    return out


# The type


@given(st.lists(st.integers(-1, 4), max_size=30))
def test_from_clients_lists_each_clients_rows_in_order(clients):
    partition = Partition.from_clients(np.array(clients, dtype=np.int64), 5)

    expected = [[row for row, client in enumerate(clients) if client == k] for k in range(5)]
    assert expected == [partition.of(k).tolist() for k in range(5)]
    assert partition.sizes.tolist() == [len(rows) for rows in expected]


@pytest.mark.parametrize(
    ("ptr", "rows", "message"),
    [
        ([0, 2, 3], [0, 1, 3], "rows to be below 3"),
        ([0, 2, 3], [0, 1, 1], "one client at most"),
        ([0, 2, 3], [1, 0, 2], "ascending within a client"),
        ([0, 3, 3], [0, 1, 2], "1 empty clients of 2"),
        ([0, 2, 4], [0, 1, 2], "client_ptr to rise"),
        ([0, 3, 2, 3], [0, 1, 2], "client_ptr to rise"),
    ],
)
def test_a_broken_partition_is_refused(ptr, rows, message):
    with pytest.raises(InputError, match=message):
        Partition(np.array(ptr), np.array(rows)).check(3)


def test_rows_may_fall_from_one_client_to_the_next():
    Partition(np.array([0, 1, 3]), np.array([2, 0, 1])).check(3)


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 1)), max_size=30))
def test_ranks_count_the_lower_priorities_of_the_same_group(pairs):
    groups, priority = np.array([g for g, _ in pairs], dtype=np.int64), np.array([p for _, p in pairs])
    expected = [
        sum(g == group and (p, j) < (value, i) for j, (g, p) in enumerate(pairs))
        for i, (group, value) in enumerate(pairs)
    ]

    assert expected == ranks_within(groups, priority).tolist()


def test_feasibility_names_both_numbers():
    with pytest.raises(InputError, match=r"10 training images, got 3 with min_images = 4 each \(12 in all\)"):
        check_feasible(one_label_each(10, 2), 3, 4)


# IID


@given(st.integers(1, 60), st.data())
def test_iid_uses_every_image_in_parts_that_differ_by_one(num_images, data):
    partition = split("iid", one_label_each(num_images, 3), data.draw(st.integers(1, num_images)))

    assert sorted(partition.rows.tolist()) == list(range(num_images))
    assert partition.sizes.max() - partition.sizes.min() <= 1


def test_iid_gives_every_image_to_every_client_equally_often():
    counts = np.zeros((6, 3))
    for seed in range(600):
        clients = client_of_row(split("iid", one_label_each(6, 2), 3, seed), 6)
        counts[np.arange(6), clients] += 1

    assert np.abs(counts - 200).max() < 4 * np.sqrt(600 * 2 / 9)


# Dirichlet


@given(states)
def test_the_key_is_the_rarest_present_label(labels):
    frequency = [(labels[:, c] == 1).sum() for c in range(labels.shape[1])]
    expected = []
    for row in labels.tolist():
        present = [c for c, state in enumerate(row) if state == 1]
        expected.append(min(present, key=lambda c: (frequency[c], c)) if present else labels.shape[1])

    assert expected == rarest_labels(labels).tolist()


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from([0.01, 0.1, 1.0, 100.0]), st.integers(1, 30), st.integers(1, 10), st.integers(1, 9), st.integers(0)
)
def test_dirichlet_uses_every_image_and_keeps_the_minimum(alpha, num_clients, min_images, num_labels, seed):
    population = one_label_each(300, num_labels)
    partition = split(f"dirichlet(alpha={alpha}, min_images={min_images})", population, num_clients, seed)

    assert sorted(partition.rows.tolist()) == list(range(300))
    assert partition.sizes.min() >= min_images
    assert 1 <= partition.notes["draws"] <= DRAWS


def test_dirichlet_shares_have_the_second_moment_of_the_distribution():
    """E[sum of squared shares] = (alpha + 1) / (K alpha + 1) for Dir(alpha) over K."""
    num_keys, each, num_clients, alpha = 400, 500, 5, 0.5
    population = one_label_each(num_keys * each, num_keys)
    clients = client_of_row(split(f"dirichlet(alpha={alpha})", population, num_clients), num_keys * each)
    keys = np.arange(num_keys * each) % num_keys
    shares = np.zeros((num_keys, num_clients))
    np.add.at(shares, (keys, clients), 1 / each)
    squares = (shares**2).sum(axis=1)

    expected = (alpha + 1) / (num_clients * alpha + 1)
    assert abs(squares.mean() - expected) < 4 * squares.std() / np.sqrt(num_keys)
    assert np.abs(shares.mean(axis=0) - 0.2).max() < 4 * shares.std() / np.sqrt(num_keys)


def test_a_large_alpha_spreads_every_key_evenly():
    clients = client_of_row(split("dirichlet(alpha=1e9)", one_label_each(1000, 4), 5), 1000)

    for key in range(4):
        assert np.abs(np.bincount(clients[np.arange(1000) % 4 == key], minlength=5) - 50).max() <= 1


def test_a_hopeless_draw_of_a_thousand_clients_is_repaired_and_says_so():
    """Two labels reach few of 1,000 clients at alpha = 0.01, however often it is drawn."""
    partition = split("dirichlet(alpha=0.01)", one_label_each(10_000, 2), 1000)

    assert partition.sizes.min() == 8
    assert 800 * 8 < partition.notes["moved_images"] < 1000 * 8
    assert partition.notes["draws"] == DRAWS


@settings(deadline=None)
@given(st.lists(st.integers(0, 30), min_size=2, max_size=8), st.integers(1, 5), st.integers(0))
def test_a_repair_moves_as_many_images_as_are_missing_and_no_client_below_the_minimum(sizes, min_images, seed):
    sizes[0] += len(sizes) * min_images
    before = np.repeat(np.arange(len(sizes)), sizes)
    lacking = np.maximum(min_images - np.array(sizes), 0)
    after = fill_up(before, len(sizes), min_images, np.random.default_rng(seed))

    assert (before != after).sum() == lacking.sum()
    assert np.bincount(after, minlength=len(sizes)).min() >= min_images
    assert all((after[before == client] == client).all() for client in np.flatnonzero(lacking))


@given(st.lists(st.integers(0, 20), min_size=1, max_size=8), st.data())
def test_the_largest_clients_give_one_image_after_another(sizes, data):
    num_moves = data.draw(st.integers(0, sum(sizes)))
    left = list(sizes)
    for _ in range(num_moves):
        left[left.index(max(left))] -= 1

    gives = _level(np.array(sizes, dtype=np.int64), num_moves)
    assert gives.sum() == num_moves
    assert sorted(left) == sorted((np.array(sizes) - gives).tolist())


def test_images_without_a_present_label_are_dealt_too():
    partition = split("dirichlet(min_images=1)", people(np.zeros((20, 3))), 4)

    assert len(partition.rows) == 20


@pytest.mark.parametrize(
    ("text", "num_clients", "message"),
    [
        ("dirichlet(alpha=0)", 2, "alpha.*greater than 0"),
        ("dirichlet(alpha=float)", 2, "not a number"),
        ("dirichlet(min_images=0)", 2, "min_images.*greater than or equal to 1"),
        ("dirichlet", 0, "num-clients to be 1 or more"),
        ("dirichlet", 13, "100 training images, got 13 with min_images = 8"),
        ("iid", 101, "100 training images, got 101"),
        ("iid(alpha=3)", 3, "It takes none"),
        ("natural(min_images=3, max_images=2)", 1, "at least min_images"),
        ("naturel", 3, "Did you mean 'natural'"),
    ],
)
def test_a_bad_partition_is_explained(text, num_clients, message):
    with pytest.raises(InputError, match=message):
        split(text, one_label_each(100, 3), num_clients)


# Natural

OWNERS = [5, 5, 5, 5, -1, 2, 2, 9, 9, 9, -1, 7]


def owned(owners=OWNERS):
    return people(np.zeros((len(owners), 2)), owners)


def test_natural_makes_one_client_per_owner_in_their_order():
    partition = split("natural", owned(), 0)

    assert [partition.of(k).tolist() for k in range(4)] == [[5, 6], [0, 1, 2, 3], [11], [7, 8, 9]]
    assert partition.notes["images_without_owner_left_out"] == 2


def test_clients_bear_the_names_of_their_owners():
    population = replace(owned([1, 2, -1, 1, 0, 2, 2]), owner_names=("Ann", "Bob", "Cem", "Dan"))
    rng = stream(0, "partition")

    everyone = build("partition", "natural")(population, 0, rng)
    merged = build("partition", "natural(min_images=3, merge_small=True)")(population, 0, rng)
    with_nobody = build("partition", "natural(no_owner='client')")(population, 0, rng)

    assert everyone.client_names == ["Ann", "Bob", "Cem"]
    assert len(everyone.warnings) == 1
    assert "1 of 7 training images have no owner" in everyone.warnings[0]
    assert "no_owner='client'" in everyone.warnings[0]
    assert merged.client_names == ["Cem", "(2 small owners)"]
    assert with_nobody.client_names == ["Ann", "Bob", "Cem", "(no owner)"]
    assert with_nobody.of(3).tolist() == [2]
    assert with_nobody.notes["images_without_owner_left_out"] == 0
    assert list(with_nobody.warnings) == []
    assert list(build("partition", "natural")(owned(), 0, rng).client_names) == []


def test_without_any_owner_it_says_what_to_do():
    with pytest.raises(InputError, match=r"none of the 2 training images has an owner\. Say whose they are"):
        split("natural(no_owner='client')", owned([-1, -1]), 0)


def test_small_owners_are_dropped_and_counted():
    partition = split("natural(min_images=3)", owned(), 0)

    assert [partition.of(k).tolist() for k in range(2)] == [[0, 1, 2, 3], [7, 8, 9]]
    assert partition.notes == {
        "owners": 4,
        "small_owners_left_out": 2,
        "small_owners_images_left_out": 3,
        "eligible_clients_not_chosen": 0,
        "images_not_chosen_left_out": 0,
        "images_without_owner_left_out": 2,
        "images_above_max_left_out": 0,
    }


def test_large_owners_keep_a_uniform_subset():
    kept = np.zeros(len(OWNERS))
    for seed in range(400):
        partition = split("natural(max_images=2)", owned(), 0, seed)
        assert partition.sizes.tolist() == [2, 2, 1, 2]
        assert partition.notes["images_above_max_left_out"] == 3
        kept[partition.rows] += 1

    assert np.abs(kept[:4] - 200).max() < 4 * np.sqrt(400 / 4)
    assert (kept[[5, 6, 11]] == 400).all()


def test_fewer_clients_are_drawn_uniformly_among_the_eligible_owners():
    chosen = np.zeros(len(OWNERS))
    for seed in range(400):
        partition = split("natural(min_images=2)", owned(), 2, seed)
        assert partition.notes["eligible_clients_not_chosen"] == 1
        chosen[partition.rows] += 1

    assert np.abs(chosen[[0, 5, 7]] - 400 * 2 / 3).max() < 4 * np.sqrt(400 * 2 / 9)
    assert chosen[11] == 0


@pytest.mark.parametrize(("owners", "num_clients"), [(OWNERS, 5), ([-1, -1], 0), ([-1, -1], 1)])
def test_more_clients_than_owners_is_an_error(owners, num_clients):
    with pytest.raises(InputError, match="the owners with 1 or more training images"):
        split("natural", owned(owners), num_clients)
