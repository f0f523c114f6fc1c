"""The statistics of a comparison, against other ways to the same numbers."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from sim.comparison.statistics import RESAMPLES, difference, holm, seeds_needed, smallest_p

FIRST = [0.62, 0.58, 0.71, 0.66, 0.60, 0.69]
SECOND = [0.55, 0.57, 0.66, 0.67, 0.52, 0.61]


def test_the_permutation_test_is_that_of_all_sign_flips():
    differences = np.subtract(FIRST, SECOND)
    flips = np.array(list(itertools.product((1, -1), repeat=len(differences))))
    means = np.abs((flips * differences).mean(axis=1))
    expected = np.mean(means >= abs(differences.mean()) - 1e-12)

    assert difference(FIRST, SECOND).p == pytest.approx(expected)


def test_wilcoxon_is_scipys_where_that_is_exact():
    assert difference(FIRST, SECOND, "wilcoxon").p == pytest.approx(stats.wilcoxon(FIRST, SECOND).pvalue, rel=1e-12)
    one, other = np.random.default_rng(3).normal(size=(2, 50))
    assert difference(one, other, "wilcoxon").p == pytest.approx(stats.wilcoxon(one, other).pvalue, rel=1e-9)


@pytest.mark.parametrize(
    "differences",
    [
        [1, 1, 1, 1, 1],
        [1, 1, -1, 2, 2, 3],
        [0, 1, 2, 3, 4, 5],
        [0, 0, -1, 1, 2, 2, 2, -3],
        [0, 0, 3],
    ],
    ids=str,
)
def test_wilcoxon_is_that_of_all_sign_flips_with_equal_and_zero_differences(differences):
    """Ranks by counting how many are smaller and as large; SciPy falls back to a normal distribution here."""
    left = [abs(each) for each in differences if each]
    ranks = np.array([sum(o < each for o in left) + (sum(o == each for o in left) + 1) / 2 for each in left])
    signs = np.sign([each for each in differences if each])
    flips = np.array(list(itertools.product((1, -1), repeat=len(left))))
    expected = np.mean(np.abs(flips @ ranks) >= abs(signs @ ranks))

    found = difference(differences, [0] * len(differences), "wilcoxon")

    assert found.p == pytest.approx(expected, rel=1e-12)
    assert found.smallest_p == pytest.approx(2 / 2 ** len(left), rel=1e-12)


@pytest.mark.parametrize("test", ["permutation", "wilcoxon"])
def test_a_seed_with_equal_values_makes_the_smallest_p_larger(test):
    """Four of six differ: all on one side they give 2/2^4, and no fewer flips exist."""
    found = difference([0.5, 0.6, 0.72, 0.83, 0.9, 0.95], [0.5, 0.6, 0.7, 0.8, 0.86, 0.9], test)

    assert found.p == pytest.approx(2 / 2**4) == pytest.approx(found.smallest_p)


def test_the_interval_is_that_of_resampled_means():
    differences = np.subtract(FIRST, SECOND)
    rng = np.random.default_rng(1)
    means = rng.choice(differences, (RESAMPLES, len(differences))).mean(axis=1)

    found = difference(FIRST, SECOND)

    assert (found.low, found.high) == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=2e-3)


def test_the_probability_of_improvement_counts_pairs():
    pairs = [(a > b) + (a == b) / 2 for a in FIRST for b in SECOND]

    assert difference(FIRST, SECOND).improvement == pytest.approx(np.mean(pairs))


def test_the_result_is_the_same_each_time():
    assert difference(FIRST * 3, SECOND * 3) == difference(FIRST * 3, SECOND * 3)


@pytest.mark.parametrize("test", ["permutation", "wilcoxon"])
def test_equal_rows_do_not_differ(test):
    found = difference(FIRST, FIRST, test)

    assert (found.mean, found.p, found.improvement) == (0.0, 1.0, 0.5)


@pytest.mark.parametrize("test", ["permutation", "wilcoxon"])
@pytest.mark.parametrize("count", [2, 3, 5, 8, 14, 20, 50, 55])
def test_the_smallest_p_is_reached_where_all_seeds_agree(test, count):
    values = list(np.linspace(0.1, 0.9, count))

    found = difference([value + 0.01 + value / 10 for value in values], values, test)

    assert found.p == pytest.approx(smallest_p(count, test), rel=1e-9) == pytest.approx(found.smallest_p, rel=1e-9)


def test_one_seed_gives_a_difference_and_nothing_else():
    found = difference([0.6], [0.5])

    assert found.mean == pytest.approx(0.1)
    assert math.isnan(found.p)
    assert math.isnan(found.low)


def test_no_common_seed_gives_nothing():
    assert difference([], []).num_seeds == 0


def test_holm_is_step_down():
    """The example of Holm's correction that is computed by hand in its docstring, and a plain loop."""
    rng = np.random.default_rng(0)
    p = rng.uniform(size=7)
    order = np.argsort(p)
    expected, highest = np.empty(7), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, p[place] * (7 - rank)))
        expected[place] = highest

    assert holm(list(p)) == pytest.approx(list(expected))


def test_what_is_no_test_is_not_corrected_and_does_not_count():
    corrected = holm([0.01, math.nan, 0.04])

    assert corrected[0] == pytest.approx(0.02)
    assert math.isnan(corrected[1])


def test_the_smallest_p_is_exact_where_the_test_is():
    """2 / 2^n of n signs: up to 13 of them for permutations, whose samples give no less than 2/10,000."""
    assert smallest_p(13) == 2 / 2**13
    assert [smallest_p(count) >= 2 / 10_000 for count in (14, 20, 40)] == [True] * 3
    assert [smallest_p(count, "wilcoxon") for count in (14, 30, 50)] == pytest.approx(
        [2 / 2**14, 2 / 2**30, 2 / 2**50], rel=1e-9, abs=0
    )


def test_seeds_needed_reach_the_level():
    for tests in (1, 2, 5, 15):
        needed = seeds_needed(tests)
        assert tests * smallest_p(needed) <= 0.05 < tests * smallest_p(needed - 1)


def test_more_tests_than_permutations_can_tell_apart_have_no_number_of_seeds():
    """0.05 / 251 < 2 / 10,000; Wilcoxon's test needs the least n with 2 / 2^n <= 0.05 / tests."""
    assert seeds_needed(251) is None
    assert seeds_needed(250) is not None
    for tests in (251, 253, 10_000):
        assert seeds_needed(tests, "wilcoxon") == math.ceil(math.log2(2 * tests / 0.05))
