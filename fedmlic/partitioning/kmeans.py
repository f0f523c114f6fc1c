"""k-means on label vectors, deterministic under its stream.

Lloyd's iterations from k-means++ seeds (Arthur and Vassilvitskii 2007) on a random
sample of the images, then one assignment of all. Label vectors are few ones among
zeros, so centres are ratios of whole numbers; distances are rounded before they are
compared, so that the order of additions inside a matrix product decides nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedmlic.labels import PRESENT
from fedmlic.partitioning.dealing import chunks

if TYPE_CHECKING:
    from numpy.typing import NDArray

SAMPLE = 50_000
"""Most images that centres are computed from."""

_ENTRIES = 1 << 24


def cluster(
    labels: NDArray[np.int8], num_clusters: int, rng: np.random.Generator, iterations: int = 100
) -> NDArray[np.int64]:
    """int64 ``[images]``: a cluster per image, 0 to ``num_clusters - 1``; some may stay empty.

    Args:
        labels: int8 ``[images, labels]``; present counts as 1, every other state as 0.
        num_clusters: how many centres, 1 or more.
        rng: picks the sample and the seeds.
        iterations: most of Lloyd's iterations.
    """
    size = max(1, min(SAMPLE, len(labels), _ENTRIES // max(1, labels.shape[1])))
    rows = np.sort(rng.choice(len(labels), size, replace=False))
    points = (labels[rows] == PRESENT).astype(np.float64)
    centres = _seeds(points, num_clusters, rng)
    assigned = np.full(len(points), -1)
    for _ in range(iterations):
        before, assigned = assigned, _nearest(points, centres)
        if (before == assigned).all():
            break
        order = np.argsort(assigned, kind="stable")
        used, first, counts = np.unique(assigned[order], return_index=True, return_counts=True)
        centres[used] = np.add.reduceat(points[order], first, axis=0) / counts[:, None]
    parts = [_nearest((labels[images] == PRESENT).astype(np.float64), centres) for images in chunks(len(labels))]
    return np.concatenate([np.empty(0, dtype=np.int64), *parts])


def _nearest(points: NDArray[np.float64], centres: NDArray[np.float64]) -> NDArray[np.int64]:
    squares = (centres**2).sum(axis=1) - 2 * points @ centres.T
    return np.asarray(squares.round(9).argmin(axis=1))


def _seeds(points: NDArray[np.float64], num_clusters: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Each further seed is a point drawn by its squared distance to the nearest seed so far."""
    chosen = [int(rng.integers(len(points)))]
    gaps = np.full(len(points), np.inf)
    while len(chosen) < num_clusters:
        gaps = np.minimum(gaps, ((points - points[chosen[-1]]) ** 2).sum(axis=1))
        if not gaps.any():  # every point is a seed already
            chosen.append(chosen[-1])
            continue
        edges = np.cumsum(gaps)  # whole numbers: exact
        chosen.append(int(np.searchsorted(edges, rng.random() * edges[-1], side="right")))
    return points[chosen]
