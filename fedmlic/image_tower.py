"""The image half of CLIP and SigLIP, from a folder in Hugging Face's format: its network, and how it is read.

A folder has ``config.json``, weights (``model.safetensors``, ``pytorch_model.bin``, or either in several files with an
index) and, where images are not prepared in the family's own way, ``preprocessor_config.json`` or, as transformers 5
saves it, ``processor_config.json``. Weights may be of the whole model or of its image half alone; the text half is not
read. Nothing is fetched and no code of the folder runs.

Sources: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision" (ICML);
Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training" (ICCV). Computed here in plain torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedmlic.errors import InputError, listing
from fedmlic.model import Backbone, Model
from fedmlic.pretrained import (
    PIXELS,
    PixelScale,
    Resize,
    check_channels,
    check_trainable,
    load_weights,
    read_weights,
    renamed,
    train_parts,
)
from fedmlic.vision_transformer import ACTIVATIONS, Mlp, Shape, VisionTransformer, transformer_parts

Family = Literal["clip", "siglip"]
Features = Literal["patches", "pooled"]

FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""Where weights may be; the first that is there is read."""

TRIAL = Shape(96, 4, 3, 384, 16, 4)
"""Of a tower from scratch."""

SIZES = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "image_size": 224,
}
DEFAULTS: Mapping[Family, Mapping[str, Any]] = {
    "clip": {**SIZES, "patch_size": 32, "layer_norm_eps": 1e-5, "hidden_act": "quick_gelu", "projection_dim": 512},
    "siglip": {**SIZES, "patch_size": 16, "layer_norm_eps": 1e-6, "hidden_act": "gelu_pytorch_tanh"},
}
"""What a configuration means where it says nothing: ``transformers`` writes what differs from its defaults."""

_LAYER = r"encoder\.layers\.(\d+)\."
NAMES = (
    (r"embeddings\.class_embedding", "cls_token"),
    (r"embeddings\.patch_embedding\.(\w+)", r"patch_embed.proj.\1"),
    (r"embeddings\.position_embedding\.weight", "pos_embed"),
    (r"pre_layrnorm\.(\w+)", r"norm_pre.\1"),
    (r"post_layernorm\.(\w+)", r"norm.\1"),
    (_LAYER + r"layer_norm(\d)\.(\w+)", r"blocks.\1.norm\2.\3"),
    (_LAYER + r"self_attn\.out_proj\.(\w+)", r"blocks.\1.attn.proj.\2"),
    (_LAYER + r"mlp\.(fc\d)\.(\w+)", r"blocks.\1.mlp.\2.\3"),
    (_LAYER + r"self_attn\.([qkv])_proj\.(\w+)", r"blocks.\1.attn.\2.\3"),
    (r"head\.probe", "pool.probe"),
    (r"head\.attention\.in_proj_(\w+)", r"pool.in_proj.\1"),
    (r"head\.attention\.out_proj\.(\w+)", r"pool.proj.\1"),
    (r"head\.layernorm\.(\w+)", r"pool.norm.\1"),
    (r"head\.mlp\.(fc\d)\.(\w+)", r"pool.mlp.\1.\2"),
    (r"visual_projection\.weight", "projection.weight"),
)
"""From Hugging Face's names to those here."""


@dataclass(frozen=True)
class Tower:
    """What a folder says of its network.

    Attributes:
        shape: of the transformer.
        projection: width of the space that texts share; 0: there is no projection.
        mean: of pixels in [0, 1] per channel.
        std: likewise.
        side: pixels a side that images are resized to.
        resized: of the shorter side before the middle is cut out; 0: nothing is cut.
        mode: how images are resized.
        files: with the weights.
        source: for the record.
    """

    shape: Shape
    projection: int
    mean: Sequence[float]
    std: Sequence[float]
    side: int
    resized: int = 0
    mode: str = "bicubic"
    files: tuple[Path, ...] = ()
    source: str = "scratch"


class AttentionPool(nn.Module):
    """One trained query that looks at all tokens, then a two-layer network (SigLIP's head)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width, self.num_heads = shape.width, shape.num_heads
        self.probe = nn.Parameter(torch.zeros(1, 1, width))
        nn.init.trunc_normal_(self.probe, std=0.02, a=-0.04, b=0.04)
        self.in_proj, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, shape.eps)
        self.mlp = Mlp(width, shape.hidden, shape.activation)

    def forward(self, values: Tensor) -> Tensor:
        """``[batch, tokens, width]`` to ``[batch, width]``."""
        width = values.shape[2]
        joint = self.in_proj
        queries = F.linear(self.probe, joint.weight[:width], joint.bias[:width]).expand(len(values), -1, -1)
        both = F.linear(values, joint.weight[width:], joint.bias[width:])
        keys, others = both.reshape(*values.shape[:2], 2, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        queries = queries.reshape(len(values), 1, self.num_heads, -1).transpose(1, 2)
        attended = F.scaled_dot_product_attention(queries, keys, others).transpose(1, 2).flatten(2)
        pooled: Tensor = self.proj(attended)
        pooled = pooled + self.mlp(self.norm(pooled))
        return pooled[:, 0]


class ImageTower(VisionTransformer):
    """A tower: the tokens of patches as a map, or one vector per image as a map of one place.

    Args:
        channels: of images.
        tower: what it is made of.
        pixels: takes images to its scale and size.
        features: which map.
        projection: whether features are taken to the space that texts share.
        family: ``clip`` pools by its class token, ``siglip`` by attention.
    """

    def __init__(
        self, channels: int, tower: Tower, pixels: nn.Module, features: Features, *, projection: bool, family: Family
    ) -> None:
        super().__init__(channels, tower.shape, pixels)
        self.pooled = features == "pooled"
        self.projection: nn.Module = nn.Identity()
        if projection:
            self.projection = nn.Linear(self.width, tower.projection, bias=False)
            self.num_features = tower.projection
        self.pool = AttentionPool(tower.shape) if self.pooled and family == "siglip" else None

    def finish(self, values: Tensor) -> Tensor:
        """The last LayerNorm and, where it is wanted, the projection, of every token."""
        result: Tensor = self.projection(super().finish(values))
        return result

    def forward(self, images: Tensor) -> Tensor:
        """``[batch, features, height', width']``; height' and width' are 1 for pooled features."""
        tokens = self.tokens(images)
        if not self.pooled:
            return self.on_grid(tokens)
        pooled = self.pool(tokens.values) if self.pool is not None else tokens.values[:, 0]
        return pooled[:, :, None, None]


def image_tower(
    family: Family, path: str, features: Features, *, projection: bool, image_size: int, trainable: str
) -> Model:
    """The model of a folder; see ``fedmlic.models.clip_image``.

    Raises:
        InputError: no such folder, another model in it, or weights that do not fit.
    """
    tower = read_folder(family, path) if path else _trial(family)
    name = f"{family}_image"
    check_trainable(name, trainable, tower.shape.depth + 1, "none", pretrained=bool(path))
    if path and image_size and image_size < tower.shape.patch:
        msg = f"Expected image_size of {name} to be at least a patch, {tower.shape.patch} pixels, got {image_size}."
        raise InputError(msg)
    if image_size:
        resized = round(tower.resized * image_size / tower.side)
        tower = replace(tower, side=image_size, resized=resized)

    def build(channels: int) -> Backbone:
        inputs = check_channels(name, channels, pretrained=bool(path))
        resize = Resize(tower.side, tower.mode, crop=tower.resized > 0, resized=tower.resized)
        # Resized before it is scaled, which is the same since both are linear, and cheaper for grey images.
        scale = PixelScale(tower.mean, tower.std) if path else nn.Identity()
        pixels = nn.Sequential(resize, scale) if path or image_size else scale
        network = ImageTower(inputs, tower, pixels, features, projection=projection, family=family)
        if path:
            tensors = _tensors(tower, pooled=features == "pooled", projection=projection)
            load_weights(network, tensors, ("\0",), tower.source)
        train_parts(network, transformer_parts(network), trainable, name)
        return network

    return Model(build, tower.source)


def _trial(family: Family) -> Tower:
    known = DEFAULTS[family]
    clip = family == "clip"
    shape = replace(
        TRIAL,
        class_token=clip,
        norm_first=clip,
        patch_bias=not clip,
        eps=known["layer_norm_eps"],
        activation=known["hidden_act"],
    )
    return Tower(shape, 96 if clip else 0, *PIXELS["clip" if clip else "half"], side=64)


def read_folder(family: Family, path: str) -> Tower:
    """What a folder says.

    Raises:
        InputError: something is missing, unreadable, or of another model.
    """
    folder = Path(path).expanduser()
    config = folder_json(folder, "config.json")
    kind = str(config.get("model_type"))
    if kind not in {family, f"{family}_vision_model"}:
        known = {"clip": "clip_image", "siglip": "siglip_image"}.get(kind.removesuffix("_vision_model"), "")
        hint = f"Use model {known}." if known else "Others may be in timm: see model timm."
        msg = f"Expected {folder} to hold a {family} model, got model_type {kind!r}. {hint}"
        raise InputError(msg)
    vision = config if kind != family else config.get("vision_config") or {}
    given = {**DEFAULTS[family], **vision}
    if kind == family and "projection_dim" in config:
        given["projection_dim"] = config["projection_dim"]
    _check_config(folder, given)
    clip = family == "clip"
    shape = Shape(
        given["hidden_size"],
        given["num_hidden_layers"],
        given["num_attention_heads"],
        given["intermediate_size"],
        given["patch_size"],
        given["image_size"] // given["patch_size"],
        class_token=clip,
        norm_first=clip,
        patch_bias=not clip,
        eps=float(given["layer_norm_eps"]),
        activation=given["hidden_act"],
        pad=False,
    )
    files = weight_files(folder)
    projection = given["projection_dim"] if clip else 0
    tower = Tower(shape, projection, *PIXELS["clip" if clip else "half"], side=given["image_size"], files=files)
    tower, settings = _prepared(folder, replace(tower, resized=tower.side if clip else 0))
    return replace(tower, source=source_of(folder.name, files, [folder / "config.json", *settings]))


def _check_config(folder: Path, given: Mapping[str, Any]) -> None:
    wrong = [
        f"{name} to be a whole number of at least 1, got {given.get(name)!r}"
        for name in (*SIZES, "patch_size", *(["projection_dim"] if "projection_dim" in given else []))
        if type(given.get(name)) is not int or given[name] < 1
    ]
    if not wrong and given["hidden_size"] % given["num_attention_heads"]:
        wrong.append(f"num_attention_heads to divide hidden_size {given['hidden_size']}")
    if given["hidden_act"] not in ACTIVATIONS:
        wrong.append(f"hidden_act to be one of {', '.join(ACTIVATIONS)}, got {given['hidden_act']!r}")
    if not isinstance(given["layer_norm_eps"], float | int):
        wrong.append(f"layer_norm_eps to be a number, got {given['layer_norm_eps']!r}")
    if given.get("num_channels", 3) != 3:
        wrong.append(f"num_channels to be 3, got {given['num_channels']!r}")
    if wrong:
        expected = f"Expected {folder / 'config.json'} to describe a tower that is known here"
        raise listing(expected, wrong)


def folder_json(folder: Path, name: str) -> dict[str, Any]:
    """The object in a file of a folder in Hugging Face's format.

    Raises:
        InputError: there is no such file, or it holds something else.
    """
    file = folder / name
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        msg = (
            f"Expected path to be a folder in Hugging Face's format (config.json, model.safetensors), got no {name} in "
            f"{str(folder)!r}. Copy the whole folder of the model there, or correct the path."
        )
        raise InputError(msg) from None
    except (OSError, ValueError) as error:
        msg = f"Expected {file} to be JSON, got: {error}. Copy it again."
        raise InputError(msg) from None
    return _object(file, found)


def _object(file: Path, found: object) -> dict[str, Any]:
    if not isinstance(found, dict):
        msg = f"Expected {file} to hold an object, got a {type(found).__name__}. Copy it again."
        raise InputError(msg)
    return found


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The files with weights, those of an index included."""
    name = next((name for name in FILES if (folder / name).is_file()), None)
    if name is None:
        msg = (
            f"Expected {folder} to hold weights, one of {', '.join(FILES)}, got none. Weights of other libraries "
            "(CLIP's ResNets, open_clip's files) go into model timm."
        )
        raise InputError(msg)
    if not name.endswith(".json"):
        return (folder / name,)
    places = folder_json(folder, name).get("weight_map")
    names = sorted({str(each) for each in places.values()}) if isinstance(places, dict) else []
    missing = [each for each in names if Path(each).name != each or not (folder / each).is_file()]
    if missing or not names:
        expected = f"Expected {folder / name} to name files beside it"
        raise listing(expected, missing or ["no weight_map"])
    return tuple(folder / each for each in names)


def files_digest(files: Sequence[Path]) -> str:
    """The start of the SHA-256 of a file, or of the SHA-256 of several."""
    digests = []
    for file in files:
        with file.open("rb") as stream:
            digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
    return (digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest())[:12]


def source_of(name: str, files: Sequence[Path], settings: Sequence[Path]) -> str:
    """A line for the record: what a folder is called, and the start of the SHA-256 of all that was read from it.

    Args:
        name: of the folder.
        files: with the weights.
        settings: JSON files that decide what is computed with them.
    """
    every = [f"{file.name} sha256:{files_digest([file])}" for file in settings]
    return " ".join([f"{name} sha256:{files_digest(files)}", *every])


RESAMPLING = {2: "bilinear", 3: "bicubic"}
"""Of Pillow's numbers, what torch does with antialiasing too."""


PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")
"""Where a folder says how images are prepared; in the second, transformers 5's, under ``image_processor``."""


def _prepared(folder: Path, tower: Tower) -> tuple[Tower, list[Path]]:
    """``tower`` with the scale and size of images that the folder gives, and the files that say it, if there are any.

    Versions of transformers look into the two files in another order, so they must not contradict each other.
    """
    found = {name: folder_json(folder, name) for name in PREPROCESSORS if (folder / name).is_file()}
    if "image_processor" in found.get(PREPROCESSORS[1], {}):
        found[PREPROCESSORS[1]] = _object(folder / PREPROCESSORS[1], found[PREPROCESSORS[1]]["image_processor"])
    else:
        found.pop(PREPROCESSORS[1], None)  # earlier versions keep other things there
    every = [_prepared_as(folder / name, given, tower) for name, given in found.items()]
    if len(every) > 1 and every[0] != every[1]:
        msg = (
            f"Expected {' and '.join(PREPROCESSORS)} of {folder} to prepare images in the same way, got two. Delete "
            "the one that the weights were not published with."
        )
        raise InputError(msg)
    return (every[0] if every else tower), [folder / name for name in found]


def _prepared_as(file: Path, given: Mapping[str, Any], tower: Tower) -> Tower:
    """``tower`` with the scale and size of images that ``given``, which ``file`` holds, asks for."""
    mean, std = (given.get(key, own) for key, own in (("image_mean", tower.mean), ("image_std", tower.std)))
    factor, resample = given.get("rescale_factor", 1 / 255), given.get("resample", 3)
    if given.get("do_normalize") is False:
        mean, std = (0.0,) * 3, (1.0,) * 3
    wrong = [
        f"{key} to be three numbers, got {value!r}"
        for key, value in (("image_mean", mean), ("image_std", std))
        if not isinstance(value, list | tuple) or len(value) != 3 or not all(isinstance(v, float | int) for v in value)
    ]
    if given.get("do_rescale") is False or not isinstance(factor, float) or abs(factor * 255 - 1) > 1e-3:
        wrong.append(f"rescale_factor to be 1/255, got {factor!r} with do_rescale {given.get('do_rescale', True)!r}")
    if resample not in tuple(RESAMPLING):
        wrong.append(f"resample to be 2 (bilinear) or 3 (bicubic), got {resample!r}")
    side, resized = _sizes(given, tower)
    if side < 1 or 0 < resized < side:
        wrong.append(f"size and crop_size to be square, got {given.get('size')!r} and {given.get('crop_size')!r}")
    if resized and given.get("do_resize") is False:
        wrong.append("do_resize to be true with do_center_crop, got false")
    if wrong:
        expected = f"Expected {file} to prepare images in a way that is known here"
        raise listing(expected, wrong)
    return replace(tower, mean=tuple(mean), std=tuple(std), mode=RESAMPLING[resample], side=side, resized=resized)


def _sizes(given: Mapping[str, Any], tower: Tower) -> tuple[int, int]:
    """Pixels a side, and of the shorter side before a cut (0: no cut); (0, 0) for what is known nowhere here."""
    size, crop = given.get("size", tower.side), given.get("crop_size", given.get("size", tower.side))
    cut = bool(given.get("do_center_crop", tower.resized > 0))
    if given.get("do_resize") is False and not cut:
        return tower.side, 0  # nothing else could go through the tower
    short = size.get("shortest_edge") if isinstance(size, dict) else size if cut else None
    final = _square(crop if cut else size)
    if cut:
        return final, int(short) if isinstance(short, int) else _square(size)
    return final, 0


def _square(size: object) -> int:
    if isinstance(size, dict):
        sides = {size.get("height", size.get("shortest_edge")), size.get("width", size.get("shortest_edge"))}
        size = sides.pop() if len(sides) == 1 else 0
    return size if type(size) is int else 0


def _tensors(tower: Tower, *, pooled: bool, projection: bool) -> dict[str, Tensor]:
    """The weights by the names used here: of the image half, queries, keys and values in one."""
    every: dict[str, Tensor] = {}
    for file in tower.files:
        every.update(read_weights(str(file)))
    whole = any(name.startswith("vision_model.") for name in every)  # else it is the image half alone
    own = {
        name.removeprefix("vision_model."): tensor.float()
        for name, tensor in every.items()
        if not whole or name.startswith(("vision_model.", "visual_projection."))
    }
    own.pop("embeddings.position_ids", None)
    found = renamed(own, NAMES)
    found = {
        name: tensor
        for name, tensor in found.items()
        if (pooled or not name.startswith("pool.")) and (projection or not name.startswith("projection."))
    }
    for name in [name for name in found if ".attn.q." in name]:
        parts = [found.pop(name.replace(".attn.q.", f".attn.{part}."), None) for part in "qkv"]
        if all(part is not None for part in parts):
            found[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat([part for part in parts if part is not None])
    if "cls_token" in found:
        found["cls_token"] = found["cls_token"].reshape(1, 1, -1)
    if "pos_embed" in found:
        found["pos_embed"] = found["pos_embed"][None]
    return found
