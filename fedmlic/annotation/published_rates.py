"""How often three real annotators of 2020 missed each PASCAL label, and named it where it was not.

Source: computed from the published predictions of FrugalMCT (Chen, Zaharia and Zou, ICML 2022,
Apache-2.0) on the 11,540 images of PASCAL VOC 2012 trainval.
"""

from __future__ import annotations

ANNOTATORS = ("google", "microsoft", "everypixel")

RATES = {
    "person": (0.969, 0.0000, 0.257, 0.0105, 0.101, 0.0937),
    "bird": (0.146, 0.0005, 0.082, 0.0029, 0.099, 0.0015),
    "cat": (0.094, 0.0030, 0.049, 0.0095, 0.983, 0.0000),
    "cow": (0.795, 0.0001, 0.251, 0.0067, 0.185, 0.0021),
    "dog": (0.131, 0.0026, 0.072, 0.0146, 0.075, 0.0088),
    "horse": (0.083, 0.0007, 0.054, 0.0090, 0.089, 0.0042),
    "sheep": (0.271, 0.0010, 0.240, 0.0103, 0.169, 0.0027),
    "aeroplane": (0.037, 0.0006, 0.031, 0.0013, 0.046, 0.0017),
    "bicycle": (0.226, 0.0021, 0.098, 0.0323, 0.154, 0.0071),
    "boat": (0.285, 0.0016, 0.130, 0.0050, 0.553, 0.0007),
    "bus": (0.164, 0.0007, 0.100, 0.0040, 0.131, 0.0020),
    "car": (0.299, 0.0512, 0.339, 0.0120, 0.267, 0.0407),
    "motorbike": (0.281, 0.0004, 0.205, 0.0015, 0.141, 0.0028),
    "train": (0.171, 0.0010, 0.061, 0.0030, 0.075, 0.0031),
    "bottle": (0.778, 0.0002, 0.501, 0.0078, 0.772, 0.0000),
    "chair": (0.791, 0.0039, 0.513, 0.0144, 0.554, 0.0091),
    "diningtable": (0.526, 0.0331, 0.214, 0.0642, 0.149, 0.0620),
    "pottedplant": (0.666, 0.0389, 0.655, 0.0385, 0.746, 0.0051),
    "sofa": (0.669, 0.0033, 0.310, 0.0201, 0.276, 0.0295),
    "tvmonitor": (0.743, 0.0001, 0.442, 0.0012, 0.657, 0.0007),
}
"""Miss rate and false-positive rate of each annotator in turn, per PASCAL label."""

ALIASES = {
    "airplane": "aeroplane",
    "couch": "sofa",
    "motorcycle": "motorbike",
    "tv": "tvmonitor",
    "television": "tvmonitor",
}
"""Names of other data sets, such as COCO, for the same things."""


def rates_of(name: str) -> tuple[float, ...] | None:
    """A row of ``RATES`` by a label's name (case, spaces and underscores aside), or None."""
    plain = "".join(letter for letter in name.lower() if letter.isalnum())
    return RATES.get(ALIASES.get(plain, plain))
