"""Local training: batches of a shard, a loss, an optimiser, steps.

Most methods differ only in their loss; they call ``fit`` with it. The order of
images, the augmentation and dropout draw from streams named by client and
round, so a client's turn replays wherever and whenever it is played.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from fedmlic.method import Local, Method, Task, Trained
from fedmlic.model import Classifier
from fedmlic.optimiser import clip_norm, make_optimiser
from fedmlic.seeds import torch_global_stream

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedmlic.arrays import Resident
    from fedmlic.experiment import Experiment
    from fedmlic.shard import Shard

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""``(network, images [batch, channels, height, width], labels int8 [batch, labels]) -> scalar``."""

PIXEL_MEAN, PIXEL_STD = 127.5, 63.75
"""Stored bytes become (byte - 127.5) / 63.75, about -2 to 2 (see ``docs/training.md``)."""


def to_float(images: NDArray[np.uint8] | Tensor, device: torch.device | str = "cpu") -> Tensor:
    """uint8 ``[batch, height, width, channels]`` to float32 ``[batch, channels, height, width]``."""
    tensor = torch.from_numpy(images) if isinstance(images, np.ndarray) else images
    tensor = tensor.to(device, non_blocking=True).permute(0, 3, 1, 2)
    return tensor.to(torch.float32, memory_format=torch.contiguous_format).sub_(PIXEL_MEAN).div_(PIXEL_STD)


def fit(resident: Resident, shard: Shard, local: Local, loss: Loss) -> Trained:
    """Train ``resident.network`` on ``shard`` for the experiment's local epochs.

    Args:
        resident: holds the network, already loaded with the round's global weights.
        shard: the client's images and observed labels.
        local: whose turn it is.
        loss: scalar loss of one batch; it decides what UNKNOWN means.

    Returns:
        The mean loss over steps and the number of steps.

    Raises:
        FloatingPointError: the loss became NaN or infinite.
    """
    settings = local.experiment
    network = resident.network.train()
    step = make_optimiser(resident.parameter, settings, local.round)
    total = torch.zeros((), dtype=torch.float64, device=local.device)
    num_steps = 0
    with torch_global_stream(settings.seed, "train/torch", local.client, local.round):
        for images, labels in batches(shard, local):
            resident.zero_grad()
            value = loss(network, images, labels)
            value.backward()  # type: ignore[no-untyped-call]
            if settings.clip_norm > 0:
                clip_norm(resident.parameter, settings.clip_norm)
            step()
            total += value.detach()
            num_steps += 1
    mean = float(total) / max(num_steps, 1)
    if not math.isfinite(mean):
        msg = f"Expected a finite training loss, got {mean} after {num_steps} steps. Lower learning-rate."
        raise FloatingPointError(msg)
    return Trained(mean, num_steps, {})


def batches(shard: Shard, local: Local) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled batches of every local epoch, on the client's device.

    Yields:
        float32 images ``[batch, channels, height, width]`` and int8 labels ``[batch, labels]``.
    """
    settings = local.experiment
    device = local.device
    everything = torch.from_numpy(shard.images.take(shard.rows)).to(device)
    observed = torch.from_numpy(np.ascontiguousarray(shard.labels)).to(device)
    rng = local.rng("order")
    augmentation = local.torch_rng("augmentation")
    for chosen in itertools.islice(_chosen(shard.num_images, settings, rng), settings.local_steps or None):
        rows = torch.from_numpy(chosen).to(device)
        images = to_float(everything[rows], device)
        yield augment(images, settings.augmentation, augmentation), observed[rows]


def _chosen(num_images: int, settings: Experiment, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Image numbers of every step: whole epochs, without end if the steps are counted instead."""
    if num_images == 0:
        return
    epochs = itertools.count() if settings.local_steps else range(settings.local_epochs)
    for _ in epochs:
        order = rng.permutation(num_images)
        for start in range(0, num_images, settings.batch_size):
            yield order[start : start + settings.batch_size]


def augment(images: Tensor, kind: str, rng: torch.Generator) -> Tensor:
    """Random views of a batch, one draw per image.

    Args:
        images: float32 ``[batch, channels, height, width]``.
        kind: ``none``; ``flip`` (mirrored with probability 1/2); ``shift`` (moved by up to an
            eighth of the side, edges repeated); ``flip+shift``.
        rng: CPU generator.
    """
    count, _, height, width = images.shape
    if "flip" in kind:
        mirrored = (torch.rand(count, generator=rng) < 0.5).to(images.device)
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    if "shift" in kind:
        reach_y, reach_x = height // 8, width // 8
        padded = nn.functional.pad(images, (reach_x, reach_x, reach_y, reach_y), mode="replicate")
        top = torch.randint(0, 2 * reach_y + 1, (count,), generator=rng).to(images.device)
        left = torch.randint(0, 2 * reach_x + 1, (count,), generator=rng).to(images.device)
        rows = (top[:, None] + torch.arange(height, device=images.device))[:, None, :, None]
        columns = (left[:, None] + torch.arange(width, device=images.device))[:, None, None, :]
        image = torch.arange(count, device=images.device)[:, None, None, None]
        channel = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
        images = padded[image, channel, rows, columns]
    return images


def classifier(loss: Callable[[Tensor, Tensor], Tensor], *, pool: str = "mean") -> Method:
    """The method that trains a backbone with one logit per label by ``loss(logits, labels)``.

    Args:
        loss: scalar loss of logits float32 ``[batch, labels]`` and int8 labels of the same
            shape; it decides what UNKNOWN means.
        pool: how the logit map becomes one logit per label (see ``fedmlic.model.Classifier``).
    """

    def build(task: Task) -> nn.Module:
        backbone = task.model.build(task.image_shape[2])
        return Classifier(backbone, task.num_labels, pool=pool)

    def train(resident: Resident, shard: Shard, local: Local) -> Trained:
        return fit(resident, shard, local, lambda network, images, labels: loss(network(images), labels))

    def predict(network: nn.Module, images: Tensor) -> Tensor:
        return torch.sigmoid(network(images))

    return Method(build, train, predict, label_rows=_head_rows)


def _head_rows(network: nn.Module) -> tuple[str, str]:
    del network
    return ("head.weight", "head.bias")
