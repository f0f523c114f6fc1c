"""Annotator table: three real annotators of 2020, as miss and false-positive rates per label.

Each rate was computed from the published predictions of a commercial image
tagger on the 11,540 images of PASCAL VOC 2012 trainval (FrugalMCT, Chen, Zaharia
and Zou, ICML 2022, Apache-2.0), for Google, Microsoft and EveryPixel. A present
label is missed with its miss rate, an absent one is written down with its
false-positive rate, each entry on its own: the two-coin model of Dawid and Skene.

What is real about it: annotators that are blind to a label (Google misses
"person" in 96.9 % of the images with one), and false positives that are
concentrated on a few labels. What it loses: real misses grow with the number of
labels in an image, and real annotators err together; ``annotators`` has both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from fedmlic.annotation.draws import Probability
from fedmlic.annotation.votes import Aggregation, aggregate, looks, turns
from fedmlic.errors import listing
from fedmlic.labels import PRESENT, UNKNOWN, known
from fedmlic.regime import Assignment, Regime

if TYPE_CHECKING:
    from numpy.typing import NDArray

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


class _Table(NamedTuple):
    """Rates of the labels of a data set: float64 ``[annotators, labels]`` each, in [0, 1]."""

    miss: NDArray[np.float64]
    spurious: NDArray[np.float64]


def _row(name: str) -> tuple[float, ...] | None:
    plain = "".join(letter for letter in name.lower() if letter.isalnum())
    return RATES.get(ALIASES.get(plain, plain))


def _rows(label_names: tuple[str, ...], num_labels: int, match: str, others: str) -> list[tuple[float, ...]]:
    """One row of ``RATES`` per label."""
    if match == "order":
        rows = list(RATES.values())
        return [rows[label % len(rows)] for label in range(num_labels)]
    found = [_row(name) for name in label_names]
    mean = tuple(np.mean(list(RATES.values()), axis=0).tolist())
    problems = [repr(name) for name, row in zip(label_names, found, strict=True) if row is None]
    if len(label_names) != num_labels or (problems and others == "error"):
        expected = (
            "Expected labels to be among the 20 of the annotator table (use others='mean' for the rest, "
            "or match='order')"
        )
        raise listing(expected, problems or ["labels without names"])
    return [mean if row is None else row for row in found]


def _table(assignment: Assignment, match: str, others: str) -> _Table:
    rows = _rows(assignment.label_names, assignment.labels.shape[1], match, others)
    rates = np.array(rows).reshape(len(rows), len(ANNOTATORS), 2)
    return _Table(rates[:, :, 0].T, rates[:, :, 1].T)


def _who(assignment: Assignment, annotator: str) -> tuple[int, ...]:
    """Numbers of the annotators who look at this client's images."""
    if annotator == "all":
        return tuple(range(len(ANNOTATORS)))
    if annotator == "drawn":
        return (int(assignment.rng("annotator").integers(len(ANNOTATORS))),)
    return (ANNOTATORS.index(annotator),)


def _opinions(assignment: Assignment, who: tuple[int, ...], table: _Table) -> NDArray[np.bool_]:
    """Bool ``[annotators, images, labels]``: who says that a label is present."""
    present = assignment.labels == PRESENT
    return np.stack(
        [
            assignment.uniforms(f"annotator {ANNOTATORS[number]}")
            < np.where(present, 1 - table.miss[number], table.spurious[number])
            for number in who
        ]
    )


def annotator_table(
    *,
    annotator: Literal["google", "microsoft", "everypixel", "drawn", "all"] = "google",
    aggregation: Aggregation = "majority",
    match: Literal["name", "order"] = "name",
    others: Literal["error", "mean"] = "error",
    blind: Probability | None = None,
) -> Regime:
    """Annotators with the published rates of three real ones.

    Args:
        annotator: one for all clients; ``"drawn"``: each client draws one; ``"all"``: every
            client has the three of them.
        aggregation: what ``"all"`` write down: ``"majority"``, ``"any"``, ``"unanimous"`` (else
            uncertain) or ``"single"`` (each image has one of them, drawn).
        match: how rows of the table become those of labels: ``"name"`` by name (case, spaces
            and underscores aside; COCO's names for the same things are known), ``"order"``
            label k by row k modulo 20, in the order of the table.
        others: what a label without a row gets under ``"name"``: an error, or the annotator's
            mean rates.
        blind: labels that all annotators of a client miss at a higher rate than this, in
            [0, 1], are unknown there instead of absent; ``None`` for never.

    Raises:
        InputError: at the first client, for labels without a row.
    """

    def annotate(assignment: Assignment) -> NDArray[np.int8]:
        table, who = _table(assignment, match, others), _who(assignment, annotator)
        chosen = turns(assignment, aggregation, len(who))
        written = aggregate(_opinions(assignment, who, table), aggregation, chosen, assignment.labels)
        if blind is None:
            return written
        unseen = (table.miss[list(who)] > blind).all(axis=0)
        return np.where(known(written) & unseen, np.int8(UNKNOWN), written)

    def counted(assignment: Assignment) -> NDArray[np.int64]:
        return looks(assignment.labels, aggregation, len(_who(assignment, annotator)))

    unsure = aggregation == "unanimous" and annotator == "all"
    return Regime(annotate, adds_wrong=True, adds_uncertain=unsure, selective=unsure, looks=counted)
