"""ADD-GCN style: labels as nodes of a graph that is learned, then of one that is made for each image.

With F the feature map at P places and s_kp = <cam_k, F_p> the activation of label k at place p:

    first score:   max_p s_kp
    node k:        v_k = sum_p sigmoid(s_kp) T F_p                          T: features -> width
    static graph:  h = v + act(W_s act(A v))                                A learned, labels x labels
    image's graph: B = sigmoid(C [act(norm(U mean_k h_k)); h_k])            labels x labels
                   z = v + act(W_d act(B^T h))
    second score:  <readout_k, z_k> + b_k
    logit:         (first + second) / 2

act is a leaky ReLU of slope 0.2; B_jk, from node j to node k, is entry j of C's output at node k.

Deviations: UNKNOWN and UNCERTAIN entries take no part in the loss (binary cross-entropy); norm is a
LayerNorm where the source has BatchNorm, whose statistics would have to be exchanged. But for the norm the
logits are those of the authors' released code.

Source: Ye et al. 2020, "Attention-Driven Dynamic Graph Convolutional Network for Multi-Label Image
Recognition" (ECCV, arXiv 2012.02994); released code Yejin0111/ADD-GCN (no licence: read, not copied).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fedmlic.losses import mean_binary_cross_entropy
from fedmlic.method import Method, Objective, Task
from fedmlic.training import trainer

if TYPE_CHECKING:
    from fedmlic.model import Backbone

ROWS = ("activation.weight", "static.weight", "relation.weight", "relation.bias", "readout.weight", "readout.bias")
"""Tensors with one row per label."""


class GraphClassifier(nn.Module):
    """A backbone and the two graphs.

    Args:
        backbone: makes the feature map.
        num_labels: labels to predict, the graphs' nodes.
        width: of a node.
    """

    def __init__(self, backbone: Backbone, num_labels: int, width: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.activation = nn.Linear(backbone.num_features, num_labels, bias=False)
        self.transform = nn.Linear(backbone.num_features, width)
        self.static = nn.Linear(num_labels, num_labels, bias=False)
        self.static_weight = nn.Linear(width, width)
        self.overall = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.relation = nn.Linear(2 * width, num_labels)
        self.dynamic_weight = nn.Linear(width, width)
        self.readout = nn.Linear(width, num_labels)

    def forward(self, images: Tensor) -> Tensor:
        """Logits float32 ``[batch, labels]`` of images ``[batch, channels, height, width]``."""
        tokens = self.backbone(images).flatten(2).transpose(1, 2)
        scores = self.activation(tokens)
        nodes = self.nodes(tokens, scores)
        static = nodes + _act(self.static_weight(_act(self.static(nodes.transpose(1, 2)).transpose(1, 2))))
        graph = self.graph(static)
        found = nodes + _act(self.dynamic_weight(_act(graph.transpose(1, 2) @ static)))
        second = (found * self.readout.weight).sum(dim=2) + self.readout.bias
        logits: Tensor = (scores.amax(dim=1).float() + second.float()) / 2
        return logits

    def nodes(self, tokens: Tensor, scores: Tensor) -> Tensor:
        """``[batch, labels, width]``: what each label's mask covers of the feature map."""
        masks = torch.sigmoid(scores).transpose(1, 2)
        found: Tensor = masks @ self.transform(tokens)
        return found

    def graph(self, nodes: Tensor) -> Tensor:
        """``[batch, labels, labels]`` in (0, 1): from which node (rows) to which (columns)."""
        overall = _act(self.norm(self.overall(nodes.mean(dim=1, keepdim=True))))
        both = torch.cat([overall.expand_as(nodes), nodes], dim=2)
        return torch.sigmoid(self.relation(both)).transpose(1, 2)


def add_gcn(*, width: Annotated[int, Field(ge=1)] | None = None) -> Method:
    """Labels as nodes of a learned graph and of one made for each image, by binary cross-entropy.

    Args:
        width: of a node (None: half of the backbone's features, 1,024 for the authors' 2,048).
    """

    def build(task: Task) -> nn.Module:
        backbone = task.model.build(task.image_shape[2])
        return GraphClassifier(backbone, task.num_labels, width or max(backbone.num_features // 2, 1))

    def loss(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return mean_binary_cross_entropy(network(images), labels)

    objective = Objective(loss)
    return Method(build, trainer(objective), predict, label_rows, objective=objective)


def predict(network: nn.Module, images: Tensor) -> Tensor:
    """Probabilities float32 ``[batch, labels]``."""
    return torch.sigmoid(network(images))


def label_rows(network: nn.Module) -> tuple[str, ...]:
    """Names of the trainable tensors with one row per label."""
    del network
    return ROWS


def _act(values: Tensor) -> Tensor:
    return F.leaky_relu(values, 0.2)
