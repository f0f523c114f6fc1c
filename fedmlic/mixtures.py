"""Mixtures of Gaussians, one per image: how likely a point is, how alike two are, how spread out one is.

All formulas are closed forms in the logarithmic domain, so they stay finite in hundreds of
dimensions, where densities themselves leave the range of float32. They compute in float32
(float64 stays float64) under autocast too.

Sources: the product of two Gaussians integrates to a Gaussian of the difference of their means
(e.g. Petersen and Pedersen, "The Matrix Cookbook", 8.1.8); the law of total variance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

TERMS = 2**22
"""Pairs of components (times dimensions, for diagonal covariances) that are in memory at once."""


class Mixtures(NamedTuple):
    """One mixture of Gaussians per image.

    Attributes:
        log_weights: floating ``[images, components]``, logarithms of weights that sum to 1.
        means: floating ``[images, components, dimensions]``.
        variances: floating ``[images, components, 1]`` (the same in all dimensions) or
            ``[images, components, dimensions]`` (diagonal covariances), above 0.
    """

    log_weights: Tensor
    means: Tensor
    variances: Tensor

    def precise(self) -> Mixtures:
        """The same in float32; float64 stays."""
        return Mixtures(*(tensor if tensor.dtype == torch.float64 else tensor.float() for tensor in self))


def log_joint(mixtures: Mixtures, points: Tensor) -> Tensor:
    """``log(weight_k N(point; mean_k, variance_k))`` of every image's point under its own components.

    The logarithm of the density is its logsumexp over components.

    Args:
        mixtures: of some images.
        points: floating ``[images, dimensions]``.

    Returns:
        ``[images, components]``.
    """
    with torch.autocast(points.device.type, enabled=False):
        log_weights, means, variances = mixtures.precise()
        gaps = (points.to(means.dtype)[:, None] - means).square()
        return log_weights + _log_gaussian(gaps, variances)


def log_overlap(first: Mixtures, second: Mixtures, *, matched: bool = False) -> Tensor:
    """The logarithm of the integral of the product of two mixtures, for all pairs of images.

    ``log sum_k sum_l w_k w'_l N(mean_k; mean'_l, variance_k + variance'_l)``

    Args:
        first: of some images.
        second: of others, with as many dimensions.
        matched: only pairs of the same component (k = l): the inner product of the vectors of
            weighted components. Its cost grows with the components, not with their square.

    Returns:
        ``[images of first, images of second]``.

    Source: ``matched`` is how the sister method compares (Hosseini et al., KMCL, arXiv 2307.03967),
    there by Bhattacharyya coefficients.
    """
    with torch.autocast(first.means.device.type, enabled=False):
        first, second = first.precise(), second.precise()
        others = second.log_weights.shape
        dimensions = max(first.variances.shape[-1], second.variances.shape[-1])
        step = max(1, TERMS // (others.numel() * dimensions))
        if matched:
            return _in_blocks(partial(_overlap_matched, second), first, step)
        flat = Mixtures(*(tensor.flatten(0, 1) for tensor in second))

        def sums(*rows: Tensor) -> Tensor:
            return _log_terms(Mixtures(*rows), flat).view(-1, *others).logsumexp(dim=2)

        found = _in_blocks(sums, [tensor.flatten(0, 1) for tensor in first], step)
        return found.view(*first.log_weights.shape, -1).logsumexp(dim=1)


def log_norm(mixtures: Mixtures, *, matched: bool = False) -> Tensor:
    """``log_overlap`` of every mixture with itself, ``[images]``."""
    with torch.autocast(mixtures.means.device.type, enabled=False):
        mixtures = mixtures.precise()
        if matched:
            peaks = _log_gaussian(torch.zeros_like(mixtures.means), 2 * mixtures.variances)
            return (2 * mixtures.log_weights + peaks).logsumexp(dim=1)
        size = mixtures.log_weights.shape[1] ** 2 * mixtures.variances.shape[2]
        if size > TERMS:
            singles = (Mixtures(*(tensor[i : i + 1] for tensor in mixtures)) for i in range(len(mixtures.means)))
            return torch.cat([log_overlap(single, single)[0] for single in singles])

        def sums(*rows: Tensor) -> Tensor:
            return _log_terms(Mixtures(*rows), Mixtures(*rows)).flatten(1).logsumexp(dim=1)

        return _in_blocks(sums, mixtures, TERMS // size)


def log_similarity(first: Mixtures, second: Mixtures, *, matched: bool = False) -> Tensor:
    """The logarithm of the cosine of two mixtures as functions, for all pairs of images.

    ``log <p, q> - (log <p, p> + log <q, q>) / 2``: 0 where both are the same function, below 0
    elsewhere (Cauchy-Schwarz), symmetric. Rounding can make it slightly positive.

    Args:
        first: of some images.
        second: of others.
        matched: as ``log_overlap`` has it.

    Returns:
        ``[images of first, images of second]``.
    """
    norms = log_norm(first, matched=matched)[:, None] + log_norm(second, matched=matched)[None]
    return log_overlap(first, second, matched=matched) - norms / 2


def spread(mixtures: Mixtures) -> dict[str, Tensor]:
    """How spread out every mixture is, by name, ``[images]`` each.

    * ``variance``: of the mixture, averaged over dimensions; the sum of the next two.
    * ``variance_within``: the mean of its components' variances.
    * ``variance_between``: the variance of its components' means.
    * ``effective_components``: exp of the entropy of the weights, from 1 (one component has all
      the weight) to the number of components (all weigh the same).
    """
    log_weights, means, variances = mixtures.precise()
    weights = log_weights.exp()
    middle = (weights[:, :, None] * means).sum(dim=1, keepdim=True)
    within = (weights * variances.mean(dim=2)).sum(dim=1)
    between = (weights * (means - middle).square().mean(dim=2)).sum(dim=1)
    entropy = -torch.xlogy(weights, weights).sum(dim=1)
    return {
        "variance": within + between,
        "variance_within": within,
        "variance_between": between,
        "effective_components": entropy.exp(),
    }


def _overlap_matched(second: Mixtures, *rows: Tensor) -> Tensor:
    """``[rows, images of second]``: components stand first, so that only equal ones meet."""
    here, there = (Mixtures(*(tensor.transpose(0, 1) for tensor in each)) for each in (rows, second))
    return _log_terms(here, there).logsumexp(dim=0)


def _log_terms(first: Mixtures, second: Mixtures) -> Tensor:
    """Logarithms of the terms of the overlap, ``[..., components of first, components of second]``."""
    weights = first.log_weights[..., :, None] + second.log_weights[..., None, :]
    variances = first.variances[..., :, None, :] + second.variances[..., None, :, :]
    if variances.shape[-1] > 1:
        gaps = (first.means[..., :, None, :] - second.means[..., None, :, :]).square()
        return weights + _log_gaussian(gaps, variances)
    # One variance for all dimensions needs the squared distance only, which a product of matrices gives;
    # in float64, since small distances are small differences of large squares, and then count by 1 / variance.
    here, there = first.means.double(), second.means.double()
    ends = here.square().sum(-1)[..., :, None] + there.square().sum(-1)[..., None, :]
    distances = (ends - 2 * here @ there.transpose(-1, -2)).clamp(min=0).to(weights.dtype)
    same = variances[..., 0]
    return weights - 0.5 * (here.shape[-1] * (2 * math.pi * same).log() + distances / same)


def _log_gaussian(gaps: Tensor, variances: Tensor) -> Tensor:
    """Log-densities from squared differences ``[..., dimensions]`` and variances ``[..., 1 or dimensions]``."""
    logs = (2 * math.pi * variances).log().sum(-1) * (gaps.shape[-1] / variances.shape[-1])
    return -0.5 * (logs + (gaps / variances).sum(-1))


def _in_blocks(compute: Callable[..., Tensor], rows: Sequence[Tensor], step: int) -> Tensor:
    """``compute`` of ``step`` rows at a time; what it needs for the gradient is computed again, not kept."""
    blocks = list(zip(*(torch.split(tensor, step) for tensor in rows), strict=True))
    if len(blocks) == 1:
        return compute(*blocks[0])
    if not torch.is_grad_enabled():
        return torch.cat([compute(*block) for block in blocks])
    found: list[Tensor] = [checkpoint(compute, *b, use_reentrant=False, preserve_rng_state=False) for b in blocks]
    return torch.cat(found)
