"""How an owner's pictures look: hue, saturation, contrast, brightness, blur, noise, favourite background.

The change of colours is affine. Painting mixes colours linearly, so changing the colours before
they are painted equals changing every pixel afterwards, and costs nothing per pixel.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedmlic.dataset import NO_OWNER
from fedmlic.scenes.normal import quantile
from fedmlic.seeds import entry_uniforms

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedmlic.scenes.options import Options

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

HUE_DEGREES, SATURATION, CONTRAST, BRIGHTNESS, TINT, BLUR, NOISE = 28.0, 0.4, 0.25, 0.1, 0.06, 0.12, 0.5
"""Standard deviation of each property at strength 1: degrees; logarithm; logarithm; of the full range;
of the full range; share of a neighbouring pixel; logarithm."""

MAX_BLUR = 0.24
"""Share that a pixel gives to each neighbour along an axis; above a quarter the filter would ring."""

NUM_DRAWS = 8


class Style(NamedTuple):
    """One entry per image.

    Attributes:
        matrix: float64 ``[images, 3, 3]``, new colour of old.
        offset: float64 ``[images, 3]``.
        blur: float64 ``[images]``, share given to each neighbour.
        noise: float64 ``[images]``, standard deviation, of the full range.
        taste: float64 ``[images]`` in [0, 1), picks the favourite background.
        insists: float64 ``[images]`` in [0, 1], how often it is used.
    """

    matrix: Floats
    offset: Floats
    blur: Floats
    noise: Floats
    taste: Floats
    insists: Floats


def styles(options: Options, number: Ints, keys: NDArray[np.uint64]) -> Style:
    """Styles of images by int64 ``number [images]`` of their owners in the population, or ``NO_OWNER``.

    An image of nobody is in the style of an owner of its own; in the test of unseen styles it
    deviates in every property, farther than owners do.
    """
    nobody = number == NO_OWNER
    drawn = entry_uniforms(options.seed, "scenes/style", 0, np.where(nobody, 0, number).astype(np.uint64), NUM_DRAWS)
    if nobody.any():
        drawn[nobody] = entry_uniforms(options.seed, "scenes/style of nobody", 0, keys[nobody], NUM_DRAWS)
    normal = quantile(drawn)
    strength = np.full(normal.shape, options.style_strength)
    if options.test == "unseen-styles":
        strength[nobody] = options.unseen_style_strength
        normal[nobody] = np.where(normal[nobody] < 0, -1, 1) * (1 + np.abs(normal[nobody]) / 2)
    shift = normal * strength
    matrix, offset = _colour_change(shift)
    return Style(
        matrix=matrix,
        offset=offset,
        blur=np.minimum(options.blur + BLUR * np.maximum(shift[:, 4], 0), MAX_BLUR),
        noise=options.noise * np.exp(NOISE * np.clip(shift[:, 5], -3, 3)),
        taste=drawn[:, 7],
        insists=np.minimum(strength[:, 0] / 2, 1),
    )


def _colour_change(shift: Floats) -> tuple[Floats, Floats]:
    """A turn about the grey axis, saturation and contrast as a matrix; brightness and tint as an offset."""
    half = np.clip(shift[:, 0] * math.radians(HUE_DEGREES) / 2, -1, 1)[:, None, None]
    cosine, sine = (1 - half * half) / (1 + half * half), 2 * half / (1 + half * half)
    grey = np.full((3, 3), 1 / 3)
    cross = np.array([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
    saturation = np.exp(SATURATION * np.clip(shift[:, 1], -3, 1))[:, None, None]
    contrast = np.exp(CONTRAST * np.clip(shift[:, 2], -3, 1))
    matrix = contrast[:, None, None] * (grey + saturation * (cosine * (np.eye(3) - grey) + sine * cross))
    tint = TINT * shift[:, 6:7] * np.array([1.0, 0.0, -1.0])
    offset = (0.5 * (1 - contrast) + BRIGHTNESS * np.clip(shift[:, 3], -2, 2))[:, None] + tint
    return matrix, offset


def recoloured(style: Style, image: Ints, colours: Floats, channels: int) -> NDArray[np.float32]:
    """float32 ``[entries, ..., channels]``: colours ``[entries, ..., 3]`` in the style of their images, or as grey."""
    extra = (1,) * (colours.ndim - 2)
    matrix = style.matrix[image].reshape(len(image), *extra, 3, 3)
    changed = style.offset[image].reshape(len(image), *extra, 3)
    # Not a matrix product: its rounding may depend on the machine and on how many there are.
    for channel in range(3):
        changed = changed + matrix[..., channel] * colours[..., channel : channel + 1]
    if channels == 1:
        changed = (changed[..., 0] * 0.299 + changed[..., 1] * 0.587 + changed[..., 2] * 0.114)[..., None]
    return np.asarray(changed, dtype=np.float32)
