"""Binary cross-entropy that knows how often each client's annotator errs.

A present label c is missed with rate m = miss_c and an absent one is named with rate s = spurious_c, on its
own ("two coins"). With p the network's probability that c is there, p' = (1 - m) p + s (1 - p) that it is
written down, l(y) = binary cross-entropy of p against y, and z what is written down:

* ``forward``:    -log p' where z is present, -log(1 - p') where absent. Its minimum is at the clean p.
* ``backward``:   ((1 - s) l(1) - m l(0)) / (1 - m - s) where present, ((1 - m) l(0) - s l(1)) / (1 - m - s)
  where absent: unbiased, its mean over what may be written down is l(truth). It may be below 0.
* ``importance``: beta l(z), beta = p / p' where present and (1 - p) / (1 - p') where absent, without gradient.

Without noise all three are binary cross-entropy. UNKNOWN and UNCERTAIN entries take no part.

``rates`` says where m and s come from: ``given`` are the arguments; ``table`` are published rates of three
real annotators of PASCAL labels (``annotator``); ``anchors`` and ``em`` are each client's own estimate, made
anew in every turn from its labels and the global model's probabilities q as the turn begins:

* ``anchors``: of the client's entries of a label, those with the largest q count as present (``share`` times as
  many as are written down as present), those with the smallest q likewise as absent; rates are the shares
  of them that are written down otherwise;
* ``em``: two coins by expectation and maximisation, with q as what is believed before (Raykar et al.).

In the first ``warm_up`` rounds estimates are not used: the loss is plain. Rates never leave the client.

Both estimates trust the global model. What all clients' annotators miss alike it learns to miss, and no client
can see it; what it has learned by heart looks right; ``em`` reads q as clean probabilities, which a model that
was trained on noisy labels gives too low. A label that the client never writes down as present has no anchors.

Source: forward is Patrini et al., "Making Deep Neural Networks Robust to Label Noise: A Loss Correction
Approach" (CVPR 2017); backward is Natarajan et al., "Learning with Noisy Labels" (NeurIPS 2013), per label
as in Xie and Huang's class-conditional multi-label noise; importance is Liu and Tao, "Classification with
Noisy Labels by Importance Reweighting" (TPAMI 2016), per label as in Li et al. (NeurIPS 2022). Deviation: Li
et al. estimate rates from the co-occurrence of labels, which is not here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from fedmlic.annotation.published_rates import ANNOTATORS, RATES, rates_of
from fedmlic.annotation.two_coin import Rates, bounded, estimated, rates_from, sums_of, written_costs
from fedmlic.errors import InputError, listing
from fedmlic.guesses import absent_cost, precise, present_cost
from fedmlic.labels import ABSENT, PRESENT
from fedmlic.losses import known_mean
from fedmlic.method import Inputs, Local, Method
from fedmlic.training import classifier

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Rate = Annotated[float, Field(ge=0, lt=1)]
Correction = Literal["forward", "backward", "importance"]


def corrected_entries(correction: str, logits: Tensor, labels: Tensor, rates: Rates) -> Tensor:
    """The loss of every known entry; 0 elsewhere.

    Args:
        correction: forward, backward or importance.
        logits: floating ``[batch, labels]``.
        labels: int8 ``[batch, labels]``, as written down.
        rates: ``[labels]`` each, with sums below 1.
    """
    there, away = present_cost(logits), absent_cost(logits)
    if correction == "backward":
        miss, spurious = (rate.to(there.dtype) for rate in rates)
        whole = 1 - miss - spurious
        present = ((1 - spurious) * there - miss * away) / whole
        absent = ((1 - miss) * away - spurious * there) / whole
    else:
        present, absent = written_costs(logits, rates)
        if correction == "importance":  # beta = P(truth) / P(written)
            present = (present - there).detach().exp() * there
            absent = (absent - away).detach().exp() * away
    found = torch.where(labels == PRESENT, present, absent)
    return torch.where(labels >= ABSENT, found, 0.0)


def by_anchors(probs: Tensor, labels: Tensor, share: float, smoothing: float) -> Rates:
    """float64 ``[labels]``: shares of wrong entries among those of which the model is surest.

    Args:
        probs: ``[images, labels]``, the model's; only their order counts.
        labels: int8, likewise.
        share: of the number of entries written down as present (absent), how many of the most (least)
            probable entries count as the truth.
        smoothing: entries without an error that are added, so that few anchors say little.
    """
    votes = torch.full_like(labels, -1)
    truth = torch.zeros(labels.shape, dtype=torch.float64, device=labels.device)
    for state, sign in ((PRESENT, -1.0), (ABSENT, 1.0)):
        wanted = torch.ceil(share * (labels == state).sum(dim=0)).long()
        order = torch.where(labels >= ABSENT, sign * probs, torch.inf).argsort(dim=0, stable=True)
        place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)).to(order)[:, None].expand_as(order))
        anchors = place < wanted
        votes = torch.where(anchors, labels, votes)
        truth = torch.where(anchors, float(state == PRESENT), truth)
    found = rates_from(sums_of(votes[None], truth), smoothing)
    return Rates(found.miss[0], found.spurious[0])


def by_em(probs: Tensor, labels: Tensor, smoothing: float) -> Rates:
    """float64 ``[labels]``: two coins by expectation and maximisation, the model's probabilities as the prior."""
    found = estimated(labels[None], probs, smoothing=smoothing)
    return Rates(found.miss[0], found.spurious[0])


def published(label_names: Sequence[str], annotator: str, client: int, match: str = "name") -> Rates:
    """float64 ``[labels]``: the published rates of a client's annotator.

    Args:
        label_names: PASCAL's, or COCO's names for the same things.
        annotator: one of ``ANNOTATORS``, or ``in_turn``: client k has number k modulo 3.
        client: whose.
        match: rows by ``name``, or label k by row k modulo 20 (``order``), as the regime ``annotator_table`` does.

    Raises:
        InputError: a label is not in the table.
    """
    every = list(RATES.values())
    by_name = match == "name"
    rows = [rates_of(name) if by_name else every[place % len(every)] for place, name in enumerate(label_names)]
    unknown = [repr(name) for name, row in zip(label_names, rows, strict=True) if row is None]
    if unknown:
        expected = "Expected labels to be among the 20 of the annotator table (use match='order', or other rates)"
        raise listing(expected, unknown)
    number = client % len(ANNOTATORS) if annotator == "in_turn" else ANNOTATORS.index(annotator)
    table = torch.tensor([row for row in rows if row is not None], dtype=torch.float64).view(len(rows), -1, 2)
    return bounded(Rates(table[:, number, 0], table[:, number, 1]))


def noise_corrected(
    *,
    correction: Correction = "forward",
    rates: Literal["given", "table", "anchors", "em"] = "given",
    miss: Rate = 0.2,
    spurious: Rate = 0.01,
    annotator: Literal["google", "microsoft", "everypixel", "in_turn"] = "in_turn",
    match: Literal["name", "order"] = "name",
    warm_up: Annotated[int, Field(ge=0)] = 5,
    share: Annotated[float, Field(gt=0, le=1)] = 0.5,
    smoothing: Annotated[float, Field(ge=0)] = 1.0,
    pool: Literal["mean", "max", "logsumexp"] = "mean",
) -> Method:
    """Losses that are corrected for the rates at which a client's annotator errs.

    Args:
        correction: of the loss: ``forward``, ``backward`` (unbiased) or ``importance``.
        rates: ``given`` for all labels and clients, from the ``table`` of published ones, or each client's
            estimate by ``anchors`` or ``em``.
        miss: of ``given``, the share of present entries that are written down as absent.
        spurious: of ``given``, the share of absent entries that are written down as present.
        annotator: of ``table``: one for all clients, or ``in_turn``, as ``annotator_table`` has it.
        match: of ``table``: its rows by label ``name``, or label k by row k modulo 20 (``order``).
        warm_up: rounds before estimates are used.
        share: of ``anchors``, how many there are, in entries that are written down alike.
        smoothing: of estimates, entries without an error that are added to each side of a label.
        pool: how the logit map becomes one logit per label (``fedmlic.model.Classifier``).

    The training metrics ``miss`` and ``spurious`` are a client's mean rates over labels.

    Raises:
        InputError: ``miss`` and ``spurious`` add up to 1 or more.
    """
    if miss + spurious >= 1:
        msg = f"Expected miss and spurious to add up to less than 1, got {miss} and {spurious}. Lower one of them."
        raise InputError(msg)
    estimates = rates in {"anchors", "em"}

    def first(local: Local, num_labels: int) -> Rates:
        if rates == "table":
            names = local.shard.label_names if local.shard is not None else ()
            return published(names, annotator, local.client, match)
        each = (0.0, 0.0) if estimates else (miss, spurious)
        return Rates(*(torch.full((num_labels,), rate, dtype=torch.float64) for rate in each))

    def estimate(local: Local) -> Rates:
        if local.shard is None or local.on_all is None:
            msg = "Expected a turn that can look at all images, got none. Train by training.fit."
            raise RuntimeError(msg)
        probs = torch.sigmoid(local.on_all(_logits))
        labels = torch.from_numpy(np.ascontiguousarray(local.shard.labels)).to(probs.device)
        return by_anchors(probs, labels, share, smoothing) if rates == "anchors" else by_em(probs, labels, smoothing)

    def inputs(local: Local) -> Inputs:
        held: list[Rates] = []

        def of(images: Tensor, labels: Tensor, _numbers: Tensor) -> tuple[Tensor, Tensor]:
            if not held:
                found = estimate(local) if estimates and local.round > warm_up else first(local, labels.shape[1])
                held.append(Rates(*(rate.to(images.device, torch.float32) for rate in found)))
            return held[0]

        def metrics() -> dict[str, float]:
            return {name: float(rate.mean()) for name, rate in held[0]._asdict().items()} if held else {}

        return Inputs(of, metrics)

    why = "rates are estimated with the global model" if estimates else ""
    return classifier(_loss(correction), pool=pool, inputs=inputs, one_by_one=why)


def _loss(correction: str) -> Callable[..., Tensor]:
    def loss(logits: Tensor, labels: Tensor, miss: Tensor, spurious: Tensor) -> Tensor:
        return known_mean(corrected_entries(correction, logits, labels, Rates(miss, spurious)), labels)

    return loss


def _logits(network: nn.Module, images: Tensor) -> Tensor:
    return precise(network(images))
