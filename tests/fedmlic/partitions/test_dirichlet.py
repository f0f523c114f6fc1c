"""The Dirichlet partition against the plain rule, one image after another, and its other keys."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedmlic.dataset import Objects
from fedmlic.errors import InputError
from fedmlic.partition import Population
from fedmlic.partitioning.dealing import cardinalities, label_sets, positives
from fedmlic.partitions.dirichlet import _keys
from fedmlic.seeds import stream
from fedmlic.spec import build

states = hnp.arrays(np.int8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(-2, 1))


def random_labels(num_images, num_labels, seed=0):
    rng = np.random.default_rng(seed)
    labels = (rng.random((num_images, num_labels)) < np.linspace(0.02, 0.4, num_labels)).astype(np.int8)
    labels[rng.random(labels.shape) < 0.1] = -1
    return labels


def plainly(labels, num_clients, alpha, min_images, rng):
    """The rule of the page as loops, drawing the same numbers in the same order; no repair."""
    num_labels = labels.shape[1]
    frequency = [int((labels[:, c] == 1).sum()) for c in range(num_labels)]
    images_of = {}
    for image, row in enumerate(labels.tolist()):
        present = [c for c in range(num_labels) if row[c] == 1]
        key = min(present, key=lambda c: (frequency[c], c)) if present else num_labels
        images_of.setdefault(key, []).append(image)
    for _ in range(100):
        clients = [[] for _ in range(num_clients)]
        for key in sorted(images_of):
            edges = np.cumsum(rng.dirichlet([alpha] * num_clients))
            offset, images = rng.random(), images_of[key]
            for place, image in enumerate(rng.permutation(images).tolist()):
                point = (place + offset) / len(images) * edges[-1]
                clients[min(sum(edge <= point for edge in edges), num_clients - 1)].append(image)
        if min(map(len, clients)) >= min_images:
            return [sorted(rows) for rows in clients]
    raise AssertionError


@pytest.mark.parametrize(("alpha", "num_clients", "seed"), [(0.3, 5, 0), (0.3, 9, 1), (1.0, 20, 2), (0.1, 4, 3)])
def test_the_default_key_gives_exactly_the_clients_of_the_plain_rule(alpha, num_clients, seed):
    labels = random_labels(400, 6, seed)
    partition = build("partition", f"dirichlet(alpha={alpha}, min_images=4)")(
        Population(labels, np.full(400, -1)), num_clients, stream(seed, "partition")
    )

    expected = plainly(labels, num_clients, alpha, 4, stream(seed, "partition"))
    assert expected == [partition.of(client).tolist() for client in range(num_clients)]
    assert partition.notes["moved_images"] == 0


def keys_of(labels, key, objects=None, seed=0):
    return _keys(Population(labels, np.full(len(labels), -1), objects), key, np.random.default_rng(seed))


@given(states)
def test_the_first_key_is_the_first_present_column(labels):
    expected = [next((c for c, s in enumerate(row) if s == 1), labels.shape[1]) for row in labels.tolist()]

    assert expected == keys_of(labels, "first")[0].tolist()


@given(states, st.integers(0, 99))
def test_a_random_key_is_a_present_label_or_none(labels, seed):
    for row, key in zip(labels.tolist(), keys_of(labels, "random", seed=seed)[0].tolist(), strict=True):
        assert row[key] == 1 if 1 in row else key == labels.shape[1]


def test_a_random_key_is_uniform_among_the_present_labels():
    labels = np.tile(np.array([1, 0, 1, 1, -1], dtype=np.int8), (30_000, 1))
    counts = np.bincount(keys_of(labels, "random")[0], minlength=6)

    assert counts[[1, 4, 5]].tolist() == [0, 0, 0]
    assert np.abs(counts[[0, 2, 3]] - 10_000).max() < 4 * np.sqrt(30_000 * 2 / 9)


@given(states, st.data())
def test_the_largest_object_key_is_found_by_looking_at_every_object(labels, data):
    num_images, num_labels = labels.shape
    entries = st.tuples(st.integers(0, num_images - 1), st.integers(0, num_labels - 1), st.integers(1, 3))
    found = sorted(data.draw(st.lists(entries, max_size=20)), key=lambda entry: entry[0])
    row, label, area = (np.array([entry[i] for entry in found], dtype=np.int64) for i in range(3))
    box = np.zeros((len(found), 4), np.float32)
    keys, notes = keys_of(labels, "largest_object", Objects(row, label.astype(np.int16), box, area.astype(np.float32)))

    rarest = keys_of(labels, "rarest")[0]
    fell_back = 0
    for image in range(num_images):
        here = [(-a, c) for r, c, a in found if r == image and labels[image, c] == 1]
        assert keys[image] == (min(here)[1] if here else rarest[image])
        fell_back += not here and 1 in labels[image].tolist()
    assert notes == {"images_keyed_by_rarest": fell_back}


def test_the_largest_object_needs_objects():
    with pytest.raises(InputError, match="Expected the data set to have objects"):
        keys_of(random_labels(20, 3), "largest_object")


@given(states)
def test_counts_of_labels_are_those_of_a_loop(labels):
    rows = labels.tolist()

    assert [row.count(1) for row in rows] == cardinalities(labels).tolist()
    assert [list(column).count(1) for column in zip(*rows, strict=True)] == positives(labels).tolist()


@given(states)
def test_images_with_the_same_present_labels_share_a_set_and_others_do_not(labels):
    set_of_image, example = label_sets(labels)
    present = [tuple(np.flatnonzero(row == 1).tolist()) for row in labels]

    for image, number in enumerate(set_of_image.tolist()):
        assert present[image] == present[example[number]]
    assert len(set(present)) == len(example)


def test_the_numbers_of_label_sets_do_not_depend_on_the_order_of_the_images():
    labels = random_labels(200, 9)
    order = np.random.default_rng(1).permutation(200)

    assert label_sets(labels[order])[0].tolist() == label_sets(labels)[0][order].tolist()
