"""Who owns which label, and where images that span clients go, by looking at every image."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmlic.errors import InputError
from fedmlic.partition import Population
from fedmlic.partitions.pathological import _assign, _num_owners
from fedmlic.seeds import stream
from fedmlic.spec import build


def split(text, labels, num_clients, seed=0):
    labels = np.asarray(labels, dtype=np.int8)
    population = Population(labels, np.full(len(labels), -1))
    partition = build("partition", text)(population, num_clients, stream(seed, "partition"))
    partition.check(len(labels))
    return partition


def random_labels(num_images, num_labels, seed=0, prevalence=0.2):
    return (np.random.default_rng(seed).random((num_images, num_labels)) < prevalence).astype(np.int8)


def rarest(labels):
    frequency = labels.sum(axis=0)
    return [min(np.flatnonzero(row == 1).tolist(), key=lambda c: (frequency[c], c), default=None) for row in labels]


@settings(deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=8), st.integers(1, 9), st.integers(1, 4), st.integers(0, 9))
def test_ownership_has_the_asked_size_and_every_label_an_owner_where_possible(
    num_keyed, num_clients, labels_per_client, seed
):
    num_keyed = np.array(num_keyed)
    most = np.minimum(num_keyed, num_clients)
    rng = np.random.default_rng(seed)
    if most.sum() < num_clients * labels_per_client:
        with pytest.raises(InputError, match=r"Expected (num-clients|labels_per_client) .* at most"):
            _num_owners(num_keyed, num_clients, labels_per_client, rng)
        return
    owners = _num_owners(num_keyed, num_clients, labels_per_client, rng)
    labels, clients = _assign(owners, num_clients, rng)

    assert owners.sum() == num_clients * labels_per_client
    assert (owners <= most).all()
    if owners.sum() >= (num_keyed > 0).sum():
        assert ((owners > 0) == (num_keyed > 0)).all()
    assert len(set(zip(labels.tolist(), clients.tolist(), strict=True))) == len(labels)
    assert np.bincount(clients, minlength=num_clients).tolist() == [labels_per_client] * num_clients
    assert np.bincount(labels, minlength=len(owners)).tolist() == owners.tolist()


def test_frequent_labels_have_more_owners():
    owners = _num_owners(np.array([1000, 500, 250, 250]), 20, 2, np.random.default_rng(0))

    assert owners.tolist() == [20, 10, 5, 5]


def test_with_one_label_per_image_it_is_the_shards_of_fedavg():
    """Ten labels, fifty clients, two each: as many images each, of two labels."""
    labels = np.eye(10, dtype=np.int8)[np.arange(5000) % 10]
    partition = split("pathological", labels, 50)

    assert partition.sizes.tolist() == [100] * 50
    assert all((labels[partition.of(k)].sum(axis=0) > 0).sum() == 2 for k in range(50))
    assert partition.notes["images_with_foreign_labels"] == 0


@pytest.mark.parametrize("seed", range(5))
def test_primary_sends_an_image_by_its_rarest_label_alone(seed):
    labels = random_labels(600, 8, seed)
    partition = split("pathological(labels_per_client=3)", labels, 6, seed)
    keys = rarest(labels)

    assert len(partition.rows) == 600
    owned = [{keys[row] for row in partition.of(k)} - {None} for k in range(6)]
    assert all(len(own) <= 3 for own in owned)
    foreign = sum(
        bool(set(np.flatnonzero(labels[row]).tolist()) - owned[k]) for k in range(6) for row in partition.of(k)
    )
    assert partition.notes["images_with_foreign_labels"] == foreign


@pytest.mark.parametrize("seed", range(5))
def test_images_are_spread_evenly_over_the_owners_of_their_label(seed):
    labels = random_labels(600, 8, seed)
    partition = split("pathological(labels_per_client=3)", labels, 6, seed)
    keys = np.array([8 if key is None else key for key in rarest(labels)])

    for key in range(9):
        held = [int((keys[partition.of(k)] == key).sum()) for k in range(6)]
        held = [n for n in held if n]
        assert max(held) - min(held) <= 1


def test_drop_keeps_exactly_the_images_that_one_client_covers():
    labels = random_labels(3000, 5, 1)
    partition = split("pathological(labels_per_client=2, spanning='drop')", labels, 4)
    owned = [set(np.flatnonzero(labels[partition.of(k)].any(axis=0)).tolist()) for k in range(4)]
    kept = set(partition.rows.tolist())

    assert all(len(own) == 2 for own in owned)
    for image, row in enumerate(labels):
        present = set(np.flatnonzero(row).tolist())
        assert (image in kept) == any(present <= own for own in owned)
    assert partition.notes["images_without_client_left_out"] == 3000 - len(kept)
    assert partition.notes["images_with_foreign_labels"] == 0


def test_images_of_labels_without_an_owner_go_by_another_label_or_are_counted():
    """One client, one label: the other is left out unless the first is beside it."""
    labels = [[1, 0]] * 6 + [[0, 1]] * 5 + [[1, 1]] * 4
    for seed in range(8):
        partition = split("pathological(labels_per_client=1)", labels, 1, seed)
        own = 0 if 0 in partition.rows else 1
        expected = [image for image, row in enumerate(labels) if row[own]]
        assert partition.rows.tolist() == expected
        assert partition.notes["labels_without_owner"] == 1
        left_out = 15 - len(expected)
        assert partition.notes["images_without_client_left_out"] == left_out
        assert len(partition.warnings) == 1
        assert f"{left_out} of 15 training images have only labels that no client owns" in partition.warnings[0]
        assert "labels_per_client" in partition.warnings[0]


@pytest.mark.parametrize("spanning", ["primary", "drop"])
def test_nothing_is_warned_of_where_every_label_has_an_owner_or_leaving_out_is_asked_for(spanning):
    labels = [[1, 0]] * 6 + [[0, 1]] * 5 + [[1, 1]] * 4
    clients = 2 if spanning == "primary" else 1

    partition = split(f"pathological(labels_per_client=1, spanning='{spanning}')", labels, clients)

    assert list(partition.warnings) == []
    assert (partition.notes["images_without_client_left_out"] == 0) == (spanning == "primary")


def test_images_without_a_label_are_spread_over_all_clients():
    labels = np.concatenate([np.eye(4, dtype=np.int8).repeat(10, axis=0), np.zeros((22, 4), np.int8)])
    partition = split("pathological(labels_per_client=1)", labels, 4)

    assert sorted(int((partition.of(k) >= 40).sum()) for k in range(4)) == [5, 5, 6, 6]


@pytest.mark.parametrize(
    ("text", "num_clients", "message"),
    [
        ("pathological(labels_per_client=4)", 4, "labels_per_client of pathological to be at most 3 for 4 clients"),
        ("pathological", 31, "num-clients to be few enough for the 30 training images"),
        ("pathological(labels_per_client=1, spanning='drop')", 3, "images it can deal by a label, got 3"),
        ("pathological(spanning='both')", 2, "spanning of partition pathological"),
    ],
)
def test_what_cannot_be_is_explained(text, num_clients, message):
    labels = np.eye(3, dtype=np.int8).repeat(10, axis=0)
    if "drop" in text:
        labels = np.ones((30, 3))
    with pytest.raises(InputError, match=message):
        split(text, labels, num_clients)


def test_a_drop_that_leaves_clients_empty_ends_with_an_error():
    """Five pairs of labels, five clients with two labels each: one draw in 945 matches all pairs."""
    labels = np.repeat(np.eye(5, dtype=np.int8), 2, axis=1)

    with pytest.raises(InputError, match=r"Expected num-clients .* got 5, of which \d stay empty after 10 draws"):
        split("pathological(labels_per_client=2, spanning='drop')", labels, 5)


def test_with_drop_labels_that_are_never_the_rarest_have_owners_too():
    labels = np.repeat([[1, 1, 0, 0], [0, 0, 1, 1]], 10, axis=0)
    partition = split("pathological(labels_per_client=2, spanning='drop')", labels, 2)

    assert partition.sizes.tolist() == [10, 10]
    assert partition.notes["labels_without_owner"] == 0
