"""The Vision Transformer, with its tokens and blocks open to methods: the network of ``vit``, CLIP and SigLIP.

Reading order: patches of the image and a linear layer make tokens; class and register tokens are put in front;
positions are added; blocks of self-attention and a two-layer network, each behind a LayerNorm; a last LayerNorm.

Tensor names are those of timm. Images of another size than positions were made for are padded with zeros below
and to the right to whole patches, and positions are interpolated (bicubic, antialiased), as timm does.

Source: Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words" (ICLR); layer scale: Touvron et al. 2021, "Going
deeper with Image Transformers" (ICCV); registers: Darcet et al. 2024, "Vision Transformers Need Registers" (ICLR).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedmlic.model import BatchNormPolicy, TokenBackbone, Tokens


def _tanh_gelu(values: Tensor) -> Tensor:
    return F.gelu(values, approximate="tanh")


def _quick_gelu(values: Tensor) -> Tensor:
    return values * torch.sigmoid(1.702 * values)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "quick_gelu": _quick_gelu,
}
"""By the names of configurations in Hugging Face's format; ``quick_gelu`` is what OpenAI's CLIP was trained with."""


@dataclass(frozen=True)
class Shape:
    """How large a transformer is, and which of its optional parts there are.

    Attributes:
        width: of tokens.
        depth: blocks.
        num_heads: of attention; divides the width.
        hidden: units inside a block's two-layer network.
        patch: pixels a side of a patch.
        grid: patches a side of the images that positions were made for.
        class_token: whether there is one.
        num_registers: further tokens in front.
        prefix_positions: whether class and register tokens have positions, too.
        layer_scale: start of a trained factor per channel after each part of a block; 0: none.
        norm_first: whether a LayerNorm comes before the first block (CLIP).
        patch_bias: whether the patches' linear layer has a bias.
        eps: of LayerNorm.
        activation: one of ``ACTIVATIONS``.
        pad: whether images are padded to whole patches; otherwise pixels beyond the last one are cut off.
    """

    width: int
    depth: int
    num_heads: int
    hidden: int
    patch: int
    grid: int
    class_token: bool = True
    num_registers: int = 0
    prefix_positions: bool = True
    layer_scale: float = 0.0
    norm_first: bool = False
    patch_bias: bool = True
    eps: float = 1e-6
    activation: str = "gelu"
    pad: bool = True


class Attention(nn.Module):
    """Self-attention of ``[batch, tokens, width]``."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, values: Tensor) -> Tensor:
        """The attended tokens, of the same shape."""
        # [batch, tokens, 3 * width] -> three of [batch, heads, tokens, width / heads]
        joint = self.qkv(values).reshape(*values.shape[:2], 3, self.num_heads, -1)
        queries, keys, others = joint.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(queries, keys, others)
        result: Tensor = self.proj(attended.transpose(1, 2).flatten(2))
        return result


class Mlp(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, width: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.activation = activation

    def forward(self, values: Tensor) -> Tensor:
        """``[..., width]`` to the same shape."""
        result: Tensor = self.fc2(ACTIVATIONS[self.activation](self.fc1(values)))
        return result


class LayerScale(nn.Module):
    """A trained factor per channel."""

    def __init__(self, width: int, start: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), start))

    def forward(self, values: Tensor) -> Tensor:
        """``[..., width]`` to the same shape."""
        return values * self.gamma


class Block(nn.Module):
    """Self-attention, then a two-layer network; each behind a LayerNorm and added to its input."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        scaled = shape.layer_scale > 0
        self.norm1 = nn.LayerNorm(shape.width, shape.eps)
        self.attn = Attention(shape.width, shape.num_heads)
        self.ls1 = LayerScale(shape.width, shape.layer_scale) if scaled else nn.Identity()
        self.norm2 = nn.LayerNorm(shape.width, shape.eps)
        self.mlp = Mlp(shape.width, shape.hidden, shape.activation)
        self.ls2 = LayerScale(shape.width, shape.layer_scale) if scaled else nn.Identity()

    def forward(self, values: Tensor) -> Tensor:
        """``[batch, tokens, width]`` to the same shape."""
        values = values + self.ls1(self.attn(self.norm1(values)))
        result: Tensor = values + self.ls2(self.mlp(self.norm2(values)))
        return result


class PatchEmbed(nn.Module):
    """A linear layer on every patch."""

    def __init__(self, channels: int, shape: Shape) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, shape.width, shape.patch, stride=shape.patch, bias=shape.patch_bias)
        self.pad = shape.pad

    def forward(self, images: Tensor) -> Tensor:
        """``[batch, channels, height, width]`` to ``[batch, features, height', width']``."""
        patch = self.proj.kernel_size[0]
        below, right = (-side % patch if self.pad else 0 for side in images.shape[2:])
        result: Tensor = self.proj(F.pad(images, (0, right, 0, below)) if below or right else images)
        return result


class VisionTransformer(TokenBackbone):
    """The network.

    Args:
        channels: of images.
        shape: how large.
        pixels: takes images to the network's scale and size.
    """

    bn_policy: BatchNormPolicy = "none"
    first_part: ClassVar[tuple[str, ...]] = ("cls_token", "reg_token", "pos_embed", "patch_embed", "norm_pre")

    def __init__(self, channels: int, shape: Shape, pixels: nn.Module) -> None:
        super().__init__()
        self.shape, self.pixels = shape, pixels
        self.width = self.num_features = shape.width
        self.num_prefix_tokens = int(shape.class_token) + shape.num_registers
        self.patch_embed = PatchEmbed(channels, shape)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, shape.width)) if shape.class_token else None
        self.reg_token = nn.Parameter(torch.zeros(1, shape.num_registers, shape.width)) if shape.num_registers else None
        positions = shape.grid**2 + (self.num_prefix_tokens if shape.prefix_positions else 0)
        self.pos_embed = nn.Parameter(torch.zeros(1, positions, shape.width))
        self.norm_pre = nn.LayerNorm(shape.width, shape.eps) if shape.norm_first else nn.Identity()
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.depth))
        self.norm = nn.LayerNorm(shape.width, shape.eps)
        self._start()

    def _start(self) -> None:
        """Initial weights: normal with a deviation of 0.02, cut at two of them; biases zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)
                nn.init.zeros_(module.bias)
        for token in (self.cls_token, self.reg_token, self.pos_embed):
            if token is not None:
                nn.init.trunc_normal_(token, std=0.02, a=-0.04, b=0.04)

    def embed(self, images: Tensor) -> Tokens:
        """The tokens before the first block."""
        features: Tensor = self.patch_embed(self.pixels(images))
        grid = (features.shape[2], features.shape[3])
        places = features.flatten(2).transpose(1, 2)
        in_front = [
            token.expand(len(places), -1, -1) for token in (self.cls_token, self.reg_token) if token is not None
        ]
        count = self.num_prefix_tokens if self.shape.prefix_positions else 0
        own, positions = self.pos_embed[:, :count], self._resized(self.pos_embed[:, count:], grid)
        values = torch.cat([*in_front, places + positions], dim=1)
        if count:
            values = torch.cat([values[:, :count] + own, values[:, count:]], dim=1)
        return Tokens(self.norm_pre(values), grid)

    def _resized(self, positions: Tensor, grid: tuple[int, int]) -> Tensor:
        side = self.shape.grid
        if grid == (side, side):
            return positions
        table = positions.transpose(1, 2).reshape(1, -1, side, side)
        return F.interpolate(table, grid, mode="bicubic", antialias=True).flatten(2).transpose(1, 2)

    def finish(self, values: Tensor) -> Tensor:
        """The last LayerNorm."""
        result: Tensor = self.norm(values)
        return result

    def forward(self, images: Tensor) -> Tensor:
        """The feature map: the places' finished tokens on their grid."""
        return self.on_grid(self.tokens(images))


def transformer_parts(network: VisionTransformer) -> list[list[str]]:
    """Names of the parameters of every part: the embedding, then blocks, the last with what comes after it."""
    names = [name for name, _ in network.named_parameters()]
    depth = len(network.blocks)
    first = [name for name in names if name.split(".")[0] in VisionTransformer.first_part]
    parts = [first, *([name for name in names if name.startswith(f"blocks.{n}.")] for n in range(depth))]
    rest = {name for part in parts for name in part}
    parts[-1] += [name for name in names if name not in rest]
    return parts


def grid_of(num_positions: int, num_prefix_tokens: int) -> tuple[int, bool] | None:
    """Patches a side of a square of positions, and whether tokens in front have positions; None if it is no square.

    >>> grid_of(197, 1), grid_of(196, 1), grid_of(198, 1)
    ((14, True), (14, False), None)
    """
    for count, has in ((num_positions - num_prefix_tokens, True), (num_positions, False)):
        side = math.isqrt(max(count, 0))
        if side > 0 and side * side == count:
            return side, has
    return None
