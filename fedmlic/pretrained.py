"""Options that pretrained backbones share: which parts train, what happens to BatchNorm, the scale of images.

A backbone is a row of parts from the image to the feature map: a stem, then stages or blocks.
``trainable`` says which of them train:

* ``all``: every parameter of the backbone;
* ``last(n)``: the last n parts;
* ``head``: none, only what the method puts on the feature map.

A parameter that does not train needs no gradient and is never sent. BatchNorm in a part that
does not train uses the statistics it has and never changes them.
"""

from __future__ import annotations

import re
from collections.abc import Container, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from fedmlic.errors import InputError
from fedmlic.model import BatchNormPolicy, apply_bn_policy
from fedmlic.training import PIXEL_MEAN, PIXEL_STD

Norm = Literal["auto", "group", "frozen", "pooled"]
"""``frozen``: BatchNorm with the statistics of the weights, for good; ``group``: GroupNorm; ``pooled``:
BatchNorm whose statistics are exchanged; ``auto``: ``frozen`` with weights, ``group`` from scratch."""

NO_WEIGHTS = frozenset({"", "none"})
"""What ``weights`` is for a network from scratch."""


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
    """How many parts of a backbone train, counted from the feature map; None: all of them.

    Raises:
        InputError: none of the three forms.

    >>> num_parts_trained("all"), num_parts_trained("last(2)"), num_parts_trained("head")
    (None, 2, 0)
    """
    if trainable in {"all", "head"}:
        return None if trainable == "all" else 0
    match = re.fullmatch(r"last\(\s*([1-9][0-9]*)\s*\)", trainable, re.ASCII)
    if match is None:
        msg = (
            f"Expected trainable to be 'all', 'last(n)' with n of at least 1, or 'head', got {trainable!r}. "
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


def train_parts(network: nn.Module, parts: Sequence[Sequence[str]], trainable: str) -> None:
    """Let only some parts of ``network`` train, in place.

    Args:
        network: a backbone with its weights and after its BatchNorm policy; changed in place.
        parts: names of every part's parameters, from the image to the feature map.
        trainable: ``all``, ``last(n)`` or ``head``; see ``check_trainable``.
    """
    count = num_parts_trained(trainable)
    if count is None or count >= len(parts):
        return
    trained = {name for part in parts[len(parts) - count :] for name in part}
    freeze(network, {name for name, _ in network.named_parameters()} - trained)


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
