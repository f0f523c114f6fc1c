"""FedTPG: a small network makes the context from the label names a client has, and it alone is trained and sent.

With T the features of the client's label names [names, d], a row each:

    A = softmax(Q W_Q (T W_K)^T / sqrt(d / heads)) T W_V        (for each head; Q: M trained queries [M, d])
    v_1 ... v_M = W_2 gelu(W_1 norm(A W_O))                     (word vectors: the context of all labels)
    z_c = scale * <t_c, f> + bias,    p_c = sigmoid(z_c)

with f the feature of the whole image and t_c that of label c's name behind the context, both of length 1. The generator
reads names, so it gives a context for any set of labels, those that a client never annotates among them; it does not
grow with the number of labels. During a turn T has the labels that the client annotates; predictions use those of all.

With ``scores="pair"`` it makes a positive and a negative context, and z_c = scale * (<t+_c, f> - <t-_c, f>).

Deviations: the source has one label per image and a softmax over the client's labels; here every label has a
probability of its own. Widths, heads and the layers behind the attention are ours. All of them:
``docs/methods/fedtpg.md``.

Source: Qiu et al. 2024, "Federated Text-driven Prompt Generation for Vision-Language Models" (ICLR).
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fedmlic.errors import InputError
from fedmlic.labels import known
from fedmlic.method import Local, Method, Task
from fedmlic.model import Backbone
from fedmlic.prompt_learner import PromptLearner, open_reader
from fedmlic.prompt_tuning import (
    LossName,
    PromptedNetwork,
    WholeView,
    ask,
    entry_loss,
    frozen_parts,
    own_contexts,
    prompt_method,
)

TRIAL = "fedtpg(weights='random', scores='pair', scale=100.0)"
"""How it is built where no weights are at hand: for tests."""


class Generator(nn.Module):
    """Contexts from the features of label names, whatever their number and order.

    Args:
        features: d, of names.
        width: of word vectors.
        length: M.
        sets: contexts that it makes.
        heads: of the attention; they divide d.
        hidden: units between attention and context.
        size: deviation of word vectors, of which contexts begin with about a third.
    """

    def __init__(
        self, features: int, width: int, *, length: int, sets: int, heads: int, hidden: int, size: float
    ) -> None:
        super().__init__()
        if features % heads:
            msg = f"Expected heads to divide the width of texts {features}, got {heads}. Use 1, or another divisor."
            raise InputError(msg)
        self.sets, self.heads = sets, heads
        self.queries = nn.Parameter(torch.randn(sets * length, features) * features**-0.5)
        self.query, self.key, self.value, self.mixed = (nn.Linear(features, features, bias=False) for _ in range(4))
        self.norm = nn.LayerNorm(features)
        self.first, self.last = nn.Linear(features, hidden), nn.Linear(hidden, width)
        # Contexts of about the size of words: smaller ones have hardly a gradient, larger ones drown the name.
        nn.init.normal_(self.last.weight, std=size * hidden**-0.5)
        nn.init.zeros_(self.last.bias)

    def forward(self, names: Tensor) -> Tensor:
        """Contexts ``[sets, M, width]`` from names ``[names, features]``, one name or more."""
        queries, keys, values = (
            layer(rows).unflatten(1, (self.heads, -1)).transpose(0, 1)
            for layer, rows in ((self.query, self.queries), (self.key, names), (self.value, names))
        )
        weights = (queries @ keys.transpose(1, 2) * queries.shape[2] ** -0.5).softmax(dim=2)
        gathered = self.norm(self.mixed((weights @ values).transpose(0, 1).flatten(1)))
        contexts: Tensor = self.last(F.gelu(self.first(gathered)))
        return contexts.reshape(self.sets, -1, contexts.shape[1])


class GeneratedContextNetwork(PromptedNetwork):
    """A frozen tower, a frozen text half, and a generator of contexts.

    Args:
        backbone: gives the view of the whole image.
        learner: the labels' prompts; its hand-written ones are what the generator reads.
        generator: of one context, or of two: positive and negative.
        scale: factor of cosines.
        bias: added to every logit.
    """

    def __init__(
        self, backbone: Backbone, learner: PromptLearner, generator: Generator, *, scale: float, bias: float
    ) -> None:
        super().__init__(backbone, learner)
        self.generator, self.scale, self.bias = generator, scale, bias

    def contexts(self, *given: Tensor) -> Tensor:
        """``[1 or 2, M, width]``, from the names of the label numbers int64 that are given, or of all labels."""
        names = self.learner.handwritten
        found: Tensor = self.generator(names[given[0]] if given else names)
        return found

    def scores(self, views: Tensor, texts: Tensor | None = None) -> Tensor:
        """Logits float32 ``[batch, labels]`` of views ``[batch, 1, features]``; see ``PromptedNetwork``."""
        named = self.learner.handwritten[None] if texts is None else texts
        with torch.autocast(views.device.type, enabled=False):
            cosines = F.normalize(views[:, 0].float(), dim=1) @ F.normalize(named.float(), dim=2).transpose(1, 2)
        apart = cosines[0] if len(cosines) == 1 else cosines[0] - cosines[1]
        return self.scale * apart + self.bias


def fedtpg(
    *,
    weights: str = "",
    text_model: str = "ViT-B-16-quickgelu",
    template: str = "a photo of a {}",
    context_length: Annotated[int, Field(ge=1)] = 4,
    heads: Annotated[int, Field(ge=1)] = 4,
    hidden: Annotated[int, Field(ge=0)] = 0,
    names: Literal["annotated", "all"] = "annotated",
    asked_context: Literal["training", "asked"] = "training",
    scores: Literal["positive", "pair"] = "positive",
    scale: Annotated[float, Field(gt=0)] = 20.0,
    bias: float = 0.0,
    loss: LossName = "bce",
    gamma_pos: Annotated[float, Field(ge=0)] = 1.0,
    gamma_neg: Annotated[float, Field(ge=0)] = 4.0,
    margin: Annotated[float, Field(ge=0, lt=1)] = 0.05,
) -> Method:
    """A context that a small network generates from label names, on a frozen CLIP (FedTPG).

    Args:
        weights: CLIP's text half: a folder in Hugging Face's format (that of ``clip_image``), or a file of
            open_clip's; ``random``: a tiny one that knows nothing, for tests.
        text_model: open_clip's name of a file's architecture; a folder says it itself.
        template: the hand-written prompt, with ``{}`` for the name; the generator reads its features.
        context_length: M, generated vectors.
        heads: of the generator's attention; they divide the width of texts.
        hidden: units between attention and context; 0: the width of texts.
        names: what a client generates from in its turn: the labels that it ``annotated`` (all, where it annotates
            none), or ``all``.
        asked_context: names asked for after training are read behind the context of the ``training``'s labels, so
            that a name's score depends on it alone; or behind that of all ``asked`` names (the source's).
        scores: of the ``positive`` prompt alone, or of a ``pair`` of a positive and a negative one.
        scale: factor of cosines; it does not train.
        bias: added to every logit.
        loss: over known entries: ``bce``, ``balanced_bce`` or ``asl``.
        gamma_pos: focusing exponent of present entries, for ``asl``.
        gamma_neg: that of absent entries.
        margin: probability that absent entries may have for free, for ``asl``.
    """
    read = partial(open_reader, weights, text_model, who="fedtpg")

    def build(task: Task) -> GeneratedContextNetwork:
        backbone = WholeView(task.model.build(task.image_shape[2]))
        learner = frozen_parts(task, backbone, read, template, context_length)
        generator = _generator(learner, 2 if scores == "pair" else 1, heads, hidden)
        return GeneratedContextNetwork(backbone, learner, generator, scale=scale, bias=bias)

    value = entry_loss(loss, gamma_pos=gamma_pos, gamma_neg=gamma_neg, margin=margin)
    method = prompt_method(build, value, annotated if names == "annotated" else lambda _: ())
    contexts = _of_asked if asked_context == "asked" else own_contexts
    return method._replace(ask=partial(ask, read=read, template=template, contexts=contexts))


def _generator(learner: PromptLearner, sets: int, heads: int, hidden: int) -> Generator:
    """A generator for a text half's widths."""
    features, width = learner.handwritten.shape[1], learner.template_context.shape[1]
    sizes = {"length": learner.num_context, "sets": sets, "heads": heads, "hidden": hidden or features}
    return Generator(features, width, size=float(learner.names.std()), **sizes)


def annotated(local: Local) -> tuple[Tensor, ...]:
    """The numbers of the labels that a client annotates, int64; nothing where it annotates none."""
    if local.shard is None:
        return ()
    numbers = np.flatnonzero(known(local.shard.labels).any(axis=0))
    return (torch.from_numpy(numbers).to(local.device),) if len(numbers) else ()


def _of_asked(network: PromptedNetwork, learner: PromptLearner) -> Tensor:
    """Contexts ``[1 or 2, M, width]`` from the names that are asked for."""
    found: Tensor = cast("GeneratedContextNetwork", network).generator(learner.handwritten)
    return found
