"""Named sums of one client's labels, for what is counted over all clients before the first round."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from fedmlic.errors import InputError
from fedmlic.labels import ABSENT, PRESENT

if TYPE_CHECKING:
    from torch import Tensor

    from fedmlic.shard import Shard

PRESENT_COUNTS, ABSENT_COUNTS, PAIR_COUNTS = "labels/present", "labels/absent", "labels/pairs"
KNOWN_COUNTS, IMAGES = "labels/known", "labels/images"
"""Names of the sums; the last is ``[1]``, the training images."""

OF_A_LABEL = frozenset({PRESENT_COUNTS, ABSENT_COUNTS, KNOWN_COUNTS, PAIR_COUNTS})
"""Where all images are annotated for a label, each of these follows from another and the number of images."""


@dataclass(frozen=True)
class Counted:
    """What is counted of a shard, with the sums that stand or fall together.

    It is a ``Method.statistics`` or ``Mod.statistics``; a plain function of a shard declares none of these.

    Attributes:
        of: named sums of one client's shard.
        together: groups of names. Sums of a group have labels along every axis; a label's own number is where all
            its indices are that label. If a label's own number in one of them has somebody behind it, but too few,
            all numbers of that label in all of them are withheld: every one that has it among its indices. Groups
            of several questions that share a name are one, and names that nobody counts do not matter.
    """

    of: Callable[[Shard], Mapping[str, Tensor]]
    together: tuple[frozenset[str], ...] = ()

    def __call__(self, shard: Shard) -> Mapping[str, Tensor]:
        """The sums of one client's shard.

        Raises:
            InputError: one that is named in ``together`` has something else than the labels along an axis.
        """
        counted = self.of(shard)
        named = frozenset[str]().union(*self.together)
        shapes = {name: list(sums.shape) for name, sums in counted.items() if name in named}
        wrong = [f"{name} {shape}" for name, shape in shapes.items() if set(shape) != {shard.num_labels}]
        if wrong:
            msg = (
                f"Expected sums that stand or fall together to have the {shard.num_labels} labels along every axis, "
                f"got {', '.join(wrong)}. Leave these out of together."
            )
            raise InputError(msg)
        return counted


def together_of(questions: Iterable[object]) -> tuple[frozenset[str], ...]:
    """The groups that questions declare, with those that share a name made one."""
    groups: list[frozenset[str]] = []
    for question in questions:
        for group in question.together if isinstance(question, Counted) else ():
            sharing = [each for each in groups if each & group]
            groups = [*(each for each in groups if not each & group), group.union(*sharing)]
    return tuple(groups)


def _label_counts(shard: Shard) -> dict[str, Tensor]:
    """int64 ``[labels]``: training images in which each label is present, and in which it is absent."""
    return {
        PRESENT_COUNTS: torch.from_numpy(np.asarray((shard.labels == PRESENT).sum(axis=0), dtype=np.int64)),
        ABSENT_COUNTS: torch.from_numpy(np.asarray((shard.labels == ABSENT).sum(axis=0), dtype=np.int64)),
    }


def _annotation_counts(shard: Shard) -> dict[str, Tensor]:
    """int64: ``[labels]``, training images in which each label is known, and ``[1]``, all training images."""
    return {KNOWN_COUNTS: torch.from_numpy(shard.annotations), IMAGES: torch.tensor([shard.num_images])}


def _pair_counts(shard: Shard) -> dict[str, Tensor]:
    """int64 ``[labels, labels]``: training images in which two labels are present together."""
    present = torch.from_numpy(shard.labels == PRESENT).to(torch.float64)
    return {PAIR_COUNTS: (present.T @ present).to(torch.int64)}


def _label_and_pair_counts(shard: Shard) -> dict[str, Tensor]:
    return {**_label_counts(shard), **_pair_counts(shard)}


label_counts = Counted(_label_counts, (OF_A_LABEL,))
"""int64 ``[labels]``: training images in which each label is present, and in which it is absent."""

annotation_counts = Counted(_annotation_counts, (OF_A_LABEL,))
"""int64: ``[labels]``, training images in which each label is known, and ``[1]``, all training images."""

label_and_pair_counts = Counted(_label_and_pair_counts, (OF_A_LABEL,))
"""``label_counts``, and int64 ``[labels, labels]``: training images in which two labels are present together."""
