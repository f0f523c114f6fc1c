"""How a trained network is asked: once per image, or more often with an answer out of the answers.

An inference changes no weight and needs no training of its own, so it goes with every method. It
stands between a method's ``predict`` and whoever evaluates: the server, the clients and ``fedmlic
predict``. Its kinds are in ``inferences/``; each is a factory that returns an ``Inference``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

if TYPE_CHECKING:
    from fedmlic.method import Task

Predict = Callable[[Tensor], Tensor]
"""Float images ``[batch, channels, height, width]`` to probabilities float32 ``[batch, labels]``."""


def anything(task: Task, predict: Predict) -> None:
    """Every network and every image will do."""
    del task, predict


class Inference(NamedTuple):
    """How a network is asked.

    Attributes:
        of: from how a method asks the network once to how it is asked. What it gives must be
            probabilities of each image alone; it draws no random numbers.
        check: called once with the task and how a method asks the network, which is in evaluation
            mode on the CPU; raises ``InputError`` if ``of`` would not work there.
        needs_pixels: whether it works on images itself, so that kept feature maps cannot stand in
            their place.
    """

    of: Callable[[Predict], Predict]
    check: Callable[[Task, Predict], None] = anything
    needs_pixels: bool = False


ONCE = Inference(lambda predict: predict)
"""The network is asked once per image."""
