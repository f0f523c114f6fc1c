"""Single positive: one present label per image is known and nothing else.

The label is drawn once among those present in the image, and never again. Source
of the setting and of ``bias="uniform"``: Cole et al., "Multi-Label Learning from
Single Positive Labels" (CVPR 2021). Source of the other three: Arroyo, Perona and
Cole, "Understanding Label Bias in Single Positive Multi-Label Learning" (ICLR
2023 Tiny Papers, arXiv 2305.15584). A present label c of image i is drawn with a
probability proportional to

- ``"size"``: the summed area of its instances;
- ``"location"``: the sum over its instances of 1/d, where d is the distance in
  pixels from the centre of the box to the centre of the image (5e-4 if 0);
- ``"semantic"``: g_c, one rate per label: how often people mention it.

An image without a present label stays unknown throughout, entries that the data
set itself marks uncertain stay uncertain. Where every present label has weight 0
(no box, no rate), the draw is uniform.

Departures:
- The source draws in a sequence of random numbers; here a draw depends on the
  seed, the client and the image. The same image draws from the same numbers
  under every bias.
- Areas and distances are those of the stored image. Squashing an image changes
  distances along one side only.
- g is given by the user: the source's own estimate needs raw logs of COCO's
  crowd workers. With ``concentration``, each client draws its own g.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import numpy as np
from pydantic import Field

from fedmlic.annotation.draws import log_dirichlet, race
from fedmlic.annotation.instances import centre_distances, need_objects, sums
from fedmlic.annotation.label_columns import per_label
from fedmlic.errors import InputError
from fedmlic.labels import PRESENT, UNKNOWN, known
from fedmlic.regime import Assignment, Regime

if TYPE_CHECKING:
    from numpy.typing import NDArray

CENTRE = 5e-4
"""Distance in pixels of an instance in the very centre."""

_Rate = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Bias(NamedTuple):
    """What makes a label likely to be mentioned."""

    name: str
    mention_rates: dict[str, float] | tuple[float, ...] | None
    concentration: float | None


def _rates(assignment: Assignment, bias: _Bias) -> NDArray[np.float64]:
    """float64 ``[labels]``: log g of this client, up to a constant."""
    num_labels = assignment.labels.shape[1]
    if bias.mention_rates is None:
        rates = np.ones(num_labels)
    else:
        rates = per_label(bias.mention_rates, assignment.label_names, "mention_rates of single_positive")
    if bias.concentration is not None:
        return log_dirichlet(bias.concentration * rates / rates.sum(), assignment.rng("mention rates"))
    with np.errstate(divide="ignore"):
        return np.log(rates)


def _log_weights(assignment: Assignment, bias: _Bias) -> NDArray[np.float64]:
    """float64 ``[images, labels]``: log of each entry's weight."""
    if bias.name == "semantic":
        return np.broadcast_to(_rates(assignment, bias), assignment.labels.shape)
    who = f"single_positive(bias={bias.name!r})"
    objects = need_objects(assignment, who, "Use bias='uniform' or 'semantic', or a data set with boxes.")
    values = objects.area if bias.name == "size" else 1 / np.fmax(centre_distances(assignment, objects), CENTRE)
    with np.errstate(divide="ignore"):
        return np.log(sums(assignment, objects, values))


def _tickets(assignment: Assignment, bias: _Bias) -> NDArray[np.float64]:
    """float64 ``[images, labels]``, above -inf where present: the largest of an image wins."""
    present = assignment.labels == PRESENT
    uniforms = assignment.uniforms("pick")
    if bias.name == "uniform":
        # The largest of several independent uniforms is each of them equally often.
        return np.where(present, uniforms, -np.inf)
    weights = np.where(present, _log_weights(assignment, bias), -np.inf)
    weightless = weights.max(axis=1, keepdims=True) == -np.inf
    tickets = race(uniforms, np.where(present & weightless, 0.0, weights))
    return np.where(present, np.fmax(tickets, np.finfo(np.float64).min), -np.inf)


def _check(bias: _Bias) -> None:
    if bias.name != "semantic":
        if bias.mention_rates is not None or bias.concentration is not None:
            msg = (
                "Expected mention_rates and concentration of single_positive to be given for bias='semantic' alone, "
                f"got bias={bias.name!r}."
            )
            raise InputError(msg)
    elif bias.mention_rates is None and bias.concentration is None:
        msg = (
            "Expected mention_rates of single_positive to be a rate per label for bias='semantic', got none. "
            "Give {'name': rate, ...}, or concentration=1.0 to have each client draw its own."
        )
        raise InputError(msg)
    elif bias.mention_rates is not None:
        rates = bias.mention_rates.values() if isinstance(bias.mention_rates, dict) else bias.mention_rates
        if not sum(rates) > 0:
            raise InputError("Expected mention_rates of single_positive to have a rate above 0, got none.")


def single_positive(
    *,
    bias: Literal["uniform", "size", "location", "semantic"] = "uniform",
    mention_rates: dict[str, _Rate] | tuple[_Rate, ...] | None = None,
    concentration: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None,
) -> Regime:
    """One present label per image; everything else is unknown.

    Args:
        bias: what makes a present label likely to be the one.
        mention_rates: for ``"semantic"``: g, 0 or more, by label name or in column order.
        concentration: for ``"semantic"``: each client draws its own g from
            Dirichlet(concentration * g / sum of g), above 0; small values make clients differ
            much. Without ``mention_rates``, g is 1 for every label.

    Raises:
        InputError: arguments that do not belong together; at the first client, a data set
            without boxes for ``"size"`` and ``"location"``, or rates that do not fit its labels.
    """
    chosen = _Bias(bias, mention_rates, concentration)
    _check(chosen)

    def annotate(assignment: Assignment) -> NDArray[np.int8]:
        labels = assignment.labels
        observed = np.where(known(labels), np.int8(UNKNOWN), labels)
        if labels.size:
            tickets = _tickets(assignment, chosen)
            images = np.flatnonzero(tickets.max(axis=1) > -np.inf)
            observed[images, tickets[images].argmax(axis=1)] = PRESENT
        return observed

    return Regime(annotate, selective=True, needs_objects=bias in {"size", "location"})
