"""MS-COCO 2017: 80 labels, 118,287 images to train and 5,000 to test.

The images are those of the 2014 release, divided anew: 35,504 test images of 2014 are
training images of 2017. A network that was trained on one must not be tested on the other.

Source: Lin et al. 2014, "Microsoft COCO: Common Objects in Context" (ECCV), cocodataset.org.
"""

from __future__ import annotations

from fedmlic.dataset import Dataset
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
from fedmlic.sources.options import Channels, HeldOut, ImageSize, Root, Seed
from fedmlic.sources.place import find_parts
from fedmlic.splits import held_out_counts

NUM_TRAIN, NUM_TEST = 118_287, 5_000
"""Published images of train2017 and val2017."""

NUM_TRAIN_LABELLED, NUM_TEST_LABELLED = 117_266, 4_952
"""Those of them with an annotation, as the issues of cocoapi report."""


def coco2017(
    *,
    root: Root,
    image_size: ImageSize = 224,
    resize: Resize = "squash",
    channels: Channels = 3,
    upright: bool = False,
    label_names: list[str] | None = None,
    crowd: Crowd = "present",
    degenerate: Degenerate = "present",
    drop_unlabelled: bool = False,
    row_order: RowOrder = "id",
    val_fraction: HeldOut = 0.1,
    seed: Seed = 0,
) -> Dataset:
    """MS-COCO 2017 with its image-level labels, boxes and areas.

    Training images are those of ``train2017``, a random share of which validates; test
    images are those of ``val2017``, since the labels of ``test2017`` are not public.

    Args:
        root: folder that holds ``annotations/``, ``train2017/`` and ``val2017/`` (or a folder
            ``coco`` that does); ``~`` is your home.
        image_size: height and width of stored images, pixels.
        resize: ``squash`` changes the aspect, ``crop`` cuts the longer side around the
            centre, ``pad`` adds black bars.
        channels: 3 (colour) or 1 (grey).
        upright: turn pictures, and their boxes, as their EXIF orientation says.
        label_names: labels to keep, in order; VOC's names and underscores are understood. All
            80 by ascending category id by default.
        crowd: what a label is that only crowd regions show: ``present`` as in every published
            loader, ``ignore`` (unknown) or ``absent``.
        degenerate: ``drop`` leaves out annotations with area 0, a side below 1 pixel or an
            ``ignore`` mark (Wu et al. 2020); ``present`` counts them.
        drop_unlabelled: leave out images without any annotation (117,266 and 4,952 remain).
        row_order: ``id`` sorts image ids as numbers, ``cole`` as text (Cole et al. 2021).
        val_fraction: share of training images that validate.
        seed: of that random split.

    Raises:
        InputError: files are missing or wrong; all problems at once.
    """
    problems = coco_problems("coco2017")
    train, val, train_images, val_images = find_parts(
        root,
        (".", "coco"),
        (
            ("annotations/instances_train2017.json",),
            ("annotations/instances_val2017.json",),
            ("train2017", "images/train2017"),
            ("val2017", "images/val2017"),
        ),
        "coco2017",
        problems,
    )
    source = Source(
        "coco2017",
        "annotations CC BY 4.0, images under the licences of their Flickr owners",
        {"train2017": train_images, "val2017": val_images},
        (Part(train, "train2017", "train"), Part(val, "val2017", "test")),
    )
    protocol = Protocol(val_fraction, seed, label_names, crowd, degenerate, drop_unlabelled, row_order)
    expected = {"labels": 80} if label_names is None else {}
    if crowd == "present" and degenerate == "present" and label_names is None:
        expected |= {f"positives/{name}": c.train2017 + c.val2017 for name, c in POSITIVES.items()}
    if not drop_unlabelled:
        expected |= {**held_out_counts(NUM_TRAIN, val_fraction), "test": NUM_TEST}
    elif label_names is None:
        expected |= {**held_out_counts(NUM_TRAIN_LABELLED, val_fraction), "test": NUM_TEST_LABELLED}
    return coco_dataset(source, Pixels(image_size, resize, channels, upright), protocol, expected, problems)
