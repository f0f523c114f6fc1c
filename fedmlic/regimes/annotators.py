"""Annotators who overlook things: small ones, those at the border, those in a crowd, and together.

An annotator notices a present label c of image i with probability

    recall_ic = sigmoid(logit(recall) + size_effect * log10(a_ic / 0.05)
                        - location_effect * r_ic - crowding_effect * (n_i - 1))

where a_ic is the share of the image that its instances fill (kept within 1e-4 and
1), r_ic is the distance of the nearest of them to the image's centre (0 there, 1
in a corner) and n_i is the number of present labels. So ``recall`` is that of a
label that fills 5 % of the image, in its centre, alone. A present label without a
box counts as such in size and place. An absent label is written down as present
with probability ``spurious``.

Several annotators err together: with probability ``correlation`` an entry is as
easy or as hard for all of them (they decide by one uniform number), otherwise
each decides by its own. Each keeps its own rates exactly; two annotators with
miss rates m <= m' both miss with probability correlation * m + (1 - correlation) * m * m'.

Defaults and where they come from: published predictions of three commercial
image taggers on the 11,540 images of PASCAL VOC 2012 trainval (FrugalMCT, Chen,
Zaharia and Zou, ICML 2022) miss a label of an image with 1, 2, 3, 4 or more labels at
rates .29 .65 .75 .84, .08 .33 .43 .51 and .21 .31 .43 .54. ``recall`` is the mean of
the first (0.81), ``crowding_effect`` the mean fall of the logit per label (0.7),
``spurious`` their mean false-positive rate (0.01), and the shares of joint misses
of two pairs give a correlation of 0.80 and 0.54. The effects of size and place
were not measured; their defaults are choices.

The form of the model is this project's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, NamedTuple

import numpy as np
from pydantic import Field

from fedmlic.annotation.draws import Chance, Drawn, Probability, chance
from fedmlic.annotation.instances import centre_distances, need_objects, smallest, sums
from fedmlic.annotation.votes import Aggregation, aggregate, looks, turns
from fedmlic.errors import InputError
from fedmlic.labels import PRESENT
from fedmlic.regime import Assignment, Regime

if TYPE_CHECKING:
    from numpy.typing import NDArray

TYPICAL_AREA = 0.05
"""Share of the image that a label fills whose recall is ``recall``."""

SMALLEST_AREA = 1e-4


class _Effects(NamedTuple):
    """Change of the logit of recall: per factor 10 in area, from the centre to a corner, per further label."""

    size: float
    location: float
    crowding: float


def _shift(assignment: Assignment, effects: _Effects) -> NDArray[np.float64]:
    """float64 ``[images, labels]``: what an entry's circumstances add to the logit of recall."""
    labels = assignment.labels
    others = np.fmax((labels == PRESENT).sum(axis=1, keepdims=True) - 1.0, 0.0)
    shift = np.asarray(-effects.crowding * others)
    if not effects.size and not effects.location:
        return np.broadcast_to(shift, labels.shape)
    who = "annotators(...) with a size_effect or a location_effect"
    objects = need_objects(assignment, who, "Set both to 0, or use a data set with boxes.")
    height, width = assignment.image_size
    share = sums(assignment, objects, objects.area) / (height * width)
    reach = smallest(assignment, objects, centre_distances(assignment, objects)) / (np.hypot(height, width) / 2)
    located = np.isfinite(reach)
    area = np.where(located, np.clip(share, SMALLEST_AREA, 1.0), TYPICAL_AREA)
    place = np.where(located, reach, 0.0)
    return np.asarray(shift + effects.size * np.log10(area / TYPICAL_AREA) - effects.location * place)


def _recall(recall: float, shift: NDArray[np.float64]) -> NDArray[np.float64]:
    if recall in {0.0, 1.0}:
        return np.full(shift.shape, recall)
    return np.asarray(1 / (1 + np.exp(-(np.log(recall / (1 - recall)) + shift))))


def _opinions(
    assignment: Assignment,
    num_annotators: int,
    recall: Drawn,
    spurious: Drawn,
    correlation: float,
    shift: NDArray[np.float64],
) -> NDArray[np.bool_]:
    """Bool ``[annotators, images, labels]``: who says that a label is present."""
    present = assignment.labels == PRESENT
    # One annotator alone has nobody to err with.
    several = num_annotators > 1 and correlation > 0
    together = several and assignment.uniforms("together") < correlation
    common = assignment.uniforms("common") if several else 0.0
    says = np.empty((num_annotators, *present.shape), dtype=np.bool_)
    for number in range(num_annotators):
        sees = _recall(chance(recall, assignment, f"recall {number}"), shift)
        invents = chance(spurious, assignment, f"spurious {number}")
        own = np.where(together, common, assignment.uniforms(f"annotator {number}"))
        says[number] = own < np.where(present, sees, invents)
    return says


def annotators(
    *,
    num_annotators: Annotated[int, Field(ge=1, le=100)] = 1,
    aggregation: Aggregation = "majority",
    recall: Chance = 0.81,
    spurious: Chance = 0.01,
    size_effect: Annotated[float, Field(allow_inf_nan=False)] = 1.0,
    location_effect: Annotated[float, Field(allow_inf_nan=False)] = 1.0,
    crowding_effect: Annotated[float, Field(allow_inf_nan=False)] = 0.7,
    correlation: Probability = 0.6,
) -> Regime:
    """Every entry is annotated by people or programs that err more on some entries than on others.

    Args:
        num_annotators: annotators of each client, 1 to 100.
        aggregation: what is written down: ``"majority"`` (present if more than half say so),
            ``"any"`` (if one says so), ``"unanimous"`` (what all say, else uncertain),
            ``"single"`` (each image has one of them, drawn) or ``"two_coin"`` (what is more
            probable, by rates estimated from the votes on the client's images; two annotators'
            votes do not determine them, so it takes three or more, or one, who is taken at his word).
        recall: probability in [0, 1] to notice a label that fills 5 % of the image, in its
            centre, alone; or drawn by each annotator of each client from ``[low, high]`` or
            ``{"beta": [a, b]}``.
        spurious: probability in [0, 1] that an absent label is written down as present, or
            drawn likewise.
        size_effect: logits per factor of 10 in area; 0 for none.
        location_effect: logits lost from the centre to a corner; 0 for none.
        crowding_effect: logits lost per further present label; 0 for none.
        correlation: probability in [0, 1] that an entry is equally hard for all annotators.

    Raises:
        InputError: ``"two_coin"`` of two annotators; at the first client, when size or location has
            an effect and the data set has no boxes.
    """
    if aggregation == "two_coin" and num_annotators == 2:
        msg = (
            "Expected num_annotators of annotators(aggregation='two_coin') to be 3 or more (or 1), got 2: two "
            "annotators' votes do not determine their rates. Raise it, or give another aggregation."
        )
        raise InputError(msg)
    effects = _Effects(size_effect, location_effect, crowding_effect)

    def annotate(assignment: Assignment) -> NDArray[np.int8]:
        shift = _shift(assignment, effects)
        says = _opinions(assignment, num_annotators, recall, spurious, correlation, shift)
        return aggregate(says, aggregation, turns(assignment, aggregation, num_annotators), assignment.labels)

    return Regime(
        annotate,
        adds_wrong=True,
        counts_images=aggregation == "two_coin",
        adds_uncertain=aggregation == "unanimous" and num_annotators > 1,
        selective=aggregation == "unanimous",
        needs_objects=bool(size_effect or location_effect),
        looks=lambda assignment: looks(assignment.labels, aggregation, num_annotators),
    )
