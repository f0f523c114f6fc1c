"""Features of images inside a diffusion model, and what is computed of them once.

An image x becomes a latent z, z is mixed with noise as at a timestep of the diffusion,

    z_t = sqrt(a_t) z + sqrt(1 - a_t) e,    a_t = product over s <= t of (1 - beta_s),

beta from 0.0001 to 0.02 in a line, and a transformer that was trained to take the noise off again looks at z_t; what
a block of it makes, averaged over places, is the image's feature vector. The noise e is drawn from (the image's pixels,
timestep, draw), so it is the same at every client and in every run, and two images have different noise.

Source: Xiang et al. 2023, "Denoising Diffusion Autoencoders are Unified Self-supervised Learners" (ICCV, DDAE), and
Diff-Feat (arXiv 2509.15553), which names the layer and timestep as what matters.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fedmlic.errors import InputError
from fedmlic.model import Backbone
from fedmlic.pixel_scale import PIXEL_MEAN, PIXEL_STD
from fedmlic.seeds import torch_stream
from fedmlic.stores import content_hash

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

NUM_TIMESTEPS = 1000
"""Of the diffusion."""

MOST_KEPT = 1 << 28
"""Bytes of features that a process keeps; the oldest are dropped."""


class DiffusionBackbone(Backbone):
    """A backbone whose feature map is that of a block of a diffusion model at a timestep.

    Attributes:
        num_blocks: blocks that can be looked at.
        num_timesteps: timesteps, from 0 (no noise).
        block: of ``forward``, from 0.
        timestep: of ``forward``.
    """

    num_blocks: int
    num_timesteps: int
    block: int
    timestep: int

    @abstractmethod
    def at(self, images: Tensor, blocks: Sequence[int], timestep: int) -> Tensor:
        """float32 ``[batch, blocks, features]``: features of some blocks at a timestep, averaged over places.

        Args:
            images: float32 ``[batch, channels, height, width]``.
            blocks: from 0 to ``num_blocks`` - 1.
            timestep: from 0 to ``num_timesteps`` - 1.
        """


def of_any_block(backbone: Backbone) -> DiffusionBackbone:
    """``backbone``, if it gives features of any block at any timestep.

    Raises:
        InputError: it does not.
    """
    if isinstance(backbone, DiffusionBackbone):
        return backbone
    msg = (
        f"Expected a model whose block and timestep can be searched for, got {type(backbone).__name__.strip('_')}. "
        "Choose dit(depth=...), or diff_feat(search_rounds=0)."
    )
    raise InputError(msg)


def alphas() -> Tensor:
    """float64 ``[NUM_TIMESTEPS]``: a_t."""
    return (1 - torch.linspace(1e-4, 0.02, NUM_TIMESTEPS, dtype=torch.float64)).cumprod(dim=0)


def image_hashes(images: Tensor) -> list[int]:
    """64 bits of every image's stored bytes.

    Args:
        images: float32 ``[batch, channels, height, width]`` as ``pixel_scale.to_float`` makes them.
    """
    pixels = (images.detach().float() * PIXEL_STD + PIXEL_MEAN).round().clamp(0, 255).to(torch.uint8)
    stored = pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return [content_hash(np.ascontiguousarray(each).data) for each in stored]


def noise_of(images: Tensor, shape: Sequence[int], seed: int, timestep: int, draw: int = 0) -> Tensor:
    """Normal noise float32 ``[batch, *shape]``, which every image has always and everywhere.

    Args:
        images: whose pixels decide it.
        shape: of one image's noise.
        seed: of all noise.
        timestep: at which it is mixed in.
        draw: 0, 1, ...: independent draws.
    """
    streams = (
        torch_stream(seed, "diffusion/noise", key >> 32, key & 0xFFFFFFFF, timestep, draw)
        for key in image_hashes(images)
    )
    return torch.stack([torch.randn(*shape, generator=each) for each in streams]).to(images.device)


class KeptFeatures:
    """Features that a process has computed, by image, block and timestep; the oldest are dropped.

    Args:
        backbone: computes them; it must not train.
        most: bytes.
    """

    def __init__(self, backbone: DiffusionBackbone, most: int = MOST_KEPT) -> None:
        self._backbone, self._most = backbone, most
        self._kept: OrderedDict[tuple[int, int, int], Tensor] = OrderedDict()
        self.computed = 0

    @torch.no_grad()
    def at(self, images: Tensor, blocks: Sequence[int], timestep: int) -> Tensor:
        """As ``DiffusionBackbone.at``; images of which all is known are not computed again."""
        hashes = image_hashes(images)
        missing = [
            row for row, key in enumerate(hashes) if any((key, block, timestep) not in self._kept for block in blocks)
        ]
        given: dict[tuple[int, int, int], Tensor] = {}
        if missing:
            self.computed += len(missing)
            new = self._backbone.at(images[missing], blocks, timestep).float().cpu()
            for row, features in zip(missing, new, strict=True):
                given.update({(hashes[row], b, timestep): each for b, each in zip(blocks, features, strict=True)})
        for key in hashes:
            for block in blocks:
                given.setdefault((key, block, timestep), self._kept.get((key, block, timestep), torch.zeros(0)))
        found = torch.stack([torch.stack([given[key, block, timestep] for block in blocks]) for key in hashes])
        self._keep(given)
        return found.to(images.device)

    def clear(self) -> None:
        """Drop all that is kept, so that it is computed again."""
        self._kept.clear()

    def _keep(self, given: dict[tuple[int, int, int], Tensor]) -> None:
        for key, features in given.items():
            self._kept[key] = features.clone() if key not in self._kept else self._kept[key]
        size = next(iter(given.values())).numel() * 4 if given else 1
        while len(self._kept) * size > self._most:
            self._kept.popitem(last=False)


class TextTable:
    """Text vectors of images, found by the images' pixels.

    Args:
        hashes: uint64 ``[images]``, ``image_hashes``.
        vectors: float32 ``[images, width]``.

    Raises:
        InputError: they are something else.
    """

    def __init__(self, hashes: NDArray[np.uint64], vectors: NDArray[np.float32]) -> None:
        fits = hashes.ndim == 1 and vectors.ndim == 2 and len(hashes) == len(vectors) and len(vectors) > 0
        if not fits or hashes.dtype != np.uint64 or vectors.dtype != np.float32 or not np.isfinite(vectors).all():
            msg = (
                "Expected text vectors to be uint64 hashes [images] and finite float32 vectors [images, width], got "
                f"{hashes.dtype} {list(hashes.shape)} and {vectors.dtype} {list(vectors.shape)}. Use write_texts."
            )
            raise InputError(msg)
        self.width = int(vectors.shape[1])
        self._rows = {key: row for row, key in enumerate(hashes.tolist())}
        self._vectors = torch.from_numpy(vectors)

    @staticmethod
    def read(path: str) -> TextTable:
        """From a file of ``write_texts``.

        Raises:
            InputError: there is none, or it holds something else.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                return TextTable(file["hashes"], file["vectors"])
        except (OSError, ValueError, KeyError) as error:
            msg = f"Expected texts to be an .npz file of write_texts, got {path!r}: {error}. Write it again."
            raise InputError(msg) from None

    def __call__(self, images: Tensor) -> Tensor:
        """float32 ``[batch, width]`` of images ``[batch, channels, height, width]``.

        Raises:
            InputError: an image has no text.
        """
        rows = [self._rows.get(key, -1) for key in image_hashes(images)]
        if min(rows, default=0) < 0:
            msg = (
                f"Expected every image to have a text vector, got {rows.count(-1)} of {len(rows)} without. Write "
                "vectors of all images, held-out and test images included, at the size at which they are stored; with "
                "augmentation=none."
            )
            raise InputError(msg)
        return self._vectors[rows].to(images.device)


def write_texts(path: Path, images: NDArray[np.uint8], vectors: NDArray[np.float32]) -> None:
    """Write the text vectors of images, such as embeddings of captions, for ``diff_feat(texts=...)``.

    Args:
        path: of the ``.npz`` file.
        images: uint8 ``[images, height, width, channels]``, as the corpus stores them. Of equal images the last counts.
        vectors: float32 ``[images, width]``.

    Raises:
        InputError: their numbers differ.
    """
    if len(images) != len(vectors):
        msg = f"Expected a vector for each of {len(images)} images, got {len(vectors)}."
        raise InputError(msg)
    hashes = np.array([content_hash(np.ascontiguousarray(each).data) for each in images], dtype=np.uint64)
    np.savez(path, hashes=hashes, vectors=vectors)
