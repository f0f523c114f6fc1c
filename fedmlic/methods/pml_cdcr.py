"""PML-CDCR: false candidates are left out, the surest candidates first, and views must agree.

For candidate sets, in which every true label of an image is annotated and some false ones are too.
Rounds up to ``warm_up`` take all candidates as present (binary cross-entropy). Later, whenever one of a
client's passes over its images begins, the network as it is then judges a weak view of each image. For
the length of the pass a candidate is used, as present, where

    p_ic >= level + (mu_c - mu)

with p_ic its probability, mu_c the mean of p over candidates of label c and mu the mean over all
candidates: hard labels need less. Other candidates take no part; they are judged again at the next pass
and come back where they reach their threshold. Entries annotated as absent are always used. Training is on
a strong view, so the weak view's judgement supervises the strong one.

``difficulty`` says over what mu is: the client's own images (``client``); those of the clients of the round
before (``global``: every client sends, per label, the sum of p over its candidates and their number, as it first
judges them in its turn); or all thresholds are ``level`` (``none``). ``consistency`` adds, for
candidates that are left out, (p of the strong view - p of the weak view)^2.

The selection is kept by the client from turn to turn (``fedmlic.image_state``) and never leaves it.

Deviations: a mean over known entries, ``reduction="sum"`` is the authors'. The warm-up is counted in rounds,
since it is the global network that must have learned enough to judge. The authors take the second stage's
network from a moving average of the first's (0.9997), train both stages by one learning rate cycle, and use
RandAugment; none of these is here. The released code has no explicit consistency term and the paper's could
not be read: the term here is this project's own, off by default.

Source: PML-CDCR of Sun, Xie and Huang (arXiv 2207.02410; Machine Intelligence Research 21(4), 2024) and its
released code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from fedmlic.errors import InputError
from fedmlic.guesses import precise
from fedmlic.image_state import Passes, image_state, of_all_images
from fedmlic.labels import PRESENT
from fedmlic.losses import binary_cross_entropy, known_mean
from fedmlic.method import Inputs, Local, Method, Objective
from fedmlic.protocol import ROUND_SUMS
from fedmlic.training import classifier, trainer
from fedmlic.views import JITTER, strong_view, weak_view

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PROBABILITIES, COUNTS = "candidates/probability", "candidates/count"
"""Names of the sums of a round: of p over candidates of each label, in multiples of 2^-20, and how many they are."""
EMPTIED = "clients-without-selection"
"""The training metric that counts clients whose selection leaves none of their candidates."""
FIXED_POINT = 2**20
"""Sums are integers, so that a client of up to 2^20 images fits into an exact sum."""


def candidate_sums(probs: Tensor, candidates: Tensor) -> dict[str, Tensor]:
    """int64 ``[labels]`` each: the sum of p over candidates, times 2^20, and their number.

    Args:
        probs: float32 ``[images, labels]`` in [0, 1].
        candidates: bool ``[images, labels]``.
    """
    rounded = torch.where(candidates, (probs.double() * FIXED_POINT).round().long(), 0)
    return {PROBABILITIES: rounded.sum(dim=0), COUNTS: candidates.sum(dim=0)}


def thresholds(sums: Tensor, counts: Tensor, level: float) -> Tensor:
    """float64 ``[labels]``: level + mu_c - mu; ``level`` for labels of which no candidate is counted.

    Args:
        sums: of p over candidates of each label, ``[labels]``.
        counts: candidates of each label, ``[labels]``.
        level: a.

    >>> thresholds(torch.tensor([1.5, 0.5, 0.0]), torch.tensor([2, 2, 0]), 0.5).tolist()
    [0.75, 0.25, 0.5]
    """
    overall = sums.double().sum() / counts.sum().clamp(min=1)
    shifts = sums.double() / counts.clamp(min=1) - overall
    return level + torch.where(counts > 0, shifts, 0.0)


def select(probs: Tensor, candidates: Tensor, least: Tensor) -> Tensor:
    """Bool ``[images, labels]``: all that are no candidates, and candidates that reach their threshold.

    Args:
        probs: ``[images, labels]``.
        candidates: bool, likewise.
        least: ``[labels]``, thresholds.
    """
    return ~candidates | (probs >= least.to(probs.dtype))


def selected_entries(logits: Tensor, labels: Tensor, selected: Tensor) -> Tensor:
    """Binary cross-entropy of known entries that are selected; 0 elsewhere.

    Args:
        logits: floating ``[batch, labels]``.
        labels: int8 ``[batch, labels]``.
        selected: bool ``[batch, labels]``.
    """
    return torch.where(selected, binary_cross_entropy(logits, labels), 0.0)


def disagreement(logits: Tensor, selected: Tensor, judged: Tensor) -> Tensor:
    """(p of the strong view - p of the weak view)^2 where a candidate is left out; 0 elsewhere.

    Args:
        logits: floating ``[batch, labels]``, of the strong view.
        selected: bool ``[batch, labels]``.
        judged: ``[batch, labels]``, p of the weak view; sends no gradient.
    """
    return torch.where(selected, 0.0, (torch.sigmoid(precise(logits)) - judged.detach()).square())


class _Judge:
    """What a client makes of its candidates in one turn.

    Args:
        local: whose turn it is, with its shard.
        level: a.
        difficulty: over what mean probabilities are.
        weak: kind of the weak view.
        keeps: whether probabilities are needed until the next judgement, and so kept.
    """

    def __init__(self, local: Local, level: float, difficulty: str, weak: str, *, keeps: bool) -> None:
        self._local, self._level, self._difficulty, self._weak = local, level, difficulty, weak
        self.selected = image_state(local, "selected", lambda shard: torch.ones(shard.labels.shape, dtype=torch.bool))
        labels = np.zeros(self.selected.shape, np.int8) if local.shard is None else local.shard.labels
        self.candidates = torch.from_numpy(np.asarray(labels) == PRESENT).to(local.device)
        self.judged = torch.zeros(self.selected.shape, device=local.device)
        if keeps:
            self.judged = image_state(local, "judged", lambda _shard: self.judged)
        self.dropped = 0

    def look(self, number: int) -> None:
        """Note the probabilities of weak views of all images, and what is to be added up of them in this round."""
        local, rng = self._local, self._local.torch_rng(f"pml_cdcr/weak {number}")

        def probabilities(network: nn.Module, images: Tensor) -> Tensor:
            return torch.sigmoid(precise(network(weak_view(images, rng, weak=self._weak))))

        self.judged.copy_(of_all_images(local, probabilities))
        if self._difficulty == "global" and not local.round_sums:
            local.round_sums.update(candidate_sums(self.judged, self.candidates))

    def decide(self) -> None:
        """Select by the probabilities that were noted last."""
        chosen = select(self.judged, self.candidates, self._thresholds())
        self.dropped += int((self.selected & ~chosen).sum())
        self.selected.copy_(chosen)

    def _thresholds(self) -> Tensor:
        if self._difficulty == "none":
            return torch.full(self.judged.shape[1:], self._level, device=self.judged.device)
        if self._difficulty == "client":
            found = candidate_sums(self.judged, self.candidates)
        else:
            shared = self._local.shared
            found = {name: shared[ROUND_SUMS + name].to(self.judged.device) for name in (PROBABILITIES, COUNTS)}
            # Both are withheld by themselves: clients that are sure of "absent" stand behind the count alone.
            found[COUNTS] = torch.where(found[PROBABILITIES] > 0, found[COUNTS], 0)
        return thresholds(found[PROBABILITIES].double() / FIXED_POINT, found[COUNTS], self._level)

    def metrics(self) -> dict[str, float]:
        """Candidates, those selected at the end of the turn, and those dropped in it, divided by labels.

        And 1 as ``clients-without-selection`` for a client that has candidates and selects none.
        """
        num_labels = max(self.candidates.shape[1], 1)
        kept = int((self.selected & self.candidates).sum())
        counted = {"candidates": int(self.candidates.sum()), "selected": kept, "dropped": self.dropped}
        found = {f"{name}-per-label": count / num_labels for name, count in counted.items()}
        return {**found, EMPTIED: float(counted["candidates"] > 0 and kept == 0)}


def pml_cdcr(
    *,
    level: Annotated[float, Field(ge=0, le=1)] = 0.6,
    difficulty: Literal["none", "client", "global"] = "client",
    warm_up: Annotated[int, Field(ge=0)] = 16,
    consistency: Annotated[float, Field(ge=0)] = 0.0,
    weak: Literal["none", "flip", "shift", "flip+shift"] = "shift",
    strong: Literal["colours", "randaugment"] = "colours",
    jitter: Annotated[float, Field(ge=0, le=1)] | None = None,
    cutout: Annotated[float, Field(ge=0, le=1)] = 0.5,
    reduction: Literal["mean", "sum"] = "mean",
    pool: Literal["mean", "max", "logsumexp"] = "mean",
) -> Method:
    """Curriculum disambiguation of candidate sets with consistency between views (PML-CDCR).

    Args:
        level: a, the probability from which on a candidate is used, before its label's difficulty counts.
        difficulty: over what a label's mean probability is: the client's candidates, or those of all clients of
            the round before (``global``, needs ``allow-statistics``); ``none`` for one threshold for all labels.
        warm_up: rounds in which all candidates are used.
        consistency: weight of the views' disagreement on candidates that are left out (this project's own).
        weak: how the weak view is changed; mirroring only where it does not change labels.
        strong: the strong view has other colours, or RandAugment in their place (the authors'; ``fedmlic.views``).
        jitter: strength of the change of colours (None: 0.4); refused with RandAugment, which has none.
        cutout: side of the square that the strong view blanks, in shorter sides of the image.
        reduction: mean over known entries of a batch, or their sum (the authors').
        pool: how the logit map becomes one logit per label (``fedmlic.model.Classifier``).

    The training metrics ``candidates-per-label``, ``selected-per-label`` and ``dropped-per-label`` count
    candidates, those in use at the end of clients' turns and those that a turn stopped using, divided by the
    number of labels; ``clients-without-selection`` counts clients that have candidates and use none. A run warns when
    there is one.
    """
    if strong == "randaugment" and jitter is not None:
        msg = f"Expected no jitter with strong='randaugment', got jitter={jitter}. Leave it out, or strong='colours'."
        raise InputError(msg)
    jitter = JITTER if jitter is None else jitter
    randaugment = strong == "randaugment"
    changed = weak != "none" or jitter > 0 or cutout > 0

    def inputs(local: Local) -> Inputs:
        passes, judge = Passes(local), _Judge(local, level, difficulty, weak, keeps=consistency > 0)
        rng = local.torch_rng("pml_cdcr/strong")
        # The last round of the warm-up adds up what the first round after it needs.
        looks = local.round >= warm_up + (difficulty != "global")

        def of(images: Tensor, labels: Tensor, numbers: Tensor) -> tuple[Tensor, ...]:
            here, places = passes.next(len(labels)), numbers.to(images.device)
            if here.begins and looks:
                judge.look(here.number)
                if local.round > warm_up:
                    judge.decide()
            views = images
            if changed:
                views = strong_view(images, rng, jitter=jitter, cutout=cutout, weak=weak, randaugment=randaugment)
            return views, judge.selected[places], judge.judged[places]

        return Inputs(of, judge.metrics)

    base = classifier(mean_of_selected, pool=pool)
    objective = Objective(
        _loss(reduction, consistency), inputs, one_by_one="candidates are judged by a client's own network"
    )
    return base._replace(
        train=trainer(objective),
        objective=objective,
        remembers=True,
        needs_pixels=changed,
        round_sums=no_sums if difficulty == "global" else None,
        warns=nothing_left,
    )


def nothing_left(metrics: Mapping[str, float]) -> str:
    """What to say of a round in which the selection left nothing at some clients, or at all; empty otherwise.

    Args:
        metrics: of the round, added up over its clients.
    """
    if not metrics.get(EMPTIED):
        return ""
    if metrics["selected-per-label"] > 0:
        who = "some clients' selection leaves none of their candidates: they learn only what is absent"
    else:
        who = "the selection leaves no candidate at any client: from here on they learn only what is absent"
    return (
        f"{who}. All probabilities of these candidates are below the thresholds: the network had not learned enough "
        "when the selection began, and candidates hardly come back. Raise warm_up, or lower level"
    )


def mean_of_selected(logits: Tensor, labels: Tensor, selected: Tensor) -> Tensor:
    """The mean over known entries of ``selected_entries``, a scalar."""
    return known_mean(selected_entries(logits, labels, selected), labels)


def _loss(reduction: str, consistency: float) -> Callable[..., Tensor]:
    def loss(
        network: nn.Module, _images: Tensor, labels: Tensor, views: Tensor, selected: Tensor, judged: Tensor
    ) -> Tensor:
        logits = network(views)
        entries = selected_entries(logits, labels, selected)
        if consistency > 0:
            entries = entries + consistency * disagreement(logits, selected, judged)
        return entries.sum() if reduction == "sum" else known_mean(entries, labels)

    return loss


def no_sums(network: nn.Module, num_labels: int) -> dict[str, Tensor]:
    """Zeros of the sums of a round."""
    del network
    return {name: torch.zeros(num_labels, dtype=torch.int64) for name in (PROBABILITIES, COUNTS)}
