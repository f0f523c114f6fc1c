"""CLIP's image tower from a folder in Hugging Face's format: patches as a map, or one vector per image.

Sources: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision" (ICML);
``fedmlic/image_tower.py``.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedmlic.image_tower import image_tower
from fedmlic.model import Model


def clip_image(
    *,
    path: str = "",
    features: Literal["patches", "pooled"] = "patches",
    projection: bool = False,
    image_size: Annotated[int, Field(ge=0)] = 0,
    trainable: str = "all",
) -> Model:
    """The Vision Transformer of a CLIP model.

    Args:
        path: a folder with ``config.json`` and weights, as ``transformers`` saves it; empty: a small
            tower from scratch (4 blocks, 96 features), to try an experiment.
        features: ``patches``: the map of the patches' tokens, each after the last norm; ``pooled``: the
            class token after the last norm, as a map of one place.
        projection: whether features are multiplied by the matrix that takes them to the space that
            texts share.
        image_size: pixels a side to which images are resized inside; 0: as the folder says, or as they
            are from scratch. Positions are interpolated for another size than the folder's.
        trainable: ``all``, ``last(n)``, ``lora(rank)`` or ``head``: which parts of the backbone train. Parts
            are the embedding of patches, then the blocks, the last one with what comes after it.

    Raises:
        InputError: no such folder, another model in it, weights that do not fit; no such ``trainable``.
    """
    return image_tower("clip", path, features, projection=projection, image_size=image_size, trainable=trainable)
