"""Everything that one configuration decides before pixels: labels, objects, truth, annotations."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from fedmlic.dataset import DIFFICULT_ONLY, NO_OWNER, SPLITS, Flags, Objects, Table
from fedmlic.labels import ABSENT, PRESENT, UNCERTAIN, UNKNOWN
from fedmlic.scenes.census import Census, census
from fedmlic.scenes.cooccurrence import (
    Dependence,
    apply_rules,
    check_rules,
    context_loadings,
    dependence,
    noise_spread,
)
from fedmlic.scenes.layout import Layout, layout, placed
from fedmlic.scenes.marginals import balanced, prevalences
from fedmlic.scenes.normal import distribution
from fedmlic.scenes.owners import Owners, Turned, annotated, certain_from, owners, turned
from fedmlic.scenes.visibility import Visibility, visibility
from fedmlic.scenes.vocabulary import SCENE_LABELS, Vocabulary, vocabulary
from fedmlic.seeds import entry_uniforms

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedmlic.scenes.options import Options

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]
    Bools = NDArray[np.bool_]

ROWS_AT_ONCE = 512
"""Images laid out together."""

ATTEMPTS = 8
"""Times an image is laid out anew because a label would be hidden."""

DRAWS = 400
"""Times an image that must not be empty is drawn anew."""


class Draw(NamedTuple):
    """What should be in every image, before anything lies anywhere.

    Attributes:
        vocabulary: what labels look like.
        owners: who owns images.
        census: which images there are.
        prevalences: float64 ``[concepts + scene labels]``, wanted over all owners.
        context: int64 ``[images]``, the (first) hidden context of each.
        wanted: bool ``[images, concepts + scene labels]``, drawn by the copula.
    """

    vocabulary: Vocabulary
    owners: Owners
    census: Census
    prevalences: Floats
    context: Ints
    wanted: Bools


class World(NamedTuple):
    """What is in every image.

    Attributes:
        options: the configuration.
        vocabulary: what labels look like.
        owners: who owns images.
        census: which images there are.
        prevalences: float64 ``[concepts + scene labels]``, wanted over all owners.
        context: int64 ``[images]``, the (first) hidden context of each.
        wanted: bool ``[images, concepts + scene labels]``, drawn by the copula.
        shown: bool, likewise: what can be seen, the truth.
        objects: of all images, those taken out excepted.
        visibility: of these objects.
    """

    options: Options
    vocabulary: Vocabulary
    owners: Owners
    census: Census
    prevalences: Floats
    context: Ints
    wanted: Bools
    shown: Bools
    objects: Layout
    visibility: Visibility


class _Law(NamedTuple):
    """How labels of images are drawn: of owners, and of nobody."""

    options: Options
    nobodys_options: Options
    owners: Owners
    common: Dependence
    nobodys: Dependence
    turned: Turned | None


Arrays = TypeVar("Arrays", Layout, Visibility)


def joined(*parts: Arrays) -> Arrays:
    """One after another."""
    return type(parts[0])._make(np.concatenate(arrays) for arrays in zip(*parts, strict=True))


def draw(options: Options) -> Draw:
    """Draw the labels of every image.

    Raises:
        InputError: knobs that do not fit together.
    """
    check_rules(options)
    words = vocabulary(options)
    target = prevalences(options, words.group)
    group = owners(options, len(target))
    rows = census(options, group)
    common = dependence(options, target)
    nobodys_options = _independent(options) if options.test == "independent" else options
    nobodys = common
    if options.test in ("balanced", "independent"):
        nobodys = dependence(nobodys_options, balanced(options) if options.test == "balanced" else target)
    law = _Law(
        options, nobodys_options, group, common, nobodys, turned(options, group, context_loadings(options), common)
    )
    parts = [_labels(law, rows.take(block)) for block in _blocks(len(rows.key))]
    context, wanted = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Draw(words, group, rows, target, context, wanted)


def _independent(options: Options) -> Options:
    """The same frequencies without contexts and rules, and empty images as chance has them.

    What stands beside a label then says nothing of it: an image that must not be empty would have a label the more
    surely the fewer others it has.
    """
    return replace(options, correlation=0.0, attract=(), exclude=(), determine=(), empty_fraction=-1.0)


def world(options: Options) -> World:
    """Draw labels and lay out objects of every image; no pixel is painted.

    Raises:
        InputError: knobs that do not fit together.
    """
    drawn = draw(options)
    parts = []
    for block in _blocks(len(drawn.census.key)):
        present = drawn.wanted[block, : options.num_labels]
        objects, seen = _objects(options, drawn.vocabulary, drawn.census.key[block], drawn.context[block], present)
        parts.append((objects._replace(row=objects.row + block.start), seen))
    objects, seen = joined(*(part[0] for part in parts)), joined(*(part[1] for part in parts))
    shown = drawn.wanted.copy()
    shown[:, : options.num_labels] = False
    shown[objects.row[seen.seen], objects.concept[seen.seen]] = True
    return World(options, *drawn, shown, objects, seen)


def _blocks(count: int) -> list[slice]:
    return [slice(start, start + ROWS_AT_ONCE) for start in range(0, count, ROWS_AT_ONCE)]


def _labels(law: _Law, rows: Census) -> tuple[Ints, Bools]:
    """The context of each image, and bool ``[images, labels]``: what should be in it."""
    options = law.options
    context, present = _draw(law, rows, np.arange(len(rows.key)), 0)
    free = (rows.owner == NO_OWNER) & (options.test == "independent")
    if options.empty_fraction >= 0:
        blank = entry_uniforms(options.seed, "scenes/empty", 0, rows.key, 1)[:, 0] < options.empty_fraction
        blank &= ~free
        for attempt in range(1, DRAWS):
            again = np.flatnonzero(~blank & ~free & ~present.any(axis=1))
            if not len(again):
                break
            context[again], present[again] = _draw(law, rows, again, attempt)
        present[blank] = False
    if options.attract or options.exclude or options.determine:
        uniforms = entry_uniforms(options.seed, "scenes/rules", 0, rows.key, max(1, len(options.attract)))
        present = np.where(free[:, None], present, apply_rules(options, present, uniforms))
    return context, present


def _draw(law: _Law, rows: Census, chosen: Ints, attempt: int) -> tuple[Ints, Bools]:
    """Contexts and labels of the images ``chosen``, before rules."""
    options = law.options
    key, owner = rows.key[chosen], rows.owner[chosen]
    contexts = law.common.contexts
    even = np.full((1, options.num_contexts), 1 / options.num_contexts)
    # NO_OWNER is -1: it picks the last row.
    steps = np.cumsum(np.concatenate([law.owners.mixture, even]), axis=1)[owner]
    draws = entry_uniforms(options.seed, "scenes/context", attempt, key, contexts.shape[1])
    picked = (steps[:, None, :] <= draws[:, :, None] * steps[:, None, -1:]).sum(axis=2)
    picked = np.minimum(picked, options.num_contexts - 1)
    mood = picked[:, 0] if contexts.shape[1] == 1 else picked[:, 0] * options.num_contexts + picked[:, 1]
    uniforms = entry_uniforms(options.seed, "scenes/labels", attempt, key, len(law.common.thresholds))
    return picked[:, 0], uniforms < _probabilities(law, owner, mood)


def _probabilities(law: _Law, owner: Ints, mood: Ints) -> Floats:
    """float64 ``[images, labels]``: how likely each label is, given the owner and the mood."""
    options, nobody = law.options, owner == NO_OWNER
    score = np.where(
        nobody[:, None],
        law.nobodys.loadings[:, mood].T - law.nobodys.thresholds,
        law.common.loadings[:, mood].T - law.common.thresholds,
    )
    if law.turned is not None:
        own = law.turned.loadings[owner, :, mood] - law.turned.thresholds[owner]
        score = np.where(nobody[:, None], score, own)
    score += np.where(nobody[:, None], 0.0, law.owners.preference[owner])
    spread = np.where(
        nobody,
        noise_spread(law.nobodys_options, with_preference=True),
        noise_spread(options, with_preference=False),
    )
    return distribution(score / spread[:, None])


def _objects(
    options: Options, words: Vocabulary, keys: NDArray[np.uint64], context: Ints, present: Bools
) -> tuple[Layout, Visibility]:
    """Objects of some images; an image that would hide a label is laid out anew, a few times."""
    objects = layout(options, keys, context, present)
    seen = visibility(options, objects, words.shape[objects.concept], len(keys))
    for attempt in range(1, ATTEMPTS):
        shown = np.zeros_like(present)
        shown[objects.row[seen.seen], objects.concept[seen.seen]] = True
        failed = np.asarray((present & ~shown).any(axis=1))
        if not failed.any():
            break
        again = failed[objects.row]
        moved = placed(options, objects.take(again), context, attempt)
        seen_again = visibility(options, moved, words.shape[moved.concept], len(keys))
        objects, seen = joined(objects.take(~again), moved), joined(seen.take(~again), seen_again)
        order = np.argsort(objects.row, kind="stable")
        objects, seen = objects.take(order), seen.take(order)
    if options.hidden == "remove":
        objects, seen = objects.take(seen.seen), seen.take(seen.seen)
    return objects, seen


def _columns(scenes: World, row: Ints, concept: Ints) -> Ints:
    """int64 ``[objects, columns of one]``: what objects of these images and concepts make present."""
    words = scenes.vocabulary
    if scenes.options.test != "unseen-combinations":
        return words.columns[concept]
    nobodys = scenes.census.owner[row] == NO_OWNER
    return np.where(nobodys[:, None], words.unseen_columns[concept], words.columns[concept])


def truth(scenes: World) -> NDArray[np.int8]:
    """int8 ``[images, columns]``: exactly what can be seen."""
    words, options = scenes.vocabulary, scenes.options
    labels = np.full((len(scenes.shown), len(words.names)), ABSENT, dtype=np.int8)
    row, concept = np.nonzero(scenes.shown[:, : options.num_labels])
    for column in _columns(scenes, row, concept).T:
        labels[row, column] = PRESENT
    labels[:, words.scene_columns] = np.where(scenes.shown[:, options.num_labels :], PRESENT, ABSENT)
    return labels


def observed_labels(scenes: World, labels: NDArray[np.int8]) -> NDArray[np.int8]:
    """What owners wrote down of the training images: never wrong, but not everything and not always certain."""
    options, rows = scenes.options, scenes.census
    train = np.flatnonzero(rows.split == SPLITS.index("train"))
    observed, owner = labels.copy(), rows.owner[train]
    if options.uncertain_below:
        best = np.zeros(labels.shape)
        seen, objects = scenes.visibility, scenes.objects
        share = np.where(seen.seen, seen.area / np.maximum(seen.total, 1), 0)
        for column in _columns(scenes, objects.row, objects.concept).T:
            np.maximum.at(best, (objects.row, column), share)
        best[:, scenes.vocabulary.scene_columns] = 1
        limit = certain_from(options, scenes.owners.number)[owner][:, None]
        observed[train] = np.where((labels[train] == PRESENT) & (best[train] < limit), UNCERTAIN, labels[train])
    if options.annotated_fraction < 1:
        looked = annotated(options, scenes.owners.number, labels.shape[1])[owner]
        observed[train] = np.where(looked, observed[train], UNKNOWN)
    return observed


def _entries(scenes: World, chosen: Bools) -> tuple[Ints, Ints, Ints]:
    """Objects, rows and columns of the chosen objects, one entry per column that an object makes present."""
    columns = _columns(scenes, scenes.objects.row[chosen], scenes.objects.concept[chosen])
    number = np.repeat(np.flatnonzero(chosen), columns.shape[1])
    return number, scenes.objects.row[number], columns.ravel()


def table(scenes: World) -> Table:
    """Rows of the data set; the truth, or what owners wrote down of it.

    Objects of entries that are not known to be present are left out with them.
    """
    options, rows = scenes.options, scenes.census
    exact = truth(scenes)
    labels = observed_labels(scenes, exact)
    number, row, column = _entries(scenes, scenes.visibility.seen)
    kept = labels[row, column] == PRESENT
    number, row, column = number[kept], row[kept], column[kept]
    objects = Objects(
        row,
        column.astype(np.int16),
        scenes.visibility.box[number].astype(np.float32),
        scenes.visibility.area[number].astype(np.float32),
    )
    return Table(
        image_ids=_image_ids(scenes),
        splits=[SPLITS[split] for split in rows.split.tolist()],
        labels=labels,
        owners=rows.owner,
        objects=objects,
        owner_names=[f"u{number:05}" for number in scenes.owners.number.tolist()],
        report=_report(scenes),
        flags=_flags(scenes, exact) if options.hidden == "draw" else None,
    )


def _image_ids(scenes: World) -> list[str]:
    rows, number = scenes.census, scenes.owners.number.tolist()
    pairs = zip(rows.owner.tolist(), rows.place.tolist(), strict=True)
    return [f"{scenes.options.test}-{i:06}" if o == NO_OWNER else f"u{number[o]:05}-{i:06}" for o, i in pairs]


def _flags(scenes: World, exact: NDArray[np.int8]) -> Flags:
    """Absent entries with an object that is drawn but hidden too much to count."""
    _, row, column = _entries(scenes, ~scenes.visibility.seen)
    places = np.unique(np.stack([row, column], axis=1), axis=0)
    places = places[exact[places[:, 0], places[:, 1]] == ABSENT]
    bits = np.full(len(places), DIFFICULT_ONLY, dtype=np.uint8)
    return Flags(places[:, 0], places[:, 1].astype(np.int16), bits)


def _report(scenes: World) -> dict[str, object]:
    return {
        "labels": [*scenes.vocabulary.concept_names, *SCENE_LABELS[: scenes.options.num_scene_labels]],
        "wanted_prevalence": [round(value, 6) for value in scenes.prevalences.tolist()],
        "present_labels_lost_to_occlusion": int((scenes.wanted & ~scenes.shown).sum()),
        "objects": len(scenes.objects.row),
        "owners": len(scenes.owners.number),
    }
