"""Whether a backbone takes images of a size, by trial: before round 1, and with the size that it would take.

Networks that halve their map have none left of an image that is too small, and a norm over one number is none.
Which size is enough depends on the network and its options, so one image of zeros tells. Large images may be made
small inside the network (``image_size``).
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import torch

from fedmlic import spec
from fedmlic.errors import InputError

if TYPE_CHECKING:
    from fedmlic.model import Backbone

SURE = 128
"""Pixels of the shorter side, before the network and inside it, from which on there is no trial.

No network is known that needs more.
"""

FAILURES = (RuntimeError, ValueError, TypeError, AssertionError, LookupError, ArithmeticError)
"""How layers refuse a map."""

_taken: set[tuple[type, str, tuple[int, int, int]]] = set()
"""What this process has tried: a second network like the first, such as the round's incoming one, is taken too."""


def check_image_size(model: str, backbone: Backbone, image_shape: tuple[int, int, int]) -> None:
    """Give ``backbone`` one image of zeros, if images are small, or the size to which the network brings them.

    It is tried once in a process.

    Args:
        model: the text of the model, for the message.
        backbone: on the CPU; left as it was.
        image_shape: height, width, channels.

    Raises:
        InputError: it makes no map of the image.
    """
    height, width, channels = image_shape
    side = min(height, width)
    tried = (type(backbone), model, image_shape)
    if (side >= SURE and not _is_small_inside(model)) or tried in _taken:
        return
    modes = {module: module.training for module in backbone.modules()}
    try:
        backbone.eval()
        reason = _reason(backbone, height, width, channels)
        if reason is None:
            _taken.add(tried)
            return
        enough = _least(backbone, side, channels) if side < SURE else None
    finally:
        backbone.train()  # what some layers keep in evaluation mode is dropped
        for module, mode in modes.items():
            module.training = mode
    name = spec.parse(model, "model").name
    has_size = "image_size" in inspect.signature(spec.factory("model", name)).parameters
    if enough is None:
        hint = "Choose a larger image_size or another model." if has_size else "Use larger images or another model."
        msg = f"Expected model {model} to take images of {height} x {width} pixels, got: {reason} {hint}"
        raise InputError(msg)
    larger = 1 << (2 * enough - 1).bit_length()
    hint = f"Give image_size={larger}." if has_size else "Use larger images or another model."
    msg = f"Expected images of at least {enough} pixels a side for {name}, got {side}. {hint}"
    raise InputError(msg)


def _is_small_inside(model: str) -> bool:
    """Whether images of any size become smaller than ``SURE`` in the network."""
    inside = spec.parse(spec.resolve("model", model), "model").arguments.get("image_size")
    return isinstance(inside, int) and 0 < inside < SURE


def _reason(backbone: Backbone, height: int, width: int, channels: int) -> str | None:
    """Why there is no map, None if there is one."""
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            backbone(torch.zeros(1, channels, height, width))
    except InputError:
        raise
    except FAILURES as error:
        text = " ".join(str(error).split()) or type(error).__name__
        return text if text.endswith(".") else f"{text}."
    return None


def _least(backbone: Backbone, side: int, channels: int) -> int | None:
    """The fewest pixels of a square above ``side`` that are enough; None if ``SURE`` are not."""
    if _reason(backbone, SURE, SURE, channels) is not None:
        return None
    low, high = side, SURE
    while high - low > 1:
        middle = (low + high) // 2
        if _reason(backbone, middle, middle, channels) is None:
            high = middle
        else:
            low = middle
    return high
