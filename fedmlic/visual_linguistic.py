"""The networks of HSVLT: label tokens that read the map of every block of a network in stages.

Reading order, for one image; L holds the label vectors, one row per label::

    tokens T = L * scale
    for each stage:   map V <- downsample(V)          T <- P T                 (P: linear, to the stage's width)
        for each block:   V <- block(V)               (the trunk's own, as it is)
            X = W_o softmax((W_q T) (W_k V)' / sqrt(width / heads)) (W_v V)     labels attend to places
            U = gelu(G T),   M = gelu(F (U * X))                                what label and image have in common
            T <- T + M,      T <- T + tanh(W_2 relu(W_1 T)) * T
        M of the stage's last block is kept
    logit of c = readout.weight[c] . (M_1, M_2, M_3, M_4)_c + readout.bias[c]

The product U * X is over labels and channels, and labels do not look at each other: a label's logit does not depend
on which other labels there are. With ``changes_map`` the places attend to the labels too,
``V <- V + gamma * W_o' softmax((W_q' V) (W_k' T)' / sqrt(...)) (W_v' T)``, with the T that the block was given.

What nobody reads is not built: the last block of all neither changes T after M nor the map.

Source: "HSVLT: Hierarchical Scale-Aware Vision-Language Transformer for Multi-Label Image Classification" (ACM
Multimedia 2023, arXiv 2407.16244); ``docs/methods/hsvlt.md`` lists what is from where and all deviations.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedmlic.errors import InputError
from fedmlic.label_transformer import Readout, ReadoutKind, hold

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fedmlic.model import Stage, StageBackbone
    from fedmlic.text import LabelVectors

Scales = Literal["all", "last"]

GAMMA = 1e-6
"""Start of the factor per channel of what labels add to the map: that of ConvNeXt's own blocks."""

GATE_STD = 0.02
"""Deviation of the gate's initial weights: ConvNeXt's. With Xavier's, tokens grow from block to block."""


class CrossAttention(nn.Module):
    """Some tokens gather from others: ``W_o softmax((W_q own) (W_k context)' / sqrt(width / heads)) (W_v context)``.

    Args:
        width: of all tokens.
        num_heads: must divide the width.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.queries, self.keys, self.values = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.attended = nn.Linear(width, width)

    def forward(self, own: Tensor, context: Tensor) -> Tensor:
        """What each token gathers, ``[batch, own, width]``.

        Args:
            own: ``[batch or 1, own, width]``, the tokens that gather.
            context: ``[batch, context, width]``, what they gather from.
        """
        queries = self._heads(self.queries(own)).expand(len(context), -1, -1, -1)
        gathered = F.scaled_dot_product_attention(
            queries, self._heads(self.keys(context)), self._heads(self.values(context))
        )
        result: Tensor = self.attended(gathered.transpose(1, 2).flatten(2))
        return result

    def _heads(self, tokens: Tensor) -> Tensor:
        return tokens.reshape(*tokens.shape[:2], self.num_heads, -1).transpose(1, 2)


class Interaction(nn.Module):
    """What one block adds to the trunk's: interactive visual-linguistic attention.

    Args:
        width: of the stage.
        num_heads: attention heads; must divide the width.
        passes_tokens: whether a later block reads the tokens.
        changes_map: whether labels change the map.
    """

    def __init__(self, width: int, num_heads: int, *, passes_tokens: bool = True, changes_map: bool = False) -> None:
        super().__init__()
        self.attention = CrossAttention(width, num_heads)
        self.language = nn.Linear(width, width)
        self.fusion = nn.Linear(width, width)
        self.gate = (
            nn.Sequential(nn.Linear(width, width, bias=False), nn.ReLU(), nn.Linear(width, width, bias=False))
            if passes_tokens
            else None
        )
        self.to_map = CrossAttention(width, num_heads) if changes_map else None
        self.gamma = nn.Parameter(torch.full((width,), GAMMA)) if changes_map else None
        start_linears(self.modules())
        for linear in self.gate or ():
            if isinstance(linear, nn.Linear):
                nn.init.normal_(linear.weight, std=GATE_STD)

    def forward(self, features: Tensor, tokens: Tensor, num_labels: int) -> tuple[Tensor, Tensor, Tensor]:
        """One step of the labels.

        Args:
            features: the map after the trunk's block, ``[batch, width, height', width']``.
            tokens: ``[batch or 1, tokens, width]``, the labels' in front.
            num_labels: tokens that may change the map; those after them only read.

        Returns:
            The new map, the new tokens, and what each token has in common with the image, M ``[batch, tokens, width]``.
        """
        places = features.flatten(2).transpose(1, 2)
        common: Tensor = F.gelu(self.fusion(F.gelu(self.language(tokens)) * self.attention(tokens, places)))
        if self.to_map is not None:
            labels = tokens[:, :num_labels].expand(len(places), -1, -1)
            added = self.gamma * self.to_map(places, labels)
            features = features + added.transpose(1, 2).reshape(features.shape)
        if self.gate is not None:
            tokens = tokens + common
            tokens = tokens + self.gate(tokens).tanh() * tokens
        return features, tokens, common


class VisualLinguistic(nn.Module):
    """A trunk in stages whose every block is read by label tokens; one logit per label.

    Args:
        backbone: the trunk.
        labels: ``[labels, any width]``, one vector per label, to be trained or frozen. The whole table is multiplied
            by one constant, so that the mean square of its entries is 1 as training starts.
        num_heads: attention heads; must divide the width of every stage.
        changes_map: whether labels change the trunk's map too.
        scales: the read-out's features: of all stages, or of the last alone.
        readout: a weight vector and bias per label (``row``), or one for all (``shared``).

    Raises:
        InputError: ``num_heads`` does not divide a width.
    """

    label_tokens: Tensor

    def __init__(
        self,
        backbone: StageBackbone,
        labels: LabelVectors,
        *,
        num_heads: int = 1,
        changes_map: bool = False,
        scales: Scales = "all",
        readout: ReadoutKind = "row",
    ) -> None:
        super().__init__()
        stages = _stages(backbone)
        widths = [stage.num_features for stage in stages]
        _check_heads(widths, num_heads)
        self.backbone, self.scales, self.readout_kind = backbone, scales, readout
        num_labels, text_width = labels.vectors.shape
        hold(self, "label_tokens", labels.vectors, learned=labels.trainable)
        square = float((labels.vectors.astype("float64") ** 2).mean())
        self.scale = square**-0.5 if square > 0 else 1.0
        self.projections = nn.ModuleList(nn.Linear(*pair) for pair in pairwise([text_width, *widths]))
        start_linears(self.projections)
        last = len(stages) - 1, len(stages[-1].blocks) - 1
        self.interactions = nn.ModuleList(
            nn.ModuleList(
                Interaction(
                    stage.num_features,
                    num_heads,
                    passes_tokens=(number, place) != last,
                    changes_map=changes_map and (number, place) != last,
                )
                for place in range(len(stage.blocks))
            )
            for number, stage in enumerate(stages)
        )
        self.readout = Readout(num_labels if readout == "row" else 1, _width_read(widths, scales))

    def forward(self, images: Tensor) -> Tensor:
        """Logits float32 ``[batch, labels]`` of images ``[batch, channels, height, width]``."""
        logits: Tensor = self.readout(self.common(images, self.label_tokens))
        return logits.float()

    def beside(self, images: Tensor, vectors: Tensor) -> Tensor:
        """Logits float32 ``[batch, names]`` of further labels; nothing looks at them.

        Args:
            images: float32 ``[batch, channels, height, width]``.
            vectors: float32 ``[names, text width]``, made like those of the labels; the read-out must be shared.
        """
        common = self.common(images, torch.cat([self.label_tokens, vectors]))
        logits: Tensor = self.readout(common[:, len(self.label_tokens) :])
        return logits.float()

    def common(self, images: Tensor, vectors: Tensor) -> Tensor:
        """M of the stages' last blocks, side by side, ``[batch, vectors, features of the read-out]``.

        Args:
            images: float32 ``[batch, channels, height, width]``.
            vectors: ``[vectors, text width]``, the labels' in front; those after them do not change the map.
        """
        features, tokens = self.backbone.embed(images), vectors[None] * self.scale
        found = []
        for stage, projection, row in zip(_stages(self.backbone), self.projections, self.interactions, strict=True):
            features, tokens = stage.downsample(features), projection(tokens)
            common = tokens
            for block, interaction in zip(stage.blocks, cast("nn.ModuleList", row), strict=True):
                features, tokens, common = interaction(block(features), tokens, len(self.label_tokens))
            found.append(common)
        return torch.cat(found if self.scales == "all" else found[-1:], dim=2)

    def label_rows(self) -> tuple[str, ...]:
        """Names of the trainable tensors with one row per label."""
        tokens = ("label_tokens",) if isinstance(self.label_tokens, nn.Parameter) else ()
        return (*tokens, "readout.weight", "readout.bias") if self.readout_kind == "row" else tokens


class ScaleClassifier(nn.Module):
    """The same without language: the means of the trunk's maps, side by side, and a linear unit per label.

    Args:
        backbone: the trunk.
        num_labels: labels to predict.
        scales: maps of all stages, or of the last alone.
    """

    readout_kind: ReadoutKind = "row"

    def __init__(self, backbone: StageBackbone, num_labels: int, scales: Scales = "all") -> None:
        super().__init__()
        self.backbone, self.scales = backbone, scales
        widths = [stage.num_features for stage in _stages(backbone)]
        self.readout = Readout(num_labels, _width_read(widths, scales))

    def forward(self, images: Tensor) -> Tensor:
        """Logits float32 ``[batch, labels]`` of images ``[batch, channels, height, width]``."""
        maps = self.backbone.maps(images)
        means = [each.mean((2, 3)) for each in (maps if self.scales == "all" else maps[-1:])]
        return F.linear(torch.cat(means, dim=1), self.readout.weight, self.readout.bias).float()

    def label_rows(self) -> tuple[str, ...]:
        """Names of the trainable tensors with one row per label."""
        return ("readout.weight", "readout.bias")


def start_linears(modules: Iterable[nn.Module]) -> None:
    """Xavier's uniform weights and biases of 0 for the linear layers among ``modules``."""
    for module in modules:
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _stages(backbone: StageBackbone) -> list[Stage]:
    return cast("list[Stage]", list(backbone.stages))


def _width_read(widths: list[int], scales: Scales) -> int:
    return sum(widths) if scales == "all" else widths[-1]


def _check_heads(widths: list[int], num_heads: int) -> None:
    if any(width % num_heads for width in widths):
        msg = (
            f"Expected heads to divide the stages' widths {widths}, got {num_heads}. Use heads=1, as the paper's code."
        )
        raise InputError(msg)
