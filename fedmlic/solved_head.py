r"""A linear head that is solved for in one round, from exact sums over the clients' features and labels.

For label c with the images K_c in which it is known, features x and targets t, the head minimises the ridge loss

    sum over K_c of (w . x + b - t)^2 + alpha * |w|^2

with b free. All that it needs of the data adds up over clients, per label:

    n = |K_c|,  p = present ones,  s = sum x,  u = sum of x where present,  M = sum x x^T

With G = M - s s^T / n and r = u-and-s-weighted targets minus their mean (``_right_side``), (G + alpha I) w = r and
b = mean t - w . s / n. So entries that nobody annotated are left out, not taken as absent, and the solution is that
of all clients' known entries pooled, whoever holds them.

M is the expensive sum, features * (features + 1) / 2 numbers, and differs from label to label where labels are
incomplete:

* ``gram="label"``: one per label, exact;
* ``gram="shared"``: one of all images, from which G = n * (M / N - m m^T) with m the mean of all N images. Exact where
  every label is known in every image; elsewhere an approximation that takes the spread of features to be the same
  in the images in which a label is known as in all. The means are each label's own in either case;
* ``gram="auto"``: counts annotations over all clients before round 1 and takes ``shared`` where it is exact.

``standardise`` divides features by their standard deviation over the same images, which is alpha * diag(G / n) in
place of alpha * I. Targets are 1 for present and -1 for absent, or with ``balanced`` n / (2 p) and
-n / (2 (n - p)), so that both kinds have the same mass. With b free that changes w by a factor alone (any two
targets do), so a label's ranking of images stays and only the threshold moves.

Sources: Hoerl and Kennard 1970 (ridge); He et al. 2025, "AFL: A Single-Round Analytic Approach for Federated Learning
with Pre-trained Models" (CVPR), for one label per image. "One round is all you need" (arXiv 2607.20641) sums per label
over the clients that annotate it; we know its abstract only, and its rescaled targets are our reading of that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fedmlic.counting import IMAGES, KNOWN_COUNTS, annotation_counts
from fedmlic.errors import InputError
from fedmlic.image_state import image_state
from fedmlic.labels import ABSENT, PRESENT
from fedmlic.losses import masked_mean
from fedmlic.method import Local, Objective, Phase, Solution, Trained, none
from fedmlic.protocol import STATISTICS
from fedmlic.training import on_all

if TYPE_CHECKING:
    from fedmlic.arrays import Resident
    from fedmlic.shard import Shard

    Features = Callable[[nn.Module, Tensor], Tensor]
    """``(network, images [batch, channels, height, width]) -> [batch, features]``."""

Gram = Literal["auto", "label", "shared"]

MOST_NUMBERS = 1 << 27
"""Most numbers of second moments, which a client sends and the server holds: 16 bytes each on their way."""

KNOWN, POSITIVE, ALL = "known", "present", "images"
FIRST, FIRST_PRESENT, FIRST_ALL, SECOND = "first", "first-present", "first-all", "second"
"""Names of the sums."""


class HeadSums(NamedTuple):
    """Sums over images from which a head is solved; those of clients add.

    Attributes:
        known: int64 ``[labels]``, n.
        present: int64 ``[labels]``, p.
        images: int64 ``[1]``, N.
        first: float64 ``[labels, features]``, s.
        first_present: float64 ``[labels, features]``, u.
        first_all: float64 ``[1, features]``, over all images.
        second: float64 ``[labels, triangle]``, or ``[1, triangle]`` over all images: the upper triangles of M, row
            by row; triangle is features * (features + 1) / 2.
    """

    known: Tensor
    present: Tensor
    images: Tensor
    first: Tensor
    first_present: Tensor
    first_all: Tensor
    second: Tensor

    @property
    def is_shared(self) -> bool:
        """Whether there is one second moment for all labels."""
        return len(self.second) == 1 and len(self.known) != 1

    @property
    def solvable(self) -> Tensor:
        """Bool ``[labels]``: labels of which no row that a head is solved from reads 0.

        The server withholds rows by themselves, and one that is withheld reads 0 as one that adds up to 0 does. A label
        that is known at many clients and present at few has a count of known entries and none of present ones, which
        would make its present entries absent ones.
        """
        found = (self.known > 0) & (self.present > 0)
        for rows in (self.first, self.first_present, self.second):
            found = found & rows.any(dim=1)
        return found & self.first_all.any() & self.images.any() if self.is_shared else found

    def to_tensors(self) -> dict[str, Tensor]:
        """By name, as they are sent."""
        return dict(zip(NAMES, self, strict=True))

    @staticmethod
    def of_tensors(tensors: Mapping[str, Tensor]) -> HeadSums:
        """The inverse of ``to_tensors``."""
        return HeadSums(*(tensors[name] for name in NAMES))

    @staticmethod
    def zero(num_labels: int, num_features: int, *, shared: bool) -> HeadSums:
        """Sums of no image at all.

        Args:
            num_labels: labels.
            num_features: features.
            shared: whether there is one second moment for all labels.
        """
        counts, rows = torch.zeros(num_labels, dtype=torch.int64), 1 if shared else num_labels
        first = torch.zeros(num_labels, num_features, dtype=torch.float64)
        second = torch.zeros(rows, _triangle(num_features), dtype=torch.float64)
        return HeadSums(counts, counts, counts[:1], first, first, first[:1], second)

    @staticmethod
    def of(features: Tensor, labels: Tensor, *, shared: bool) -> HeadSums:
        """Sums over one client's images.

        Args:
            features: floating ``[images, features]``.
            labels: int8 ``[images, labels]``; UNKNOWN and UNCERTAIN entries are left out.
            shared: whether one second moment is taken over all images, whatever is known of them; where there
                is one label alone, it is that label's.
        """
        x, known, present = features.double(), labels >= ABSENT, labels == PRESENT
        upper = _upper(x.shape[1])
        moments: dict[bytes, Tensor] = {}
        rows = []
        every = shared and known.shape[1] > 1  # of a single label, its own moments are no more numbers
        for mask in (torch.ones_like(known[:, :1]) if every else known).T:
            key = mask.numpy().tobytes()  # clients often know several labels of the same images
            if key not in moments:
                chosen = x[mask]
                moments[key] = (chosen.T @ chosen)[upper[0], upper[1]]
            rows.append(moments[key])
        return HeadSums(
            known.sum(dim=0),
            present.sum(dim=0),
            torch.tensor([len(x)]),
            known.double().T @ x,
            present.double().T @ x,
            x.sum(dim=0, keepdim=True),
            torch.stack(rows),
        )

    def __add__(self, other: object) -> HeadSums:
        if not isinstance(other, HeadSums):
            return NotImplemented
        return HeadSums(*(a + b for a, b in zip(self, other, strict=True)))


NAMES = (KNOWN, POSITIVE, ALL, FIRST, FIRST_PRESENT, FIRST_ALL, SECOND)
COUNTS = (KNOWN, POSITIVE, ALL)


def ridge_head(sums: HeadSums, alpha: float, *, standardise: bool, balanced: bool) -> tuple[Tensor, Tensor]:
    """Weights float64 ``[labels, features]`` and biases ``[labels]`` of the ridge solution.

    A label of which nothing is known gets zeros; one that is always present, or never, gets its target as bias alone.

    Args:
        sums: over all images, nothing withheld (``HeadSums.solvable``).
        alpha: penalty, more than 0.
        standardise: whether features are divided by their standard deviation first; a feature that is constant is not.
        balanced: whether targets give present and absent entries the same mass.

    >>> sums = HeadSums.of(torch.tensor([[0.0], [1.0]]), torch.tensor([[0], [1]], dtype=torch.int8), shared=False)
    >>> weights, biases = ridge_head(sums, 1e-9, standardise=False, balanced=False)
    >>> weights.round(decimals=6).tolist(), biases.round(decimals=6).tolist()
    ([[2.0]], [-1.0])
    """
    num_labels, num_features = sums.first.shape
    weights = torch.zeros(num_labels, num_features, dtype=torch.float64)
    biases = torch.zeros(num_labels, dtype=torch.float64)
    right, mean_target = _right_side(sums, balanced=balanced)
    groups: dict[tuple[int, float], list[int]] = {}
    for label in torch.nonzero(sums.known > 0).flatten().tolist():
        # With one matrix for all labels, those that are known equally often have one system.
        key = (0, float(sums.known[label])) if sums.is_shared else (label, 0.0)
        groups.setdefault(key, []).append(label)
    for labels in groups.values():
        spread = _spread(sums, labels[0])
        penalty = torch.ones(num_features, dtype=torch.float64)
        if standardise:
            variance = spread.diagonal() / sums.known[labels[0]]
            level = variance.amax().clamp(min=torch.finfo(torch.float64).tiny)
            penalty = torch.where(variance > 1e-12 * level, variance, penalty)
        system = spread + alpha * torch.diag(penalty)
        weights[labels] = torch.linalg.solve(system, right[labels].T).T
        means = sums.first[labels] / sums.known[labels][:, None]
        biases[labels] = mean_target[labels] - (weights[labels] * means).sum(dim=1)
    return weights, biases


def _right_side(sums: HeadSums, *, balanced: bool) -> tuple[Tensor, Tensor]:
    """Sums of (x - mean x)(t - mean t) ``[labels, features]``, and mean targets ``[labels]``."""
    known, present = sums.known.clamp(min=1).double(), sums.present.double()
    absent = known - present
    both = (present > 0) & (absent > 0)
    high, low = torch.ones_like(known), -torch.ones_like(known)
    if balanced:
        high = torch.where(both, known / (2 * present.clamp(min=1)), high)
        low = torch.where(both, -known / (2 * absent.clamp(min=1)), low)
    mean = (high * present + low * absent) / known
    total = high[:, None] * sums.first_present + low[:, None] * (sums.first - sums.first_present)
    return total - mean[:, None] * sums.first, mean


def _spread(sums: HeadSums, label: int) -> Tensor:
    """G of a label, float64 ``[features, features]``."""
    num_features = sums.first.shape[1]
    rows, columns = _upper(num_features)
    second = torch.zeros(num_features, num_features, dtype=torch.float64)
    second[rows, columns] = sums.second[0 if sums.is_shared else label]
    second = second + second.triu(1).T
    if not sums.is_shared:
        first, count = sums.first[label], sums.known[label].double()
        return second - torch.outer(first, first) / count
    first, images = sums.first_all[0], sums.images[0].clamp(min=1).double()
    return (second - torch.outer(first, first) / images) * (sums.known[label] / images)


def _triangle(num_features: int) -> int:
    return num_features * (num_features + 1) // 2


def _upper(num_features: int) -> tuple[Tensor, Tensor]:
    rows, columns = torch.triu_indices(num_features, num_features)
    return rows, columns


@dataclass(frozen=True)
class SolvedHead:
    """How a method's linear classifier ``head`` is solved for in one round.

    Attributes:
        features: what the head reads, ``[batch, features]``, of a network and images.
        alpha: penalty of the ridge, more than 0.
        standardise: divide features by their standard deviation.
        balanced: targets that give present and absent entries the same mass.
        gram: which second moments are added up.
        absent: entries that nobody annotated count as absent.
    """

    features: Features
    alpha: float = 1.0
    standardise: bool = True
    balanced: bool = False
    gram: Gram = "auto"
    absent: bool = False

    @property
    def counts(self) -> Callable[[Shard], Mapping[str, Tensor]] | None:
        """What is counted before round 1 (``Method.statistics``): with ``gram="auto"``, where it decides something."""
        return annotation_counts if self.gram == "auto" and not self.absent else None

    def phase(self, objective: Objective | None = None, num_rounds: int = 0) -> Phase:
        """The stretch of rounds in which the head is solved; nothing trains and nothing of the model is sent.

        Args:
            objective: what the head minimises, for whoever asks.
            num_rounds: how many; 0 for all that are left. One is enough if every client takes part in it.
        """
        return Phase(self.train, num_rounds, none, objective, Solution(self.zeros, self.solve, keeps=True))

    def is_shared(self, shared: Mapping[str, Tensor]) -> bool:
        """Whether one second moment is added up for all labels.

        Args:
            shared: what the server shares.
        """
        if self.gram != "auto" or self.absent:
            return self.gram == "shared" or self.absent
        known, images = (shared.get(STATISTICS + name) for name in (KNOWN_COUNTS, IMAGES))
        return known is not None and images is not None and bool((known == images).all())

    def zeros(self, network: nn.Module, shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See ``Solution.sums``.

        Raises:
            InputError: the second moments would be more than ``MOST_NUMBERS``.
        """
        num_labels, num_features = head_of(network).weight.shape
        one = self.is_shared(shared)
        refuse_too_many(num_labels, num_features, shared=one)
        return HeadSums.zero(num_labels, num_features, shared=one).to_tensors()

    def solve(self, network: nn.Module, sums: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See ``Solution.solve``; rows of labels that are not ``HeadSums.solvable`` stay, bit for bit.

        So a label that is present nowhere keeps its row, too: were it solved for, its row would tell everybody that
        no client has a present entry, where the row of one with a few of them stays.
        """
        del network
        found = HeadSums.of_tensors(sums)
        weights, biases = ridge_head(found, self.alpha, standardise=self.standardise, balanced=self.balanced)
        there = found.solvable
        return {
            "head.weight": torch.where(there[:, None], weights, before["head.weight"].cpu().double()),
            "head.bias": torch.where(there, biases, before["head.bias"].cpu().double()),
        }

    def train(self, resident: Resident, shard: Shard, local: Local) -> Trained:
        """Add this client's sums, once; its network stays as it is.

        Returns:
            The squared error of the head that the turn began with, no steps, and ``added``: 1 if sums were added.
        """
        added = image_state(
            replace(local, shard=shard), "head/added", lambda own: torch.zeros(own.num_images, dtype=torch.bool)
        )
        if bool(added.all()):
            return Trained(0.0, 0, {"added": 0.0})
        labels = torch.from_numpy(np.ascontiguousarray(shard.labels))
        labels = labels.clamp(min=ABSENT) if self.absent else labels
        features = on_all(resident, shard, local)(self.features)
        with torch.no_grad():
            loss = float(squared_error(head_of(resident.network)(features.float()).cpu(), labels))
        sums = HeadSums.of(features.cpu(), labels, shared=self.is_shared(local.shared))
        local.solution_sums.update(sums.to_tensors())
        added.fill_(value=True)
        return Trained(loss, 0, {"added": 1.0})


def refuse_too_many(num_labels: int, num_features: int, *, shared: bool, times: int = 1) -> None:
    """Refuse second moments that are too large to be sent.

    Args:
        num_labels: labels.
        num_features: features.
        shared: whether there is one second moment for all labels.
        times: how many heads' sums are sent at once.

    Raises:
        InputError: they are more than ``MOST_NUMBERS``.
    """
    count = times * (1 if shared else num_labels) * _triangle(num_features)
    if count > MOST_NUMBERS:
        remedy = "Use a backbone with fewer features"
        remedy += "." if shared else ", or gram='shared', one for all labels (approximate where labels are unknown)."
        whose = "all" if shared else f"each of {num_labels}"
        msg = (
            f"Expected second moments of at most {MOST_NUMBERS:,} numbers, got {count:,}: {num_features} features "
            f"for {whose} labels{f', {times} times' if times > 1 else ''}. {remedy}"
        )
        raise InputError(msg)


def head_of(network: nn.Module) -> nn.Linear:
    """The linear classifier of a network.

    Raises:
        TypeError: it has none that is called ``head``.
    """
    head = getattr(network, "head", None)
    if not isinstance(head, nn.Linear):
        msg = f"Expected {type(network).__name__} to have a linear head, got {type(head).__name__}."
        raise TypeError(msg)
    return head


def pooled_features(network: nn.Module, images: Tensor) -> Tensor:
    """``[batch, features]``: the backbone's map, averaged over places."""
    maps: Tensor = network.get_submodule("backbone")(images)
    return maps.mean(dim=(2, 3))


def squared_error(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean over known entries of (logit - t)^2 with t = 1 for present and -1 for absent; a scalar.

    Args:
        logits: floating ``[batch, labels]``.
        labels: int8 ``[batch, labels]``.
    """
    targets = torch.where(labels == PRESENT, 1.0, -1.0)
    return masked_mean((logits - targets).square(), labels >= ABSENT)
