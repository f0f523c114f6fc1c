"""PASCAL VOC 2007 and 2012 together: 20 labels, 16,551 images to train and 4,952 to test.

Source: Everingham et al. 2010 and 2015 (IJCV), host.robots.ox.ac.uk/pascal/VOC. The union as
detectors are trained on it: both ``trainval`` lists, tested on ``test`` of 2007. The lists of
2012 hold images of 2008 to 2011 only, so none is a test image; a list that breaks this is
refused.
"""

from __future__ import annotations

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

NUM_TRAIN, NUM_TEST = 16_551, 4_952
"""Published lines of both trainval lists, and of 2007's test list."""


def voc0712(
    *,
    root: Root,
    image_size: ImageSize = 224,
    resize: Resize = "squash",
    channels: Channels = 3,
    upright: bool = False,
    label_names: list[str] | None = None,
    difficult: Difficult = "ignore",
    val_fraction: HeldOut = 0.1,
    seed: Seed = 0,
) -> Dataset:
    """PASCAL VOC 2007 and 2012: train on both ``trainval`` lists, test on ``test`` of 2007.

    Args:
        root: folder that holds ``VOCdevkit/VOC2007`` and ``VOCdevkit/VOC2012`` (or the two
            without ``VOCdevkit``); ``~`` is your home.
        image_size: height and width of stored images, pixels.
        resize: ``squash`` changes the aspect, ``crop`` cuts the longer side around the
            centre, ``pad`` adds black bars.
        channels: 3 (colour) or 1 (grey).
        upright: turn pictures, and their boxes, as their EXIF orientation says.
        label_names: labels to keep, in order; COCO's names are understood. All 20 by default.
        difficult: what a label is that only objects marked difficult show: ``ignore``
            (unknown) as in the official evaluation, ``absent``, or ``present``.
        val_fraction: share of the training lists that validates.
        seed: of that random split.

    Raises:
        InputError: files are missing or wrong; all problems at once.
    """
    problems = voc_problems("voc0712")
    folders = find_releases(root, {"VOC2007": ("trainval", "test"), "VOC2012": ("trainval",)}, "voc0712", problems)
    parts = [
        Part("VOC2007", image_set(folders["VOC2007"], "trainval"), "train"),
        Part("VOC2012", image_set(folders["VOC2012"], "trainval"), "train"),
        Part("VOC2007", image_set(folders["VOC2007"], "test"), "test"),
    ]
    protocol = Protocol(difficult, label_names, val_fraction, seed, image_size, resize, channels, upright)
    expected = {**held_out_counts(NUM_TRAIN, val_fraction), "test": NUM_TEST}
    if difficult != "present":
        counts = {name: c.trainval2007 + c.test2007 + c.train2012 + c.val2012 for name, c in POSITIVES.items()}
        expected |= positives(counts, protocol)
    return voc_dataset("voc0712", parts, folders, protocol, expected, problems=problems)
