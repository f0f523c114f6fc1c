"""Label queries: tokens that gather from the feature map what concerns their label.

``QueryClassifier`` is Query2Label with one trained query per label and, with fixed queries that each
answer for a group of labels and do not look at each other, ML-Decoder.

Sources: Liu et al. 2021, "Query2Label" (arXiv 2107.10834); Ridnik et al. 2023, "ML-Decoder: Scalable
and Versatile Classification Head" (WACV). Sines of places and queries that are added in every layer: Carion et al.
2020, "End-to-End Object Detection with Transformers" (ECCV, DETR), as Query2Label's released code has them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedmlic.errors import InputError
from fedmlic.label_transformer import dropout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedmlic.label_transformer import EncoderLayer
    from fedmlic.model import Backbone

First = Literal["attention", "doubled", "nothing"]


class QueryLayer(nn.Module):
    """What queries do first, then they look at the image, then a feed-forward part; post-norm.

    With ``first="attention"``, and without ``queries`` and ``places``, the same function as
    ``torch.nn.TransformerDecoderLayer`` (ReLU, post-norm).

    Args:
        width: of queries and tokens.
        num_heads: attention heads; must divide the width.
        feedforward: hidden units.
        drop: probability of dropout, of attention weights, after each part and inside the feed-forward part.
        first: ``attention``: queries look at each other; ``doubled``: they are added to themselves and
            normalised (ML-Decoder); ``nothing`` (Query2Label's released default).

    Raises:
        InputError: ``num_heads`` does not divide the width.
    """

    def __init__(self, width: int, num_heads: int, feedforward: int, drop: float, *, first: First) -> None:
        super().__init__()
        check_heads(width, num_heads)

        def attention() -> nn.MultiheadAttention:
            return nn.MultiheadAttention(width, num_heads, dropout=drop, batch_first=True)

        self.first = first
        self.among = attention() if first == "attention" else None
        self.norm_among = None if first == "nothing" else nn.LayerNorm(width)
        self.across = attention()
        self.norm_across = nn.LayerNorm(width)
        self.expand = nn.Linear(width, feedforward)
        self.contract = nn.Linear(feedforward, width)
        self.norm_contracted = nn.LayerNorm(width)
        self.probability = drop

    def forward(
        self, values: Tensor, tokens: Tensor, queries: Tensor | None = None, places: Tensor | None = None
    ) -> Tensor:
        """New values ``[batch, queries, width]``.

        Args:
            values: ``[batch, queries, width]``, what queries have gathered so far.
            tokens: ``[batch, tokens, width]`` of the image.
            queries: added to ``values`` where attention is asked or looked up, not where it is gathered.
            places: ``[tokens, width]``, added to ``tokens`` where they are looked up, not where they are gathered.
        """
        if self.norm_among is not None:
            own = values
            if self.among is not None:
                asked = _plus(values, queries)
                own = self.among(asked, asked, values, need_weights=False)[0]
            values = self.norm_among(values + self.drop(own))
        seen = self.across(_plus(values, queries), _plus(tokens, places), tokens, need_weights=False)[0]
        values = self.norm_across(values + self.drop(seen))
        hidden = self.drop(F.relu(self.expand(values)))
        found: Tensor = self.norm_contracted(values + self.drop(self.contract(hidden)))
        return found

    def drop(self, values: Tensor) -> Tensor:
        """``values`` with dropout in training mode."""
        return dropout(values, self.probability) if self.training else values


def _plus(values: Tensor, added: Tensor | None) -> Tensor:
    return values if added is None else values + added


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
        self.labels_by_order = self.size > 1  # a label more would put others behind another query
        self.weight = nn.Parameter(torch.empty(num_labels, width))
        self.bias = nn.Parameter(torch.zeros(num_labels))
        # Xavier's deviation of the tensor [queries, width, labels of a query], in which ML-Decoder keeps it.
        nn.init.normal_(self.weight, std=math.sqrt(2 / (self.size * (num_queries + width))))

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
        queries: ``[G, width]``; a parameter if they are trained, else a frozen table.
        readout: logits ``[batch, labels]`` of ``[batch, G, width]``, with one row per label in ``weight`` and ``bias``.
        projection: from the backbone's features to the width, for tokens ``[batch, places, features]``.
        encoder: layers that tokens pass through first.
        decoder: layers that queries pass through.
        sine: whether queries and keys of attention get sines of their place added, in every layer.
        added: whether queries are added in every layer to values that begin as zeros and pass a last norm
            (Query2Label), or are themselves the values that the first layer gets (ML-Decoder).
    """

    queries: Tensor

    def __init__(
        self,
        backbone: Backbone,
        queries: Tensor,
        readout: nn.Module,
        *,
        projection: nn.Module,
        encoder: Sequence[EncoderLayer] = (),
        decoder: Sequence[QueryLayer] = (),
        sine: bool = False,
        added: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        if isinstance(queries, nn.Parameter):
            self.queries = queries
        else:
            self.register_buffer("queries", queries)
        self.projection = projection
        self.encoder, self.decoder = nn.ModuleList(encoder), nn.ModuleList(decoder)
        self.norm: nn.Module = nn.LayerNorm(queries.shape[1]) if added else nn.Identity()
        self.readout = readout
        self.sine, self.added = sine, added

    def forward(self, images: Tensor) -> Tensor:
        """Logits float32 ``[batch, labels]`` of images ``[batch, channels, height, width]``."""
        features = self.backbone(images)
        tokens = self.projection(features.flatten(2).transpose(1, 2))
        places = None
        if self.sine:
            places = scaled_positions(features.shape[2], features.shape[3], tokens.shape[2]).to(tokens)
        for layer in self.encoder:
            tokens = layer(tokens, places=places)
        queries = self.queries.expand(len(images), -1, -1)
        values, again = (torch.zeros_like(queries), queries) if self.added else (queries, None)
        for layer in self.decoder:
            values = layer(values, tokens, again, places)
        logits: Tensor = self.readout(self.norm(values))
        return logits.float()

    def label_rows(self) -> list[str]:
        """Names of the trainable tensors with one row per label."""
        own = ["queries"] if isinstance(self.queries, nn.Parameter) else []
        return [*own, "readout.weight", "readout.bias"]


def scaled_positions(height: int, width: int, num_features: int) -> Tensor:
    """float32 ``[height * width, num_features]``: where each cell is, each axis scaled to (0, 2 pi].

    The first half of the features tells the row, the second half the column. Of ``n`` rows, row ``i`` (from 1) has
    the angle ``2 pi i / n``; with ``h`` features an axis, features ``2 j`` and ``2 j + 1`` are sine and cosine of that
    angle divided by ``10000 ** (2 j / h)``. So a picture in another resolution has about the same numbers.

    Source: DETR and, for whole grids, Query2Label's released code.
    """
    half = num_features // 2
    slower = 10000.0 ** (2 * torch.arange(half // 2) / half)

    def waves(places: int) -> Tensor:
        angles = (2 * math.pi * torch.arange(1, places + 1) / (places + 1e-6))[:, None] / slower
        return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)

    rows = waves(height)[:, None].expand(height, width, -1)
    columns = waves(width)[None].expand(height, width, -1)
    return torch.cat([rows, columns], dim=2).flatten(0, 1)


def check_heads(width: int, num_heads: int) -> None:
    """Raise ``InputError`` unless the heads divide the width."""
    if width % num_heads:
        msg = f"Expected heads to divide the width {width}, got {num_heads}. Choose another width or number of heads."
        raise InputError(msg)
