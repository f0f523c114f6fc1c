"""What pretrained backbones share: parts that train, BatchNorm, the scale of images, and files of weights.

A backbone is a row of parts from the image to the feature map: a stem, then stages or blocks.
``trainable`` says which of them train:

* ``all``: every parameter of the backbone;
* ``last(n)``: the last n parts;
* ``lora(rank)``: adapters beside its linear layers, and nothing else of it (``fedmlic.lora``);
* ``head``: none, only what the method puts on the feature map.

A parameter that does not train needs no gradient and is never sent. BatchNorm in a part that
does not train uses the statistics it has and never changes them.

``docs/pretrained.md`` has the policies, and where each backbone's weights come from.
"""

from __future__ import annotations

import argparse
import hashlib
import pickle
import re
import struct
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fedmlic.errors import InputError
from fedmlic.lora import FORM, add_lora, read_lora
from fedmlic.model import BatchNormPolicy, apply_bn_policy
from fedmlic.pixel_scale import PIXEL_MEAN, PIXEL_STD
from fedmlic.spec import is_restricted

Norm = Literal["auto", "group", "frozen", "pooled"]
"""``frozen``: BatchNorm with the statistics of the weights, for good; ``group``: GroupNorm; ``pooled``:
BatchNorm whose statistics are exchanged; ``auto``: ``frozen`` with weights, ``group`` from scratch."""

NO_WEIGHTS = frozenset({"", "none"})
"""What ``weights`` is for a network from scratch."""

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")

UNFIT = (
    *(RuntimeError, OSError, ValueError, TypeError, LookupError, AttributeError, AssertionError, StopIteration),
    *(pickle.UnpicklingError, EOFError, OverflowError, MemoryError, struct.error, SafetensorError),
)
"""What readers of weights raise for files that hold something else or are broken."""

OBJECT = re.compile(r"GLOBAL ([\w.]+)", re.ASCII)
"""In torch's message, the class that a file wants and that is not read."""

WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "module")
"""Under which name a training script's checkpoint holds the state dict; the first that is there is taken. Averaged
weights come first, since they are what was published."""

PREFIXES = ("module.", "_orig_mod.", "model.")
"""What DistributedDataParallel, torch.compile and Lightning put before every name."""

PIXELS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}
"""Mean and deviation, per channel of images in [0, 1], that families of weights were trained with."""


def bn_policy_of(model: str, norm: Norm, *, pretrained: bool) -> BatchNormPolicy:
    """The policy that ``norm`` stands for.

    Args:
        model: the backbone's name, for the message.
        norm: as the user gave it.
        pretrained: whether there are weights.

    Raises:
        InputError: ``frozen`` without weights, whose statistics would be those of nothing.
    """
    if norm == "auto":
        return "frozen" if pretrained else "none"
    if norm == "frozen" and not pretrained:
        msg = (
            f"Expected norm of {model} to be group or pooled without weights, got 'frozen'. Give weights, or use auto."
        )
        raise InputError(msg)
    return "none" if norm == "group" else norm


def num_parts_trained(trainable: str) -> int | None:
    """How many parts of a backbone train by themselves, counted from the feature map; None: all of them.

    Raises:
        InputError: none of the four forms.

    >>> num_parts_trained("all"), num_parts_trained("last(2)"), num_parts_trained("head")
    (None, 2, 0)
    """
    if trainable in {"all", "head"} or read_lora(trainable):
        return None if trainable == "all" else 0
    match = re.fullmatch(r"last\(\s*([1-9][0-9]*)\s*\)", trainable, re.ASCII)
    if match is None:
        msg = (
            f"Expected trainable to be 'all', 'last(n)' with n of at least 1, 'head' or {FORM}, got {trainable!r}. "
            "trainable='last(2)' trains the last two parts of the backbone."
        )
        raise InputError(msg)
    return int(match[1])


def check_trainable(model: str, trainable: str, num_parts: int, policy: BatchNormPolicy, *, pretrained: bool) -> None:
    """Check ``trainable`` against what the backbone has.

    Args:
        model: the backbone's name, for messages.
        trainable: as the user gave it.
        num_parts: parts of the backbone.
        policy: of its BatchNorm layers, ``none`` if it has none.
        pretrained: whether there are weights.

    Raises:
        InputError: no such form, more parts than there are, or BatchNorm that would have to use
            statistics that nothing was measured for.
    """
    count = num_parts_trained(trainable)
    if count is not None and count > num_parts:
        msg = (
            f"Expected trainable of {model} to be at most 'last({num_parts})', its number of parts, got {trainable!r}."
        )
        raise InputError(msg)
    if count not in {None, num_parts} and policy == "pooled" and not pretrained:
        msg = (
            f"Expected norm of {model} to be group where a part without weights does not train, got 'pooled' with "
            f"trainable={trainable!r}: its BatchNorm would have no statistics. Give weights, or use norm='group'."
        )
        raise InputError(msg)


def train_parts(network: nn.Module, parts: Sequence[Sequence[str]], trainable: str, model: str = "the network") -> None:
    """Let only some parts of ``network``, or only adapters in them, train, in place.

    Args:
        network: a backbone with its weights and after its BatchNorm policy; changed in place.
        parts: names of every part's parameters, from the image to the feature map.
        trainable: ``all``, ``last(n)``, ``lora(rank)`` or ``head``; see ``check_trainable``.
        model: the backbone's name, for messages.

    Raises:
        InputError: ``lora`` where the network's weights lie in layers that cannot be adapted.
    """
    count = num_parts_trained(trainable)
    if count is None or count >= len(parts):
        return
    trained = {name for part in parts[len(parts) - count :] for name in part}
    freeze(network, {name for name, _ in network.named_parameters()} - trained)
    lora = read_lora(trainable)
    if lora is not None:
        add_lora(network, lora, model, {name for part in parts for name in part})


def freeze(network: nn.Module, names: Container[str]) -> None:
    """Let some parameters of ``network`` not train, in place.

    A BatchNorm layer none of whose parameters trains uses the statistics it has from then on; one
    without parameters does if the module that it lies in has none that trains.

    Args:
        network: changed in place.
        names: of parameters.
    """
    for name, parameter in network.named_parameters():
        if name in names:
            parameter.requires_grad_(False)
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            about = [*child.parameters()] or [*parent.parameters()]
            batch_norm = isinstance(child, nn.modules.batchnorm._BatchNorm)  # noqa: SLF001
            if batch_norm and about and not any(parameter.requires_grad for parameter in about):
                holder = nn.ModuleDict({"layer": child})
                apply_bn_policy(holder, "frozen")
                setattr(parent, name, holder["layer"])


def parts_by_prefix(network: nn.Module, prefixes: Sequence[Sequence[str]]) -> list[list[str]]:
    """Names of the parameters below each of some groups of modules.

    >>> parts_by_prefix(nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)), [["0"], ["1", "2"]])
    [['0.weight', '0.bias'], ['2.weight', '2.bias']]
    """
    names = [name for name, _ in network.named_parameters()]
    return [[name for name in names if name.startswith(tuple(f"{p}." for p in group))] for group in prefixes]


def to_scale(mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Per channel, the factor and the summand from this project's pixel scale to a network's.

    Args:
        mean: what the network takes off images in [0, 1], per channel.
        std: what it divides by then.

    Returns:
        Both float32 ``[channels, 1, 1]``.
    """
    means, stds = torch.tensor(mean), torch.tensor(std)
    scale, shift = PIXEL_STD / 255 / stds, (PIXEL_MEAN / 255 - means) / stds
    return scale.reshape(-1, 1, 1), shift.reshape(-1, 1, 1)


class PixelScale(nn.Module):
    """Images in this project's scale as a network expects them; a grey image becomes as many equal channels.

    Args:
        mean: as ``to_scale``'s.
        std: likewise.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        scale, shift = to_scale(mean, std)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """``[batch, channels or 1, height, width]`` to ``[batch, channels, height, width]``."""
        return images * self.scale + self.shift


class Resize(nn.Module):
    """Images of one size, antialiased; nothing is done to images that have it.

    Args:
        side: pixels of height and width.
        mode: ``bilinear`` or ``bicubic``.
        crop: whether the shorter side becomes ``resized`` and the middle is cut out; otherwise both sides
            are resized and proportions change.
        resized: pixels of the shorter side before the cut; 0: ``side``.
    """

    def __init__(self, side: int, mode: str = "bilinear", *, crop: bool = False, resized: int = 0) -> None:
        super().__init__()
        self.side, self.mode, self.crop, self.resized = side, mode, crop, resized or side

    def forward(self, images: Tensor) -> Tensor:
        """``[batch, channels, height, width]`` to ``[batch, channels, side, side]``."""
        height, width = images.shape[2:]
        shape = (self.side, self.side)
        if self.crop:
            short = min(height, width)
            shape = (self.resized * height // short, self.resized * width // short)
        if (height, width) != shape:
            images = F.interpolate(images, shape, mode=self.mode, antialias=True)
        top, left = ((each - self.side) // 2 for each in shape)
        return images[:, :, top : top + self.side, left : left + self.side] if self.crop else images


def check_channels(model: str, channels: int, *, pretrained: bool) -> int:
    """Channels of the first layer: 3 with weights, for grey images too, else those of the images.

    Raises:
        InputError: weights, and images of other than 1 or 3 channels.
    """
    if pretrained and channels not in {1, 3}:
        msg = f"Expected images of 1 or 3 channels for a pretrained {model}, got {channels}. Train from scratch."
        raise InputError(msg)
    return 3 if pretrained else channels


def check_weights_file(path: str) -> str:
    """A line for the record: the file's name and the first 12 digits of its SHA-256.

    Raises:
        InputError: no such file, or not a format that is read without running code.
    """
    file = Path(path).expanduser()
    if file.suffix not in WEIGHT_SUFFIXES:
        msg = f"Expected weights to be a file ending in {', '.join(WEIGHT_SUFFIXES)}, got {path!r}."
        raise InputError(msg)
    if not file.is_file():
        msg = f"Expected weights to be a file, got nothing at {path!r}. Copy it there or correct the path."
        raise InputError(msg)
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return f"{file.name} sha256:{digest[:12]}"


def too_large(path: str) -> InputError:
    """The error for weights that the memory does not hold; a broken file may say that it is larger than it is."""
    return InputError(
        f"Expected enough memory for what {path!r} says that it holds, got too little. Use a machine with more memory, "
        "or copy the file again if it should be smaller."
    )


def read_weights(path: str) -> dict[str, Tensor]:
    """A state dict from a safetensors file, or from a torch file with ``weights_only=True``.

    Of a training script's checkpoint the first of ``WRAPPERS`` is taken; ``PREFIXES`` that all names have are
    taken off.

    Raises:
        InputError: missing, unreadable, larger than the memory, or something else than names with tensors.
    """
    check_weights_file(path)
    file = Path(path).expanduser()
    try:
        if file.suffix == ".safetensors":
            return _without_prefixes(load_file(file))
        # Training scripts keep their options beside the weights as a Namespace, which holds values and runs nothing.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except UNFIT as error:
        if isinstance(error, MemoryError):
            raise too_large(path) from error
        msg = f"Expected {path!r} to hold tensors only, got a file that cannot be read so: {_why_unread(error)}"
        raise InputError(msg) from error
    found = _unwrapped(content)
    if found is None:
        names = [str(key) for key in list(content)[:8]] if isinstance(content, dict) and not is_restricted() else []
        inside = f" with {', '.join(names)}" if names else ""
        msg = (
            f"Expected {path!r} to hold a state dict (names with tensors), or one as {', '.join(WRAPPERS)}, got a "
            f"{type(content).__name__}{inside}. Save model.state_dict() alone."
        )
        raise InputError(msg)
    return _without_prefixes(found)


def _why_unread(error: Exception) -> str:
    """What is wrong with a file, and what to do; what torch says itself advises to run the file's code."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}. Copy it there again, or let this user read it."
    if "TorchScript" in str(error):
        return "it is a TorchScript archive, which holds code. Save model.state_dict() alone."
    other = OBJECT.search(str(error))
    if other is not None:
        named = "" if is_restricted() else f", such as {other[1]}"
        return f"it holds objects beside tensors{named}, which could run code. Save model.state_dict() alone."
    return "it was cut off or damaged, or is no file of weights (such as a page of an error). Copy it again."


def _unwrapped(content: object) -> dict[str, Tensor] | None:
    """The state dict that ``content`` is, or holds under one of ``WRAPPERS``."""
    if not isinstance(content, dict):
        return None
    wrapped = next((content[name] for name in WRAPPERS if isinstance(content.get(name), dict)), None)
    found = content if wrapped is None else wrapped
    whole = bool(found) and all(isinstance(k, str) and isinstance(value, Tensor) for k, value in found.items())
    return dict(found) if whole else None


def _without_prefixes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``tensors`` without ``PREFIXES`` that all names have, as often as they have them."""
    found = dict(tensors)
    while True:
        prefix = next((each for each in PREFIXES if found and all(name.startswith(each) for name in found)), "")
        if not prefix:
            return found
        found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}


def renamed(tensors: Mapping[str, Tensor], rules: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
    r"""``tensors`` by other names: of the regular expressions, the first that fits a whole name renames it.

    >>> list(renamed({"ln_1.bias": 0, "other": 0}, [(r"ln_(\d)\.(\w+)", r"norm\1.\2")]))
    ['norm1.bias', 'other']
    """
    compiled = [(re.compile(pattern, re.ASCII), new) for pattern, new in rules]

    def name_of(name: str) -> str:
        return next((match.expand(new) for each, new in compiled if (match := each.fullmatch(name))), name)

    return {name_of(name): tensor for name, tensor in tensors.items()}


def load_weights(network: nn.Module, tensors: Mapping[str, Tensor], ignore: tuple[str, ...], where: str) -> None:
    """Load all of ``network`` from ``tensors``, or nothing.

    Args:
        network: changed in place.
        tensors: by name; counters of BatchNorm (``num_batches_tracked``) may be missing.
        ignore: prefixes of names that the network has no use for, such as a classifier's.
        where: the file's name, for messages.

    Raises:
        InputError: names are missing, unknown or of another shape, or numbers are not finite.
    """
    given = {name: value for name, value in tensors.items() if not name.startswith(ignore)}
    own = {name: value for name, value in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    problems = {
        "missing": sorted(own.keys() - given.keys()),
        "unknown": sorted(n for n in given.keys() - own.keys() if not n.endswith("num_batches_tracked")),
        "of another shape": [
            f"{n} {tuple(given[n].shape)} for {tuple(own[n].shape)}"
            for n in own
            if n in given and given[n].shape != own[n].shape
        ],
        "not finite": [n for n in own if n in given and not bool(given[n].isfinite().all())],
    }
    found = [f"{len(names)} {what} ({', '.join(names[:5])})" for what, names in problems.items() if names]
    if found:
        msg = f"Expected {where} to fit the network, got tensors {'; '.join(found)}. Use weights of this very network."
        raise InputError(msg)
    network.load_state_dict({name: given[name] for name in own}, strict=False)
