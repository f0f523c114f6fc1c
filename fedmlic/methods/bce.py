"""BCE: the mean log-loss over what the client's annotators wrote down.

UNKNOWN and UNCERTAIN entries take no part. The baseline of every comparison,
and the shortest example of a method.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedmlic.losses import mean_binary_cross_entropy
from fedmlic.method import Method
from fedmlic.training import classifier


def bce(
    *,
    pool: Literal["mean", "max", "logsumexp"] = "mean",
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = (),
) -> Method:
    """Binary cross-entropy over known labels only.

    Args:
        pool: how the logit map becomes one logit per label (``fedmlic.model.Classifier``).
        hidden: units of hidden layers between the feature map and the logits; on features that do
            not train, the trainable capacity to compare a label transformer with.
    """
    return classifier(mean_binary_cross_entropy, pool=pool, hidden=hidden)
