"""VOC-MLT: a long-tailed training list of 1,142 VOC 2012 images, tested on VOC 2007's test images.

Source: Wu et al. 2020, "Distribution-Balanced Loss for Multi-Label Classification in
Long-Tailed Datasets" (ECCV), github.com/wutong16/DistributionBalancedLoss. Its loader counts
objects marked difficult, so that is the default here. The released pickles hold what follows
from the list and are never opened.
"""

from __future__ import annotations

from fedmlic.dataset import Dataset
from fedmlic.images import Resize
from fedmlic.sources.options import Channels, HeldOut, ImageSize, Root, Seed
from fedmlic.sources.place import find_parts
from fedmlic.sources.voc import (
    Difficult,
    Part,
    Protocol,
    find_releases,
    image_set,
    voc_dataset,
    voc_problems,
)
from fedmlic.sources.voc_counts import POSITIVES
from fedmlic.splits import held_out_counts

NUM_TRAIN, NUM_TEST = 1_142, 4_952
HEAD, MEDIUM = 100, 20
"""Fewest training images of a head and of a medium label."""

LIST_PLACES = (
    "appendix/VOCdevkit/longtail2012",
    "dbl/VOCdevkit/longtail2012",
    "VOCdevkit/longtail2012",
    "longtail2012",
    "../appendix/VOCdevkit/longtail2012",
    ".",
)

GROUPS = {
    name: "head" if counts.mlt >= HEAD else "medium" if counts.mlt >= MEDIUM else "tail"
    for name, counts in POSITIVES.items()
}
"""By the published number of training images."""


def voc_mlt(
    *,
    root: Root,
    image_ids: str = "",
    image_size: ImageSize = 224,
    resize: Resize = "squash",
    channels: Channels = 3,
    upright: bool = False,
    label_names: list[str] | None = None,
    difficult: Difficult = "present",
    val_fraction: HeldOut = 0.1,
    seed: Seed = 0,
) -> Dataset:
    """VOC-MLT: long-tailed VOC; labels are grouped as head, medium and tail.

    Args:
        root: folder that holds ``VOCdevkit/VOC2007`` and ``VOCdevkit/VOC2012`` (or the two
            without ``VOCdevkit``); ``~`` is your home.
        image_ids: the released list ``img_id.txt``, one VOC 2012 id per line; looked for below
            ``root`` as ``appendix/VOCdevkit/longtail2012/img_id.txt`` by default.
        image_size: height and width of stored images, pixels.
        resize: ``squash`` changes the aspect, ``crop`` cuts the longer side around the
            centre, ``pad`` adds black bars.
        channels: 3 (colour) or 1 (grey).
        upright: turn pictures, and their boxes, as their EXIF orientation says.
        label_names: labels to keep, in order; COCO's names are understood. All 20 by default.
        difficult: what a label is that only objects marked difficult show: ``present`` as in
            the released loader, ``ignore`` (unknown), or ``absent``.
        val_fraction: share of the training list that validates; 0 trains on all 1,142.
        seed: of that random split.

    Raises:
        InputError: files are missing or wrong; all problems at once.
    """
    problems = voc_problems("voc_mlt")
    folders = find_releases(root, {"VOC2007": ("test",), "VOC2012": ()}, "voc_mlt", problems)
    places = (image_ids,) if image_ids else tuple(f"{place}/img_id.txt" for place in LIST_PLACES)
    (listed,) = find_parts(root, (".",), (places,), "voc_mlt", problems)
    parts = [Part("VOC2012", listed, "train"), Part("VOC2007", image_set(folders["VOC2007"], "test"), "test")]
    protocol = Protocol(difficult, label_names, val_fraction, seed, image_size, resize, channels, upright)
    expected = {**held_out_counts(NUM_TRAIN, val_fraction), "test": NUM_TEST}
    return voc_dataset("voc_mlt", parts, folders, protocol, expected, GROUPS, problems)
