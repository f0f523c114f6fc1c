"""Which of a client's images are held out of training, for its own evaluation.

By image: each image takes its chances by itself, and whose it is does not count. By owner: all images of an
owner (a patient, a photographer) are held out or none, so that a client is never judged by images of an owner
that it trains on. A queue decides, in which an image's or an owner's place depends on the seed and on itself
alone. So the same owner stands equally far in front at every client that has images of it, and clients hold
out mostly the same owners where a partition divides owners among them.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from fedmlic.dataset import NO_OWNER
from fedmlic.partition import ranks_within
from fedmlic.seeds import entry_uniforms, text_keys

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

HoldoutBy = Literal["image", "owner"]
"""What is held out as a whole."""


class Owned(NamedTuple):
    """Whose images they are.

    Attributes:
        owners: int64 ``[images]``, numbers or ``NO_OWNER``: each of those is an owner by itself.
        names: of owner 0, 1, ...; empty where they have none, and their numbers count.
    """

    owners: NDArray[np.int64]
    names: Sequence[str]


def by_image(image_keys: NDArray[np.uint64], sizes: NDArray[np.int64], fraction: float, seed: int) -> NDArray[np.bool_]:
    """Bool ``[images]``, client after client: a random ``round(fraction * n)`` of each client's n, at most n - 1."""
    client_of_image = np.repeat(np.arange(len(sizes)), sizes)
    queue = entry_uniforms(seed, "federation/holdout", 0, image_keys, 1)[:, 0]
    counts = np.minimum(np.rint(fraction * sizes).astype(np.int64), sizes - 1)
    return np.asarray(ranks_within(client_of_image, queue) < counts[client_of_image])


def by_owner(
    image_keys: NDArray[np.uint64], owned: Owned, sizes: NDArray[np.int64], fraction: float, seed: int
) -> NDArray[np.bool_]:
    """Bool ``[images]``, client after client: all images of the owners that are first in the client's queue.

    So many owners are taken that their images come closest to ``fraction`` of the client's, fewer where two
    numbers are equally close, and never more than ``largest_share``. A client with one owner holds out nothing.
    """
    owners = owned.owners
    groups = np.where(owners == NO_OWNER, -1 - np.arange(len(owners)), owners)
    keys = np.where(owners == NO_OWNER, image_keys, _keys_of(owned)[owners])
    queue = entry_uniforms(seed, "federation/holdout/owner", 0, keys, 1)[:, 0]
    held_out = np.zeros(len(owners), dtype=np.bool_)
    for first, last in itertools.pairwise([0, *np.cumsum(sizes).tolist()]):
        held_out[first:last] = _first_in_queue(groups[first:last], queue[first:last], fraction)
    return held_out


def _keys_of(owned: Owned) -> NDArray[np.uint64]:
    """uint64 ``[owners + 1]``: a key per owner number; the last one is nobody's."""
    most = int(owned.owners.max(initial=-1)) + 1
    return text_keys([*(owned.names[:most] or map(str, range(most))), ""])


def _first_in_queue(groups: NDArray[np.int64], queue: NDArray[np.float64], fraction: float) -> NDArray[np.bool_]:
    """Bool ``[images]`` of one client."""
    names, first, group_of_image, counts = np.unique(groups, return_index=True, return_inverse=True, return_counts=True)
    order = np.lexsort((names, queue[first]))
    totals = np.concatenate(([0], np.cumsum(counts[order])))
    totals = totals[(totals <= largest_share(fraction, "owner") * len(groups)) & (totals < len(groups))]
    taken = np.zeros(len(names), dtype=np.bool_)
    taken[order[: int(np.abs(totals - fraction * len(groups)).argmin())]] = True
    return np.asarray(taken[group_of_image])


def largest_share(fraction: float, by: HoldoutBy) -> float:
    """The largest share of its images that a client may hold out, in [0, 1), but for rounding.

    By owner that is twice the fraction, and at least half of what was to remain for training remains.

    >>> largest_share(0.1, "image"), largest_share(0.1, "owner"), largest_share(0.5, "owner")
    (0.1, 0.2, 0.75)
    """
    if by == "image":
        return fraction
    # Just below 1 the mean rounds to 1.
    return min(2 * fraction, (1 + fraction) / 2, math.nextafter(1, 0))
