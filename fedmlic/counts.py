"""Right and wrong predictions per label: counts of clients add, so shares of them are exact.

Also the rules that every metric shares: which scores are valid, which labels an average
runs over, and what undefined is. ``fedmlic.metrics`` states them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from fedmlic.errors import InputError
from fedmlic.labels import ABSENT, PRESENT, check_labels

if TYPE_CHECKING:
    from numpy.typing import NDArray

EmptyLabels = Literal["exclude", "zero"]
"""What an average over labels does with labels that are not evaluable."""

NAN: Final = float("nan")


def check_scores(
    scores: NDArray[np.floating], labels: NDArray[np.int8], label_names: Sequence[str] | None = None
) -> NDArray[np.float64]:
    """The scores as float64, after checking that they and the labels fit together.

    Args:
        scores: floating ``[images, labels]``, probabilities in [0, 1].
        labels: int8 ``[images, labels]``, the four states of ``fedmlic.labels``.
        label_names: column names for messages.

    Raises:
        InputError: wrong dtype, shape or label state, or a score (of a known entry or not)
            that is NaN, infinite or outside [0, 1].
    """
    try:
        check_labels(labels)
    except ValueError as error:
        raise InputError(str(error)) from None
    scores = np.asarray(scores)
    if scores.dtype.kind != "f" or scores.shape != labels.shape:
        msg = (
            f"Expected scores to be floating {list(labels.shape)} like the labels, "
            f"got {scores.dtype} {list(scores.shape)}. Pass one probability per image and label."
        )
        raise InputError(msg)
    if label_names is not None and len(label_names) != labels.shape[1]:
        msg = f"Expected {labels.shape[1]} label names, got {len(label_names)}. Name every column."
        raise InputError(msg)
    bad = ~((scores >= 0) & (scores <= 1))
    if bad.any():
        image, label = (int(i) for i in np.argwhere(bad)[0])
        name = "" if label_names is None else f" ({label_names[label]!r})"
        msg = (
            f"Expected scores to be finite and in [0, 1], got {scores[image, label]} for label {label}{name} "
            f"at image {image}. Pass probabilities (after the sigmoid), and check the network for NaN."
        )
        raise InputError(msg)
    return scores.astype(np.float64)


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ``InputError`` unless ``value`` is one of the choices."""
    if value not in choices:
        msg = f"Expected {name} to be one of {choices}, got {value!r}. Choose one of these."
        raise InputError(msg)


def is_evaluable(num_present: NDArray[np.int64], num_known: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Bool, one per label: at least one entry known present and one known absent."""
    return (num_present > 0) & (num_known > num_present)


def averaged_labels(evaluable: NDArray[np.bool_], num_known: int, empty_labels: EmptyLabels) -> NDArray[np.bool_]:
    """Bool ``[labels]``: which labels an average runs over; none if nothing at all is known."""
    check_choice("empty_labels", empty_labels, ("exclude", "zero"))
    return evaluable if empty_labels == "exclude" else np.full_like(evaluable, fill_value=num_known > 0)


def label_mean(values: NDArray[np.float64], averaged: NDArray[np.bool_]) -> float:
    """The mean of the averaged labels' values, NaN if there are none."""
    return float(values[averaged].mean()) if averaged.any() else NAN


def share(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    """``part / whole``, with 0 for 0/0."""
    return np.divide(part, whole, out=np.zeros(whole.shape), where=whole > 0)


def mean_average_precision(
    ap: NDArray[np.float64], num_present: NDArray[np.int64], num_known: NDArray[np.int64], empty_labels: EmptyLabels
) -> float:
    """The mean of the labels' AP, NaN where not evaluable, under the rule for ``empty_labels``."""
    evaluable = is_evaluable(num_present, num_known)
    # Where a label is not evaluable, its share of present entries is 0 or 1: the step AP scikit-learn counts.
    filled = np.where(evaluable, ap, share(num_present, num_known))
    return label_mean(filled, averaged_labels(evaluable, int(num_known.sum()), empty_labels))


def prevalence(num_present: NDArray[np.int64], num_known: NDArray[np.int64], empty_labels: EmptyLabels) -> float:
    """The mAP of a constant score: what a network that learned nothing reaches."""
    return mean_average_precision(share(num_present, num_known), num_present, num_known, empty_labels)


@dataclass(frozen=True)
class Counts:
    """Right and wrong predictions per label, over known entries. Counts of clients add.

    Only add counts that were taken at the same threshold: the numbers do not carry it.

    Attributes:
        tp: int64 ``[labels]``, present and predicted.
        fp: int64 ``[labels]``, absent and predicted.
        fn: int64 ``[labels]``, present and not predicted.
        tn: int64 ``[labels]``, absent and not predicted.
    """

    tp: NDArray[np.int64]
    fp: NDArray[np.int64]
    fn: NDArray[np.int64]
    tn: NDArray[np.int64]

    @staticmethod
    def of(scores: NDArray[np.floating], labels: NDArray[np.int8], threshold: float = 0.5) -> Counts:
        """Count with every label predicted whose score is at or above ``threshold``."""
        check_threshold(threshold)
        return Counts.of_predicted(check_scores(scores, labels) >= threshold, labels)

    @staticmethod
    def of_predicted(predicted: NDArray[np.bool_], labels: NDArray[np.int8]) -> Counts:
        """Count predictions bool ``[images, labels]``; UNKNOWN and UNCERTAIN entries are not counted."""
        present, absent = labels == PRESENT, labels == ABSENT
        return Counts(
            np.sum(predicted & present, axis=0, dtype=np.int64),
            np.sum(predicted & absent, axis=0, dtype=np.int64),
            np.sum(~predicted & present, axis=0, dtype=np.int64),
            np.sum(~predicted & absent, axis=0, dtype=np.int64),
        )

    @staticmethod
    def zero(num_labels: int) -> Counts:
        """The counts of no image at all: what a sum starts from."""
        return Counts(*(np.zeros(num_labels, np.int64) for _ in range(4)))

    def __add__(self, other: Counts) -> Counts:
        check_same_shape(self.tp, other.tp)
        return Counts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.tn + other.tn)

    def to_arrays(self) -> dict[str, NDArray[np.int64]]:
        """Four int64 arrays; adding those of two clients entry by entry merges them."""
        return {"tp": self.tp, "fp": self.fp, "fn": self.fn, "tn": self.tn}

    @staticmethod
    def from_arrays(arrays: Mapping[str, NDArray[np.int64]]) -> Counts:
        """The inverse of ``to_arrays``. Raises ``InputError`` on anything but such arrays."""
        return Counts(*checked_arrays(arrays, ("tp", "fp", "fn", "tn"), num_dims=1))

    @property
    def num_present(self) -> NDArray[np.int64]:
        """int64 ``[labels]``: entries known to be present."""
        return self.tp + self.fn

    @property
    def num_known(self) -> NDArray[np.int64]:
        """int64 ``[labels]``: entries known to be present or absent."""
        return self.tp + self.fn + self.fp + self.tn

    @property
    def evaluable(self) -> NDArray[np.bool_]:
        """Bool ``[labels]``: at least one entry known present and one known absent."""
        return is_evaluable(self.num_present, self.num_known)

    @property
    def precision(self) -> NDArray[np.float64]:
        """float64 ``[labels]``: TP / (TP + FP), 0 if never predicted."""
        return share(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> NDArray[np.float64]:
        """float64 ``[labels]``: TP / (TP + FN), 0 without a present entry."""
        return share(self.tp, self.num_present)

    @property
    def f1(self) -> NDArray[np.float64]:
        """float64 ``[labels]``: 2 TP / (2 TP + FP + FN), 0 for 0/0."""
        return share(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    def pooled(self) -> Counts:
        """The counts of all labels taken together, as if they were one label."""
        return Counts(*(array.sum(keepdims=True) for array in (self.tp, self.fp, self.fn, self.tn)))

    def metrics(self, empty_labels: EmptyLabels = "exclude") -> dict[str, float]:
        """CP CR CF1 OP OR OF1 macro-F1 hamming, exact for the images that were counted.

        ``num-evaluable`` and ``num-known`` stand beside them. CF1 is the harmonic mean of
        CP and CR, which is not the mean of the labels' F1 (that is macro-F1).
        """
        num_known = int(self.num_known.sum())
        averaged = averaged_labels(self.evaluable, num_known, empty_labels)
        cp, cr = label_mean(self.precision, averaged), label_mean(self.recall, averaged)
        whole = self.pooled()
        averaged_whole = averaged_labels(whole.evaluable, num_known, empty_labels)
        op, or_ = label_mean(whole.precision, averaged_whole), label_mean(whole.recall, averaged_whole)
        return {
            "CP": cp,
            "CR": cr,
            "CF1": _harmonic_mean(cp, cr),
            "OP": op,
            "OR": or_,
            "OF1": _harmonic_mean(op, or_),
            "macro-F1": label_mean(self.f1, averaged),
            "hamming": int((self.fp + self.fn).sum()) / num_known if num_known else NAN,
            "num-evaluable": float(self.evaluable.sum()),
            "num-known": float(num_known),
        }


def check_threshold(threshold: float) -> None:
    """Raise ``InputError`` unless a threshold for probabilities is in [0, 1]."""
    if not 0 <= threshold <= 1:
        msg = f"Expected threshold to be in [0, 1], got {threshold}. Scores are probabilities."
        raise InputError(msg)


def check_same_shape(first: NDArray[np.int64], second: NDArray[np.int64]) -> None:
    """Raise ``InputError`` unless two clients' arrays can be added without broadcasting."""
    if first.shape != second.shape:
        msg = (
            f"Expected merged metrics to have one shape, got {list(first.shape)} and {list(second.shape)}. "
            "Merge metrics of the same labels and bins."
        )
        raise InputError(msg)


def checked_arrays(
    arrays: Mapping[str, NDArray[np.int64]], names: tuple[str, ...], num_dims: int
) -> list[NDArray[np.int64]]:
    """The named arrays in that order, if they are int64 counts of one shape, else ``InputError``."""
    if set(arrays) != set(names):
        msg = f"Expected metric arrays {sorted(names)}, got {sorted(arrays)}. Send what to_arrays returned."
        raise InputError(msg)
    chosen = [arrays[name] for name in names]
    for name, array in zip(names, chosen, strict=True):
        if array.dtype != np.int64 or array.ndim != num_dims or array.shape != chosen[0].shape or (array < 0).any():
            msg = (
                f"Expected {name} to hold int64 counts of 0 or more in {num_dims} dimensions, the same shape as "
                f"{names[0]}, got {array.dtype} {list(array.shape)}. Send what to_arrays returned."
            )
            raise InputError(msg)
    return chosen


def _harmonic_mean(first: float, second: float) -> float:
    return 2 * first * second / (first + second) if first + second != 0 else 0.0
