"""Parameters that data sets read from disk share."""

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
