"""Which labels appear together: a Gaussian copula over hidden contexts, with exact marginals.

Label l is present where ``sqrt(rho) V[l, mood] + sqrt(1 - rho) noise`` exceeds its threshold. A
mood is the image's context (or pair of contexts); rows of V have mean zero and variance one over
moods, so ``rho`` sets how strongly labels depend on each other. Given the mood, labels are
independent with a probability in closed form; thresholds are solved from it, so marginals are
exact whatever the dependence, and so is the share of empty images.

Rules on top act after the draw: ``attract`` (a brings b with probability p), ``exclude`` (a
removes b), ``determine`` (c is present exactly where a and b are). The thresholds allow for
the first two; a determined label's frequency follows from the rule.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedmlic.errors import InputError
from fedmlic.scenes.normal import distribution
from fedmlic.seeds import stream

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedmlic.scenes.options import Options

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]
    Bools = NDArray[np.bool_]

NEVER = 12.0
"""A threshold that nothing exceeds."""


class Dependence(NamedTuple):
    """How labels hang together.

    Attributes:
        contexts: int64 ``[moods, contexts of one]``, the contexts that a mood mixes.
        weights: float64 ``[moods]``, how likely each mood is if all contexts are equally likely.
        loadings: float64 ``[labels, moods]``, V scaled by ``sqrt(rho)``.
        thresholds: float64 ``[labels]``.
    """

    contexts: Ints
    weights: Floats
    loadings: Floats
    thresholds: Floats


def moods(num_contexts: int, kind: str) -> tuple[Ints, Floats]:
    """The contexts of each mood and its weight: single contexts (``hard``) or ordered pairs (``soft``)."""
    of_one = 1 if kind == "hard" else 2
    contexts = np.array(list(itertools.product(range(num_contexts), repeat=of_one)))
    return contexts, np.full(len(contexts), 1 / len(contexts))


def standardised(rows: Floats) -> Floats:
    """Rows with mean 0 and variance 1; a single context has nothing to tell apart."""
    centred = rows - rows.mean(axis=-1, keepdims=True)
    spread = np.sqrt((centred**2).mean(axis=-1, keepdims=True))
    return np.asarray(centred / np.where(spread > 0, spread, 1))


def context_loadings(options: Options) -> Floats:
    """float64 ``[labels, contexts]``: standardised random rows."""
    shape = options.num_labels + options.num_scene_labels, options.num_contexts
    return standardised(stream(options.seed, "scenes/loadings").standard_normal(shape))


def mood_loadings(options: Options, by_context: Floats, contexts: Ints) -> Floats:
    """``[..., labels, moods]`` from ``[..., labels, contexts]``."""
    scale = (options.correlation / contexts.shape[1]) ** 0.5
    return np.asarray(by_context[..., contexts].sum(axis=-1) * scale)


def solve(loadings: Floats, weights: Floats, spread: float, target: Floats, rule: tuple[Floats, Floats]) -> Floats:
    """Thresholds at which labels have the frequency ``target``.

    Args:
        loadings: ``[..., labels, moods]``.
        weights: ``[moods]``.
        spread: standard deviation of what is not explained by the mood.
        target: ``[labels]``.
        rule: ``[labels, moods]`` each: a label drawn with probability p appears with
            probability ``rule[0] + rule[1] * p``.
    """
    low, high = np.full(loadings.shape[:-1], -NEVER), np.full(loadings.shape[:-1], NEVER)
    for _ in range(50):
        middle = (low + high) / 2
        drawn = distribution((loadings - middle[..., None]) / spread)
        frequent = ((rule[0] + rule[1] * drawn) * weights).sum(axis=-1) > target
        low, high = np.where(frequent, middle, low), np.where(frequent, high, middle)
    return np.asarray((low + high) / 2)


def noise_spread(options: Options, *, with_preference: bool) -> float:
    """Standard deviation of a label's own part, with the owners' preferences or without."""
    preference = options.label_preference**2 if with_preference else 0.0
    return float((1 - options.correlation + preference) ** 0.5)


def dependence(options: Options, target: Floats) -> Dependence:
    """Solve for thresholds that give every label the frequency ``target`` over all owners.

    Raises:
        InputError: rules or ``empty_fraction`` that the frequencies do not allow.
    """
    contexts, weights = moods(options.num_contexts, options.context_kind)
    loadings = mood_loadings(options, context_loadings(options), contexts)
    if options.empty_fraction < 0:
        return Dependence(contexts, weights, loadings, _thresholds(options, loadings, weights, target))
    shown = 1 - options.empty_fraction
    if target.sum() <= shown or target.max() >= shown:
        raise _too_few(options, "every image that is not empty needs a label, and none may have all of them")
    empty = 0.0
    for _ in range(300):
        wanted = np.minimum(target * (1 - empty) / shown, 1 - 1e-6)
        thresholds = _thresholds(options, loadings, weights, wanted)
        present = distribution((loadings - thresholds[:, None]) / noise_spread(options, with_preference=True))
        previous, empty = empty, float(((1 - present).prod(axis=0) * weights).sum())
        if abs(previous - empty) < 1e-6:
            return Dependence(contexts, weights, loadings, thresholds)
    raise _too_few(options, "the thresholds did not settle")


def _too_few(options: Options, why: str) -> InputError:
    msg = (
        f"Expected empty_fraction of scenes to fit cardinality {options.cardinality:g}, got "
        f"{options.empty_fraction:g}: {why}. Change either, or leave empty images to chance (-1)."
    )
    return InputError(msg)


def _thresholds(options: Options, loadings: Floats, weights: Floats, target: Floats) -> Floats:
    """Thresholds under the rules: first of labels that no rule changes, then of those that one does."""
    spread = noise_spread(options, with_preference=True)
    plain = np.zeros_like(loadings), np.ones_like(loadings)
    thresholds = solve(loadings, weights, spread, target, plain)
    present = distribution((loadings - thresholds[:, None]) / spread)
    always, factor = plain
    for a, b, probability in options.attract:
        always[int(b)], factor[int(b)] = probability * present[int(a)], 1 - probability * present[int(a)]
    for a, b in options.exclude:
        factor[int(b)] = 1 - present[int(a)]
    changed = [int(rule[1]) for rule in (*options.attract, *options.exclude)]
    for b in changed:
        least, most = (always[b] * weights).sum(), ((always[b] + factor[b]) * weights).sum()
        if not least < target[b] < most:
            msg = (
                f"Expected rules of scenes to leave label {b} a frequency between {least:.4f} and {most:.4f}, got "
                f"{target[b]:.4f}. Change the rule or the frequency."
            )
            raise InputError(msg)
    thresholds[changed] = solve(loadings, weights, spread, target, (always, factor))[changed]
    thresholds[[int(rule[2]) for rule in options.determine]] = NEVER
    return thresholds


def apply_rules(options: Options, present: Bools, uniforms: Floats) -> Bools:
    """Apply the rules: bool ``[images, labels]``; ``uniforms [images, attract rules]`` decide the attraction."""
    result = present.copy()
    for number, (a, b, probability) in enumerate(options.attract):
        result[:, int(b)] |= present[:, int(a)] & (uniforms[:, number] < probability)
    for a, b in options.exclude:
        result[:, b] &= ~present[:, a]
    for a, b, c in options.determine:
        result[:, c] = result[:, a] & result[:, b]
    return result


def check_rules(options: Options) -> None:
    """Raise ``InputError`` unless every rule names known labels and no label is changed twice or chained."""
    sources = {int(a) for a, *_ in (*options.attract, *options.exclude)}
    changed = [int(rule[1]) for rule in (*options.attract, *options.exclude)] + [int(c) for *_, c in options.determine]
    named = {*sources, *changed, *(int(x) for a, b, _ in options.determine for x in (a, b))}
    count = options.num_labels + options.num_scene_labels
    outside = sorted(label for label in named if not 0 <= label < count)
    if outside:
        msg = f"Expected rules of scenes to name labels 0 to {count - 1}, got {outside}. Correct them."
        raise InputError(msg)
    determined = {int(c) for *_, c in options.determine}
    double = sorted(label for label in set(changed) if changed.count(label) > 1 or label in sources)
    chained = sorted({int(x) for a, b, _ in options.determine for x in (a, b)} & determined)
    if double or chained:
        msg = (
            f"Expected each label to be changed by one rule of scenes at most and then to change no other, "
            f"got {sorted({*double, *chained})} more often. Take a rule out."
        )
        raise InputError(msg)
