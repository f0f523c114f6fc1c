"""C-Tran: a transformer that is given some labels and predicts the others.

Label and state vectors are learned (the vector of "unknown" is zero), and
label-mask training reveals a random part of the annotations of each image
(``fedmlic.label_masking``). Nothing is revealed in prediction.

Deviations: with incomplete labels only known entries are revealed or judged,
UNCERTAIN counting as UNKNOWN; the loss is a mean over the judged entries. The
paper's tokens are 2,048 wide because its backbone is a ResNet-101; here the
tokens are as wide as the backbone's features unless ``width`` says otherwise.

Source: Lanchantin et al. 2021, "General Multi-label Image Classification with
Transformers" (CVPR).
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from fedmlic.label_masking import masked_loss, reveal
from fedmlic.label_transformer import ask, build_label_transformer, label_rows, predict
from fedmlic.method import Inputs, Local, Method, Objective, Task
from fedmlic.training import trainer


def ctran(
    *,
    layers: Annotated[int, Field(ge=1)] = 3,
    heads: Annotated[int, Field(ge=1)] = 4,
    width: Annotated[int, Field(ge=1)] | None = None,
    feedforward: Annotated[int, Field(ge=1)] | None = None,
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1,
    positions: Literal["none", "sine"] = "none",
    readout: Literal["row", "shared"] = "row",
    known_fraction_max: Annotated[float, Field(ge=0, lt=1)] = 0.75,
    reduction: Literal["mean", "sum"] = "mean",
) -> Method:
    """Learned label tokens in a transformer, trained by revealing some labels.

    Args:
        layers: encoder layers.
        heads: attention heads; must divide the width.
        width: of the tokens (None: the backbone's features, without a projection).
        feedforward: hidden units of an encoder layer (None: the width).
        dropout: probability.
        positions: positional encoding of image tokens.
        readout: a weight vector and bias per label (``row``), or one for all labels (``shared``).
        known_fraction_max: largest share of an image's annotations that is revealed.
        reduction: mean over the judged entries of a batch, or their sum.
    """

    def build(task: Task) -> nn.Module:
        return build_label_transformer(
            task,
            text="learned()",
            layers=layers,
            heads=heads,
            width=width,
            feedforward=feedforward,
            dropout=dropout,
            positions=positions,
            readout=readout,
        )

    def inputs(local: Local) -> Inputs:
        rng = local.torch_rng("reveal")

        def states(images: Tensor, labels: Tensor, _numbers: Tensor) -> tuple[Tensor]:
            return (reveal(labels, known_fraction_max, rng).to(images.device, non_blocking=True),)

        return Inputs(states, dict)

    def loss(network: nn.Module, images: Tensor, labels: Tensor, states: Tensor) -> Tensor:
        return masked_loss(network(images, states), labels, states, reduction)

    objective = Objective(loss, inputs, needs_annotations=True, one_by_one="dropout draws at random" if dropout else "")
    asked = partial(ask, text="learned()")
    return Method(build, trainer(objective), predict, label_rows, objective=objective, ask=asked)
