"""Textures of backgrounds, and overlays for labels of whole scenes, as tables that images cut windows from.

A table is larger than an image; each image takes a window at a random place.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedmlic.errors import InputError
from fedmlic.scenes.vocabulary import SCENE_LABELS
from fedmlic.seeds import stream

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Picture = NDArray[np.floating[Any]]
    Table = NDArray[np.float32]

KINDS = ("smooth", "cloudy", "grainy", "wavy", "woven", "blotchy")
"""Textures of backgrounds."""

ROOM = 96
"""Pixels by which a table is larger than an image: possible places of a window along each axis."""

PHOTOS = ("china.jpg", "flower.jpg")


def _value_noise(rng: np.random.Generator, size: int, cell: float) -> Floats:
    """``[size, size]`` in [-1, 1]: random values on a grid, interpolated bilinearly."""
    corners = rng.random((int(size / cell) + 3,) * 2) * 2 - 1
    place = np.arange(size) / cell
    first = place.astype(int)
    part = place - first
    tall = corners[first] * (1 - part)[:, None] + corners[first + 1] * part[:, None]
    return np.asarray(tall[:, first] * (1 - part) + tall[:, first + 1] * part)


def _triangle(values: Picture) -> Floats:
    """A wave of period 1 in [-1, 1]."""
    return np.asarray(np.abs(values - np.floor(values) - 0.5) * 4 - 1)


@functools.cache
def textures(image_size: int) -> Table:
    """float32 ``[kinds, side, side]`` in [-1, 1], the same for every seed."""
    side, unit = image_size + ROOM, image_size / 64
    rng = stream(0, "scenes/backgrounds", image_size)
    y, x = np.mgrid[:side, :side] / unit
    soft, rough = _value_noise(rng, side, 24 * unit), _value_noise(rng, side, 7 * unit)
    kinds: dict[str, Picture] = {
        "smooth": soft,
        "cloudy": 0.6 * soft + 0.4 * rough,
        "grainy": 0.4 * soft + 0.6 * _value_noise(rng, side, max(1.0, 1.5 * unit)),
        "wavy": _triangle(y / 11 + 0.8 * _value_noise(rng, side, 20 * unit)) * 0.7,
        "woven": (_triangle(x / 9) + _triangle(y / 9)) * 0.4,
        "blotchy": np.clip(_value_noise(rng, side, 13 * unit) * 4, -0.8, 0.8),
    }
    return np.asarray(np.stack([kinds[kind] for kind in KINDS]), dtype=np.float32)


OVERLAYS: dict[str, tuple[tuple[float, float, float], Callable[[Floats, Floats, np.random.Generator], Picture]]] = {
    "wall": ((0.5, 0.24, 0.18), lambda x, y, _: 0.35 + 0.5 * (_bricks(x, y) > 0)),
    "sunset": ((1.0, 0.45, 0.12), lambda _, y, __: 0.8 * np.clip(1 - np.abs(y - 0.55) / 0.45, 0, 1)),
    "night": ((0.02, 0.03, 0.12), lambda x, _, __: np.full_like(x, 0.68)),
    "starlight": ((1.0, 0.95, 0.6), lambda x, y, rng: _points(x, y, rng, (40, 0.022)) * (y < 0.55)),
    "clouds": ((0.97, 0.97, 1.0), lambda x, y, rng: 0.85 * _puffs(x, y, rng)),
    "hills": (
        (0.3, 0.33, 0.3),
        lambda x, y, _: 0.85 * (y > 0.66 + 0.1 * _triangle(x * 1.3) + 0.04 * _triangle(x * 3.1)),
    ),
    "sea": ((0.08, 0.3, 0.6), lambda x, y, _: (y > 0.7) * (0.75 + 0.2 * _triangle(y * 14 + 0.3 * _triangle(x * 4)))),
    "meadow": (
        (0.2, 0.55, 0.12),
        lambda x, y, _: (y > 0.78 + 0.06 * _triangle(x * 11)) * (0.8 + 0.15 * _triangle(x * 23)),
    ),
    "road": ((0.3, 0.3, 0.32), lambda x, y, _: 0.9 * _road(x, y)),
    "fog": ((0.78, 0.78, 0.8), lambda x, _, __: np.full_like(x, 0.6)),
    "rain": (
        (0.75, 0.82, 1.0),
        lambda x, y, _: 0.6 * ((_triangle(x * 9 + y * 3) > 0.72) & (_triangle(y * 3.7 + x * 7) > -0.2)),
    ),
    "snow": ((1.0, 1.0, 1.0), lambda x, y, rng: _points(x, y, rng, (45, 0.03))),
}
"""Colour and opacity of what a scene label adds, in the order in which they are painted. The first
argument runs along the image, the second down from 0 to 1."""


def _bricks(x: Floats, y: Floats) -> Floats:
    """Positive in the joints of a wall."""
    course = np.floor(y * 7)
    joints = np.maximum(_triangle(y * 7) - 0.65, _triangle(x * 3.5 + 0.5 * course) - 0.85)
    return np.asarray(joints)


def _points(x: Floats, y: Floats, rng: np.random.Generator, kind: tuple[int, float]) -> Floats:
    """Round points, so many per square."""
    count, radius = kind
    result = np.zeros_like(x)
    for across, down in rng.random((int(count * x.max()), 2)) * [x.max(), 1.0]:
        away = np.sqrt((x - across) ** 2 + (y - down) ** 2)
        result = np.maximum(result, np.clip(1.5 - away / radius, 0, 1))
    return result


def _puffs(x: Floats, y: Floats, rng: np.random.Generator) -> Floats:
    result = np.zeros_like(x)
    for across, down, size in rng.random((int(5 * x.max()), 3)):
        away = np.sqrt(((x - across * x.max()) / 1.9) ** 2 + (y - 0.08 - 0.2 * down) ** 2)
        result = np.maximum(result, np.clip((0.06 + 0.05 * size - away) * 40, 0, 1))
    return result


def _road(x: Floats, y: Floats) -> Floats:
    """A road that narrows towards the horizon, with a broken line in its middle."""
    depth = (y - 0.6) / 0.4
    off = np.abs(x - np.floor(x) - 0.5)
    dashes = (off < 0.03 * depth) & (_triangle(depth * 3) > 0)
    return np.asarray((depth > 0) & (off < 0.08 + 0.3 * depth) & ~dashes, dtype=np.float64)


@functools.cache
def overlays(image_size: int) -> Table:
    """float32 ``[scene labels, size, 2 size]``: opacity of each overlay, by ``SCENE_LABELS``."""
    y, x = np.mgrid[:image_size, : 2 * image_size] / image_size
    made = [OVERLAYS[name][1](x, y, stream(0, f"scenes/overlay {name}", image_size)) for name in SCENE_LABELS]
    return np.asarray(np.stack(made), dtype=np.float32)


def overlay_colours() -> Floats:
    """float64 ``[scene labels, 3]``."""
    return np.array([OVERLAYS[name][0] for name in SCENE_LABELS])


OVERLAY_ORDER = tuple(SCENE_LABELS.index(name) for name in OVERLAYS)


@functools.cache
def photos(image_size: int) -> Table:
    """float32 ``[2, 3, height, width]`` in [0, 1]: the two photographs that scikit-learn bundles, made smaller.

    Raises:
        InputError: scikit-learn's files are missing, or an image would be larger than they are.
    """
    found = importlib.util.find_spec("sklearn")
    places = list(found.submodule_search_locations or []) if found else []
    paths = [Path(place) / "datasets" / "images" / name for place in places[:1] for name in PHOTOS]
    if not paths or not all(path.is_file() for path in paths):
        msg = (
            f"Expected scikit-learn to bundle the photographs {PHOTOS}, got none. Reinstall it, or choose a background."
        )
        raise InputError(msg)
    from PIL import Image  # only this option decodes anything

    pictures = []
    for path in paths:
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"), dtype=np.float64) / 255
        pictures.append(_shrunk(pixels, image_size))
    return np.asarray(np.stack(pictures), dtype=np.float32)


def _shrunk(pixels: Floats, image_size: int) -> Floats:
    """``[3, height, width]``: means over squares, so that an image shows about half of the picture's height."""
    height, width = pixels.shape[:2]
    factor = max(1, height // (2 * image_size))
    if height // factor < image_size:
        msg = (
            f"Expected image_size of scenes to be at most {height} with photographs behind, got {image_size}. Lower it."
        )
        raise InputError(msg)
    cut = pixels[: height // factor * factor, : width // factor * factor]
    squares = cut.reshape(height // factor, factor, width // factor, factor, 3)
    return np.moveaxis(squares.mean(axis=(1, 3)), -1, 0)


def photos_digest(image_size: int) -> str:
    """SHA-256 of the decoded photographs: JPEG decoders differ in the last bit."""
    return hashlib.sha256(photos(image_size).tobytes()).hexdigest()
