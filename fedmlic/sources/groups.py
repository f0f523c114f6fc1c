"""Patients, owners and studies: their numbers, and splits that never divide one.

A name identifies a group. Numbers follow the alphabetical order of the names, so neither
the order of the images nor the process changes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedmlic.dataset import NO_OWNER
from fedmlic.splits import hold_out

if TYPE_CHECKING:
    from numpy.typing import NDArray


def number_groups(names: Sequence[str]) -> tuple[NDArray[np.int64], list[str]]:
    """int64 ``[images]`` group numbers and the name of each number; a blank name is ``NO_OWNER``.

    >>> number_groups(["b", "", "a", "b"])
    (array([ 1, -1,  0,  1]), ['a', 'b'])
    """
    known = sorted(set(names) - {""})
    place = {name: index for index, name in enumerate(known)} | {"": NO_OWNER}
    return np.fromiter((place[name] for name in names), dtype=np.int64, count=len(names)), known


def deal(
    splits: Sequence[str], groups: NDArray[np.int64], fractions: Mapping[str, float], seed: int, purpose: str
) -> list[str]:
    """The splits with some groups of ``train`` moved to others, whole and at random.

    Args:
        splits: of each image.
        groups: int64 ``[images]``, the number of each image's group.
        fractions: split to fill and the share of today's training images that it gets; later
            ones draw from what the earlier ones left.
        seed: 0 or more.
        purpose: names the random stream.

    Returns:
        One split per image. With few or large groups the shares are approximate, and a
        split may stay empty.
    """
    dealt = np.array(splits, dtype=object)
    total = int((dealt == "train").sum())
    for split, fraction in fractions.items():
        rows = np.flatnonzero(dealt == "train")
        if not len(rows) or not fraction:
            continue
        # Rounded twice, a share that ends on half an image could take another number of them.
        share = fraction if len(rows) == total else min(1.0, fraction * total / len(rows))
        chosen = hold_out(groups[rows], share, seed, f"{purpose}/{split}")
        dealt[rows[chosen]] = split
    return [str(split) for split in dealt]


def crossing(names: Sequence[str], splits: Sequence[str]) -> dict[str, list[str]]:
    """Groups with images in more than one split, and those splits, in alphabetical order."""
    found: dict[str, set[str]] = {}
    for name, split in zip(names, splits, strict=True):
        found.setdefault(name, set()).add(split)
    return {name: sorted(found[name]) for name in sorted(found) if name and len(found[name]) > 1}


def first_of_each(names: Sequence[str]) -> list[bool]:
    """Which images are the first of their group, in the given order."""
    seen: set[str] = set()
    return [not (name in seen or seen.add(name)) for name in names]  # type: ignore[func-returns-value]
