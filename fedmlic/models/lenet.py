"""lenet: two convolutions and two dense layers, for small grey images and for known answers.

Convolutions of 5 x 5 with 6 and 16 channels, each followed by a 2 x 2 maximum and ReLU, then 120 and 84 units: the
network of LeCun et al. 1998 in its present form, as federated benchmarks use it (NIID-Bench, Li et al., ICDE 2022).
The dense layers are written as convolutions, as LeCun's layer C5 is: on images of 28 pixels they see the whole map
and are dense, on larger images they move over it. The classifier on top is the method's.

ReLU comes after the maximum, which gives the same values and gradients with a quarter of the work. Where the map is
as large as the kernel the dense layers are computed as products of matrices, which a processor does faster than
convolutions of one place.
"""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from fedmlic.model import Backbone, Model


class _LeNet(Backbone):
    num_features = 84
    bn_policy = "none"

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            *(nn.Conv2d(channels, 6, 5), nn.MaxPool2d(2), nn.ReLU()),
            *(nn.Conv2d(6, 16, 5), nn.MaxPool2d(2), nn.ReLU()),
        )
        self.dense = nn.ModuleList([nn.Conv2d(16, 120, 4), nn.Conv2d(120, 84, 1)])

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.convolutions(images)
        one_place = features.shape[-2:] == (4, 4)
        for layer in self.dense:
            features = F.relu(_at_one_place(layer, features) if one_place else layer(features))
        return features


def _at_one_place(layer: nn.Module, features: Tensor) -> Tensor:
    """A convolution whose kernel is as large as the map."""
    weight, bias = cast("Tensor", layer.weight), cast("Tensor", layer.bias)
    return F.linear(features.flatten(1), weight.flatten(1), bias)[:, :, None, None]


def lenet() -> Model:
    """LeNet-5 without its last layer: 43,576 parameters for grey images, at least 28 pixels a side."""
    return Model(_LeNet)
