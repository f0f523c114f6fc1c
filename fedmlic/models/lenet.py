"""lenet: two convolutions and two dense layers, for small grey images and for known answers.

Convolutions of 5 x 5 with 6 and 16 channels, each followed by ReLU and a 2 x 2 maximum, then 120 and 84 units: the
network of LeCun et al. 1998 in its present form, as federated benchmarks use it (NIID-Bench, Li et al., ICDE 2022).
The dense layers are written as convolutions, as LeCun's layer C5 is: on images of 28 pixels they see the whole map
and are dense, on larger images they move over it. The classifier on top is the method's.
"""

from __future__ import annotations

from torch import Tensor, nn

from fedmlic.model import Backbone, Model


class _LeNet(Backbone):
    num_features = 84
    bn_policy = "none"

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(channels, 6, 5), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 120, 4), nn.ReLU(), nn.Conv2d(120, 84, 1), nn.ReLU()),
        )

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.layers(images)
        return features


def lenet() -> Model:
    """LeNet-5 without its last layer: 43,576 parameters for grey images, at least 28 pixels a side."""
    return Model(_LeNet)
