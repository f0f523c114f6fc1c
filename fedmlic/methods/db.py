"""DB: distribution-balanced loss for long tails: entries re-weighted, negatives tolerated.

With n_c images in which label c is present, of N, and image i:

    r_ic  = (1 / n_c) / (sum over labels j present in i of 1 / n_j)
    r^_ic = a + sigmoid(b (r_ic - u))
    z     = s_ic - (kappa / lambda) log(N / n_c - 1)
    loss  = r^_ic * (softplus(-z) where present, softplus(lambda z) / lambda where absent)

r undoes what drawing images by class does to labels that occur together; lambda and the shift keep
easy absences from pushing rare labels down. ``focal=True`` multiplies by 2 (1 - p_t)^2 (DB-focal), p_t
of z where present and of lambda z where absent.

An image without a present label has r without bound: r^ = a + 1. A label of which no present entry is
counted (or whose count is withheld) has r^ = 1 and no shift; in an image that has it, every label has r^ = 1.

Deviations: UNKNOWN and UNCERTAIN entries take no part; the mean is over known entries. The source
draws images by class; here a client's images come once per pass. Counts are the client's own, or with
``counts="global"`` those of all clients together, counted once before the first round (the source's
setting, as far as a federation allows it).

Source: Wu et al. 2020, "Distribution-Balanced Loss for Multi-Label Classification in Long-Tailed
Datasets" (ECCV); defaults are the released code's for COCO-MLT.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedmlic.distribution_balanced import Balance, count_inputs, counted, rebalanced, shifts, tolerant_entries
from fedmlic.method import Method
from fedmlic.training import classifier

__all__ = ("counted", "db", "rebalanced", "shifts", "tolerant_entries")


def db(
    *,
    counts: Literal["client", "global"] = "client",
    rebalance: bool = True,
    floor: Annotated[float, Field(ge=0)] = 0.1,
    steepness: Annotated[float, Field(ge=0)] = 10.0,
    middle: Annotated[float, Field(ge=0)] = 0.2,
    kappa: Annotated[float, Field(ge=0)] = 0.05,
    tolerance: Annotated[float, Field(gt=0)] = 2.0,
    focal: bool = False,
    pool: Literal["mean", "max", "logsumexp"] = "mean",
) -> Method:
    """Distribution-balanced loss for long-tailed labels (DB, DB-focal).

    Args:
        counts: the client's own, or of all clients, counted once before the first round (needs
            ``allow-statistics``).
        rebalance: whether entries are re-weighted (R-BCE).
        floor: a, the smallest weight (COCO-MLT 0.1).
        steepness: b (10).
        middle: u (COCO-MLT 0.2, VOC-MLT 0.3).
        kappa: how strongly logits are shifted by their label's frequency.
        tolerance: lambda, how negatives are tolerated (COCO-MLT 2, VOC-MLT 5).
        focal: whether easy entries fade (DB-focal).
        pool: how the logit map becomes one logit per label (``fedmlic.model.Classifier``).
    """
    loss = Balance(rebalance, floor, steepness, middle, kappa, tolerance, focal).loss
    method = classifier(loss, pool=pool, inputs=count_inputs(counts))
    return method._replace(statistics=counted) if counts == "global" else method
