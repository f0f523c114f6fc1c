"""Label-mask training: which labels the network is given, and which it is judged by.

Each time an image is used, some of its annotations are *revealed* to the
network as states and the loss is taken over the other annotations only. So the
network learns to use what it knows of some labels for the others. C-Tran and
FedLGT share this; FedLGT then hides more of what was revealed
(``fedmlic.methods.fedlgt.guide``).

With incomplete labels an entry is in one of three places: revealed, supervised,
or neither, because nobody annotated it (UNKNOWN and UNCERTAIN).

Source: Lanchantin et al. 2021, "General Multi-label Image Classification with
Transformers" (CVPR), section 3.4; the bounds as in FedLGT's released code.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from fedmlic.labels import ABSENT, UNKNOWN
from fedmlic.losses import binary_cross_entropy, masked_mean, masked_sum

Reduction = Literal["mean", "sum"]


def reveal(labels: Tensor, known_fraction_max: float, rng: torch.Generator) -> Tensor:
    """Choose the annotations of each image that the network is given.

    An image with K known entries reveals n of them, ``n ~ Uniform{0, ..., floor(
    known_fraction_max * K)}``, all sets of n equally likely, independently of the other
    images. With complete labels K is the number of labels and this is C-Tran's rule. Since
    the fraction is below 1, at least one known entry stays hidden wherever there is one.

    Args:
        labels: int8 ``[batch, labels]``.
        known_fraction_max: in [0, 1).
        rng: CPU generator.

    Returns:
        int8 ``[batch, labels]`` states: the annotation where revealed, UNKNOWN elsewhere.
    """
    is_known = labels >= ABSENT
    draws = torch.rand(len(labels), labels.shape[1] + 1, generator=rng, dtype=torch.float64).to(labels.device)
    num_known = is_known.sum(dim=1, dtype=torch.float64)
    # Products may be rounded up to the next integer, which both minima undo.
    most = (num_known * known_fraction_max).floor().minimum((num_known - 1).clamp(min=0))
    count = (draws[:, 0] * (most + 1)).floor().minimum(most)
    # Known entries in random order come first, the others (2 is above every draw) after them.
    place = torch.where(is_known, draws[:, 1:], 2.0).argsort(dim=1).argsort(dim=1)
    return torch.where(is_known & (place < count[:, None]), labels, UNKNOWN)


def masked_loss(logits: Tensor, labels: Tensor, states: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Binary cross-entropy over the known entries that the network was not given.

    FedLGT, equation 5, as the full binary cross-entropy (the paper prints the positive
    term only) and with "unknown" read as *known to the client, unknown to the network*.

    Args:
        logits: floating ``[batch, labels]``.
        labels: int8 ``[batch, labels]``, observed.
        states: int8 ``[batch, labels]``, what the network was given.
        reduction: mean over these entries of the batch, or their sum (the released code's).

    Returns:
        A scalar; 0 (with gradient 0) where there is no such entry.
    """
    judged = (labels >= ABSENT) & (states < ABSENT)
    reduce = masked_sum if reduction == "sum" else masked_mean
    return reduce(binary_cross_entropy(logits, labels), judged)
