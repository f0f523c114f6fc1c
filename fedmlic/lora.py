"""LoRA: a linear layer keeps its weights, and a product of two narrow matrices is trained beside them.

For a layer with the frozen weight W ``[outputs, inputs]`` and the bias b::

    y = W x + b + (alpha / rank) B A x,     A [rank, inputs],  B [outputs, rank]

A starts uniform in +-1/sqrt(inputs) as in the authors' code, B at zero, so the network starts as the frozen one. Only
A and B train and are exchanged. A convolution of 1 x 1 is a linear layer at every place and is adapted likewise.

**Averaging.** The mean of the clients' B A is not the product of their mean B and mean A. A server that averages
both (as all strategies here do, and FedIT did first) is off by a term that grows with the differences between clients.
``freeze_a`` (FFA-LoRA) keeps A as it starts, the same everywhere: then B alone travels, and the mean of B gives
exactly the mean of B A.

Sources: Hu et al. 2022, "LoRA: Low-Rank Adaptation of Large Language Models" (ICLR), section 4.1; FedIT: Zhang et
al. 2024, "Towards Building the FederatedGPT: Federated Instruction Tuning" (ICASSP); FFA-LoRA: Sun et al. 2024,
"Improving LoRA in Privacy-preserving Federated Learning" (ICLR). Deviations: no dropout in front of A; alpha is the
rank unless it is given, so the factor is 1; all linear layers are adapted unless ``layers=attention`` (Hu et al. adapt
those of attention).
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Container, Mapping
from typing import Literal, NamedTuple, TypeGuard

import torch.nn.functional as F
from torch import Tensor, nn

from fedmlic.errors import InputError, nearest

MIN_SHARE = 0.25
"""Least share of a network's numbers that lies in layers which can be adapted; below it, adapters miss the network."""

FORM = "lora(rank), with alpha=number, layers=linear or attention, freeze_a=True or False where wanted"


class Lora(NamedTuple):
    """How layers are adapted.

    Attributes:
        rank: of B A, at least 1.
        alpha: the product is multiplied by alpha / rank.
        layers: ``linear``: all linear layers and convolutions of 1 x 1; ``attention``: those
            inside a module whose name says attention (``attn``, ``attention``, ``attend``).
        freeze_a: whether A stays as it starts (FFA-LoRA).
    """

    rank: int
    alpha: float
    layers: Literal["linear", "attention"] = "linear"
    freeze_a: bool = False


def read_lora(text: str) -> Lora | None:
    """The meaning of ``lora(...)``; None if ``text`` is something else.

    Raises:
        InputError: it begins so and goes on otherwise.

    >>> read_lora("lora(8, alpha=16)"), read_lora("head")
    (Lora(rank=8, alpha=16.0, layers='linear', freeze_a=False), None)
    """
    match = re.fullmatch(r"lora\s*(?:\((.*)\))?", text.strip(), re.DOTALL)
    if match is None:
        return None
    parts = [part for part in (match[1] or "").split(",") if part.strip()]
    given: dict[str, object] = {}
    for place, part in enumerate(parts):
        name, equals, value = (each.strip() for each in part.partition("="))
        if place == 0 and not equals:
            name, value = "rank", name
        if name not in Lora._fields or name in given or not value:
            hint = nearest(name, Lora._fields) if name not in Lora._fields else f"Give {name} once, with a value."
            msg = f"Expected trainable to be {FORM}, got {text!r}. {hint}"
            raise InputError(msg)
        given[name] = _literal(value)
    return _checked(given, text)


def _literal(value: str) -> object:
    try:
        found: object = ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return value
    return found


def _checked(given: Mapping[str, object], text: str) -> Lora:
    rank, layers, freeze_a = given.get("rank"), given.get("layers", "linear"), given.get("freeze_a", False)
    alpha = given.get("alpha", rank)
    if type(rank) is int and rank >= 1 and layers in ("linear", "attention") and type(freeze_a) is bool:
        usable = isinstance(alpha, int | float) and type(alpha) is not bool
        if usable and math.isfinite(number := float(str(alpha))) and number > 0:
            return Lora(rank, number, "attention" if layers == "attention" else "linear", freeze_a)
    msg = (
        f"Expected trainable to be {FORM}, with a whole number of at least 1 as rank and a number above 0 as alpha, "
        f"got {text!r}."
    )
    raise InputError(msg)


class Adapted(nn.Module):
    """A linear layer, or a convolution of 1 x 1, with its adapter: the layer's own output plus (alpha / rank) B A x.

    Code that reads the layer's ``weight`` and ``bias`` instead of calling it gets W + (alpha / rank) B A and b. This
    is not what the layer computes if it makes other weights of W before it uses them, as timm's weight-standardised
    convolutions do (NFNet, ResNetV2): the adapter is added to their output, and ``weight`` cannot stand for both.

    Args:
        base: the layer; its own parameters are frozen in place.
        lora: how.
    """

    def __init__(self, base: nn.Linear | nn.Conv2d, lora: Lora) -> None:
        super().__init__()
        outputs, inputs = base.weight.shape[:2]
        self.base = base.requires_grad_(requires_grad=False)
        self.scale = lora.alpha / lora.rank
        start = base.weight.new_empty(lora.rank, inputs).uniform_(-1 / math.sqrt(inputs), 1 / math.sqrt(inputs))
        self.lora_a = nn.Parameter(start, requires_grad=not lora.freeze_a)
        self.lora_b = nn.Parameter(base.weight.new_zeros(outputs, lora.rank))

    def forward(self, inputs: Tensor) -> Tensor:
        """The layer's own output plus the adapter's; of the same shape."""
        if isinstance(self.base, nn.Linear):
            added = F.linear(F.linear(inputs, self.lora_a), self.lora_b)
        else:
            narrow = F.conv2d(inputs, self.lora_a[:, :, None, None], stride=self.base.stride)
            added = F.conv2d(narrow, self.lora_b[:, :, None, None])
        result: Tensor = self.base(inputs) + self.scale * added
        return result

    @property
    def weight(self) -> Tensor:
        """W + (alpha / rank) B A, in the shape of W."""
        own: Tensor = self.base.weight
        return own + self.scale * (self.lora_b @ self.lora_a).view_as(own)

    @property
    def bias(self) -> Tensor | None:
        """The layer's own."""
        return self.base.bias


def add_lora(network: nn.Module, lora: Lora, where: str, only: Container[str] | None = None) -> list[str]:
    """Put adapters beside the layers of ``network``, in place; whatever else trains in it still does.

    A layer that adapters of this rank would not make smaller to send (rank * (inputs + outputs) of at least
    inputs * outputs) gets none. Initial weights of adapters come from torch's global generator.

    Args:
        network: changed in place; layers that are adapted are frozen.
        lora: how.
        where: what the network is, for messages.
        only: names of weights; other layers are left alone. None: all may be adapted.

    Returns:
        Names of the layers that were adapted.

    Raises:
        InputError: there is none to adapt, or nearly everything lies in layers that cannot be (convolutions
            of more than 1 x 1), or a layer keeps its weights where an adapter cannot reach them.
    """
    found = {name: layer for name, layer in _layers(network) if only is None or f"{name}.weight" in only}
    share = sum(layer.weight.numel() for layer in found.values()) / max(sum(p.numel() for p in network.parameters()), 1)
    if share < MIN_SHARE:
        msg = (
            f"Expected the weights of {where} to lie in linear layers or convolutions of 1 x 1 for lora, got "
            f"{share:.1%} of them there. Choose trainable='last(n)' or 'head', or another network."
        )
        raise InputError(msg)
    _check_reach(network, where)
    chosen = {n: layer for n, layer in found.items() if _in_attention(n) or lora.layers == "linear"}
    chosen = {n: layer for n, layer in chosen.items() if _is_narrower(layer, lora.rank)}
    if not chosen:
        msg = (
            f"Expected {where} to have {lora.layers} layers with more numbers than adapters of rank {lora.rank}, got "
            "none. Choose a smaller rank or layers=linear."
        )
        raise InputError(msg)
    places = list(network.named_modules(remove_duplicate=False))  # a layer that is used twice stays one layer
    adapted = {id(layer): Adapted(layer, lora) for layer in chosen.values()}
    for path, module in places:
        if id(module) in adapted:
            network.set_submodule(path, adapted[id(module)])
    return list(chosen)


def _layers(network: nn.Module) -> list[tuple[str, nn.Linear | nn.Conv2d]]:
    """Layers that compute W x + b, in the network's order."""
    inside = {f"{name}.base" for name, module in network.named_modules() if isinstance(module, Adapted)}
    return [
        (name, module)
        for name, module in network.named_modules()
        if name and name not in inside and (isinstance(module, nn.Linear) or _is_pointwise(module))
    ]


def _is_pointwise(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    return (
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (1, 1)
        and module.groups == 1
        and module.padding in {(0, 0), "same", "valid"}
    )


def _is_narrower(layer: nn.Linear | nn.Conv2d, rank: int) -> bool:
    outputs, inputs = layer.weight.shape[:2]
    return bool(rank * (inputs + outputs) < inputs * outputs)


def _in_attention(name: str) -> bool:
    return re.search(r"att(n|ention|end)", name) is not None


def _check_reach(network: nn.Module, where: str) -> None:
    for name, module in network.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            msg = (
                f"Expected the attention of {where} to be made of linear layers for lora, got torch's "
                f"MultiheadAttention at {name!r}, which keeps three of them in one tensor. Choose "
                "trainable='last(n)' or another network."
            )
            raise InputError(msg)
