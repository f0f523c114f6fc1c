"""How one owner of images differs from another: size, contexts, labels, dependence, look, annotation.

Every property has its own random stream keyed by the owner's number in the population, so each
knob turns alone and drawing more owners changes none of those already there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedmlic.errors import InputError
from fedmlic.scenes.cooccurrence import mood_loadings, noise_spread, solve, standardised
from fedmlic.scenes.normal import distribution, quantile
from fedmlic.seeds import entry_uniforms, stream

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedmlic.scenes.cooccurrence import Dependence
    from fedmlic.scenes.options import Options

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]


class Owners(NamedTuple):
    """The owners that were drawn, in ascending order of their numbers.

    Attributes:
        number: int64 ``[owners]``, place in the population.
        size: int64 ``[owners]``, images of all splits.
        mixture: float64 ``[owners, contexts]``, rows sum to one.
        preference: float64 ``[owners, labels]``, added to what decides whether a label appears.
    """

    number: Ints
    size: Ints
    mixture: Floats
    preference: Floats


def _uniforms(options: Options, purpose: str, numbers: Ints, columns: int) -> Floats:
    return entry_uniforms(options.seed, f"scenes/owner {purpose}", 0, numbers.astype(np.uint64), columns)


def owners(options: Options, num_labels: int) -> Owners:
    """Draw them. The first n of a fixed order take part, so more owners include fewer."""
    order = stream(options.seed, "scenes/owners").permutation(options.population)
    number = np.sort(order[: options.num_owners]).astype(np.int64)
    alphas = np.full(options.num_contexts, options.context_alpha)
    mixture = np.stack([stream(options.seed, "scenes/mixture", n).dirichlet(alphas) for n in number.tolist()])
    preference = np.zeros((len(number), num_labels))
    if options.label_preference:
        preference = options.label_preference * quantile(_uniforms(options, "preference", number, num_labels))
    return Owners(number, sizes(options, number), mixture, preference)


def sizes(options: Options, number: Ints) -> Ints:
    """int64 ``[owners]``: images of each, between ``min_size`` and ``max_size``, ``num_images`` in all if given.

    Raises:
        InputError: that many images do not fit.
    """
    uniform = _uniforms(options, "size", number, 1)[:, 0]
    draws: Floats = np.ones(len(number))
    if options.owner_sizes == "lognormal":
        draws = np.asarray(np.exp(options.owner_spread * quantile(uniform)), dtype=np.float64)
    elif options.owner_sizes == "zipf-mandelbrot":
        terms = (np.arange(1.0, options.max_size + 1) + options.size_offset) ** -options.size_exponent
        smaller = np.searchsorted(np.cumsum(terms) / terms.sum(), uniform, side="right")
        draws = 1 + smaller.astype(np.float64)
    if not options.num_images:
        return np.clip(draws, options.min_size, options.max_size).astype(np.int64)
    return _scaled(options, draws)


def _scaled(options: Options, draws: Floats) -> Ints:
    """Sizes in proportion to ``draws``, within limits, with the sum ``num_images``; largest remainders get the rest."""
    least, most = options.min_size * len(draws), options.max_size * len(draws)
    if not least <= options.num_images <= most:
        msg = (
            f"Expected num_images of scenes to be {least} to {most} ({len(draws)} owners of {options.min_size} to "
            f"{options.max_size} images), got {options.num_images}. Change num_images, min_size or max_size."
        )
        raise InputError(msg)
    low, high = 0.0, options.max_size / draws.min()
    for _ in range(100):
        middle = (low + high) / 2
        enough = np.clip(draws * middle, options.min_size, options.max_size).sum() >= options.num_images
        low, high = (low, middle) if enough else (middle, high)
    wanted = np.clip(draws * high, options.min_size, options.max_size)
    result = np.floor(wanted).astype(np.int64)
    room = np.where(result < options.max_size, result - wanted, np.inf)
    result[np.argsort(room, kind="stable")[: options.num_images - int(result.sum())]] += 1
    return np.asarray(result)


class Turned(NamedTuple):
    """Owners' own dependence between labels: loadings ``[owners, labels, moods]``, thresholds ``[owners, labels]``."""

    loadings: Floats
    thresholds: Floats


def turned(options: Options, group: Owners, by_context: Floats, common: Dependence) -> Turned | None:
    """Every owner's labels hang together in their own way, at the frequencies that all share.

    ``cooccurrence_rotation`` is the part of a quarter turn from the common loadings towards
    random ones of the owner; ``None`` if it is zero.
    """
    if not options.cooccurrence_rotation or options.num_contexts == 1:
        return None
    angle = options.cooccurrence_rotation * np.pi / 2
    spread = noise_spread(options, with_preference=True)
    present = distribution((common.loadings - common.thresholds[:, None]) / spread)
    target = (present * common.weights).sum(axis=-1)
    plain = np.zeros_like(common.loadings), np.ones_like(common.loadings)
    loadings, thresholds = [], []
    for number in group.number.tolist():
        own = standardised(stream(options.seed, "scenes/rotation", number).standard_normal(by_context.shape))
        # Only what is orthogonal to the common row turns it; the rest would just scale it.
        own = standardised(own - (own * by_context).mean(axis=1, keepdims=True) * by_context)
        mixed = mood_loadings(options, np.cos(angle) * by_context + np.sin(angle) * own, common.contexts)
        loadings.append(mixed)
        thresholds.append(solve(mixed, common.weights, spread, target, plain))
    return Turned(np.stack(loadings), np.stack(thresholds))


def annotated(options: Options, number: Ints, num_columns: int) -> NDArray[np.bool_]:
    """Which columns each owner annotates, at least one: bool ``[owners, columns]``."""
    count = max(1, round(options.annotated_fraction * num_columns))
    ranks = _uniforms(options, "annotated", number, num_columns).argsort(axis=1).argsort(axis=1)
    return np.asarray(ranks < count)


def certain_from(options: Options, number: Ints) -> Floats:
    """float64 ``[owners]``: the visible share below which each owner is not certain; ``uncertain_below`` on average."""
    return np.minimum(2 * options.uncertain_below * _uniforms(options, "certainty", number, 1)[:, 0], 1)
