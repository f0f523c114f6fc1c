"""The names of the random changes of training images: of the setting ``augmentation`` and of methods' own views.

What they do is in ``fedmlic.views``; here is what a setting may say, without torch.
"""

from __future__ import annotations

from typing import Literal, cast, get_args

from fedmlic.errors import InputError, nearest

Change = Literal["flip", "shift", "crop", "colours", "cutout", "randaugment"]

CHANGES: tuple[Change, ...] = get_args(Change)


def changes_of(text: str) -> tuple[Change, ...]:
    """The changes that a setting names, in the order in which they are done.

    Args:
        text: names joined by ``+``, or ``none``.

    Raises:
        InputError: an unknown name, or one that stands twice.
    """
    if text == "none":
        return ()
    names = text.split("+")
    for name in names:
        if name not in CHANGES:
            msg = f"Expected augmentation to be 'none' or changes joined by '+', got {text!r}. {nearest(name, CHANGES)}"
            raise InputError(msg)
    if len(set(names)) < len(names):
        msg = f"Expected every change of augmentation once, got {text!r}. Leave the second one out."
        raise InputError(msg)
    return cast("tuple[Change, ...]", tuple(names))
