"""PromptFL: one context of trained vectors on a frozen CLIP is all that clients train and send.

With f the feature of the whole image and t_c that of label c's name behind the context, both of length 1:

    z_c = scale * <t_c, f> + bias,    p_c = sigmoid(z_c)

The context v_1 ... v_M is shared by all labels and stands where the words before the name would stand in the frozen
text half (``fedmlic.prompt_learner``). Image tower and text half never change and are never sent.

Deviations: the source has one label per image and a softmax over labels; here every label has a probability of its own,
and the loss is one of the usual ones over known entries. ``bias`` is ours. All of them: ``docs/methods/promptfl.md``.

Source: Guo et al. 2023, "PromptFL: Let Federated Participants Cooperatively Learn Prompts Instead of Models" (IEEE
TMC).
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fedmlic.method import Method, Task
from fedmlic.model import Backbone
from fedmlic.prompt_learner import PromptLearner, open_reader
from fedmlic.prompt_tuning import LossName, PromptedNetwork, WholeView, ask, entry_loss, frozen_parts, prompt_method

TRIAL = "promptfl(weights='random', scale=100.0)"
"""How it is built where no weights are at hand: for tests."""


class SharedContextNetwork(PromptedNetwork):
    """A frozen tower, a frozen text half and one trained context.

    Args:
        backbone: gives the view of the whole image.
        learner: the labels' prompts.
        start: how the context begins (``PromptLearner.begin``).
        scale: factor of cosines.
        bias: added to every logit.
    """

    def __init__(self, backbone: Backbone, learner: PromptLearner, *, start: str, scale: float, bias: float) -> None:
        super().__init__(backbone, learner)
        self.context = nn.Parameter(learner.begin(start))
        self.scale, self.bias = scale, bias

    def contexts(self, *given: Tensor) -> Tensor:
        """``[1, M, width]``."""
        del given
        return self.context[None]

    def scores(self, views: Tensor, texts: Tensor | None = None) -> Tensor:
        """Logits float32 ``[batch, labels]`` of views ``[batch, 1, features]``; see ``PromptedNetwork``."""
        named = self.learner.handwritten if texts is None else texts[0]
        with torch.autocast(views.device.type, enabled=False):
            cosines = F.normalize(views[:, 0].float(), dim=1) @ F.normalize(named.float(), dim=1).T
        return self.scale * cosines + self.bias


def promptfl(
    *,
    weights: str = "",
    text_model: str = "ViT-B-16-quickgelu",
    template: str = "a photo of a {}",
    context_length: Annotated[int, Field(ge=1)] = 16,
    start: Literal["normal", "template"] = "normal",
    scale: Annotated[float, Field(gt=0)] = 20.0,
    bias: float = 0.0,
    loss: LossName = "bce",
    gamma_pos: Annotated[float, Field(ge=0)] = 1.0,
    gamma_neg: Annotated[float, Field(ge=0)] = 4.0,
    margin: Annotated[float, Field(ge=0, lt=1)] = 0.05,
) -> Method:
    """A context that all labels share, trained on a frozen CLIP (PromptFL).

    Args:
        weights: CLIP's text half: a folder in Hugging Face's format (that of ``clip_image``), or a file of
            open_clip's; ``random``: a tiny one that knows nothing, for tests.
        text_model: open_clip's name of a file's architecture; a folder says it itself.
        template: the hand-written prompt, with ``{}`` for the name; what follows the name stays behind it.
        context_length: M, trained vectors.
        start: the context begins ``normal``, with a deviation of 0.02, or as the words of the ``template``.
        scale: factor of cosines; it does not train.
        bias: added to every logit; with cosines around m, -scale * m lets probabilities begin near 1/2.
        loss: over known entries: ``bce``, ``balanced_bce`` (the mean over present entries and that over absent
            ones), or ``asl``.
        gamma_pos: focusing exponent of present entries, for ``asl``.
        gamma_neg: that of absent entries.
        margin: probability that absent entries may have for free, for ``asl``.
    """
    read = partial(open_reader, weights, text_model, who="promptfl")

    def build(task: Task) -> SharedContextNetwork:
        backbone = WholeView(task.model.build(task.image_shape[2]))
        learner = frozen_parts(task, backbone, read, template, context_length)
        return SharedContextNetwork(backbone, learner, start=start, scale=scale, bias=bias)

    value = entry_loss(loss, gamma_pos=gamma_pos, gamma_neg=gamma_neg, margin=margin)
    return prompt_method(build, value)._replace(ask=partial(ask, read=read, template=template))
