"""COCO-MLT: a long-tailed training list of 1,909 COCO images, tested on all of val2017.

Source: Wu et al. 2020, "Distribution-Balanced Loss for Multi-Label Classification in
Long-Tailed Datasets" (ECCV), github.com/wutong16/DistributionBalancedLoss. Its loader counts
crowd regions and drops annotations without an area, so these are the defaults here. Its list
``img_id.pkl`` is plain text; its other files hold what follows from the list, in pickles,
which are never opened.
"""

from __future__ import annotations

from fedmlic.dataset import Dataset
from fedmlic.formats.coco_json import Category
from fedmlic.formats.id_list import read_id_numbers
from fedmlic.images import Resize
from fedmlic.sources.coco import (
    Crowd,
    Degenerate,
    Part,
    Pixels,
    Protocol,
    RowOrder,
    Source,
    coco_dataset,
    coco_problems,
)
from fedmlic.sources.coco_counts import POSITIVES
from fedmlic.sources.label_names import plain_name
from fedmlic.sources.options import Channels, HeldOut, ImageSize, Root, Seed
from fedmlic.sources.place import find_parts
from fedmlic.splits import held_out_counts

NUM_TRAIN, NUM_TEST = 1_909, 5_000
HEAD, MEDIUM = 100, 20
"""Fewest training images of a head and of a medium label."""

LIST_PLACES = ("appendix/coco/longtail2017", "dbl/coco/longtail2017", "coco/longtail2017", "longtail2017", ".")


def _group(category: Category) -> str:
    """Head, medium or tail, by the published number of training images."""
    counts = POSITIVES.get(plain_name(category.name))
    if counts is None:
        return ""
    return "head" if counts.mlt >= HEAD else "medium" if counts.mlt >= MEDIUM else "tail"


def coco_mlt(
    *,
    root: Root,
    image_ids: str = "",
    image_size: ImageSize = 224,
    resize: Resize = "squash",
    channels: Channels = 3,
    upright: bool = False,
    label_names: list[str] | None = None,
    crowd: Crowd = "present",
    degenerate: Degenerate = "drop",
    drop_unlabelled: bool = False,
    row_order: RowOrder = "id",
    val_fraction: HeldOut = 0.1,
    seed: Seed = 0,
) -> Dataset:
    """COCO-MLT: long-tailed COCO; labels are grouped as head, medium and tail.

    Args:
        root: folder that holds COCO 2017 (``annotations/``, ``train2017/`` and ``val2017/``, or
            a folder ``coco`` that does); ``~`` is your home.
        image_ids: the released list ``img_id.pkl``, one COCO id per line; looked for below
            ``root`` as ``appendix/coco/longtail2017/img_id.pkl`` by default.
        image_size: height and width of stored images, pixels.
        resize: ``squash`` changes the aspect, ``crop`` cuts the longer side around the
            centre, ``pad`` adds black bars.
        channels: 3 (colour) or 1 (grey).
        upright: turn pictures, and their boxes, as their EXIF orientation says.
        label_names: labels to keep, in order; VOC's names and underscores are understood.
        crowd: what a label is that only crowd regions show: ``present``, ``ignore`` (unknown)
            or ``absent``.
        degenerate: ``drop`` leaves out annotations with area 0, a side below 1 pixel or an
            ``ignore`` mark, as the released loader does; ``present`` counts them.
        drop_unlabelled: leave out images without any annotation.
        row_order: ``id`` sorts image ids as numbers, ``cole`` as text.
        val_fraction: share of the training list that validates; 0 trains on all 1,909.
        seed: of that random split.

    Raises:
        InputError: files are missing or wrong; all problems at once.
    """
    problems = coco_problems("coco_mlt")
    train, val, train_images, val_images, listed = find_parts(
        root,
        (".", "coco"),
        (
            ("annotations/instances_train2017.json",),
            ("annotations/instances_val2017.json",),
            ("train2017", "images/train2017"),
            ("val2017", "images/val2017"),
            (image_ids,) if image_ids else tuple(f"{up}{at}/img_id.pkl" for up in ("", "../") for at in LIST_PLACES),
        ),
        "coco_mlt",
        problems,
    )
    ids = read_id_numbers(listed, problems) if listed.exists() else ()
    source = Source(
        "coco_mlt",
        "annotations CC BY 4.0, images under the licences of their Flickr owners, list for non-commercial research",
        {"train2017": train_images, "val2017": val_images},
        (Part(train, "train2017", "train", ids), Part(val, "val2017", "test")),
        _group,
        lists=(listed,),
    )
    protocol = Protocol(val_fraction, seed, label_names, crowd, degenerate, drop_unlabelled, row_order)
    expected: dict[str, int] = {}
    if label_names is None:
        expected |= {"labels": 80, **held_out_counts(NUM_TRAIN, val_fraction)}
        if crowd == "present" and degenerate == "drop":
            expected |= {f"positives/{name}": c.mlt + c.val2017 for name, c in POSITIVES.items()}
        if not drop_unlabelled:
            expected["test"] = NUM_TEST
    return coco_dataset(source, Pixels(image_size, resize, channels, upright), protocol, expected, problems)
