"""How much features tell of labels: ridge regression on one half of the images, average precision on the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedmlic.labels import ABSENT, PRESENT, UNKNOWN
from fedmlic.metrics import average_precisions

if TYPE_CHECKING:
    from numpy.typing import NDArray


class CrossScores(NamedTuple):
    """What both halves give together.

    Attributes:
        precision: float64 ``[labels]``, the sum over halves of average precision times positives.
        positives: int64 ``[labels]``, positives behind it; 0 where a label could not be judged.
    """

    precision: NDArray[np.float64]
    positives: NDArray[np.int64]


def cross_scores(features: NDArray[np.float64], labels: NDArray[np.int8], alpha: float) -> CrossScores:
    """Fit on images 0, 2, 4, ... and judge on the others, and the other way round.

    A label counts in a half if it is known present and known absent in both halves.

    Args:
        features: float64 ``[images, features]``.
        labels: int8 ``[images, labels]``; only known entries are used.
        alpha: penalty of the ridge regression, on features divided by their standard deviation.
    """
    num_labels = labels.shape[1]
    precision, positives = np.zeros(num_labels), np.zeros(num_labels, dtype=np.int64)
    for fit in (0, 1):
        here, there = slice(fit, None, 2), slice(1 - fit, None, 2)
        scores, judged = dual_ridge(features[here], labels[here], features[there], alpha)
        found = average_precisions(scores, np.where(judged, labels[there], np.int8(UNKNOWN)))
        count = np.where(np.isnan(found), 0, (labels[there] == PRESENT).sum(axis=0))
        precision += np.nan_to_num(found) * count
        positives += count
    return CrossScores(precision, positives)


def dual_ridge(
    features: NDArray[np.float64], labels: NDArray[np.int8], others: NDArray[np.float64], alpha: float
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Scores of other images by the ridge regression on these, in systems of the number of images.

    Args:
        features: float64 ``[images, features]``.
        labels: int8 ``[images, labels]``; a label's regression is on its known entries.
        others: float64 ``[others, features]``.
        alpha: penalty, on features divided by their standard deviation over ``features``.

    Returns:
        float64 ``[others, labels]`` in (0, 1), and bool ``[labels]``: which labels are known present and known absent;
        the scores of the rest are one half.
    """
    scores = np.zeros((len(others), labels.shape[1]))
    usable = (labels == PRESENT).any(axis=0) & (labels == ABSENT).any(axis=0)
    if not usable.any():
        return scores + 0.5, usable
    spread = features.std(axis=0)
    scale = np.where(spread > 1e-12 * max(float(spread.max()), 1e-300), spread, 1.0)
    known = labels >= ABSENT
    groups: dict[bytes, list[int]] = {}
    for label in np.flatnonzero(usable).tolist():
        groups.setdefault(known[:, label].tobytes(), []).append(label)
    for columns in groups.values():
        rows = known[:, columns[0]]
        mean = features[rows].mean(axis=0)
        x = (features[rows] - mean) / scale
        targets = np.where(labels[rows][:, columns] == PRESENT, 1.0, -1.0)
        level = targets.mean(axis=0)
        dual = np.linalg.solve(x @ x.T + alpha * np.eye(len(x)), targets - level)
        scores[:, columns] = ((others - mean) / scale) @ (x.T @ dual) + level
    return 1 / (1 + np.exp(-np.clip(scores, -30, 30))), usable
