"""Contrast between images by their labels: which pairs belong together, the loss, and keys of earlier steps.

Labels may be incomplete, so a pair is judged by the labels that are known in both images, and it
is judged at all only if one of these is present in one of the two. Then the images certainly share
a label, or certainly differ in one. All other pairs take no part: neither are they drawn together
nor pushed apart. Nothing is guessed of what nobody annotated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from fedmlic.labels import ABSENT, PRESENT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedmlic.method import Local

Index = Literal["jaccard", "overlap", "dice", "cosine"]

QUEUE = "queue/"
"""Begins the names of kept keys in ``local.memory``."""


def label_overlap(first: Tensor, second: Tensor, index: Index = "jaccard") -> tuple[Tensor, Tensor]:
    """How much the present labels of two images overlap, over the labels that are known in both.

    With a and b the numbers of labels present in either image and s of those present in both, out of
    the labels known in both:

    * ``jaccard``: s / (a + b - s);
    * ``overlap``: s / min(a, b);
    * ``dice``: 2 s / (a + b);
    * ``cosine``: s / sqrt(a b).

    All lie in [0, 1], and 0 / 0 is 0. UNCERTAIN counts as UNKNOWN.

    Args:
        first: int8 ``[images, labels]``.
        second: int8 ``[others, labels]``.
        index: which.

    Returns:
        float64 ``[images, others]``, the index; bool of the same shape, whether the pair can be
        judged: a + b > 0.

    >>> first = torch.tensor([[1, 1, 0, -1]], dtype=torch.int8)
    >>> second = torch.tensor([[1, 0, 0, 1], [-1, -1, -1, 1]], dtype=torch.int8)
    >>> label_overlap(first, second)
    (tensor([[0.5000, 0.0000]], dtype=torch.float64), tensor([[ True, False]]))
    """
    here, there = (first == PRESENT).double(), (second == PRESENT).double()
    shared = here @ there.T
    own = here @ (second >= ABSENT).double().T
    other = (first >= ABSENT).double() @ there.T
    size = {
        "jaccard": own + other - shared,
        "overlap": torch.minimum(own, other),
        "dice": (own + other) / 2,
        "cosine": (own * other).sqrt(),
    }[index]
    return torch.where(shared > 0, shared / size, 0.0), own + other > 0


class Pairs(NamedTuple):
    """Which keys an anchor is compared with.

    Attributes:
        positive: bool ``[anchors, keys]``, keys that it is drawn to.
        counted: bool ``[anchors, keys]``, keys that it is compared with, positive ones included.
    """

    positive: Tensor
    counted: Tensor

    @property
    def anchors(self) -> int:
        """Anchors with a positive key; the others are skipped."""
        return int(self.positive.any(dim=1).sum())


def pairs_of(anchors: Tensor, queue: Tensor | None, index: Index, threshold: float) -> Pairs:
    """Pairs of anchors with each other, themselves left out, and with the keys of a queue.

    A pair is positive if it can be judged and its index is ``threshold`` or more; other pairs that can
    be judged are negative.

    Args:
        anchors: int8 ``[anchors, labels]``; two views of an image are two anchors.
        queue: int8 ``[queue, labels]``, or None without any.
        index: as ``label_overlap`` has it.
        threshold: alpha, in (0, 1]: 1 asks for the same labels, of ``overlap`` that one set holds the other; a
            number near 0 asks for one label in common.
    """
    keys = anchors if queue is None else torch.cat([anchors, queue])
    overlap, judged = label_overlap(anchors, keys, index)
    judged[:, : len(anchors)].fill_diagonal_(False)
    return Pairs(judged & (overlap >= threshold), judged)


def contrastive_loss(similarity: Tensor, positive: Tensor, counted: Tensor) -> Tensor:
    """How little of an anchor's softmax over its keys lies on its positive ones.

    The mean over anchors that have positive keys of the mean over these keys p of
    ``-(s_p - log sum over counted keys of exp(s))``; 0, with a gradient of 0, if no anchor has any.

    Args:
        similarity: floating ``[anchors, keys]``, divided by the temperature.
        positive: bool ``[anchors, keys]``.
        counted: bool ``[anchors, keys]``; every positive key is counted.

    Source: Khosla et al. 2020, "Supervised Contrastive Learning" (NeurIPS), equation 2.
    """
    precise = similarity if similarity.dtype == torch.float64 else similarity.float()
    # Not -inf: an anchor without any key would send back NaN.
    among = precise.masked_fill(~counted, torch.finfo(precise.dtype).min / 2)
    shares = torch.where(positive, precise - among.logsumexp(dim=1, keepdim=True), 0.0)
    num_positive = positive.sum(dim=1)
    each = -shares.sum(dim=1) / num_positive.clamp(min=1)
    return each.sum() / (num_positive > 0).sum().clamp(min=1)


class Queue:
    """Keys of a client's last images, from step to step and from turn to turn; they never leave it.

    They are what the network gave when they were pushed. The method must say that it ``remembers``.

    Args:
        local: whose turn it is.
        size: keys that are kept; 0 keeps none.

    Attributes:
        labels: int8 ``[keys, labels]``, on the CPU; None while there are no keys.
        keys: what was pushed, the oldest first, on the client's device.
    """

    def __init__(self, local: Local, size: int) -> None:
        self._memory, self._size = local.memory, size
        kept = {name: tensor for name, tensor in local.memory.items() if name.startswith(QUEUE)}
        self.labels = kept.pop(QUEUE + "labels", None)
        self.keys = tuple(kept[name].to(local.device) for name in sorted(kept))

    def push(self, labels: Tensor, keys: Sequence[Tensor]) -> None:
        """Add the keys of a batch, and let go of the oldest beyond the size.

        Args:
            labels: int8 ``[batch, labels]``, on the CPU.
            keys: fewer than ten tensors ``[batch, ...]``.
        """
        if not self._size:
            return
        before = self.keys or [key[:0] for key in keys]
        self.keys = tuple(torch.cat([old, new])[-self._size :] for old, new in zip(before, keys, strict=True))
        self.labels = (labels if self.labels is None else torch.cat([self.labels, labels]))[-self._size :]
        self._memory.update({f"{QUEUE}{number}": key for number, key in enumerate(self.keys)})
        self._memory[QUEUE + "labels"] = self.labels
