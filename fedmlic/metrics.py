"""How good scores are, judged by known annotations only.

Two rules hold for every number here:

- **UNKNOWN and UNCERTAIN entries are left out**: neither right nor wrong, and no
  member of any ranking. A score at such an entry still has to be a valid one.
- **A label is evaluable if at least one image is known to have it and at least one is
  known not to.** Averages over labels (mAP, CP, CR, CF1, macro-F1) run over the evaluable
  labels, and their number stands beside them. Numbers over all entries (O-AP, OP, OR,
  OF1) exist under the same condition, put to the whole table. ``empty_labels="zero"``
  averages over *all* labels as scikit-learn does: 0 for every 0/0, AP 0 without a present
  entry, AP 1 without an absent one.

What is undefined is NaN. A label counts as predicted where its score is at or above
the threshold; a label that is never predicted has precision 0.

Federated evaluation adds the ``fedmlic.histograms.ScoreHistograms`` of many clients; its pooled
numbers never average clients' averages.
``docs/metrics.md`` defines every key of ``Metrics.values``.

Labels that no client annotates are never in an average with the others: ``evaluate_apart``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import numpy as np

from fedmlic.counts import (
    NAN,
    Counts,
    EmptyLabels,
    check_choice,
    check_scores,
    check_threshold,
    is_evaluable,
    mean_average_precision,
    prevalence,
)
from fedmlic.errors import InputError
from fedmlic.labels import ABSENT, PRESENT, known

if TYPE_CHECKING:
    from numpy.typing import NDArray

Interpolation = Literal["step", "voc07"]
"""Average precision as a step sum, or PASCAL VOC 2007's mean over 11 recall levels."""

TOP: Final = 3
"""How many labels per image the ``@3`` metrics predict."""

DEFAULT_MIN_ENTRIES: Final = 5
"""Known present and known absent images that a label needs to count in a client's own mAP."""

_BLOCK_ENTRIES = 1 << 21  # ranked at once, which bounds the temporary memory of all but O-AP


# --- Rankings: average precision and what is judged per image -----------------------------


class _Ranking(NamedTuple):
    """Rows of scores from the highest to the lowest; UNKNOWN entries come last and count nowhere.

    Attributes:
        present: bool ``[rows, columns]``, whether the entry of that rank is known present.
        present_above: int64 ``[rows, columns]``, present entries that score as high or higher.
        known_above: int64 ``[rows, columns]``, known entries that score as high or higher.
        num_present: int64 ``[rows]``.
        num_known: int64 ``[rows]``.
    """

    present: NDArray[np.bool_]
    present_above: NDArray[np.int64]
    known_above: NDArray[np.int64]
    num_present: NDArray[np.int64]
    num_known: NDArray[np.int64]


def _rank(scores: NDArray[np.float64], labels: NDArray[np.int8]) -> _Ranking:
    is_known = known(labels)
    keys = np.where(is_known, -scores, 1.0)
    order = np.argsort(keys, axis=1)
    keys = np.take_along_axis(keys, order, axis=1)
    present = np.take_along_axis(labels, order, axis=1) == PRESENT
    num_columns = scores.shape[1]
    ends_tie = np.ones(keys.shape, np.bool_)
    ends_tie[:, :-1] = keys[:, :-1] != keys[:, 1:]
    ends = np.where(ends_tie, np.arange(num_columns), num_columns)
    tie_end = np.minimum.accumulate(ends[:, ::-1], axis=1)[:, ::-1]
    present_above = np.take_along_axis(np.cumsum(present, axis=1, dtype=np.int64), tie_end, axis=1)
    return _Ranking(present, present_above, tie_end + 1, present.sum(axis=1), is_known.sum(axis=1))


def _row_average_precision(ranking: _Ranking, interpolation: Interpolation) -> NDArray[np.float64]:
    """float64 ``[rows]``, NaN for a row without a present entry.

    Summing precision over present entries is the step sum over thresholds: a threshold
    raises recall by its present entries' share.
    """
    precision = np.where(ranking.present, ranking.present_above / ranking.known_above, 0.0)
    num_present = ranking.num_present.astype(np.float64)
    if interpolation == "step":
        total, parts = precision.sum(axis=1), num_present
    else:
        # Recall >= level/10 in integers: 3/10 >= 0.3 must not hang on rounding.
        reached = [10 * ranking.present_above >= level * ranking.num_present[:, None] for level in range(11)]
        best = [np.where(enough, precision, 0.0).max(axis=1, initial=0.0) for enough in reached]
        total, parts = np.sum(best, axis=0), np.where(num_present > 0, 11.0, 0.0)
    result = np.full(len(parts), NAN)
    np.divide(total, parts, out=result, where=parts > 0)
    return result


def average_precision(
    scores: NDArray[np.floating], present: NDArray[np.bool_], interpolation: Interpolation = "step"
) -> float:
    """Average precision of one ranking: the sum of (R_n - R_{n-1}) P_n over distinct scores.

    Entries of equal score are one step, so their order in the input does not matter
    (scikit-learn's definition). Entries that are not known must not be passed.

    Args:
        scores: floating ``[entries]`` in [0, 1].
        present: bool ``[entries]``.
        interpolation: ``"voc07"`` gives the mean over recall 0, 0.1, ..., 1 of the highest
            precision at that recall or more (Everingham et al. 2010), which can be one or two
            points away from the step sum.

    Returns:
        NaN without a present entry; 1 if all are present.

    >>> average_precision(np.full(4, 0.3), np.array([True, True, False, False]))
    0.5
    """
    check_choice("interpolation", interpolation, ("step", "voc07"))
    if present.ndim != 1 or present.dtype != np.bool_:
        msg = f"Expected present to be bool [entries], got {present.dtype} {list(present.shape)}. Pass one label."
        raise InputError(msg)
    labels = present.astype(np.int8)[None]
    return float(
        _row_average_precision(_rank(check_scores(np.asarray(scores)[None], labels), labels), interpolation)[0]
    )


def average_precisions(
    scores: NDArray[np.floating], labels: NDArray[np.int8], interpolation: Interpolation = "step"
) -> NDArray[np.float64]:
    """float64 ``[labels]``: each label's average precision over the images where it is known.

    NaN where the label is not evaluable (no known present or no known absent entry).

    Args:
        scores: floating ``[images, labels]`` in [0, 1].
        labels: int8 ``[images, labels]``; UNKNOWN and UNCERTAIN entries are left out.
        interpolation: as in ``average_precision``.
    """
    check_choice("interpolation", interpolation, ("step", "voc07"))
    return _label_average_precisions(check_scores(scores, labels), labels, interpolation)


def _label_average_precisions(
    scores: NDArray[np.float64], labels: NDArray[np.int8], interpolation: Interpolation
) -> NDArray[np.float64]:
    num_images, num_labels = scores.shape
    result = np.full(num_labels, NAN)
    step = max(1, _BLOCK_ENTRIES // max(1, num_images))
    for start in range(0, num_labels, step):
        block = slice(start, start + step)
        ranking = _rank(np.ascontiguousarray(scores[:, block].T), np.ascontiguousarray(labels[:, block].T))
        evaluable = is_evaluable(ranking.num_present, ranking.num_known)
        result[block] = np.where(evaluable, _row_average_precision(ranking, interpolation), NAN)
    return result


def _image_sums(scores: NDArray[np.float64], labels: NDArray[np.int8]) -> tuple[NDArray[np.float64], int]:
    """Sums over images of ranking loss, coverage, one-error and LRAP, and how many images these are."""
    both = (labels == PRESENT).any(axis=1) & (labels == ABSENT).any(axis=1)
    ranking = _rank(scores[both], labels[both])
    num_absent = ranking.num_known - ranking.num_present
    wrong_pairs = np.where(ranking.present, ranking.known_above - ranking.present_above, 0).sum(axis=1)
    sums = (
        np.sum(wrong_pairs / (ranking.num_present * num_absent)),
        np.where(ranking.present, ranking.known_above, 0).max(axis=1, initial=0).sum(),
        np.sum(ranking.present_above[:, :1] < ranking.known_above[:, :1]),
        _row_average_precision(ranking, "step").sum(),
    )
    return np.array(sums, np.float64), int(both.sum())


def _ranking_metrics(scores: NDArray[np.float64], labels: NDArray[np.int8]) -> tuple[dict[str, float], int]:
    num_images, num_labels = scores.shape
    sums, num_ranked = np.zeros(4), 0
    step = max(1, _BLOCK_ENTRIES // max(1, num_labels))
    for start in range(0, num_images, step):
        block_sums, block_ranked = _image_sums(scores[start : start + step], labels[start : start + step])
        sums, num_ranked = sums + block_sums, num_ranked + block_ranked
    names = ("ranking-loss", "coverage", "one-error", "LRAP")
    return {n: float(s) / num_ranked if num_ranked else NAN for n, s in zip(names, sums, strict=True)}, num_ranked


# --- Everything at once -------------------------------------------------------------------


@dataclass(frozen=True)
class PerLabel:
    """One row per label; the shares are NaN where the label is not evaluable.

    Attributes:
        ap: float64 ``[labels]``, average precision.
        precision: float64 ``[labels]`` at the threshold, 0 if never predicted.
        recall: float64 ``[labels]`` at the threshold.
        f1: float64 ``[labels]`` at the threshold.
        num_present: int64 ``[labels]``, entries known to be present.
        num_known: int64 ``[labels]``, entries known to be present or absent.
    """

    ap: NDArray[np.float64]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]
    num_present: NDArray[np.int64]
    num_known: NDArray[np.int64]


@dataclass(frozen=True)
class Metrics:
    """What ``evaluate`` found.

    Attributes:
        values: one number per name, see ``evaluate``.
        prevalence: the mAP of a constant score: the mean share of present entries.
        num_evaluable: labels that the averages over labels run over (``"exclude"``).
        num_known: known entries.
        num_images: images, judged or not.
        num_ranked: images with a known present and a known absent label, over which
            ranking loss, coverage, one-error and LRAP run.
        num_complete: images of which every label is known, over which subset accuracy runs.
        per_label: the table behind the averages; every label, also one that nobody annotates.
        unannotated: of ``evaluate_apart``, the same for the labels that nobody annotates, which are
            in no other number here but the table; None if there are none.
    """

    values: dict[str, float]
    prevalence: float
    num_evaluable: int
    num_known: int
    num_images: int
    num_ranked: int
    num_complete: int
    per_label: PerLabel
    unannotated: Metrics | None = None

    def flat(self) -> dict[str, float]:
        """``values`` with prevalence and the counts under names of the same kind (``num-evaluable``).

        Where there are labels that nobody annotates, also what ``unannotated_values`` makes of theirs.
        """
        counts = ("num_evaluable", "num_known", "num_images", "num_ranked", "num_complete")
        beside = {name.replace("_", "-"): float(getattr(self, name)) for name in counts}
        found = {**self.values, "prevalence": self.prevalence, **beside}
        if self.unannotated is None:
            return found
        return found | unannotated_values(self.unannotated.flat(), len(self.unannotated.per_label.ap))


def evaluate(
    scores: NDArray[np.floating],
    labels: NDArray[np.int8],
    threshold: float = 0.5,
    *,
    empty_labels: EmptyLabels = "exclude",
    label_names: Sequence[str] | None = None,
) -> Metrics:
    """Judge scores by all metrics of the field; the module's first lines give the rules.

    ``values`` holds: ``mAP O-AP``; ``CP CR CF1 OP OR OF1 macro-F1`` at the threshold; the
    first six with ``@3`` (the three highest labels of an image, whatever their score; equal
    scores in column order) and with ``@3t`` (those at or above both the threshold and the
    third-highest score, so ties may add); ``hamming ranking-loss coverage one-error LRAP
    subset-accuracy``. The three highest are taken among all labels, known or not.

    Args:
        scores: floating ``[images, labels]``, probabilities in [0, 1].
        labels: int8 ``[images, labels]``; UNKNOWN and UNCERTAIN entries are left out.
        threshold: a label counts as predicted at this score or above, in [0, 1].
        empty_labels: ``"zero"`` averages over all labels, as scikit-learn does.
        label_names: column names for messages.

    Raises:
        InputError: arrays that do not fit together, or scores that are not probabilities.
    """
    scores = check_scores(scores, labels, label_names)
    check_threshold(threshold)
    counts = Counts.of_predicted(scores >= threshold, labels)
    at_threshold = counts.metrics(empty_labels)
    ranking_values, num_ranked = _ranking_metrics(scores, labels)
    complete = known(labels).all(axis=1) & (labels.shape[1] > 0)
    correct = ((scores >= threshold) == (labels == PRESENT)).all(axis=1)
    ap = _label_average_precisions(scores, labels, "step")
    values = {
        "mAP": mean_average_precision(ap, counts.num_present, counts.num_known, empty_labels),
        "O-AP": _overall_average_precision(scores, labels, empty_labels),
        **{name: value for name, value in at_threshold.items() if not name.startswith("num-")},
        **_top_metrics(scores, labels, threshold, empty_labels),
        **ranking_values,
        "subset-accuracy": float(correct[complete].mean()) if complete.any() else NAN,
    }
    return Metrics(
        values=values,
        prevalence=prevalence(counts.num_present, counts.num_known, empty_labels),
        num_evaluable=int(counts.evaluable.sum()),
        num_known=int(counts.num_known.sum()),
        num_images=len(scores),
        num_ranked=num_ranked,
        num_complete=int(complete.sum()),
        per_label=_per_label(ap, counts),
    )


UNANNOTATED: Final = "/unannotated"
"""Ends the names of numbers over labels that nobody annotates."""


def unannotated_values(found: Mapping[str, float], num_labels: int) -> dict[str, float]:
    """Of metrics over labels that nobody annotates, what is reported, under names that say so.

    mAP with the prevalence beside it, which is the mAP of a constant score, and the numbers of labels.
    Numbers at the threshold are left out: nobody trained these labels towards a probability.
    """
    chosen = {name: found[name] for name in ("mAP", "prevalence", "num-evaluable")}
    return {name + UNANNOTATED: value for name, value in {**chosen, "num-labels": float(num_labels)}.items()}


def unannotated_columns(label_names: Sequence[str], unannotated: Sequence[str] | None) -> NDArray[np.bool_]:
    """Bool ``[labels]``: which labels nobody annotates; none where that is not known."""
    names = set(unannotated or ())
    return np.array([name in names for name in label_names], dtype=np.bool_)


def evaluate_apart(
    scores: NDArray[np.floating],
    labels: NDArray[np.int8],
    unannotated: NDArray[np.bool_],
    threshold: float = 0.5,
) -> Metrics:
    """``evaluate`` over the annotated labels, with what is found for the others apart from it.

    Args:
        scores: floating ``[images, labels]``, probabilities in [0, 1].
        labels: int8 ``[images, labels]``.
        unannotated: bool ``[labels]``, the labels that nobody annotates. All metrics leave them
            out, the three highest of an image included, as if they were not predicted.
        threshold: a label counts as predicted at this score or above, in [0, 1].
    """
    if not unannotated.any():
        return evaluate(scores, labels, threshold)
    check_scores(scores, labels)
    parts = [
        (chosen, evaluate(scores[:, chosen], labels[:, chosen], threshold)) for chosen in (~unannotated, unannotated)
    ]
    columns = {}
    for each in fields(PerLabel):
        pieces = [(chosen, getattr(found.per_label, each.name)) for chosen, found in parts]
        columns[each.name] = np.empty(len(unannotated), dtype=pieces[0][1].dtype)
        for chosen, piece in pieces:
            columns[each.name][chosen] = piece
    return replace(parts[0][1], per_label=PerLabel(**columns), unannotated=parts[1][1])


def _per_label(ap: NDArray[np.float64], counts: Counts) -> PerLabel:
    precision, recall, f1 = (
        np.where(counts.evaluable, column, NAN) for column in (counts.precision, counts.recall, counts.f1)
    )
    return PerLabel(ap, precision, recall, f1, counts.num_present, counts.num_known)


def _overall_average_precision(
    scores: NDArray[np.float64], labels: NDArray[np.int8], empty_labels: EmptyLabels
) -> float:
    chosen = known(labels)
    column = labels[chosen][:, None]
    ap = _label_average_precisions(scores[chosen][:, None], column, "step")
    return mean_average_precision(ap, (column == PRESENT).sum(axis=0), np.array([len(column)]), empty_labels)


def _top_metrics(
    scores: NDArray[np.float64], labels: NDArray[np.int8], threshold: float, empty_labels: EmptyLabels
) -> dict[str, float]:
    """The six label metrics with only an image's three highest labels predicted, in both variants."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :TOP]
    strict = np.zeros(scores.shape, np.bool_)
    np.put_along_axis(strict, order, values=True, axis=1)
    third = np.take_along_axis(scores, order, axis=1).min(axis=1, initial=1.0)
    thresholded = (scores >= third[:, None]) & (scores >= threshold)
    result: dict[str, float] = {}
    for suffix, predicted in ((f"@{TOP}", strict), (f"@{TOP}t", thresholded)):
        metrics = Counts.of_predicted(predicted, labels).metrics(empty_labels)
        result |= {name + suffix: metrics[name] for name in ("CP", "CR", "CF1", "OP", "OR", "OF1")}
    return result


# --- Clients compared ---------------------------------------------------------------------


def random_average_precision(num_present: NDArray[np.int64], num_known: NDArray[np.int64]) -> NDArray[np.float64]:
    """float64 ``[labels]``: the expected average precision of a random order without ties.

    With p present among n known entries it is (H_n + (n - H_n) (p - 1) / (n - 1)) / n, where
    H_n = 1 + 1/2 + ... + 1/n: rank k holds a present entry with probability p / n, and then
    (k - 1) (p - 1) / (n - 1) of those above it are expected to be present. It is larger than
    the prevalence p / n, much larger where n is small.

    Args:
        num_present: p, 1 or more.
        num_known: n, larger than p.

    >>> random_average_precision(np.array([1]), np.array([2]))
    array([0.75])
    """
    harmonic = np.cumsum(1 / np.arange(1, int(num_known.max(initial=1)) + 1))[num_known - 1]
    above = (num_known - harmonic) * (num_present - 1) / (num_known - 1)
    return np.asarray((harmonic + above) / num_known, dtype=np.float64)


def client_metrics(
    scores: NDArray[np.floating], labels: NDArray[np.int8], min_entries: int = DEFAULT_MIN_ENTRIES
) -> dict[str, float]:
    """One client's own mAP with what chance reaches on the same labels, for ``across_clients``.

    A label counts only with ``min_entries`` known present and as many known absent images: on
    two images any order has an average precision of 0.5 or 1.

    Args:
        scores: floating ``[images, labels]``, probabilities in [0, 1].
        labels: int8 ``[images, labels]``; UNKNOWN and UNCERTAIN entries are left out.
        min_entries: 1 or more.

    Returns:
        ``mAP``, ``prevalence`` (the mAP of a constant score) and ``chance`` (the expected mAP of
        a random order), means over the labels that count, NaN without any; ``num-labels``, how
        many these are.
    """
    scores = check_scores(scores, labels)
    num_present, num_absent = (
        np.asarray(np.sum(labels == state, axis=0), dtype=np.int64) for state in (PRESENT, ABSENT)
    )
    counted = (num_present >= max(min_entries, 1)) & (num_absent >= max(min_entries, 1))
    if not counted.any():
        return {"mAP": NAN, "prevalence": NAN, "chance": NAN, "num-labels": 0.0}
    present, known_entries = num_present[counted], (num_present + num_absent)[counted]
    return {
        "mAP": float(_label_average_precisions(scores[:, counted], labels[:, counted], "step").mean()),
        "prevalence": float((present / known_entries).mean()),
        "chance": float(random_average_precision(present, known_entries).mean()),
        "num-labels": float(counted.sum()),
    }


def across_clients(per_client: Sequence[Mapping[str, float]], min_entries: int) -> dict[str, float]:
    """How clients' own mAP differs, over the clients with a label that counts.

    Args:
        per_client: ``client_metrics`` of every client that was evaluated, in a fixed order.
        min_entries: what they were computed with.

    Returns:
        ``spread`` of mAP; ``prevalence`` and ``chance``, their means over the same clients;
        ``num-pairs``, the pairs of client and label behind them; ``num-evaluated``, all clients;
        ``min-entries``.
    """
    counted = [found for found in per_client if found["num-labels"] > 0]

    def mean(name: str) -> float:
        return float(np.mean([found[name] for found in counted])) if counted else NAN

    return {
        **spread([found["mAP"] for found in counted]),
        "prevalence": mean("prevalence"),
        "chance": mean("chance"),
        "num-pairs": float(sum(found["num-labels"] for found in counted)),
        "num-evaluated": float(len(per_client)),
        "min-entries": float(min_entries),
    }


def spread(per_client: Sequence[float]) -> dict[str, float]:
    """How a metric differs between clients, beside (never instead of) its pooled value.

    Args:
        per_client: one value per client, higher is better; NaN for a client where the
            metric is undefined.

    Returns:
        ``mean``, ``worst`` (minimum), ``std`` (of the population), ``p10`` (10th percentile,
        linear interpolation) over the clients that have a value, and ``num-clients``, how
        many these are. Without any, the four are NaN.

    >>> spread([0.5, float("nan"), 1.0])["mean"]
    0.75
    """
    values = np.asarray(per_client, np.float64)
    values = values[~np.isnan(values)]
    if not len(values):
        return {"mean": NAN, "worst": NAN, "std": NAN, "p10": NAN, "num-clients": 0.0}
    return {
        "mean": float(values.mean()),
        "worst": float(values.min()),
        "std": float(values.std()),
        "p10": float(np.percentile(values, 10)),
        "num-clients": float(len(values)),
    }
