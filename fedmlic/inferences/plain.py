"""plain: the network is asked once per image, as its method predicts."""

from __future__ import annotations

from fedmlic.inference import ONCE, Inference


def plain() -> Inference:
    """The method's own prediction."""
    return ONCE
