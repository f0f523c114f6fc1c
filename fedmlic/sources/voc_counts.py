"""Published image counts of VOC's 20 labels, for soft comparison with what a download holds.

VOC 2007 trainval and test and the first four rows of VOC 2012 as in public pages, the rest of
VOC 2012 as commonly quoted: images that show the label in an object that is not marked
difficult. Those of VOC 2012 with difficult objects counted, and those of VOC-MLT's training
list (which counts them too), were recomputed from released lists (Wu et al. 2020).
"""

from __future__ import annotations

from typing import NamedTuple


class Counts(NamedTuple):
    """Images of 2007's trainval and test, of 2012's train, val, and trainval with difficult objects, and of VOC-MLT."""

    trainval2007: int
    test2007: int
    train2012: int
    val2012: int
    all2012: int
    mlt: int


POSITIVES = {
    "aeroplane": Counts(238, 204, 327, 343, 676, 6),
    "bicycle": Counts(243, 239, 268, 284, 571, 34),
    "bird": Counts(330, 282, 395, 370, 773, 8),
    "boat": Counts(181, 172, 260, 248, 516, 14),
    "bottle": Counts(244, 212, 365, 341, 768, 154),
    "bus": Counts(186, 174, 213, 208, 430, 17),
    "car": Counts(713, 721, 590, 571, 1229, 249),
    "cat": Counts(337, 322, 539, 541, 1084, 29),
    "chair": Counts(445, 417, 566, 553, 1298, 479),
    "cow": Counts(141, 127, 151, 152, 309, 4),
    "diningtable": Counts(200, 190, 269, 269, 641, 240),
    "dog": Counts(421, 418, 632, 654, 1297, 48),
    "horse": Counts(287, 274, 237, 245, 483, 11),
    "motorbike": Counts(245, 222, 265, 261, 536, 20),
    "person": Counts(2008, 2007, 1994, 2093, 4374, 775),
    "pottedplant": Counts(245, 224, 269, 258, 568, 100),
    "sheep": Counts(96, 97, 171, 154, 326, 5),
    "sofa": Counts(229, 223, 257, 250, 695, 82),
    "train": Counts(261, 259, 273, 271, 550, 7),
    "tvmonitor": Counts(256, 229, 290, 285, 595, 64),
}
"""By label, in alphabetical order."""
