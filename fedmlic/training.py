"""Local training: batches of a shard, a loss, an optimiser, steps.

Most methods differ only in their loss; they call ``fit`` with it. The order of
images, the augmentation and dropout draw from streams named by client and
round, so a client's turn replays wherever and whenever it is played.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from fedmlic.errors import InputError
from fedmlic.method import Inputs, Local, Method, Objective, Task, Trained, no_inputs, scalar_and_rest
from fedmlic.mod import Step
from fedmlic.model import Classifier, StageBackbone
from fedmlic.optimiser import clip_norm, make_optimiser
from fedmlic.pixel_scale import to_float
from fedmlic.seeds import torch_global_stream
from fedmlic.views import augment

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedmlic.arrays import Resident
    from fedmlic.experiment import Experiment
    from fedmlic.model import Stage
    from fedmlic.shard import Shard

Loss = Callable[..., Tensor]
"""``(network, images [batch, channels, height, width], labels int8 [batch, labels]) -> scalar``."""

ON_ALL_BATCH = 64
"""Images at once where a network looks at all images of a client."""


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
    inputs = objective.inputs(replace(local, shard=shard, on_all=on_all(resident, shard, local)))
    terms = [hooks.term for hooks in local.hooks if hooks.term is not None]
    before = [hooks.gradient for hooks in local.hooks if hooks.gradient is not None]
    after = [hooks.after_step for hooks in local.hooks if hooks.after_step is not None]
    losses: list[Tensor] = []
    order = local.rng("order")
    views = None if settings.augmentation == "none" else local.torch_rng("augmentation")
    with (
        torch_global_stream(settings.seed, "train/torch", local.client, local.round, device=device),
        captured_features(resident.network, wanted=bool(terms)) as captured,
    ):
        for epochs in stages(resident, local):
            network = resident.training_network()
            step = make_optimiser(resident.parameters, settings, local.round)
            plan = _Plan(order, views, epochs, join_last=resident.batch_norm)
            for images, labels, numbers in _batches(shard, local, resident.memory_format, plan):
                resident.zero_grad()
                with precision_of(settings, device), _batch_norm_explained(local, len(images), shard.num_images):
                    given = inputs.of(images, labels, numbers)
                    observed = labels.to(device, non_blocking=True)
                    captured.begin(images)
                    value, rest = scalar_and_rest(objective.loss(network, images, observed, *given))
                    seen = captured.step(network, images, observed)
                    for term in terms:
                        value = value + term(seen)
                value.backward()  # type: ignore[no-untyped-call]
                for change_gradients in before:
                    change_gradients()
                if settings.clip_norm > 0:
                    clip_norm(resident.parameters, settings.clip_norm)
                step()
                for change_parameters in after:
                    change_parameters()
                losses.append(value.detach())
                if inputs.seen is not None:
                    inputs.seen(numbers, *(tensor.detach() for tensor in rest))
    total = float(torch.stack(losses).sum(dtype=torch.float64)) if losses else 0.0
    return checked(Trained(total / max(len(losses), 1), len(losses), inputs.metrics()))


def full_gradient(resident: Resident, shard: Shard, local: Local) -> list[Tensor]:
    """The gradient of the client's loss over all its images, at the tensors as they are now.

    One pass without augmentation, the network in evaluation mode, so that nothing changes. A
    batch counts as many times as it has images.

    Args:
        resident: holds the network.
        shard: the client's images and observed labels.
        local: whose turn it is; its objective is taken.

    Returns:
        One tensor for each of ``resident.parameters``.

    Raises:
        InputError: the method does not say what it minimises.
    """
    objective = local.objective
    if objective is None:
        msg = "Expected a method that trains by training.fit with an objective, got another. Choose another method."
        raise InputError(msg)
    copied = {name: tensor.clone() for name, tensor in local.memory.items()}  # looking changes nothing
    looked = replace(local, memory=copied, round_sums={}, shard=shard, on_all=on_all(resident, shard, local))
    network, inputs = resident.network.eval(), objective.inputs(looked)
    total = [torch.zeros_like(parameter) for parameter in resident.parameters]
    held = held_images([shard], local.device)
    observed = torch.from_numpy(np.ascontiguousarray(shard.labels))
    size = local.experiment.batch_size
    with torch_global_stream(local.experiment.seed, "gradient/torch", local.client, local.round, device=local.device):
        for start in range(0, shard.num_images, size):
            numbers = torch.arange(start, min(start + size, shard.num_images))
            images = to_float(held(numbers.numpy()), local.device, resident.memory_format)
            labels = observed.index_select(0, numbers)
            given = inputs.of(images, labels, numbers)
            value, _ = scalar_and_rest(objective.loss(network, images, labels.to(local.device), *given))
            found = torch.autograd.grad(value, resident.parameters, allow_unused=True)
            for each, gradient in zip(total, found, strict=True):
                if gradient is not None:
                    each.add_(gradient, alpha=len(numbers) / shard.num_images)
    return total


def on_all(resident: Resident, shard: Shard, local: Local) -> Callable[[Callable[[nn.Module, Tensor], Tensor]], Tensor]:
    """What ``Local.on_all`` is in a turn.

    Args:
        resident: holds the network.
        shard: the client's.
        local: whose turn it is.
    """

    def outputs(call: Callable[[nn.Module, Tensor], Tensor]) -> Tensor:
        network, was_training = resident.network, resident.network.training
        found = []
        held = held_images([shard], local.device)
        with torch.no_grad():
            network.eval()
            for start in range(0, shard.num_images, ON_ALL_BATCH):
                chosen = np.arange(start, min(start + ON_ALL_BATCH, shard.num_images))
                found.append(call(network, to_float(held(chosen), local.device, resident.memory_format)))
        if was_training:
            resident.training_network()
        return torch.cat(found)

    return outputs


def stages(resident: Resident, local: Local) -> Iterator[int]:
    """The parts of a turn: lets the tensors of each train and gives its epochs (0: the experiment's)."""
    chosen = [hooks.stages for hooks in local.hooks if hooks.stages is not None]
    if not chosen:
        yield 0
        return
    trained = resident.trained
    for epochs, tensors in chosen[-1]:
        resident.train_only(tensors if trained is None else trained & tensors)
        if resident.parameters:
            yield epochs
    resident.train_only(trained)


class Pass(NamedTuple):
    """One pass of a network's backbone.

    Attributes:
        given: what the backbone got; None where a method goes through its stages by itself.
        map: what it gave, ``[batch, features, height', width']``.
    """

    given: Tensor | None
    map: Tensor


class Captured:
    """What the backbone got and gave in a step: in the first pass over images of the step's size, else in the last.

    A method may look at several things in a step, such as mixtures of images or patches of them. One that gives its
    backbone more than a batch's images at once puts these first.
    """

    def __init__(self) -> None:
        self._size: torch.Size | None = None
        self._given: Tensor | None = None
        self._first: Pass | None = None
        self._last: Pass | None = None

    def begin(self, images: Tensor) -> None:
        """Forget the step before; this one is over ``images``."""
        self._size, self._given, self._first, self._last = images.shape[1:], None, None, None

    def enter(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Before the backbone's forward pass."""
        self._given = inputs[0]

    def note(self, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        """When the map is there."""
        self._last = Pass(self._given, output)
        if self._first is None and (self._given is None or self._given.shape[1:] == self._size):
            self._first = self._last

    def leave(self, _module: nn.Module, _inputs: object, _output: Tensor) -> None:
        """After the backbone's forward pass."""
        self._given = None

    def step(self, network: nn.Module, images: Tensor, labels: Tensor) -> Step:
        """The step as a term of the loss sees it."""
        found = self._first or self._last
        if found is None:
            return Step(network, images, labels, None)
        given = images if found.given is None else found.given[: len(images)]
        return Step(network, given, labels, found.map[: len(images)].mean(dim=(2, 3)))


@contextmanager
def captured_features(network: nn.Module, *, wanted: bool) -> Iterator[Captured]:
    """Inside the block: notes what the network's backbone gets and gives."""
    backbone = getattr(network, "backbone", None)
    captured = Captured()
    if not wanted or backbone is None:
        yield captured
        return
    # A method may go through a network in stages by itself: its last block makes the map in either case.
    maker: nn.Module = backbone
    if isinstance(backbone, StageBackbone):
        maker = cast("Stage", backbone.stages[-1]).blocks[-1]
    handles = [
        backbone.register_forward_pre_hook(captured.enter),
        maker.register_forward_hook(captured.note),
        backbone.register_forward_hook(captured.leave),
    ]
    try:
        yield captured
    finally:
        for handle in handles:
            handle.remove()


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
    views = None if local.experiment.augmentation == "none" else local.torch_rng("augmentation")
    plan = _Plan(local.rng("order"), views)
    for images, labels, _ in _batches(shard, local, torch.contiguous_format, plan):
        yield images, labels.to(local.device)


def _batches(
    shard: Shard, local: Local, memory_format: torch.memory_format, plan: _Plan
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Images on the client's device; labels and which images these are on the CPU."""
    kind = local.experiment.augmentation
    held = held_images([shard], local.device)
    observed = torch.from_numpy(np.ascontiguousarray(shard.labels))
    for chosen in _steps(shard.num_images, local.experiment, plan):
        images = to_float(held(chosen), local.device, memory_format)
        if plan.views is not None:
            images = augment(images, kind, plan.views)
        numbers = torch.from_numpy(chosen)
        yield images, observed.index_select(0, numbers), numbers


def held_images(shards: Sequence[Shard], device: torch.device) -> Callable[[NDArray[np.int64]], Tensor]:
    """What gives stored images of clients, on ``device``, by their number: 0, 1, ..., client after client.

    Pixels lie whole on the device. Feature maps, of which a client may hold more than fits
    memory, are read from the disk batch by batch.
    """
    if any(getattr(shard.images, "as_maps", False) for shard in shards):  # a reader in a test may only know take
        return lambda numbers: to_device(_maps(shards, numbers), device)
    taken = [shard.images.take(shard.rows) for shard in shards]
    everything = to_device(taken[0] if len(taken) == 1 else np.concatenate(taken), device)
    # index_select copies whole images, where brackets would copy byte by byte.
    return lambda numbers: everything.index_select(0, to_device(numbers, device))


def _maps(shards: Sequence[Shard], numbers: NDArray[np.int64]) -> NDArray[np.float32]:
    if len(shards) == 1:
        return shards[0].images.take(shards[0].rows[numbers])
    firsts = np.cumsum([0, *(shard.num_images for shard in shards)])
    owners = np.searchsorted(firsts, numbers, side="right") - 1
    owned = {owner: numbers[owners == owner] - firsts[owner] for owner in dict.fromkeys(owners.tolist())}
    taken = [shards[owner].images.take(shards[owner].rows[places]) for owner, places in owned.items()]
    order = np.argsort(np.concatenate([np.flatnonzero(owners == owner) for owner in owned]), kind="stable")
    return np.concatenate(taken)[order]


class _Plan(NamedTuple):
    """How a client goes through its images.

    Attributes:
        order: the stream of their order.
        views: the stream of augmentation, None where there is none.
        epochs: passes, or 0 for the experiment's epochs or steps.
        join_last: an epoch's last batch joins the one before it if it would be a single image
            and ``batch-size`` is larger than 1.
    """

    order: np.random.Generator
    views: torch.Generator | None = None
    epochs: int = 0
    join_last: bool = False


def steps(num_images: int, local: Local, *, join_last: bool = False) -> Iterator[NDArray[np.int64]]:
    """Which of its images a client uses in every step of its turn.

    Args:
        num_images: how many it has.
        local: whose turn it is.
        join_last: an epoch's last batch joins the one before it if it would be a single image
            and ``batch-size`` is larger than 1.
    """
    return _steps(num_images, local.experiment, _Plan(local.rng("order"), join_last=join_last))


def most_steps(settings: Experiment, num_images: int, passes: int = 1) -> int:
    """The most optimiser steps of a turn without stages.

    Args:
        settings: epochs or steps, and the batch size.
        num_images: the client's.
        passes: the method's (``Method.passes``).

    >>> from fedmlic.experiment import Experiment
    >>> most_steps(Experiment(local_epochs=3, batch_size=16), 33), most_steps(Experiment(local_steps=5), 33)
    (9, 5)
    """
    return settings.local_steps or passes * settings.local_epochs * math.ceil(num_images / settings.batch_size)


def _steps(num_images: int, settings: Experiment, plan: _Plan) -> Iterator[NDArray[np.int64]]:
    """Image numbers of every step."""
    if plan.epochs:
        return _epochs(num_images, settings.batch_size, plan, range(plan.epochs))
    epochs = itertools.count() if settings.local_steps else range(settings.local_epochs)
    return itertools.islice(_epochs(num_images, settings.batch_size, plan, epochs), settings.local_steps or None)


def _epochs(num_images: int, size: int, plan: _Plan, epochs: Iterable[int]) -> Iterator[NDArray[np.int64]]:
    """Image numbers of every batch of whole epochs."""
    if num_images == 0:
        return
    starts = list(range(0, num_images, size))
    if plan.join_last and size > 1 and len(starts) > 1 and num_images % size == 1:
        starts.pop()
    for _ in epochs:
        order = plan.order.permutation(num_images)
        for start, stop in zip(starts, [*starts[1:], num_images], strict=True):
            yield order[start:stop]


def trainer(objective: Objective) -> Callable[[Resident, Shard, Local], Trained]:
    """A method's ``train`` that is ``fit`` with ``objective`` and nothing else."""

    def train(resident: Resident, shard: Shard, local: Local) -> Trained:
        return fit(resident, shard, local, objective)

    return train


def classifier(
    loss: Callable[..., Tensor | tuple[Tensor, ...]],
    *,
    pool: str = "mean",
    hidden: Sequence[int] = (),
    inputs: Callable[[Local], Inputs] = no_inputs,
    one_by_one: str = "",
) -> Method:
    """The method that trains a backbone with one logit per label by ``loss(logits, labels)``.

    Args:
        loss: scalar loss of logits float32 ``[batch, labels]`` and int8 labels of the same
            shape; it decides what UNKNOWN means. Further inputs come after these. It may give
            tensors beside the scalar (see ``Objective``).
        inputs: makes a turn's further inputs of the loss.
        one_by_one: why clients cannot be trained at once; empty where they can.
        pool: how the logit map becomes one logit per label (see ``fedmlic.model.Classifier``).
        hidden: units of hidden layers between the feature map and the logits.
    """

    def build(task: Task) -> nn.Module:
        backbone = task.model.build(task.image_shape[2])
        return Classifier(backbone, task.num_labels, pool=pool, hidden=hidden)

    def predict(network: nn.Module, images: Tensor) -> Tensor:
        return torch.sigmoid(network(images))

    def of_images(network: nn.Module, images: Tensor, labels: Tensor, *given: Tensor) -> Tensor | tuple[Tensor, ...]:
        return loss(network(images), labels, *given)

    objective = Objective(of_images, inputs, one_by_one=one_by_one)
    return Method(build, trainer(objective), predict, label_rows=_head_rows, objective=objective)


def _head_rows(network: nn.Module) -> tuple[str, str]:
    del network
    return ("head.weight", "head.bias")
