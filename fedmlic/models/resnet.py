"""ResNet of torchvision without its classifier: 18 to 152 layers, from scratch or pretrained.

The feature map is what torchvision's network averages before its last layer, 32 image
pixels per place; average pool and ``fc`` are not kept. Tensor names are torchvision's.
BatchNorm never stays as it is by accident; see ``norm``.

Source: He et al. 2016, "Deep Residual Learning for Image Recognition" (CVPR);
torchvision's implementation and ImageNet weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor, nn

from fedmlic.errors import InputError, nearest
from fedmlic.lora import read_lora
from fedmlic.model import Backbone, BatchNormPolicy, Model, apply_bn_policy
from fedmlic.pretrained import (
    PIXELS,
    Norm,
    PixelScale,
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

IMPORTS = ("torchvision.models",)
"""What ``build`` imports late; worker processes import it before they are forked."""

PARTS = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
TRAINABLE_PARTS = (("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",))


class _ResNet(Backbone):
    """The convolutional part; ``imagenet`` converts the scale and the channels of images."""

    def __init__(self, trunk: nn.Module, bn_policy: BatchNormPolicy, *, imagenet: bool) -> None:
        super().__init__()
        for part in PARTS:
            self.add_module(part, trunk.get_submodule(part))
        self.num_features = int(trunk.get_submodule("fc").get_parameter("weight").shape[1])
        self.bn_policy = bn_policy
        self.pixels = PixelScale(*PIXELS["imagenet"]) if imagenet else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.pixels(images)
        for part in PARTS:
            features = self.get_submodule(part)(features)
        return features


def resnet(
    *,
    depth: Literal[18, 34, 50, 101, 152] = 18,
    weights: str = "",
    download: bool = False,
    norm: Norm = "auto",
    num_groups: Annotated[int, Field(ge=1)] = 32,
    trainable: str = "all",
) -> Model:
    """ResNet's convolutional part.

    Args:
        depth: layers.
        weights: a state dict of torchvision's names (.safetensors, .pth, .pt, .bin); with
            ``download`` the name of torchvision's weights instead, such as ``IMAGENET1K_V1``.
            Empty: from scratch.
        download: fetch the weights into torch's cache if they are not there
            (``IMAGENET1K_V1`` if ``weights`` is empty).
        norm: ``frozen``: BatchNorm with the statistics of the weights, for good; ``group``:
            GroupNorm; ``pooled``: BatchNorm whose statistics are exchanged; ``auto``:
            ``frozen`` with weights, ``group`` from scratch.
        num_groups: upper limit of groups of GroupNorm.
        trainable: ``all``, ``last(n)``, ``lora(rank)`` or ``head``: which parts of the backbone train. There are
            five: ``conv1`` with ``bn1``, and ``layer1`` to ``layer4``. ``lora`` adapts the convolutions
            of 1 x 1, which 18 and 34 layers hardly have.

    Raises:
        InputError: no such weights; ``frozen`` without weights, whose statistics would be
            those of nothing; no such ``trainable``.
    """
    pretrained = bool(weights) or download
    policy = bn_policy_of("resnet", norm, pretrained=pretrained)
    check_trainable("resnet", trainable, len(TRAINABLE_PARTS), policy, pretrained=pretrained)
    if depth < 50 and read_lora(trainable):
        msg = (
            f"Expected depth of resnet to be 50, 101 or 152 for trainable={trainable!r}, since the others are made of "
            f"convolutions of 3 x 3, got {depth}. Choose a deeper one, 'last(n)' or 'head'."
        )
        raise InputError(msg)
    if policy == "pooled" and num_parts_trained(trainable) == 0:
        policy = "frozen"
    source = "scratch"
    if download:
        weights = weights or "IMAGENET1K_V1"
        source = f"torchvision {weights}"
    elif weights:
        source = check_weights_file(weights)

    def build(channels: int) -> Backbone:
        trunk = _trunk(depth, check_channels("resnet", channels, pretrained=pretrained))
        if pretrained:
            tensors = _download(depth, weights) if download else read_weights(weights)
            load_weights(_without_head(trunk), tensors, ("fc.",), source)
        apply_bn_policy(trunk, policy, num_groups)
        network = _ResNet(trunk, policy, imagenet=pretrained)
        train_parts(network, parts_by_prefix(network, TRAINABLE_PARTS), trainable, f"resnet{depth}")
        return network

    return Model(build, source, policy)


def _trunk(depth: int, channels: int) -> nn.Module:
    # torchvision takes seconds to import, which checking a configuration should not.
    from torchvision.models import get_model

    trunk: nn.Module = get_model(f"resnet{depth}", weights=None)
    if channels != 3:
        conv = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        trunk.conv1 = conv
    return trunk


def _without_head(trunk: nn.Module) -> nn.Module:
    return nn.ModuleDict({part: trunk.get_submodule(part) for part in PARTS})


def _download(depth: int, name: str) -> Mapping[str, Tensor]:
    from torchvision.models import get_model_weights

    known: Any = get_model_weights(f"resnet{depth}")
    if name not in known.__members__:
        hint = nearest(name, known.__members__)
        msg = f"Expected weights of resnet with download to be a name of torchvision's, got {name!r}. {hint}"
        raise InputError(msg)
    try:
        tensors: Mapping[str, Tensor] = known[name].get_state_dict(progress=False, check_hash=True, weights_only=True)
    except OSError as error:
        msg = f"Expected to fetch {known[name].url}, got: {error}. Copy the file here and give its path as weights."
        raise InputError(msg) from error
    return tensors
