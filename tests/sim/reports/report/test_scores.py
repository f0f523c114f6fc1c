"""What is said of scores equals scikit-learn and plain loops, and unknown entries count nowhere."""

import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import f1_score, log_loss

from fedmlic.labels import ABSENT, PRESENT, UNCERTAIN, UNKNOWN
from sim.reports.report import scores as made


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def entries(rng, images=300, labels=4, unknown=0.2):
    scores = rng.beta(1, 2, (images, labels)).astype(np.float32)
    states = (rng.uniform(size=scores.shape) < scores**1.5).astype(np.int8)
    states[rng.uniform(size=scores.shape) < unknown] = UNKNOWN
    states[rng.uniform(size=scores.shape) < unknown / 4] = UNCERTAIN
    return scores, states


def test_reliability_is_scikit_learns(rng):
    scores, labels = entries(rng)
    found = made.reliability(scores, labels)

    chosen = labels >= 0
    observed, predicted = calibration_curve(labels[chosen], scores[chosen], n_bins=made.BINS, strategy="uniform")

    there = found.count > 0
    assert observed == pytest.approx(found.observed[there])
    assert predicted == pytest.approx(found.predicted[there], abs=1e-6)
    assert chosen.sum() == found.count.sum()


def test_calibration_error_by_a_plain_loop(rng):
    scores, labels = entries(rng, images=50)
    total, error = int((labels >= 0).sum()), 0.0
    for low in range(made.BINS):
        inside = [
            (float(s), int(state))
            for s, state in zip(scores.ravel(), labels.ravel(), strict=True)
            if state >= 0 and (low / 10 < s <= (low + 1) / 10 or (low == 0 and s == 0))
        ]
        if inside:
            gap = abs(sum(s for s, _ in inside) - sum(state for _, state in inside)) / len(inside)
            error += len(inside) / total * gap

    assert error == pytest.approx(made.reliability(scores, labels).ece, abs=1e-6)


def test_calibration_by_hand():
    found = made.reliability(np.array([0.92, 0.95, 0.1]), np.array([1, 0, 0], dtype=np.int8))

    assert found.ece == pytest.approx((abs(1.87 - 1) + 0.1) / 3)
    assert math.isnan(made.reliability(np.array([0.9]), np.array([UNKNOWN], dtype=np.int8)).ece)


def test_reliability_of_several_is_that_of_their_entries_together(rng):
    parts = [entries(rng, images=images) for images in (30, 80, 5)]
    parts[2][1][:] = UNKNOWN
    found = made.pooled([made.reliability(*part) for part in parts])

    whole = made.reliability(*(np.concatenate(each) for each in zip(*parts, strict=True)))
    assert found.count.tolist() == whole.count.tolist()
    assert found.predicted == pytest.approx(whole.predicted, nan_ok=True)
    assert found.observed == pytest.approx(whole.observed, nan_ok=True)
    assert found.ece == pytest.approx(whole.ece)


def test_pair_errors_over_seeds_are_means_and_sample_deviations(rng):
    scores, labels = entries(rng)
    several = [made.pair_errors(rng.permutation(scores), labels, 0.4) for _ in range(3)]
    found = made.mean_pair_errors(several)

    assert found.images.tolist() == several[0].images.tolist()
    for j in range(4):
        for k in range(4):
            if j != k:
                rates = [each.rate[j, k] for each in several]
                excess = [each.rate[j, k] - each.base[j, k] for each in several]
                assert statistics.fmean(rates) == pytest.approx(found.rate[j, k])
                assert statistics.fmean(excess) == pytest.approx(found.excess[j, k])
                assert statistics.stdev(excess) == pytest.approx(found.excess_std[j, k])
    alone = made.mean_pair_errors(several[:1])
    assert np.array_equal(alone.rate, several[0].rate, equal_nan=True)
    assert np.isnan(alone.excess_std).all()


def test_an_excess_over_seeds_is_of_the_seeds_that_have_the_pair(rng):
    """Label 0 is unknown at one seed: its pairs are judged by the other seed alone, base rate included."""
    scores, labels = entries(rng)
    hidden = labels.copy()
    hidden[:, 0] = UNKNOWN
    one = made.pair_errors(scores, labels, 0.4, np.arange(4))
    other = made.pair_errors(rng.permutation(scores), hidden, 0.4, np.arange(4))
    found = made.mean_pair_errors([one, other])

    assert not np.isnan(one.rate[0, 2])
    assert np.isnan(other.rate[0, 2])
    assert one.base[0, 2] != other.base[0, 2]
    assert found.excess[0, 2] == pytest.approx(one.excess[0, 2])
    assert found.excess[1, 2] == pytest.approx((one.excess[1, 2] + other.excess[1, 2]) / 2)


def test_thresholds_are_scikit_learns_best_on_validation(rng):
    val, test = entries(rng, unknown=0), entries(rng, unknown=0)
    found = made.thresholds(val, test, 0.5)

    f1 = np.array([[f1_score(val[1][:, k], val[0][:, k] >= t, zero_division=0) for k in range(4)] for t in made.GRID])
    assert found.val == pytest.approx(f1.mean(axis=1))
    assert found.chosen == made.GRID[f1.mean(axis=1).argmax()]
    assert found.per_label.tolist() == made.GRID[f1.argmax(axis=0)].tolist()
    for name, at in ((made.OWN, 0.5), (made.ONE, found.chosen), (made.EACH, found.per_label)):
        macro = f1_score(test[1], test[0] >= at, average="macro", zero_division=0)
        micro = f1_score(test[1], test[0] >= at, average="micro", zero_division=0)
        assert (macro, micro) == pytest.approx((found.results[name]["macro-F1"], found.results[name]["OF1"]))


def test_test_images_choose_no_threshold(rng):
    val = entries(rng)
    one, other = (made.thresholds(val, entries(np.random.default_rng(seed)), 0.5) for seed in (1, 2))

    assert one.chosen == other.chosen
    assert one.per_label.tolist() == other.per_label.tolist()
    assert one.results != other.results


def test_a_label_that_validation_cannot_judge_has_no_threshold(rng):
    val, test = entries(rng), entries(rng)
    val[1][:, 1] = UNKNOWN
    found = made.thresholds(val, test, 0.5)

    assert np.isnan(found.per_label).tolist() == [False, True, False, False]


def test_pair_errors_by_a_plain_loop(rng):
    scores, labels = entries(rng)
    found = made.pair_errors(scores, labels, 0.4)

    assert found.labels.tolist() == [0, 1, 2, 3]
    for j in range(4):
        for k in range(4):
            rows = [row for row in range(300) if labels[row, j] == PRESENT and labels[row, k] == ABSENT]
            rate = np.mean([scores[row, k] >= 0.4 for row in rows]) if j != k and len(rows) >= 10 else np.nan
            assert len(rows) == found.images[j, k]
            assert rate == pytest.approx(found.rate[j, k], nan_ok=True)
    absent = labels[:, 2] == ABSENT
    assert (scores[absent, 2] >= 0.4).mean() == pytest.approx(found.base[0, 2])


def test_image_losses_are_scikit_learns_over_known_entries(rng):
    scores, labels = entries(rng, images=20)
    labels[3] = UNKNOWN
    found = made.image_losses(scores, labels)

    for row in range(20):
        chosen = labels[row] >= 0
        if not chosen.any():
            assert math.isnan(found[row])
            continue
        expected = log_loss(labels[row][chosen], scores[row][chosen].astype(np.float64), labels=[0, 1])
        assert expected == pytest.approx(found[row])
    assert made.hardest(found, 5).tolist() == np.argsort(-np.nan_to_num(found, nan=-1), kind="stable")[:5].tolist()
    assert 3 not in made.hardest(found, 20)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([UNKNOWN, UNCERTAIN]))
def test_scores_of_unknown_entries_change_nothing(seed, state):
    rng = np.random.default_rng(seed)
    scores, labels = entries(rng, images=40)
    hidden = rng.uniform(size=labels.shape) < 0.3
    labels[hidden] = state
    other = np.where(hidden, rng.uniform(size=scores.shape), scores).astype(np.float32)

    one, two = made.reliability(scores, labels), made.reliability(other, labels)
    assert np.array_equal(one.observed, two.observed, equal_nan=True)
    assert one.ece == two.ece
    assert np.array_equal(made.image_losses(scores, labels), made.image_losses(other, labels), equal_nan=True)
    first, second = made.pair_errors(scores, labels, 0.5), made.pair_errors(other, labels, 0.5)
    assert np.array_equal(first.rate, second.rate, equal_nan=True)
    assert np.array_equal(first.base, second.base, equal_nan=True)
