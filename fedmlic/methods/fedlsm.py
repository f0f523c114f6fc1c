"""FedLSM: what a client does not annotate is completed where the global model is sure, and mixed in where it is not.

With q the probability of the round's incoming global model (the teacher) for a weakly changed view of an image, an
entry that is not annotated is

* present where q >= ``present_from``, absent where q <= ``absent_below``: these and annotated entries are *certain*.

The network trains on a strongly changed view:

    L = mean over certain entries of binary cross-entropy + mixing * M

M mixes every image with another of the batch, both unchanged: x' = r x_i + (1 - r) x_j, with one r of the batch, drawn
from Beta(``alpha``, ``alpha``). It is the mean binary cross-entropy of x' against r t_i + (1 - r) t_j over entries
where the teacher's q for image i is ``high`` or more (then present) or ``low`` or less (absent), and its q for image j
is sure as above. Annotated entries keep their label in t; whether they count is the teacher's say too, as in the
released code. Completed labels of the turn are kept, so that ``strategy="flag()"`` weighs a label's rows by annotated
and pseudo-positives together: the authors' adaptive classifier aggregation.

A bound of 1 takes nothing as present, one of 0 nothing as absent, however large a logit. ``mixing=0`` leaves out mixed
images, ``weak="none"`` both views; with ``present_from=1`` and ``absent_below=0`` as well it is ``bce``.

Deviations from the released code (more on its page): its masks come after a cross-entropy that is already a mean, so
that they scale it and leave no entry out; here they do. It weighs the loss of certain images by the global ratio of
negatives to positives. Its images i are those of highest entropy, which take no other part, its images j those of
lowest. Its teacher follows the network by a thousandth a step.

Source: FedLSM, federated learning with partially labelled images
(MICCAI 2023, arXiv 2304.06931) and its released code.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fedmlic.errors import InputError
from fedmlic.guesses import open_entries, precise
from fedmlic.image_state import COMPLETED, image_state
from fedmlic.labels import ABSENT, PRESENT, UNKNOWN
from fedmlic.losses import masked_mean, mean_binary_cross_entropy
from fedmlic.method import Inputs, Local, Method, Objective
from fedmlic.training import classifier, trainer
from fedmlic.views import strong_view, weak_view

if TYPE_CHECKING:
    from torch import nn

    from fedmlic.shard import Shard

Share = Annotated[float, Field(ge=0, le=1)]


class Bounds(NamedTuple):
    """Between which probabilities of the teacher nothing is said of an entry.

    Attributes:
        upper: an entry from it on is present; with 1 none is.
        lower: an entry up to it is absent; with 0 none is.
    """

    upper: float
    lower: float

    def of(self, taught: Tensor) -> Tensor:
        """int8, the teacher's say where it is sure, UNKNOWN elsewhere, of its probabilities."""
        # A large logit's sigmoid is 0 or 1 by rounding, which must not pass for being sure at a bound of 0 or 1.
        present, absent = (taught >= self.upper) & (self.upper < 1), (taught <= self.lower) & (self.lower > 0)
        return torch.where(present, PRESENT, torch.where(absent, ABSENT, UNKNOWN)).to(torch.int8)


def completed(labels: Tensor, taught: Tensor, bounds: Bounds) -> Tensor:
    """int8 ``[batch, labels]``: annotations, and what the teacher is sure of; UNKNOWN elsewhere.

    Args:
        labels: int8 ``[batch, labels]``.
        taught: ``[batch, labels]``, the teacher's probabilities.
        bounds: where it is sure.
    """
    return torch.where(open_entries(labels), bounds.of(taught), labels)


def mixed(first: Tensor, partner: Tensor, ratio: Tensor) -> Tensor:
    """``r x_i + (1 - r) x_j``, where j is the partner of i.

    Args:
        first: ``[batch, ...]``.
        partner: int64 ``[batch]``.
        ratio: a scalar.
    """
    return ratio * first + (1 - ratio) * first[partner]


def mixed_labels(
    labels: Tensor, taught: Tensor, partner: Tensor, ratio: Tensor, bounds: tuple[Bounds, Bounds]
) -> tuple[Tensor, Tensor]:
    """Soft labels ``r t_i + (1 - r) t_j``, and bool: which entries count; both ``[batch, labels]``.

    Args:
        labels: int8 ``[batch, labels]``.
        taught: ``[batch, labels]``, the teacher's probabilities.
        partner: int64 ``[batch]``, which j is the partner of i.
        ratio: r, a scalar.
        bounds: where the teacher is sure enough of i, and of j.
    """
    own, other = (completed(labels, taught, each).clamp(min=0).to(taught.dtype) for each in bounds)
    used = (bounds[0].of(taught) >= ABSENT) & (bounds[1].of(taught) >= ABSENT)[partner]
    return ratio * own + (1 - ratio) * other[partner], used


def fedlsm(
    *,
    present_from: Share = 0.85,
    absent_below: Share = 0.01,
    low: Share = 0.005,
    high: Share = 0.7,
    mixing: Annotated[float, Field(ge=0)] = 0.1,
    alpha: Annotated[float, Field(gt=0)] = 0.2,
    weak: Literal["none", "flip", "shift", "flip+shift"] = "flip",
    pool: Literal["mean", "max", "logsumexp"] = "mean",
) -> Method:
    """Pseudo-labels where the global model is sure, mixed images where it is not (FedLSM).

    Args:
        present_from: probability from which an entry that is not annotated is taken as present; 1: never.
        absent_below: probability up to which it is taken as absent; 0: never.
        low: as ``absent_below``, for the first of two mixed images.
        high: as ``present_from``, for the first of two mixed images.
        mixing: weight of mixed images; 0 for none.
        alpha: both parameters of the Beta distribution of how images are mixed.
        weak: how the teacher's view is changed (``views.augment``); the network's is changed strongly as well
            (``views.strong_view``). ``none``: both see the image as it is.
        pool: how the logit map becomes one logit per label (``fedmlic.model.Classifier``).

    The training metrics ``pseudo-present-per-label`` and ``pseudo-absent-per-label`` count pseudo-labels of clients'
    turns, divided by the number of labels.

    Raises:
        InputError: ``absent_below`` is above ``present_from``, or ``low`` above ``high``.
    """
    for name, lower, upper in (("absent_below", absent_below, present_from), ("low", low, high)):
        if lower > upper:
            msg = f"Expected {name} of fedlsm to be at most {upper}, got {lower}. Lower it."
            raise InputError(msg)

    strict, loose = Bounds(present_from, absent_below), Bounds(high, low)

    def inputs(local: Local) -> Inputs:
        answers = image_state(local, COMPLETED, _annotated)
        observed = torch.zeros_like(answers) if local.shard is None else _annotated(local.shard).to(answers.device)
        answers.copy_(observed)
        rng, views = local.rng("fedlsm/mixing"), local.torch_rng("fedlsm/views")

        def taught(images: Tensor) -> Tensor:
            with torch.no_grad():
                return torch.sigmoid(precise(local.incoming()(images)))

        def of(images: Tensor, labels: Tensor, numbers: Tensor) -> tuple[Tensor, ...]:
            labels = labels.to(images.device)
            seen, trained = images, images
            if weak != "none":
                seen, trained = weak_view(images, views, weak=weak), strong_view(images, views, weak=weak)
            said = taught(seen)
            found = completed(labels, said, strict)
            answers.index_copy_(0, numbers.to(answers.device), found)
            if mixing == 0:
                return trained, found
            partner = torch.from_numpy(rng.permutation(len(labels))).to(images.device)
            ratio = torch.tensor(rng.beta(alpha, alpha), dtype=images.dtype, device=images.device)
            plain = said if weak == "none" else taught(images)
            targets, used = mixed_labels(labels, plain, partner, ratio, (loose, strict))
            return trained, found, mixed(images, partner, ratio), targets, used

        return Inputs(of, partial(_counted, observed, answers))

    loss = partial(_loss, mixing=mixing)
    objective = Objective(loss, inputs, one_by_one="the global model labels a client's images")
    return classifier(loss, pool=pool)._replace(
        train=trainer(objective),
        objective=objective,
        remembers=True,
        guesses="what the global model is sure of",
        needs_absences=True,
        needs_pixels=mixing > 0 or weak != "none",
    )


def _counted(observed: Tensor, answers: Tensor) -> dict[str, float]:
    """Pseudo-labels of a client by their state, per label."""
    guessed, count = open_entries(observed), max(answers.shape[1], 1)
    states = {"present": PRESENT, "absent": ABSENT}
    return {
        f"pseudo-{name}-per-label": int((guessed & (answers == state)).sum()) / count for name, state in states.items()
    }


def _loss(network: nn.Module, *given: Tensor, mixing: float) -> Tensor:
    _, _, trained, answers, *mixtures = given
    certain = mean_binary_cross_entropy(network(trained), answers)
    if not mixtures:
        return certain
    images, targets, used = mixtures
    logits = precise(network(images))
    entries = F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none")
    return certain + mixing * masked_mean(entries, used)


def _annotated(shard: Shard) -> Tensor:
    return torch.from_numpy(np.array(shard.labels))
