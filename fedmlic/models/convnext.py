"""ConvNeXt whose stages and blocks methods can use: from scratch, or weights of a file.

Equal to timm's networks of the same weights, and free of timm. Four stages with maps of 4, 8, 16 and 32 image
pixels per place; the feature map is the last one, before the norm that classifiers put behind their pool.

Source: Liu et al. 2022, "A ConvNet for the 2020s" (CVPR); the sizes below ``tiny`` are timm's. Deviations: stochastic
depth is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fedmlic.model import Backbone, BatchNormPolicy, Model, Stage, StageBackbone
from fedmlic.pretrained import (
    NO_WEIGHTS,
    PIXELS,
    PixelScale,
    Resize,
    check_channels,
    check_trainable,
    check_weights_file,
    load_weights,
    parts_by_prefix,
    read_weights,
    renamed,
    train_parts,
)

SIZES = {
    "atto": ((2, 2, 6, 2), (40, 80, 160, 320)),
    "femto": ((2, 2, 6, 2), (48, 96, 192, 384)),
    "pico": ((2, 2, 6, 2), (64, 128, 256, 512)),
    "nano": ((2, 2, 8, 2), (80, 160, 320, 640)),
    "tiny": ((3, 3, 9, 3), (96, 192, 384, 768)),
    "small": ((3, 3, 27, 3), (96, 192, 384, 768)),
    "base": ((3, 3, 27, 3), (128, 256, 512, 1024)),
    "large": ((3, 3, 27, 3), (192, 384, 768, 1536)),
    "xlarge": ((3, 3, 27, 3), (256, 512, 1024, 2048)),
}
"""Blocks and channels of the four stages."""

EPS = 1e-6
GAMMA = 1e-6
"""Start of the factor per channel that a block's result is multiplied by."""

PARTS = (("stem",), ("stages.0",), ("stages.1",), ("stages.2",), ("stages.3",))

UNUSED = ("head.", "norm.", "classifier.")
"""Prefixes of names that weights may have and the map does not need."""

_TORCHVISION = (
    (r"features\.0\.(\d)\.(\w+)", r"stem.\1.\2"),
    *((rf"features\.{2 * n}\.(\d)\.(\w+)", rf"stages.{n}.downsample.\1.\2") for n in (1, 2, 3)),
    *(
        (rf"features\.{2 * n + 1}\.(\d+)\.{theirs}", rf"stages.{n}.blocks.\1.{ours}")
        for n in range(4)
        for theirs, ours in (
            (r"layer_scale", "gamma"),
            (r"block\.0\.(\w+)", r"conv_dw.\2"),
            (r"block\.2\.(\w+)", r"norm.\2"),
            (r"block\.3\.(\w+)", r"mlp.fc1.\2"),
            (r"block\.5\.(\w+)", r"mlp.fc2.\2"),
        )
    ),
)
_AUTHORS = (
    (r"downsample_layers\.0\.(\d)\.(\w+)", r"stem.\1.\2"),
    (r"downsample_layers\.(\d)\.(\d)\.(\w+)", r"stages.\1.downsample.\2.\3"),
    (r"stages\.(\d)\.(\d+)\.dwconv\.(\w+)", r"stages.\1.blocks.\2.conv_dw.\3"),
    (r"stages\.(\d)\.(\d+)\.pwconv(\d)\.(\w+)", r"stages.\1.blocks.\2.mlp.fc\3.\4"),
    (r"stages\.(\d)\.(\d+)\.(norm\.\w+|gamma)", r"stages.\1.blocks.\2.\3"),
)
NAMES = (*_TORCHVISION, *_AUTHORS)
"""From torchvision's names and the authors' to timm's."""


class _LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of a map."""

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _Mlp(nn.Module):
    """Two linear layers over the last axis."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, values: Tensor) -> Tensor:
        result: Tensor = self.fc2(nn.functional.gelu(self.fc1(values)))
        return result


class _Block(nn.Module):
    """A filter of 7 x 7 per channel, then two linear layers at every place; added to the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, EPS)
        self.mlp = _Mlp(width)
        self.gamma = nn.Parameter(torch.full((width,), GAMMA))

    def forward(self, features: Tensor) -> Tensor:
        values = self.mlp(self.norm(self.conv_dw(features).permute(0, 2, 3, 1))) * self.gamma
        result: Tensor = features + values.permute(0, 3, 1, 2)
        return result


class _ConvNeXt(StageBackbone):
    bn_policy: BatchNormPolicy = "none"

    def __init__(self, channels: int, size: str, pixels: nn.Module) -> None:
        super().__init__()
        depths, widths = SIZES[size]
        self.pixels = pixels
        self.stem = nn.Sequential(nn.Conv2d(channels, widths[0], 4, stride=4), _LayerNorm2d(widths[0], EPS))
        stages, before = [], widths[0]
        for number, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            halved = nn.Sequential(_LayerNorm2d(before, EPS), nn.Conv2d(before, width, 2, stride=2))
            stages.append(Stage(halved if number else nn.Identity(), [_Block(width) for _ in range(depth)], width))
            before = width
        self.stages = nn.ModuleList(stages)
        self.num_features = before
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                # The authors': a normal distribution with a deviation of 0.02.
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def embed(self, images: Tensor) -> Tensor:
        result: Tensor = self.stem(self.pixels(images))
        return result


def convnext(
    *,
    size: Literal["atto", "femto", "pico", "nano", "tiny", "small", "base", "large", "xlarge"] = "atto",
    weights: str = "none",
    image_size: Annotated[int, Field(ge=0)] = 0,
    trainable: str = "all",
) -> Model:
    """ConvNeXt without its classifier.

    Args:
        size: ``atto`` (320 features), ``femto`` (384), ``pico`` (512), ``nano`` (640), ``tiny`` and ``small``
            (768), ``base`` (1024), ``large`` (1536) or ``xlarge`` (2048).
        weights: ``none``: from scratch; else a file with a state dict of timm's, the authors' or
            torchvision's names (.safetensors, .pth, .pt, .bin), trained on ImageNet's scale of pixels.
        image_size: pixels a side to which images are resized inside the network; 0: as they are.
        trainable: ``all``, ``last(n)``, ``lora(rank)`` or ``head``: which parts of the backbone train. There are
            five: the stem and four stages.

    Raises:
        InputError: no such weights, or others (ConvNeXt V2's among them); no such ``trainable``.
    """
    pretrained = weights not in NO_WEIGHTS
    check_trainable("convnext", trainable, len(PARTS), "none", pretrained=pretrained)
    source = check_weights_file(weights) if pretrained else "scratch"

    def build(channels: int) -> Backbone:
        inputs = check_channels("convnext", channels, pretrained=pretrained)
        scale = PixelScale(*PIXELS["imagenet"]) if pretrained else nn.Identity()
        network = _ConvNeXt(inputs, size, nn.Sequential(scale, Resize(image_size)) if image_size else scale)
        if pretrained:
            load_weights(network, _named(read_weights(weights)), UNUSED, source)
        train_parts(network, parts_by_prefix(network, PARTS), trainable, f"convnext {size}")
        return network

    return Model(build, source)


def _named(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``tensors`` by the names used here; linear layers that were kept as convolutions of 1 x 1 become matrices."""
    found = renamed(tensors, NAMES)
    for name, tensor in found.items():
        if name.endswith(("fc1.weight", "fc2.weight")) and tensor.shape[2:] == (1, 1):
            found[name] = tensor.flatten(1)
        elif name.endswith(".gamma"):
            found[name] = tensor.flatten()
    return found
