"""What a client keeps about each of its images from one of its turns to the next, and how often it saw them.

Label estimates, pseudo-labels, corrected labels and running predictions belong to an image. They
live in ``local.memory`` (``docs/client_memory.md``), which the server versions by round: a turn that
is played again, or after a resume, starts from what it started from the first time.

"Epoch" in the papers of centralised training is here the client's own count of passes over its
images, in all its turns: a client that is drawn rarely has not seen its images more often because
others were trained meanwhile.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from fedmlic.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from fedmlic.method import Local
    from fedmlic.shard import Shard

PREFIX = "images/"
"""Begins the names of this state in ``local.memory``."""
OF = PREFIX + "of"
"""Which images and labels the state belongs to."""
COMPLETED = "completed"
"""The state in which methods keep int8 ``[images, labels]``: annotations, and what they took other entries for."""


def image_state(local: Local, name: str, start: Callable[[Shard], Tensor]) -> Tensor:
    """A tensor with one row per training image of the client, as its last turn that counted left it.

    Change it in place, by the numbers that ``Inputs.of`` and ``Inputs.seen`` get; it is kept if this
    turn counts. The method must say that it ``remembers``.

    Args:
        local: whose turn it is, with its shard.
        name: of the state.
        start: makes it for a client that has none yet, ``[images, ...]``; may draw from
            ``local.torch_rng``.

    Returns:
        The tensor, on the client's device.

    Raises:
        InputError: the client's images or labels are not those that the state was kept for.
    """
    shard = _shard(local)
    wanted = _fingerprint(shard)
    found = local.memory.get(PREFIX + name)
    if found is None:
        found = start(shard)
    elif not torch.equal(local.memory.get(OF, wanted), wanted) or len(found) != shard.num_images:
        msg = (
            f"Expected client {local.client} to have the images and labels for which it keeps {name}, got others. "
            "Restore them, or start a new run."
        )
        raise InputError(msg)
    found = found.to(local.device, copy=True)
    local.memory.update({PREFIX + name: found, OF: wanted})
    return found


def of_all_images(local: Local, call: Callable[[nn.Module, Tensor], Tensor]) -> Tensor:
    """What ``call(network, images)`` gives for all of the client's images, ``[images, ...]`` (``Local.on_all``).

    Args:
        local: whose turn it is, within ``training.fit``.
        call: of the network as it is now and a batch of images.
    """
    if local.on_all is None:
        msg = "Expected a turn that can look at all images, got none. Train by training.fit."
        raise RuntimeError(msg)
    return local.on_all(call)


class Pass(NamedTuple):
    """One of a client's passes over its images.

    Attributes:
        number: 0 in the client's first.
        begins: whether no batch before had this number.
    """

    number: int
    begins: bool


class Passes:
    """Counts a client's passes over its training images, in all its turns.

    Where a turn ends within a pass (``local-steps``), its images count all the same: the number is
    that of all images seen so far, divided by the client's images, rounded down. The method must say
    that it ``remembers``.

    Args:
        local: whose turn it is, with its shard.
    """

    def __init__(self, local: Local) -> None:
        self._local, self._images = local, max(_shard(local).num_images, 1)
        self._seen, self._last = local.memory.get(PREFIX + "passes", torch.tensor([0, -1])).tolist()

    def next(self, num_images: int) -> Pass:
        """The pass that a batch belongs to; call it once for every batch.

        Args:
            num_images: in the batch.
        """
        number = self._seen // self._images
        found = Pass(number, number != self._last)
        self._seen, self._last = self._seen + num_images, number
        self._local.memory[PREFIX + "passes"] = torch.tensor([self._seen, self._last])
        return found


def _shard(local: Local) -> Shard:
    if local.shard is None:
        msg = "Expected a turn with its shard, got none. Ask for state in Objective.inputs, which training.fit calls."
        raise RuntimeError(msg)
    return local.shard


def _fingerprint(shard: Shard) -> Tensor:
    """uint8 ``[16]``: a hash of which images the client has and how they are annotated."""
    found = hashlib.sha256(np.ascontiguousarray(shard.rows, dtype=np.int64).tobytes())
    found.update(np.ascontiguousarray(shard.labels).tobytes())
    return torch.from_numpy(np.frombuffer(found.digest()[:16], dtype=np.uint8).copy())
