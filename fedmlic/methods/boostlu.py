"""BoostLU: positive places of a label's map of logits are raised before they are averaged.

The linear unit of every label is applied at every place of the feature map (its class activation
map); values above 0 are multiplied by ``factor``, then places are averaged:

    logit = mean over places of (factor * m if m > 0 else m)

The source finds that missing labels lower a map's values but not their places, and trains with a
large loss (``loss``) at the same time. With ``when="predict"`` training sees the plain mean.

The unit's bias is part of the map, as in the released code.

Source: Kim et al. 2023, "Bridging the Gap between Model Explanations in Partially Annotated
Multi-label Classification" (CVPR).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field

from fedmlic.guesses import precise, taken_as_absent
from fedmlic.large_losses import DELTAS, large_loss_inputs, large_loss_step
from fedmlic.method import Method, Task
from fedmlic.model import Backbone, Classifier
from fedmlic.training import classifier

if TYPE_CHECKING:
    from torch import Tensor, nn


class BoostedClassifier(Classifier):
    """One logit per label: the mean over places of logits whose positive values are raised.

    Args:
        backbone: makes the feature map.
        num_labels: labels to predict.
        factor: of positive values, 1 or more; 1 is ``Classifier``'s mean.
        always: whether it is done in training mode too.
    """

    def __init__(self, backbone: Backbone, num_labels: int, factor: float, *, always: bool) -> None:
        super().__init__(backbone, num_labels)
        self.factor, self.always = factor, always

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[batch, labels]``, float32 or double, of images ``[batch, channels, height, width]``."""
        features: Tensor = self.backbone(images)
        places = precise(self.head(features.flatten(2).transpose(1, 2)))
        if self.always or not self.training:
            places = torch.where(places > 0, self.factor * places, places)
        return places.mean(dim=1)


def boostlu(
    *,
    factor: Annotated[float, Field(ge=1)] = 5.0,
    loss: Literal["AN", "LL-R", "LL-Ct", "LL-Cp"] = "LL-R",
    when: Literal["always", "predict"] = "always",
    delta: Annotated[float, Field(ge=0, le=100)] | None = None,
    epochs: Annotated[int, Field(ge=1)] = 10,
) -> Method:
    """Positive places of a label's map are raised; trained with a large loss (BoostLU).

    Args:
        factor: alpha, of positive values of the map, 1 or more.
        loss: assume negative (nothing is kept, and no entry is large), or a variant of large_loss.
        when: in training and prediction, or in prediction only.
        delta: percentage of a batch's entries that counts as large, per pass (None: the variant's).
        epochs: passes of a client over which the percentage of LL-R and LL-Ct grows.
    """

    def build(task: Task) -> nn.Module:
        backbone = task.model.build(task.image_shape[2])
        return BoostedClassifier(backbone, task.num_labels, factor, always=when == "always")

    if loss == "AN":
        return classifier(taken_as_absent)._replace(build=build, guesses="absent")
    variant = loss.removeprefix("LL-")
    inputs = large_loss_inputs(variant, DELTAS[variant] if delta is None else delta, epochs)
    method = classifier(large_loss_step(variant), inputs=inputs)
    return method._replace(build=build, remembers=True, guesses="absent")
