"""Pairs of incompletely labelled images, the contrastive loss and the queue, against plain loops."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import jaccard_score

from fedmlic.contrast import Queue, contrastive_loss, label_overlap, pairs_of
from fedmlic.experiment import Experiment
from fedmlic.labels import ABSENT, PRESENT, UNCERTAIN, UNKNOWN
from fedmlic.method import Local

INDICES = ["jaccard", "overlap", "dice", "cosine"]


def labels_of(*rows):
    return torch.tensor(rows, dtype=torch.int8)


def by_sets(first, second, index):
    """The overlap of two images, and whether it can be judged, with sets."""
    known = [k for k in range(len(first)) if first[k] >= ABSENT and second[k] >= ABSENT]
    here, there = ({k for k in known if labels[k] == PRESENT} for labels in (first, second))
    shared = len(here & there)
    size = {
        "jaccard": len(here | there),
        "overlap": min(len(here), len(there)),
        "dice": (len(here) + len(there)) / 2,
        "cosine": math.sqrt(len(here) * len(there)),
    }[index]
    return (shared / size if shared else 0.0), bool(here | there)


STATES = st.lists(st.sampled_from([PRESENT, ABSENT, UNKNOWN, UNCERTAIN]), min_size=5, max_size=5)


@pytest.mark.parametrize("index", INDICES)
@given(first=st.lists(STATES, min_size=1, max_size=4), second=st.lists(STATES, min_size=1, max_size=4))
def test_the_overlap_is_that_of_sets_of_labels_known_in_both(index, first, second):
    found, judged = label_overlap(labels_of(*first), labels_of(*second), index)

    for i, here in enumerate(first):
        for j, there in enumerate(second):
            value, known = by_sets(here, there, index)
            assert float(found[i, j]) == pytest.approx(value, abs=1e-15)
            assert bool(judged[i, j]) == known
            assert 0 <= float(found[i, j]) <= 1


def test_jaccard_of_complete_labels_is_that_of_scikit_learn():
    labels = torch.randint(0, 2, (6, 9), generator=torch.Generator().manual_seed(0)).to(torch.int8)

    found, _ = label_overlap(labels, labels)

    for i in range(6):
        for j in range(6):
            assert float(found[i, j]) == pytest.approx(jaccard_score(labels[i], labels[j], zero_division=0))


@pytest.mark.parametrize("index", INDICES)
def test_the_same_labels_reach_a_threshold_of_one(index):
    labels = torch.ones(2, 1628, dtype=torch.int8)
    labels[:, 7:] = 0

    assert pairs_of(labels, None, index, 1.0).positive.tolist() == [[False, True], [True, False]]


def test_pairs_by_hand():
    anchors = labels_of([1, 1, 0], [1, 0, 0], [0, 0, 1], [-1, -1, -1], [0, 0, 0], [-1, 0, -1])
    queue = labels_of([1, 1, 0], [-1, -1, 1])

    pairs = pairs_of(anchors, queue, "jaccard", 0.5)

    y, n = True, False
    assert pairs.positive.tolist() == [
        [n, y, n, n, n, n, y, n],
        [y, n, n, n, n, n, y, n],
        [n, n, n, n, n, n, n, y],
        [n] * 8,
        [n] * 8,
        [n] * 8,
    ]
    assert pairs.counted.tolist() == [
        [n, y, y, n, y, y, y, y],  # the unknown image and itself take no part
        [y, n, y, n, y, n, y, y],  # of [-1, 0, -1] it only knows that both lack the second label
        [y, y, n, n, y, n, y, y],
        [n] * 8,
        [y, y, y, n, n, n, y, y],  # two images without any label: nothing is known to be shared or to differ
        [y, n, n, n, n, n, y, n],
    ]
    assert pairs.anchors == 3


def plain_loss(similarity, positive, counted):
    total, judged = 0.0, 0
    for row, good, among in zip(similarity.tolist(), positive.tolist(), counted.tolist(), strict=True):
        if not any(good):
            continue
        log_sum = math.log(sum(math.exp(s) for s, take in zip(row, among, strict=True) if take))
        total -= sum(s - log_sum for s, take in zip(row, good, strict=True) if take) / sum(good)
        judged += 1
    return total / max(judged, 1)


def test_the_loss_is_that_of_a_plain_loop_and_skipped_anchors_send_nothing_back():
    rng = torch.Generator().manual_seed(0)
    similarity = torch.randn(7, 9, generator=rng, dtype=torch.float64).requires_grad_()
    counted = torch.rand(7, 9, generator=rng) < 0.7
    positive = counted & (torch.rand(7, 9, generator=rng) < 0.4)
    positive[2] = False
    counted[3] = positive[3] = False

    loss = contrastive_loss(similarity, positive, counted)
    loss.backward()

    assert loss.item() == pytest.approx(plain_loss(similarity, positive, counted))
    assert (similarity.grad[[2, 3]] == 0).all()
    assert (similarity.grad[~counted] == 0).all()
    assert (similarity.grad[positive] != 0).any()


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_without_any_positive_key_the_loss_is_zero_and_so_is_its_gradient(scale):
    similarity = (scale * torch.randn(3, 4, generator=torch.Generator().manual_seed(0))).requires_grad_()
    nothing = torch.zeros(3, 4, dtype=torch.bool)

    for counted in (nothing, ~nothing):
        loss = contrastive_loss(similarity, nothing, counted)
        (gradient,) = torch.autograd.grad(loss, similarity)
        assert loss.item() == 0
        assert (gradient == 0).all()


def test_a_queue_keeps_the_last_keys_across_turns():
    local = Local(Experiment(), 1, 0, torch.device("cpu"), lambda: None)
    keys = torch.arange(10.0)
    labels = torch.arange(10).to(torch.int8)[:, None]
    queue = Queue(local, 4)
    assert queue.keys == ()
    assert queue.labels is None

    queue.push(labels[:3], (keys[:3], keys[:3, None]))
    later = Queue(local, 4)
    later.push(labels[3:5], (keys[3:5], keys[3:5, None]))

    assert later.keys[0].tolist() == [1, 2, 3, 4]
    assert later.keys[1].tolist() == [[1], [2], [3], [4]]
    assert later.labels.tolist() == [[1], [2], [3], [4]]
    assert set(local.memory) == {"queue/0", "queue/1", "queue/labels"}
    assert queue.keys[0].tolist() == [0, 1, 2]
    later.push(labels, (keys, keys[:, None]))
    assert later.keys[0].tolist() == [6, 7, 8, 9]


def test_a_queue_of_no_keys_remembers_nothing():
    local = Local(Experiment(), 1, 0, torch.device("cpu"), lambda: None)

    Queue(local, 0).push(torch.zeros(2, 3, dtype=torch.int8), (torch.zeros(2),))

    assert local.memory == {}
