"""Vision Transformer whose tokens and blocks methods can use: from scratch, or weights of a file.

Equal to timm's networks of the same weights, and free of timm. The feature map is the tokens of the patches after
the last norm, back on their grid; the class token stays inside (``fedmlic.model.TokenBackbone`` gives it).

Sources: ``fedmlic/vision_transformer.py``; sizes: Dosovitskiy et al. 2021 (table 1) and Touvron et al. 2021, "Training
data-efficient image transformers" (ICML, table 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from fedmlic.errors import InputError
from fedmlic.model import Backbone, Model
from fedmlic.pretrained import (
    NO_WEIGHTS,
    PIXELS,
    PixelScale,
    Resize,
    check_channels,
    check_trainable,
    check_weights_file,
    load_weights,
    read_weights,
    renamed,
    train_parts,
)
from fedmlic.vision_transformer import Shape, VisionTransformer, grid_of, transformer_parts

SIZES = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}
"""Width, blocks, heads."""

OFTEN = 224
"""Pixels a side for which positions are made from scratch."""

UNUSED = ("head.", "head_dist.", "heads.", "fc_norm.", "pre_logits.", "mask_token")
"""Prefixes of names that weights may have and the map does not need."""

_LAYER = r"encoder\.layers\.encoder_layer_(\d+)\."
TORCHVISION = (
    (r"class_token", "cls_token"),
    (r"conv_proj\.(\w+)", r"patch_embed.proj.\1"),
    (r"encoder\.pos_embedding", "pos_embed"),
    (r"encoder\.ln\.(\w+)", r"norm.\1"),
    (_LAYER + r"ln_(\d)\.(\w+)", r"blocks.\1.norm\2.\3"),
    (_LAYER + r"self_attention\.in_proj_(\w+)", r"blocks.\1.attn.qkv.\2"),
    (_LAYER + r"self_attention\.out_proj\.(\w+)", r"blocks.\1.attn.proj.\2"),
    (_LAYER + r"mlp\.(?:0|linear_1)\.(\w+)", r"blocks.\1.mlp.fc1.\2"),
    (_LAYER + r"mlp\.(?:3|linear_2)\.(\w+)", r"blocks.\1.mlp.fc2.\2"),
)
"""From torchvision's names to timm's, which those of DeiT, DINO, DINOv2 and MAE are, too."""


def vit(
    *,
    size: Literal["tiny", "small", "base", "large", "huge"] = "tiny",
    patch_size: Annotated[int, Field(ge=1)] = 16,
    weights: str = "none",
    pixels: Literal["", "imagenet", "half"] = "",
    image_size: Annotated[int, Field(ge=0)] = 0,
    trainable: str = "all",
) -> Model:
    """A Vision Transformer without its classifier.

    Args:
        size: ``tiny`` (192 features, 12 blocks), ``small`` (384, 12), ``base`` (768, 12), ``large`` (1024,
            24) or ``huge`` (1280, 32).
        patch_size: pixels a side of a patch.
        weights: ``none``: from scratch; else a file with a state dict of timm's, DINO's, MAE's or
            torchvision's names (.safetensors, .pth, .pt, .bin). Class token, registers, layer scale
            and the size that positions were made for are as in the file.
        pixels: the scale that the weights were trained with, to be given with them: ``imagenet``
            (DeiT, DINO, DINOv2, MAE, torchvision) or ``half``: mean and deviation 0.5 (AugReg's, the
            most of timm's).
        image_size: pixels a side to which images are resized inside the network; 0: as they are,
            with positions interpolated.
        trainable: ``all``, ``last(n)``, ``lora(rank)`` or ``head``: which parts of the backbone train. Parts
            are the embedding of patches, then the blocks, the last one with the norm after it.

    Raises:
        InputError: no such weights, or others; weights without ``pixels``; no such ``trainable``.
    """
    pretrained = weights not in NO_WEIGHTS
    width, depth, heads = SIZES[size]
    check_trainable("vit", trainable, depth + 1, "none", pretrained=pretrained)
    source = check_weights_file(weights) if pretrained else "scratch"
    if pretrained and not pixels:
        msg = (
            "Expected pixels of vit to be given with weights, since files do not say it, got nothing. Give "
            "pixels='imagenet' (DeiT, DINO, MAE, torchvision) or 'half' (AugReg's of timm)."
        )
        raise InputError(msg)
    grid = -(-(image_size or OFTEN) // patch_size)
    usual = Shape(width, depth, heads, 4 * width, patch_size, grid)

    def build(channels: int) -> Backbone:
        inputs = check_channels("vit", channels, pretrained=pretrained)
        scale = PixelScale(*PIXELS[pixels]) if pixels and inputs == 3 else nn.Identity()
        prepared = nn.Sequential(scale, Resize(image_size)) if image_size else scale
        if not pretrained:
            network = VisionTransformer(inputs, usual, prepared)
        else:
            tensors = renamed(read_weights(weights), TORCHVISION)
            network = VisionTransformer(inputs, _shape_of(tensors, usual, source), prepared)
            load_weights(network, tensors, UNUSED, source)
        train_parts(network, transformer_parts(network), trainable, f"vit {size}")
        return network

    return Model(build, source)


def _shape_of(tensors: Mapping[str, Tensor], usual: Shape, source: str) -> Shape:
    """``usual`` with the optional parts that weights have."""
    registers = tensors.get("reg_token")
    shape = replace(
        usual,
        class_token="cls_token" in tensors,
        num_registers=0 if registers is None else int(registers.shape[1]),
        layer_scale=1.0 if "blocks.0.ls1.gamma" in tensors else 0.0,
    )
    positions = tensors.get("pos_embed")
    count = 0 if positions is None or positions.ndim != 3 else int(positions.shape[1])
    found = grid_of(count, int(shape.class_token) + shape.num_registers)
    if found is None or "norm_pre.weight" in tensors:
        what = "a norm before the first block (CLIP's: model clip_image reads it)" if found else f"{count} positions"
        msg = (
            f"Expected {source} to be a Vision Transformer with learned positions on a square, got {what}. Use "
            "weights of vit, or model timm."
        )
        raise InputError(msg)
    return replace(shape, grid=found[0], prefix_positions=found[1])
