"""partial-BCE: the log-loss of an image's known labels, weighted by how few of them are known.

    loss of image i = g(r_i) / labels * (sum over its known entries of their log-loss)
    g(r) = alpha r^gamma + beta

r_i is the share of the image's labels that are known. The default has g(1) = 1 and g(0.1) = 5:
with all labels known it is plain BCE. ``alpha=1, beta=0, gamma=-1`` is the mean over an image's known
labels. The batch's loss is the mean over its images; one without a known label costs 0.

Only the loss is here; the source's graph network and its curriculum of pseudo-labels are not.

Source: Durand, Mehrasa and Mori 2019, "Learning a Deep ConvNet for Multi-label Classification with
Partial Labels" (CVPR); the default coefficients are those of three independent reimplementations.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from fedmlic.labels import ABSENT
from fedmlic.losses import binary_cross_entropy
from fedmlic.method import Method
from fedmlic.training import classifier


def partial_loss(logits: Tensor, labels: Tensor, *, alpha: float, beta: float, gamma: float) -> Tensor:
    """The mean over images of their known entries' log-loss, weighted by g of the known share.

    Args:
        logits: floating ``[batch, labels]``.
        labels: int8 ``[batch, labels]``.
        alpha: factor of the power.
        beta: added to it.
        gamma: exponent of the known share.

    >>> import torch
    >>> labels = torch.tensor([[1, 0], [1, -1]], dtype=torch.int8)
    >>> partial_loss(torch.zeros(2, 2), labels, alpha=1.0, beta=0.0, gamma=-1.0).item()
    0.6931471824645996
    """
    num_labels = logits.shape[1]
    known = (labels >= ABSENT).sum(dim=1)
    entries = binary_cross_entropy(logits, labels)
    shares = known.clamp(min=1).to(entries.dtype) / num_labels  # where nothing is known the sum below is 0
    weights = (alpha * shares**gamma + beta) / num_labels
    return (weights * entries.sum(dim=1)).mean()


def partial_bce(
    *,
    alpha: float = -4.45,
    beta: float = 5.45,
    gamma: float = 1.0,
    pool: Literal["mean", "max", "logsumexp"] = "mean",
) -> Method:
    """Known labels only, weighted by the share of an image's labels that is known (partial-BCE).

    Args:
        alpha: g(r) = alpha r^gamma + beta.
        beta: see alpha.
        gamma: see alpha.
        pool: how the logit map becomes one logit per label (``fedmlic.model.Classifier``).
    """

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return partial_loss(logits, labels, alpha=alpha, beta=beta, gamma=gamma)

    return classifier(loss, pool=pool)
