import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedmlic.counts import Counts
from fedmlic.errors import InputError
from fedmlic.labels import ABSENT, PRESENT, UNCERTAIN, UNKNOWN
from fedmlic.metrics import evaluate

NUM_LABELS = 3
STATES = st.sampled_from([PRESENT, ABSENT, UNKNOWN, UNCERTAIN])


@st.composite
def clients(draw, max_clients=4):
    """Scores and labels of several clients, some without an image."""
    parts = []
    for _ in range(draw(st.integers(1, max_clients))):
        shape = (draw(st.integers(0, 6)), NUM_LABELS)
        scores = draw(hnp.arrays(np.float64, shape, elements=st.sampled_from([0.0, 0.2, 0.5, 0.8, 1.0])))
        parts.append((scores, draw(hnp.arrays(np.int8, shape, elements=STATES))))
    return parts


def assert_equal(expected, actual):
    for name, array in expected.to_arrays().items():
        assert actual.to_arrays()[name].dtype == np.int64
        np.testing.assert_array_equal(actual.to_arrays()[name], array)


@settings(deadline=None)
@given(clients(1), st.sampled_from([0.0, 0.5, 0.6, 1.0]))
def test_counts_are_scikit_learns_confusion_matrices(parts, threshold):
    scores, labels = parts[0]

    counts = Counts.of(scores, labels, threshold)

    for label in range(NUM_LABELS):
        known = labels[:, label] >= 0
        if not known.any():
            expected = [0, 0, 0, 0]
        else:
            predicted = scores[known, label] >= threshold
            expected = sklearn.metrics.confusion_matrix(labels[known, label], predicted, labels=[0, 1]).ravel().tolist()
        assert [int(a[label]) for a in (counts.tn, counts.fp, counts.fn, counts.tp)] == expected


@settings(deadline=None)
@given(clients())
def test_adding_clients_is_counting_their_pooled_images(parts):
    pooled_scores, pooled_labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    merged = sum((Counts.of(*part) for part in parts), start=Counts.zero(NUM_LABELS))

    assert_equal(Counts.of(pooled_scores, pooled_labels), merged)
    exact = evaluate(pooled_scores, pooled_labels).flat()
    actual = merged.metrics()
    assert set(actual) >= {"CP", "CR", "CF1", "OP", "OR", "OF1", "macro-F1", "hamming", "num-evaluable", "num-known"}
    for name, value in actual.items():
        np.testing.assert_equal(value, exact[name])


COUNTS = st.builds(Counts, *(hnp.arrays(np.int64, NUM_LABELS, elements=st.integers(0, 2**40)) for _ in range(4)))


@settings(deadline=None)
@given(COUNTS, COUNTS, COUNTS)
def test_addition_is_associative_commutative_and_has_a_zero(first, second, third):
    assert_equal((first + second) + third, first + (second + third))
    assert_equal(first + second, second + first)
    assert_equal(first, first + Counts.zero(NUM_LABELS))


@settings(deadline=None)
@given(COUNTS, COUNTS)
def test_arrays_travel_and_add_entry_by_entry(first, second):
    assert_equal(first, Counts.from_arrays(first.to_arrays()))
    added = {name: array + second.to_arrays()[name] for name, array in first.to_arrays().items()}
    assert_equal(first + second, Counts.from_arrays(added))


def test_the_mean_of_client_means_is_something_else():
    """By hand: one client finds its 1 of 1, the other misses 3 of 3: recall 1/4, not 1/2."""
    labels = [np.array([[1], [0]], np.int8), np.array([[1], [1], [1], [0]], np.int8)]
    found = Counts.of(np.array([[0.9], [0.1]]), labels[0])
    missed = Counts.of(np.full((4, 1), 0.1), labels[1])

    assert [found.metrics()["OR"], missed.metrics()["OR"]] == [1.0, 0.0]
    assert (found + missed).metrics()["OR"] == 0.25


def test_other_labels_cannot_be_added():
    with pytest.raises(InputError, match=r"\[3\] and \[1\]"):
        _ = Counts.zero(3) + Counts.zero(1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tp": np.zeros(2, np.int32)}, "tp to hold int64"),
        ({"fn": np.array([0, -1])}, "fn to hold int64 counts of 0 or more"),
        ({"fp": np.zeros(3, np.int64)}, "fp to hold"),
        ({"tn": np.zeros((2, 1), np.int64)}, "tn to hold"),
        ({"more": np.zeros(2, np.int64)}, "more"),
    ],
)
def test_foreign_arrays_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        Counts.from_arrays({**Counts.zero(2).to_arrays(), **change})


def test_bad_threshold_is_refused():
    with pytest.raises(InputError, match=r"threshold to be in \[0, 1\], got 1.5"):
        Counts.of(np.zeros((1, 1)), np.zeros((1, 1), np.int8), 1.5)
