"""Published image counts of COCO's 80 labels, for soft comparison with what a download holds.

COCO 2017: images of train2017 and val2017 in which a label is annotated, crowds included; of
the table only seven rows were seen in public pages, the rest is as commonly quoted. COCO-MLT:
images of its training list, recomputed from the released lists (Wu et al. 2020).
"""

from __future__ import annotations

from typing import NamedTuple


class Counts(NamedTuple):
    """Images of train2017, of val2017 and of COCO-MLT's training list."""

    train2017: int
    val2017: int
    mlt: int


POSITIVES = {
    "person": Counts(64115, 2693, 1128),
    "bicycle": Counts(3252, 149, 37),
    "car": Counts(12251, 535, 276),
    "motorcycle": Counts(3502, 159, 32),
    "airplane": Counts(2986, 97, 9),
    "bus": Counts(3952, 189, 41),
    "train": Counts(3588, 157, 18),
    "truck": Counts(6127, 250, 87),
    "boat": Counts(3025, 121, 20),
    "traffic light": Counts(4139, 191, 50),
    "fire hydrant": Counts(1711, 86, 11),
    "stop sign": Counts(1734, 69, 13),
    "parking meter": Counts(705, 37, 8),
    "bench": Counts(5570, 235, 97),
    "bird": Counts(3237, 125, 19),
    "cat": Counts(4114, 184, 49),
    "dog": Counts(4385, 177, 70),
    "horse": Counts(2941, 128, 17),
    "sheep": Counts(1529, 65, 7),
    "cow": Counts(1968, 87, 10),
    "elephant": Counts(2143, 89, 8),
    "bear": Counts(960, 49, 6),
    "zebra": Counts(1916, 85, 7),
    "giraffe": Counts(2546, 101, 7),
    "backpack": Counts(5528, 228, 100),
    "umbrella": Counts(3968, 174, 39),
    "handbag": Counts(6841, 292, 189),
    "tie": Counts(3810, 145, 31),
    "suitcase": Counts(2402, 105, 24),
    "frisbee": Counts(2184, 84, 11),
    "skis": Counts(3082, 120, 12),
    "snowboard": Counts(1654, 49, 8),
    "sports ball": Counts(4262, 169, 35),
    "kite": Counts(2261, 91, 10),
    "baseball bat": Counts(2506, 97, 25),
    "baseball glove": Counts(2629, 100, 21),
    "skateboard": Counts(3476, 127, 17),
    "surfboard": Counts(3486, 149, 10),
    "tennis racket": Counts(3394, 167, 20),
    "bottle": Counts(8501, 379, 460),
    "wine glass": Counts(2533, 110, 84),
    "cup": Counts(9189, 390, 498),
    "fork": Counts(3555, 155, 126),
    "knife": Counts(4326, 181, 207),
    "spoon": Counts(3529, 153, 173),
    "bowl": Counts(7111, 314, 366),
    "banana": Counts(2243, 103, 39),
    "apple": Counts(1586, 76, 35),
    "sandwich": Counts(2365, 98, 44),
    "orange": Counts(1699, 85, 36),
    "broccoli": Counts(1939, 71, 29),
    "carrot": Counts(1683, 81, 25),
    "hot dog": Counts(1222, 51, 14),
    "pizza": Counts(3166, 153, 45),
    "donut": Counts(1523, 62, 16),
    "cake": Counts(2925, 124, 73),
    "chair": Counts(12774, 580, 585),
    "couch": Counts(4423, 195, 153),
    "potted plant": Counts(4452, 172, 164),
    "bed": Counts(3682, 149, 44),
    "dining table": Counts(11837, 501, 624),
    "toilet": Counts(3353, 149, 25),
    "tv": Counts(4561, 207, 200),
    "laptop": Counts(3524, 183, 137),
    "mouse": Counts(1876, 88, 70),
    "remote": Counts(3076, 145, 89),
    "keyboard": Counts(2115, 106, 73),
    "cell phone": Counts(4803, 214, 127),
    "microwave": Counts(1547, 54, 91),
    "oven": Counts(2877, 115, 175),
    "toaster": Counts(217, 8, 9),
    "sink": Counts(4678, 187, 237),
    "refrigerator": Counts(2360, 101, 119),
    "book": Counts(5332, 230, 292),
    "clock": Counts(4659, 204, 87),
    "vase": Counts(3593, 137, 113),
    "scissors": Counts(947, 28, 15),
    "teddy bear": Counts(2140, 94, 21),
    "hair drier": Counts(189, 9, 6),
    "toothbrush": Counts(1007, 34, 11),
}
"""By label, in the order of category ids."""
