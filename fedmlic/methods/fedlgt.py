"""FedLGT: a label transformer whose label vectors are shared by all clients and never trained.

Three ideas, in the paper's order:

1. *Universal label embedding*: label and state vectors come from text (or any table
   made the same way everywhere), are frozen, and are not exchanged
   (``fedmlic.label_transformer``, ``fedmlic.text``).
2. *Label-mask training*: a random part of an image's annotations is revealed to
   the network, the rest is predicted (``fedmlic.label_masking``).
3. *Client-aware masking* (``guide``): labels about which the round's incoming global
   model is unsure are not revealed, so that they are predicted and trained.

The server averages as it likes; the paper's strategy is ``fedavg``.

Deviations: with incomplete labels only known entries are revealed or judged,
UNCERTAIN counting as UNKNOWN. Vectors are random orthogonal unless ``text`` asks
for CLIP's, which need a file of weights. The loss is a mean where the released
code sums. All differences between paper, release and this file, one by one:
``docs/methods/fedlgt.md``.

Source: Liu et al. 2024, "Language-Guided Transformer for Federated Multi-Label
Classification" (AAAI, arXiv 2312.07165).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fedmlic.label_masking import masked_loss, reveal
from fedmlic.label_transformer import ask, build_label_transformer, label_rows, predict
from fedmlic.labels import UNKNOWN
from fedmlic.method import Inputs, Local, Method, Objective, Task
from fedmlic.training import trainer


def guide(states: Tensor, probs: Tensor, threshold: float, band: float) -> Tensor:
    """Hide the states of labels about which the global model is unsure (equation 4).

    ``s'_c = unknown if threshold - band <= p_c <= threshold + band, else s_c``

    Args:
        states: int8 ``[batch, labels]``, revealed annotations and UNKNOWN.
        probs: float32 ``[batch, labels]``, the incoming global model's, with all states unknown.
        threshold: tau, the probability of greatest doubt.
        band: epsilon, half the width of the band around it.

    Returns:
        int8 ``[batch, labels]``.

    >>> states = torch.tensor([[1, 0, 1, -1]], dtype=torch.int8)
    >>> guide(states, torch.tensor([[0.51, 0.49, 0.9, 0.5]]), threshold=0.5, band=0.02).tolist()
    [[-1, -1, 1, -1]]
    """
    unsure = (probs >= threshold - band) & (probs <= threshold + band)
    return states.masked_fill(unsure, UNKNOWN)


def guided_images(states: Tensor, masking: Literal["batch", "first_image"]) -> Tensor:
    """Bool ``[batch]``: images whose states ``guide`` may change, so the global model is asked.

    Those with anything revealed; with ``first_image`` at most the first of the batch, as in
    the released code, whose loops over labels index row 0 only.
    """
    asked = (states != UNKNOWN).any(dim=1)
    if masking == "first_image":
        asked[1:] = False
    return asked


class GlobalModel:
    """What the round's incoming global model predicts for a client's images, all states unknown.

    It does not change during a turn, so where images are not augmented each is asked about once.

    Args:
        local: whose turn it is.
    """

    def __init__(self, local: Local) -> None:
        self._local = local
        self._augmented = local.experiment.augmentation != "none"
        self._said: dict[int, Tensor] = {}

    def probs(self, images: Tensor, numbers: Sequence[int]) -> Tensor:
        """Probabilities ``[batch, labels]`` of float32 ``images``; ``numbers``: which of the client's they are."""
        if self._augmented:
            self._said.clear()
        places = [place for place, number in enumerate(numbers) if number not in self._said]
        if places:
            new = images if len(places) == len(numbers) else images[places]
            with torch.no_grad():
                said = predict(self._local.incoming(), new)
            self._said.update(zip((numbers[place] for place in places), said, strict=True))
        return torch.stack([self._said[number] for number in numbers])


def fedlgt(
    *,
    text: str = "random_orthogonal()",
    layers: Annotated[int, Field(ge=1)] = 3,
    heads: Annotated[int, Field(ge=1)] = 4,
    width: Annotated[int, Field(ge=1)] | None = None,
    feedforward: Annotated[int, Field(ge=1)] | None = None,
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1,
    positions: Literal["none", "sine"] = "none",
    readout: Literal["row", "shared"] = "row",
    known_fraction_max: Annotated[float, Field(ge=0, lt=1)] = 0.75,
    guidance: bool = True,
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.5,
    band: Annotated[float, Field(ge=0, le=1)] = 0.02,
    masking: Literal["batch", "first_image"] = "batch",
    states: Literal["correct", "swapped"] = "correct",
    reduction: Literal["mean", "sum"] = "mean",
) -> Method:
    """Frozen shared label tokens, label-mask training, guided by the incoming global model.

    Args:
        text: where label and state vectors come from (``fedmlic.text``); ``"learned()"``
            switches the universal label embedding off.
        layers: encoder layers.
        heads: attention heads; must divide the width.
        width: of the tokens (None: the backbone's features, 512 for the paper's ResNet-18).
        feedforward: hidden units of an encoder layer (None: the width).
        dropout: probability.
        positions: what is added to image tokens for their place (the released code's sine option fails).
        readout: a weight vector and bias per label (``row``), or one for all labels (``shared``).
        known_fraction_max: largest share of an image's annotations that is revealed.
        guidance: whether the global model hides revealed labels (CA-MLE).
        threshold: tau, the middle of the band in which the global model counts as unsure.
        band: epsilon, half the width of that band.
        masking: guide every image, or the first of each batch only (released code).
        states: absent labels get the negative and present ones the positive vector, or the
            other way round (released code).
        reduction: mean over the judged entries of a batch, or their sum (released code).

    The training metrics ``revealed`` and ``unsure`` count states that were revealed, and
    those of them that guidance took back.
    """

    def build(task: Task) -> nn.Module:
        return build_label_transformer(
            task,
            text=text,
            layers=layers,
            heads=heads,
            width=width,
            feedforward=feedforward,
            dropout=dropout,
            positions=positions,
            readout=readout,
            swap_states=states == "swapped",
        )

    def inputs(local: Local) -> Inputs:
        rng = local.torch_rng("reveal")
        global_model = GlobalModel(local)
        counts = torch.zeros(2, dtype=torch.int64, device=local.device)

        def guided_states(images: Tensor, labels: Tensor, numbers: Tensor) -> tuple[Tensor]:
            revealed = reveal(labels, known_fraction_max, rng)
            asked = guided_images(revealed, masking) & guidance  # on the CPU: nobody waits for a GPU to look at it
            given = revealed.to(images.device, non_blocking=True, copy=True)
            if bool(asked.any()):
                probs = global_model.probs(images[asked], numbers[asked].tolist())
                given[asked] = guide(given[asked], probs, threshold, band)
            num_revealed = (revealed != UNKNOWN).sum().to(given.device)
            counts.add_(torch.stack([num_revealed, num_revealed - (given != UNKNOWN).sum()]))
            return (given,)

        def metrics() -> dict[str, float]:
            num_revealed, num_unsure = counts.tolist()
            return {"revealed": float(num_revealed), "unsure": float(num_unsure)}

        return Inputs(guided_states, metrics)

    def loss(network: nn.Module, images: Tensor, labels: Tensor, states: Tensor) -> Tensor:
        return masked_loss(network(images, states), labels, states, reduction)

    objective = Objective(loss, inputs, needs_annotations=True, one_by_one="dropout draws at random" if dropout else "")
    asked = partial(ask, text=text)
    return Method(build, trainer(objective), predict, label_rows, objective=objective, ask=asked)
