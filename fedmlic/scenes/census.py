"""Which images there are: their owners, splits and keys, before anything is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedmlic.dataset import NO_OWNER, SPLITS
from fedmlic.errors import InputError
from fedmlic.seeds import entry_uniforms
from fedmlic.splits import hold_out

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedmlic.scenes.options import Options
    from fedmlic.scenes.owners import Owners

    Ints = NDArray[np.int64]

TESTS = ("owners", "iid", "unseen-styles", "unseen-combinations", "balanced", "independent")
"""What the test split may hold: a part of the owners' images, or scenes that belong to nobody."""


class Census(NamedTuple):
    """One entry per image.

    Attributes:
        owner: int64 ``[images]``, place among the owners that were drawn, or ``NO_OWNER``.
        place: int64 ``[images]``, number among the owner's images, or among those of nobody.
        split: int64 ``[images]``, place in ``SPLITS``.
        key: uint64 ``[images]``, the image's own number; the split is no part of it.
    """

    owner: Ints
    place: Ints
    split: Ints
    key: NDArray[np.uint64]

    def take(self, rows: slice) -> Census:
        """Some of the images."""
        return Census._make(array[rows] for array in self)


def census(options: Options, group: Owners) -> Census:
    """Owners' images by owner, then test images of nobody.

    Raises:
        InputError: a split that was asked for would be empty.
    """
    owner = np.repeat(np.arange(len(group.number)), group.size)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(group.size) - group.size, group.size)
    key = (group.number[owner] << 28 | place).astype(np.uint64)
    split = _by_owner(options, group, owner) if options.split_by == "owner" else _by_image(options, group, owner, key)
    if options.test != "owners":
        kind = TESTS.index(options.test)
        nobodys = np.arange(options.num_test)
        owner = np.concatenate([owner, np.full(options.num_test, NO_OWNER)])
        place = np.concatenate([place, nobodys])
        split = np.concatenate([split, np.full(options.num_test, SPLITS.index("test"))])
        key = np.concatenate([key, (kind << 58 | nobodys).astype(np.uint64)])
    _check(options, split)
    return Census(owner, place, split, key)


def _by_owner(options: Options, group: Owners, owner: Ints) -> Ints:
    """int64 ``[images]``: whole owners go to validation and test (FLAIR's way)."""
    split = np.zeros(len(owner), dtype=np.int64)
    numbers = group.number[owner]
    if options.test == "owners":
        split[_whole_owners(numbers, options.test_fraction, options.seed, "test")] = SPLITS.index("test")
    rest = np.flatnonzero(split == 0)
    share = options.val_fraction * len(owner) / max(1, len(rest))
    split[rest[_whole_owners(numbers[rest], min(1.0, share), options.seed, "val")]] = SPLITS.index("val")
    return split


def _whole_owners(numbers: Ints, fraction: float, seed: int, purpose: str) -> NDArray[np.bool_]:
    """Bool ``[images]``: random owners with about that share of images; the smallest one if all are too large."""
    taken = hold_out(numbers, fraction, seed, f"scenes/{purpose} owners")
    names, sizes = np.unique(numbers, return_counts=True)
    if fraction > 0 and not taken.any() and len(names) > 1:
        taken = numbers == names[sizes.argmin()]
    return np.asarray(taken)


def _by_image(options: Options, group: Owners, owner: Ints, key: NDArray[np.uint64]) -> Ints:
    """int64 ``[images]``: a share of every owner's images goes to validation and test."""
    ticket = entry_uniforms(options.seed, "scenes/split", 0, key, 1)[:, 0]
    order = np.lexsort((ticket, owner))
    rank = np.empty(len(owner), dtype=np.int64)
    rank[order] = np.arange(len(owner)) - np.repeat(np.cumsum(group.size) - group.size, group.size)
    test_fraction = options.test_fraction if options.test == "owners" else 0.0
    num_test = np.floor(group.size * test_fraction + 0.5).astype(np.int64)[owner]
    num_val = np.floor(group.size * options.val_fraction + 0.5).astype(np.int64)[owner]
    split = np.where(rank < num_test, SPLITS.index("test"), 0)
    return np.asarray(np.where((rank >= num_test) & (rank < num_test + num_val), SPLITS.index("val"), split))


def _check(options: Options, split: Ints) -> None:
    wanted = {
        "train": True,
        "val": options.val_fraction > 0,
        "test": options.test_fraction > 0 if options.test == "owners" else options.num_test > 0,
    }
    counts = np.bincount(split, minlength=len(SPLITS))
    empty = [name for name, count in zip(SPLITS, counts.tolist(), strict=True) if wanted[name] and not count]
    if empty:
        msg = (
            f"Expected {options.num_owners} owners of scenes to fill every split, got none left for {empty}. "
            "Draw more owners or images, or change the fractions."
        )
        raise InputError(msg)
