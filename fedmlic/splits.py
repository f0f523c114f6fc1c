"""Random splits that keep groups whole: a patient or an owner is never on two sides."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedmlic.seeds import stream

if TYPE_CHECKING:
    from numpy.typing import NDArray


def hold_out(groups: NDArray[np.int64], fraction: float, seed: int, purpose: str) -> NDArray[np.bool_]:
    """Bool ``[images]``: whole random groups that hold about ``fraction`` of the images.

    Groups are drawn in random order and taken until the share is reached, or passed by the
    one group that comes closest to it. The draw depends on the group numbers, the seed and
    the purpose, not on the order of the images.

    Args:
        groups: the group (patient, owner, image) of each image.
        fraction: share in [0, 1] of the images.
        seed: 0 or more.
        purpose: names the random stream, such as ``"chexpert/val"``.

    >>> chosen = hold_out(np.array([4, 4, 9, 9, 2, 2]), 1 / 3, 0, "example")
    >>> int(chosen.sum()), chosen[0] == chosen[1]
    (2, np.True_)
    """
    names, group_of_image, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = stream(seed, purpose).permutation(len(names))
    totals = np.concatenate(([0], np.cumsum(sizes[order])))
    num_taken = int(np.abs(totals - fraction * len(groups)).argmin())
    taken = np.zeros(len(names), dtype=np.bool_)
    taken[order[:num_taken]] = True
    return np.asarray(taken[group_of_image])


def held_out_counts(num_train: int, val_fraction: float) -> dict[str, int]:
    """Published training images as ``hold_out`` divides them, one image per group.

    >>> held_out_counts(82783, 0.1)
    {'train': 74505, 'val': 8278}
    """
    num_val = min(range(num_train + 1), key=lambda count: abs(count - val_fraction * num_train))
    return {"train": num_train - num_val, "val": num_val}
