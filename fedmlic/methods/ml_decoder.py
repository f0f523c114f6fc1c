"""ML-Decoder: a few fixed queries, each answering for a group of labels.

Tokens of the feature map are projected (with ReLU); G = min(``groups``, labels) queries that are drawn
once from the seed and never trained look at them in one decoder layer, without looking at each other (before
it they are added to themselves and normalised, as in the released code);
every query's result gives the logits of its own group of ceil(labels / G) labels. Fixed queries are
the same on every host and are not sent.

Deviations: UNKNOWN and UNCERTAIN entries take no part; the loss is a mean where the authors sum.
Source: Ridnik et al. 2023, "ML-Decoder: Scalable and Versatile Classification Head" (WACV, arXiv
2111.12933).
"""

from __future__ import annotations

from typing import Annotated, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from fedmlic.label_queries import GroupReadout, QueryClassifier, QueryLayer, check_heads
from fedmlic.losses import asymmetric, known_mean
from fedmlic.method import Method, Objective, Task
from fedmlic.training import trainer


def ml_decoder(
    *,
    groups: Annotated[int, Field(ge=1)] = 100,
    width: Annotated[int, Field(ge=1)] | None = None,
    heads: Annotated[int, Field(ge=1)] = 8,
    feedforward: Annotated[int, Field(ge=1)] | None = None,
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1,
    gamma_pos: Annotated[float, Field(ge=0)] = 0.0,
    gamma_neg: Annotated[float, Field(ge=0)] = 4.0,
    margin: Annotated[float, Field(ge=0, lt=1)] = 0.05,
    reduction: Literal["mean", "sum"] = "mean",
) -> Method:
    """Fixed group queries in one decoder layer, by asymmetric loss.

    Args:
        groups: most queries; with fewer labels there is one query per label.
        width: of tokens and queries (None: the backbone's features, at most the authors' 768).
        heads: attention heads; must divide the width.
        feedforward: hidden units of the layer (None: 8/3 of the width, the authors' 2,048 for 768).
        dropout: probability.
        gamma_pos: focusing exponent for present entries, 0 or more.
        gamma_neg: focusing exponent for absent entries, 0 or more.
        margin: probability that absent entries may have for free, in [0, 1).
        reduction: mean over the known entries of a batch, or their sum.
    """

    def build(task: Task) -> nn.Module:
        backbone = task.model.build(task.image_shape[2])
        size = width or min(backbone.num_features, 768)
        check_heads(size, heads)
        num_queries = min(groups, task.num_labels)
        return QueryClassifier(
            backbone,
            torch.randn(num_queries, size),
            GroupReadout(num_queries, task.num_labels, size),
            projection=nn.Sequential(nn.Linear(backbone.num_features, size), nn.ReLU()),
            decoder=[QueryLayer(size, heads, feedforward or size * 8 // 3, dropout, first="doubled")],
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
