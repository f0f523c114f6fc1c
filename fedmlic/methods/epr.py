"""EPR: no guess about single entries, only how many labels an image has on average.

    mean over all entries of (-log p where present) + ((mean number of predicted labels) - k)^2 / labels^2

The number of predicted labels of an image is the sum of its probabilities, its mean is over the
batch, and k is given.

Deviations: an entry annotated as ABSENT costs -log(1 - p) (the source has none). Exact logarithms,
where the released code adds 1e-5 to their argument.

Source: expected positive regularisation of Cole et al. 2021, "Multi-Label Learning from Single
Positive Labels" (CVPR).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from fedmlic.guesses import expected_positives
from fedmlic.losses import binary_cross_entropy
from fedmlic.method import Method
from fedmlic.training import classifier


def expected_loss(logits: Tensor, labels: Tensor, expected: float) -> Tensor:
    """Log-loss of known entries over the number of all entries, and the penalty on the number of labels.

    Args:
        logits: floating ``[batch, labels]``.
        labels: int8 ``[batch, labels]``.
        expected: k, labels that an image has on average.
    """
    return binary_cross_entropy(logits, labels).mean() + expected_positives(logits, expected)


def epr(
    *,
    expected: Annotated[float, Field(gt=0)] = 2.9,
    pool: Literal["mean", "max", "logsumexp"] = "mean",
) -> Method:
    """Known entries and the expected number of labels per image (EPR).

    Args:
        expected: k, labels that an image has on average (the source's: VOC 2012 1.5, COCO 2014
            2.9, NUS-WIDE 1.9, CUB 31.4).
        pool: how the logit map becomes one logit per label (``fedmlic.model.Classifier``).
    """
    return classifier(lambda logits, labels: expected_loss(logits, labels, expected), pool=pool)._replace(
        guesses="part of an expected number"
    )
