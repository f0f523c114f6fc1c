"""LVIS: 1,203 labels over COCO's images, each image annotated for some of them only.

Source: Gupta, Dollar and Girshick 2019, "LVIS: A Dataset for Large Vocabulary Instance
Segmentation" (CVPR), lvisdataset.org. Every image has a set of categories that are
annotated, a set that is verified to be absent, and nothing is known of all others: labels
are natively partial. Of some annotated categories not every instance is marked; the label
stays present and carries the flag ``NOT_EXHAUSTIVE``.
"""

from __future__ import annotations

from typing import Literal

from fedmlic.dataset import Dataset
from fedmlic.formats.coco_json import Category
from fedmlic.images import Resize
from fedmlic.labels import ABSENT, UNKNOWN
from fedmlic.sources.coco import Part, Pixels, Protocol, RowOrder, Source, coco_dataset, coco_problems
from fedmlic.sources.options import Channels, HeldOut, ImageSize, Root, Seed
from fedmlic.sources.place import find_parts
from fedmlic.splits import held_out_counts

FOLDERS = ("train2017", "val2017")

GROUPS = {"r": "rare", "c": "common", "f": "frequent"}
"""LVIS's frequency groups: in at most 10, in 11 to 100, and in more training images."""

NUM_TRAIN, NUM_TEST = 100_170, 19_809
"""Published images of v1's two files."""

NUM_LABELS = {"v1": 1_203, "v0.5": 1_230}


def _group(category: Category) -> str:
    return GROUPS.get(category.text("frequency"), "")


def _fault(category: Category) -> str:
    said = dict(category.texts).get("frequency")
    return "" if said in GROUPS else f"frequency {said!r} is none of {', '.join(GROUPS)}"


def lvis(
    *,
    root: Root,
    release: Literal["v1", "v0.5"] = "v1",
    image_size: ImageSize = 224,
    resize: Resize = "squash",
    channels: Channels = 3,
    upright: bool = False,
    frequencies: list[Literal["rare", "common", "frequent"]] | None = None,
    label_names: list[str] | None = None,
    unlisted: Literal["unknown", "absent"] = "unknown",
    drop_unlabelled: bool = False,
    row_order: RowOrder = "id",
    val_fraction: HeldOut = 0.1,
    seed: Seed = 0,
) -> Dataset:
    """LVIS with its native partial labels; labels are grouped by frequency.

    Training images are those of ``lvis_v1_train.json``, a random share of which validates;
    test images are those of ``lvis_v1_val.json``. Of the latter 4,809 lie in ``val2017/`` and
    15,000 in ``train2017/``: a network trained on COCO 2017 must not be tested on them.

    Args:
        root: folder that holds the two JSON files (or has them in ``lvis/`` or
            ``annotations/``) and COCO's ``train2017/`` and ``val2017/`` (or has them in
            ``coco/`` or ``images/``); ``~`` is your home.
        release: ``v1`` (1,203 labels) or ``v0.5`` (1,230).
        image_size: height and width of stored images, pixels.
        resize: ``squash`` changes the aspect, ``crop`` cuts the longer side around the
            centre, ``pad`` adds black bars.
        channels: 3 (colour) or 1 (grey).
        upright: turn pictures, and their boxes, as their EXIF orientation says.
        frequencies: keep only labels of these groups; all by default.
        label_names: labels to keep, in order.
        unlisted: what a label is that an image neither has nor is verified to lack:
            ``unknown`` as LVIS defines it, or ``absent`` as loaders say that ignore this.
        drop_unlabelled: leave out images without any annotation of the labels.
        row_order: ``id`` sorts image ids as numbers, ``cole`` as text.
        val_fraction: share of training images that validate.
        seed: of that random split.

    Raises:
        InputError: files are missing or wrong; all problems at once.
    """
    places = ("", "lvis/", "annotations/", "coco/annotations/", "../lvis/")
    problems = coco_problems("lvis")
    train, val, train_images, val_images = find_parts(
        root,
        (".",),
        (
            tuple(f"{at}lvis_{release}_train.json" for at in places),
            tuple(f"{at}lvis_{release}_val.json" for at in places),
            *(tuple(f"{at}{name}" for at in ("", "coco/", "images/", "coco/images/", "../coco/")) for name in FOLDERS),
        ),
        "lvis",
        problems,
    )
    kept = set(GROUPS.values()) if frequencies is None else set(frequencies)
    source = Source(
        "lvis",
        "annotations CC BY 4.0, images under the licences of their Flickr owners",
        dict(zip(FOLDERS, (train_images, val_images), strict=True)),
        # v0.5 names a file without its folder; its validation images are those of val2017.
        (Part(train, "train2017", "train"), Part(val, "val2017", "test")),
        _group,
        lambda category: frequencies is None or _group(category) in kept,
        _fault,
        partial=True,
    )
    state: Literal[0, -1] = UNKNOWN if unlisted == "unknown" else ABSENT
    protocol = Protocol(
        val_fraction, seed, label_names, drop_unlabelled=drop_unlabelled, row_order=row_order, unlisted=state
    )
    expected: dict[str, int] = {}
    if label_names is None and frequencies is None:
        expected["labels"] = NUM_LABELS[release]
    if release == "v1" and not drop_unlabelled:
        expected |= {**held_out_counts(NUM_TRAIN, val_fraction), "test": NUM_TEST}
    return coco_dataset(source, Pixels(image_size, resize, channels, upright), protocol, expected, problems)
