"""Uncertain: annotators are not sure of some entries and say so.

An entry that turns ``UNCERTAIN`` is no annotation: a method sees that somebody
looked and could not tell. ``rule="random"`` draws entries one by one, as the
"uncertain" mentions of chest X-ray reports are a state beside positive and
negative (CheXpert, Irvin et al., AAAI 2019). ``rule="small"`` makes a present
label uncertain when its instances together fill less than ``max_area_fraction``
of the image, which needs boxes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from fedmlic.annotation.draws import Chance, Probability, chance
from fedmlic.annotation.instances import need_objects, sums
from fedmlic.labels import ABSENT, PRESENT, UNCERTAIN, known
from fedmlic.regime import Assignment, Regime

if TYPE_CHECKING:
    from numpy.typing import NDArray


def _named(labels: NDArray[np.int8], of: str) -> NDArray[np.bool_]:
    if of == "all":
        return known(labels)
    return np.equal(labels, PRESENT if of == "present" else ABSENT)


def _small(assignment: Assignment, max_area_fraction: float) -> NDArray[np.bool_]:
    """Bool ``[images, labels]``: entries with instances that together are small."""
    objects = need_objects(assignment, "uncertain(rule='small')", "Use rule='random' or a data set with boxes.")
    area = sums(assignment, objects, objects.area)
    height, width = assignment.image_size
    located = sums(assignment, objects, np.ones(len(objects.row))) > 0
    return np.asarray(located & (area < max_area_fraction * height * width))


def uncertain(
    *,
    probability: Chance = 0.1,
    of: Literal["all", "present", "absent"] = "all",
    rule: Literal["random", "small"] = "random",
    max_area_fraction: Probability = 0.01,
) -> Regime:
    """Known entries turn uncertain.

    Args:
        probability: of an entry that the rule names to turn uncertain, in [0, 1]; or drawn
            by each client from ``[low, high]`` or ``{"beta": [a, b]}``.
        of: which known entries ``rule="random"`` names.
        rule: ``"random"`` names all entries of ``of``; ``"small"`` names present entries
            whose instances fill less than ``max_area_fraction`` of the image. A present
            label without a box is not small.
        max_area_fraction: share in [0, 1] of the image's pixels, for ``rule="small"``.

    Raises:
        InputError: at the first client, for ``rule="small"`` on a data set without boxes.
    """

    def annotate(assignment: Assignment) -> NDArray[np.int8]:
        labels = assignment.labels
        named = _named(labels, of)
        if rule == "small":
            named = (labels == PRESENT) & _small(assignment, max_area_fraction)
        share = chance(probability, assignment, "probability")
        return np.where(named & (assignment.uniforms("unsure") < share), np.int8(UNCERTAIN), labels)

    selective = of != "all" or rule == "small"
    return Regime(annotate, adds_uncertain=True, selective=selective, needs_objects=rule == "small")
