"""Two coins across clients: annotators' error rates by expectation and maximisation over the rounds, with sums only.

Every client's labels are written by an annotator a who misses a present label c with rate m_ac and names an absent
one with rate s_ac. The global model's probability q_ic is what is believed of entry i, c before its annotation z_ic
is read. From round ``warm_up`` + 1 on a turn begins with, over the client's annotated entries,

    E   mu = (1 - m) q / ((1 - m) q + s (1 - q)) where z is present,  m q / (m q + (1 - s)(1 - q)) where absent
    M   m = (sum of mu where z is absent) / (sum of mu),  s = (sum of 1 - mu where z is present) / (sum of 1 - mu)

``steps`` times, and adds its four sums per label to those of the round. What all clients' sums of the round before
say goes into M:

* ``annotators=0``: every client has an annotator of its own. Its rates are those of its own sums and of ``strength``
  further entries of each kind with the rates of all clients together, so that few entries say little;
* ``annotators=A``: client k has annotator k modulo A (as the regime ``annotator_table`` has it). Rates are those of
  the sums of all clients of that annotator.

The network is trained with these rates:

* ``forward``: -log p' where z is present and -log(1 - p') where absent, p' = (1 - m) p + s (1 - p);
* ``posterior``: binary cross-entropy against mu, the maximisation step of the source for its classifier.

Up to ``warm_up`` the loss is plain. UNKNOWN and UNCERTAIN entries take no part. Images, labels and mu stay with the
client; the four sums per annotator and label are added up over clients. A number behind which there are too few
clients reads 0. The two numbers of a rate count only where both are above 0; otherwise the rate starts at 0.1 and is of
the client's own sums.

Source: Dawid and Skene (1979), per label; with a classifier as the prior Raykar et al., "Learning From Crowds" (JMLR
2010). Deviations: a round is one step of the classifier's maximisation; no image has two annotators, so rates can be
estimated only because clients of different annotators share one model; sums across clients are this project's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fedmlic.annotation.two_coin import START, Rates, Sums, bounded, posterior, rates_from, sums_of, written_costs
from fedmlic.guesses import precise
from fedmlic.image_state import of_all_images
from fedmlic.labels import ABSENT, PRESENT
from fedmlic.losses import known_mean
from fedmlic.method import Inputs, Local, Method
from fedmlic.protocol import ROUND_SUMS
from fedmlic.training import classifier

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

SUMS = "two-coin/sums"
"""Sum of a round, float64 ``[4, annotators, labels]``: the rows of ``annotation.two_coin.Sums``, by ``UNIT``."""
UNIT = 2.0**10
"""A sum of a round may be 2^15 at most; this leaves room for 2^25 entries."""


class Judged(NamedTuple):
    """What a client makes of its annotations.

    Attributes:
        rates: float64 ``[labels]`` each.
        probs: float64 ``[images, labels]``, mu: that a label is there; q where nothing is annotated.
        sums: float64 ``[1, labels]`` each, under mu.
    """

    rates: Rates
    probs: Tensor
    sums: Sums


def known_rates(row: Sums) -> tuple[Tensor, Tensor]:
    """Bool ``[1, labels]``: where a row of sums tells the miss rate, and where the spurious rate.

    A number that is withheld reads 0, and may be withheld without the other of its pair.

    Args:
        row: ``[1, labels]`` each.
    """
    return (row.missed > 0) & (row.present > 0), (row.named > 0) & (row.absent > 0)


def start_rates(num_labels: int, row: Sums | None) -> Rates:
    """float64 ``[1, labels]``: the rates of a row of sums, ``START`` where it does not tell them.

    Args:
        num_labels: how many.
        row: ``[1, labels]`` each.
    """
    none = torch.full((1, num_labels), START, dtype=torch.float64)
    if row is None:
        return Rates(none, none)
    found = _common(row)
    pairs = zip(found, known_rates(row), strict=True)
    return bounded(Rates(*(torch.where(known, rate, START) for rate, known in pairs)))


def with_others(own: Sums, row: Sums | None, strength: float) -> Sums:
    """A client's sums and ``strength`` further entries of each kind with the rates of all clients together.

    Args:
        own: ``[1, labels]`` each.
        row: over all clients, likewise; where it does not tell a rate it adds nothing.
        strength: entries.
    """
    if row is None:
        return own
    common = _common(row)
    weights = [strength * known for known in known_rates(row)]
    further = Sums(common.miss * weights[0], weights[0], common.spurious * weights[1], weights[1])
    return own.plus(further)


def judged(labels: Tensor, taught: Tensor, row: Sums | None, *, strength: float | None, steps: int) -> Judged:
    """Expectation and maximisation over one client's images.

    Args:
        labels: int8 ``[images, labels]``, as written down.
        taught: ``[images, labels]``, q.
        row: sums of the round before, ``[1, labels]`` each, of all clients or of those of this annotator.
        strength: of all clients' rates; None: the row's own rates hold, where it tells them.
        steps: of expectation and maximisation.
    """
    votes, taught = labels[None], taught.double()
    rates = start_rates(labels.shape[1], row)
    for _ in range(steps):
        own = sums_of(votes, posterior(votes, taught, rates))
        if strength is not None:
            rates = rates_from(with_others(own, row, strength))
        else:
            rates = rates_from(own if row is None else _where_known(row, own))
    probs = posterior(votes, taught, rates)
    return Judged(Rates(rates.miss[0], rates.spurious[0]), probs, sums_of(votes, probs))


def _common(row: Sums) -> Rates:
    """A row's rates, 0 where it does not tell them."""
    nothing = torch.zeros_like(row.present)
    return rates_from(_where_known(row, Sums(nothing, nothing, nothing, nothing)))


def _where_known(row: Sums, own: Sums) -> Sums:
    miss, spurious = known_rates(row)
    pairs = zip((miss, miss, spurious, spurious), row, own, strict=True)
    return Sums(*(torch.where(known, there, here) for known, there, here in pairs))


def row_of(shared: Mapping[str, Tensor], annotator: int) -> Sums | None:
    """``[1, labels]`` each: an annotator's sums of the round before; None where nobody sent any.

    Args:
        shared: what the server sent.
        annotator: its number.
    """
    found = shared.get(ROUND_SUMS + SUMS)
    if found is None or not bool(found.any()):
        return None
    return Sums(*(each[annotator, None].cpu() * UNIT for each in found))


def posterior_costs(logits: Tensor, probs: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of every known entry against mu; 0 elsewhere.

    Args:
        logits: floating ``[batch, labels]``.
        probs: ``[batch, labels]``, mu.
        labels: int8 ``[batch, labels]``.
    """
    costs = F.binary_cross_entropy_with_logits(precise(logits), probs.to(precise(logits).dtype), reduction="none")
    return torch.where(labels >= ABSENT, costs, 0.0)


def forward_costs(logits: Tensor, labels: Tensor, rates: Rates) -> Tensor:
    """``-log p'`` of every entry written down as present, ``-log(1 - p')`` as absent; 0 elsewhere.

    Args:
        logits: floating ``[batch, labels]``.
        labels: int8 ``[batch, labels]``.
        rates: ``[labels]`` each.
    """
    present, absent = written_costs(logits, rates)
    return torch.where(labels >= ABSENT, torch.where(labels == PRESENT, present, absent), 0.0)


def _cost(loss: str) -> Callable[..., Tensor]:
    def cost(logits: Tensor, labels: Tensor, probs: Tensor, *rates: Tensor) -> Tensor:
        if loss == "posterior":
            return known_mean(posterior_costs(logits, probs, labels), labels)
        return known_mean(forward_costs(logits, labels, Rates(*rates)), labels)

    return cost


def two_coin(
    *,
    annotators: Annotated[int, Field(ge=0)] = 0,
    strength: Annotated[float, Field(ge=0)] = 20.0,
    loss: Literal["forward", "posterior"] = "forward",
    warm_up: Annotated[int, Field(ge=0)] = 5,
    steps: Annotated[int, Field(ge=1)] = 10,
    pool: Literal["mean", "max", "logsumexp"] = "mean",
) -> Method:
    """Error rates of every client's annotator, estimated across clients, and a loss that is corrected by them.

    Args:
        annotators: how many there are, client k having number k modulo it; 0: every client has its own.
        strength: of ``annotators=0``, entries of each kind that all clients' rates count in a client's own.
        loss: ``forward``, or cross-entropy against the ``posterior`` probability of the true label.
        warm_up: rounds of plain binary cross-entropy.
        steps: of expectation and maximisation in a turn.
        pool: how the logit map becomes one logit per label (``fedmlic.model.Classifier``).

    The training metrics ``miss`` and ``spurious`` are a client's mean rates over labels.
    """

    def judge(local: Local) -> Judged:
        if local.shard is None:
            msg = "Expected a turn with its shard, got none. Train by training.fit."
            raise RuntimeError(msg)
        taught = torch.sigmoid(of_all_images(local, lambda network, images: precise(network(images)))).cpu()
        labels = torch.from_numpy(np.ascontiguousarray(local.shard.labels))
        number = local.client % annotators if annotators else 0
        row = row_of(local.shared, number)
        found = judged(labels, taught, row, strength=None if annotators else strength, steps=steps)
        told = torch.zeros(4, max(annotators, 1), labels.shape[1], dtype=torch.float64)
        told[:, number] = torch.stack([each[0] for each in found.sums]) / UNIT
        local.round_sums[SUMS] = told
        return found

    def inputs(local: Local) -> Inputs:
        held: list[Judged] = []

        def of(images: Tensor, labels: Tensor, numbers: Tensor) -> tuple[Tensor, ...]:
            if local.round <= warm_up:
                nothing = torch.zeros(labels.shape[1], device=images.device)
                return (labels == PRESENT).to(images), nothing, nothing
            if not held:
                held.append(judge(local))
            rates = (rate.to(images.device, torch.float32) for rate in held[0].rates)
            return held[0].probs[numbers].to(images.device, torch.float32), *rates

        def metrics() -> dict[str, float]:
            return {name: float(rate.mean()) for name, rate in held[0].rates._asdict().items()} if held else {}

        return Inputs(of, metrics)

    def round_sums(network: nn.Module, num_labels: int) -> dict[str, Tensor]:
        del network
        return {SUMS: torch.zeros(4, max(annotators, 1), num_labels, dtype=torch.float64)}

    why = "rates are estimated with the global model"
    return classifier(_cost(loss), pool=pool, inputs=inputs, one_by_one=why)._replace(round_sums=round_sums)
