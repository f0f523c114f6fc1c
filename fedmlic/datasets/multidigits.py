"""Real handwritten digits composed into scenes: ten labels, hidden contexts, natural owners.

Real glyphs, synthetic scenes. It needs no download and has known boxes, owners and
co-occurrence, which makes it the default for trying things out; it is not a benchmark.

The glyphs are those that scikit-learn bundles for ``load_digits`` (1,797 digits of 8 x 8
pixels by 13 writers, a copy of the test set of the UCI "Optical Recognition of Handwritten
Digits" data: Kaynak 1995; Alpaydin and Kaynak 1998). They are split by their order in that
file before any scene is composed, so no glyph is in two splits.

How one scene comes about: its owner's mixture picks a hidden context; the context's
preferences pick the labels; each label gets a glyph of the split's pool, a place, a size, a
tilt and a colour; glyphs are painted over one another; a glyph of which too little stays
visible is taken out, so labels, boxes and pixels always agree. Colour tells nothing about
the label. Validation and test scenes belong to no owner and weigh all contexts equally.

Every scene is a pure function of (version, parameters, split, owner, index): its numbers
come from a counter-based generator, and pixels from elementwise arithmetic without BLAS or
transcendental functions, so bytes do not depend on the process, the order or the batch.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import math
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
from pydantic import Field

from fedmlic.dataset import NO_OWNER, SPLITS, Dataset, Objects, Table
from fedmlic.errors import InputError
from fedmlic.labels import PRESENT
from fedmlic.scenes.composition import (
    TRIES,
    free_places,
    owner_mixtures,
    owner_sizes,
    pick,
    pick_labels,
    tight_boxes,
)
from fedmlic.seeds import entry_uniforms, stream

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

VERSION = "1"
LABEL_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NUM_LABELS = len(LABEL_NAMES)
GLYPHS_SHA256 = "68aea062d35a127749050fa0e52dca09d6569ac08092c925610e0954e172dde2"
"""Of the 1,797 x 65 bytes of the bundled table; other glyphs would be another data set."""

CELLS = 8
"""Height and width of a source glyph."""

MIN_PIXELS = 8.0
"""Smallest drawn size of a source glyph's 8 x 8 square: never fewer pixels than the source has."""

GRID = 4
"""Background texture: patches per side."""

BLOCK_PIXELS = 1 << 17
"""Pixels drawn at once; keeps temporary arrays within the processor's cache."""


@functools.cache
def glyphs() -> tuple[NDArray[np.uint8], Ints]:
    """uint8 ``[glyphs, 8, 8]`` in 0..16 and int64 ``[glyphs]``, the digit each one shows.

    The file is read directly: importing ``sklearn.datasets`` takes seconds.
    """
    found = importlib.util.find_spec("sklearn")
    places = list(found.submodule_search_locations or []) if found else []
    path = Path(places[0]) / "datasets" / "data" / "digits.csv.gz" if places else None
    if path is None or not path.is_file():
        msg = f"Expected scikit-learn to bundle the digits, got no file {path}. Reinstall scikit-learn."
        raise InputError(msg)
    table = np.loadtxt(path, delimiter=",", dtype=np.uint8)
    digest = hashlib.sha256(table.tobytes()).hexdigest()
    if digest != GLYPHS_SHA256:
        msg = f"Expected {path} to hold the known 1,797 digits, got others ({digest[:12]}). Reinstall scikit-learn."
        raise InputError(msg)
    return table[:, :-1].reshape(-1, CELLS, CELLS), table[:, -1].astype(np.int64)


@functools.cache
def glyph_pools() -> dict[str, list[Ints]]:
    """Glyph numbers of each split and digit: the first 4/6 of the file, the next 1/6, the last 1/6.

    In file order and not at random, because neighbours in the file are by one writer.
    """
    digits = glyphs()[1]
    pools: dict[str, list[Ints]] = {split: [] for split in SPLITS}
    for digit in range(NUM_LABELS):
        own = np.flatnonzero(digits == digit)
        cuts = [0, len(own) * 4 // 6, len(own) * 5 // 6, len(own)]
        for split, low, high in zip(SPLITS, cuts[:-1], cuts[1:], strict=True):
            pools[split].append(own[low:high])
    return pools


def _context_weights(options: SimpleNamespace) -> Floats:
    """float64 ``[contexts, labels]``: how likely each context shows each label; rows sum to one.

    Every context favours ``context_labels`` labels, those that fewest contexts favour so far.
    """
    rng = stream(options.seed, "multidigits/contexts")
    weights = np.full((options.num_contexts, NUM_LABELS), (1 - options.context_strength) / NUM_LABELS)
    times_favoured = np.zeros(NUM_LABELS)
    for context in weights:
        favoured = np.argsort(times_favoured + rng.random(NUM_LABELS))[: options.context_labels]
        context[favoured] += options.context_strength / options.context_labels
        times_favoured[favoured] += 1
    return weights


class _Plan(NamedTuple):
    """Everything drawn for ``n`` scenes with up to ``slots`` glyphs, the last glyph on top.

    Attributes:
        label: int64 ``[n, slots]``.
        glyph: int64 ``[n, slots]``, which source glyph.
        drawn: bool ``[n, slots]``, whether the slot holds a glyph.
        centre: float32 ``[n, slots, 2]``, x and y in pixels.
        size: float32 ``[n, slots]``, pixels of the glyph's square.
        tilt: float32 ``[n, slots]``, tangent of half the angle.
        ink: float32 ``[n, slots, 3]``, colours in [0, 1].
        ground: float32 ``[n, GRID + 1, GRID + 1, 3]``, corners of the background's patches.
        key: uint64 ``[n]``, the scene's own number.
    """

    label: Ints
    glyph: Ints
    drawn: NDArray[np.bool_]
    centre: NDArray[np.float32]
    size: NDArray[np.float32]
    tilt: NDArray[np.float32]
    ink: NDArray[np.float32]
    ground: NDArray[np.float32]
    key: NDArray[np.uint64]

    def take(self, rows: Ints) -> _Plan:
        """Some of the scenes."""
        return _Plan._make(array[rows] for array in self)


def _uniforms(options: SimpleNamespace, what: str, keys: NDArray[np.uint64], *shape: int) -> Floats:
    """float64 ``[scenes, *shape]`` in [0, 1). Each purpose draws its own, so one knob leaves the others alone."""
    drawn = entry_uniforms(options.seed, f"multidigits/{what}", 0, keys, math.prod(shape))
    return drawn.reshape(len(keys), *shape)


def _plan(options: SimpleNamespace, keys: NDArray[np.uint64], splits: Ints, mixtures: Floats) -> _Plan:
    """Draw scenes of int64 ``splits [scenes]``, with float64 ``mixtures [scenes, contexts]``."""
    slots = options.max_glyphs

    def uniforms(what: str, *shape: int) -> Floats:
        return _uniforms(options, what, keys, *shape)

    context = pick(mixtures, uniforms("context", 1)[:, 0])
    span = slots - options.min_glyphs + 1
    count = options.min_glyphs + (uniforms("count", 1) * span).astype(np.int64)
    weights = _context_weights(options)[context]
    label = pick_labels(weights, uniforms("label", slots), uniforms("repeat", slots, 2), options.repeat_probability)
    drawn = np.arange(slots) < count
    low, high = (fraction * options.image_size for fraction in options.glyph_size)
    size = low + uniforms("size", slots) * (high - low)
    half_turn = math.tan(math.radians(options.rotation) / 2)
    return _Plan(
        label=label,
        glyph=_choose_glyphs(splits, label, uniforms("glyph", slots)),
        drawn=drawn,
        centre=free_places(size, uniforms("place", slots, TRIES, 2), options.image_size, options.max_overlap).astype(
            np.float32
        ),
        size=size.astype(np.float32),
        tilt=((2 * uniforms("tilt", slots) - 1) * half_turn).astype(np.float32),
        key=keys,
        **_colours(options, uniforms("colour", 2 + 3 * (slots + 1)), uniforms("texture", GRID + 1, GRID + 1, 3)),
    )


def _choose_glyphs(splits: Ints, label: Ints, uniforms: Floats) -> Ints:
    pools = [pool for split in SPLITS for pool in glyph_pools()[split]]
    sizes = np.array([len(pool) for pool in pools])
    starts = np.cumsum(sizes) - sizes
    pool = splits[:, None] * NUM_LABELS + label
    place = starts[pool] + (uniforms * sizes[pool]).astype(np.int64)
    return np.asarray(np.concatenate(pools)[place], dtype=np.int64)


def _colours(options: SimpleNamespace, draws: Floats, texture: Floats) -> dict[str, NDArray[np.float32]]:
    """Ink and background: bright on dark or dark on bright, ``contrast`` apart, tinted at random."""
    num_scenes = len(draws)
    sign = np.where(draws[:, :1] < 0.5, -1.0, 1.0)
    middle = 0.5 + (draws[:, 1:2] - 0.5) * 0.2
    tint = draws[:, 2:].reshape(num_scenes, -1, 3) * 2 - 1
    # Brightness, and with it contrast, must not depend on the tint.
    tint = (tint - (tint[..., :1] + tint[..., 1:2] + tint[..., 2:]) / 3) * options.colour / 2
    ground = (middle - sign * options.contrast / 2)[:, None] + tint[:, :1]
    ink = (middle + sign * options.contrast / 2)[:, None] + tint[:, 1:]
    patches = ground[:, None] + (texture - 0.5) * options.texture
    return {
        "ink": np.clip(ink, 0, 1).astype(np.float32),
        "ground": np.clip(patches, 0, 1).astype(np.float32),
    }


@functools.cache
def _padded_glyphs() -> NDArray[np.float32]:
    """float32, the glyphs in 0..1 with a border of nothing, flat."""
    ink = glyphs()[0].astype(np.float32) / np.float32(16)
    return np.pad(ink, ((0, 0), (1, 1), (1, 1))).ravel()


def _opacity(plan: _Plan, slot: int, size: int) -> NDArray[np.float32]:
    """float32 ``[scenes, height, width]``: how much of each pixel the glyph in ``slot`` covers.

    Bilinear interpolation of the turned glyph, steepened so that strokes have an edge.
    """
    wide = CELLS + 2
    # tan(angle / 2) gives sine and cosine by division alone, the same on every machine.
    half = plan.tilt[:, slot]
    cosine, sine = (1 - half * half) / (1 + half * half), 2 * half / (1 + half * half)
    scale = CELLS / plan.size[:, slot]
    steps = np.arange(size, dtype=np.float32) + np.float32(0.5)
    across = (steps - plan.centre[:, slot, :1])[:, None, :] * scale[:, None, None]
    down = (steps - plan.centre[:, slot, 1:])[:, :, None] * scale[:, None, None]
    middle = np.float32((wide - 1) / 2)
    limit = np.float32(wide - 1.001)
    x = np.clip(across * cosine[:, None, None] + down * sine[:, None, None] + middle, 0, limit)
    y = np.clip(down * cosine[:, None, None] - across * sine[:, None, None] + middle, 0, limit)
    left, top = x.astype(np.int32), y.astype(np.int32)
    x -= left
    y -= top
    start = (plan.glyph[:, slot] * (wide * wide)).astype(np.int32)[:, None, None] + top * wide + left
    table = _padded_glyphs()
    upper = table[start] * (1 - x) + table[start + 1] * x
    lower = table[start + wide] * (1 - x) + table[start + wide + 1] * x
    ink = (upper * (1 - y) + lower * y) * 2 - np.float32(0.5)
    return np.asarray(np.clip(ink, 0, 1), dtype=np.float32)


def _visible(plan: _Plan, options: SimpleNamespace) -> tuple[NDArray[np.bool_], Ints, Ints]:
    """Which glyphs stay, and where their visible ink lies.

    From the top down, a glyph stays if at least ``min_visible`` of its ink is not covered
    by glyphs that stay.

    Returns:
        bool ``[scenes, slots]``; int64 ``[scenes, slots, 4]`` boxes (x, y, width, height);
        int64 ``[scenes, slots]`` visible pixels.
    """
    size, shape = options.image_size, plan.drawn.shape
    stays = np.zeros(shape, dtype=np.bool_)
    boxes, areas = np.zeros((*shape, 4), dtype=np.int64), np.zeros(shape, dtype=np.int64)
    covered = np.zeros((shape[0], size, size), dtype=np.bool_)
    for slot in reversed(range(shape[1])):
        some = np.flatnonzero(plan.drawn[:, slot])
        ink = _opacity(plan.take(some), slot, size) > 0.5
        shown = ink & ~covered[some]
        total, area = ink.sum(axis=(1, 2)), shown.sum(axis=(1, 2))
        keep = (area > 0) & (area >= options.min_visible * total)
        covered[some[keep]] |= ink[keep]
        stays[some[keep], slot] = True
        areas[some[keep], slot] = area[keep]
        boxes[some[keep], slot] = tight_boxes(shown[keep])
    return stays, boxes, areas


def _paint(plan: _Plan, options: SimpleNamespace) -> NDArray[np.uint8]:
    """uint8 ``[scenes, height, width, 3]``."""
    size = options.image_size
    # Channels come first until the end: NumPy is slow along a last axis of three.
    canvas = _background(plan.ground, size)
    for slot in range(plan.drawn.shape[1]):
        some = np.flatnonzero(plan.drawn[:, slot])
        part = plan.take(some)
        opacity = _opacity(part, slot, size)[:, None]
        under = canvas[some]
        canvas[some] = under + opacity * (part.ink[:, slot, :, None, None] - under)
    if options.noise > 0:
        canvas += np.float32(options.noise) * _noise(options, plan, size)
    pixels = (np.clip(canvas, 0, 1) * 255 + np.float32(0.5)).astype(np.uint8)
    return np.ascontiguousarray(np.moveaxis(pixels, 1, -1))


def _background(ground: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Patches interpolated bilinearly to float32 ``[scenes, 3, height, width]``."""
    corners = np.moveaxis(ground, -1, 1)
    place = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(GRID / size)
    first = place.astype(np.int64)
    part = place - first.astype(np.float32)
    tall = corners[:, :, first] * (1 - part)[:, None] + corners[:, :, first + 1] * part[:, None]
    return np.asarray(tall[..., first] * (1 - part) + tall[..., first + 1] * part, dtype=np.float32)


def _noise(options: SimpleNamespace, plan: _Plan, size: int) -> NDArray[np.float32]:
    """float32 ``[scenes, 3, height, width]``: triangular noise of mean zero and variance one.

    One draw gives six bytes to a pixel; a channel is the sum of two of them.
    """
    draws = (_uniforms(options, "noise", plan.key, size, size) * 2.0**48).astype("<u8")
    pairs = draws.view(np.uint8).reshape(*draws.shape, 4, 2)
    total = np.stack([pairs[..., channel, 0].astype(np.float32) + pairs[..., channel, 1] for channel in range(3)], 1)
    return (total - np.float32(255)) * np.float32(math.sqrt(6) / 256)


class _Scenes(NamedTuple):
    """All scenes of one data set, planned but not painted; hidden glyphs are taken out already."""

    image_ids: list[str]
    splits: list[str]
    owners: Ints
    plan: _Plan
    objects: Objects

    def labels(self) -> NDArray[np.int8]:
        """int8 ``[scenes, labels]``: exactly what is drawn."""
        labels = np.zeros((len(self.image_ids), NUM_LABELS), dtype=np.int8)
        labels[self.objects.row, self.objects.label] = PRESENT
        return labels


def _scenes(options: SimpleNamespace) -> _Scenes:
    sizes = owner_sizes(
        stream(options.seed, "multidigits/sizes"), options.num_owners, options.num_train, options.owner_spread
    )
    owners = np.repeat(np.arange(options.num_owners), sizes)
    within = np.arange(options.num_train) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    counts = (options.num_train, options.num_val, options.num_test)
    splits = np.repeat(np.arange(3), counts)
    index = np.concatenate([within, np.arange(options.num_val), np.arange(options.num_test)])
    owners = np.concatenate([owners, np.full(sum(counts[1:]), NO_OWNER)])
    keys = (splits << 60 | np.maximum(owners, 0) << 32 | index).astype(np.uint64)
    mixtures = owner_mixtures(
        options.seed, "multidigits/mixture", options.num_owners, np.full(options.num_contexts, options.context_alpha)
    )
    even = np.full((1, options.num_contexts), 1 / options.num_contexts)
    # NO_OWNER is -1: it picks the last row.
    plan = _plan(options, keys, splits, np.concatenate([mixtures, even])[owners])
    parts = [_visible(plan.take(rows), options) for rows in _blocks(np.arange(len(keys)), options)]
    stays, boxes, areas = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    row, slot = np.nonzero(stays)
    objects = Objects(
        row,
        plan.label[row, slot].astype(np.int16),
        boxes[row, slot].astype(np.float32),
        areas[row, slot].astype(np.float32),
    )
    split_names = [SPLITS[split] for split in splits.tolist()]
    return _Scenes(_image_ids(split_names, owners, index), split_names, owners, plan._replace(drawn=stays), objects)


def _image_ids(splits: list[str], owners: Ints, index: Ints) -> list[str]:
    rows = zip(splits, owners.tolist(), index.tolist(), strict=True)
    return [f"{s}-{i:06}" if o == NO_OWNER else f"{s}-{o:05}-{i:06}" for s, o, i in rows]


def _blocks(rows: Ints, options: SimpleNamespace) -> list[Ints]:
    """Pieces small enough to draw at once."""
    step = max(1, BLOCK_PIXELS // options.image_size**2)
    return [rows[start : start + step] for start in range(0, len(rows), step)]


def _check(options: SimpleNamespace) -> None:
    low, high = options.glyph_size
    smallest = MIN_PIXELS / options.image_size
    if not smallest <= low <= high <= 1:
        msg = (
            f"Expected glyph_size of multidigits to rise from at least {smallest:.3g} ({MIN_PIXELS:.0f} of "
            f"{options.image_size} pixels) to at most 1, got ({low}, {high}). Enlarge glyph_size or image_size."
        )
        raise InputError(msg)
    if options.min_glyphs > options.max_glyphs:
        msg = (
            f"Expected min_glyphs of multidigits to be at most max_glyphs ({options.max_glyphs}), "
            f"got {options.min_glyphs}. Lower it."
        )
        raise InputError(msg)
    if options.num_owners > options.num_train:
        msg = (
            f"Expected num_owners of multidigits to be at most num_train ({options.num_train}), "
            f"got {options.num_owners}. Every owner needs an image."
        )
        raise InputError(msg)


Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Images = Annotated[int, Field(ge=0, lt=1_000_000)]


def multidigits(
    *,
    num_train: Annotated[int, Field(ge=1, lt=1_000_000)] = 6000,
    num_val: Images = 600,
    num_test: Images = 1500,
    image_size: Annotated[int, Field(ge=8, le=512)] = 32,
    min_glyphs: Annotated[int, Field(ge=0, le=NUM_LABELS)] = 1,
    max_glyphs: Annotated[int, Field(ge=1, le=NUM_LABELS)] = 4,
    glyph_size: tuple[Fraction, Fraction] = (0.35, 0.55),
    rotation: Annotated[float, Field(ge=0, le=45)] = 15.0,
    max_overlap: Fraction = 0.1,
    min_visible: Annotated[float, Field(gt=0, le=1)] = 0.6,
    contrast: Annotated[float, Field(ge=0.1, le=0.9)] = 0.5,
    colour: Fraction = 0.4,
    texture: Fraction = 0.3,
    noise: Fraction = 0.04,
    repeat_probability: Annotated[float, Field(ge=0, le=0.95)] = 0.1,
    num_contexts: Annotated[int, Field(ge=1, le=1000)] = 5,
    context_labels: Annotated[int, Field(ge=1, le=NUM_LABELS)] = 4,
    context_strength: Annotated[float, Field(ge=0, le=0.95)] = 0.6,
    num_owners: Annotated[int, Field(ge=1, lt=100_000)] = 100,
    owner_spread: Annotated[float, Field(ge=0, le=3)] = 0.5,
    context_alpha: Annotated[float, Field(ge=0.01, le=1e6)] = 0.3,
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0,
) -> Dataset:
    """Scenes of real handwritten digits: ten labels, contexts, owners and boxes, no download.

    Args:
        num_train: training images of all owners together.
        num_val: validation images; like the test images they belong to no owner.
        num_test: test images.
        image_size: height and width in pixels.
        min_glyphs: fewest glyphs placed in a scene (0 allows empty scenes).
        max_glyphs: most glyphs placed in a scene; the count is uniform in between. Hidden
            glyphs are taken out afterwards.
        glyph_size: smallest and largest side of a glyph's square, as a fraction of the image.
        rotation: largest tilt to either side, degrees.
        max_overlap: wanted limit on the shared fraction of two glyphs' squares; exceeded
            where a crowded scene leaves no room.
        min_visible: a glyph stays if at least this fraction of its ink is visible.
        contrast: difference in brightness between ink and background, of the full range.
        colour: strength of the tints; 0 is grey.
        texture: range of the background's unevenness, of the full range.
        noise: standard deviation of pixel noise, of the full range.
        repeat_probability: chance that a glyph after the first repeats an earlier glyph's
            label; otherwise labels of a scene differ.
        num_contexts: hidden contexts.
        context_labels: labels that each context favours.
        context_strength: share of a context's preference that goes to its favoured labels;
            0 makes all labels equally likely everywhere.
        num_owners: owners of training images; each has at least one.
        owner_spread: standard deviation of the logarithm of owner sizes; 0 makes them equal.
        context_alpha: Dirichlet concentration per context of an owner's mixture; small
            values give owners of one context each.
        seed: of everything except which glyphs belong to which split.
    """
    identity: dict[str, Any] = {**locals(), "glyph_size": list(glyph_size)}
    options = SimpleNamespace(**identity)
    _check(options)
    scenes = functools.cache(lambda: _scenes(options))

    def table() -> Table:
        planned = scenes()
        return Table(planned.image_ids, planned.splits, planned.labels(), planned.owners, planned.objects)

    def images(rows: Ints) -> NDArray[np.uint8]:
        parts = [_paint(scenes().plan.take(block), options) for block in _blocks(rows, options)]
        return np.concatenate([np.empty((0, image_size, image_size, 3), dtype=np.uint8), *parts])

    return Dataset(
        name="multidigits",
        version=VERSION,
        identity={**identity, "glyphs": GLYPHS_SHA256},
        label_names=LABEL_NAMES,
        image_shape=(image_size, image_size, 3),
        table=table,
        image=lambda row: images(np.array([row], dtype=np.int64))[0],
        licence="glyphs as bundled with scikit-learn (its load_digits page names the source)",
        images=images,
    )
