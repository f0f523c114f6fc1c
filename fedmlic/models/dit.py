"""A diffusion transformer (DiT) as a feature extractor: the map of one of its blocks at one of its timesteps.

Images become latents by a variational autoencoder's encoder (its mode, so nothing is drawn), are mixed with noise
(``fedmlic.diffusion``) and go through the transformer up to the block, unconditionally: with the label that stands for
none. Networks and their file format are those of the library diffusers; weights are folders on this machine, and
nothing is ever fetched. Label dropout, which DiT has in training, is always off.

Sources: Peebles and Xie 2023, "Scalable Diffusion Models with Transformers" (ICCV, DiT); Rombach et al. 2022 (the
autoencoder); von Platen et al., "Diffusers" (github.com/huggingface/diffusers, Apache-2.0).
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from fedmlic.diffusion import NUM_TIMESTEPS, DiffusionBackbone, alphas, noise_of
from fedmlic.errors import InputError, installing
from fedmlic.image_tower import source_of
from fedmlic.model import Backbone, Model
from fedmlic.pixel_scale import PIXEL_MEAN, PIXEL_STD
from fedmlic.pretrained import (
    Resize,
    check_channels,
    check_trainable,
    load_weights,
    num_parts_trained,
    read_weights,
    renamed,
    train_parts,
)

IMPORTS = ("diffusers",)
"""What the factory imports late; worker processes import it before they are forked."""

FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
"""In which weights lie beside a config.json, the first that is there."""

OLD_NAMES = (
    (r"(.*attentions\.\d+)\.query\.(\w+)", r"\1.to_q.\2"),
    (r"(.*attentions\.\d+)\.key\.(\w+)", r"\1.to_k.\2"),
    (r"(.*attentions\.\d+)\.value\.(\w+)", r"\1.to_v.\2"),
    (r"(.*attentions\.\d+)\.proj_attn\.(\w+)", r"\1.to_out.0.\2"),
)
"""Names that autoencoders of earlier versions of diffusers have in their files."""

TRIAL: dict[str, dict[str, Any]] = {
    "transformer": {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_layers": 4,
        "sample_size": 8,
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 8,
        "num_embeds_ada_norm": 10,
    },
    "vae": {
        "block_out_channels": [8, 8, 8, 8],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "latent_channels": 4,
        "norm_num_groups": 4,
    },
}
"""A tiny model from scratch: 4 blocks of 32 features, images of 64 pixels."""


class _Part(NamedTuple):
    """One network as a folder has it.

    Attributes:
        config: its ``config.json``.
        weights: its file, beside it; None: from scratch.
    """

    config: dict[str, Any]
    weights: Path | None = None


class _DiT(DiffusionBackbone):
    """See ``dit``."""

    bn_policy = "none"
    alphas: Tensor

    def __init__(self, transformer: nn.Module, vae: nn.Module, settings: _Settings) -> None:
        super().__init__()
        self.vae, self.transformer, self.settings = vae, transformer, settings
        config = cast(Any, transformer).config
        self.null_label = int(config.num_embeds_ada_norm)
        self.scale = float(cast(Any, vae).config.scaling_factor)
        self.latent = (int(config.in_channels), int(config.sample_size), int(config.sample_size))
        self.resize = Resize(self.latent[1] * settings.shrinks, crop=True)
        self.register_buffer("alphas", alphas().float(), persistent=False)
        self.num_features = int(config.num_attention_heads * config.attention_head_dim)
        self.num_blocks, self.num_timesteps = len(self._blocks), NUM_TIMESTEPS
        self.block, self.timestep = settings.block, settings.timestep

    @property
    def _blocks(self) -> nn.ModuleList:
        return cast(nn.ModuleList, self.transformer.transformer_blocks)

    def train(self, mode: bool = True) -> _DiT:  # noqa: FBT001, FBT002  (torch's signature)
        """Both networks stay in evaluation mode, in which labels are not dropped."""
        super().train(mode)
        self.vae.eval()
        self.transformer.eval()
        return self

    def latents(self, images: Tensor) -> Tensor:
        """float32 ``[batch, 4, side, side]``, scaled as the transformer expects them."""
        pixels = self.resize(images) * (PIXEL_STD / 127.5) + (PIXEL_MEAN / 127.5 - 1)
        pixels = pixels.expand(-1, 3, -1, -1) if pixels.shape[1] == 1 else pixels
        return cast(Tensor, cast(Any, self.vae).encode(pixels).latent_dist.mode()) * self.scale

    def tokens(self, images: Tensor, blocks: Sequence[int], timestep: int) -> list[Tensor]:
        """``[batch, places, features]`` after each of some blocks, ascending, averaged over draws of noise."""
        latents, share = self.latents(images), self.alphas[timestep]
        steps = torch.full((len(images),), timestep, device=images.device)
        labels = torch.full_like(steps, self.null_label)
        found: list[Tensor] = []
        for draw in range(self.settings.draws):
            noise = noise_of(images, self.latent, self.settings.noise_seed, timestep, draw)
            hidden = cast(Any, self.transformer).pos_embed(share.sqrt() * latents + (1 - share).sqrt() * noise)
            maps = []
            for number, block in enumerate(self._blocks[: max(blocks) + 1]):
                hidden = block(hidden, timestep=steps, class_labels=labels)
                if number in blocks:
                    maps.append(hidden)
            found = [before + new for before, new in zip(found, maps, strict=True)] if found else maps
        return [each.float() / self.settings.draws for each in found]

    def at(self, images: Tensor, blocks: Sequence[int], timestep: int) -> Tensor:
        ordered = sorted(set(blocks))
        pooled = dict(zip(ordered, (each.mean(dim=1) for each in self.tokens(images, ordered, timestep)), strict=True))
        return torch.stack([pooled[block] for block in blocks], dim=1)

    def forward(self, images: Tensor) -> Tensor:
        values = self.tokens(images, [self.block], self.timestep)[0].transpose(1, 2)
        if self.settings.features == "pooled":
            return values.mean(dim=2)[..., None, None]
        side = self.latent[1] // int(cast(Any, self.transformer).config.patch_size)
        return values.reshape(len(images), -1, side, side)


class _Settings(NamedTuple):
    """What ``dit`` is asked for beside its weights, and ``shrinks``: pixels to a side of a latent's place."""

    block: int
    timestep: int
    draws: int
    noise_seed: int
    features: str
    shrinks: int


def dit(
    *,
    path: str = "",
    vae: str = "",
    block: Annotated[int, Field(ge=0)] | None = None,
    timestep: Annotated[int, Field(ge=0, lt=NUM_TIMESTEPS)] = 100,
    features: Literal["pooled", "places"] = "pooled",
    depth: Annotated[int, Field(ge=0)] = 0,
    draws: Annotated[int, Field(ge=1)] = 1,
    noise_seed: Annotated[int, Field(ge=0)] = 0,
    trainable: str = "all",
) -> Model:
    """A diffusion transformer up to one of its blocks.

    Args:
        path: a folder of diffusers: of a pipeline (with ``transformer`` and ``vae``) or of a DiTTransformer2DModel
            alone; empty: a tiny one from scratch (4 blocks of 32 features), to try an experiment.
        vae: the folder of its AutoencoderKL; empty: ``vae`` in ``path``.
        block: whose output is the map, from 0; None: 12, or the last of fewer.
        timestep: how much noise is mixed in, from 0 to 999.
        features: the mean over places as a map of one place (``pooled``), or all places.
        depth: how many blocks are kept; 0: those up to ``block``. A search over blocks needs those that it looks at.
        draws: draws of noise whose features are averaged.
        noise_seed: of the noise.
        trainable: ``all``, ``last(n)``, ``lora(rank)`` or ``head``: which parts train. Parts are the autoencoder's
            encoder with the embedding, then the blocks.

    Raises:
        InputError: diffusers is not installed; no such folder, another model in it, weights that do not fit; no
            such block or ``trainable``.
    """
    if importlib.util.find_spec("diffusers") is None:
        msg = f"Expected the package diffusers to be installed for model dit, got none. Run: {installing('diffusion')}."
        raise InputError(msg)
    parts = _read(path, vae)
    count = int(parts["transformer"].config.get("num_layers", 1))
    chosen = min(12, count - 1) if block is None else block
    kept = depth or chosen + 1
    if not chosen < kept <= count:
        msg = (
            f"Expected block of dit to be 0 to {(depth or count) - 1} and depth at most {count}, its number of blocks, "
            f"got block={chosen} and depth={depth}."
        )
        raise InputError(msg)
    pretrained = bool(path)
    num_parts_trained(trainable)
    check_trainable("dit", trainable, kept + 1, "none", pretrained=pretrained)
    shrinks = 2 ** (len(parts["vae"].config.get("block_out_channels", [0])) - 1)
    settings = _Settings(chosen, timestep, draws, noise_seed, features, shrinks)

    def build(channels: int) -> Backbone:
        check_channels("dit", channels, pretrained=True)
        backbone = _DiT(_network(parts, "transformer", kept), _network(parts, "vae", kept), settings)
        names = [name for name, _ in backbone.named_parameters()]
        prefixes = [f"transformer.transformer_blocks.{number}." for number in range(kept)]
        groups = [[name for name in names if name.startswith(each)] for each in prefixes]
        first = [name for name in names if not name.startswith(tuple(prefixes))]
        train_parts(backbone, [first, *groups], trainable, "dit")
        return backbone

    return Model(build, _source(parts), "none")


def _read(path: str, vae: str) -> dict[str, _Part]:
    """The folders of both networks."""
    if not path:
        if vae:
            msg = "Expected vae of dit to come with path, the folder of the transformer, got vae alone. Give both."
            raise InputError(msg)
        return {name: _Part(dict(config)) for name, config in TRIAL.items()}
    whole = Path(path).expanduser()
    transformer = whole / "transformer" if (whole / "transformer").is_dir() else whole
    return {
        "transformer": _part(transformer, "DiTTransformer2DModel"),
        "vae": _part(Path(vae).expanduser() if vae else whole / "vae", "AutoencoderKL"),
    }


def _part(folder: Path, kind: str) -> _Part:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = "no config.json" if isinstance(error, FileNotFoundError) else str(error)
        msg = (
            f"Expected {str(folder)!r} to be the folder of a {kind} as diffusers saves it, got {reason}. Copy the "
            "whole folder of the pipeline there, or correct path or vae."
        )
        raise InputError(msg) from None
    got = config.get("_class_name") if isinstance(config, dict) else type(config).__name__
    if got != kind and not (kind == "DiTTransformer2DModel" and got == "Transformer2DModel"):
        msg = f"Expected {str(folder / 'config.json')!r} to describe a {kind}, got a {got}. Give the folder of a DiT."
        raise InputError(msg)
    weights = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if weights is None:
        msg = f"Expected {str(folder)!r} to hold weights, one of {', '.join(FILES)}, got none. Copy the file there."
        raise InputError(msg)
    return _Part(config, weights)


def _network(parts: dict[str, _Part], name: str, kept: int) -> nn.Module:
    """One of the networks with its weights, without what features do not need."""
    import diffusers

    config, weights = parts[name]
    kind = diffusers.DiTTransformer2DModel if name == "transformer" else diffusers.AutoencoderKL
    given = {key: value for key, value in config.items() if not key.startswith("_")}
    network: Any = kind.from_config(given)
    if weights is not None:
        tensors = renamed(read_weights(str(weights)), OLD_NAMES)
        load_weights(network, {key: value.float() for key, value in tensors.items()}, ("\0",), str(weights))
    if name == "transformer":
        network.transformer_blocks = network.transformer_blocks[:kept]
        for unused in ("norm_out", "proj_out_1", "proj_out_2"):
            setattr(network, unused, nn.Identity())
    else:
        network.decoder, network.post_quant_conv = nn.Identity(), nn.Identity()
    return cast(nn.Module, network).float()


def _source(parts: dict[str, _Part]) -> str:
    files = [part.weights for part in parts.values() if part.weights is not None]
    settings = [file.with_name("config.json") for file in files]
    return source_of(files[0].parent.name, files, settings) if files else "scratch"
