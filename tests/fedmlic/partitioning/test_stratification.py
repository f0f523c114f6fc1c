"""Iterative stratification against a pass image by image, and the partitions that are filled by it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy

from fedmlic.partition import Population
from fedmlic.partitioning.stratification import Affinity, even_sizes, pick, stratify
from fedmlic.partitions.marginal_matching import _draw_distributions, _wishes
from fedmlic.seeds import stream
from fedmlic.spec import build
from fedmlic.statistics import tally


def topical_labels(num_images, num_labels, seed=0):
    """Images of 12 topics, each with labels of its own: labels that occur together more often than by chance."""
    rng = np.random.default_rng(seed)
    topics = rng.gamma(0.3, 1, (12, num_labels))
    rates = 0.5 * np.arange(1, num_labels + 1) ** -0.8 * topics / topics.mean(axis=0)
    return (rng.random((num_images, num_labels)) < np.minimum(0.9, rates[rng.integers(0, 12, num_images)])).astype(
        np.int8
    )


def split(text, labels, num_clients, seed=0):
    population = Population(labels, np.full(len(labels), -1))
    return build("partition", text)(population, num_clients, stream(seed, "partition"))


# Picking clients for one label


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.tuples(st.integers(-8, 8), st.integers(0, 6)), min_size=1, max_size=8),
    st.sampled_from([1, 2, 4]),
    st.data(),
)
def test_clients_are_picked_as_a_pass_image_by_image_picks_them(clients, denominator, data):
    wishes = [numerator / denominator for numerator, _ in clients]
    room = [size for _, size in clients]
    num_images = data.draw(st.integers(0, sum(room)))
    left_wishes, left_room = list(wishes), list(room)
    for _ in range(num_images):
        best = max((k for k in range(len(room)) if left_room[k]), key=lambda k: (left_wishes[k], left_room[k]))
        left_wishes[best] -= 1
        left_room[best] -= 1
    rng = np.random.default_rng(0)
    picked = pick(np.array(wishes, dtype=np.float32), np.array(room), num_images, rng)
    counts = np.bincount(picked, minlength=len(room))

    # Which of two clients with equal wish and room is picked is random; what is left is not.
    after = sorted(zip((np.array(wishes) - counts).tolist(), (np.array(room) - counts).tolist(), strict=True))
    assert after == sorted(zip(left_wishes, left_room, strict=True))
    assert counts.sum() == num_images


def test_ties_are_broken_at_random():
    picked = [pick(np.zeros(6, np.float32), np.ones(6, np.int64), 2, np.random.default_rng(s)) for s in range(600)]
    counts = np.bincount(np.concatenate(picked), minlength=6)

    assert np.abs(counts - 200).max() < 4 * np.sqrt(600 * 2 / 9)


# All labels


def image_by_image(labels, wanted, sizes, rng):
    """Sechidis et al. 2011, Algorithm 1, where full clients take no more."""
    wanted, room = wanted.astype(np.float64).copy(), sizes.copy()
    client_of_row = np.full(len(labels), -1)
    while True:
        left = client_of_row < 0
        counts = labels[left].sum(axis=0)
        if not counts.any():
            break
        label = min((c for c in range(labels.shape[1]) if counts[c]), key=lambda c: counts[c])
        for image in rng.permutation(np.flatnonzero(left & (labels[:, label] == 1))):
            order = rng.permutation(np.flatnonzero(room))
            best = max(order, key=lambda k: (wanted[label, k], room[k]))
            client_of_row[image] = best
            wanted[labels[image] == 1, best] -= 1
            room[best] -= 1
    client_of_row[client_of_row < 0] = np.repeat(np.arange(len(sizes)), room)
    return client_of_row


def misses(labels, client_of_row, wanted):
    achieved = np.stack([labels[client_of_row == k].sum(axis=0) for k in range(wanted.shape[1])], axis=1)
    return np.abs(achieved - wanted).sum() / wanted.sum()


@pytest.mark.parametrize("seed", range(4))
def test_positives_come_as_close_to_the_wishes_as_image_by_image(seed):
    labels = topical_labels(800, 8, seed)
    sizes = even_sizes(800, 6)
    rng = np.random.default_rng(seed)
    wanted = _wishes(
        _draw_distributions(2.0 * np.ones(8), 6, rng), labels.sum(axis=0, dtype=np.int64), sizes, len(labels)
    )
    found = misses(labels, stratify(labels, wanted, sizes, np.random.default_rng(1)), wanted)
    slowly = misses(labels, image_by_image(labels, wanted, sizes, np.random.default_rng(2)), wanted)
    at_random = misses(labels, rng.permutation(np.repeat(np.arange(6), sizes)), wanted)

    assert abs(found - slowly) < 0.05
    assert found < 0.6 * at_random


def test_even_wishes_are_met_almost_exactly():
    """The use the algorithm was made for: folds with the label rates of the whole."""
    labels = topical_labels(3000, 20)
    sizes = even_sizes(3000, 10)
    wanted = np.tile(labels.sum(axis=0)[:, None] / 10, (1, 10)).astype(np.float32)
    client_of_row = stratify(labels, wanted, sizes, np.random.default_rng(0))

    achieved = np.stack([labels[client_of_row == k].sum(axis=0) for k in range(10)], axis=1)
    assert np.abs(achieved - wanted).max() <= 2
    assert np.bincount(client_of_row).tolist() == sizes.tolist()


@given(st.integers(0, 30), st.integers(1, 9))
def test_even_sizes_add_up_and_differ_by_one(num_images, num_clients):
    sizes = even_sizes(num_images, num_clients)

    assert sizes.sum() == num_images
    assert sizes.max() - sizes.min() <= 1


def test_images_go_where_their_group_is_preferred():
    labels = np.ones((400, 1), dtype=np.int8)
    groups = np.arange(400) % 2
    sizes = np.array([200, 200])
    preference = np.array([[0.9, 0.1], [0.1, 0.9]])
    client_of_row = stratify(
        labels, np.full((1, 2), 200, np.float32), sizes, np.random.default_rng(0), Affinity(groups, preference)
    )
    share = (client_of_row[groups == 0] == 0).mean()

    assert abs(share - 0.9) < 4 * np.sqrt(0.09 / 200)


def test_a_preference_for_nothing_that_is_there_does_no_harm():
    labels = np.ones((10, 1), dtype=np.int8)
    preference = np.array([[1.0, 0.0], [1.0, 0.0]])
    client_of_row = stratify(
        labels,
        np.full((1, 2), 5, np.float32),
        np.array([5, 5]),
        np.random.default_rng(0),
        Affinity(np.ones(10, dtype=np.int64), preference),
    )

    assert np.bincount(client_of_row).tolist() == [5, 5]


# Marginal matching


def test_drawn_distributions_have_the_moments_of_the_dirichlet():
    concentration = np.array([0.05, 0.5, 2.0, 0.0])
    draws = _draw_distributions(concentration, 40_000, np.random.default_rng(0)).astype(np.float64)
    mean = concentration / concentration.sum()
    variance = mean * (1 - mean) / (concentration.sum() + 1)

    assert np.allclose(draws.sum(axis=0), 1, atol=1e-5)
    assert np.abs(draws.mean(axis=1) - mean).max() < 4 * np.sqrt(variance.max() / 40_000)
    assert np.allclose(draws.var(axis=1), variance, rtol=0.06, atol=1e-9)


def test_a_tiny_concentration_still_draws_a_distribution():
    draws = _draw_distributions(np.full(5, 1e-12), 500, np.random.default_rng(0))

    assert np.allclose(draws.sum(axis=0), 1)
    assert set(draws.argmax(axis=0).tolist()) == set(range(5))


def test_a_vanishing_alpha_makes_every_client_want_one_label():
    labels = np.eye(4, dtype=np.int8).repeat(50, axis=0)
    partition = split("marginal_matching(alpha=5e-324)", labels, 40)

    # One label of four: sqrt(1 - sqrt(1 / 4)).
    assert partition.notes["mean_hellinger_to_all"] == pytest.approx(np.sqrt(0.5), abs=0.02)


@settings(deadline=None)
@given(st.integers(0, 99), st.sampled_from([0.01, 0.3, 3.0]))
def test_wishes_ask_for_all_positives_there_are(seed, scale):
    labels = topical_labels(300, 6, seed)
    num_positives = labels.sum(axis=0, dtype=np.int64)
    sizes = even_sizes(300, 7)
    wanted = _wishes(_draw_distributions(np.full(6, scale), 7, np.random.default_rng(seed)), num_positives, sizes, 300)

    assert np.allclose(wanted.sum(axis=1), num_positives, rtol=1e-4, atol=1e-4)
    assert (wanted >= 0).all()


def test_the_notes_are_the_mean_distances_between_wanted_and_achieved(monkeypatch):
    import fedmlic.partitions.marginal_matching as module

    seen = {}

    def remember(labels, wanted, sizes, rng):
        seen["wanted"] = wanted
        return stratify(labels, wanted, sizes, rng)

    monkeypatch.setattr(module, "stratify", remember)
    labels = topical_labels(500, 6)
    partition = module.marginal_matching(alpha=0.3)(Population(labels, np.full(500, -1)), 8, stream(0, "partition"))
    hellinger, divergence, to_all = [], [], []
    everyone = labels.sum(axis=0) / labels.sum()
    for client in range(8):
        got, asked = labels[partition.of(client)].sum(axis=0), seen["wanted"][:, client].astype(float)
        p, q = got / got.sum(), asked / asked.sum()
        hellinger.append(np.sqrt(((np.sqrt(p) - np.sqrt(q)) ** 2).sum() / 2))
        to_all.append(np.sqrt(((np.sqrt(everyone) - np.sqrt(q)) ** 2).sum() / 2))
        divergence.append(entropy(got + 0.5, asked + 0.5, base=2))  # SciPy divides by the sums

    assert partition.notes["mean_hellinger"] == pytest.approx(np.mean(hellinger), abs=1e-3)
    assert partition.notes["mean_kl_bits"] == pytest.approx(np.mean(divergence), abs=1e-3)
    assert partition.notes["mean_hellinger_to_all"] == pytest.approx(np.mean(to_all), abs=1e-3)
    assert partition.notes["clients_without_positives"] == 0


@pytest.mark.parametrize("alpha", [0.1, 0.3, 1.0, 10.0])
def test_clients_are_closer_to_their_wishes_than_all_images_are(alpha):
    notes = split(f"marginal_matching(alpha={alpha})", topical_labels(5000, 20), 20).notes

    assert notes["mean_hellinger"] < 0.75 * notes["mean_hellinger_to_all"]


def test_a_larger_alpha_means_less_skew_at_equal_sizes():
    labels = topical_labels(4000, 12)
    everyone, skew = labels.sum(axis=0), []
    for alpha in (0.03, 0.3, 3.0, 300.0):
        partition = split(f"marginal_matching(alpha={alpha})", labels, 10)
        assert partition.sizes.tolist() == [400] * 10
        skew.append(np.mean([jensenshannon(labels[partition.of(k)].sum(axis=0), everyone, base=2) for k in range(10)]))

    assert skew == sorted(skew, reverse=True)
    assert skew[-1] < 0.05
    assert skew[0] > 0.3


# Co-occurrence clusters


def skew_of(text, labels, num_clients):
    """Mean label skew and mean co-occurrence skew of a partition."""
    partition = split(text, labels, num_clients)
    truth = labels[partition.rows]
    found = tally(truth, truth, partition.client_ptr, np.zeros(num_clients, np.int64))
    everyone = labels.sum(axis=0)
    label_skew = np.mean([jensenshannon(row, everyone, base=2) for row in found.true_positives])
    return label_skew, found.phi_distance.mean(), partition


def test_kept_marginals_leave_co_occurrence_skew_alone():
    labels = topical_labels(20_000, 20)
    iid, plain, kept = (
        skew_of(text, labels, 20)
        for text in ("iid", "cooccurrence_clusters(keep_marginals=False)", "cooccurrence_clusters")
    )

    assert kept[1] > 1.5 * iid[1]  # labels keep other company than by chance
    assert kept[0] < plain[0] / 3  # at a fraction of the label skew of whole clusters
    assert kept[2].sizes.tolist() == [1000] * 20
    assert plain[0] > 4 * iid[0]


def test_without_kept_marginals_clusters_are_dealt_by_dirichlet():
    """Three label vectors, three clusters: at a large alpha each is spread evenly."""
    labels = np.repeat(np.array([[1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]], dtype=np.int8), 100, axis=0)
    partition = split("cooccurrence_clusters(num_clusters=3, alpha=1e9, keep_marginals=False)", labels, 4)

    assert partition.notes["clusters_used"] == 3
    for client in range(4):
        assert np.abs(np.bincount(partition.of(client) // 100, minlength=3) - 25).max() <= 1
