"""Assume negative: whatever is not annotated as present counts as absent.

The oldest answer to missing labels, and what many released data loaders do
silently. It trains on every entry, right or wrong: with single positive labels
all negatives of the loss are guesses. UNKNOWN and UNCERTAIN are treated alike. A label
that nobody annotates is trained as absent from every image, which a run warns of.

Source: the "AN" baseline of Cole et al. 2021, "Multi-Label Learning from Single
Positive Labels" (CVPR).
"""

from __future__ import annotations

from typing import Literal

from fedmlic.guesses import taken_as_absent
from fedmlic.method import Method
from fedmlic.training import classifier


def assume_negative(*, pool: Literal["mean", "max", "logsumexp"] = "mean") -> Method:
    """Binary cross-entropy over all labels; unknown ones count as absent.

    Args:
        pool: how the logit map becomes one logit per label (``fedmlic.model.Classifier``).
    """
    return classifier(taken_as_absent, pool=pool)._replace(guesses="absent")
