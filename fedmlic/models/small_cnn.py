"""A small GroupNorm network for images of 32 to 64 pixels: 56,480 parameters, made for CPUs.

A strided 3x3 stem, then strided 3x3 convolutions of twice its width, then residual
blocks at the final resolution; every convolution is followed by normalisation and
ReLU. Halving the image twice at once keeps the expensive part small: 8x8 places for
32 pixels. See ``docs/models/small_cnn.md`` for time and accuracy.
"""

from __future__ import annotations

import itertools
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fedmlic.model import Backbone, Model, group_norm


class _Block(nn.Module):
    """x -> relu(x + norm(conv(x))), which starts close to the identity's gradient."""

    def __init__(self, width: int, norm: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = norm

    def forward(self, features: Tensor) -> Tensor:
        return torch.relu(features + self.norm(self.conv(features)))


class _SmallCnn(Backbone):
    def __init__(self, layers: nn.Sequential, num_features: int, *, pooled: bool) -> None:
        super().__init__()
        self.layers = layers
        self.num_features = num_features
        self.bn_policy = "pooled" if pooled else "none"

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.layers(images)
        return features


def small_cnn(
    *,
    width: Annotated[int, Field(ge=1, le=1024)] = 32,
    stride: Literal[4, 8, 16] = 4,
    num_blocks: Annotated[int, Field(ge=0, le=16)] = 1,
    norm: Literal["group", "pooled"] = "group",
    num_groups: Annotated[int, Field(ge=1)] = 8,
) -> Model:
    """A small convolutional network from scratch.

    Args:
        width: channels after the stem; the feature map has twice as many.
        stride: image pixels per place of the feature map, along each side.
        num_blocks: residual blocks at the final resolution.
        norm: ``group`` for GroupNorm, ``pooled`` for BatchNorm whose statistics are exchanged.
        num_groups: upper limit of groups of GroupNorm.
    """
    pooled = norm == "pooled"

    def normalise(channels: int) -> nn.Module:
        return nn.BatchNorm2d(channels) if pooled else group_norm(channels, num_groups)

    def build(channels: int) -> Backbone:
        widths = [channels, width, *[2 * width] * (stride.bit_length() - 2)]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            conv = nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)
            layers += [conv, normalise(after), nn.ReLU(inplace=True)]
        layers += [_Block(widths[-1], normalise(widths[-1])) for _ in range(num_blocks)]
        return _SmallCnn(nn.Sequential(*layers), widths[-1], pooled=pooled)

    return Model(build, bn_policy="pooled" if pooled else "none")
