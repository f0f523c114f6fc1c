"""FedAlign: label names give anchors that all clients share; images are matched to anchors, and both train in turn.

For clients that annotate label lists of their own. With a_c the anchor of label c, which begins as the vector of the
label's name (``fedmlic.text``), and z = P f + b the feature map, projected to the anchors' width at every place:

    logit of c = pool over places of a_c . z        (no bias per label)

The loss is binary cross-entropy times a weight, added up over a batch's known entries and divided by all its entries.
With P present and A absent known entries of a label at the client, pseudo-labels among them, a present one weighs
(A + 1) / (P + A + 2), an absent one (P + 1) / (P + A + 2). ``balanced=False`` takes the plain mean over known entries.

A turn has two parts. First the image side (backbone and projection) trains against the anchors of the round's global
model, then the anchors against the image side as it now is, both by this loss.
``local-epochs`` counts passes of each side; of ``local-steps`` each side gets half. ``anchors="together"`` trains both
at once: a linear classifier whose rows begin as label vectors. ``anchors="fixed"`` never trains anchors nor sends them.

Anchors are the label's own rows, so ``strategy="surgical()"`` is the authors' merge: the plain mean over the clients
that annotate the label, unchanged where nobody does, and a plain mean of everything else.

Pseudo-labels (``pseudo``). At the beginning of a turn the global model looks at all images of the client. Of a label
that the client never annotates, with s_i = a_c . z of image i:

    present  where s_i > max(1/2, the percentile ``present_percentile`` of s),
    absent   where s_i < min(1/2, the percentile ``absent_percentile`` of s),

and unknown elsewhere. They do not count as annotations when anchors are merged.

Deviations: the authors alternate batch by batch with an optimiser for each side, whose state goes on from round to
round; here part by part of a turn, with new optimisers. They take pseudo-present labels only where the global model's
F1 on validation data of all clients is above 0.75; there are no such data here, so this condition is missing, and
pseudo-labels are off unless asked for. Their encoders of sensor data and text are replaced by the image backbone. Their
anchors begin as vectors trained on co-occurring label names.

Source: Zhang et al., "Navigating Alignment for Non-identical Client Class Sets: A Label Name-Anchored Federated
Learning Framework" (KDD 2023, arXiv 2301.00489) and its released code.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from fedmlic import spec
from fedmlic.errors import InputError
from fedmlic.guesses import open_entries, precise
from fedmlic.label_transformer import ask, hold, uniform_by_inputs
from fedmlic.labels import ABSENT, PRESENT, UNKNOWN
from fedmlic.losses import binary_cross_entropy, mean_binary_cross_entropy
from fedmlic.method import Inputs, Local, Method, Objective, Task, Trained
from fedmlic.pixel_scale import to_float
from fedmlic.text import LabelVectors, alike, label_vectors
from fedmlic.training import ON_ALL_BATCH, fit, held_images, trainer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedmlic.arrays import Resident
    from fedmlic.experiment import Experiment
    from fedmlic.label_transformer import ReadoutKind
    from fedmlic.model import Backbone
    from fedmlic.shard import Shard

HALF = 0.5
"""The closeness that a pseudo-present image must exceed, and a pseudo-absent one must not reach (released code)."""

ANCHORS = "anchors"

Percentile = Annotated[float, Field(ge=0, le=100)]


class AnchorNetwork(nn.Module):
    """A backbone whose map is projected into the space of the labels' anchors.

    Args:
        backbone: makes the feature map.
        labels: ``[labels, width]``, the anchors as they begin.
        pool: how closeness at all places becomes one logit per label: ``mean``, ``max`` or ``logsumexp``.
        trained: whether anchors train and are exchanged.
    """

    anchors: Tensor
    readout_kind: ReadoutKind = "shared"

    def __init__(self, backbone: Backbone, labels: LabelVectors, *, pool: str, trained: bool) -> None:
        super().__init__()
        self.backbone, self.pool = backbone, pool
        self.projection = nn.Linear(backbone.num_features, labels.vectors.shape[1])
        uniform_by_inputs(self.projection)
        hold(self, ANCHORS, labels.vectors, learned=trained)

    def forward(self, images: Tensor) -> Tensor:
        """Logits float32 ``[batch, labels]`` of images ``[batch, channels, height, width]``."""
        return self.beside(images, self.anchors)

    def beside(self, images: Tensor, vectors: Tensor) -> Tensor:
        """Logits float32 ``[batch, names]`` of any anchors ``[names, width]``."""
        places = precise(self.projection(self.backbone(images).flatten(2).transpose(1, 2)))
        vectors = precise(vectors)
        if self.pool == "mean":
            return places.mean(dim=1) @ vectors.T
        each = places @ vectors.T
        return each.amax(dim=1) if self.pool == "max" else each.logsumexp(dim=1) - math.log(each.shape[1])

    @property
    def label_tokens(self) -> Tensor:
        """The anchors, ``[labels, width]``."""
        return self.anchors

    def label_rows(self) -> tuple[str, ...]:
        """Names of the trainable tensors with one row per label."""
        return (ANCHORS,) if isinstance(self.anchors, nn.Parameter) else ()


def pseudo_labels(closeness: Tensor, present_percentile: float, absent_percentile: float) -> Tensor:
    """int8 ``[images, labels]``: what is closest to a label's anchor present, what is far absent, UNKNOWN between.

    Args:
        closeness: floating ``[images, labels]``, one image at least.
        present_percentile: of a label's closeness over images, 0 to 100.
        absent_percentile: likewise; present goes first where both hold.

    >>> pseudo_labels(torch.tensor([[2.0], [0.4], [0.7]]), 60, 20).flatten().tolist()
    [1, 0, -1]
    """
    values = closeness.double()
    upper = torch.quantile(values, present_percentile / 100, dim=0).clamp(min=HALF)
    lower = torch.quantile(values, absent_percentile / 100, dim=0).clamp(max=HALF)
    found = torch.where(values < lower, ABSENT, UNKNOWN)
    return torch.where(values > upper, PRESENT, found).to(torch.int8)


def annotated(local: Local) -> Tensor:
    """int8 ``[images, labels]`` on the CPU: the client's labels.

    Args:
        local: whose turn it is, with its shard.
    """
    if local.shard is None:
        msg = "Expected a turn with its shard, got none. Train by training.fit."
        raise RuntimeError(msg)
    return torch.from_numpy(np.array(local.shard.labels))


def class_weights(labels: Tensor) -> Tensor:
    """float32 ``[2, labels]``: what an absent (first row) and a present entry of each label weigh at a client.

    Args:
        labels: int8 ``[images, labels]``, all of the client's.

    >>> class_weights(torch.tensor([[1, -1], [0, -1], [0, -1]], dtype=torch.int8)).tolist()
    [[0.4000000059604645, 0.5], [0.6000000238418579, 0.5]]
    """
    present, absent = ((labels == state).sum(dim=0) + 1 for state in (PRESENT, ABSENT))
    return torch.stack([present, absent]) / (present + absent)


def weighted_loss(logits: Tensor, answers: Tensor, weights: Tensor) -> Tensor:
    """The sum of weighted binary cross-entropy over known entries, divided by all entries.

    Args:
        logits: floating ``[batch, labels]``.
        answers: int8 ``[batch, labels]``.
        weights: ``[2, labels]``, see ``class_weights``.
    """
    absent, present = weights
    return (binary_cross_entropy(logits, answers) * torch.where(answers == PRESENT, present, absent)).mean()


def completed(local: Local, present_percentile: float, absent_percentile: float) -> Tensor:
    """int8 ``[images, labels]`` on the CPU: the client's labels, with pseudo-labels where it never annotates a label.

    Args:
        local: whose turn it is, with its shard.
        present_percentile: see ``pseudo_labels``.
        absent_percentile: likewise.
    """
    labels, shard = annotated(local), local.shard
    unaware = open_entries(labels).all(dim=0)
    if shard is None or not shard.num_images or not bool(unaware.any()):
        return labels
    network, held = local.incoming(), held_images([shard], local.device)
    found = []
    with torch.no_grad():
        for start in range(0, shard.num_images, ON_ALL_BATCH):
            chosen = np.arange(start, min(start + ON_ALL_BATCH, shard.num_images))
            found.append(network(to_float(held(chosen), local.device)))
    guessed = pseudo_labels(torch.cat(found).cpu(), present_percentile, absent_percentile)
    return torch.where(unaware, guessed, labels)


def fedalign(
    *,
    text: str = "random_orthogonal()",
    width: Annotated[int, Field(ge=1)] | None = None,
    anchors: Literal["alternating", "together", "fixed"] = "alternating",
    pseudo: bool = False,
    present_percentile: Percentile = 99.9,
    absent_percentile: Percentile = 99.9,
    balanced: bool = True,
    pool: Literal["mean", "max", "logsumexp"] = "mean",
) -> Method:
    """Images are matched to anchors made of label names, which train in turn with the image side (FedAlign).

    Args:
        text: where anchors begin (``fedmlic.text``).
        width: of the anchors' space (None: the backbone's features).
        anchors: trained after the image side in every turn (``alternating``), at once with it (``together``), or
            ``fixed``: never trained, never sent.
        pseudo: whether labels that a client never annotates get pseudo-labels by closeness to their anchors.
        present_percentile: of closeness, above which a pseudo-label is present.
        absent_percentile: of closeness, below which it is absent.
        balanced: whether entries weigh by how rare their state is at the client; otherwise a mean over known entries.
        pool: how closeness at all places becomes one logit per label.

    The training metrics ``pseudo-present-per-label`` and ``pseudo-absent-per-label`` count pseudo-labels of clients'
    turns, divided by the number of labels.
    """
    trained = anchors != "fixed"

    def build(task: Task) -> nn.Module:
        backbone = task.model.build(task.image_shape[2])
        vectors = label_vectors(text, task.label_names, width or backbone.num_features, task.seed)
        if not trained:
            check_fixed(task.label_names, vectors, text)
        return AnchorNetwork(backbone, vectors, pool=pool, trained=trained)

    def inputs(local: Local) -> Inputs:
        observed = annotated(local)
        answers = completed(local, present_percentile, absent_percentile) if pseudo else observed
        weights = class_weights(answers).to(local.device)
        guessed = open_entries(observed)

        def metrics() -> dict[str, float]:
            if not pseudo:
                return {}
            states, count = {"present": PRESENT, "absent": ABSENT}, max(answers.shape[1], 1)
            return {f"pseudo-{n}-per-label": int((guessed & (answers == s)).sum()) / count for n, s in states.items()}

        return Inputs(lambda _images, _labels, numbers: (answers[numbers].to(local.device), weights), metrics)

    def loss(network: nn.Module, images: Tensor, _labels: Tensor, answers: Tensor, weights: Tensor) -> Tensor:
        logits = network(images)
        return weighted_loss(logits, answers, weights) if balanced else mean_binary_cross_entropy(logits, answers)

    in_turn = "images and anchors train in turn" if anchors == "alternating" else ""
    objective = Objective(loss, inputs, one_by_one=in_turn)
    return Method(
        build,
        partial(in_parts, loss=objective) if in_turn else trainer(objective),
        predict,
        label_rows,
        objective=objective,
        guesses="what is close to or far from label anchors" if pseudo else "",
        needs_absences=pseudo,
        ask=None if trained else partial(ask, text=text),
        refuses=no_other_steps if in_turn else None,
        passes=2 if in_turn else 1,
    )


def in_parts(resident: Resident, shard: Shard, local: Local, loss: Objective) -> Trained:
    """A turn in two parts, each by ``training.fit``: the image side with anchors as they are, then anchors alone."""
    given = loss.inputs(replace(local, shard=shard))
    once = loss._replace(inputs=lambda _: given)  # the global model labels the client's images once in a turn
    before = resident.trained
    every = frozenset(resident.trainable.names) if before is None else before
    results = []
    for names, num_steps in zip((every - {ANCHORS}, every & {ANCHORS}), parts_of(local.experiment), strict=True):
        resident.train_only(names)
        if resident.parameters and (num_steps or not local.experiment.local_steps):
            settings = local.experiment.model_copy(update={"local_steps": num_steps})
            results.append(fit(resident, shard, replace(local, experiment=settings), once))
    resident.train_only(before)
    num_steps = sum(each.num_steps for each in results)
    total = math.fsum(each.loss * each.num_steps for each in results)
    return Trained(total / max(num_steps, 1), num_steps, given.metrics())


def parts_of(experiment: Experiment) -> tuple[int, int]:
    """``local-steps`` of the image side and of the anchors; 0 and 0 where turns are counted in epochs.

    >>> from fedmlic.experiment import Experiment
    >>> parts_of(Experiment(local_steps=5)), parts_of(Experiment())
    ((3, 2), (0, 0))
    """
    return experiment.local_steps - experiment.local_steps // 2, experiment.local_steps // 2


def no_other_steps(experiment: Experiment) -> str:
    """Why a turn in two parts does not suit mods that change steps: they count on the same tensors in every step."""
    strategy = spec.build("strategy", experiment.strategy)
    every = [*map(str, spec.parse_all(experiment.mods, "mods")), *strategy.mods]
    changing = [text for text in every if spec.build("mods", text).changes_steps]
    if not changing:
        return ""
    return (
        f"anchors='alternating' trains other tensors in each half of a turn, which {', '.join(changing)} does not "
        "expect; use anchors='together' or leave it out"
    )


def check_fixed(names: Sequence[str], vectors: LabelVectors, text: str) -> None:
    """Raise ``InputError`` where labels cannot be told apart by anchors that never train, or these are no constants."""
    if vectors.trainable:
        msg = f"Expected text to give vectors that are frozen with anchors='fixed', got {text!r}. Use another text."
        raise InputError(msg)
    equal = alike(names, vectors.vectors)
    if equal:
        msg = (
            f"Expected label vectors to differ with anchors='fixed', got equal ones for {', '.join(equal)}. Rename or "
            "join these labels, or train anchors."
        )
        raise InputError(msg)


def predict(network: nn.Module, images: Tensor) -> Tensor:
    """Probabilities float32 ``[batch, labels]``."""
    return torch.sigmoid(network(images)).float()


def label_rows(network: nn.Module) -> tuple[str, ...]:
    """The anchors, where they train."""
    return cast("AnchorNetwork", network).label_rows()
