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
from fedmlic.model import (
    Backbone,
    BatchNormPolicy,
    Model,
    apply_bn_policy,
    check_weights_file,
    load_weights,
    read_weights,
)
from fedmlic.pretrained import (
    Norm,
    bn_policy_of,
    check_trainable,
    num_parts_trained,
    parts_by_prefix,
    to_scale,
    train_parts,
)

IMPORTS = ("torchvision.models",)
"""What ``build`` imports late; worker processes import it before they are forked."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""What torchvision's ImageNet weights expect images in [0, 1] to be standardised by."""

PARTS = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
TRAINABLE_PARTS = (("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",))


class _ResNet(Backbone):
    """The convolutional part; ``imagenet`` converts the scale and the channels of images."""

    scale: Tensor
    shift: Tensor

    def __init__(self, trunk: nn.Module, bn_policy: BatchNormPolicy, *, imagenet: bool) -> None:
        super().__init__()
        for part in PARTS:
            self.add_module(part, trunk.get_submodule(part))
        self.num_features = int(trunk.get_submodule("fc").get_parameter("weight").shape[1])
        self.bn_policy = bn_policy
        self.imagenet = imagenet
        if imagenet:
            scale, shift = to_scale(IMAGENET_MEAN, IMAGENET_STD)
            self.register_buffer("scale", scale, persistent=False)
            self.register_buffer("shift", shift, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        # A grey image of one channel broadcasts to three equal ones here.
        features = images * self.scale + self.shift if self.imagenet else images
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
        trainable: ``all``, ``last(n)`` or ``head``: which parts of the backbone train. There are
            five: ``conv1`` with ``bn1``, and ``layer1`` to ``layer4``.

    Raises:
        InputError: no such weights; ``frozen`` without weights, whose statistics would be
            those of nothing; no such ``trainable``.
    """
    pretrained = bool(weights) or download
    policy = bn_policy_of("resnet", norm, pretrained=pretrained)
    check_trainable("resnet", trainable, len(TRAINABLE_PARTS), policy, pretrained=pretrained)
    if policy == "pooled" and num_parts_trained(trainable) == 0:
        policy = "frozen"
    source = "scratch"
    if download:
        weights = weights or "IMAGENET1K_V1"
        source = f"torchvision {weights}"
    elif weights:
        source = check_weights_file(weights)

    def build(channels: int) -> Backbone:
        if pretrained and channels not in {1, 3}:
            msg = f"Expected images of 1 or 3 channels for a pretrained resnet, got {channels}. Train from scratch."
            raise InputError(msg)
        trunk = _trunk(depth, 3 if pretrained else channels)
        if pretrained:
            tensors = _download(depth, weights) if download else read_weights(weights)
            load_weights(_without_head(trunk), tensors, ("fc.",), source)
        apply_bn_policy(trunk, policy, num_groups)
        network = _ResNet(trunk, policy, imagenet=pretrained)
        train_parts(network, parts_by_prefix(network, TRAINABLE_PARTS), trainable)
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
