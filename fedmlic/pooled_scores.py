"""How much features tell of labels, by ridge regressions on all clients' images: two rounds, in which only sums travel.

Every client halves its images: 0, 2, 4, ... and 1, 3, 5, ... In the first round clients add, for each half and each
candidate, the sums of a ridge regression (``fedmlic.solved_head``), and the server solves both halves' regressions. In
the second round a client ranks the images of either half by the regression of the other half, so by one that has seen
none of them, and adds average precision times positives, and positives. The clients of both rounds need not be
the same.

All tensors of sums have rows first: labels, or one. The halves' sums are tensors of their own, so that the server's
limits of clients behind a row hold in each half.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fedmlic.labels import PRESENT, UNKNOWN
from fedmlic.metrics import average_precisions
from fedmlic.ridge_scores import CrossScores
from fedmlic.solved_head import COUNTS, FIRST, NAMES, HeadSums, ridge_head

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

HALVES = 2


def fit_zeros(num_labels: int, num_features: int, num_candidates: int, *, shared: bool) -> dict[str, Tensor]:
    """Sums of no image, by name.

    Args:
        num_labels: labels.
        num_features: features of a candidate.
        num_candidates: candidates, at least 1.
        shared: whether there is one second moment for all labels.

    Returns:
        For each half ``HeadSums``' tensors with the candidates as their second axis; counts, which are the same for
        all candidates, without it.
    """
    none = HeadSums.zero(num_labels, num_features, shared=shared)
    return _named([[none] * num_candidates] * HALVES)


def fit_sums(features: Tensor, labels: Tensor, num_candidates: int, *, shared: bool) -> dict[str, Tensor]:
    """A client's sums, as ``fit_zeros``.

    Args:
        features: floating ``[images, candidates, features]``, at most ``num_candidates`` of them; zeros follow.
        labels: int8 ``[images, labels]``; only known entries count.
        num_candidates: as for ``fit_zeros``.
        shared: likewise.
    """
    found = []
    for half in range(HALVES):
        x, y = features[half::HALVES], labels[half::HALVES]
        own = [HeadSums.of(x[:, column], y, shared=shared) for column in range(x.shape[1])]
        none = HeadSums.zero(y.shape[1], x.shape[2], shared=shared)
        found.append([*own, *[none] * (num_candidates - len(own))])
    return _named(found)


def regressions_of(sums: Mapping[str, Tensor], alpha: float) -> Tensor:
    """The ridge regressions of both halves, float64 ``[2, candidates, labels, features + 1]``, the bias last.

    Rows of labels that cannot be judged by are 0: withheld in part (``HeadSums.solvable``), or never absent.

    Args:
        sums: of all clients.
        alpha: penalty, more than 0, on features divided by their standard deviation.
    """
    halves = []
    for half in range(HALVES):
        own = {name: sums[_name(half, name)] for name in NAMES}
        found = []
        for column in range(own[FIRST].shape[1]):
            one = HeadSums.of_tensors({name: own[name] if name in COUNTS else own[name][:, column] for name in NAMES})
            weights, biases = ridge_head(one, alpha, standardise=True, balanced=False)
            usable = one.solvable & (one.present < one.known)
            found.append(torch.cat([weights, biases[:, None]], dim=1) * usable[:, None])
        halves.append(torch.stack(found))
    return torch.stack(halves)


def judged(features: NDArray[np.float64], labels: NDArray[np.int8], regressions: NDArray[np.float64]) -> CrossScores:
    """A client's images of either half, ranked by the regression of the other.

    A label counts in a half if it is known present and known absent there and the regression's row is not 0.

    Args:
        features: float64 ``[images, features]``.
        labels: int8 ``[images, labels]``; only known entries are used.
        regressions: float64 ``[2, labels, features + 1]``, of the candidate that the features are of.
    """
    num_labels = labels.shape[1]
    precision, positives = np.zeros(num_labels), np.zeros(num_labels, dtype=np.int64)
    for half in range(HALVES):
        rows = regressions[1 - half]
        x, known = features[half::HALVES], np.where(rows.any(axis=1), labels[half::HALVES], np.int8(UNKNOWN))
        scores = x @ rows[:, :-1].T + rows[:, -1]
        found = average_precisions(1 / (1 + np.exp(-np.clip(scores, -30, 30))), known)
        count = np.where(np.isnan(found), 0, (known == PRESENT).sum(axis=0))
        precision += np.nan_to_num(found) * count
        positives += count
    return CrossScores(precision, positives)


def _name(half: int, name: str) -> str:
    return f"search/half-{half}/{name}"


def _named(halves: Sequence[Sequence[HeadSums]]) -> dict[str, Tensor]:
    found = {}
    for half, candidates in enumerate(halves):
        each = [one.to_tensors() for one in candidates]
        for name, first in each[0].items():
            found[_name(half, name)] = first if name in COUNTS else torch.stack([one[name] for one in each], dim=1)
    return found
