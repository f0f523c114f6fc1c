"""Pixels: a background and light as in ``fedmlic.scenes``, and the emoji from the back to the front."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedmlic.emoji.art import stamp
from fedmlic.scenes.rendering import BLOCK_PIXELS, blank, finished
from fedmlic.scenes.style import Style, styles

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedmlic.emoji.plan import Scenes

    Canvas = NDArray[np.float32]
    Ints = NDArray[np.int64]


def render(drawn: Scenes, rows: Ints) -> NDArray[np.uint8]:
    """uint8 ``[rows, height, width, 3]``."""
    side = drawn.stage.options.image_size
    step = max(1, BLOCK_PIXELS // side**2)
    blocks = [_block(drawn, rows[start : start + step]) for start in range(0, len(rows), step)]
    return np.concatenate([np.empty((0, side, side, 3), dtype=np.uint8), *blocks])


def _block(drawn: Scenes, rows: Ints) -> NDArray[np.uint8]:
    looks, key = drawn.stage.options.looks, drawn.plan.key[rows]
    style = styles(looks, drawn.plan.owner[rows], key)
    canvas = blank(looks, key, drawn.plan.context[rows], style)
    for image, row in enumerate(rows.tolist()):
        _paint(drawn, row, canvas[image], style, image)
    return finished(looks, key, canvas, style)


def _paint(drawn: Scenes, row: int, canvas: Canvas, style: Style, image: int) -> None:
    """Lay the things of one scene over float32 ``canvas [3, height, width]``."""
    plan, options = drawn.plan, drawn.stage.options
    slots = np.flatnonzero(plan.drawn[row]).tolist()
    # Things without a label have the last slots, and lie below.
    for slot in sorted(slots, key=lambda slot: (slot < options.max_objects, slot)):
        picture = drawn.stage.picture(int(plan.vendor[row]), int(plan.emoji[row, slot]))
        left, top, ink = stamp(picture, plan.place(row, slot), options.image_size)
        view = canvas[:, top : top + ink.shape[0], left : left + ink.shape[1]]
        view *= np.float32(1) - ink[..., 3]
        view += _styled(ink, style, image) if options.style_strength else np.moveaxis(ink[..., :3], -1, 0)


def _styled(ink: Canvas, style: Style, image: int) -> Canvas:
    """float32 ``[3, height, width]``: colours times opacity ``ink [height, width, 4]`` in an owner's style."""
    matrix, offset = style.matrix[image].astype(np.float32), style.offset[image].astype(np.float32)
    # Not a matrix product: its rounding may depend on the machine.
    rows = [
        offset[to] * ink[..., 3]
        + matrix[to, 0] * ink[..., 0]
        + matrix[to, 1] * ink[..., 1]
        + matrix[to, 2] * ink[..., 2]
        for to in range(3)
    ]
    return np.stack(rows)
