"""Two-coin annotators: how often each misses a label and how often it names one that is not there.

Each annotator a writes down an image's label c with two coins: it misses a present one with rate
``miss[a, c]`` and names an absent one with rate ``spurious[a, c]``, on its own. Rates are estimated by
expectation and maximisation: the probability that a label is there, given what was written and what was
believed before (a prevalence, or a network's prediction), then rates as shares under these probabilities.
What the second step needs are sums over images, so parts of the data may be summed up apart and added.

Source: Dawid and Skene, "Maximum Likelihood Estimation of Observer Error-Rates Using the EM Algorithm"
(1979), per label with two outcomes; with a network as the prior, Raykar et al., "Learning From Crowds"
(JMLR 2010).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fedmlic.guesses import precise
from fedmlic.labels import ABSENT, PRESENT

LARGEST_SUM = 0.95
"""Of a miss rate and a spurious rate: annotators beyond it say next to nothing."""
START = 0.1
"""Rates that expectation and maximisation starts from: annotators are believed to be better than chance."""


class Rates(NamedTuple):
    """Miss rates and spurious rates, each in [0, 1]."""

    miss: Tensor
    spurious: Tensor


class Sums(NamedTuple):
    """What rates and prevalences are made of; all add over images.

    Attributes:
        missed: ``[annotators, labels]``, expected present entries that were written down as absent.
        present: likewise, expected present entries among those that were annotated.
        named: expected absent entries that were written down as present.
        absent: expected absent entries among those that were annotated.
    """

    missed: Tensor
    present: Tensor
    named: Tensor
    absent: Tensor

    def plus(self, other: Sums) -> Sums:
        """The sums over both."""
        return Sums(*(here + there for here, there in zip(self, other, strict=True)))


def posterior(votes: Tensor, prior: Tensor, rates: Rates) -> Tensor:
    """float64 ``[images, labels]``: the probability that a label is there, given what annotators wrote.

    Args:
        votes: int8 ``[annotators, images, labels]``; what is neither PRESENT nor ABSENT says nothing.
        prior: ``[images, labels]`` or ``[labels]``, the probability without them.
        rates: ``[annotators, labels]`` each.
    """
    miss, spurious = (rate.double()[:, None] for rate in rates)
    said, silent = votes == PRESENT, votes == ABSENT
    present = torch.where(said, 1 - miss, torch.where(silent, miss, 1.0)).prod(dim=0) * prior
    absent = torch.where(said, spurious, torch.where(silent, 1 - spurious, 1.0)).prod(dim=0) * (1 - prior)
    whole = present + absent
    return torch.where(whole > 0, present / whole.clamp(min=torch.finfo(torch.float64).tiny), prior.double())


def sums_of(votes: Tensor, probs: Tensor) -> Sums:
    """The sums over these images.

    Args:
        votes: int8 ``[annotators, images, labels]``.
        probs: ``[images, labels]``, that a label is there.
    """
    probs = probs.double()
    said, silent = votes == PRESENT, votes == ABSENT
    either = said | silent
    parts = (silent * probs, either * probs, said * (1 - probs), either * (1 - probs))
    return Sums(*(part.sum(dim=1) for part in parts))


def rates_from(sums: Sums, smoothing: float = 0.0) -> Rates:
    """float64 ``[annotators, labels]``: shares, 0 where nothing is known, with a sum of ``LARGEST_SUM`` at most.

    Args:
        sums: over all images that count.
        smoothing: entries without an error that are added to each side, so that few entries say little.
    """
    tiny = torch.finfo(torch.float64).tiny
    miss = sums.missed / (sums.present.double() + smoothing).clamp(min=tiny)
    spurious = sums.named / (sums.absent.double() + smoothing).clamp(min=tiny)
    return bounded(Rates(miss, spurious))


def bounded(rates: Rates) -> Rates:
    """Both rates scaled down where their sum is above ``LARGEST_SUM``."""
    total = rates.miss + rates.spurious
    return Rates(*(torch.where(total > LARGEST_SUM, rate * (LARGEST_SUM / total), rate) for rate in rates))


def written_costs(logits: Tensor, rates: Rates) -> tuple[Tensor, Tensor]:
    """``-log p'`` and ``-log(1 - p')`` of every entry, exact for extreme logits and rates of 0.

    Args:
        logits: floating ``[batch, labels]``.
        rates: ``[labels]`` each, with sums below 1.
    """
    logits = precise(logits)
    miss, spurious = (rate.to(logits.dtype) for rate in rates)
    there, away = F.logsigmoid(logits), F.logsigmoid(-logits)
    present = torch.logaddexp(torch.log1p(-miss) + there, spurious.log() + away)
    absent = torch.logaddexp(miss.log() + there, torch.log1p(-spurious) + away)
    return -present, -absent


def estimated(votes: Tensor, prior: Tensor | None = None, *, steps: int = 200, smoothing: float = 0.0) -> Rates:
    """Rates of annotators by expectation and maximisation.

    Args:
        votes: int8 ``[annotators, images, labels]``.
        prior: ``[images, labels]``, what a network believes; None: one prevalence per label, estimated too,
            for which three annotators or more are needed.
        steps: of expectation and maximisation.
        smoothing: as in ``rates_from``.

    Returns:
        float64 ``[annotators, labels]`` each, in [0, ``LARGEST_SUM``].
    """
    return _iterated(votes, prior, steps, smoothing)[0]


def estimated_presence(votes: Tensor, *, steps: int = 200) -> Tensor:
    """float64 ``[images, labels]``: the probability that a label is there, by rates that the votes themselves tell.

    Args:
        votes: int8 ``[annotators, images, labels]``.
        steps: of expectation and maximisation.
    """
    rates, share = _iterated(votes, None, steps, 0.0)
    return posterior(votes, share, rates)


def _iterated(votes: Tensor, prior: Tensor | None, steps: int, smoothing: float) -> tuple[Rates, Tensor]:
    shape = votes.shape[0], votes.shape[2]
    rates = Rates(*(torch.full(shape, START, dtype=torch.float64, device=votes.device) for _ in range(2)))
    share = torch.full(shape[1:], 0.5, dtype=torch.float64, device=votes.device) if prior is None else prior.double()
    for _ in range(steps if votes.numel() else 0):
        probs = posterior(votes, share, rates)
        rates = rates_from(sums_of(votes, probs), smoothing)
        if prior is None:
            share = probs.mean(dim=0)
    return rates, share
