"""PASCAL VOC 2012: 20 labels, 5,717 images to train and 5,823 to test, or 11,540 to train.

The labels of the official test images are not public; the field trains on ``train`` and tests
on ``val``, or trains on both and asks the evaluation server.

Source: Everingham et al. 2015, "The PASCAL Visual Object Classes Challenge: A Retrospective"
(IJCV), host.robots.ox.ac.uk/pascal/VOC/voc2012.
"""

from __future__ import annotations

from typing import Literal

from fedmlic.dataset import Dataset
from fedmlic.images import Resize
from fedmlic.sources.options import Channels, HeldOut, ImageSize, Root, Seed
from fedmlic.sources.voc import (
    Difficult,
    Part,
    Protocol,
    find_releases,
    image_set,
    positives,
    voc_dataset,
    voc_problems,
)
from fedmlic.sources.voc_counts import POSITIVES
from fedmlic.splits import held_out_counts

YEAR = "VOC2012"
NUM_TRAIN, NUM_VAL, NUM_TRAINVAL = 5_717, 5_823, 11_540
"""Published lines of the three image sets."""


def voc2012(
    *,
    root: Root,
    image_size: ImageSize = 224,
    resize: Resize = "squash",
    channels: Channels = 3,
    upright: bool = False,
    label_names: list[str] | None = None,
    difficult: Difficult = "ignore",
    train_part: Literal["train", "trainval"] = "train",
    val_fraction: HeldOut = 0.1,
    seed: Seed = 0,
) -> Dataset:
    """PASCAL VOC 2012: train on ``train``, test on ``val`` (Cole et al. 2021).

    Args:
        root: folder that holds ``VOCdevkit/VOC2012`` (or ``VOC2012``, or is it); ``~`` is
            your home.
        image_size: height and width of stored images, pixels.
        resize: ``squash`` changes the aspect, ``crop`` cuts the longer side around the
            centre, ``pad`` adds black bars.
        channels: 3 (colour) or 1 (grey).
        upright: turn pictures, and their boxes, as their EXIF orientation says.
        label_names: labels to keep, in order; COCO's names are understood. All 20 by default.
        difficult: what a label is that only objects marked difficult show: ``ignore``
            (unknown) as in the official evaluation, ``absent`` as in SSGRL, C-Tran, HCP and
            Cole et al. 2021, ``present`` as in Wu et al. 2020.
        train_part: ``train`` trains on ``train`` and tests on ``val``; ``trainval`` trains on
            both, and nothing is left to test on.
        val_fraction: share of the training list that validates.
        seed: of that random split.

    Raises:
        InputError: files are missing or wrong; all problems at once.
    """
    sets = ("train", "val") if train_part == "train" else ("trainval",)
    problems = voc_problems("voc2012")
    folders = find_releases(root, {YEAR: sets}, "voc2012", problems)
    parts = [Part(YEAR, image_set(folders[YEAR], name), "test" if name == "val" else "train") for name in sets]
    protocol = Protocol(difficult, label_names, val_fraction, seed, image_size, resize, channels, upright)
    if train_part == "train":
        expected = {**held_out_counts(NUM_TRAIN, val_fraction), "test": NUM_VAL}
    else:
        expected = held_out_counts(NUM_TRAINVAL, val_fraction)
    counts = {name: c.all2012 if difficult == "present" else c.train2012 + c.val2012 for name, c in POSITIVES.items()}
    return voc_dataset(
        "voc2012", parts, folders, protocol, {**expected, **positives(counts, protocol)}, problems=problems
    )
