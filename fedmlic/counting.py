"""Named sums of one client's labels, for what is counted over all clients before the first round."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from fedmlic.labels import ABSENT, PRESENT

if TYPE_CHECKING:
    from torch import Tensor

    from fedmlic.shard import Shard

PRESENT_COUNTS, ABSENT_COUNTS, PAIR_COUNTS = "labels/present", "labels/absent", "labels/pairs"
KNOWN_COUNTS, IMAGES = "labels/known", "labels/images"
"""Names of the sums; the last is ``[1]``, the training images."""


def label_counts(shard: Shard) -> dict[str, Tensor]:
    """int64 ``[labels]``: training images in which each label is present, and in which it is absent."""
    return {
        PRESENT_COUNTS: torch.from_numpy(np.asarray((shard.labels == PRESENT).sum(axis=0), dtype=np.int64)),
        ABSENT_COUNTS: torch.from_numpy(np.asarray((shard.labels == ABSENT).sum(axis=0), dtype=np.int64)),
    }


def annotation_counts(shard: Shard) -> dict[str, Tensor]:
    """int64: ``[labels]``, training images in which each label is known, and ``[1]``, all training images."""
    return {KNOWN_COUNTS: torch.from_numpy(shard.annotations), IMAGES: torch.tensor([shard.num_images])}


def pair_counts(shard: Shard) -> dict[str, Tensor]:
    """int64 ``[labels, labels]``: training images in which two labels are present together."""
    present = torch.from_numpy(shard.labels == PRESENT).to(torch.float64)
    return {PAIR_COUNTS: (present.T @ present).to(torch.int64)}
