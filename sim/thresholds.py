"""Thresholds of a run's model: fixed, or fitted label by label on validation images.

A label is predicted where its probability is **at or above** its threshold. Three rules:

- ``fixed``: the run's threshold (0.5 unless it was set) for every label.
- ``best-f1``: the threshold with the largest F1 = 2TP/(2TP+FP+FN) of the label on validation.
- ``precision``: of the thresholds whose precision TP/(TP+FP) on validation is the target or more, that with the
  largest recall.

Only known entries count. Equal F1, or equal recall, is decided for the higher threshold, which predicts less. A fitted
threshold lies halfway between the lowest probability that it accepts and the next lower one, so that a difference in
the last digit (another library, another processor) changes no prediction of the images it was fitted on.

A label with too few known present or known absent validation images keeps the fixed threshold, and so does one that
reaches the target precision nowhere; the reason stands beside it. Test images are never looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from fedmlic.counts import check_scores, check_threshold
from fedmlic.errors import InputError, listing
from fedmlic.labels import ABSENT, PRESENT
from fedmlic.record import read_json

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SCHEMA = 1

Rule = Literal["fixed", "best-f1", "precision"]

RULES: tuple[Rule, ...] = get_args(Rule)

MIN_ENTRIES = 10
"""Known present, and known absent, validation images that a label needs for a threshold of its own."""

DEFAULT_PRECISION = 0.9
"""Target of the rule ``precision``."""


@dataclass(frozen=True)
class Threshold:
    """The threshold of one label under one rule, and what it rests on.

    Attributes:
        value: probability at or above which the label is predicted.
        true_positives: validation images known to have the label that it accepts.
        false_positives: validation images known not to have it that it accepts.
        false_negatives: validation images known to have it that it leaves out.
        why_fixed: why it is the fixed threshold, although the rule fits one; empty where it was fitted.
    """

    value: float
    true_positives: int
    false_positives: int
    false_negatives: int
    why_fixed: str = ""

    @property
    def precision(self) -> float:
        """TP / (TP + FP); NaN where nothing is predicted."""
        return _ratio(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float:
        """TP / (TP + FN); NaN without a known present image."""
        return _ratio(self.true_positives, self.true_positives + self.false_negatives)

    @property
    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN); NaN where nothing is present or predicted."""
        return _ratio(2 * self.true_positives, 2 * self.true_positives + self.false_positives + self.false_negatives)


@dataclass(frozen=True)
class Thresholds:
    """The thresholds of a model under all rules.

    Attributes:
        label_names: columns.
        about: of which model they are: identity of the experiment, round, client, inference.
        num_images: validation images that they were fitted on; 0 without any.
        num_present: int64 ``[labels]``, validation images known to have the label.
        num_absent: int64 ``[labels]``, validation images known not to have it.
        fixed: the run's threshold.
        precision: target of the rule ``precision``.
        min_entries: known present, and known absent, images that a label needs.
        rules: by rule, one threshold per label.
    """

    label_names: tuple[str, ...]
    about: Mapping[str, Any]
    num_images: int
    num_present: NDArray[np.int64]
    num_absent: NDArray[np.int64]
    fixed: float
    precision: float
    min_entries: int
    rules: Mapping[Rule, tuple[Threshold, ...]]

    def values(self, rule: Rule) -> NDArray[np.float32]:
        """Float32 ``[labels]``, of one rule."""
        return np.array([each.value for each in self.rules[rule]], np.float32)

    def to_json(self) -> dict[str, Any]:
        """As ``thresholds.json`` holds them."""
        labels = []
        for column, name in enumerate(self.label_names):
            row: dict[str, Any] = {
                "label": name,
                "num_present": int(self.num_present[column]),
                "num_absent": int(self.num_absent[column]),
            }
            for rule in RULES:
                found = self.rules[rule][column]
                shares = {"precision": found.precision, "recall": found.recall, "f1": found.f1}
                row[rule] = {**asdict(found), **shares}
            labels.append(row)
        return {
            "schema": SCHEMA,
            "kind": "thresholds",
            **self.about,
            "fitted_on": "val",
            "num_images": self.num_images,
            "fixed": self.fixed,
            "precision": self.precision,
            "min_entries": self.min_entries,
            "labels": labels,
        }


def fit(
    scores: NDArray[np.floating],
    labels: NDArray[np.int8],
    label_names: Sequence[str],
    *,
    fixed: float = 0.5,
    precision: float = DEFAULT_PRECISION,
    min_entries: int = MIN_ENTRIES,
    about: Mapping[str, Any] | None = None,
) -> Thresholds:
    """Fit thresholds to the scores of validation images.

    Args:
        scores: floating ``[images, labels]``, probabilities in [0, 1]; no images give fixed thresholds.
        labels: int8 ``[images, labels]``; UNKNOWN and UNCERTAIN entries are left out.
        label_names: columns.
        fixed: the fixed threshold, in [0, 1].
        precision: target of the rule ``precision``, above 0 and at most 1.
        min_entries: known present, and known absent, images that a label needs; 1 or more.
        about: of which model they are.

    Raises:
        InputError: arrays that do not fit together, scores that are no probabilities, or a wrong target.
    """
    exact = np.asarray(check_scores(scores, labels, label_names), np.float32)
    check_threshold(fixed)
    if not 0 < precision <= 1:
        msg = f"Expected the target precision to be above 0 and at most 1, got {precision}. Use 0.9."
        raise InputError(msg)
    rules: dict[Rule, list[Threshold]] = {rule: [] for rule in RULES}
    for column in range(exact.shape[1]):
        is_known = labels[:, column] >= ABSENT
        found = _of_label(exact[is_known, column], labels[is_known, column] == PRESENT, fixed, precision, min_entries)
        for rule, threshold in zip(RULES, found, strict=True):
            rules[rule].append(threshold)
    return Thresholds(
        tuple(label_names),
        dict(about or {}),
        len(exact),
        (labels == PRESENT).sum(axis=0),
        (labels == ABSENT).sum(axis=0),
        fixed,
        precision,
        min_entries,
        {rule: tuple(each) for rule, each in rules.items()},
    )


def _of_label(
    scores: NDArray[np.float32], present: NDArray[np.bool_], fixed: float, precision: float, min_entries: int
) -> tuple[Threshold, Threshold, Threshold]:
    """Fixed, best F1, at the target precision: of one label, over its known entries."""
    accepted = scores >= np.float32(fixed)
    num_present = int(present.sum())
    hits = int((accepted & present).sum())
    unfitted = Threshold(fixed, hits, int(accepted.sum()) - hits, num_present - hits)
    few = [
        f"{number} known {what}"
        for number, what in ((num_present, "present"), (len(present) - num_present, "absent"))
        if number < min_entries
    ]
    if few:
        why = f"{' and '.join(few)} validation images, {min_entries} are needed"
        kept = Threshold(fixed, hits, unfitted.false_positives, unfitted.false_negatives, why)
        return unfitted, kept, kept
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    true = np.cumsum(present[order])[ends]
    predicted = ends + 1

    def at(place: int) -> Threshold:
        lower = ranked[ends[place] + 1] if ends[place] + 1 < len(ranked) else np.float32(0)
        value = _between(ranked[ends[place]], lower)
        hit = int(true[place])
        return Threshold(value, hit, int(predicted[place]) - hit, num_present - hit)

    # argmax takes the first of equals, which is the highest threshold.
    best = at(int(np.argmax(2 * true / (predicted + num_present))))
    reaches = true / predicted >= precision
    if not reaches.any():
        why = f"no threshold has a precision of {precision:g} on validation"
        kept = Threshold(fixed, hits, unfitted.false_positives, unfitted.false_negatives, why)
        return unfitted, best, kept
    return unfitted, best, at(int(np.argmax(np.where(reaches, true, -1))))


def _between(score: np.float32, lower: np.float32) -> float:
    """A float32 above ``lower`` and at most ``score``, halfway where there is room."""
    middle = np.float32((float(score) + float(lower)) / 2)
    return float(middle if middle > lower else score)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def read_thresholds(
    path: Path, rule: Rule, label_names: Sequence[str], about: Mapping[str, Any]
) -> NDArray[np.float32]:
    """The thresholds of one rule from a ``thresholds.json``, float32 ``[labels]`` in the order of ``label_names``.

    Args:
        path: the file.
        rule: which of its thresholds.
        label_names: of the model that they are wanted for.
        about: of that model; a file that says something else of itself is refused.

    Raises:
        InputError: no such file, other labels, another model, or a threshold that is none.
    """
    found = read_json(path)
    rows = found.get("labels")
    if found.get("kind") != "thresholds" or not isinstance(rows, list):
        msg = f"Expected {path} to hold thresholds as 'fedmlic export' writes them, got something else. Check the path."
        raise InputError(msg)
    others = [key for key, value in about.items() if key in found and found[key] != value]
    if others:
        said = ", ".join(f"{key} {found[key]!r} where the model has {about[key]!r}" for key in others)
        msg = f"Expected {path} to hold thresholds of this model, got those of another: {said}. Fit them again."
        raise InputError(msg)
    by_name: dict[str, float] = {}
    problems = []
    for number, row in enumerate(rows, 1):
        try:
            name, value = str(row["label"]), row[rule]["value"]
        except (KeyError, TypeError):
            problems.append(f"entry {number}: no label with a threshold {rule!r}")
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            problems.append(f"label {name!r}: {value!r}, which is not a number from 0 to 1")
            continue
        by_name[name] = float(value)
    if not problems and set(by_name) != set(label_names):
        missing, more = set(label_names) - set(by_name), set(by_name) - set(label_names)
        problems += [f"no threshold of label {name!r}" for name in sorted(missing)]
        problems += [f"a threshold of {name!r}, which is no label of the model" for name in sorted(more)]
    if problems:
        expected = f"Expected {path} to hold one threshold per label"
        raise listing(expected, problems)
    return np.array([by_name[name] for name in label_names], np.float32)
