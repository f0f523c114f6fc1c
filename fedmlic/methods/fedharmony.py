"""FedHarmony: the correlations of a client's predictions are drawn to those of the other clients.

**Known second-hand**: the paper was not at hand, only digests of it whose numbers contradict each other, and no code
was found. The idea is as below; what the digests leave out was chosen here and is an option or named.

With p the predicted probabilities of some images and bars for means over them, the correlation of labels c and d is

    R[c, d] = (mean(p_c p_d) - pbar_c pbar_d) / (sqrt(pbar_c (1 - pbar_c) pbar_d (1 - pbar_d)) + epsilon)

At the end of a turn a client measures R on all its training images with the network that it sends. The matrices are
added up over the round's clients, and everybody gets the sum with the next round's model. The *consensus* of client i,
R*_i, is the mean over the others: its own part is taken out where it was in that round. In the next turn

    L = mean over annotated entries of binary cross-entropy
        + weight * mean over pairs of different labels of the same block of (R_batch - R*_i)^2,

R_batch being R of the batch, with gradient. Blocks are clusters of R*_i (spectral clustering); ``blocks=1`` takes all
pairs. Without a consensus (round 1, numbers that were withheld) there is no second term; a batch of one image has
correlations of 0 whose gradient is 0.

The training metric ``disagreement`` is the distance of the client's R to R*_i at the end of its turn (root of the mean
square over pairs of different labels; 0 without a consensus). ``strategy="fedharmony()"`` weighs clients by it.

Chosen here: the square as distance, pairs without the diagonal, R of a batch in the loss and of all images in what is
sent, |R*| as the affinity of labels, deterministic k-means, one block, and the weight.

Source: "FedHarmony: Harmonizing Heterogeneous Label Correlations in Federated Multi-Label Learning" (CVPR 2026, arXiv
2604.28024), second-hand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedmlic.guesses import precise
from fedmlic.image_state import PREFIX, of_all_images
from fedmlic.losses import masked_mean, mean_binary_cross_entropy
from fedmlic.method import Inputs, Local, Method
from fedmlic.protocol import ROUND_SUMS
from fedmlic.training import classifier

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

EPSILON = 1e-6
"""Added to the denominator of correlations."""

CORRELATIONS, CLIENTS, ROUNDS = "fedharmony/correlations", "fedharmony/clients", "fedharmony/rounds"
"""Sums of a round: R float64 ``[labels, labels]``; clients int64 ``[1]``; the round's number times clients, ``[1]``."""
OWN, OWN_ROUND = PREFIX + "fedharmony/own", PREFIX + "fedharmony/own-round"
"""What a client keeps: its R of its last turn, and that turn's round."""

ITERATIONS = 100


class Consensus(NamedTuple):
    """What the other clients' correlations are.

    Attributes:
        mean: float32 ``[labels, labels]``.
        pairs: bool ``[labels, labels]``, pairs of different labels that are compared; none without a consensus.
    """

    mean: Tensor
    pairs: Tensor


def correlations(probs: Tensor) -> Tensor:
    """R, ``[labels, labels]``: symmetric, 0 for a single image.

    Args:
        probs: floating ``[images, labels]``, one image at least.

    >>> correlations(torch.tensor([[0.9, 0.1], [0.1, 0.9]])).round(decimals=3).tolist()
    [[0.6399999856948853, -0.6399999856948853], [-0.6399999856948853, 0.6399999856948853]]
    """
    probs = precise(probs)
    means = probs.mean(dim=0)
    # Deviations rather than a difference of large numbers; the root of 0 has no gradient.
    apart = probs - means
    spread = (means * (1 - means)).clamp(min=1e-12).sqrt()
    return (apart.T @ apart / len(probs)) / (spread[:, None] * spread + EPSILON)


def others(local: Local, num_labels: int) -> Consensus:
    """The mean of the correlations of the last round's clients without this one.

    Args:
        local: whose turn it is.
        num_labels: labels to predict.
    """
    nothing = Consensus(torch.zeros(num_labels, num_labels), torch.zeros(num_labels, num_labels, dtype=torch.bool))
    given = [local.shared.get(ROUND_SUMS + name) for name in (CORRELATIONS, CLIENTS, ROUNDS)]
    if any(each is None for each in given):
        return nothing
    total, clients, rounds = (each.detach().cpu() for each in given if each is not None)
    count = int(clients)
    # A number that too few clients stand behind reads exactly 0.
    pairs = (total != 0) & ~torch.eye(num_labels, dtype=torch.bool)
    own = local.memory.get(OWN)
    if own is not None and count and int(local.memory[OWN_ROUND]) * count == int(rounds):
        total, count = total - own.cpu(), count - 1
    return Consensus((total / count).float(), pairs) if count else nothing


def blocks_of(consensus: Consensus, num_blocks: int) -> Consensus:
    """The consensus with only those pairs whose labels are in one block.

    Args:
        consensus: of a client.
        num_blocks: at most; as many as labels leave no pair.
    """
    if num_blocks == 1 or not bool(consensus.pairs.any()):
        return consensus
    affinity = torch.where(consensus.pairs, consensus.mean.abs(), 0.0).double().numpy()
    block = torch.from_numpy(spectral_blocks(affinity, num_blocks))
    return consensus._replace(pairs=consensus.pairs & (block[:, None] == block))


def spectral_blocks(affinity: NDArray[np.float64], num_blocks: int) -> NDArray[np.int64]:
    """int64 ``[labels]``: the block of every label, by spectral clustering; the same for the same affinities.

    Rows of the eigenvectors of D^-1/2 A D^-1/2 with the largest eigenvalues, scaled to length 1, are clustered by
    k-means that starts from rows far from each other.

    Args:
        affinity: ``[labels, labels]``, symmetric, 0 or more.
        num_blocks: at most.

    Source: Ng, Jordan and Weiss 2001, "On Spectral Clustering: Analysis and an algorithm" (NeurIPS).
    """
    count = min(num_blocks, len(affinity))
    degrees = affinity.sum(axis=1)
    roots = np.divide(1.0, np.sqrt(degrees), out=np.zeros_like(degrees), where=degrees > 0)
    _, vectors = np.linalg.eigh(roots[:, None] * affinity * roots)
    rows = vectors[:, -count:]
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)
    centres = rows[:1]
    while len(centres) < count:
        gaps = ((rows[:, None] - centres) ** 2).sum(axis=2).min(axis=1)
        centres = np.vstack([centres, rows[gaps.round(9).argmax()]])
    block = np.zeros(len(rows), dtype=np.int64)
    for _ in range(ITERATIONS):
        before, block = block, ((rows[:, None] - centres) ** 2).sum(axis=2).round(9).argmin(axis=1)
        if (before == block).all():
            break
        for number in np.unique(block):
            centres[number] = rows[block == number].mean(axis=0)
    return block


def gap(measured: Tensor, mean: Tensor, pairs: Tensor) -> Tensor:
    """Mean square of the differences over the pairs, a scalar; 0 if there are none."""
    return masked_mean((measured - mean).square(), pairs)


def round_sums(network: nn.Module, num_labels: int) -> dict[str, Tensor]:
    """Zeros of the sums of a round."""
    del network
    whole = torch.zeros(num_labels, num_labels, dtype=torch.float64)
    return {CORRELATIONS: whole, **{name: torch.zeros(1, dtype=torch.int64) for name in (CLIENTS, ROUNDS)}}


def fedharmony(
    *,
    weight: Annotated[float, Field(ge=0)] = 1.0,
    blocks: Annotated[int, Field(ge=1)] = 1,
    pool: Literal["mean", "max", "logsumexp"] = "mean",
) -> Method:
    """Cross-entropy, and label correlations that agree with those of the other clients (FedHarmony, second-hand).

    Args:
        weight: of the distance to the others' correlations, lambda; 0: they are measured and sent all the same.
        blocks: clusters of labels within which correlations are compared; 1: all pairs.
        pool: how the logit map becomes one logit per label (``fedmlic.model.Classifier``).

    The training metric ``disagreement`` adds up the clients' distances to the others at the end of their turns.
    """

    def inputs(local: Local) -> Inputs:
        shard = local.shard
        num_labels = 0 if shard is None else shard.num_labels
        consensus = others(local, num_labels)
        chosen = blocks_of(consensus, blocks)
        given = chosen.mean.to(local.device), chosen.pairs.to(local.device)

        def metrics() -> dict[str, float]:
            if shard is None or not shard.num_images:
                return {"disagreement": 0.0}
            probs = of_all_images(local, lambda network, images: torch.sigmoid(precise(network(images))))
            own = correlations(probs.double()).cpu()
            told = torch.ones(1, dtype=torch.int64)
            local.round_sums.update({CORRELATIONS: own, CLIENTS: told, ROUNDS: told * local.round})
            local.memory.update({OWN: own, OWN_ROUND: told * local.round})
            return {"disagreement": float(gap(own, consensus.mean.double(), consensus.pairs).sqrt())}

        return Inputs(lambda *_: given, metrics)

    def loss(logits: Tensor, labels: Tensor, mean: Tensor, pairs: Tensor) -> Tensor:
        annotated = mean_binary_cross_entropy(logits, labels)
        return annotated + weight * gap(correlations(torch.sigmoid(precise(logits))), mean, pairs)

    alone = "correlations are measured on a client's own network"
    method = classifier(loss, pool=pool, inputs=inputs, one_by_one=alone)
    return method._replace(
        remembers=True,
        guesses="what suits the other clients' correlations",
        needs_absences=True,
        round_sums=round_sums,
    )
