import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import fedmlic.histograms
from fedmlic.counts import Counts
from fedmlic.errors import InputError
from fedmlic.histograms import ScoreHistograms, bin_edges
from fedmlic.labels import ABSENT, PRESENT, UNCERTAIN, UNKNOWN
from fedmlic.metrics import average_precision, average_precisions, evaluate
from fedmlic.seeds import stream

NUM_LABELS = 3
SCORES = st.sampled_from([0.0, 1e-6, 0.1, 0.5, 0.75, 1 - 1e-7, 1.0]) | st.floats(0, 1, width=32)
STATES = st.sampled_from([PRESENT, ABSENT, UNKNOWN, UNCERTAIN])
NUM_BINS = st.sampled_from([2, 4, 10, 1000])
ROUNDING = 1e-12


@st.composite
def clients(draw, max_clients=4):
    """Scores and labels of several clients, some without an image."""
    parts = []
    for _ in range(draw(st.integers(1, max_clients))):
        shape = (draw(st.integers(0, 8)), NUM_LABELS)
        scores = draw(hnp.arrays(np.float64, shape, elements=SCORES))
        parts.append((scores, draw(hnp.arrays(np.int8, shape, elements=STATES))))
    return parts


def pool(parts):
    return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))


def noisy_scenes(num_images, num_labels=6):
    rng = stream(0, "test/histograms")
    labels = rng.choice(np.array([1, 0, -1], np.int8), (num_images, num_labels), p=[0.1, 0.7, 0.2])
    logits = rng.normal(-2, 1.2, labels.shape) + 1.5 * (labels == 1)
    return 1 / (1 + np.exp(-logits)), labels


def assert_equal(expected, actual):
    for name, array in expected.to_arrays().items():
        assert actual.to_arrays()[name].dtype == np.int64
        np.testing.assert_array_equal(actual.to_arrays()[name], array)


# --- bins ---


@pytest.mark.parametrize("num_bins", [2, 4, 10, 1000, 100_000])
def test_edges_rise_mirror_each_other_and_hold_one_half(num_bins):
    edges = bin_edges(num_bins)

    assert len(edges) == num_bins - 1
    assert (np.diff(edges) > 0).all()
    assert edges[num_bins // 2 - 1] == 0.5
    np.testing.assert_allclose(edges + edges[::-1], 1.0, rtol=0, atol=2.0**-39)
    assert (edges * 2.0**40 == np.round(edges * 2.0**40)).all()


@settings(deadline=None)
@given(clients(1), NUM_BINS)
def test_bins_are_a_plain_loop(parts, num_bins):
    scores, labels = parts[0]
    edges = bin_edges(num_bins)
    expected = {state: np.zeros((NUM_LABELS, num_bins), np.int64) for state in (PRESENT, ABSENT)}
    for image, label in np.ndindex(*labels.shape):
        if labels[image, label] in expected:
            expected[labels[image, label]][label, sum(edge <= scores[image, label] for edge in edges)] += 1

    assert_equal(ScoreHistograms(expected[PRESENT], expected[ABSENT]), ScoreHistograms.of(scores, labels, num_bins))


@settings(deadline=None)
@given(clients(1), NUM_BINS)
def test_upper_half_of_the_bins_is_what_counts_predict(parts, num_bins):
    histograms, counts = ScoreHistograms.of(*parts[0], num_bins), Counts.of(*parts[0], 0.5)

    np.testing.assert_array_equal(counts.tp, histograms.present[:, num_bins // 2 :].sum(axis=1))
    np.testing.assert_array_equal(counts.fp, histograms.absent[:, num_bins // 2 :].sum(axis=1))
    np.testing.assert_array_equal(counts.num_known, histograms.num_known)
    np.testing.assert_array_equal(counts.evaluable, histograms.evaluable)


@pytest.mark.parametrize("num_bins", [0, 1, 7, -2, 1_000_002])
def test_odd_numbers_of_bins_are_refused(num_bins):
    with pytest.raises(InputError, match=f"num_bins to be even and from 2 to 1000000, got {num_bins}"):
        ScoreHistograms.zero(3, num_bins)


# --- merging ---


@settings(deadline=None)
@given(clients(), NUM_BINS)
def test_adding_clients_is_the_histogram_of_their_pooled_scores(parts, num_bins):
    start = ScoreHistograms.zero(NUM_LABELS, num_bins)

    merged = sum((ScoreHistograms.of(*part, num_bins) for part in parts), start=start)

    assert_equal(ScoreHistograms.of(*pool(parts), num_bins), merged)


@st.composite
def histograms(draw):
    shape = (2, 4)
    counts = hnp.arrays(np.int64, shape, elements=st.integers(0, 2**39))
    return ScoreHistograms(draw(counts), draw(counts))


@settings(deadline=None)
@given(histograms(), histograms(), histograms())
def test_addition_is_associative_commutative_and_has_a_zero(first, second, third):
    assert_equal((first + second) + third, first + (second + third))
    assert_equal(first + second, second + first)
    assert_equal(first, first + ScoreHistograms.zero(2, 4))


@settings(deadline=None)
@given(histograms(), histograms())
def test_arrays_travel_and_add_entry_by_entry(first, second):
    assert_equal(first, ScoreHistograms.from_arrays(first.to_arrays()))
    added = {name: array + second.to_arrays()[name] for name, array in first.to_arrays().items()}
    assert_equal(first + second, ScoreHistograms.from_arrays(added))


def test_other_bins_cannot_be_added_or_received():
    with pytest.raises(InputError, match=r"\[2, 4\] and \[2, 6\]"):
        _ = ScoreHistograms.zero(2, 4) + ScoreHistograms.zero(2, 6)
    with pytest.raises(InputError, match="even"):
        ScoreHistograms.from_arrays({"present": np.zeros((2, 3), np.int64), "absent": np.zeros((2, 3), np.int64)})
    with pytest.raises(InputError, match="absent to hold int64"):
        ScoreHistograms.from_arrays({"present": np.zeros((2, 4), np.int64), "absent": np.zeros((2, 4))})


# --- average precision from bins ---


@settings(deadline=None)
@given(clients(), NUM_BINS)
def test_bounds_contain_the_exact_average_precisions(parts, num_bins):
    scores, labels = pool(parts)
    exact, binned = average_precisions(scores, labels), ScoreHistograms.of(scores, labels, num_bins)

    bounds = binned.average_precisions()

    for array in bounds:
        np.testing.assert_array_equal(np.isnan(exact), np.isnan(array))
    found = ~np.isnan(exact)
    for inside in (exact, bounds.value):
        assert (bounds.lower[found] <= inside[found] + ROUNDING).all()
        assert (inside[found] <= bounds.upper[found] + ROUNDING).all()
    check_values(binned.metrics(), evaluate(scores, labels).flat())


def check_values(values, exact):
    for name in ("mAP", "O-AP"):
        if np.isnan(exact[name]):
            assert np.isnan([values[name], values[f"{name}-lower"], values[f"{name}-upper"]]).all()
        else:
            assert values[f"{name}-lower"] - ROUNDING <= exact[name] <= values[f"{name}-upper"] + ROUNDING
    for name in ("prevalence", "num-evaluable", "num-known"):
        np.testing.assert_equal(values[name], exact[name])


@pytest.mark.parametrize(
    ("present", "absent"), [([2, 1], [1, 1]), ([1, 0], [2, 2]), ([2, 1], [2, 0]), ([0, 2], [1, 2])]
)
def test_bounds_are_the_extremes_over_all_scores_in_these_bins(present, absent):
    """Every way to place the entries of two bins on four scores each, ties included."""
    sides = [(0.1, 0.2, 0.3, 0.4), (0.6, 0.7, 0.8, 0.9)]
    truth = np.concatenate([np.arange(p + a) < p for p, a in zip(present, absent, strict=True)])
    choices = [itertools.product(side, repeat=p + a) for side, p, a in zip(sides, present, absent, strict=True)]
    reached = [average_precision(np.array(low + high), truth) for low, high in itertools.product(*choices)]

    bounds = ScoreHistograms(np.array([present]), np.array([absent])).average_precisions()

    assert bounds.lower[0] == pytest.approx(min(reached), abs=ROUNDING)
    assert bounds.upper[0] == pytest.approx(max(reached), abs=ROUNDING)


def test_binned_average_precision_by_hand():
    """One bin with one present among two absent: last 1/3, first 1/1, in the middle 1/2."""
    bounds = ScoreHistograms(np.array([[0, 1]]), np.array([[0, 2]])).average_precisions()

    assert [float(bound[0]) for bound in bounds] == pytest.approx([1 / 3, 1 / 2, 1], abs=1e-15)


def test_more_bins_come_closer():
    scores, labels = noisy_scenes(3000)
    exact = evaluate(scores, labels).values["mAP"]
    widths, errors = [], []
    for num_bins in (10, 100, 1000, 10_000, 1_000_000):
        values = ScoreHistograms.of(scores, labels, num_bins).metrics()
        widths.append(values["mAP-upper"] - values["mAP-lower"])
        errors.append(abs(values["mAP"] - exact))

    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 1e-4
    assert errors[2] < 0.002
    assert errors[-1] < 1e-5


def test_empty_labels_zero_agrees_with_evaluate():
    """A label without present entries counts 0, one without absent entries counts 1."""
    labels = np.array([[1, 0, 1], [0, 0, 1]], np.int8)
    scores = np.array([[0.9, 0.2, 0.3], [0.1, 0.7, 0.3]])

    expected = evaluate(scores, labels, empty_labels="zero")
    actual = ScoreHistograms.of(scores, labels).metrics("zero")

    assert actual["mAP"] == actual["mAP-lower"] == actual["mAP-upper"] == expected.values["mAP"] == 2 / 3
    assert actual["prevalence"] == expected.prevalence == 0.5


def test_nothing_known_is_nan():
    values = ScoreHistograms.zero(3).metrics()

    assert np.isnan([values["mAP"], values["O-AP-upper"], values["prevalence"]]).all()
    assert (values["num-evaluable"], values["num-known"]) == (0, 0)


def test_adding_a_bin_at_a_time_is_adding_one_by_one():
    rng = np.random.default_rng(4)
    for _ in range(20):
        present, absent = (rng.integers(0, 60, 40) * (rng.random(40) < 0.6) for _ in range(2))
        present[0] = 1
        one_by_one = fedmlic.histograms._binned_ap(present, absent)
        assert fedmlic.histograms._binned_ap_by_bins(present, absent) == pytest.approx(one_by_one, abs=1e-12)


def test_any_number_of_entries_takes_the_memory_of_its_bins():
    present = np.zeros((2, 1000), np.int64)
    present[:, 7] = 10**11
    found = ScoreHistograms(present, present).metrics()

    assert found["mAP"] == pytest.approx(0.5)
    assert found["mAP-lower"] == pytest.approx(1 - math.log(2))
    with pytest.raises(InputError, match="entries"):
        ScoreHistograms.from_arrays({"present": present * 2**26, "absent": present})
