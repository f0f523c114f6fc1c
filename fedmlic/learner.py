"""A method with its network in memory, as the server and every host build it.

Building it from the same experiment gives the same initial weights everywhere,
which is why frozen tables never travel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from fedmlic import spec
from fedmlic.arrays import Resident
from fedmlic.errors import InputError
from fedmlic.features import BACKBONE, FeatureMaps, Passed
from fedmlic.image_size import check_image_size
from fedmlic.inference import ONCE, Inference
from fedmlic.method import Method, Task
from fedmlic.mod import Mod
from fedmlic.model import Backbone
from fedmlic.pixel_scale import to_float
from fedmlic.seeds import torch_global_stream

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fedmlic.corpus import Corpus, Images
    from fedmlic.experiment import Experiment
    from fedmlic.shard import OwnImages


@dataclass(frozen=True)
class Learner:
    """A method and its resident network.

    Attributes:
        method: what a client does.
        resident: the network.
        task: what it is to learn.
        device: where it is.
        mods: the experiment's own (the server's rule may bring more).
        features: the feature maps that the network is given in place of the corpus's images, if
            its backbone does not train; the network has none then.
        first_features: the maps that it is given in the method's first stretch of rounds, if its backbone stands
            still there and trains later; the network has its backbone then (``fedmlic.features.passing``).
        inference: how the network is asked when it is evaluated.
    """

    method: Method
    resident: Resident
    task: Task
    device: torch.device
    mods: tuple[Mod, ...] = ()
    features: FeatureMaps | None = None
    inference: Inference = ONCE
    first_features: FeatureMaps | None = None

    def stored(self, corpus: Corpus) -> Images:
        """What the network is given of a corpus: its images, or the feature maps in their place."""
        return corpus.images if self.features is None else self.features

    def build_network(self, experiment: Experiment) -> nn.Module:
        """Another network like the resident one, with initial weights, on the CPU."""
        network = build_network(experiment, self.task)[1]
        if self.features is not None:
            Passed.put_into(network)
        return network

    def predict(
        self, images: Images | OwnImages, rows: NDArray[np.int64], batch_size: int = 256
    ) -> NDArray[np.float32]:
        """Probabilities float32 ``[rows, labels]`` of the loaded network for stored images (see ``stored``)."""
        predict = self.inference.of(partial(self.method.predict, self.resident.network.eval()))
        scores = torch.empty(len(rows), self.task.num_labels)
        with torch.inference_mode():
            for start in range(0, len(rows), batch_size):
                chosen = rows[start : start + batch_size]
                batch = to_float(images.take(chosen), self.device, self.resident.memory_format)
                scores[start : start + len(chosen)] = predict(batch).float().cpu()
        return scores.numpy()


def choose_device(text: str) -> torch.device:
    """``auto`` is the GPU where there is one, else the CPU.

    Raises:
        InputError: no device is called so, or this machine has none such.
    """
    there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if text == "auto":
        text = "cuda" if len(there) > 1 else "cpu"
    if text not in there and (text != "cuda" or len(there) == 1):
        msg = f"Expected device to be auto or one of {', '.join(there)}, got {text!r}."
        raise InputError(msg)
    return torch.device(text)


def label_space(experiment: Experiment, corpus: Corpus) -> tuple[str, ...]:
    """The label names: those of the experiment if it fixes them, else the corpus's."""
    if not experiment.label_names:
        if not corpus.label_names:
            msg = (
                f"Expected label-names, since {experiment.dataset} has none, got nothing. List the labels of all "
                "devices, separated by commas, in the order that everybody uses."
            )
            raise InputError(msg)
        return tuple(corpus.label_names)
    names = tuple(name.strip() for name in experiment.label_names.split(","))
    if corpus.label_names and tuple(corpus.label_names) != names:
        msg = (
            f"Expected label-names to be the data set's {list(corpus.label_names)[:8]}, got {list(names)[:8]}. "
            "Leave label-names empty, or use a data set with these labels."
        )
        raise InputError(msg)
    return names


def build_network(experiment: Experiment, task: Task) -> tuple[Method, nn.Module]:
    """The experiment's method and its network with initial weights, on the CPU.

    Raises:
        InputError: settings that do not fit each other, or images that are too small for the backbone.
    """
    method: Method = spec.build("method", experiment.method)
    with torch_global_stream(experiment.seed, "init"):
        network = method.build(task)
    backbone = getattr(network, BACKBONE.removesuffix("."), None)
    if isinstance(backbone, Backbone):
        check_image_size(experiment.model, backbone, task.image_shape)
    return method, network


def build_learner(
    experiment: Experiment,
    label_names: tuple[str, ...],
    image_shape: tuple[int, int, int],
    device: torch.device | str = "cpu",
    *,
    channels_last: bool = False,
    features: Callable[[Method, nn.Module], FeatureMaps | None] | None = None,
) -> Learner:
    """Build the network of ``experiment`` for a label space and make it resident on ``device``.

    Args:
        experiment: what is trained.
        label_names: in column order.
        image_shape: height, width, channels.
        device: where the network lives.
        channels_last: memory order of convolutions' weights.
        features: gives the feature maps that a method's network, which does not change, can be given in place
            of images (``fedmlic.features.open_features``). None: the network is always given images.
    """
    task = Task(label_names, image_shape, spec.build("model", experiment.model), experiment.seed)
    method, network = build_network(experiment, task)
    mods: tuple[Mod, ...] = tuple(spec.build_all("mods", experiment.mods))
    own = [name for mod in mods if mod.private is not None for name in mod.private(network, method)]
    if any(mod.needs_features for mod in mods) and not hasattr(network, "backbone"):
        msg = (
            f"Expected a network with a backbone, whose features mods={experiment.mods!r} look at, got one of "
            f"{experiment.method} without. Leave the mod out, or choose another method."
        )
        raise InputError(msg)
    inference = checked_inference(experiment, task, method, network)
    found = None if features is None else features(method, network)
    first = found if found is not None and found.first_only else None
    maps = found if first is None else None
    if maps is not None:
        Passed.put_into(network)
        own = [name for name in own if not name.startswith(BACKBONE)]  # what never changes need not be kept
    private = sorted({*method.private(network), *own})
    if any(name.startswith(BACKBONE) for name in private):
        first = None  # what clients keep of a backbone is another one at each of them
    resident = Resident(
        network,
        num_labels=task.num_labels,
        label_rows=method.label_rows(network),
        private=private,
        moments=pooled_moments(network),
        device=device,
        channels_last=channels_last,
    )
    return Learner(method, resident, task, torch.device(device), mods, maps, inference, first)


def checked_inference(experiment: Experiment, task: Task, method: Method, network: nn.Module) -> Inference:
    """The experiment's inference, if it works with this network; the network is left in training mode.

    Raises:
        InputError: it does not.
    """
    inference: Inference = spec.build("inference", experiment.inference)
    inference.check(task, partial(method.predict, network.eval()))
    network.train()
    return inference


def check_at_once(mods: Iterable[Mod]) -> None:
    """Raise ``InputError`` if a mod changes the steps of training, which clients trained at once share."""
    if any(mod.changes_steps for mod in mods):
        msg = "Expected vectorize to be 1, since a mod changes the steps of each client, got more. Use vectorize=1."
        raise InputError(msg)


def pooled_moments(network: nn.Module) -> list[tuple[str, str]]:
    """Names of (mean, variance) buffers of BatchNorm layers whose statistics are exchanged."""
    return [
        (f"{name}.running_mean", f"{name}.running_var")
        for name, module in network.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats  # noqa: SLF001
    ]
