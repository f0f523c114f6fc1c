"""DualCoOp: a positive and a negative prompt for every label, compared at every place of the image.

With f_i the feature of place i, t+_c and t-_c the features of label c's name behind the positive and the negative
context, all of length 1:

    s+_ci = <t+_c, f_i>,    s-_ci = <t-_c, f_i>
    w_ci = softmax over places of (attention_scale * s+_ci)
    z_c = scale * sum_i w_ci (s+_ci - s-_ci),    p_c = sigmoid(z_c)

which is the softmax over the pair of aggregated scores. The places of the positive score weigh both. Only contexts
train and are sent; image tower and text half stay as they are.

Deviations: the loss is a mean over known entries (the release sums and multiplies by a weight; ``reduction``); the
places are those of the model's map, where the source opens the attention pool of CLIP's ResNet. All of them:
``docs/methods/dualcoop.md``.

Source: Sun, Hu and Saenko 2022, "DualCoOp: Fast Adaptation to Multi-Label Recognition with Limited Annotations"
(NeurIPS).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fedmlic.errors import InputError
from fedmlic.method import Method, Task
from fedmlic.model import Backbone
from fedmlic.prompt_learner import PromptLearner, open_reader
from fedmlic.prompt_tuning import LossName, PromptedNetwork, ask, entry_loss, frozen_parts, prompt_method

TRIAL = "dualcoop(weights='random')"
"""How it is built where no weights are at hand: for tests."""

CONTEXTS = ("context_positive", "context_negative")


def region_scores(views: Tensor, texts: Tensor, scale: float, attention_scale: float) -> Tensor:
    """Logits float32 ``[batch, labels]``: the difference of both scores, where the positive one is large.

    Args:
        views: ``[batch, places, features]``.
        texts: ``[2, labels, features]``: positive, negative.
        scale: factor of cosines.
        attention_scale: the same inside the softmax over places; 0 weighs all places alike.
    """
    with torch.autocast(views.device.type, enabled=False):
        places, named = F.normalize(views.float(), dim=2), F.normalize(texts.float(), dim=2)
        positive, negative = places @ named[0].T, places @ named[1].T
        weights = (attention_scale * positive).softmax(dim=1)
        return scale * (weights * (positive - negative)).sum(dim=1)


class DualContextNetwork(PromptedNetwork):
    """A frozen tower, a frozen text half, and a positive and a negative context.

    Args:
        backbone: gives the map.
        learner: the labels' prompts.
        per_label: how many contexts of each kind; 0: one that all labels share.
        scale: as of ``region_scores``.
        attention_scale: likewise.
    """

    def __init__(
        self, backbone: Backbone, learner: PromptLearner, *, per_label: int, scale: float, attention_scale: float
    ) -> None:
        super().__init__(backbone, learner)
        for name in CONTEXTS:
            begun = [learner.begin("normal") for _ in range(max(per_label, 1))]
            self.register_parameter(name, nn.Parameter(torch.stack(begun) if per_label else begun[0]))
        self.scale, self.attention_scale = scale, attention_scale

    def contexts(self, *given: Tensor) -> Tensor:
        """``[2, M, width]``, or ``[2, labels, M, width]``: positive, negative."""
        del given
        return torch.stack([self.get_parameter(name) for name in CONTEXTS])

    def scores(self, views: Tensor, texts: Tensor | None = None) -> Tensor:
        """Logits float32 ``[batch, labels]`` of views ``[batch, places, features]``; see ``PromptedNetwork``."""
        return region_scores(views, self.read() if texts is None else texts, self.scale, self.attention_scale)


def dualcoop(
    *,
    weights: str = "",
    text_model: str = "ViT-B-16-quickgelu",
    template: str = "a photo of a {}.",
    context_length: Annotated[int, Field(ge=1)] = 16,
    context: Literal["shared", "per_label"] = "shared",
    scale: Annotated[float, Field(gt=0)] = 100.0,
    attention_scale: Annotated[float, Field(ge=0)] = 20.0,
    loss: LossName = "asl",
    gamma_pos: Annotated[float, Field(ge=0)] = 1.0,
    gamma_neg: Annotated[float, Field(ge=0)] = 2.0,
    margin: Annotated[float, Field(ge=0, lt=1)] = 0.05,
    reduction: Literal["mean", "sum"] = "mean",
) -> Method:
    """A positive and a negative context on a frozen CLIP, compared place by place (DualCoOp).

    Args:
        weights: CLIP's text half: a folder in Hugging Face's format (that of ``clip_image``), or a file of
            open_clip's; ``random``: a tiny one that knows nothing, for tests.
        text_model: open_clip's name of a file's architecture; a folder says it itself.
        template: ``{}`` stands for the name; what follows the name stays behind it, what is before it is where
            the contexts come.
        context_length: M, trained vectors of each context.
        context: one pair that all labels ``shared``, or a pair ``per_label``, whose rows are exchanged as rows of
            labels.
        scale: factor of cosines; it does not train.
        attention_scale: that inside the softmax over places; 0 takes the mean over places.
        loss: over known entries: ``asl``, ``bce`` or ``balanced_bce``.
        gamma_pos: focusing exponent of present entries, for ``asl``.
        gamma_neg: that of absent entries.
        margin: probability that absent entries may have for free, for ``asl``.
        reduction: mean over the known entries of a batch, or their sum (the release's).
    """
    read = partial(open_reader, weights, text_model, who="dualcoop")
    value = entry_loss(loss, gamma_pos=gamma_pos, gamma_neg=gamma_neg, margin=margin, reduction=reduction)

    def build(task: Task) -> DualContextNetwork:
        backbone = task.model.build(task.image_shape[2])
        learner = frozen_parts(task, backbone, read, template, context_length)
        per_label = task.num_labels if context == "per_label" else 0
        return DualContextNetwork(backbone, learner, per_label=per_label, scale=scale, attention_scale=attention_scale)

    method = prompt_method(build, value)
    if context == "per_label":
        return method._replace(label_rows=lambda _: CONTEXTS, ask=_ask_known)
    return method._replace(ask=partial(ask, read=read, template=template))


def _ask_known(network: nn.Module, task: Task, names: Sequence[str]) -> Callable[[Tensor], Tensor]:
    """Probabilities of labels of the training; others have no context."""
    unknown = [name for name in names if name not in task.label_names]
    if unknown:
        msg = (
            f"Expected names of the training with context='per_label', got {len(unknown)} others, first "
            f"{unknown[0]!r}, which have no context. Train with context='shared'."
        )
        raise InputError(msg)
    columns = [task.label_names.index(name) for name in names]
    return lambda images: torch.sigmoid(network(images))[:, columns]
