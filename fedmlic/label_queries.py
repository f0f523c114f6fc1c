"""Label queries: tokens that gather from the feature map what concerns their label.

``QueryClassifier`` is Query2Label with one trained query per label and, with fixed queries that each
answer for a group of labels and do not look at each other, ML-Decoder.

Sources: Liu et al. 2021, "Query2Label" (arXiv 2107.10834); Ridnik et al. 2023, "ML-Decoder: Scalable
and Versatile Classification Head" (WACV).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedmlic.errors import InputError
from fedmlic.label_transformer import dropout, sine_positions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedmlic.model import Backbone


class QueryLayer(nn.Module):
    """Queries look at each other, then at the image, then a feed-forward part; post-norm.

    The same function as ``torch.nn.TransformerDecoderLayer`` (ReLU, post-norm). Without
    ``self_attention`` queries are added to themselves and normalised in its place, as in ML-Decoder.

    Args:
        width: of queries and tokens.
        num_heads: attention heads; must divide the width.
        feedforward: hidden units.
        drop: probability of dropout, after each part and inside the feed-forward part.
        self_attention: whether queries look at each other.

    Raises:
        InputError: ``num_heads`` does not divide the width.
    """

    def __init__(self, width: int, num_heads: int, feedforward: int, drop: float, *, self_attention: bool) -> None:
        super().__init__()
        check_heads(width, num_heads)
        self.among = nn.MultiheadAttention(width, num_heads, batch_first=True) if self_attention else None
        self.norm_among = nn.LayerNorm(width)
        self.across = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.norm_across = nn.LayerNorm(width)
        self.expand = nn.Linear(width, feedforward)
        self.contract = nn.Linear(feedforward, width)
        self.norm_contracted = nn.LayerNorm(width)
        self.probability = drop

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """New queries ``[batch, queries, width]`` from tokens ``[batch, tokens, width]``."""
        own = queries if self.among is None else self.among(queries, queries, queries, need_weights=False)[0]
        queries = self.norm_among(queries + self.drop(own))
        queries = self.norm_across(queries + self.drop(self.across(queries, tokens, tokens, need_weights=False)[0]))
        hidden = self.drop(F.relu(self.expand(queries)))
        found: Tensor = self.norm_contracted(queries + self.drop(self.contract(hidden)))
        return found

    def drop(self, values: Tensor) -> Tensor:
        """``values`` with dropout in training mode."""
        return dropout(values, self.probability) if self.training else values


class GroupReadout(nn.Module):
    """Each of G queries gives the logits of its own ``ceil(labels / G)`` labels; the last ones may be unused.

    With as many queries as labels it is one linear unit per label, each reading its own query.

    Args:
        num_queries: G.
        num_labels: labels to predict.
        width: of the queries.
    """

    def __init__(self, num_queries: int, num_labels: int, width: int) -> None:
        super().__init__()
        self.num_queries, self.size = num_queries, -(-num_labels // num_queries)
        self.weight = nn.Parameter(torch.empty(num_labels, width))
        self.bias = nn.Parameter(torch.zeros(num_labels))
        nn.init.xavier_normal_(self.weight)

    def forward(self, queries: Tensor) -> Tensor:
        """Logits float32 ``[batch, labels]`` of queries ``[batch, G, width]``."""
        spare = self.num_queries * self.size - len(self.weight)
        blocks = F.pad(self.weight, (0, 0, 0, spare)).view(self.num_queries, self.size, -1)
        logits: Tensor = torch.einsum("bgw,gsw->bgs", queries, blocks).flatten(1)[:, : len(self.weight)] + self.bias
        return logits.float()


class QueryClassifier(nn.Module):
    """A backbone, an encoder of its tokens, and queries that gather from them.

    Args:
        backbone: makes the feature map.
        num_labels: labels to predict.
        queries: ``[G, width]``; a parameter if they are trained, else a frozen table.
        projection: from the backbone's features to the width, for tokens ``[batch, places, features]``.
        encoder: layers that tokens pass through first.
        decoder: layers that queries pass through.
        sine: whether tokens get sines of their place added.
    """

    queries: Tensor

    def __init__(
        self,
        backbone: Backbone,
        num_labels: int,
        queries: Tensor,
        *,
        projection: nn.Module,
        encoder: Sequence[nn.Module] = (),
        decoder: Sequence[QueryLayer] = (),
        sine: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        if isinstance(queries, nn.Parameter):
            self.queries = queries
        else:
            self.register_buffer("queries", queries)
        self.projection = projection
        self.encoder, self.decoder = nn.ModuleList(encoder), nn.ModuleList(decoder)
        self.readout = GroupReadout(len(queries), num_labels, queries.shape[1])
        self.sine = sine

    def forward(self, images: Tensor) -> Tensor:
        """Logits float32 ``[batch, labels]`` of images ``[batch, channels, height, width]``."""
        features = self.backbone(images)
        tokens = self.projection(features.flatten(2).transpose(1, 2))
        if self.sine:
            tokens = tokens + sine_positions(features.shape[2], features.shape[3], tokens.shape[2]).to(tokens)
        for layer in self.encoder:
            tokens = layer(tokens)
        queries = self.queries.expand(len(images), -1, -1)
        for layer in self.decoder:
            queries = layer(queries, tokens)
        logits: Tensor = self.readout(queries)
        return logits

    def label_rows(self) -> list[str]:
        """Names of the trainable tensors with one row per label."""
        own = ["queries"] if isinstance(self.queries, nn.Parameter) else []
        return [*own, "readout.weight", "readout.bias"]


def check_heads(width: int, num_heads: int) -> None:
    """Raise ``InputError`` unless the heads divide the width."""
    if width % num_heads:
        msg = f"Expected heads to divide the width {width}, got {num_heads}. Choose another width or number of heads."
        raise InputError(msg)
