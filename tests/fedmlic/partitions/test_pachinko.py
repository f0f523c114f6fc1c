"""Pachinko allocation against one client, one image at a time, and its errors."""

import numpy as np
import pytest

from fedmlic.errors import InputError
from fedmlic.partition import Population
from fedmlic.partitions.pachinko import _draw_shares, _keys, _take, _Tree
from fedmlic.seeds import stream
from fedmlic.spec import build

PARENTS = ("animal", "vehicle", "animal", "vehicle", "animal")


def split(text, labels, num_clients, parents=PARENTS, seed=0):
    labels = np.asarray(labels, dtype=np.int8)
    population = Population(labels, np.full(len(labels), -1), parents=parents)
    partition = build("partition", text)(population, num_clients, stream(seed, "partition"))
    partition.check(len(labels))
    return partition


def one_label_each(num_images, num_labels=5):
    return np.eye(num_labels, dtype=np.int8)[np.arange(num_images) % num_labels]


def one_by_one(coarse, fine, sizes, left, tree, rng):
    """The rule of the page: a coarse key, then a fine one within it, from what is left."""
    left, taken = left.tolist(), np.zeros(fine.shape, dtype=int)
    children = [np.flatnonzero(tree.parent == c).tolist() for c in range(len(tree.first))]
    for client, size in enumerate(sizes):
        for _ in range(size):
            alive = [c for c in range(len(children)) if any(left[key] for key in children[c])]
            weights = np.array([coarse[client, c] for c in alive])
            c = alive[rng.choice(len(alive), p=weights / weights.sum())]
            keys = [key for key in children[c] if left[key]]
            weights = np.array([fine[client, key] for key in keys])
            key = keys[rng.choice(len(keys), p=weights / weights.sum())]
            taken[client, key] += 1
            left[key] -= 1
    return taken


def test_what_clients_take_has_the_distribution_of_one_by_one():
    """Keys run out in the middle, which is where a wrong shortcut would show."""
    tree = _Tree(np.array([0, 0, 1, 1]), np.array([0, 2]))
    coarse = np.array([[0.8, 0.2], [0.6, 0.4], [0.5, 0.5]])
    fine = np.array([[0.9, 0.1, 0.5, 0.5], [0.5, 0.5, 0.7, 0.3], [0.2, 0.8, 0.5, 0.5]])
    sizes, left = np.array([4, 4, 4]), np.array([3, 2, 3, 4])
    rng, repeats = np.random.default_rng(0), 1200
    fast = np.array([_take((coarse, fine), sizes, left, tree, rng) for _ in range(repeats)])
    slow = np.array([one_by_one(coarse, fine, sizes, left, tree, rng) for _ in range(repeats)])

    assert (fast.sum(axis=1) == left).all()
    assert (fast.sum(axis=2) == sizes).all()
    for moment in (1, 2):
        gap = np.abs((fast**moment).mean(axis=0) - (slow**moment).mean(axis=0))
        spread = np.sqrt(((fast**moment).var(axis=0) + (slow**moment).var(axis=0)) / repeats)
        assert (gap <= 4.5 * spread + 1e-12).all()
    together = [(taken[:, :, 0] * taken[:, :, 2]).mean(axis=0) for taken in (fast, slow)]
    assert np.abs(together[0] - together[1]).max() < 0.25


def test_all_images_are_dealt_to_clients_of_equal_size():
    partition = split("pachinko", one_label_each(103), 10)

    assert sorted(partition.sizes.tolist()) == [10] * 7 + [11] * 3


def test_labels_are_numbered_along_the_tree_and_images_without_one_come_last():
    labels = np.concatenate([one_label_each(10), np.zeros((2, 5), np.int8)])
    keys, tree = _keys(Population(labels, np.full(12, -1), parents=PARENTS))

    assert tree.parent.tolist() == [0, 0, 0, 1, 1, 2]
    assert keys.tolist() == [0, 3, 1, 4, 2] * 2 + [5, 5]


def test_a_label_without_a_parent_is_a_coarse_label_of_its_own():
    _, tree = _keys(Population(one_label_each(10), np.full(10, -1), parents=("", "a", "", "a", "a")))

    assert np.bincount(tree.parent).tolist() == [1, 1, 3]


def test_the_key_of_an_image_is_its_rarest_label():
    labels = [[1, 1, 0, 0, 0]] + [[1, 0, 0, 0, 0]] * 3
    keys, tree = _keys(Population(np.array(labels, np.int8), np.full(4, -1), parents=PARENTS))

    assert tree.parent.tolist() == [0, 1]
    assert keys.tolist() == [1, 0, 0, 0]


def test_a_small_alpha_separates_coarse_labels_and_a_large_beta_mixes_within():
    """The first clients find all keys, so each takes one coarse label and its fine ones alike."""
    labels = one_label_each(50_000)
    partition = split("pachinko(alpha=1e-6, beta=1e6)", labels, 500)
    of_label = np.stack([labels[partition.of(k)].sum(axis=0) for k in range(100)])
    animals = of_label[:, [0, 2, 4]].sum(axis=1)

    assert set(animals.tolist()) <= {0, 100}
    assert 0 < (animals == 100).sum() < 100
    thirds = of_label[animals == 100][:, [0, 2, 4]].mean(axis=0)
    assert np.abs(thirds - 100 / 3).max() < 4 * np.sqrt(100 * 2 / 9 / (animals == 100).sum())


def test_shares_have_the_means_and_second_moments_of_the_two_dirichlets():
    tree = _Tree(np.array([0, 0, 0, 1, 1]), np.array([0, 3]))
    coarse, fine = _draw_shares(tree, 20_000, 0.5, 2.0, np.random.default_rng(0))

    assert np.allclose(coarse.sum(axis=1), 1)
    assert np.allclose(np.add.reduceat(fine, [0, 3], axis=1), 1)
    assert (coarse**2).sum(axis=1).mean() == pytest.approx(1.5 / 2, rel=0.02)
    assert (fine[:, :3] ** 2).sum(axis=1).mean() == pytest.approx(3 / 7, rel=0.02)


@pytest.mark.parametrize("alpha", [1e-9, 1e-300])
def test_a_vanishing_alpha_ends(alpha):
    partition = split(f"pachinko(alpha={alpha}, beta={alpha})", one_label_each(1000), 50)

    assert partition.sizes.tolist() == [20] * 50


@pytest.mark.parametrize("parents", [(), ("animal",)])
def test_without_a_hierarchy_it_is_a_clear_error(parents):
    with pytest.raises(InputError, match="Expected the data set to have a coarser label per label for partition pach"):
        split("pachinko", one_label_each(20), 2, parents)
