"""BCE: the mean log-loss over what the client's annotators wrote down.

UNKNOWN and UNCERTAIN entries take no part. The baseline of every comparison,
and the shortest example of a method.
"""

from __future__ import annotations

from typing import Literal

from fedmlic.losses import mean_binary_cross_entropy
from fedmlic.method import Method
from fedmlic.training import classifier


def bce(*, pool: Literal["mean", "max", "logsumexp"] = "mean") -> Method:
    """Binary cross-entropy over known labels only.

    Args:
        pool: how the logit map becomes one logit per label (``fedmlic.model.Classifier``).
    """
    return classifier(mean_binary_cross_entropy, pool=pool, known_only=True)
