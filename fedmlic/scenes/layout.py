"""Where objects lie: how many per label, how large, where, how tilted, which in front.

An object's numbers depend on its image, its label and its place among that label's
instances, not on what else is in the image.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedmlic.scenes.normal import quantile
from fedmlic.seeds import entry_uniforms, stream

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedmlic.scenes.options import Options

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]
    Keys = NDArray[np.uint64]

MAX_EXTRA = 7
"""Most further instances of one label."""

MIN_RADIUS = 6.0
"""Pixels, or a fifth of a small image; a smaller object could not be recognised."""

MAX_RADIUS = 0.42
"""Of the image's side."""

LABEL_SPREAD = 0.15
"""Standard deviation of the labels' own mean of the logarithm of the size."""

PRIORS = np.array([[0.5, 9.0, 0.5, 9.0], [0.5, 9.0, 0.74, 0.12], [0.5, 9.0, 0.27, 0.12], [0.5, 0.15, 0.5, 0.15]])
"""Location priors: mean and standard deviation of x and y, fractions of the image. Anywhere, on the ground,
in the sky, in the middle; a standard deviation of 9 stands for uniform."""

CONTEXT_SHIFT = 0.06
"""Standard deviation of how far a context moves the horizon."""


class Layout(NamedTuple):
    """Objects, image after image, the last of an image in front.

    Attributes:
        row: int64 ``[objects]``, the image.
        concept: int64 ``[objects]``.
        key: uint64 ``[objects]``, the object's own number.
        radius: float32 ``[objects]``, pixels.
        tilt: float32 ``[objects]``, tangent of half the angle.
        x: float32 ``[objects]``, of the centre, pixels.
        y: float32 ``[objects]``.
    """

    row: Ints
    concept: Ints
    key: Keys
    radius: NDArray[np.float32]
    tilt: NDArray[np.float32]
    x: NDArray[np.float32]
    y: NDArray[np.float32]

    def take(self, chosen: NDArray[np.int64] | NDArray[np.bool_]) -> Layout:
        """Some of the objects."""
        return Layout._make(array[chosen] for array in self)


def instances(options: Options, keys: Keys, present: NDArray[np.bool_]) -> tuple[Ints, Ints, Keys]:
    """Image, concept and key of every object: one per present label, and a Poisson number more.

    ``present`` is ``[images, concepts]``. Further instances beyond ``max_objects`` are left
    out; a label's first instance never is.
    """
    row, concept = np.nonzero(present)
    extra = _poisson(options.extra_instances, _at(options, "extra", keys[row], concept))
    row, concept = np.repeat(row, 1 + extra), np.repeat(concept, 1 + extra)
    copy = np.arange(len(row)) - np.repeat(np.cumsum(1 + extra) - 1 - extra, 1 + extra)
    key = _object_keys(keys[row], concept, copy)
    ticket = entry_uniforms(options.seed, "scenes/which extra", 0, key, 1)[:, 0]
    order = np.lexsort((ticket, copy > 0, row))
    rank = np.arange(len(row)) - np.searchsorted(row[order], row[order], side="left")
    kept = order[(rank < options.max_objects) | (copy[order] == 0)]
    return row[kept], concept[kept], key[kept]


def _object_keys(keys: Keys, concept: Ints, copy: Ints) -> Keys:
    number = (1 + concept * (MAX_EXTRA + 1) + copy).astype(np.uint64)
    with np.errstate(over="ignore"):
        return np.asarray(keys * np.uint64(0x9E3779B97F4A7C15) + number * np.uint64(0xD1B54A32D192ED03))


def _at(options: Options, purpose: str, keys: Keys, concept: Ints) -> Floats:
    """float64 ``[entries]`` in [0, 1): one number per image and concept."""
    own = _object_keys(keys, concept, np.zeros_like(concept))
    return entry_uniforms(options.seed, f"scenes/{purpose}", 0, own, 1)[:, 0]


def _poisson(mean: float, uniforms: Floats) -> Ints:
    terms = np.array([math.exp(-mean) * mean**k / math.factorial(k) for k in range(MAX_EXTRA)])
    return np.searchsorted(np.cumsum(terms), uniforms, side="right")


def layout(options: Options, keys: Keys, contexts: Ints, present: NDArray[np.bool_]) -> Layout:
    """Objects of images with uint64 ``keys [images]`` and int64 ``contexts [images]``, at their first places."""
    row, concept, key = instances(options, keys, present)
    draws = entry_uniforms(options.seed, "scenes/size", 0, key, 2)
    label_mean = LABEL_SPREAD * stream(options.seed, "scenes/label sizes").standard_normal(options.num_labels)
    log_size = options.size_log_mean + label_mean[concept] + options.size_log_spread * quantile(draws[:, 0])
    side = options.image_size
    radius = np.clip(np.exp(log_size) * side, min(MIN_RADIUS, side / 5), MAX_RADIUS * side).astype(np.float32)
    tilt = ((2 * draws[:, 1] - 1) * math.tan(math.radians(options.rotation) / 2)).astype(np.float32)
    zeros = np.zeros(len(row), dtype=np.float32)
    return placed(options, Layout(row, concept, key, radius, tilt, zeros, zeros), contexts, 0)


def placed(options: Options, objects: Layout, contexts: Ints, attempt: int) -> Layout:
    """The same objects at the places of that attempt, in a new order of depth."""
    draws = entry_uniforms(options.seed, "scenes/place", attempt, objects.key, 3)
    centre = _places(options, objects, contexts, draws[:, :2])
    if not options.occlusion:
        centre = _apart(options, objects, contexts, attempt)
    order = np.lexsort((draws[:, 2], objects.row))
    moved = objects._replace(x=centre[:, 0].astype(np.float32), y=centre[:, 1].astype(np.float32))
    return moved.take(order)


def _places(options: Options, objects: Layout, contexts: Ints, uniforms: Floats) -> Floats:
    """float64 ``[objects, 2]``: centres by the label's location prior, wholly inside the image."""
    anywhere = _anywhere(options, objects, uniforms)
    if not options.location_prior:
        return anywhere
    side = float(options.image_size)
    prior = stream(options.seed, "scenes/priors").integers(0, len(PRIORS), options.num_labels)[objects.concept]
    shift = CONTEXT_SHIFT * stream(options.seed, "scenes/horizons").standard_normal(options.num_contexts)
    mean, spread = PRIORS[prior][:, [0, 2]], PRIORS[prior][:, [1, 3]]
    mean[:, 1] += shift[contexts[objects.row]]
    margin = objects.radius.astype(np.float64)[:, None] + 0.5
    near = np.clip((mean + spread * quantile(uniforms)) * side, margin, side - margin)
    return np.where(spread < 1, near, anywhere)


def _anywhere(options: Options, objects: Layout, uniforms: Floats) -> Floats:
    margin = objects.radius.astype(np.float64)[:, None] + 0.5
    return np.asarray(margin + uniforms * (options.image_size - 2 * margin))


TRIES = 32
"""Places considered for each object where nothing may cover anything; the second half ignores location priors."""


def _apart(options: Options, objects: Layout, contexts: Ints, attempt: int) -> Floats:
    """float64 ``[objects, 2]``: of several places the first that touches no object before it, or the freest."""
    draws = entry_uniforms(options.seed, "scenes/places apart", attempt, objects.key, 2 * TRIES)
    pairs = [draws[:, 2 * number : 2 * number + 2] for number in range(TRIES)]
    likely = [_places(options, objects, contexts, pair) for pair in pairs[: TRIES // 2]]
    tries = np.stack([*likely, *(_anywhere(options, objects, pair) for pair in pairs[TRIES // 2 :])], axis=1)
    centre = tries[:, 0].copy()
    start = np.searchsorted(objects.row, objects.row, side="left")
    nth = np.arange(len(objects.row)) - start
    for place in range(1, int(nth.max(initial=0)) + 1):
        now = np.flatnonzero(nth == place)
        least = np.full((len(now), TRIES), np.inf)
        for before in range(place):
            other = start[now] + before
            away = np.sqrt(((tries[now] - centre[other][:, None]) ** 2).sum(axis=-1))
            least = np.minimum(least, away - (objects.radius[now] + objects.radius[other])[:, None])
        free = least >= 1
        chosen = np.where(free.any(axis=1), free.argmax(axis=1), least.argmax(axis=1))
        centre[now] = tries[now, chosen]
    return centre
