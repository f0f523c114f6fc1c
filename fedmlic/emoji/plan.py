"""What is in every image, before any pixel: owners, contexts, emoji, places, and what of them can be seen."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedmlic.dataset import NO_OWNER, SPLITS, Objects, Table
from fedmlic.emoji.art import ATTRIBUTION_FILE, Art, Place, Pyramid, pictures, stamp
from fedmlic.emoji.kinds import KINDS, NUM_FOLDS, Cast, cast, groups
from fedmlic.errors import InputError, listing, nearest
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
    from collections.abc import Callable

    from numpy.typing import NDArray

    from fedmlic.emoji.options import Options

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

OPAQUE = 0.5
"""A pixel belongs to an object where its opacity is above this."""


class Plan(NamedTuple):
    """Everything drawn for ``n`` scenes; things without a label lie below all objects, the last object on top.

    Attributes:
        key: uint64 ``[n]``, the scene's own number.
        owner: int64 ``[n]``, or ``NO_OWNER``.
        context: int64 ``[n]``.
        vendor: int64 ``[n]``, whose pictures.
        label: int64 ``[n, slots]``; the number of labels for a thing without one.
        emoji: int64 ``[n, slots]``, place in the cast.
        drawn: bool ``[n, slots]``.
        centre: float32 ``[n, slots, 2]``, x and y in pixels.
        size: float32 ``[n, slots]``, side in pixels.
        tilt: float32 ``[n, slots]``, tangent of half the angle.
    """

    key: NDArray[np.uint64]
    owner: Ints
    context: Ints
    vendor: Ints
    label: Ints
    emoji: Ints
    drawn: NDArray[np.bool_]
    centre: NDArray[np.float32]
    size: NDArray[np.float32]
    tilt: NDArray[np.float32]

    def place(self, row: int, slot: int) -> Place:
        """Where an object lies."""
        x, y = self.centre[row, slot].tolist()
        return Place(x, y, float(self.size[row, slot]), float(self.tilt[row, slot]))


class Stage(NamedTuple):
    """What all scenes are drawn from.

    Attributes:
        options: the configuration.
        art: the pictures.
        cast: the emoji, in the order of the plan's numbers.
        picture: decodes one, by vendor and emoji.
    """

    options: Options
    art: Art
    cast: Cast
    picture: Callable[[int, int], Pyramid]


class Scenes(NamedTuple):
    """All scenes of a data set.

    Attributes:
        stage: what they are drawn from.
        plan: of all of them; hidden objects are taken out already.
        split: int64 ``[n]``, place in ``SPLITS``.
        place: int64 ``[n]``, number among the owner's scenes, or among those of the split.
        objects: what can be seen.
        num_hidden: objects that were taken out.
    """

    stage: Stage
    plan: Plan
    split: Ints
    place: Ints
    objects: Objects
    num_hidden: int


def stage(options: Options, art: Art) -> Stage:
    """Choose the cast.

    Raises:
        InputError: a kind lacks emoji in a split; an unknown vendor.
    """
    names = [vendor.name for vendor in art.vendors]
    if options.held_out_vendor and options.held_out_vendor not in names:
        msg = (
            f"Expected held_out_vendor of emoji_scenes to be a vendor, got {options.held_out_vendor!r}. "
            f"{nearest(options.held_out_vendor, names)}"
        )
        raise InputError(msg)
    if options.held_out_vendor and len(names) == 1:
        msg = f"Expected another vendor than {names[0]} to train on, got none. Give a folder as vendors."
        raise InputError(msg)
    players = cast(art.emoji, options.num_labels)
    files = [
        {number: vendor.files[code] for number, code in enumerate(players.codes) if code in vendor.files}
        for vendor in art.vendors
    ]
    return Stage(options, art, players, pictures(files))


def scenes(the: Stage) -> Scenes:
    """Draw all scenes and find what can be seen; no pixel is painted.

    Raises:
        InputError: a kind lacks emoji in a split.
    """
    options = the.options
    sizes = owner_sizes(
        stream(options.seed, "emoji/sizes"), options.num_owners, options.num_train, options.owner_spread
    )
    counts = (options.num_train, options.num_val, options.num_test)
    split = np.repeat(np.arange(3), counts)
    within = np.arange(options.num_train) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    place = np.concatenate([within, np.arange(options.num_val), np.arange(options.num_test)])
    owner = np.concatenate([np.repeat(np.arange(options.num_owners), sizes), np.full(sum(counts[1:]), NO_OWNER)])
    key = (split << 60 | np.maximum(owner, 0) << 32 | place).astype(np.uint64)
    plan = _plan(the, key, owner, split)
    stays, objects = _visible(the, plan)
    hidden = int((plan.drawn & ~stays).sum())
    return Scenes(the, plan._replace(drawn=stays), split, place, objects, hidden)


def _plan(the: Stage, key: NDArray[np.uint64], owner: Ints, split: Ints) -> Plan:
    options, slots = the.options, the.options.slots

    def uniforms(what: str, *shape: int) -> Floats:
        # Each purpose draws its own numbers, so one knob leaves the others alone.
        return entry_uniforms(options.seed, f"emoji/{what}", 0, key, math.prod(shape)).reshape(len(key), *shape)

    weights = _context_weights(options)
    contexts = len(weights)
    mixtures = owner_mixtures(
        options.seed, "emoji/mixture", options.num_owners, np.full(contexts, options.context_alpha)
    )
    # NO_OWNER is -1: it picks the last row.
    context = pick(
        np.concatenate([mixtures, np.full((1, contexts), 1 / contexts)])[owner], uniforms("context", 1)[:, 0]
    )
    objects = options.max_objects
    label = np.full((len(key), slots), options.num_labels, dtype=np.int64)
    label[:, :objects] = pick_labels(
        weights[context], uniforms("label", objects), uniforms("repeat", objects, 2), options.repeat_probability
    )
    vendor = _vendors(the, owner, split, uniforms("vendor", 1)[:, 0])
    low, high = (fraction * options.image_size for fraction in options.object_size)
    size = low + uniforms("size", slots) * (high - low)
    centre = free_places(size, uniforms("place", slots, TRIES, 2), options.image_size, options.max_overlap)
    half_turn = math.tan(math.radians(options.rotation) / 2)
    return Plan(
        key=key,
        owner=owner,
        context=context,
        vendor=vendor,
        label=label,
        emoji=_emoji(the, split, vendor, label, uniforms("emoji", slots)),
        drawn=_drawn(options, uniforms("count", 2)),
        centre=centre.astype(np.float32),
        size=size.astype(np.float32),
        tilt=((2 * uniforms("tilt", slots) - 1) * half_turn).astype(np.float32),
    )


def _context_weights(options: Options) -> Floats:
    """float64 ``[contexts, labels]``: how likely each context shows each label; rows sum to one."""
    weights = np.full((len(groups(options.num_labels)), options.num_labels), 1 - options.context_strength)
    weights /= options.num_labels
    for context, group in enumerate(groups(options.num_labels)):
        own = [label for label, kind in enumerate(KINDS[: options.num_labels]) if kind.group == group]
        weights[context, own] += options.context_strength / len(own)
    return weights


def _drawn(options: Options, uniforms: Floats) -> NDArray[np.bool_]:
    """Bool ``[scenes, slots]``: counts of objects and of things without a label are uniform."""
    slot = np.arange(options.slots)
    objects = options.min_objects + np.floor(uniforms[:, :1] * (options.max_objects - options.min_objects + 1))
    clutter = options.max_objects + np.floor(uniforms[:, 1:] * (options.clutter + 1))
    return np.asarray((slot < objects) | ((slot >= options.max_objects) & (slot < clutter)))


def _vendors(the: Stage, owner: Ints, split: Ints, uniforms: Floats) -> Ints:
    """int64 ``[scenes]``: an owner has one vendor; scenes of nobody have any, in the test the one held out."""
    options = the.options
    names = [vendor.name for vendor in the.art.vendors]
    training = np.array([place for place, name in enumerate(names) if name != options.held_out_vendor])
    vendor = training[np.floor(uniforms * len(training)).astype(np.int64)]
    own = owner != NO_OWNER
    vendor[own] = owner_vendors(options, training)[owner[own]]
    if options.held_out_vendor:
        vendor[split == SPLITS.index("test")] = names.index(options.held_out_vendor)
    return np.asarray(vendor)


def owner_vendors(options: Options, training: Ints) -> Ints:
    """int64 ``[owners]``: the vendors ``training`` dealt as evenly as possible, in random order."""
    order = stream(options.seed, "emoji/owners' vendors").permutation(options.num_owners)
    return training[order % len(training)]


def _emoji(the: Stage, split: Ints, vendor: Ints, label: Ints, uniforms: Floats) -> Ints:
    """int64 ``[scenes, slots]``: emoji of the label, of the split's folds, that the vendor has."""
    folds = splits_of_folds(the.options.fold)[the.cast.fold]
    labels = the.options.num_labels + 1
    pools: list[Ints] = []
    for vendors in the.art.vendors:
        has = np.array([code in vendors.files for code in the.cast.codes])
        pools += [
            np.flatnonzero(has & (folds == part) & (the.cast.kind == kind))
            for part in range(len(SPLITS))
            for kind in range(labels)
        ]
    sizes = np.array([len(pool) for pool in pools])
    pool = (vendor[:, None] * len(SPLITS) + split[:, None]) * labels + label
    _check_pools(the, np.unique(pool), sizes)
    start = (np.cumsum(sizes) - sizes)[pool]
    return np.asarray(np.concatenate(pools)[start + np.floor(uniforms * sizes[pool]).astype(np.int64)])


def splits_of_folds(fold: int) -> Ints:
    """int64 ``[folds]``, place in ``SPLITS``: one fold for testing, the next for validation.

    >>> splits_of_folds(4).tolist()
    [1, 0, 0, 0, 2]
    """
    split = np.zeros(NUM_FOLDS, dtype=np.int64)
    split[fold], split[(fold + 1) % NUM_FOLDS] = SPLITS.index("test"), SPLITS.index("val")
    return split


def _check_pools(the: Stage, used: Ints, sizes: Ints) -> None:
    """Raise ``InputError`` if there is nothing to draw for some label."""
    labels = the.options.num_labels + 1
    problems = []
    for pool in used[sizes[used] == 0].tolist():
        rest, label = divmod(pool, labels)
        vendor, part = divmod(rest, len(SPLITS))
        name = KINDS[label].name if label < labels - 1 else "things without a label"
        problems.append(f"none of {name!r} for split {SPLITS[part]} by {the.art.vendors[vendor].name}")
    if problems:
        raise listing("Expected emoji of every label for every split", problems)


def _visible(the: Stage, plan: Plan) -> tuple[NDArray[np.bool_], Objects]:
    """Which things stay, and where the visible pixels of objects lie.

    From the top down, an object stays if at least ``min_visible`` of its pixels are not covered by objects
    that stay. Things without a label always stay: they lie below everything.
    """
    options = the.options
    stays = plan.drawn.copy()
    found: list[tuple[int, int, NDArray[np.int64], int]] = []
    covered = np.zeros((options.image_size, options.image_size), dtype=np.bool_)
    for row in range(len(plan.key)):
        covered[:] = False
        seen = []
        for slot in reversed(np.flatnonzero(plan.drawn[row, : options.max_objects]).tolist()):
            picture = the.picture(int(plan.vendor[row]), int(plan.emoji[row, slot]))
            left, top, opacity = stamp(picture, plan.place(row, slot), options.image_size, opacity=True)
            ink = opacity[..., 0] > OPAQUE
            under = covered[top : top + ink.shape[0], left : left + ink.shape[1]]
            shown = ink & ~under
            area, total = int(shown.sum()), int(ink.sum())
            if area == 0 or area < options.min_visible * total:
                stays[row, slot] = False
                continue
            under |= ink
            seen.append((row, int(plan.label[row, slot]), tight_boxes(shown[None])[0] + [left, top, 0, 0], area))
        found += reversed(seen)
    rows, labels, boxes, areas = zip(*found, strict=True) if found else ((), (), (), ())
    objects = Objects(
        np.array(rows, dtype=np.int64),
        np.array(labels, dtype=np.int16),
        np.array(boxes, dtype=np.float32).reshape(-1, 4),
        np.array(areas, dtype=np.float32),
    )
    return stays, objects


def table(drawn: Scenes) -> Table:
    """Rows of the data set."""
    options, plan = drawn.stage.options, drawn.plan
    labels = np.zeros((len(plan.key), options.num_labels), dtype=np.int8)
    labels[drawn.objects.row, drawn.objects.label] = PRESENT
    splits = [SPLITS[split] for split in drawn.split.tolist()]
    rows = zip(splits, plan.owner.tolist(), drawn.place.tolist(), strict=True)
    vendors = [vendor.name for vendor in drawn.stage.art.vendors]
    own = plan.owner != NO_OWNER
    of_owner = dict(zip(plan.owner[own].tolist(), plan.vendor[own].tolist(), strict=True))
    return Table(
        image_ids=[f"{s}-{i:06}" if o == NO_OWNER else f"{s}-{o:05}-{i:06}" for s, o, i in rows],
        splits=splits,
        labels=labels,
        owners=plan.owner,
        objects=drawn.objects,
        owner_names=[f"{vendors[of_owner[owner]]}-{owner:05}" for owner in range(options.num_owners)],
        report=_report(drawn),
    )


def _report(drawn: Scenes) -> dict[str, object]:
    players, art = drawn.stage.cast, drawn.stage.art
    split = splits_of_folds(drawn.stage.options.fold)[players.fold]
    nameless = [vendor.name for vendor in art.vendors if not vendor.attribution]
    report: dict[str, object] = {
        "attribution": {vendor.name: vendor.attribution or "unknown" for vendor in art.vendors},
        "emoji": {
            kind.name: {
                part: int(((players.kind == label) & (split == number)).sum()) for number, part in enumerate(SPLITS)
            }
            for label, kind in enumerate(KINDS[: drawn.stage.options.num_labels])
        },
        "objects": len(drawn.objects.row),
        "objects_taken_out_because_hidden": drawn.num_hidden,
    }
    if nameless:
        report["warnings"] = [
            f"Nobody is named for the pictures of {name}: write author and licence to {ATTRIBUTION_FILE} in its folder."
            for name in nameless
        ]
    return report
