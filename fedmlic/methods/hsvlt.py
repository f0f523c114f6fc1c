"""HSVLT: label tokens read the map of every block of a ConvNeXt; each label's reading at every scale is joined.

1. *Label vectors* come from text (``fedmlic.text``), are the same at all clients, frozen and not exchanged.
2. *Interactive visual-linguistic attention* (``fedmlic.visual_linguistic``): in every block of the trunk the label
   tokens attend to the places of the map, and what a label has in common with the image updates its token.
3. *Cross-scale aggregation*: the last such reading of each stage, side by side, is what a label's logit is made of.

Trained by the log-loss over known annotations. With a trunk that does not train
(``model="convnext(..., trainable='head')"``) the language parts alone train and are exchanged.

Deviations: UNKNOWN and UNCERTAIN entries take no part (the source has complete labels); parameters of the authors'
code that nothing reads do not exist; vectors are random orthogonal unless ``text`` names a file or a text encoder.
All differences between paper, release and this file: ``docs/methods/hsvlt.md``.

Source: "HSVLT: Hierarchical Scale-Aware Vision-Language Transformer for Multi-Label Image Classification" (ACM
Multimedia 2023, arXiv 2407.16244).
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fedmlic.errors import InputError
from fedmlic.label_transformer import ask, check_distinct
from fedmlic.losses import mean_binary_cross_entropy
from fedmlic.method import Method, Objective, Task
from fedmlic.model import StageBackbone, require
from fedmlic.text import label_vectors
from fedmlic.training import trainer
from fedmlic.visual_linguistic import ScaleClassifier, VisualLinguistic


def hsvlt(
    *,
    text: str = "random_orthogonal()",
    text_width: Annotated[int, Field(ge=1)] | None = None,
    heads: Annotated[int, Field(ge=1)] = 1,
    interaction: Literal["labels", "both", "none"] = "labels",
    scales: Literal["all", "last"] = "all",
    readout: Literal["row", "shared"] = "row",
) -> Method:
    """Label tokens that attend to every block of a ConvNeXt, read out at all scales.

    Args:
        text: where label vectors come from (``fedmlic.text``); frozen unless it is ``"learned()"``.
        text_width: numbers of a label vector before the first stage (None: the last stage's width, which for
            ConvNeXt-S is BERT's 768 of the paper).
        heads: of all attention; must divide the width of every stage.
        interaction: ``labels``: blocks change the label tokens (released code); ``both``: the map too (the paper's
            text, in a form of this project's); ``none``: no language, the means of the maps are read out.
        scales: the read-out reads all stages, or the last alone (no cross-scale aggregation).
        readout: a weight vector and bias per label (``row``), or one for all labels (``shared``).

    Raises:
        InputError: ``interaction="none"`` with a shared read-out, which would give all labels the same logit; as the
            network is built: a backbone without stages, or heads that do not fit.
    """
    if interaction == "none" and readout == "shared":
        msg = "Expected readout to be 'row' with interaction='none', got 'shared', which predicts all labels alike."
        raise InputError(msg)

    def build(task: Task) -> nn.Module:
        backbone = require(task.model.build(task.image_shape[2]), StageBackbone, "hsvlt")  # type: ignore[type-abstract]
        if interaction == "none":
            return ScaleClassifier(backbone, task.num_labels, scales)
        labels = label_vectors(text, task.label_names, text_width or backbone.num_features, task.seed)
        if readout == "shared":
            check_distinct(task.label_names, labels.vectors)
        both = interaction == "both"
        return VisualLinguistic(backbone, labels, num_heads=heads, changes_map=both, scales=scales, readout=readout)

    objective = Objective(_loss, needs_annotations=True)
    asked = partial(ask, text=text)
    return Method(build, trainer(objective), _predict, _label_rows, objective=objective, ask=asked, needs_pixels=True)


def _loss(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return mean_binary_cross_entropy(network(images), labels)


def _predict(network: nn.Module, images: Tensor) -> Tensor:
    return torch.sigmoid(network(images))


def _label_rows(network: nn.Module) -> tuple[str, ...]:
    assert isinstance(network, VisualLinguistic | ScaleClassifier)  # noqa: S101  (our own build made it)
    return network.label_rows()
