"""FedCorr: noisy clients are found by their predictions, and annotations of theirs relabelled, in three stages.

The client's half; ``strategy="fedcorr()"`` is the server's, which finds noisy clients and says which stage it is.

1. Pre-processing. A client trains on its labels as they are now. With the network as its turn leaves it, it keeps the
   log-loss of every annotated entry and reports one score:

   * ``loss``: its mean log-loss;
   * ``lid``: the mean local intrinsic dimension of its predictions, -k / sum over the k nearest of log(r_j / r_k), r
     the distances of an image's probabilities to those of the client's other images.

   A noisy client begins its next turn by a mixture of two Gaussians over the losses that it kept. Entries in the
   group with the larger mean are *suspected*; its noise level m is their share. Of them the floor(``ratio`` * number)
   with the largest losses are relabelled by the global model, if it is sure of them: max(q, 1 - q) > ``confidence``.
   Then it trains with ``proximal`` * m * ||w - w_global|| added to the loss.
2. Fine-tuning. Only clients with m up to the server's limit train and count.
3. Usual training. Every noisy client first relabels all annotated entries of which the global model is sure.

The loss is binary cross-entropy over annotated entries throughout. Entries that are not annotated stay so.

Deviations: the score of the source is ``lid``, larger at noisy clients there; of several labels' probabilities it was
smaller in what was measured here, so that ``loss`` is the default. The source is single-label; it judges images by
their one label. Here entries are judged (``unit="image"``: images, by their mean loss over annotated entries, and all
of their annotated entries relabelled). Its clients train one after another in the first stage, here side by side, so
that it takes more rounds. Its released code takes losses for the mixture from outputs that went through a softmax
twice, and leaves out the proximal term in the first batch of an epoch; here neither. A client of fewer than three
images reports no ``lid``; images whose nearest are all equally far are left out of it.

Source: Xu et al., "FedCorr: Multi-Stage Federated Learning for Label Noise Correction" (CVPR 2022) and its released
code.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from fedmlic.guesses import precise
from fedmlic.image_state import COMPLETED, image_state, of_all_images
from fedmlic.labels import ABSENT, PRESENT
from fedmlic.losses import binary_cross_entropy, mean_binary_cross_entropy
from fedmlic.method import Inputs, Local, Method, Objective, Trained
from fedmlic.mod import Hooks, Step
from fedmlic.noisy_clients import is_among
from fedmlic.training import classifier, fit, on_all
from fedmlic.two_groups import two_groups

if TYPE_CHECKING:
    from fedmlic.arrays import Resident
    from fedmlic.experiment import Experiment
    from fedmlic.shard import Shard

NOISY, STAGE, LIMIT = "fedcorr/noisy", "fedcorr/stage", "fedcorr/limit"
"""What the server shares: int64 ids of noisy clients, the round's stage (1, 2, 3), the largest m that fine-tunes."""
SCORE, SCORED, TOOK_PART = "score", "scored-clients", "training-clients"
"""Metrics of a client's turn: its score, whether it has one, and whether it trained."""
NEAREST, CLOSE = 1024, 1e-6
"""Images at once whose neighbours are looked for; what is added to distances, since predictions may be equal."""

Share = Annotated[float, Field(ge=0, le=1)]
Unit = Literal["entry", "image"]


class Options(NamedTuple):
    """Of ``fedcorr``, as it has them."""

    score: str
    neighbours: int
    unit: Unit
    ratio: float
    confidence: float
    proximal: float


def local_dimension(points: Tensor, neighbours: int) -> Tensor:
    """float64 ``[points]``: the local intrinsic dimension at every point; NaN where its nearest are all equally far.

    Args:
        points: ``[points, dimensions]``.
        neighbours: k; all other points where there are fewer.
    """
    points = points.double()
    count = min(neighbours, len(points) - 1)
    if count < 1:
        return torch.full((len(points),), torch.nan, dtype=torch.float64)
    found = []
    for block in torch.split(points, NEAREST):
        near = torch.cdist(block, points).sort(dim=1).values[:, 1 : count + 1] + CLOSE
        logs = (near / near[:, -1:]).log().sum(dim=1)
        found.append(torch.where(logs < 0, -count / logs, torch.nan))
    return torch.cat(found)


def suspected(losses: Tensor, unit: Unit) -> Tensor:
    """Bool ``[images, labels]``: entries in the group with the larger losses, or of images in it.

    Args:
        losses: ``[images, labels]``, NaN where nothing is annotated.
        unit: ``entry`` or ``image``.
    """
    held, values = _units(losses, unit)
    found = torch.zeros(held.shape, dtype=torch.bool)
    found[held] = two_groups(values[:, None], starts=5).upper
    return _entries(found, losses)


def worst(losses: Tensor, among: Tensor, ratio: float, unit: Unit) -> Tensor:
    """Bool ``[images, labels]``: of the suspected entries (or images) the share with the largest losses, rounded down.

    Args:
        losses: ``[images, labels]``, NaN where nothing is annotated.
        among: bool, likewise: what is suspected.
        ratio: the share.
        unit: ``entry`` or ``image``.
    """
    held, values = _units(torch.where(among, losses, torch.nan), unit)
    wanted = int(ratio * len(values))
    chosen = torch.zeros(len(values), dtype=torch.bool)
    chosen[values.argsort(descending=True, stable=True)[:wanted]] = True
    found = torch.zeros(held.shape, dtype=torch.bool)
    found[held] = chosen
    return _entries(found, losses)


def relabelled(labels: Tensor, probs: Tensor, chosen: Tensor, confidence: float) -> Tensor:
    """int8 ``[images, labels]``: the labels, chosen annotated entries as the global model has them where it is sure.

    Args:
        labels: int8.
        probs: ``[images, labels]``, q.
        chosen: bool, likewise.
        confidence: max(q, 1 - q) must be larger.
    """
    sure = torch.maximum(probs, 1 - probs) > confidence
    said = torch.where(probs > 0.5, PRESENT, ABSENT).to(torch.int8)
    return torch.where(chosen & sure & (labels >= ABSENT), said, labels)


def _units(losses: Tensor, unit: Unit) -> tuple[Tensor, Tensor]:
    """Which entries ``[images, labels]`` or images ``[images]`` have a loss, and their losses."""
    values = losses.nanmean(dim=1) if unit == "image" else losses
    held = ~values.isnan()
    return held, values[held]


def _entries(found: Tensor, losses: Tensor) -> Tensor:
    return (found if found.ndim == losses.ndim else found[:, None]) & ~losses.isnan()


class _Client:
    """What a client knows in one turn, and keeps.

    Args:
        local: whose turn it is, with its shard.
        options: of the method.
    """

    def __init__(self, local: Local, options: Options) -> None:
        self._local, self._options = local, options
        self.labels = image_state(local, COMPLETED, lambda shard: torch.from_numpy(np.array(shard.labels)))
        self._losses = image_state(local, "fedcorr/losses", lambda shard: torch.full(shard.labels.shape, torch.nan))
        self._suspected = image_state(local, "fedcorr/suspected", lambda shard: torch.zeros(shard.labels.shape).bool())
        self._settled = image_state(local, "fedcorr/settled", lambda shard: torch.zeros(shard.num_images).bool())
        self._noisy = is_among(local.shared, NOISY, local.client)
        self.stage = int(local.shared.get(STAGE, torch.tensor(1)))

    @property
    def level(self) -> float:
        """M, the share of annotated entries that are suspected."""
        known = self.labels >= ABSENT
        return float(self._suspected[known].double().mean()) if known.any() else 0.0

    @property
    def trains(self) -> bool:
        """Whether it takes part in this round's stage."""
        return self.stage != 2 or self.level <= float(self._local.shared.get(LIMIT, torch.tensor(1.0)))

    def begin(self) -> None:
        """Relabel, as a turn begins and with the global model."""
        if self._noisy and self.stage == 3 and not self._settled.all():
            self._relabel(self.labels >= ABSENT)
            self._settled.fill_(value=True)
        if self.stage == 3 or self._losses.isnan().all():
            return
        losses = self._losses.cpu()
        found = suspected(losses, self._options.unit) if self._noisy else torch.zeros_like(losses).bool()
        self._suspected.copy_(found)
        if self._noisy:
            self._relabel(worst(losses, found, self._options.ratio, self._options.unit).to(self.labels.device))
        self._losses.fill_(torch.nan)  # of one pass only

    def _relabel(self, chosen: Tensor) -> None:
        probs = torch.sigmoid(of_all_images(self._local, _logits))
        self.labels.copy_(relabelled(self.labels, probs, chosen, self._options.confidence))

    def finish(self) -> dict[str, float]:
        """Keep losses and report the score, in the first stage."""
        metrics = {"noise-level": self.level, TOOK_PART: 1.0, SCORE: 0.0, SCORED: 0.0}
        if self.stage > 1 or not len(self.labels):
            return metrics
        logits = of_all_images(self._local, _logits)
        known = self.labels >= ABSENT
        self._losses.copy_(torch.where(known, binary_cross_entropy(logits, self.labels), torch.nan))
        each = self._losses if self._options.score == "loss" else torch.full((1,), torch.nan)
        if self._options.score == "lid" and len(self.labels) > 2:
            each = local_dimension(torch.sigmoid(logits), self._options.neighbours)
        if not each.isnan().all():
            metrics |= {SCORE: float(each.double().nanmean()), SCORED: 1.0}
        return metrics

    def inputs(self) -> Inputs:
        """Labels as they are now."""

        def of(images: Tensor, _labels: Tensor, numbers: Tensor) -> tuple[Tensor]:
            return (self.labels[numbers.to(images.device)],)

        return Inputs(of, self.finish)

    def hooks(self, resident: Resident) -> tuple[Hooks, ...]:
        """The proximal term, where this turn has one."""
        weight = self._options.proximal * self.level
        if self.stage > 1 or weight == 0:
            return ()
        pairs = [
            (now, start)
            for now, start in zip(resident.parameters, resident.per_parameter(self._local.start), strict=True)
            if start is not None
        ]

        def term(step: Step) -> Tensor:
            del step
            squares = torch.stack([(now - start).square().sum() for now, start in pairs]).sum()
            return weight * (squares + CLOSE**2).sqrt()  # where nothing has moved yet its gradient is 0

        return (Hooks(term=term),)


def fedcorr(
    *,
    score: Literal["loss", "lid"] = "loss",
    neighbours: Annotated[int, Field(ge=2)] = 20,
    unit: Unit = "entry",
    ratio: Share = 0.5,
    confidence: Annotated[float, Field(ge=0.5, le=1)] = 0.9,
    proximal: Annotated[float, Field(ge=0)] = 5.0,
    pool: Literal["mean", "max", "logsumexp"] = "mean",
) -> Method:
    """Annotations of noisy clients are relabelled in three stages that ``strategy="fedcorr()"`` leads (FedCorr).

    Args:
        score: what a client reports of itself: its mean ``loss``, or ``lid`` of its predictions (the source's).
        neighbours: of ``lid``, k.
        unit: what is judged and relabelled: every ``entry`` by itself, or an ``image`` with all its annotations.
        ratio: of what is suspected, how much is relabelled.
        confidence: of the global model, above which it relabels.
        proximal: weight of the distance to the global model, times the noise level; 0 for none.
        pool: how the logit map becomes one logit per label (``fedmlic.model.Classifier``).

    The training metrics are ``score``, ``scored-clients``, ``noise-level`` and ``training-clients``.
    """
    options = Options(score, neighbours, unit, ratio, confidence, proximal)

    def loss(network: nn.Module, *given: Tensor) -> Tensor:
        images, _, labels = given
        return mean_binary_cross_entropy(network(images), labels)

    def train(resident: Resident, shard: Shard, local: Local) -> Trained:
        client = _Client(replace(local, shard=shard, on_all=on_all(resident, shard, local)), options)
        client.begin()
        if not client.trains:
            return Trained(0.0, 0, {"noise-level": client.level, TOOK_PART: 0.0, SCORE: 0.0, SCORED: 0.0})
        hooked = replace(local, hooks=(*local.hooks, *client.hooks(resident)))
        return fit(resident, shard, hooked, Objective(loss, lambda _: client.inputs()))

    plain = classifier(mean_binary_cross_entropy, pool=pool)
    why = "a client's images are judged by its own network"
    objective = Objective(loss, lambda local: _Client(local, options).inputs(), one_by_one=why)
    return plain._replace(train=train, objective=objective, remembers=True, refuses=_unsuited)


def _unsuited(experiment: Experiment) -> str:
    if experiment.strategy.partition("(")[0] != "fedcorr":
        return f"noisy clients are found by strategy='fedcorr()', not {experiment.strategy}; name it"
    if not experiment.allow_statistics:
        return "it tells the server how noisy each client's labels look; set allow-statistics=true if clients agree"
    return ""


def _logits(network: nn.Module, images: Tensor) -> Tensor:
    return precise(network(images))
