"""What labels look like: every label is a shape with a texture; some describe the whole scene.

Neither the shape nor the texture gives a label away: each shape comes with several textures and
each texture on several shapes. Each shape leaves one texture of the vocabulary out; these unseen
combinations make an out-of-distribution test (the idea of CLEVR's CoGenT: Johnson et al. 2017).
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedmlic.errors import InputError
from fedmlic.scenes.shapes import SHAPES
from fedmlic.scenes.textures import TEXTURES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedmlic.scenes.options import Options

    Ints = NDArray[np.int64]

SCENE_LABELS = (
    *("night", "clouds", "meadow", "rain", "sunset", "wall"),
    *("snow", "sea", "fog", "hills", "starlight", "road"),
)
"""Labels of whole scenes, in the order in which they are taken."""

ALIKE = (
    *("disc", "ellipse", "hexagon", "square", "gear", "flower", "star", "ring", "zero", "eight", "six", "nine"),
    *("spiral", "crescent", "drop", "heart", "fish", "triangle", "hourglass", "bolt", "house", "arrow", "cross"),
    *("tee", "ell", "four", "seven", "one", "two", "three", "five"),
)
"""All shapes, similar ones side by side; coarse groups are runs of it."""

MAX_LABELS = len(SHAPES) * (len(TEXTURES) - 1)


class Vocabulary(NamedTuple):
    """Attributes of one configuration's labels.

    Attributes:
        shape: int64 ``[concepts]``, of each concept (place in ``SHAPES``).
        texture: int64 ``[concepts]``, place in ``TEXTURES``.
        unseen_texture: int64 ``[concepts]``, the texture that the concept's shape never has.
        group: int64 ``[concepts]``, coarse group of each.
        columns: int64 ``[concepts, columns of one]``, the columns that an object of a concept makes present.
        unseen_columns: int64 likewise, where the concept's texture is the unseen one.
        scene_columns: int64 ``[scene labels]``.
        names: of the columns.
        parents: of the columns; empty without a hierarchy.
        concept_names: texture and shape of each concept.
    """

    shape: Ints
    texture: Ints
    unseen_texture: Ints
    group: Ints
    columns: Ints
    unseen_columns: Ints
    scene_columns: Ints
    names: tuple[str, ...]
    parents: tuple[str, ...]
    concept_names: tuple[str, ...]


def num_textures(num_labels: int) -> int:
    """How many textures a vocabulary uses; one fewer on each shape."""
    return int(min(len(TEXTURES), max(3, round(0.8 * num_labels**0.5))))


def vocabulary(options: Options) -> Vocabulary:
    """Concepts and columns. Concepts are the same for every seed.

    Raises:
        InputError: more coarse groups than shapes.
    """
    concepts = np.arange(options.num_labels)
    textures = num_textures(options.num_labels)
    shape, place = concepts // (textures - 1), concepts % (textures - 1)
    left_out = shape % textures
    texture = place + (place >= left_out)
    num_shapes = int(shape.max()) + 1
    groups = _groups(num_shapes, options.num_coarse)
    concept_names = tuple(f"{TEXTURES[t]} {SHAPES[s]}" for s, t in zip(shape.tolist(), texture.tolist(), strict=True))
    group_of = {name: number for number, group in enumerate(groups) for name in group}
    group = np.array([group_of[SHAPES[s]] for s in shape.tolist()])
    group_names = tuple("/".join(group) for group in groups)
    names, parents, columns = concept_names, tuple(group_names[g] for g in group.tolist()), concepts[:, None]
    unseen_columns = columns
    if options.level == "coarse":
        names, parents, columns, unseen_columns = group_names, (), group[:, None], group[:, None]
    elif options.level == "attributes":
        names, parents = _attributes(num_shapes, textures)
        columns, unseen_columns = (np.stack([shape, num_shapes + t], axis=1) for t in (texture, left_out))
    scene_names = SCENE_LABELS[: options.num_scene_labels]
    parents = (*parents, *["scene"] * len(scene_names)) if parents else ()
    scene_columns = len(names) + np.arange(len(scene_names))
    names = (*names, *scene_names)
    return Vocabulary(
        shape, texture, left_out, group, columns, unseen_columns, scene_columns, names, parents, concept_names
    )


def _groups(num_shapes: int, num_coarse: int) -> list[list[str]]:
    """The shapes in use, dealt into runs of similar ones."""
    if num_coarse > num_shapes:
        msg = (
            f"Expected num_coarse of scenes to be at most the shapes in use ({num_shapes}), got {num_coarse}. "
            "Lower it or raise num_labels."
        )
        raise InputError(msg)
    used = [name for name in ALIKE if name in SHAPES[:num_shapes]]
    cuts = [len(used) * group // num_coarse for group in range(num_coarse + 1)]
    return [used[start:stop] for start, stop in itertools.pairwise(cuts)]


def _attributes(num_shapes: int, textures: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names and parents of one column per shape and one per texture."""
    names = (*SHAPES[:num_shapes], *TEXTURES[:textures])
    return names, ("shape",) * num_shapes + ("texture",) * textures
