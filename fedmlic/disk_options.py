"""Parameters that data sets read from disk share, and what a held-out share makes of published counts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

Root = Annotated[str, Field(min_length=1)]
"""Folder of a download; ``~`` is home."""

ImageSize = Annotated[int, Field(ge=8, le=1024)]
"""Height and width of stored images, pixels."""

Channels = Literal[1, 3]
"""Colour (3) or grey (1)."""

HeldOut = Annotated[float, Field(ge=0, le=0.5)]
"""Share of training images that validate."""

Seed = Annotated[int, Field(ge=0, lt=1 << 63)]
"""Of a random split."""


def held_out_counts(num_train: int, val_fraction: float) -> dict[str, int]:
    """Published training images as ``splits.hold_out`` divides them, one image per group.

    >>> held_out_counts(82783, 0.1)
    {'train': 74505, 'val': 8278}
    """
    num_val = min(range(num_train + 1), key=lambda count: abs(count - val_fraction * num_train))
    return {"train": num_train - num_val, "val": num_val}
