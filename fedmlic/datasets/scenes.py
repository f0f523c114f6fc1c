"""Procedural scenes: a laboratory in which every axis of heterogeneity turns alone.

Objects (a shape with a texture) lie on backgrounds, cover one another, and belong to owners.
Frequencies, co-occurrence, sizes, occlusion, looks, owners and annotations are each one knob, and
what is labelled is exactly what can be seen. Nothing is downloaded and nothing but NumPy draws.
It is an instrument, not a benchmark: numbers on it say something about methods under a
controlled difference, nothing about photographs.

Ideas taken: CLEVR (Johnson et al. 2017: properties, minimum of visible pixels, held-out
combinations), Multi-dSprites and Kubric (visibility, controlled shift), LEAF and FedProx
(separate knobs for differences of model and of input), FLAIR (Song et al. 2022: sizes of
users, two levels of labels, splits by user). The machinery is in ``fedmlic.scenes``.

Every image is a pure function of (version, knobs, owner, index). Knobs of the look change no
label and no box.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from fedmlic.dataset import Dataset, Table
from fedmlic.scenes import backgrounds
from fedmlic.scenes.cooccurrence import check_rules
from fedmlic.scenes.options import Options, check, resolve
from fedmlic.scenes.rendering import render
from fedmlic.scenes.vocabulary import MAX_LABELS, SCENE_LABELS, vocabulary
from fedmlic.scenes.world import table, world

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = "1"

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Amount = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Label = Annotated[int, Field(ge=0)]
Preset = Literal["tiny", "small", "medium", "flair-like", "coco-like", "voc-like", "nus-like"]


def scenes(
    *,
    preset: Preset = "small",
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0,
    image_size: Annotated[int, Field(ge=16, le=512)] | None = None,
    channels: Literal[1, 3] | None = None,
    num_labels: Annotated[int, Field(ge=2, le=MAX_LABELS)] | None = None,
    num_scene_labels: Annotated[int, Field(ge=0, le=len(SCENE_LABELS))] | None = None,
    num_coarse: Annotated[int, Field(ge=1, le=MAX_LABELS)] | None = None,
    level: Literal["fine", "coarse", "attributes"] | None = None,
    cardinality: Annotated[float, Field(gt=0, le=100)] | None = None,
    scene_cardinality: Annotated[float, Field(ge=0, le=len(SCENE_LABELS))] | None = None,
    zipf_exponent: Annotated[float, Field(ge=0, le=10)] | None = None,
    zipf_offset: Annotated[float, Field(ge=0, le=1000)] | None = None,
    imbalance_ratio: Annotated[float, Field(ge=0, le=1e6)] | None = None,
    max_prevalence: Annotated[float, Field(gt=0, lt=1)] | None = None,
    group_ranks: bool | None = None,
    empty_fraction: Annotated[float, Field(ge=-1, lt=1)] | None = None,
    num_contexts: Annotated[int, Field(ge=1, le=100)] | None = None,
    context_kind: Literal["hard", "soft"] | None = None,
    correlation: Annotated[float, Field(ge=0, le=0.95)] | None = None,
    attract: list[tuple[Label, Label, Share]] | None = None,
    exclude: list[tuple[Label, Label]] | None = None,
    determine: list[tuple[Label, Label, Label]] | None = None,
    extra_instances: Annotated[float, Field(ge=0, le=4)] | None = None,
    size_log_mean: Annotated[float, Field(ge=-5, le=-0.7)] | None = None,
    size_log_spread: Annotated[float, Field(ge=0, le=2)] | None = None,
    location_prior: bool | None = None,
    rotation: Annotated[float, Field(ge=0, le=45)] | None = None,
    max_objects: Annotated[int, Field(ge=1, le=100)] | None = None,
    occlusion: bool | None = None,
    min_visible: Share | None = None,
    min_pixels: Annotated[int, Field(ge=1, le=10_000)] | None = None,
    hidden: Literal["remove", "draw"] | None = None,
    colour_reliability: Share | None = None,
    background: Literal["plain", "textured", "photos"] | None = None,
    background_reliability: Share | None = None,
    illumination: Share | None = None,
    shadow_probability: Share | None = None,
    blur: Annotated[float, Field(ge=0, le=0.24)] | None = None,
    noise: Share | None = None,
    jpeg_quality: Annotated[int, Field(ge=0, le=100)] | None = None,
    num_images: Annotated[int, Field(ge=0, le=10_000_000)] | None = None,
    population: Annotated[int, Field(ge=1, le=10_000_000)] | None = None,
    num_owners: Annotated[int, Field(ge=0, le=1_000_000)] | None = None,
    owner_sizes: Literal["zipf-mandelbrot", "lognormal", "constant"] | None = None,
    size_exponent: Annotated[float, Field(gt=0, le=20)] | None = None,
    size_offset: Annotated[float, Field(ge=0, le=1000)] | None = None,
    owner_spread: Annotated[float, Field(ge=0, le=5)] | None = None,
    min_size: Annotated[int, Field(ge=1, le=1_000_000)] | None = None,
    max_size: Annotated[int, Field(ge=1, le=1_000_000)] | None = None,
    context_alpha: Annotated[float, Field(ge=0.01, le=1e6)] | None = None,
    label_preference: Annotated[float, Field(ge=0, le=5)] | None = None,
    cooccurrence_rotation: Share | None = None,
    style_strength: Annotated[float, Field(ge=0, le=3)] | None = None,
    annotated_fraction: Share | None = None,
    uncertain_below: Share | None = None,
    split_by: Literal["owner", "image"] | None = None,
    val_fraction: Annotated[float, Field(ge=0, le=0.9)] | None = None,
    test_fraction: Annotated[float, Field(ge=0, le=0.9)] | None = None,
    test: Literal["iid", "owners", "unseen-styles", "unseen-combinations", "balanced", "independent"] | None = None,
    num_test: Annotated[int, Field(ge=0, le=1_000_000)] | None = None,
    unseen_style_strength: Annotated[float, Field(ge=0, le=3)] | None = None,
) -> Dataset:
    """Procedural multi-label scenes with owners; each difference between owners is one knob.

    Every argument but ``preset`` and ``seed`` is optional: ``None`` is the preset's value. The
    page ``docs/datasets/scenes.md`` lists these. Labels in rules count from 0, objects' labels
    first and labels of whole scenes after them, whatever ``level`` shows.

    Args:
        preset: where all values start from.
        seed: of everything; the vocabulary is the same for every seed.
        image_size: height and width, pixels.
        channels: 3 (colour) or 1 (grey).
        num_labels: labels of objects, each a shape with a texture.
        num_scene_labels: labels of the whole scene (night, rain, ...), without boxes.
        num_coarse: groups of similar shapes, the parents of labels.
        level: columns: ``fine`` (one per label), ``coarse`` (one per group of shapes) or
            ``attributes`` (one per shape and one per texture).
        cardinality: mean number of object labels per image, over all owners.
        scene_cardinality: mean number of scene labels per image.
        zipf_exponent: frequency of the label of rank r is proportional to (r + offset) ** -exponent.
        zipf_offset: that offset.
        imbalance_ratio: most frequent over least frequent label; decides the exponent. 0: the exponent does.
        max_prevalence: no label is on a larger share of images.
        group_ranks: whether labels of one coarse group have neighbouring ranks, which makes
            groups as long-tailed as labels.
        empty_fraction: share of images without any label; -1 leaves it to chance.
        num_contexts: hidden contexts, equally likely over all owners.
        context_kind: an image has one context (``hard``) or mixes two draws (``soft``).
        correlation: share of a label's variance that its context explains.
        attract: rules (a, b, p): where a is present, b becomes present with probability p.
        exclude: rules (a, b): where a is present, b is not.
        determine: rules (a, b, c): c is present exactly where a and b are; c's own frequency is given up.
        extra_instances: mean number of further instances of a present label (Poisson, at most 7).
        size_log_mean: mean logarithm of an object's radius as a share of the image's side.
        size_log_spread: standard deviation of that logarithm.
        location_prior: whether labels prefer the ground, the sky or the middle; else anywhere.
        rotation: largest tilt to either side, degrees.
        max_objects: most objects per image; the first instance of a label is never left out.
        occlusion: whether objects may cover one another; else places apart are looked for.
        min_visible: an object counts if this share of it is visible ...
        min_pixels: ... and this many pixels, or all it has.
        hidden: an object that does not count is taken out (``remove``), or drawn without being
            labelled (``draw``; the entry is absent and flagged ``DIFFICULT_ONLY``).
        colour_reliability: probability that an object has its label's own hue.
        background: one colour gradient, textured, or windows of two photographs that scikit-learn bundles.
        background_reliability: probability that the background is that of the image's context.
        illumination: largest brightening towards an edge of the image, as a share.
        shadow_probability: share of images with a soft shadow.
        blur: share that a pixel gives to each neighbour along either axis, before the owner's style.
        noise: standard deviation of sensor noise, of the full range, before the owner's style.
        jpeg_quality: re-encode images as JPEG; 0 leaves them. Bytes then depend on Pillow's encoder.
        num_images: images of all drawn owners; 0 keeps sizes as drawn (``zipf-mandelbrot`` only).
        population: owners that exist.
        num_owners: owners drawn from them; more include fewer. 0 draws all.
        owner_sizes: law of the number of images per owner (quantity skew).
        size_exponent: of ``zipf-mandelbrot``: P(size k) is proportional to (k + offset) ** -exponent.
        size_offset: that offset.
        owner_spread: of ``lognormal``: standard deviation of the logarithm.
        min_size: fewest images of an owner.
        max_size: most.
        context_alpha: Dirichlet concentration per context of an owner's mixture (label and co-occurrence skew).
        label_preference: standard deviation over owners of what is added to a label's score (label skew).
        cooccurrence_rotation: part of a quarter turn between the common dependence of labels and
            an owner's own, at unchanged frequencies (co-occurrence skew).
        style_strength: how far owners' hue, saturation, contrast, brightness, tint, blur and
            noise differ (feature skew).
        annotated_fraction: share of the columns (at least one) that an owner annotates; the others are unknown
            in its training images (annotation skew).
        uncertain_below: visible share below which owners call a present label uncertain in
            training images, on average; each owner has its own between 0 and twice that.
        split_by: validation (and test) hold whole owners, or a share of every owner's images.
        val_fraction: share of owners' images for validation.
        test_fraction: share of owners' images for testing, with ``test='owners'``.
        test: ``iid`` scenes of nobody with the exact frequencies; held-out images of ``owners``;
            or scenes of nobody in ``unseen-styles``, with ``unseen-combinations`` of shape and
            texture (levels coarse and attributes), ``balanced``, every label equally frequent, or
            ``independent``, the same frequencies without contexts and rules: labels are independent.
        num_test: test images of nobody.
        unseen_style_strength: style strength of ``unseen-styles``.

    Raises:
        InputError: knobs that do not fit together.
    """
    return _dataset(resolve(preset, locals()))


def _dataset(options: Options) -> Dataset:
    check(options)
    check_rules(options)
    words = vocabulary(options)
    identity: dict[str, Any] = options.described()
    if options.background == "photos":
        identity["photos_sha256"] = backgrounds.photos_digest(options.image_size)
    drawn = functools.cache(lambda: world(options))

    def make_table() -> Table:
        return table(drawn())

    def images(rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        return render(drawn(), rows)

    return Dataset(
        name="scenes",
        version=VERSION,
        identity=identity,
        label_names=words.names,
        image_shape=(options.image_size, options.image_size, options.channels),
        table=make_table,
        image=lambda row: images(np.array([row], dtype=np.int64))[0],
        licence="generated here, free of rights" + (_PHOTOS if options.background == "photos" else ""),
        images=images,
        parents=words.parents,
    )


_PHOTOS = "; backgrounds are photographs that scikit-learn bundles (CC BY, see its sample images)"
