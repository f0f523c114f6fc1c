"""FedMLP: what a client does not annotate is taught by the global model, then tagged by prototypes of all clients.

For clients that annotate some labels only. An entry that is not annotated is *missing*. Two views of
every image are trained on; all terms are means over both.

Rounds up to ``warm_up``. p is the network's probability, q the incoming global model's for the same view:

    L = mean over annotated entries of l(p, y)  +  distillation * mean over missing entries of (p - q)^2

l is binary cross-entropy with the prior added to the logit, z + log(pi_c / (1 - pi_c)), pi_c the label's
present share of the client's images (``adjust``). From the last of these rounds on, clients add up, with the
network as their turn leaves it:

* prototypes: per label and state (absent, present), the mean feature of their annotated images, times images;
* the learning degree: how many missing entries have p < ``low`` or p > ``high``, and how many there are.

Later rounds. As a turn begins, missing entries that are not tagged yet are judged by
s = cos(f, absent prototype) - cos(f, present prototype), f the image's feature. Of a label's N entries with
s >= 0, the floor(``absent_share`` * N) largest are tagged absent, of those with s < 0 the
floor(``present_share`` * N) smallest present; tags stay. Then, tags counting as annotations,

    L = (sum of l over annotated or tagged entries + distillation * sum of (p - q)^2 over others) / all entries

``later="answered"`` leaves the global model out of these rounds, as the released code does, and so does
``distillation=0`` out of all: L is then the mean of l over annotated or tagged entries. ``pace="learned"`` takes a
label's global learning degree for both shares. Without a second stage (``warm_up`` of all rounds) or with
``distillation=0`` it is its own ablation.

Deviations: the paper adapts both shares by the client's and the global learning degree by a formula that could
not be found; constants are the released code's, ``learned`` is what it has commented out. pi is kept 1 / (2 n)
away from 0 and 1. Missing is decided entry by entry, so labels that a client annotates now and then work too.
The released code leaves out the prior and, after the warm-up, distillation; here both are in, as published, unless
``adjust=False`` and ``later="answered"``. Its second stage trains on one view, and its prototypes and tags come from an
augmented view; here both views, and images as they are. A client that has no image of a state is left out of that
prototype's mean, where the released code counts it. That code tags nothing present where it tags nothing absent.

Source: Sun et al., "FedMLP: Federated Multi-Label Medical Image Classification under Task Heterogeneity"
(MICCAI 2024, arXiv 2406.18995) and its released code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fedmlic.features import backbone_of
from fedmlic.guesses import open_entries, precise
from fedmlic.image_state import COMPLETED, image_state, of_all_images
from fedmlic.labels import ABSENT, PRESENT, UNKNOWN
from fedmlic.losses import binary_cross_entropy
from fedmlic.method import Inputs, Local, Method, Objective
from fedmlic.protocol import ROUND_SUMS
from fedmlic.training import classifier, trainer
from fedmlic.views import weak_view

if TYPE_CHECKING:
    from collections.abc import Mapping

STATES = (ABSENT, PRESENT)
FEATURES, IMAGES = "fedmlp/features", "fedmlp/images"
"""Sums of a round: mean features times images ``[2, labels, features]``, by 2^16; images ``[2, labels]``."""
LEARNED, MISSING = "fedmlp/learned", "fedmlp/missing"
"""Sums of a round, ``[labels]``: missing entries that are judged surely, and all missing entries."""
FIXED_POINT = 2**16

Share = Annotated[float, Field(ge=0, le=1)]


class Looked(NamedTuple):
    """What a network makes of all images of a client.

    Attributes:
        features: float32 ``[images, features]``, the backbone's map averaged over places.
        probs: float32 ``[images, labels]``.
    """

    features: Tensor
    probs: Tensor


def prototype_sums(features: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """int64 sums of one client: mean features of its absent and present images per label, times its images.

    Args:
        features: ``[images, features]``.
        labels: int8 ``[images, labels]``; entries that are not annotated take no part.
    """
    masks = torch.stack([labels == state for state in STATES]).double()
    counts = masks.sum(dim=1)
    means = torch.einsum("sil,if->slf", masks, features.double()) / counts.clamp(min=1)[..., None]
    total = (means * len(labels) * FIXED_POINT).round().long()
    return {FEATURES: total, IMAGES: (counts > 0).long() * len(labels)}


def degree_sums(probs: Tensor, missing: Tensor, low: float, high: float) -> dict[str, Tensor]:
    """int64 ``[labels]``: missing entries with p < low or p > high, and all missing entries.

    Args:
        probs: ``[images, labels]``.
        missing: bool ``[images, labels]``.
        low: L.
        high: U.
    """
    sure = (probs < low) | (probs > high)
    return {LEARNED: (missing & sure).sum(dim=0), MISSING: missing.sum(dim=0)}


def nearness(features: Tensor, sums: Mapping[str, Tensor]) -> Tensor:
    """``[images, labels]``: cosine to the absent prototype minus that to the present one; NaN where one is lacking.

    Args:
        features: ``[images, features]``.
        sums: over clients, by ``FEATURES`` and ``IMAGES``.
    """
    # Numbers are withheld one by one: images may be there without a single number of the prototype.
    known = ((sums[IMAGES] > 0) & sums[FEATURES].any(dim=2)).all(dim=0)
    directions = F.normalize(sums[FEATURES].double(), dim=2)
    absent, present = torch.einsum("if,slf->sil", F.normalize(features.double(), dim=1), directions)
    return torch.where(known, absent - present, torch.nan)


def learning_degree(sums: Mapping[str, Tensor]) -> Tensor:
    """float64 ``[labels]`` in [0, 1]: the share of missing entries that are judged surely.

    0 where either count reads 0, since it may be withheld: nothing is tagged by a degree that is not known.

    Args:
        sums: over clients, by ``LEARNED`` and ``MISSING``.

    >>> learning_degree({LEARNED: torch.tensor([3, 0, 0]), MISSING: torch.tensor([4, 4, 0])}).tolist()
    [0.75, 0.0, 0.0]
    """
    return (sums[LEARNED] / sums[MISSING].clamp(min=1)).double()


def tag(tags: Tensor, scores: Tensor, missing: Tensor, shares: tuple[Tensor, Tensor]) -> Tensor:
    """int8 ``[images, labels]``: the tags, with the most extreme of the missing entries tagged too.

    Args:
        tags: int8, UNKNOWN where there is none yet.
        scores: s, or NaN where nothing can be said.
        missing: bool, entries that may be tagged.
        shares: ``[labels]`` each, of candidates that are tagged absent and present.
    """
    free = missing & (tags == UNKNOWN)
    found = tags.clone()
    for state, share, candidates in zip(STATES, shares, (free & (scores >= 0), free & (scores < 0)), strict=True):
        wanted = (share * candidates.sum(dim=0)).floor().long()
        order = torch.where(candidates, scores.abs(), -1.0).argsort(dim=0, descending=True, stable=True)
        chosen = torch.arange(len(tags), device=tags.device)[:, None] < wanted
        found.masked_fill_(torch.zeros_like(candidates).scatter_(0, order, chosen), state)
    return found


def prior_logits(labels: Tensor, answers: Tensor) -> Tensor:
    """float32 ``[labels]``: log(pi / (1 - pi)), pi the share of images with the label present.

    Args:
        labels: int8 ``[images, labels]``, annotated: pi is over annotated images where there are any.
        answers: likewise, with tags; of a label without annotations pi is over all images.
    """
    annotated = (labels >= ABSENT).sum(dim=0)
    count = torch.where(annotated > 0, annotated, len(labels)).float()
    shares = ((answers == PRESENT).sum(dim=0) / count).clamp(1 / (2 * count), 1 - 1 / (2 * count))
    return torch.logit(shares)


class _Client:
    """What a client knows in one turn, and tags.

    Args:
        local: whose turn it is, with its shard.
        warm_up: rounds without tags.
        shares: of candidates that are tagged absent and present; None: the learning degree.
        bounds: L and U.
    """

    def __init__(
        self, local: Local, warm_up: int, shares: tuple[float, float] | None, bounds: tuple[float, float]
    ) -> None:
        self._local, self._warm_up, self._shares, self._bounds = local, warm_up, shares, bounds
        self.answers = image_state(local, COMPLETED, lambda shard: torch.from_numpy(np.array(shard.labels)))
        observed = np.zeros(self.answers.shape, np.int8) if local.shard is None else local.shard.labels
        self.labels = torch.from_numpy(np.ascontiguousarray(observed)).to(local.device)
        self.missing = open_entries(self.labels)
        self._begun = local.round <= warm_up

    def begin(self) -> None:
        """Tag what is clearest, once in a turn."""
        sums = {name: self._local.shared.get(ROUND_SUMS + name) for name in (FEATURES, IMAGES, LEARNED, MISSING)}
        given = {name: each.to(self.answers.device) for name, each in sums.items() if each is not None}
        if self._begun or len(given) < len(sums):
            return
        self._begun = True
        learned = learning_degree(given)
        shares = self._shares or (1.0, 1.0)
        each = tuple(learned if self._shares is None else torch.full_like(learned, share) for share in shares)
        tags = torch.where(self.missing, self.answers.clamp(min=UNKNOWN), UNKNOWN).to(torch.int8)
        tags = tag(tags, nearness(self._look().features, given), self.missing, (each[0], each[1]))
        self.answers.copy_(torch.where(self.missing, tags, self.labels))

    def _look(self) -> Looked:
        def call(network: nn.Module, images: Tensor) -> Tensor:
            return torch.cat([backbone_of(network)(images).mean(dim=(2, 3)), torch.sigmoid(network(images))], dim=1)

        found = of_all_images(self._local, call).float()
        width = found.shape[1] - self.labels.shape[1]
        return Looked(found[:, :width], found[:, width:])

    def finish(self) -> dict[str, float]:
        """Fill in the sums of the round; count tags per label."""
        if self._local.round >= self._warm_up and len(self.labels):
            looked = self._look()
            self._local.round_sums.update(prototype_sums(looked.features, self.labels))
            self._local.round_sums.update(degree_sums(looked.probs, self.missing, *self._bounds))
        tagged = {"present": PRESENT, "absent": ABSENT}
        num_labels = max(self.labels.shape[1], 1)
        counts = {name: int((self.missing & (self.answers == state)).sum()) for name, state in tagged.items()}
        return {f"tagged-{name}-per-label": count / num_labels for name, count in counts.items()}


def round_sums(network: nn.Module, num_labels: int) -> dict[str, Tensor]:
    """Zeros of the sums of a round."""
    width = backbone_of(network).num_features
    shapes = {FEATURES: (2, num_labels, width), IMAGES: (2, num_labels), LEARNED: (num_labels,), MISSING: (num_labels,)}
    return {name: torch.zeros(shape, dtype=torch.int64) for name, shape in shapes.items()}


def fedmlp(
    *,
    warm_up: Annotated[int, Field(ge=0)] = 50,
    distillation: Annotated[float, Field(ge=0)] = 1.0,
    later: Literal["both", "answered"] = "both",
    pace: Literal["constant", "learned"] = "constant",
    absent_share: Share = 0.005,
    present_share: Share = 0.01,
    low: Share = 0.3,
    high: Share = 0.7,
    adjust: bool = True,
    weak: Literal["none", "flip", "shift", "flip+shift"] = "shift",
    pool: Literal["mean", "max", "logsumexp"] = "mean",
) -> Method:
    """Missing labels by the global model's answers and by prototypes of all clients (FedMLP).

    Args:
        warm_up: rounds before entries are tagged (T1).
        distillation: weight of the distance to the global model's answers on missing entries; 0 for none.
        later: what counts after the warm-up: ``both``, or ``answered`` entries alone, as in the released code.
        pace: how much is tagged in a turn: ``constant`` shares, or each label's global learning degree.
        absent_share: of a label's candidates that are tagged absent in a turn, where the pace is constant.
        present_share: likewise, present.
        low: L, probability below which a missing entry counts as learned.
        high: U, probability above which it does.
        adjust: whether the client's prior is added to logits in training.
        weak: how both views are changed (``views.augment``); ``none`` trains on the images once.
        pool: how the logit map becomes one logit per label (``fedmlic.model.Classifier``).

    The training metrics ``tagged-present-per-label`` and ``tagged-absent-per-label`` count tags at the end of
    clients' turns, divided by the number of labels.
    """
    shares = (absent_share, present_share) if pace == "constant" else None
    weight = distillation if later == "both" else 0.0

    def inputs(local: Local) -> Inputs:
        client = _Client(local, warm_up, shares, (low, high))
        rng = local.torch_rng("fedmlp/views")

        def of(images: Tensor, _labels: Tensor, numbers: Tensor) -> tuple[Tensor, ...]:
            client.begin()
            answers = client.answers[numbers.to(images.device)]
            shift = prior_logits(client.labels, client.answers) if adjust else torch.zeros(1, device=images.device)
            views = [images] if weak == "none" else [weak_view(images, rng, weak=weak) for _ in range(2)]
            teacher = local.incoming()
            with torch.no_grad():
                taught = [torch.sigmoid(precise(teacher(view))) for view in views]
            late = torch.tensor(local.round > warm_up, device=images.device)
            return torch.stack(views), torch.stack(taught), answers, shift, late

        return Inputs(of, client.finish)

    def loss(network: nn.Module, *given: Tensor) -> Tensor:
        _, _, views, taught, answers, shift, late = given
        parts = [taught_costs(network(v), q, answers, shift) for v, q in zip(views, taught, strict=True)]
        annotated, apart = (torch.stack(each).mean(dim=0).sum() for each in zip(*parts, strict=True))
        num_open = open_entries(answers).sum()
        num_annotated = answers.numel() - num_open
        early = annotated / num_annotated.clamp(min=1) + distillation * apart / num_open.clamp(min=1)
        counted = answers.numel() if weight else num_annotated.clamp(min=1)
        return torch.where(late, (annotated + weight * apart) / counted, early)

    objective = Objective(loss, inputs, one_by_one="a client's images are judged by its own network")
    return classifier(loss, pool=pool)._replace(
        train=trainer(objective),
        objective=objective,
        remembers=True,
        guesses="what the global model says",
        needs_absences=True,
        needs_pixels=weak != "none",
        round_sums=round_sums,
    )


def taught_costs(logits: Tensor, taught: Tensor, answers: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """The cost of every entry that is answered, and the distance to the global model's answer of all others.

    Args:
        logits: floating ``[batch, labels]``, with gradient.
        taught: ``[batch, labels]``, the global model's probabilities of the same view.
        answers: int8 ``[batch, labels]``, annotations and tags.
        shift: ``[labels]``, what is added to logits of answered entries.
    """
    logits = precise(logits)
    annotated = binary_cross_entropy(logits + shift, answers)
    return annotated, torch.where(open_entries(answers), (torch.sigmoid(logits) - taught).square(), 0.0)
