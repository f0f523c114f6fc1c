"""A mixture of two Gaussians over points: who is in the group with the larger mean, and whether there are two groups.

Expectation and maximisation from deterministic starts, so that the same points give the same groups wherever they
are computed. Points are sorted by the sum of their dimensions; a start puts those above a cut into the upper group.
Cuts lie at places spread over the order; the likeliest mixture is kept.

Covariances are diagonal. Where a variance would vanish (a group of one point) it is held at ``SMALLEST`` of the
variance of all points in that dimension; dimensions in which all points are equal are left out.

A mixture always finds two groups. Whether more than chance is behind them is told by the likelihood ratio to one
Gaussian and its parametric bootstrap (McLachlan, "On Bootstrapping the Likelihood Ratio Test Statistic for the Number
of Components in a Normal Mixture", Applied Statistics 1987): points are drawn from one Gaussian with the covariance
that the points have, so that dimensions that vary together do not pass for groups.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

SMALLEST = 1e-3
"""Least variance of a group, in variances of all points."""
TOLERANCE = 1e-7
"""Rise of the mean log-likelihood below which a mixture counts as found."""
STEPS = 100
"""Of expectation and maximisation, at most."""


class Groups(NamedTuple):
    """What a mixture says of every point.

    Attributes:
        upper: bool ``[points]``, more probable in the group with the larger mean (summed over dimensions).
        probs: float64 ``[points]``, probability to be in it.
    """

    upper: Tensor
    probs: Tensor


def two_groups(points: Tensor, *, tied: bool = False, starts: int = 15) -> Groups:
    """Points in two groups. Fewer than three, or equal ones, are one group: nobody is in the upper one.

    Args:
        points: ``[points, dimensions]``, finite.
        tied: whether both groups have the same variances; safer with few points.
        starts: cuts that are tried.
    """
    points, spread = _standardised(points)
    if len(points) < 3 or len(spread) == 0:
        return Groups(torch.zeros(len(points), dtype=torch.bool), torch.zeros(len(points), dtype=torch.float64))
    _, shares, means = _likeliest(points[None], tied=tied, starts=starts)
    # Sums of means count in units of the points, not of their spread.
    probs = shares[0, :, int((means[0] * spread).sum(dim=1).argmax())]
    return Groups(probs > 0.5, probs)


def chance_of_one(points: Tensor, rng: torch.Generator, *, draws: int = 99, starts: int = 7) -> float:
    """How often points of one Gaussian look as much like two groups as these do, in (0, 1]; 1 for fewer than three.

    The statistic is the log-likelihood of two groups with the same variances, of points with mean 0 and variance 1.

    Args:
        points: ``[points, dimensions]``, finite.
        rng: draws points of one Gaussian, on the CPU.
        draws: sets of points that are drawn.
        starts: as in ``two_groups``.
    """
    points, _ = _standardised(points)
    count, dimensions = points.shape
    if count < 3 or dimensions == 0:
        return 1.0
    normal = torch.randn((draws, count, count), generator=rng, dtype=torch.float64)
    alike = normal @ points / math.sqrt(count)
    alike = alike - alike.mean(dim=1, keepdim=True)
    alike = alike / alike.std(dim=1, keepdim=True, correction=0)
    found, others = (_likeliest(each, tied=True, starts=starts)[0] for each in (points[None], alike))
    return (1 + int((others >= found).sum())) / (1 + draws)


def _standardised(points: Tensor) -> tuple[Tensor, Tensor]:
    """Points with mean 0 and variance 1 per dimension, without dimensions that do not vary, and the deviations."""
    points = points.double()
    spread = points.std(dim=0, correction=0) if len(points) else torch.zeros(points.shape[1], dtype=torch.float64)
    varies = spread > 1e-12 * points.abs().amax(dim=0) if len(points) else spread > 0
    points, spread = points[:, varies], spread[varies]
    return (points - points.mean(dim=0)) / spread, spread


def _likeliest(points: Tensor, *, tied: bool, starts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mixtures of sets of points ``[sets, points, dimensions]``, the likeliest of all starts.

    Returns:
        Mean log-likelihood ``[sets]``, shares ``[sets, points, 2]`` and means ``[sets, 2, dimensions]``.
    """
    sets, count, _ = points.shape
    cuts = torch.linspace(1, count - 1, min(starts, count - 1)).round().long()
    place = points.sum(dim=2).argsort(dim=1, stable=True).argsort(dim=1)
    upper = (place[:, None] >= cuts[:, None]).double().flatten(0, 1)
    shares = torch.stack([1 - upper, upper], dim=2)
    repeated = points.repeat_interleave(len(cuts), dim=0)
    before = torch.full((len(shares),), -math.inf, dtype=torch.float64)
    for _ in range(STEPS):
        joint, means = _maximised(repeated, shares, tied=tied)
        whole = joint.logsumexp(dim=2)
        shares, now = (joint - whole[..., None]).exp(), whole.mean(dim=1)
        if bool((now - before < TOLERANCE).all()):
            break
        before = now
    best = now.view(sets, -1).argmax(dim=1) + torch.arange(sets) * len(cuts)
    return now[best], shares[best], means[best]


def _maximised(points: Tensor, shares: Tensor, *, tied: bool) -> tuple[Tensor, Tensor]:
    """Logarithms of weight times density ``[sets, points, 2]`` of the likeliest groups, and their means."""
    sizes = shares.sum(dim=1).clamp(min=1e-9)
    means = torch.einsum("sng,snd->sgd", shares, points) / sizes[..., None]
    variances = torch.einsum("sng,snd->sgd", shares, points.square()) / sizes[..., None] - means.square()
    weights = sizes / points.shape[1]
    if tied:
        variances = (variances * weights[..., None]).sum(dim=1, keepdim=True).expand_as(variances)
    variances = variances.clamp(min=SMALLEST)
    away = (points[:, :, None] - means[:, None]).square() / variances[:, None]
    log_density = -0.5 * (away + (2 * math.pi * variances).log()[:, None]).sum(dim=3)
    return weights.log()[:, None] + log_density, means
