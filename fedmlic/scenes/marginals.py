"""How frequent labels are: a clipped Zipf-Mandelbrot law with a given cardinality."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from fedmlic.errors import InputError
from fedmlic.seeds import stream

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedmlic.scenes.options import Options

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]


def long_tail(num_labels: int, cardinality: float, exponent: float, offset: float, limit: float) -> Floats:
    """float64 ``[labels]`` in falling order: (rank + offset) ** -exponent, scaled to the cardinality, clipped.

    >>> long_tail(4, 1.5, 1.0, 0.0, 0.6).round(3).tolist()
    [0.6, 0.415, 0.277, 0.208]
    """
    weights = (np.arange(1.0, num_labels + 1) + offset) ** -exponent
    if cardinality > limit * num_labels:
        msg = (
            f"Expected cardinality of scenes to be at most {limit * num_labels:g} (max_prevalence x labels), "
            f"got {cardinality:g}. Lower it."
        )
        raise InputError(msg)
    for clipped in range(num_labels + 1):
        scale = (cardinality - clipped * limit) / weights[clipped:].sum() if clipped < num_labels else 0.0
        if clipped == num_labels or weights[clipped] * scale <= limit * (1 + 1e-12):
            return np.concatenate([np.full(clipped, limit), weights[clipped:] * scale])
    raise AssertionError


def prevalences(options: Options, group: Ints) -> Floats:
    """float64 ``[concepts + scene labels]``: the share of images with each; ranks are drawn by the seed.

    With ``group_ranks`` labels of one coarse ``group [concepts]`` have neighbouring ranks.
    """
    ranks = stream(options.seed, "scenes/ranks").permutation(options.num_labels)
    if options.group_ranks:
        place = stream(options.seed, "scenes/group ranks").permutation(int(group.max()) + 1)
        ranks[np.lexsort((ranks, place[group]))] = np.arange(options.num_labels)
    scene_ranks = stream(options.seed, "scenes/scene ranks").permutation(options.num_scene_labels)
    return np.concatenate(
        [
            _falling(options, options.num_labels, options.cardinality)[ranks],
            _falling(options, options.num_scene_labels, options.scene_cardinality)[scene_ranks],
        ]
    )


def balanced(options: Options) -> Floats:
    """The same cardinality, every label equally frequent."""
    objects = np.full(options.num_labels, options.cardinality / options.num_labels)
    scenes = np.full(options.num_scene_labels, options.scene_cardinality / max(1, options.num_scene_labels))
    return np.concatenate([objects, scenes])


def _falling(options: Options, num_labels: int, cardinality: float) -> Floats:
    if not num_labels:
        return np.zeros(0)
    exponent, offset = options.zipf_exponent, options.zipf_offset
    if options.imbalance_ratio and num_labels > 1:
        exponent = math.log(options.imbalance_ratio) / math.log((num_labels + offset) / (1 + offset))
    return long_tail(num_labels, cardinality, exponent, offset, options.max_prevalence)
