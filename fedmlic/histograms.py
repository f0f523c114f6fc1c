"""Scores counted into bins: clients' histograms add, so mAP of the whole federation needs no pooled scores.

Bins are even in the logit, the scale on which networks spread their scores: rare labels
live between 0.0001 and 0.01, where bins that are even in the score see one heap
(``docs/metrics.md`` has the measured errors). One edge is exactly 0.5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from fedmlic.counts import (
    NAN,
    EmptyLabels,
    check_same_shape,
    check_scores,
    checked_arrays,
    is_evaluable,
    mean_average_precision,
    prevalence,
)
from fedmlic.errors import InputError
from fedmlic.labels import ABSENT, PRESENT

if TYPE_CHECKING:
    from numpy.typing import NDArray

DEFAULT_BINS: Final = 1000

MOST_COUNTED: Final = 1 << 44
"""Entries in all histograms together: far beyond any federation, and far from where int64 wraps around."""

ONE_BY_ONE: Final = 1 << 22
"""Present entries of a label up to which they are added one by one; more are added a bin at a time."""

OUTERMOST_LOGIT: Final = 10.0
"""Scores beyond about this logit share the first or the last bin (below 0.00005, above 0.99995)."""


@cache
def bin_edges(num_bins: int) -> NDArray[np.float64]:
    """float64 ``[num_bins - 1]``: inner edges, ascending; a score at an edge is in the bin above it.

    Edges are rounded to multiples of 2^-40: machines whose ``exp`` differs in the last bit
    have the same bins.

    Raises:
        InputError: unless ``num_bins`` is even and from 2 to 1,000,000.
    """
    if num_bins % 2 or not 2 <= num_bins <= 1_000_000:
        msg = f"Expected num_bins to be even and from 2 to 1000000, got {num_bins}. Try {DEFAULT_BINS}."
        raise InputError(msg)
    logits = (np.arange(1, num_bins) - num_bins // 2) * (2 * OUTERMOST_LOGIT / num_bins)
    edges: NDArray[np.float64] = np.round(2.0**40 / (1 + np.exp(-logits))) * 2.0**-40
    edges.setflags(write=False)
    return edges


class BinnedAP(NamedTuple):
    """Average precision as far as bins tell it, float64 ``[labels]`` each, NaN where not evaluable.

    Attributes:
        lower: the smallest AP that scores in these bins can have: in every bin, absent
            entries first, then present ones of different scores.
        value: the AP if each bin's present entries lie evenly among its absent ones.
        upper: the largest: in every bin, present entries first, with one score.
    """

    lower: NDArray[np.float64]
    value: NDArray[np.float64]
    upper: NDArray[np.float64]


@dataclass(frozen=True)
class ScoreHistograms:
    """How many known entries have a score in each bin. UNKNOWN and UNCERTAIN entries are not counted.

    Attributes:
        present: int64 ``[labels, bins]``, entries known to be present.
        absent: int64 ``[labels, bins]``, entries known to be absent.
    """

    present: NDArray[np.int64]
    absent: NDArray[np.int64]

    @staticmethod
    def of(scores: NDArray[np.floating], labels: NDArray[np.int8], num_bins: int = DEFAULT_BINS) -> ScoreHistograms:
        """Count scores, floating ``[images, labels]`` in [0, 1], against int8 ``[images, labels]``."""
        bins = np.searchsorted(bin_edges(num_bins), check_scores(scores, labels), side="right")
        num_labels = labels.shape[1]
        cells = bins + num_bins * np.arange(num_labels)

        def count(state: int) -> NDArray[np.int64]:
            counted = np.bincount(cells[labels == state], minlength=num_labels * num_bins)
            return counted.astype(np.int64).reshape(num_labels, num_bins)

        return ScoreHistograms(count(PRESENT), count(ABSENT))

    @staticmethod
    def zero(num_labels: int, num_bins: int = DEFAULT_BINS) -> ScoreHistograms:
        """The histograms of no image at all: what a sum starts from."""
        bin_edges(num_bins)
        return ScoreHistograms(np.zeros((num_labels, num_bins), np.int64), np.zeros((num_labels, num_bins), np.int64))

    def __add__(self, other: ScoreHistograms) -> ScoreHistograms:
        check_same_shape(self.present, other.present)
        return ScoreHistograms(self.present + other.present, self.absent + other.absent)

    def to_arrays(self) -> dict[str, NDArray[np.int64]]:
        """Two int64 arrays; adding those of two clients entry by entry merges them."""
        return {"present": self.present, "absent": self.absent}

    @staticmethod
    def from_arrays(arrays: Mapping[str, NDArray[np.int64]]) -> ScoreHistograms:
        """The inverse of ``to_arrays``. Raises ``InputError`` on anything but such arrays."""
        present, absent = checked_arrays(arrays, ("present", "absent"), num_dims=2)
        bin_edges(present.shape[1])
        counted = float(present.sum(dtype=np.float64) + absent.sum(dtype=np.float64))  # an int64 sum may wrap around
        if counted > MOST_COUNTED:
            msg = f"Expected histograms of at most {MOST_COUNTED} entries, got {counted:.3g}. Send what was counted."
            raise InputError(msg)
        return ScoreHistograms(present, absent)

    @property
    def num_present(self) -> NDArray[np.int64]:
        """int64 ``[labels]``: entries known to be present."""
        return np.asarray(self.present.sum(axis=1), dtype=np.int64)

    @property
    def num_known(self) -> NDArray[np.int64]:
        """int64 ``[labels]``: entries known to be present or absent."""
        return np.asarray(self.num_present + self.absent.sum(axis=1), dtype=np.int64)

    @property
    def evaluable(self) -> NDArray[np.bool_]:
        """Bool ``[labels]``: at least one entry known present and one known absent."""
        return is_evaluable(self.num_present, self.num_known)

    def pooled(self) -> ScoreHistograms:
        """The histograms of all labels taken together, as if they were one label."""
        return ScoreHistograms(self.present.sum(axis=0, keepdims=True), self.absent.sum(axis=0, keepdims=True))

    def average_precisions(self) -> BinnedAP:
        """Each label's average precision between its exact bounds (up to float64 rounding)."""
        rows = np.full((3, len(self.present)), NAN)
        for label in np.flatnonzero(self.evaluable):
            rows[:, label] = _binned_ap(self.present[label, ::-1], self.absent[label, ::-1])
        return BinnedAP(*rows)

    def metrics(self, empty_labels: EmptyLabels = "exclude") -> dict[str, float]:
        """``mAP`` and ``O-AP``, each with ``-lower`` and ``-upper``: the exact one lies between.

        ``mAP`` itself takes ``BinnedAP.value``. ``prevalence``, ``num-evaluable`` and
        ``num-known`` stand beside it and are exact.
        """
        result = {}
        for name, histograms in (("mAP", self), ("O-AP", self.pooled())):
            num_present, num_known = histograms.num_present, histograms.num_known
            binned = histograms.average_precisions()
            for suffix, ap in (("", binned.value), ("-lower", binned.lower), ("-upper", binned.upper)):
                result[name + suffix] = mean_average_precision(ap, num_present, num_known, empty_labels)
        return {
            **result,
            "prevalence": prevalence(self.num_present, self.num_known, empty_labels),
            "num-evaluable": float(self.evaluable.sum()),
            "num-known": float(self.num_known.sum()),
        }


def _binned_ap(present: NDArray[np.int64], absent: NDArray[np.int64]) -> tuple[float, float, float]:
    """Lower bound, value and upper bound from counts int64 ``[bins]``, highest scores first.

    AP is the mean of (present at or above) / (known at or above) over present entries; each
    array below has one number per present entry.
    """
    if int(present.sum()) > ONE_BY_ONE:
        return _binned_ap_by_bins(present, absent)
    rank = np.arange(1, present.sum() + 1)
    in_bin = np.repeat(present, present)
    bin_end = np.repeat(np.cumsum(present), present)
    absent_above = np.repeat(np.cumsum(absent) - absent, present)
    absent_in_bin = np.repeat(absent, present)
    passed = (rank - (bin_end - in_bin)) / (in_bin + 1)
    lower = rank / (rank + absent_above + absent_in_bin)
    value = rank / (rank + absent_above + passed * absent_in_bin)
    upper = bin_end / (bin_end + absent_above)
    return float(lower.mean()), float(value.mean()), float(upper.mean())


def _binned_ap_by_bins(present: NDArray[np.int64], absent: NDArray[np.int64]) -> tuple[float, float, float]:
    """As ``_binned_ap``, in memory and time that depend on the number of bins alone.

    Within a bin the terms are (a + j) / (b + c * j) for j = 1, 2, ..., n, whose sum is
    n / c + (a - b / c) / c * (psi(b / c + n + 1) - psi(b / c + 1)) with the digamma function psi.
    """
    held = present > 0
    n = present[held].astype(np.float64)
    here = absent[held].astype(np.float64)
    above = (np.cumsum(present) - present)[held].astype(np.float64)
    wrong = (np.cumsum(absent) - absent)[held].astype(np.float64)
    slope = 1 + here / (n + 1)
    total = float(n.sum())
    lower = _sum_of_ratios(n, above, above + wrong + here, np.ones_like(n))
    value = _sum_of_ratios(n, above, above + wrong, slope)
    upper = n * (above + n) / (above + n + wrong)
    return tuple(float(each.sum()) / total for each in (lower, value, upper))  # type: ignore[return-value]


def _sum_of_ratios(
    n: NDArray[np.float64], a: NDArray[np.float64], b: NDArray[np.float64], c: NDArray[np.float64]
) -> NDArray[np.float64]:
    import torch  # for digamma, where there are more entries than can be listed

    start = b / c + 1
    steps = [torch.special.digamma(torch.from_numpy(each)).numpy() for each in (start + n, start)]
    return np.asarray(n / c + (a - b / c) / c * (steps[0] - steps[1]), dtype=np.float64)
