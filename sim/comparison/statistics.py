"""The statistics of a comparison, from the values that are shown.

Seeds are the units: two rows are compared by their difference at each seed that both have. All but one are a call of
SciPy; its Wilcoxon test is exact only where no two differences are of one size and none is zero, so up to ``MAX_EXACT``
seeds its distribution is counted here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Literal, NamedTuple

import numpy as np

Test = Literal["permutation", "wilcoxon"]

RESAMPLES = 9999
"""Bootstrap samples, and permutations where there are too many to try them all."""

MAX_EXACT = 50
"""Most differences other than zero whose signed ranks are tested exactly."""

LEVEL = 0.95
"""Confidence level of intervals; 1 minus it is the level of tests."""


class Difference(NamedTuple):
    """One row minus another.

    Attributes:
        num_seeds: that both have.
        mean: of the paired differences.
        low, high: 95 % bootstrap interval (percentiles) of that mean; NaN with one seed.
        p: two-sided p-value of the paired test; NaN with one seed.
        smallest_p: the smallest p-value that the test can give with so many differences other than zero: a seed with
            equal values says nothing of which row is better.
        improvement: probability that a run of the first row scores above a run of the second, ties half (Agarwal et
            al., NeurIPS 2021), over all pairs of seeds. In a ``Pair``: that it is better, of a metric of which less is
            better that it scores below.
    """

    num_seeds: int
    mean: float
    low: float
    high: float
    p: float
    smallest_p: float
    improvement: float


def difference(first: Sequence[float], second: Sequence[float], test: Test = "permutation") -> Difference:
    """Compare paired values: ``first[i]`` and ``second[i]`` are of the same seed.

    >>> found = difference([0.5, 0.6, 0.7], [0.4, 0.4, 0.4])
    >>> round(found.mean, 3), found.p, found.smallest_p, found.improvement
    (0.2, 0.25, 0.25, 1.0)
    """
    from scipy import stats

    one, other = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    differences = one - other
    count = len(differences)
    nan = math.nan
    if count == 0:
        return Difference(0, nan, nan, nan, nan, 1.0, nan)
    better = float(stats.mannwhitneyu(one, other).statistic / count**2)
    mean = float(differences.mean())
    if count == 1:
        return Difference(1, mean, nan, nan, nan, 1.0, better)
    interval = stats.bootstrap(
        (differences,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    low, high = float(interval.low), float(interval.high)
    smallest = smallest_p(int(np.count_nonzero(differences)), test)
    return Difference(count, mean, low, high, _p_value(differences, test), smallest, better)


def _p_value(differences: np.ndarray[tuple[int], np.dtype[np.float64]], test: Test) -> float:
    from scipy import stats

    if not differences.any():
        return 1.0
    if test == "wilcoxon":
        nonzero = differences[differences != 0]  # as SciPy and Wilcoxon do, whatever their number
        return _signed_ranks(nonzero) if len(nonzero) <= MAX_EXACT else float(stats.wilcoxon(nonzero).pvalue)
    found = stats.permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        n_resamples=RESAMPLES,
        rng=np.random.default_rng(0),
    )
    return float(found.pvalue)


def _signed_ranks(differences: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    """Two-sided p-value of Wilcoxon's test over all flips of the differences' signs; equal sizes share their mean rank.

    It is the share of flips whose sum of ranks is as far from the middle as the one found, or farther.
    """
    from scipy import stats

    # Twice the ranks, so that shared ones are integers too.
    doubled = np.rint(2 * stats.rankdata(np.abs(differences))).astype(np.int64)
    total = int(doubled.sum())
    ways = np.zeros(total + 1, dtype=np.int64)  # flips by their sum of positive ranks, at most 2^50 in all
    ways[0] = 1
    for rank in doubled.tolist():
        ways[rank:] += ways[:-rank].copy()
    apart = np.abs(2 * np.arange(total + 1) - total)
    found = int(doubled[differences > 0].sum())
    return float(int(ways[apart >= abs(2 * found - total)].sum()) / 2 ** len(differences))


@cache
def smallest_p(num_seeds: int, test: Test = "permutation") -> float:
    """The smallest two-sided p-value that a test gives: all differences on one side, and none is zero.

    It is 2 / 2^n where the test tries all flips of n signs. Of more than ``RESAMPLES`` flips the permutation test draws
    some, always the same for n seeds, and cannot give less than 2 / (``RESAMPLES`` + 1). Wilcoxon's is exact up to
    ``MAX_EXACT`` seeds, also where differences are of one size, and approximated by a normal distribution above
    (``scipy.stats.wilcoxon``).

    >>> smallest_p(5), smallest_p(14, "wilcoxon") == 2 / 2**14
    (0.0625, True)
    """
    if num_seeds < 1:
        return 1.0
    if 2**num_seeds <= RESAMPLES:
        return 2.0 ** (1 - num_seeds)
    return _p_value(np.arange(1.0, num_seeds + 1), test)


def seeds_needed(num_tests: int, test: Test = "permutation") -> int | None:
    """Seeds with which the smallest of ``num_tests`` p-values can fall to the level after Holm's correction.

    ``None`` where no number of seeds suffices: the permutation test with more than 250 tests.

    >>> seeds_needed(1), seeds_needed(3), seeds_needed(253), seeds_needed(253, "wilcoxon")
    (6, 7, None, 14)
    """
    allowed = (1 - LEVEL + 1e-12) / max(num_tests, 1)
    if test == "permutation" and allowed < 2 / (RESAMPLES + 1):
        return None
    return next((count for count in range(2, 65) if smallest_p(count, test) <= allowed), None)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (Holm, 1979), in the order given; NaN is no test.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    corrected = [math.nan] * len(p_values)
    order = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    highest = 0.0
    for rank, (p, place) in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p))
        corrected[place] = highest
    return corrected
