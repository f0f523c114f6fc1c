"""What a model's scores say: calibration, thresholds, errors by co-occurrence, and the images it gets most wrong.

Only known entries count anywhere: an unknown or uncertain one is neither right nor wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedmlic.counts import Counts
from fedmlic.labels import ABSENT, PRESENT, known
from sim.reports.report.rows import nan_mean, nan_std

if TYPE_CHECKING:
    from numpy.typing import NDArray

BINS = 10
"""Bins of equal width in a reliability curve."""

GRID = np.round(np.linspace(0.0, 1.0, 101), 2)
"""Thresholds that are tried."""

MIN_IMAGES = 10
"""Images with the one label and without the other that a pair needs to be shown."""

MAX_PAIR_LABELS = 200
"""Most labels between which errors are counted: those with the most present entries."""


@dataclass(frozen=True)
class Reliability:
    """How often an entry is present that is predicted with a probability.

    Attributes:
        count: int64 ``[bins]``, known entries.
        predicted: float64 ``[bins]``, mean probability; NaN in an empty bin.
        observed: float64 ``[bins]``, share that is present; NaN in an empty bin.
        ece: expected calibration error (Naeini et al., AAAI 2015): mean over entries of the bins'
            |observed - predicted|; NaN without a known entry.
    """

    count: NDArray[np.int64]
    predicted: NDArray[np.float64]
    observed: NDArray[np.float64]
    ece: float


def reliability(scores: NDArray[np.floating], labels: NDArray[np.int8], bins: int = BINS) -> Reliability:
    """Pool the known entries of all given labels.

    Args:
        scores: floating of any shape, probabilities.
        labels: int8 of the same shape.
        bins: of equal width; an entry at an edge is in the lower bin, as in scikit-learn.
    """
    chosen = known(labels)
    values, present = np.asarray(scores, np.float64)[chosen], labels[chosen] == PRESENT
    place = np.searchsorted(np.linspace(0.0, 1.0, bins + 1)[1:-1], values)
    count = np.bincount(place, minlength=bins)
    sums, hits = (np.bincount(place, weights=each, minlength=bins) for each in (values, present.astype(np.float64)))
    return _of_sums(count, np.asarray(sums, np.float64), np.asarray(hits, np.float64))


def pooled(found: Sequence[Reliability]) -> Reliability:
    """Of the entries of several together, such as of the models of several seeds."""
    counts = np.stack([each.count for each in found])
    weights = counts.astype(np.float64)
    sums, hits = (
        (weights * np.nan_to_num(np.stack(values))).sum(axis=0)
        for values in ([each.predicted for each in found], [each.observed for each in found])
    )
    return _of_sums(counts.sum(axis=0), sums, hits)


def _of_sums(count: NDArray[np.int64], sums: NDArray[np.float64], hits: NDArray[np.float64]) -> Reliability:
    """From entries, sums of probabilities and present entries of each bin."""
    there = count > 0
    predicted, observed = (np.where(there, each / np.maximum(count, 1), np.nan) for each in (sums, hits))
    ece = float(np.abs(hits - sums).sum() / count.sum()) if count.sum() else float("nan")
    return Reliability(count, predicted, observed, ece)


@dataclass(frozen=True)
class Thresholds:
    """What thresholds that are chosen on validation images come to on test images.

    Attributes:
        val, test: float64 ``[grid]``, macro-F1 at every threshold of ``GRID``.
        chosen: one for all labels: the highest macro-F1 on validation, of equal ones the lowest; NaN if none exists.
        per_label: float64 ``[labels]``, the same for each label's F1; NaN for a label that validation cannot judge.
        results: metrics on test images by choice: ``OWN``, ``ONE``, ``EACH``.
    """

    val: NDArray[np.float64]
    test: NDArray[np.float64]
    chosen: float
    per_label: NDArray[np.float64]
    results: dict[str, dict[str, float]]


OWN, ONE, EACH = "the run's own", "one for all labels", "one per label"
"""Choices of thresholds: that of the experiment, the best common one, the best of every label."""

REPORTED = ("macro-F1", "CF1", "OF1", "hamming")


def thresholds(
    val: tuple[NDArray[np.floating], NDArray[np.int8]],
    test: tuple[NDArray[np.floating], NDArray[np.int8]],
    fixed: float,
) -> Thresholds:
    """Choose thresholds on validation scores and judge them on test scores.

    Args:
        val: scores and labels by which thresholds are chosen.
        test: scores and labels that choose nothing.
        fixed: the run's own threshold, which stands beside.
    """
    by_val, by_test = (np.asarray(scores, np.float64) for scores in (val[0], test[0]))
    counts = [Counts.of_predicted(by_val >= threshold, val[1]) for threshold in GRID]
    macro = np.array([each.metrics()["macro-F1"] for each in counts])
    on_test = np.array([Counts.of_predicted(by_test >= t, test[1]).metrics()["macro-F1"] for t in GRID])
    exists = not np.isnan(macro).all()
    chosen = float(GRID[np.nanargmax(macro)]) if exists else float("nan")
    f1 = np.stack([each.f1 for each in counts])
    per_label = np.where(counts[0].evaluable, GRID[f1.argmax(axis=0)], np.nan)
    choices = {OWN: np.full(len(per_label), fixed)}
    if exists:
        choices[ONE] = np.full(len(per_label), chosen)
        choices[EACH] = np.where(np.isnan(per_label), chosen, per_label)
    results = {}
    for name, each in choices.items():
        found = Counts.of_predicted(by_test >= each, test[1]).metrics()
        results[name] = {metric: found[metric] for metric in REPORTED}
    return Thresholds(macro, on_test, chosen, per_label, results)


@dataclass(frozen=True)
class PairErrors:
    """False positives of a label k on images that have j and not k.

    Attributes:
        labels: int64 ``[chosen]``, columns that were counted.
        images: int64 ``[chosen, chosen]``: row j, column k: images known to have j and known not to have k.
        rate: float64 ``[chosen, chosen]``: share of these on which k is predicted; NaN without ``MIN_IMAGES``.
        base: float64 ``[chosen, chosen]``: k's false-positive rate over all images known not to have it, the same for
            every j of one model; over several models of those that have a ``rate``. NaN without one.
        excess_std: float64 ``[chosen, chosen]``: standard deviation of the excess over seeds; NaN for fewer than two.
    """

    labels: NDArray[np.int64]
    images: NDArray[np.int64]
    rate: NDArray[np.float64]
    base: NDArray[np.float64]
    excess_std: NDArray[np.float64]

    @property
    def excess(self) -> NDArray[np.float64]:
        """float64 ``[chosen, chosen]``: how much j raises k's false-positive rate."""
        return self.rate - self.base


def pair_errors(
    scores: NDArray[np.floating],
    labels: NDArray[np.int8],
    threshold: float,
    chosen: NDArray[np.int64] | None = None,
) -> PairErrors:
    """Count errors among the ``chosen`` labels, by default those with the most present entries."""
    if chosen is None:
        positives = (labels == PRESENT).sum(axis=0)
        chosen = np.sort(np.argsort(-positives, kind="stable")[:MAX_PAIR_LABELS])
    states = labels[:, chosen]
    present, absent = ((states == state).astype(np.float32) for state in (PRESENT, ABSENT))
    wrong = absent * (np.asarray(scores, np.float64)[:, chosen] >= threshold)
    # Sums of images are below 2^24, so float32 is exact.
    images, errors = (np.rint(present.T @ each).astype(np.int64) for each in (absent, wrong))
    enough = images >= MIN_IMAGES
    np.fill_diagonal(enough, val=False)
    num_absent = absent.sum(axis=0)
    rate = np.where(enough, errors / np.maximum(images, 1), np.nan)
    base = np.where(num_absent > 0, wrong.sum(axis=0) / np.maximum(num_absent, 1), np.nan)
    bases = np.tile(base.astype(np.float64), (len(chosen), 1))
    return PairErrors(chosen.astype(np.int64), images, rate, bases, np.full(rate.shape, np.nan))


def mean_pair_errors(found: Sequence[PairErrors]) -> PairErrors:
    """Mean over the models of several seeds, which saw the same images and of which the same labels were counted.

    A pair's base is over the seeds that its rate is over, so that their difference is the mean of the seeds' excess.
    """
    rates = np.stack([each.rate for each in found])
    rate = nan_mean(rates)
    base = nan_mean(np.where(np.isnan(rates), np.nan, np.stack([each.base for each in found])))
    images = np.max([each.images for each in found], axis=0)
    return PairErrors(found[0].labels, images, rate, base, nan_std(np.stack([each.excess for each in found])))


def image_losses(scores: NDArray[np.floating], labels: NDArray[np.int8]) -> NDArray[np.float64]:
    """float64 ``[images]``: mean binary cross-entropy over an image's known entries; NaN without one."""
    eps = np.finfo(np.float32).eps
    values = np.clip(np.asarray(scores, np.float64), eps, 1 - eps)
    each = np.where(labels == PRESENT, -np.log(values), -np.log1p(-values))
    is_known = known(labels)
    count = is_known.sum(axis=1)
    total = np.where(is_known, each, 0.0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def hardest(losses: NDArray[np.float64], most: int) -> NDArray[np.int64]:
    """Places of the images with the highest loss, highest first."""
    order = np.argsort(-np.nan_to_num(losses, nan=-np.inf), kind="stable")
    return order[: min(most, int((~np.isnan(losses)).sum()))].astype(np.int64)
