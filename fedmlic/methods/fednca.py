"""FedNCA-ML: one feature per label, drawn to that label's corner of a frozen simplex.

With C labels, E = sqrt(C / (C - 1)) (I - 1 1^T / C), padded with zeros to the width of features: rows e_c of length 1
and pairwise cosine -1 / (C - 1) (a simplex equiangular tight frame), which all clients hold and nobody trains.

1. The e_c are queries of one cross-attention over the feature map's places: a feature f_c per image and label.
2. l_cj = s e_j . f_c + b_j, with a scale s and a bias b that train; the prediction for label c is sigmoid(l_cc).
3. Loss of an image, summed over labels, a mean over the images of a batch:

       sum over annotated c of BCE(l_cc, y_c)
       + reject   * sum over absent c  of max(0, sigmoid(max_j l_cj) - margin)
       + contrast * sum over present c of cross-entropy of softmax_j(cos(f_c, e_j) / temperature) against c

``negatives="hardest"``, the authors' recipe, rejects only as many absent pairs of the batch as there are present ones,
those with the largest max_j l_cj; ``all`` rejects all. A batch without a present entry has cross-entropy alone.
``ramps`` lets the contrast grow from 0 between 20 % and 60 % of the rounds, rejection from 60 % to 90 %, where round r
of R is at (r - 1) / (R - 1). ``classifier="learned"`` trains E from the same start: the method without its idea.
``scale=None`` leaves out s, as the anonymous one of the two released codes does.

Deviations: UNKNOWN and UNCERTAIN entries take no part in any term. Not here: pos_weight, random negatives, averaging by
importance. Equal weights of clients, the authors' default, are ``strategy="fedavg(weights='uniform')"``, heads by label
counts ``flag()``.

Source: FedNCA-ML (arXiv 2509.12544) and its released code.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fedmlic.errors import InputError
from fedmlic.guesses import precise
from fedmlic.label_queries import check_heads
from fedmlic.label_transformer import sine_positions
from fedmlic.labels import ABSENT, PRESENT
from fedmlic.losses import binary_cross_entropy
from fedmlic.method import Inputs, Local, Method, Objective, Task
from fedmlic.training import trainer

if TYPE_CHECKING:
    from fedmlic.model import Backbone

Weight = Annotated[float, Field(ge=0)]


def simplex(num_labels: int, width: int) -> Tensor:
    """float32 ``[labels, width]``: rows of length 1 and pairwise cosine -1 / (labels - 1), padded with zeros.

    Raises:
        InputError: there is one label only, or the width is smaller than the number of labels.

    >>> simplex(2, 3).round(decimals=3).tolist()
    [[0.7070000171661377, -0.7070000171661377, 0.0], [-0.7070000171661377, 0.7070000171661377, 0.0]]
    """
    if num_labels < 2:
        msg = (
            f"Expected 2 labels or more, since a simplex has a corner for each, got {num_labels}. "
            "Choose another method, such as bce()."
        )
        raise InputError(msg)
    if num_labels > width:
        msg = (
            f"Expected 2 to {width} labels (the width of features), since each has its corner of a simplex, got "
            f"{num_labels}. Set width to {num_labels} or more, or take a wider model."
        )
        raise InputError(msg)
    rows = math.sqrt(num_labels / (num_labels - 1)) * (torch.eye(num_labels) - 1 / num_labels)
    return F.pad(rows, (0, width - num_labels))


class Scores(NamedTuple):
    """What the network says of a batch.

    Attributes:
        logits: float32 ``[batch, labels]``, l_cc.
        matrix: float32 ``[batch, labels, labels]``, l_cj of feature c (second axis) at corner j.
        cosines: likewise, cos(f_c, e_j).
    """

    logits: Tensor
    matrix: Tensor
    cosines: Tensor


class SimplexClassifier(nn.Module):
    """A backbone, one cross-attention by label, and a classifier whose rows are a simplex.

    Args:
        backbone: makes the feature map.
        num_labels: labels to predict.
        width: of features (None: the backbone's, without a projection).
        heads: of attention; must divide the width.
        sine: whether a positional encoding is added.
        learned: whether the rows train.
        scale: where the trained factor of the products begins (None: there is none).
    """

    corners: Tensor

    def __init__(
        self,
        backbone: Backbone,
        num_labels: int,
        *,
        width: int | None,
        heads: int,
        sine: bool,
        learned: bool,
        scale: float | None,
    ) -> None:
        super().__init__()
        size = width or backbone.num_features
        check_heads(size, heads)
        self.backbone, self.sine = backbone, sine
        same = size == backbone.num_features
        self.projection: nn.Module = nn.Identity() if same else nn.Linear(backbone.num_features, size)
        corners = simplex(num_labels, size)
        if learned:
            self.corners = nn.Parameter(corners)
        else:
            self.register_buffer("corners", corners)
        self.attention = nn.MultiheadAttention(size, heads, batch_first=True)
        self.scale = None if scale is None else nn.Parameter(torch.tensor(scale))
        self.bias = nn.Parameter(torch.zeros(num_labels))

    def features(self, images: Tensor) -> Tensor:
        """f, ``[batch, labels, width]``."""
        places = self.backbone(images)
        tokens = self.projection(places.flatten(2).transpose(1, 2))
        if self.sine:
            tokens = tokens + sine_positions(places.shape[2], places.shape[3], tokens.shape[2]).to(tokens)
        found: Tensor = self.attention(self.corners.expand(len(images), -1, -1), tokens, tokens, need_weights=False)[0]
        return found

    def forward(self, images: Tensor) -> Scores:
        """Scores of images ``[batch, channels, height, width]``."""
        features = precise(self.features(images))
        rows = precise(self.corners)
        products = features @ rows.T
        matrix = (products if self.scale is None else self.scale * products) + self.bias
        cosines = F.normalize(features, dim=2) @ F.normalize(rows, dim=1).T
        return Scores(matrix.diagonal(dim1=1, dim2=2), matrix, cosines)


def rejection(matrix: Tensor, labels: Tensor, margin: float, negatives: str) -> Tensor:
    """``max(0, sigmoid(max_j l_cj) - margin)`` of absent entries that count, 0 elsewhere, ``[batch, labels]``.

    Nothing counts in a batch without a present entry.

    Args:
        matrix: l, ``[batch, labels, labels]``.
        labels: int8 ``[batch, labels]``.
        margin: what is free.
        negatives: ``all``, or ``hardest``: as many as there are present entries in the batch.
    """
    largest, absent = matrix.amax(dim=2), labels == ABSENT
    if negatives == "hardest":
        wanted = (labels == PRESENT).sum()
        ranked = torch.where(absent, largest.detach(), -torch.inf).flatten()
        order = ranked.argsort(descending=True, stable=True)
        chosen = torch.zeros_like(absent).flatten()
        chosen[order] = torch.arange(len(order), device=order.device) < wanted
        absent = absent & chosen.view_as(absent)
    else:
        absent = absent & (labels == PRESENT).any()
    return torch.where(absent, (torch.sigmoid(largest) - margin).clamp(min=0), 0.0)


def alignment(cosines: Tensor, labels: Tensor, kind: str, temperature: float) -> Tensor:
    """How far features of present labels are from their corner, 0 elsewhere, ``[batch, labels]``.

    Args:
        cosines: cos(f_c, e_j), ``[batch, labels, labels]``.
        labels: int8 ``[batch, labels]``.
        kind: ``softmax`` among all corners, or ``cosine``: 1 - cos(f_c, e_c).
        temperature: of the softmax.
    """
    if kind == "cosine":
        gaps = 1 - cosines.diagonal(dim1=1, dim2=2)
    else:
        gaps = -F.log_softmax(cosines / temperature, dim=2).diagonal(dim1=1, dim2=2)
    return torch.where(labels == PRESENT, gaps, 0.0)


def ramp(number: int, num_rounds: int, begin: float, end: float) -> float:
    """0 up to the share ``begin`` of the rounds, 1 from ``end`` on, in between on a line.

    The first round is at share 0, the last at 1, which a single round is.

    >>> [round(ramp(number, 11, 0.2, 0.6), 6) for number in (3, 5, 7)]
    [0.0, 0.5, 1.0]
    """
    share = (number - 1) / (num_rounds - 1) if num_rounds > 1 else 1.0
    return min(max((share - begin) / (end - begin), 0.0), 1.0)


def fednca(
    *,
    reject: Weight = 0.01,
    margin: Annotated[float, Field(ge=0, le=1)] = 0.3,
    negatives: Literal["all", "hardest"] = "hardest",
    contrast: Weight = 1.0,
    align: Literal["softmax", "cosine"] = "softmax",
    temperature: Annotated[float, Field(gt=0)] = 0.07,
    ramps: bool = False,
    classifier: Literal["simplex", "learned"] = "simplex",
    scale: Annotated[float, Field(gt=0)] | None = 10.0,
    heads: Annotated[int, Field(ge=1)] = 4,
    width: Annotated[int, Field(ge=2)] | None = None,
    positions: Literal["none", "sine"] = "none",
) -> Method:
    """A feature per label by cross-attention, drawn to the label's corner of a frozen simplex (FedNCA-ML).

    Args:
        reject: weight of the rejection of absent labels, lambda_rej.
        margin: probability that an absent label's feature may have at its best corner for free.
        negatives: absent entries that are rejected: ``all``, or the ``hardest``, as many as present ones.
        contrast: weight of the alignment of present labels, lambda_con.
        align: with a ``softmax`` over all corners, or by ``cosine`` alone.
        temperature: of the softmax.
        ramps: whether both weights grow with the rounds.
        classifier: the ``simplex``, or rows that are ``learned`` from there.
        scale: where the trained factor of all products e_j . f_c begins; None for none.
        heads: attention heads; must divide the width.
        width: of features (None: the backbone's, without a projection); at least the number of labels.
        positions: positional encoding of places.
    """

    def build(task: Task) -> nn.Module:
        backbone, learned = task.model.build(task.image_shape[2]), classifier == "learned"
        sine = positions == "sine"
        return SimplexClassifier(
            backbone, task.num_labels, width=width, heads=heads, sine=sine, learned=learned, scale=scale
        )

    def inputs(local: Local) -> Inputs:
        grown = [ramp(local.round, local.experiment.num_rounds, *bounds) for bounds in ((0.6, 0.9), (0.2, 0.6))]
        weights = torch.tensor(grown if ramps else [1.0, 1.0], device=local.device)
        return Inputs(lambda *_: (weights,), dict)

    def loss(network: nn.Module, images: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        scores: Scores = network(images)
        entries = binary_cross_entropy(scores.logits, labels)
        entries = entries + reject * weights[0] * rejection(scores.matrix, labels, margin, negatives)
        entries = entries + contrast * weights[1] * alignment(scores.cosines, labels, align, temperature)
        return entries.sum() / len(labels)

    objective = Objective(loss, inputs)
    return Method(build, trainer(objective), predict, label_rows, objective=objective)


def predict(network: nn.Module, images: Tensor) -> Tensor:
    """Probabilities float32 ``[batch, labels]``."""
    scores: Scores = network(images)
    return torch.sigmoid(scores.logits).float()


def label_rows(network: nn.Module) -> tuple[str, ...]:
    """The bias, and the classifier's rows where they train."""
    return ("corners", "bias") if isinstance(network.corners, nn.Parameter) else ("bias",)
