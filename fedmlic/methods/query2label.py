"""Query2Label: one trained query per label gathers from the feature map what concerns it.

Tokens of the feature map pass an encoder layer; label queries look at each other and at the tokens in
two decoder layers, then a last norm; every label's logit is read from its own query
(``fedmlic.label_queries``). As in the authors' released code, whose networks these are number for number:
queries are added in every layer, to values that begin as zeros, and sines of places in every layer to what
asks and what is looked up, not to what is gathered.

Deviations: UNKNOWN and UNCERTAIN entries take no part; the loss is their mean, which the released code
multiplies by 1,000. Source: Liu et al. 2021, "Query2Label: A Simple Transformer Way to Multi-Label
Classification" (arXiv 2107.10834); released code SlongLiu/query2labels (MIT). ``docs/methods/query2label.md``
says where paper and code differ.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from fedmlic.errors import InputError
from fedmlic.label_queries import First, QueryClassifier, QueryLayer, check_heads
from fedmlic.label_transformer import EncoderLayer, Readout
from fedmlic.losses import asymmetric, known_mean
from fedmlic.method import Method, Objective, Task
from fedmlic.training import trainer

if TYPE_CHECKING:
    from collections.abc import Sequence


def query2label(
    *,
    encoder_layers: Annotated[int, Field(ge=0)] = 1,
    decoder_layers: Annotated[int, Field(ge=1)] = 2,
    heads: Annotated[int, Field(ge=1)] = 4,
    width: Annotated[int, Field(ge=1)] | None = None,
    feedforward: Annotated[int, Field(ge=1)] | None = None,
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1,
    positions: Literal["none", "sine"] = "sine",
    self_attention: bool = True,
    gamma_pos: Annotated[float, Field(ge=0)] = 0.0,
    gamma_neg: Annotated[float, Field(ge=0)] = 2.0,
    margin: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    reduction: Literal["mean", "sum"] = "mean",
) -> Method:
    """Trained label queries in a transformer decoder, by asymmetric loss.

    Args:
        encoder_layers: of the tokens.
        decoder_layers: of the queries.
        heads: attention heads; must divide the width.
        width: of tokens and queries (None: the backbone's features, without a projection).
        feedforward: hidden units of a layer (None: four times the width; the authors' 8,192 are that for 2,048).
        dropout: probability.
        positions: what is added to tokens for their place, where they ask and are looked up.
        self_attention: whether queries look at each other first (paper), or not, without the norm after it (the
            released code's default).
        gamma_pos: focusing exponent for present entries, 0 or more.
        gamma_neg: focusing exponent for absent entries, 0 or more.
        margin: probability that absent entries may have for free, in [0, 1).
        reduction: mean over the known entries of a batch, or their sum.
    """

    def build(task: Task) -> nn.Module:
        backbone = task.model.build(task.image_shape[2])
        size = width or backbone.num_features
        check_heads(size, heads)
        if positions == "sine" and size % 4:
            msg = f"Expected the width to be a multiple of 4 for positions='sine', got {size}. Choose another width."
            raise InputError(msg)
        hidden = feedforward or 4 * size
        first: First = "attention" if self_attention else "nothing"
        encoder = [EncoderLayer(size, heads, hidden, dropout) for _ in range(encoder_layers)]
        decoder = [QueryLayer(size, heads, hidden, dropout, first=first) for _ in range(decoder_layers)]
        _start(encoder, decoder)
        return QueryClassifier(
            backbone,
            nn.Parameter(torch.randn(task.num_labels, size)),
            Readout(task.num_labels, size),
            projection=nn.Identity() if size == backbone.num_features else nn.Linear(backbone.num_features, size),
            encoder=encoder,
            decoder=decoder,
            sine=positions == "sine",
            added=True,
        )

    def loss(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        entries = asymmetric(network(images), labels, gamma_pos=gamma_pos, gamma_neg=gamma_neg, margin=margin)
        return entries.sum() if reduction == "sum" else known_mean(entries, labels)

    objective = Objective(loss, one_by_one="dropout draws at random" if dropout else "")
    return Method(build, trainer(objective), predict, label_rows, objective=objective)


def _start(encoder: Sequence[EncoderLayer], decoder: Sequence[QueryLayer]) -> None:
    """Initial numbers as in the released code: matrices of layers by Xavier, uniform; attention without bias."""
    for layer in (*encoder, *decoder):
        for parameter in layer.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
    for each in encoder:
        nn.init.zeros_(each.attended.bias)


def predict(network: nn.Module, images: Tensor) -> Tensor:
    """Probabilities float32 ``[batch, labels]``."""
    return torch.sigmoid(network(images))


def label_rows(network: nn.Module) -> list[str]:
    """Names of the trainable tensors with one row per label."""
    return cast("QueryClassifier", network).label_rows()
