"""Patients, owners and studies: their numbers, and splits that never divide one.

A name identifies a group. Numbers follow the alphabetical order of the names, so neither
the order of the images nor the process changes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from fedmlic.dataset import NO_OWNER
from fedmlic.seeds import stream
from fedmlic.sources.label_names import similar_names
from fedmlic.splits import hold_out

if TYPE_CHECKING:
    from numpy.typing import NDArray


SplitBy = Literal["auto", "owner", "image"]
"""Whether random splits keep the images of an owner together."""

MANY_OWNERS = 20
"""From so many owners on, ``split_by="auto"`` keeps owners whole."""


def owners_whole(split_by: SplitBy, owners: NDArray[np.int64]) -> bool:
    """Whether a random split keeps owners whole.

    ``"auto"`` decides by their number: many owners are people (patients, photographers), whose
    images resemble each other and must not be on both sides; a few are sites (clinics, cameras),
    each of which is to be trained and tested on.
    """
    return split_by == "owner" or (split_by == "auto" and len(np.unique(owners[owners != NO_OWNER])) >= MANY_OWNERS)


def owner_warnings(
    names: Sequence[str], owners: NDArray[np.int64], dealt: Sequence[str], split_by: SplitBy
) -> list[str]:
    """What a person should know of owners and the random split: look-alikes, divided owners, owners not trained on.

    Args:
        names: of owner 0, 1, ...
        owners: int64 ``[images]``.
        dealt: split of each image; empty where the source says the splits.
        split_by: how they were dealt.
    """
    warnings = [
        f"owners {', '.join(map(repr, group))} look alike and count as different" for group in similar_names(names)
    ]
    if not dealt or not len(names):
        return warnings
    if split_by == "auto" and not owners_whole(split_by, owners):
        warnings.append(
            f"the images of each of the {len(names)} owners were divided among the splits at random. If an owner is a "
            "person or a patient, split_by='owner' keeps them whole; split_by='image' says that they are divided"
        )
    train = np.array([split == "train" for split in dealt])
    untrained = sorted(set(range(len(names))) - set(owners[train].tolist()))
    if untrained:
        shown = ", ".join(repr(names[owner]) for owner in untrained[:5]) + (", ..." if len(untrained) > 5 else "")
        warnings.append(
            f"{len(untrained)} of {len(names)} owners have no training image after the random split: {shown}. "
            "split_by='image' divides the images of every owner"
        )
    return warnings


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


def deal_within(
    splits: Sequence[str],
    groups: NDArray[np.int64],
    ids: Sequence[str],
    fractions: Mapping[str, float],
    seed: int,
    purpose: str,
) -> list[str]:
    """The splits with some images of every group moved from ``train`` to others, at random.

    Each group gives about its share, and all together give it to the nearest image; one training
    image stays with every group but ``NO_OWNER``. The order of the images does not matter.

    Args:
        splits: of each image.
        groups: int64 ``[images]``, the number of each image's group, or ``NO_OWNER``.
        ids: a unique text per image.
        fractions: split to fill and the share of the training images that it gets, in [0, 0.5].
        seed: 0 or more.
        purpose: names the random stream.
    """
    dealt = list(splits)
    rows = sorted((row for row, split in enumerate(splits) if split == "train"), key=ids.__getitem__)
    rng = stream(seed, f"{purpose}/within")
    of_group: dict[int, list[int]] = {}
    for place in rng.permutation(len(rows)).tolist():
        of_group.setdefault(int(groups[rows[place]]), []).append(rows[place])
    names = sorted(of_group)
    seen, given = 0, dict.fromkeys(fractions, 0)
    for place in rng.permutation(len(names)).tolist():
        images = of_group[names[place]]
        seen += len(images)
        left = len(images) if names[place] == NO_OWNER else len(images) - 1
        for split, fraction in fractions.items():
            num_taken = max(0, min(left, int(fraction * seen + 0.5) - given[split]))
            for _ in range(num_taken):
                dealt[images.pop()] = split
            left -= num_taken
            given[split] += num_taken
    return dealt


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
