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
from fedmlic.annotation.published_rates import ANNOTATORS, RATES, rates_of
from fedmlic.annotation.votes import Aggregation, aggregate, looks, turns
from fedmlic.errors import listing
from fedmlic.labels import PRESENT, UNKNOWN, known
from fedmlic.regime import Assignment, Regime

if TYPE_CHECKING:
    from numpy.typing import NDArray


class _Table(NamedTuple):
    """Rates of the labels of a data set: float64 ``[annotators, labels]`` each, in [0, 1]."""

    miss: NDArray[np.float64]
    spurious: NDArray[np.float64]


def _rows(label_names: tuple[str, ...], num_labels: int, match: str, others: str) -> list[tuple[float, ...]]:
    """One row of ``RATES`` per label."""
    if match == "order":
        rows = list(RATES.values())
        return [rows[label % len(rows)] for label in range(num_labels)]
    found = [rates_of(name) for name in label_names]
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
    if annotator == "in_turn":
        return (assignment.client % len(ANNOTATORS),)
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
    annotator: Literal["google", "microsoft", "everypixel", "drawn", "in_turn", "all"] = "google",
    aggregation: Aggregation = "majority",
    match: Literal["name", "order"] = "name",
    others: Literal["error", "mean"] = "error",
    blind: Probability | None = None,
) -> Regime:
    """Annotators with the published rates of three real ones.

    Args:
        annotator: one for all clients; ``"drawn"``: each client draws one;
            ``"in_turn"``: client k has number k modulo 3; ``"all"``: every client has the three
            of them.
        aggregation: what ``"all"`` write down: ``"majority"``, ``"any"``, ``"unanimous"`` (else
            uncertain), ``"single"`` (each image has one of them, drawn) or ``"two_coin"`` (what is
            more probable, by rates estimated from the votes on the client's images).
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
    return Regime(
        annotate,
        adds_wrong=True,
        adds_uncertain=unsure,
        counts_images=aggregation == "two_coin",
        selective=unsure,
        looks=counted,
    )
