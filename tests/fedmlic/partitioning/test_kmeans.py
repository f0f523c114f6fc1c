"""k-means against scikit-learn, and against what a fixed point must satisfy."""

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from fedmlic.partitioning import kmeans
from fedmlic.partitioning.kmeans import cluster


def blobs(num_images=600, seed=0):
    """Four groups of images, each with three labels of its own that are nearly always there."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 4, num_images)
    own = np.repeat(np.eye(4), 3, axis=1)[group]
    return (rng.random((num_images, 12)) < np.where(own == 1, 0.95, 0.03)).astype(np.int8), group


@pytest.mark.parametrize("seed", range(5))
def test_a_cost_near_that_of_scikit_learn(seed):
    labels, _ = blobs(seed=seed)

    def cost(assigned):
        return sum(
            ((labels[assigned == g] - labels[assigned == g].mean(axis=0)) ** 2).sum() for g in set(assigned.tolist())
        )

    theirs = KMeans(4, n_init=10, random_state=0).fit(labels.astype(float)).labels_
    costs = [cost(cluster(labels, 4, np.random.default_rng([seed, s]))) for s in range(5)]

    assert min(costs) <= 1.01 * cost(theirs)


def test_clear_groups_are_found():
    labels, group = blobs()
    scores = [adjusted_rand_score(group, cluster(labels, 4, np.random.default_rng(s))) for s in range(8)]

    assert np.median(scores) > 0.9


def test_every_image_is_nearest_to_the_mean_of_its_own_cluster():
    labels, _ = blobs(300, 3)
    assigned = cluster(labels, 5, np.random.default_rng(0))
    means = {g: labels[assigned == g].mean(axis=0) for g in set(assigned.tolist())}

    for row, own in zip(labels, assigned.tolist(), strict=True):
        distances = {g: ((row - mean) ** 2).sum() for g, mean in means.items()}
        assert distances[own] <= min(distances.values()) + 1e-7


def test_images_with_equal_labels_share_a_cluster_and_states_that_are_not_present_count_alike():
    labels = np.array([[1, 0], [1, -1], [1, -2], [0, 1], [-1, 1]] * 4, dtype=np.int8)
    assigned = cluster(labels, 2, np.random.default_rng(0)).reshape(4, 5)

    assert (assigned == assigned[0]).all()
    assert len(set(assigned[0, :3].tolist())) == 1
    assert assigned[0, 0] != assigned[0, 3] == assigned[0, 4]


def test_more_clusters_than_different_images_leave_some_empty():
    labels = np.array([[1, 0], [0, 1]] * 5, dtype=np.int8)

    assert len(set(cluster(labels, 7, np.random.default_rng(0)).tolist())) == 2


def test_a_sample_stands_for_all_images(monkeypatch):
    monkeypatch.setattr(kmeans, "SAMPLE", 100)
    labels, group = blobs(2000)
    scores = [adjusted_rand_score(group, cluster(labels, 4, np.random.default_rng(s))) for s in range(8)]

    assert np.median(scores) > 0.9
