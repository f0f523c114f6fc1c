"""LL-R, LL-Ct and LL-Cp: the largest losses on guessed absences are taken for missing labels.

Assume negative, but from a client's second pass on the largest losses among entries that nobody
annotated are rejected (R), corrected in this step (Ct) or corrected for good (Cp). Formulas and source:
``fedmlic.large_losses``.

Deviations: entries annotated as ABSENT are never large. "Epoch" is the client's own count of passes,
and the share of large entries stops growing after ``epochs`` of them (the source trains for 10). The
source's early stop is not here: Cp corrects at least one further entry of every batch for as long as training lasts.
Corrections of Cp are kept on the client and never leave it.

Source: Kim et al. 2022, "Large Loss Matters in Weakly Supervised Multi-Label Classification" (CVPR).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedmlic.large_losses import DELTAS, large_loss_inputs, large_loss_step
from fedmlic.method import Method
from fedmlic.training import classifier


def large_loss(
    *,
    variant: Literal["R", "Ct", "Cp"] = "R",
    delta: Annotated[float, Field(ge=0, le=100)] | None = None,
    epochs: Annotated[int, Field(ge=1)] = 10,
    pool: Literal["mean", "max", "logsumexp"] = "mean",
) -> Method:
    """Large losses on guessed absences are rejected or corrected (LL-R, LL-Ct, LL-Cp).

    Args:
        variant: R rejects them, Ct takes them as present in this step, Cp for good.
        delta: percentage of a batch's entries that counts as large, per pass (None: R 0.5, Ct 0.2,
            Cp 0.1).
        epochs: passes of a client over which the percentage of R and Ct grows.
        pool: how the logit map becomes one logit per label (``fedmlic.model.Classifier``).

    The training metric ``large-per-label`` counts entries that were large, divided by the number of labels.
    """
    inputs = large_loss_inputs(variant, DELTAS[variant] if delta is None else delta, epochs)
    return classifier(large_loss_step(variant), pool=pool, inputs=inputs)._replace(remembers=True, guesses="absent")
