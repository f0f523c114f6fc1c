"""GR: one family of robust losses for entries that nobody annotated, moving over a client's passes.

With p the probability of an entry that is not annotated:

    v(p) * (k(p) * (1 - p^q2) / q2  +  (1 - k(p)) * (1 - (1 - p)^q3) / q3)

* k(p) = sigmoid(w p + b): how likely the entry is a presence that nobody wrote down;
* v(p) = exp(-(p - mu)^2 / (2 sigma^2)): how much the entry counts;
* (1 - p^q) / q is the generalised cross-entropy: -log p as q goes to 0, 1 - p at q = 1.

No gradient flows through k and v. w, b, mu and sigma move from their first to their last value on a line: in a
client's pass e of E = ``epochs``, w and b are at (e - 1) / E of the way, mu and sigma at e / E; later passes have the
last values. Passes before ``first_pass`` have the first values and are not among the E.

The loss is a mean over all entries. A choice: entries annotated as ABSENT, of which the source has none, cost
-log(1 - p).

Source: GR Loss, IJCAI 2024 (released code ``yan4xi1/GRLoss``); defaults are its values for VOC 2012.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fedmlic.guesses import absent_cost, open_entries, precise, present_cost, present_entries
from fedmlic.image_state import Passes
from fedmlic.method import Inputs, Local, Method
from fedmlic.training import classifier

Pair = tuple[float, float]


class Shape(NamedTuple):
    """First and last values of what moves, and the two exponents.

    Attributes:
        slope: w.
        offset: b.
        centre: mu.
        width: sigma.
        q_present: q2.
        q_absent: q3.
        epochs: E, passes from the first to the last values.
        first_pass: passes before these, with the first values.
    """

    slope: Pair
    offset: Pair
    centre: Pair
    width: Pair
    q_present: float
    q_absent: float
    epochs: int
    first_pass: int = 0

    def at(self, number: int) -> Tensor:
        """float32 ``[4]``: w, b, mu and sigma in a client's pass 0, 1, ..."""
        pairs = (self.slope, self.offset, self.centre, self.width)
        begun = number - self.first_pass
        shares = [min(max(each, 0) / self.epochs, 1.0) for each in (begun, begun, begun + 1, begun + 1)]
        return torch.tensor([a + share * (z - a) for (a, z), share in zip(pairs, shares, strict=True)])


def gr_entries(logits: Tensor, labels: Tensor, now: Tensor, q_present: float, q_absent: float) -> Tensor:
    """The loss of every entry.

    Args:
        logits: floating ``[batch, labels]``.
        labels: int8 ``[batch, labels]``.
        now: ``[4]``: w, b, mu and sigma.
        q_present: q2, above 0.
        q_absent: q3, above 0.
    """
    logits = precise(logits)
    probs = torch.sigmoid(logits).detach()
    slope, offset, centre, width = now
    likely = torch.sigmoid(slope * probs + offset)
    weight = torch.exp(-(probs - centre).square() / (2 * width.square()))
    as_present = -torch.expm1(q_present * F.logsigmoid(logits)) / q_present
    as_absent = -torch.expm1(q_absent * F.logsigmoid(-logits)) / q_absent
    guessed = weight * (likely * as_present + (1 - likely) * as_absent)
    known = torch.where(present_entries(labels), present_cost(logits), absent_cost(logits))
    return torch.where(open_entries(labels), guessed, known)


def gr(
    *,
    slope: Pair = (0.0, 2.0),
    offset: Pair = (-2.0, -2.0),
    centre: Pair = (0.5, 0.8),
    width: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (2.0, 0.5),
    q_present: Annotated[float, Field(gt=0, le=1)] = 0.01,
    q_absent: Annotated[float, Field(gt=0, le=1)] = 1.0,
    epochs: Annotated[int, Field(ge=1)] = 8,
    first_pass: Annotated[int, Field(ge=0)] = 0,
    pool: Literal["mean", "max", "logsumexp"] = "mean",
) -> Method:
    """Generalised robust loss for present-only labels (GR Loss).

    Args:
        slope: w, first and last value.
        offset: b, first and last value.
        centre: mu, first and last value.
        width: sigma, first and last value, above 0.
        q_present: q2, in (0, 1]; near 0 the log-loss, 1 the absolute error.
        q_absent: q3, likewise.
        epochs: passes of a client over its images from the first values to the last.
        first_pass: passes of a client before the values begin to move.
        pool: how the logit map becomes one logit per label (``fedmlic.model.Classifier``).
    """
    shape = Shape(slope, offset, centre, width, q_present, q_absent, epochs, first_pass)

    def inputs(local: Local) -> Inputs:
        passes = Passes(local)

        def now(images: Tensor, labels: Tensor, _numbers: Tensor) -> tuple[Tensor]:
            return (shape.at(passes.next(len(labels)).number).to(images.device),)

        return Inputs(now, dict)

    def loss(logits: Tensor, labels: Tensor, now: Tensor) -> Tensor:
        return gr_entries(logits, labels, now, q_present, q_absent).mean()

    return classifier(loss, pool=pool, inputs=inputs)._replace(remembers=True, guesses="probably absent")
