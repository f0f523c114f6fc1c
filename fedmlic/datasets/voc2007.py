"""PASCAL VOC 2007: 20 labels, 5,011 images to train and 4,952 to test.

Source: Everingham et al. 2010, "The PASCAL Visual Object Classes (VOC) Challenge" (IJCV),
host.robots.ox.ac.uk/pascal/VOC/voc2007.
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

YEAR = "VOC2007"
NUM_TRAINVAL, NUM_TRAIN, NUM_VAL, NUM_TEST = 5_011, 2_501, 2_510, 4_952
"""Published lines of the four image sets."""


def voc2007(
    *,
    root: Root,
    image_size: ImageSize = 224,
    resize: Resize = "squash",
    channels: Channels = 3,
    upright: bool = False,
    label_names: list[str] | None = None,
    difficult: Difficult = "ignore",
    train_part: Literal["trainval", "train"] = "trainval",
    val_fraction: HeldOut = 0.1,
    seed: Seed = 0,
) -> Dataset:
    """PASCAL VOC 2007: train on ``trainval``, test on ``test``, as the field does.

    Args:
        root: folder that holds ``VOCdevkit/VOC2007`` (or ``VOC2007``, or is it), with both
            archives unpacked into it; ``~`` is your home.
        image_size: height and width of stored images, pixels.
        resize: ``squash`` changes the aspect, ``crop`` cuts the longer side around the
            centre, ``pad`` adds black bars.
        channels: 3 (colour) or 1 (grey).
        upright: turn pictures, and their boxes, as their EXIF orientation says.
        label_names: labels to keep, in order; COCO's names are understood. All 20 by default.
        difficult: what a label is that only objects marked difficult show: ``ignore``
            (unknown) as in the official evaluation, ``absent`` as in SSGRL, C-Tran and HCP,
            ``present`` as in Wu et al. 2020.
        train_part: ``trainval`` trains on that list, a random share of which validates;
            ``train`` trains on ``train`` and validates on ``val``, as the lists say.
        val_fraction: share of ``trainval`` that validates.
        seed: of that random split.

    Raises:
        InputError: files are missing or wrong; all problems at once.
    """
    sets = ("trainval",) if train_part == "trainval" else ("train", "val")
    problems = voc_problems("voc2007")
    folders = find_releases(root, {YEAR: (*sets, "test")}, "voc2007", problems)
    parts = [Part(YEAR, image_set(folders[YEAR], name), "val" if name == "val" else "train") for name in sets]
    parts.append(Part(YEAR, image_set(folders[YEAR], "test"), "test"))
    protocol = Protocol(difficult, label_names, val_fraction, seed, image_size, resize, channels, upright)
    official = {"train": NUM_TRAIN, "val": NUM_VAL}
    counts = official if train_part == "train" else held_out_counts(NUM_TRAINVAL, val_fraction)
    expected = {**counts, "test": NUM_TEST}
    if difficult != "present":
        expected |= positives({name: c.trainval2007 + c.test2007 for name, c in POSITIVES.items()}, protocol)
    return voc_dataset("voc2007", parts, folders, protocol, expected, problems=problems)
