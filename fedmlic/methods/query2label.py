"""Query2Label: one trained query per label gathers from the feature map what concerns it.

Tokens of the feature map pass an encoder layer; label queries look at each other and at the tokens in
two decoder layers; every label's logit is read from its own query (``fedmlic.label_queries``).

Deviations: UNKNOWN and UNCERTAIN entries take no part; the loss is a mean where the authors sum;
sines of places are added to the tokens once, not in every layer; queries enter the first layer as
they are, not added to zeros in each layer. Source: Liu et al. 2021, "Query2Label: A Simple
Transformer Way to Multi-Label Classification" (arXiv 2107.10834).
"""

from __future__ import annotations

from typing import Annotated, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from fedmlic.errors import InputError
from fedmlic.label_queries import QueryClassifier, QueryLayer, check_heads
from fedmlic.label_transformer import EncoderLayer
from fedmlic.losses import asymmetric, known_mean
from fedmlic.method import Method, Objective, Task
from fedmlic.training import trainer


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
        positions: what is added to tokens for their place.
        self_attention: whether queries look at each other.
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
        return QueryClassifier(
            backbone,
            task.num_labels,
            nn.Parameter(torch.randn(task.num_labels, size)),
            projection=nn.Identity() if size == backbone.num_features else nn.Linear(backbone.num_features, size),
            encoder=[EncoderLayer(size, heads, hidden, dropout) for _ in range(encoder_layers)],
            decoder=[
                QueryLayer(size, heads, hidden, dropout, self_attention=self_attention) for _ in range(decoder_layers)
            ],
            sine=positions == "sine",
        )

    def loss(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        entries = asymmetric(network(images), labels, gamma_pos=gamma_pos, gamma_neg=gamma_neg, margin=margin)
        return entries.sum() if reduction == "sum" else known_mean(entries, labels)

    objective = Objective(loss, one_by_one="dropout draws at random" if dropout else "")
    return Method(build, trainer(objective), predict, label_rows, objective=objective)


def predict(network: nn.Module, images: Tensor) -> Tensor:
    """Probabilities float32 ``[batch, labels]``."""
    return torch.sigmoid(network(images))


def label_rows(network: nn.Module) -> list[str]:
    """Names of the trainable tensors with one row per label."""
    return cast("QueryClassifier", network).label_rows()
