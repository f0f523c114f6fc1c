"""ProbMCL: contrast between per-image mixtures of Gaussians, then a linear probe on the frozen encoder.

In the first ``encoder_rounds`` rounds backbone and mixture head train. The head turns an image's
features into a point z and, from z, a mixture of Gaussians with one component per label. Two
changed views of every image give

    L = L_NLL + balance * L_contrast

* L_NLL: minus the log-density of z under the components of the image's present labels, per dimension; it trains the
  maps to mixtures alone (``density_trains``), since of an encoder that it trains it makes all points equal;
* L_contrast: the supervised contrastive loss; two images belong together if their labels overlap by
  ``threshold`` or more, and are as similar as their mixtures (``fedmlic.contrast``, ``fedmlic.mixtures``):

      q = log(<p, p'> / sqrt(<p, p> <p', p'>)) / dimensions / temperature

Then backbone and mixture head stay as they are, bit for bit, and a linear classifier on the features
trains by the asymmetric loss, or (``probe="solved"``) is solved for in one round as the ridge regression of all
clients' known entries (``fedmlic.solved_head``). With ``stages="joint"`` everything trains at once in all rounds.

``contrast="supervised"`` is the ablation: the same encoder, the same pairs, the cosine of z in place
of mixtures and no L_NLL.

The paper has no released code and much of it could not be read; which of the above is the paper's
and which is a choice made here is in ``docs/methods/probmcl.md``. Deviations: with incomplete labels
a pair counts only if a label known in both images is present in one; the mixture head stays in the
network after the first phase and tells how uncertain an image is.

Source: Sajedi et al. 2024, "ProbMCL: Simple Probabilistic Contrastive Learning for Multi-Label
Visual Classification" (ICASSP, arXiv 2401.01448).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fedmlic.contrast import Index, Queue, contrastive_loss, pairs_of
from fedmlic.errors import InputError
from fedmlic.labels import ABSENT, PRESENT
from fedmlic.losses import asymmetric, known_mean
from fedmlic.method import Inputs, Local, Method, Objective, Phase, Task, needs_rounds_after
from fedmlic.mixtures import Mixtures, log_joint, log_norm, log_overlap, spread
from fedmlic.solved_head import Gram, SolvedHead, pooled_features, squared_error
from fedmlic.training import trainer
from fedmlic.views import strong_view, weak_view

if TYPE_CHECKING:
    from fedmlic.model import Backbone

HIDDEN, WIDE = 2048, 1024
"""Units of the layer before the projection, and features from which on there is none."""

ONE_BY_ONE = "its loss compares the images of a batch with each other"

Nll = Literal["positive", "all", "posterior"]
DensityTrains = Literal["head", "encoder"]
Scale = Literal["log", "exp"]
Views = Literal["strong", "weak", "randaugment"]

_VIEWS: dict[Views, Callable[[Tensor, torch.Generator], Tensor]] = {
    "strong": strong_view,
    "weak": weak_view,
    "randaugment": partial(strong_view, randaugment=True),
}


class LabelLinear(nn.Module):
    """A linear map per label, of the same input.

    Args:
        num_labels: maps.
        inputs: features.
        outputs: of each.
    """

    def __init__(self, num_labels: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)  # as nn.Linear begins
        self.weight = nn.Parameter(torch.empty(num_labels, outputs, inputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(num_labels, outputs).uniform_(-bound, bound))

    def forward(self, features: Tensor) -> Tensor:
        """``[batch, labels, outputs]`` of ``[batch, inputs]``."""
        mapped = F.linear(features, self.weight.flatten(0, 1), self.bias.flatten())
        return mapped.view(-1, *self.bias.shape)


class MixtureMaps(nn.Module):
    """From a point to a mixture of Gaussians with one component per label.

    Args:
        num_labels: components.
        dimensions: of points and components.
        diagonal: a variance per dimension, or one for all of a component.
        least_variance: variances are larger than this.
    """

    def __init__(self, num_labels: int, dimensions: int, *, diagonal: bool, least_variance: float) -> None:
        super().__init__()
        self.least_variance = least_variance
        self.weights = nn.Linear(dimensions, num_labels)
        self.means = LabelLinear(num_labels, dimensions, dimensions)
        self.variances = LabelLinear(num_labels, dimensions, dimensions if diagonal else 1)

    def forward(self, points: Tensor) -> Mixtures:
        """One mixture per point ``[batch, dimensions]``."""
        variances = 1 + F.elu(self.variances(points)) + self.least_variance
        return Mixtures(self.weights(points).log_softmax(dim=1), self.means(points), variances)


class Read(NamedTuple):
    """What the network makes of a batch.

    Attributes:
        logits: float32 ``[batch, labels]``.
        points: float32 ``[batch, dimensions]``.
        mixtures: one per image; None in the ablation.
        held: the same mixtures, of points that were detached: no gradient of theirs reaches the encoder. None in the
            ablation, and without gradients.
    """

    logits: Tensor
    points: Tensor
    mixtures: Mixtures | None
    held: Mixtures | None


class MixtureEncoder(nn.Module):
    """A backbone with a linear classifier and a mixture head, side by side on its mean features.

    Args:
        backbone: makes the feature map.
        num_labels: labels, and components of the mixtures.
        dimensions: of points and components.
        hidden: units of a layer with ReLU before the projection to points; 0 for none.

    Attributes:
        density: the maps to mixtures; None in the ablation.
    """

    density: MixtureMaps | None

    def __init__(self, backbone: Backbone, num_labels: int, *, dimensions: int, hidden: int) -> None:
        super().__init__()
        self.backbone = backbone
        features = backbone.num_features
        self.head = nn.Linear(features, num_labels)
        layers = [nn.Linear(features, hidden), nn.ReLU()] if hidden else []
        self.projection = nn.Sequential(*layers, nn.Linear(hidden or features, dimensions))
        self.density = None

    def forward(self, images: Tensor, read: bool = False) -> Tensor | Read:  # noqa: FBT001, FBT002  (called by position)
        """Logits float32 ``[batch, labels]`` of images ``[batch, channels, height, width]``, or with ``read`` all."""
        features: Tensor = self.backbone(images).mean(dim=(2, 3))
        logits: Tensor = self.head(features).float()
        if not read:
            return logits
        points = self.projection(features).float()
        with torch.autocast(points.device.type, enabled=False):
            if self.density is None:
                return Read(logits, points, None, None)
            held = self.density(points.detach()) if torch.is_grad_enabled() else None
            return Read(logits, points, self.density(points), held)


def density_loss(points: Tensor, mixtures: Mixtures, labels: Tensor, nll: Nll) -> Tensor:
    """L_NLL per dimension, averaged over the images that it can judge; 0 if there is none.

    With f_k the weighted density of component k at the image's point:

    * ``positive``: ``-log sum over present k of f_k``; images without a known present label are left out;
    * ``posterior``: ``-log (sum over present k of f_k / sum over known k of f_k)``, of the same images;
    * ``all``: ``-log sum over all k of f_k`` of all images, whatever their labels.

    Args:
        points: floating ``[images, dimensions]``.
        mixtures: of the same images.
        labels: int8 ``[images, labels]``.
        nll: which.
    """
    joint = log_joint(mixtures, points)
    if nll == "all":
        return -joint.logsumexp(dim=1).mean() / points.shape[1]
    judged = (labels == PRESENT).any(dim=1)
    found = _among(joint, labels == PRESENT)
    if nll == "posterior":
        found = found - _among(joint, labels >= ABSENT)
    total = torch.where(judged, -found, 0.0).sum()
    return total / judged.sum().clamp(min=1) / points.shape[1]


def _among(joint: Tensor, mask: Tensor) -> Tensor:
    return joint.masked_fill(~mask, torch.finfo(joint.dtype).min / 2).logsumexp(dim=1)


@dataclass(frozen=True)
class Contrast:
    """How the first stage compares images; its attributes are the hyper-parameters of ``probmcl``.

    Attributes:
        mixtures: compare mixtures; else points (ablation).
        index: of label overlap.
        threshold: alpha.
        temperature: tau.
        balance: lambda.
        nll: components of L_NLL.
        density_trains: what L_NLL trains.
        matched: compare equal components only.
        scale: of the similarity.
        queue: keys that a client keeps.
        views: how images are changed.
        absent: entries that nobody annotated count as absent.
    """

    mixtures: bool
    index: Index
    threshold: float
    temperature: float
    balance: float
    nll: Nll
    density_trains: DensityTrains
    matched: bool
    scale: Scale
    queue: int
    views: Views
    absent: bool

    def known(self, labels: Tensor) -> Tensor:
        """The labels that training goes by."""
        return labels.clamp(min=ABSENT) if self.absent else labels

    def inputs(self, local: Local) -> Inputs:
        """Two views of every batch, which of them belong together, and the keys of the queue."""
        rng, change = local.torch_rng("views"), _VIEWS[self.views]
        kept = Queue(local, self.queue)
        last: list[Tensor] = []
        counts = {"anchors": 0.0, "skipped": 0.0}

        def of(images: Tensor, labels: Tensor, numbers: Tensor) -> tuple[Tensor, ...]:
            del numbers
            last[:] = [self.known(labels)]
            pairs = pairs_of(last[0].repeat(2, 1), kept.labels, self.index, self.threshold)
            counts["anchors"] += pairs.anchors
            counts["skipped"] += 2 * len(labels) - pairs.anchors
            both = torch.cat([change(images, rng), change(images, rng)])
            return (both, *(mask.to(local.device) for mask in pairs), *kept.keys)

        def seen(numbers: Tensor, *keys: Tensor) -> None:
            del numbers
            kept.push(last[0], keys)

        return Inputs(of, lambda: counts, seen)

    def loss(
        self,
        network: nn.Module,
        images: Tensor,
        labels: Tensor,
        both: Tensor,
        positive: Tensor,
        counted: Tensor,
        *kept: Tensor,
    ) -> tuple[Tensor, ...]:
        """The loss of a batch, the logits of both its views, and the keys of the first views.

        Args:
            network: a ``MixtureEncoder``.
            images: the batch; its views are looked at in its place.
            labels: int8 ``[batch, labels]``.
            both: first all first views, then all second ones.
            positive: as ``fedmlic.contrast.Pairs`` has it.
            counted: as ``fedmlic.contrast.Pairs`` has it.
            kept: keys of the queue.
        """
        del images
        found: Read = network(both, True)
        anchors = self.keys(found)
        keys = tuple(torch.cat(each) for each in zip(anchors, kept, strict=True)) if kept else anchors
        value = contrastive_loss(self.similarity(anchors, keys) / self.temperature, positive, counted)
        if found.mixtures is not None:
            judged = found.points, found.mixtures
            if self.density_trains == "head" and found.held is not None:
                judged = found.points.detach(), found.held
            value = density_loss(*judged, self.known(labels).repeat(2, 1), self.nll) + self.balance * value
        return (value, found.logits, *(key[: len(labels)] for key in anchors))

    def keys(self, found: Read) -> tuple[Tensor, ...]:
        """What images are compared by: mixtures and the logarithms of their norms, or points of norm 1."""
        if found.mixtures is None:
            return (F.normalize(found.points, dim=1),)
        return (*found.mixtures, log_norm(found.mixtures, matched=self.matched))

    def similarity(self, anchors: Sequence[Tensor], keys: Sequence[Tensor]) -> Tensor:
        """``[anchors, keys]``: of mixtures normalised, as ``scale`` says; of points the cosine."""
        if not self.mixtures:
            with torch.autocast(anchors[0].device.type, enabled=False):
                return anchors[0] @ keys[0].T
        overlap = log_overlap(Mixtures(*anchors[:3]), Mixtures(*keys[:3]), matched=self.matched)
        logs = overlap - (anchors[3][:, None] + keys[3][None]) / 2
        return logs / anchors[1].shape[2] if self.scale == "log" else logs.exp()


def probmcl(
    *,
    stages: Literal["two", "joint"] = "two",
    encoder_rounds: Annotated[int, Field(ge=1)] = 8,
    contrast: Literal["probabilistic", "supervised"] = "probabilistic",
    index: Index = "jaccard",
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.5,
    temperature: Annotated[float, Field(gt=0)] = 0.2,
    balance: Annotated[float, Field(ge=0)] = 0.3,
    nll: Nll = "positive",
    density_trains: DensityTrains = "head",
    covariance: Literal["isotropic", "diagonal"] = "isotropic",
    least_variance: Annotated[float, Field(gt=0)] = 1e-3,
    components: Literal["all", "matched"] = "all",
    scale: Scale = "log",
    dimensions: Annotated[int, Field(ge=1)] = 128,
    hidden: Annotated[int, Field(ge=0)] | None = None,
    queue: Annotated[int, Field(ge=0)] = 0,
    probe: Literal["trained", "solved"] = "trained",
    alpha: Annotated[float, Field(gt=0)] = 1.0,
    gram: Gram = "auto",
    views: Views = "strong",
    unknown: Literal["ignored", "absent"] = "ignored",
    gamma_pos: Annotated[float, Field(ge=0)] = 1.0,
    gamma_neg: Annotated[float, Field(ge=0)] = 4.0,
    margin: Annotated[float, Field(ge=0, lt=1)] = 0.05,
) -> Method:
    """Contrast of mixture densities, then a linear probe.

    Args:
        stages: an encoder, then a probe on it (``two``), or everything at once (``joint``).
        encoder_rounds: rounds of the first stage; the run must have more.
        contrast: images are compared by their mixtures, or (ablation) by the cosine of their points.
        index: how the overlap of two label sets is measured (``fedmlic.contrast.label_overlap``).
        threshold: alpha: overlap from which on two images belong together, in (0, 1].
        temperature: similarities are divided by it.
        balance: lambda, weight of the contrastive loss beside L_NLL.
        nll: components under which an image's point should be likely (``density_loss``).
        density_trains: L_NLL trains the maps to mixtures alone, or (``encoder``) projection and backbone as well, whose
            points it draws together.
        covariance: a variance per component, or per component and dimension.
        least_variance: variances are larger than this; it sets the scale of points, which shrink with it.
        components: compare every component with every other, or equal ones only, which with hundreds of labels
            is much cheaper.
        scale: the logarithm of the similarity per dimension, or the similarity itself, which in many
            dimensions is 0 for all pairs but equal ones.
        dimensions: of points and components.
        hidden: units of a layer before the projection to points; 0 for none. None: 2048, or none where
            the backbone gives 1024 features or more.
        queue: images of earlier steps that a client keeps as further keys, for small batches.
        probe: the classifier of the second stage trains by rounds, or is ``solved`` for in one (needs
            ``allow-statistics``).
        alpha: penalty of the solved probe, more than 0, on features divided by their standard deviation.
        gram: second moments that the solved probe adds up (``fedmlic.solved_head``).
        views: how images are changed (``fedmlic.views``); ``randaugment``: the strong view with RandAugment in place of
            other colours, as the sister method's code has it.
        unknown: entries that nobody annotated take no part, or count as absent.
        gamma_pos: focusing exponent of the probe for present entries, 0 or more.
        gamma_neg: for absent entries, 0 or more.
        margin: probability that absent entries may have for free, in [0, 1).

    The training metrics ``anchors`` and ``skipped`` count views that had a key to be drawn to, and
    those that had none.
    """
    contrasting = Contrast(
        mixtures=contrast == "probabilistic",
        index=index,
        threshold=threshold,
        temperature=temperature,
        balance=balance,
        nll=nll,
        density_trains=density_trains,
        matched=components == "matched",
        scale=scale,
        queue=queue,
        views=views,
        absent=unknown == "absent",
    )
    maps = partial(MixtureMaps, dimensions=dimensions, diagonal=covariance == "diagonal", least_variance=least_variance)
    build = partial(_build, maps if contrasting.mixtures else None, dimensions, hidden)
    classify = partial(_mean_asymmetric, gamma_pos=gamma_pos, gamma_neg=gamma_neg, margin=margin)
    solved = SolvedHead(pooled_features, alpha, gram=gram, absent=contrasting.absent) if probe == "solved" else None
    if solved is not None and stages == "joint":
        msg = "Expected stages='two' with probe='solved', since the probe is solved for on an encoder, got 'joint'."
        raise InputError(msg)
    return _staged(build, contrasting, classify, encoder_rounds if stages == "two" else 0, solved)


def _staged(
    build: Callable[[Task], nn.Module],
    contrast: Contrast,
    classify: Callable[..., Tensor],
    encoder_rounds: int,
    solved: SolvedHead | None,
) -> Method:
    """The method in two stages, or with ``encoder_rounds=0`` in one."""

    def first(network: nn.Module, images: Tensor, labels: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        value, _, *keys = contrast.loss(network, images, labels, *given)
        return (value, *keys)

    def second(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return classify(network(images), contrast.known(labels))

    def least(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return squared_error(network(images), contrast.known(labels))

    def both(network: nn.Module, images: Tensor, labels: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        value, logits, *keys = contrast.loss(network, images, labels, *given)
        return (value + classify(logits, contrast.known(labels).repeat(2, 1)), *keys)

    judges = not contrast.absent  # else entries without annotation count, too
    probe = Objective(second, needs_annotations=judges)
    method = Method(
        build,
        trainer(probe),
        predict,
        label_rows,
        objective=probe,
        remembers=contrast.queue > 0,
        guesses="absent" if contrast.absent else "",
        needs_pixels=True,
        uncertainty=uncertainty if contrast.mixtures else None,
    )
    if not encoder_rounds:
        together = Objective(both, contrast.inputs, needs_annotations=judges, one_by_one=ONE_BY_ONE)
        return method._replace(train=trainer(together), objective=together)
    unlabelled = contrast.mixtures and contrast.nll == "all"
    encoder = Objective(first, contrast.inputs, needs_annotations=not unlabelled, one_by_one=ONE_BY_ONE)
    first_stage = Phase(trainer(encoder), encoder_rounds, encoder_tensors, encoder)
    method = method._replace(
        refuses=needs_rounds_after("encoder_rounds", encoder_rounds, "its classifier trains in the rounds")
    )
    if solved is not None:
        probe = Objective(least, needs_annotations=judges)
        return method._replace(phases=(first_stage, solved.phase(probe)), statistics=solved.counts, remembers=True)
    return method._replace(phases=(first_stage, Phase(trainer(probe), 0, head_tensors, probe)))


def _mean_asymmetric(logits: Tensor, labels: Tensor, *, gamma_pos: float, gamma_neg: float, margin: float) -> Tensor:
    entries = asymmetric(logits, labels, gamma_pos=gamma_pos, gamma_neg=gamma_neg, margin=margin)
    return known_mean(entries, labels)


def _build(maps: Callable[[int], MixtureMaps] | None, dimensions: int, hidden: int | None, task: Task) -> nn.Module:
    backbone = task.model.build(task.image_shape[2])
    usual = 0 if backbone.num_features >= WIDE else HIDDEN
    units = usual if hidden is None else hidden
    network = MixtureEncoder(backbone, task.num_labels, dimensions=dimensions, hidden=units)
    if maps is not None:  # drawn last: with and without it, all else begins the same
        network.density = maps(task.num_labels)
    return network


def predict(network: nn.Module, images: Tensor) -> Tensor:
    """Probabilities float32 ``[batch, labels]``."""
    return torch.sigmoid(network(images))


def uncertainty(network: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """How spread out every image's mixture is (``fedmlic.mixtures.spread``)."""
    return spread(network(images, True).mixtures)


def head_tensors(network: nn.Module) -> list[str]:
    """Names of the classifier's tensors."""
    return [name for name in network.state_dict() if name.startswith("head.")]


def encoder_tensors(network: nn.Module) -> list[str]:
    """Names of all others."""
    return [name for name in network.state_dict() if not name.startswith("head.")]


def label_rows(network: nn.Module) -> list[str]:
    """Rows of the classifier and of the maps to components."""
    return [name for name, _ in network.named_parameters() if name.startswith(("head.", "density."))]
