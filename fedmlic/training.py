"""Local training: batches of a shard, a loss, an optimiser, steps.

Most methods differ only in their loss; they call ``fit`` with it. The order of
images, the augmentation and dropout draw from streams named by client and
round, so a client's turn replays wherever and whenever it is played.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from fedmlic.errors import InputError
from fedmlic.method import Local, Method, Objective, Task, Trained
from fedmlic.model import Classifier
from fedmlic.optimiser import clip_norm, make_optimiser
from fedmlic.seeds import torch_global_stream

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedmlic.arrays import Resident
    from fedmlic.experiment import Experiment
    from fedmlic.shard import Shard

Loss = Callable[..., Tensor]
"""``(network, images [batch, channels, height, width], labels int8 [batch, labels]) -> scalar``."""

PIXEL_MEAN, PIXEL_STD = 127.5, 63.75
"""Stored bytes become (byte - 127.5) / 63.75, about -2 to 2 (see ``docs/training.md``)."""


def to_float(
    images: NDArray[np.uint8] | Tensor,
    device: torch.device | str = "cpu",
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """uint8 ``[batch, height, width, channels]`` to float32 ``[batch, channels, height, width]``.

    Args:
        images: stored images.
        device: where to.
        memory_format: that of the network's weights. With another, every convolution would
            reorder its weights first, which can cost as much as the convolution.
    """
    tensor = torch.from_numpy(images) if isinstance(images, np.ndarray) else images
    tensor = tensor.to(device, non_blocking=True).permute(0, 3, 1, 2)
    return tensor.to(torch.float32, memory_format=memory_format).sub_(PIXEL_MEAN).div_(PIXEL_STD)


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """A tensor of ``array`` on ``device``; on its way to a GPU the processor need not wait for it."""
    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def precision_of(settings: Experiment, device: torch.device) -> AbstractContextManager[object]:
    """The context in which networks compute: autocast to bfloat16 where the experiment says so."""
    if settings.precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def fit(resident: Resident, shard: Shard, local: Local, loss: Loss | Objective) -> Trained:
    """Train ``resident.network`` on ``shard`` for the experiment's local epochs.

    Args:
        resident: holds the network, already loaded with the round's global weights.
        shard: the client's images and observed labels.
        local: whose turn it is.
        loss: scalar loss of one batch, or an objective with further inputs; it decides what
            UNKNOWN means.

    Returns:
        The mean loss over steps and the number of steps.

    Where BatchNorm uses the statistics of the batch, a last batch of a single image joins the
    batch before it: one image has no spread.

    Raises:
        FloatingPointError: the loss became NaN or infinite.
        InputError: BatchNorm met a batch with one value per channel all the same.
    """
    objective = loss if isinstance(loss, Objective) else Objective(loss)
    if objective.needs_annotations and not shard.annotations.any():
        return Trained(0.0, 0, {})
    settings, device = local.experiment, local.device
    network = resident.training_network()
    inputs = objective.inputs(local)
    step = make_optimiser(resident.parameters, settings, local.round)
    join_last = bool(resident.layout.moments)
    losses: list[Tensor] = []
    with torch_global_stream(settings.seed, "train/torch", local.client, local.round, device=device):
        for images, labels, numbers in _batches(shard, local, resident.memory_format, join_last=join_last):
            resident.zero_grad()
            with precision_of(settings, device), _batch_norm_explained(local, len(images), shard.num_images):
                told = inputs.of(images, labels, numbers)
                value = objective.loss(network, images, labels.to(device, non_blocking=True), *told)
            value.backward()  # type: ignore[no-untyped-call]
            if settings.clip_norm > 0:
                clip_norm(resident.parameters, settings.clip_norm)
            step()
            losses.append(value.detach())
    total = float(torch.stack(losses).sum(dtype=torch.float64)) if losses else 0.0
    return checked(Trained(total / max(len(losses), 1), len(losses), inputs.metrics()))


@contextmanager
def _batch_norm_explained(local: Local, num_batch: int, num_images: int) -> Iterator[None]:
    """Torch's complaint about BatchNorm over a single value per channel, in words that say what to change."""
    try:
        yield
    except ValueError as error:
        if not str(error).startswith("Expected more than 1 value per channel when training"):
            raise
        msg = (
            f"Expected batches of client {local.client} to give BatchNorm more than one value per channel, got "
            f"{num_batch} of its {num_images} images and a feature map of one place. Use a batch-size of 2 or more and "
            "clients of 2 images or more, larger images, or a norm that needs no batch (norm='group' or 'frozen')."
        )
        raise InputError(msg) from error


def checked(trained: Trained) -> Trained:
    """``trained`` if its loss is a number.

    Raises:
        FloatingPointError: the loss became NaN or infinite.
    """
    if not math.isfinite(trained.loss):
        msg = (
            f"Expected a finite training loss, got {trained.loss} after {trained.num_steps} steps. Lower learning-rate."
        )
        raise FloatingPointError(msg)
    return trained


def batches(shard: Shard, local: Local) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled batches of every local epoch, on the client's device.

    Yields:
        float32 images ``[batch, channels, height, width]`` and int8 labels ``[batch, labels]``.
    """
    for images, labels, _ in _batches(shard, local, torch.contiguous_format):
        yield images, labels.to(local.device)


def _batches(
    shard: Shard, local: Local, memory_format: torch.memory_format, *, join_last: bool = False
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Images on the client's device, where the shard lies whole; labels and which images these are on the CPU."""
    kind = local.experiment.augmentation
    everything = to_device(shard.images.take(shard.rows), local.device)
    observed = torch.from_numpy(np.ascontiguousarray(shard.labels))
    augmentation = None if kind == "none" else local.torch_rng("augmentation")
    for chosen in steps(shard.num_images, local, join_last=join_last):
        # index_select copies whole images, where brackets would copy byte by byte.
        stored = everything.index_select(0, to_device(chosen, local.device))
        images = to_float(stored, local.device, memory_format)
        if augmentation is not None:
            images = augment(images, kind, augmentation)
        numbers = torch.from_numpy(chosen)
        yield images, observed.index_select(0, numbers), numbers


def steps(num_images: int, local: Local, *, join_last: bool = False) -> Iterator[NDArray[np.int64]]:
    """Which of its images a client uses in every step of its turn.

    Args:
        num_images: how many it has.
        local: whose turn it is.
        join_last: an epoch's last batch joins the one before it if it would be a single image
            and ``batch-size`` is larger than 1.
    """
    settings = local.experiment
    every = _chosen(num_images, settings, local.rng("order"), join_last=join_last)
    return itertools.islice(every, settings.local_steps or None)


def _chosen(
    num_images: int, settings: Experiment, rng: np.random.Generator, *, join_last: bool
) -> Iterator[NDArray[np.int64]]:
    """Image numbers of every step: whole epochs, without end if the steps are counted instead."""
    if num_images == 0:
        return
    size = settings.batch_size
    starts = list(range(0, num_images, size))
    if join_last and size > 1 and len(starts) > 1 and num_images % size == 1:
        starts.pop()
    epochs = itertools.count() if settings.local_steps else range(settings.local_epochs)
    for _ in epochs:
        order = rng.permutation(num_images)
        for start, stop in zip(starts, [*starts[1:], num_images], strict=True):
            yield order[start:stop]


def trainer(objective: Objective) -> Callable[[Resident, Shard, Local], Trained]:
    """A method's ``train`` that is ``fit`` with ``objective`` and nothing else."""

    def train(resident: Resident, shard: Shard, local: Local) -> Trained:
        return fit(resident, shard, local, objective)

    return train


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

    def predict(network: nn.Module, images: Tensor) -> Tensor:
        return torch.sigmoid(network(images))

    objective = Objective(lambda network, images, labels: loss(network(images), labels))
    return Method(build, trainer(objective), predict, label_rows=_head_rows, objective=objective)


def _head_rows(network: nn.Module) -> tuple[str, str]:
    del network
    return ("head.weight", "head.bias")
