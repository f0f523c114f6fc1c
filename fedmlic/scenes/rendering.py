"""Pixels: background, scene overlays, objects from the back to the front, light, blur and noise.

Images are painted many at a time in float32, channels first until the end because NumPy is
slow along a last axis of three. Every image is a function of its own numbers alone: nothing is
summed across images and no BLAS is called, so bytes do not depend on the batch.
"""

from __future__ import annotations

import functools
import io
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedmlic.dataset import NO_OWNER
from fedmlic.scenes import backgrounds, textures
from fedmlic.scenes.colours import brightness, rgb
from fedmlic.scenes.normal import quantile
from fedmlic.scenes.patches import GRID, patches
from fedmlic.scenes.style import Style, recoloured, styles
from fedmlic.seeds import entry_uniforms, stream

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedmlic.scenes.layout import Layout
    from fedmlic.scenes.options import Options
    from fedmlic.scenes.world import World

    Floats = NDArray[np.float64]
    Canvas = NDArray[np.float32]
    Ints = NDArray[np.int64]
    Keys = NDArray[np.uint64]

BLOCK_PIXELS = 1 << 17
"""Pixels painted at once."""

AMPLITUDE = 0.16
"""Largest strength of a background's texture, of the full range."""

OUTLINE = 0.1
"""Width of an object's outline, of its radius; at least one pixel."""


class _Ground(NamedTuple):
    """Backgrounds of images: two colours ``[images, 2, 3]`` and what varies them."""

    colours: Floats
    direction: Canvas
    amplitude: Canvas
    kind: Ints
    place: Ints


def render(scenes: World, rows: Ints) -> NDArray[np.uint8]:
    """uint8 ``[rows, height, width, channels]``."""
    options = scenes.options
    step = max(1, BLOCK_PIXELS // options.image_size**2)
    blocks = [_block(scenes, rows[start : start + step]) for start in range(0, len(rows), step)]
    side = options.image_size
    return np.concatenate([np.empty((0, side, side, options.channels), dtype=np.uint8), *blocks])


def _block(scenes: World, rows: Ints) -> NDArray[np.uint8]:
    options, key = scenes.options, scenes.census.key[rows]
    owner = scenes.census.owner[rows]
    number = np.where(owner == NO_OWNER, NO_OWNER, scenes.owners.number[owner])
    style = styles(options, number, key)
    ground = _ground(options, key, scenes.context[rows], style)
    canvas = _background(options, ground, style)
    _overlay(scenes, rows, canvas, style)
    _paint_objects(scenes, rows, canvas, style, ground)
    return finished(options, key, canvas, style)


def blank(options: Options, key: Keys, context: Ints, style: Style) -> Canvas:
    """float32 ``[images, channels, height, width]``: backgrounds without anything on them.

    Args:
        options: of looks only ``background``, ``background_reliability``, sizes and ``seed`` are used.
        key: uint64 ``[images]``.
        context: int64 ``[images]``, picks the background with probability ``background_reliability``.
        style: of these images.
    """
    return _background(options, _ground(options, key, context, style), style)


def finished(options: Options, key: Keys, canvas: Canvas, style: Style) -> NDArray[np.uint8]:
    """uint8 ``[images, height, width, channels]``: light, blur, noise and compression over what was painted.

    The canvas, float32 ``[images, channels, height, width]``, is used up.
    """
    _light(options, key, canvas)
    canvas = _blurred(canvas, style.blur)
    _add_noise(options, key, canvas, style.noise)
    np.clip(canvas, 0, 1, out=canvas)
    canvas *= np.float32(255)
    canvas += np.float32(0.5)
    pixels = np.ascontiguousarray(np.moveaxis(canvas.astype(np.uint8), 1, -1))
    return _recompressed(pixels, options.jpeg_quality) if options.jpeg_quality else pixels


def _ground(options: Options, key: Keys, context: Ints, style: Style) -> _Ground:
    draws = entry_uniforms(options.seed, "scenes/ground", 0, key, 16)
    value = 0.28 + 0.55 * draws[:, :1] + 0.2 * (draws[:, 1:3] - 0.5)
    hue = draws[:, 3:4] + 0.25 * (draws[:, 4:6] - 0.5)
    colours = rgb(hue, 0.4 * draws[:, 6:8], value)
    kinds = len(backgrounds.PHOTOS if options.background == "photos" else backgrounds.KINDS)
    anything = (draws[:, 8] * kinds).astype(np.int64)
    kind = np.where(draws[:, 9] < options.background_reliability, context % kinds, anything)
    kind = np.where(draws[:, 10] < style.insists, (style.taste * kinds).astype(np.int64), kind)
    return _Ground(
        colours,
        ((draws[:, 11:13] - 0.5) * [0.8, 1.6]).astype(np.float32),
        (AMPLITUDE * (0.4 + 0.6 * draws[:, 13])).astype(np.float32),
        kind,
        np.floor(draws[:, 14:16] * backgrounds.ROOM).astype(np.int64),
    )


def _ramp(side: int) -> Canvas:
    """float32 ``[side]``: places of pixels from -1 to 1."""
    return (np.arange(side, dtype=np.float32) + np.float32(0.5)) * np.float32(2 / side) - np.float32(1)


def _background(options: Options, ground: _Ground, style: Style) -> Canvas:
    """float32 ``[images, channels, height, width]``."""
    side, image = options.image_size, np.arange(len(ground.kind))
    if options.background == "photos":
        return _photographs(options, ground, style)
    colours = recoloured(style, image, ground.colours, options.channels)
    along = _ramp(side)
    mix = (along * ground.direction[:, :1])[:, None, :] + (along * ground.direction[:, 1:])[:, :, None]
    mix = mix * np.float32(0.5) + np.float32(0.5)
    canvas = mix[:, None] * (colours[:, 1] - colours[:, 0])[..., None, None]
    canvas += colours[:, 0, :, None, None]
    if options.background == "textured":
        table = backgrounds.textures(side)
        for place, (kind, (left, top)) in enumerate(zip(ground.kind.tolist(), ground.place.tolist(), strict=True)):
            window = table[kind, top : top + side, left : left + side] * ground.amplitude[place]
            canvas[place] += window
    return np.asarray(canvas, dtype=np.float32)


def _photographs(options: Options, ground: _Ground, style: Style) -> Canvas:
    """Windows of photographs, in the style of the images."""
    side, image = options.image_size, np.arange(len(ground.kind))
    table = backgrounds.photos(side)
    room = np.array(table.shape[:1:-1]) - side + 1
    place = ground.place * room // backgrounds.ROOM
    canvas = np.empty((len(image), options.channels, side, side), dtype=np.float32)
    for number, (kind, (left, top)) in enumerate(zip(ground.kind.tolist(), place.tolist(), strict=True)):
        window = np.moveaxis(table[kind, :, top : top + side, left : left + side], 0, -1)
        changed = recoloured(style, image[number : number + 1], window[None].astype(np.float64), options.channels)
        canvas[number] = np.moveaxis(changed[0], -1, 0)
    return canvas


def _overlay(scenes: World, rows: Ints, canvas: Canvas, style: Style) -> None:
    """Paint what labels of the whole scene add, before the objects."""
    options = scenes.options
    if not options.num_scene_labels:
        return
    side, table = options.image_size, backgrounds.overlays(options.image_size)
    shift = entry_uniforms(options.seed, "scenes/overlay", 0, scenes.census.key[rows], options.num_scene_labels)
    left = np.floor(shift * side).astype(np.int64)
    shown = scenes.shown[rows, options.num_labels :]
    for label in backgrounds.OVERLAY_ORDER:
        if label >= options.num_scene_labels:
            continue
        for image in np.flatnonzero(shown[:, label]):
            colour = backgrounds.overlay_colours()[label][None]
            ink = recoloured(style, np.array([image]), colour, options.channels)[0, :, None, None]
            opacity = table[label, :, left[image, label] : left[image, label] + side]
            canvas[image] += opacity * (ink - canvas[image])


def _objects_of(scenes: World, rows: Ints) -> tuple[Layout, Ints]:
    """Objects of some images, and which of ``rows`` each is on."""
    start = np.searchsorted(scenes.objects.row, rows, side="left")
    count = np.searchsorted(scenes.objects.row, rows, side="right") - start
    image = np.repeat(np.arange(len(rows)), count)
    chosen = np.arange(len(image)) - np.repeat(np.cumsum(count) - count, count) + start[image]
    return scenes.objects.take(chosen), image


def _inks(options: Options, objects: Layout, behind: Floats) -> Floats:
    """float64 ``[objects, 3, 3]``: colour, second colour of the texture, outline; ``behind [objects]`` is brightness.

    The hue is the label's own with probability ``colour_reliability`` and any other otherwise.
    """
    draws = entry_uniforms(options.seed, "scenes/ink", 0, objects.key, 6)
    hues = stream(options.seed, "scenes/hues").random(options.num_labels)
    own = hues[objects.concept] + 0.06 * (draws[:, 1] - 0.5)
    hue = np.where(draws[:, 0] < options.colour_reliability, own, draws[:, 2])
    colour = rgb(hue, 0.45 + 0.5 * draws[:, 3], 0.55 + 0.45 * draws[:, 4])
    level = np.where(brightness(colour) > 0.5, 0.1, 0.95)
    second = rgb(hue + 0.5, np.full(len(hue), 0.15), level - 0.08 * np.where(level > 0.5, draws[:, 5], 0))
    outline = np.repeat(np.where(behind > 0.5, 0.04, 0.97)[:, None], 3, axis=1)
    return np.stack([colour, second, outline], axis=1)


def _paint_objects(scenes: World, rows: Ints, canvas: Canvas, style: Style, ground: _Ground) -> None:
    options, words = scenes.options, scenes.vocabulary
    objects, image = _objects_of(scenes, rows)
    behind = np.full(len(image), 0.6)
    if options.background != "photos":
        behind = brightness(ground.colours).mean(axis=1)[image]
    inks = recoloured(style, image, _inks(options, objects, behind), options.channels)
    texture = words.texture[objects.concept]
    if options.test == "unseen-combinations":
        nobodys = scenes.census.owner[rows][image] == NO_OWNER
        texture = np.where(nobodys, words.unseen_texture[objects.concept], texture)
    paint: list[tuple[int, int, Canvas, Canvas]] = [(0, 0, canvas[:0, 0, 0], canvas[:0, 0])] * len(image)
    for patch in patches(objects, words.shape[objects.concept], options.image_size):
        some = patch.objects
        radius = objects.radius[some]
        keep, colour = _painted(patch.distance, patch.nearest, texture[some], inks[some], radius)
        for place, number in enumerate(some.tolist()):
            paint[number] = (int(patch.left[place]), int(patch.top[place]), keep[place], colour[place])
    for number, (left, top, keep_one, colour_one) in zip(image.tolist(), paint, strict=True):
        side = len(keep_one)
        view = canvas[number, :, top : top + side, left : left + side]
        view *= keep_one
        view += colour_one


def _painted(distance: Canvas, nearest: Ints, texture: Ints, inks: Canvas, radius: Canvas) -> tuple[Canvas, Canvas]:
    """What stays of the picture behind ``[objects, side, side]``; what is added ``[objects, channels, side, side]``."""
    second = textures.table().ravel().take(nearest + (texture * (GRID * GRID))[:, None, None])
    width = np.maximum(radius * np.float32(OUTLINE), np.float32(1))
    cover = np.clip(np.float32(0.5) - distance, 0, 1)
    inner = np.clip(np.float32(0.5) - distance - width[:, None, None], 0, 1)
    fill, other, line = (inks[:, place, :, None, None] for place in range(3))
    colour = second[:, None] * (other - fill)
    colour += fill - line
    colour *= inner[:, None]
    colour += line
    colour *= cover[:, None]
    return np.float32(1) - cover, colour


def _light(options: Options, key: Keys, canvas: Canvas) -> None:
    """Brighter on one side than on the other, and sometimes a soft shadow across the picture."""
    if not options.illumination and not options.shadow_probability:
        return
    draws = entry_uniforms(options.seed, "scenes/light", 0, key, 7)
    slope = ((draws[:, :2] * 2 - 1) * options.illumination).astype(np.float32)
    along = _ramp(options.image_size)
    light = (along * slope[:, :1])[:, None, :] + (along * slope[:, 1:] + np.float32(1))[:, :, None]
    for image in np.flatnonzero(draws[:, 2] < options.shadow_probability):
        across, down = (draws[image, 3:5] * 2 - 1) * 3
        edge = (along * np.float32(across))[None, :] + (along * np.float32(down) + np.float32(2 * draws[image, 5] - 1))[
            :, None
        ]
        light[image] -= np.clip(edge, 0, 1) * np.float32(0.15 + 0.3 * draws[image, 6])
    canvas *= light[:, None]


def _blurred(canvas: Canvas, share: Floats) -> Canvas:
    """Each pixel gives its share to both neighbours, first along columns and then along rows."""
    some = np.flatnonzero(share > 0.01)
    if len(some):
        given = share[some].astype(np.float32)[:, None, None, None]
        picture = canvas[some]
        for axis in (2, 3):
            moved = np.moveaxis(picture, axis, 2)
            padded = np.concatenate([moved[:, :, :1], moved, moved[:, :, -1:]], axis=2)
            around = padded[:, :, :-2] + padded[:, :, 2:]
            around -= 2 * moved
            around *= given
            picture = np.moveaxis(moved + around, 2, axis)
        canvas[some] = picture
    return canvas


@functools.cache
def _noise(side: int, channels: int) -> Canvas:
    """float32 ``[channels, side, side]``: a table of normal numbers, rounded so that they are the same everywhere."""
    uniforms = stream(0, "scenes/noise", side, channels).random((channels, side, side))
    return np.asarray(np.round(quantile(uniforms) * 1024) / 1024, dtype=np.float32)


def _add_noise(options: Options, key: Keys, canvas: Canvas, strength: Floats) -> None:
    """Sensor noise: every image takes a window of one large table."""
    if not options.noise:
        return
    side, room = options.image_size, 128
    table = _noise(side + room, options.channels)
    places = np.floor(entry_uniforms(options.seed, "scenes/noise", 0, key, 2) * room).astype(np.int64).tolist()
    for image, (left, top) in enumerate(places):
        canvas[image] += table[:, top : top + side, left : left + side] * np.float32(strength[image])


def _recompressed(pixels: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    from PIL import Image  # only this option compresses anything

    result = np.empty_like(pixels)
    for place, image in enumerate(pixels):
        picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality)
        result[place] = np.asarray(Image.open(buffer)).reshape(image.shape)
    return result
