"""The exchanged tensors of a network as one flat float32 vector with named views.

A round moves a model hundreds of times. As one vector it is loaded, optimised,
added and sent in single passes over memory instead of one call per tensor.
The order inside the vector is: exchanged buffers, exchanged parameters that the
whole label space shares, then the tensors that have one row per label.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from fedmlic.errors import InputError, nearest

ALIGNMENT = 16
"""Tensors start at multiples of 16 floats (64 bytes), as torch's own allocations do."""


@dataclass(frozen=True)
class Layout:
    """Where each exchanged tensor lies in the flat vector.

    Attributes:
        names: tensor names as in ``network.state_dict()``, in vector order.
        shapes: their shapes.
        num_labels: rows of every label-row tensor.
        num_row_tensors: how many of the last tensors have one row per label (first axis).
        moments: (mean name, variance name) of BatchNorm statistics that are merged exactly.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    num_labels: int
    num_row_tensors: int
    moments: tuple[tuple[str, str], ...] = ()

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Start of each tensor; one more entry, the length of the vector."""
        ends = [0]
        for shape in self.shapes:
            ends.append(ends[-1] + -(-math.prod(shape) // ALIGNMENT) * ALIGNMENT)
        return tuple(ends)

    @property
    def size(self) -> int:
        """Length of the vector, padding included."""
        return self.offsets[-1]

    @property
    def rows_start(self) -> int:
        """Where the label-row tensors begin; everything before is shared by all labels."""
        return self.offsets[len(self.names) - self.num_row_tensors]

    @property
    def num_values(self) -> int:
        """Exchanged numbers, padding not counted."""
        return sum(math.prod(shape) for shape in self.shapes)

    def view(self, flat: Tensor, name: str) -> Tensor:
        """The tensor ``name`` inside ``flat`` (a view)."""
        index = self.names.index(name)
        start = self.offsets[index]
        return flat[start : start + math.prod(self.shapes[index])].view(self.shapes[index])

    def views(self, flat: Tensor) -> Iterator[tuple[str, Tensor]]:
        """All (name, view) pairs in vector order."""
        for name, shape, start in zip(self.names, self.shapes, self.offsets, strict=False):
            yield name, flat[start : start + math.prod(shape)].view(shape)

    def row_views(self, flat: Tensor) -> Iterator[tuple[str, Tensor]]:
        """(name, view [labels, values]) of the label-row tensors."""
        first = len(self.names) - self.num_row_tensors
        parts = zip(self.names[first:], self.shapes[first:], self.offsets[first:], strict=False)
        for name, shape, start in parts:
            yield name, flat[start : start + math.prod(shape)].view(self.num_labels, -1)

    def pack(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """A new flat vector holding ``tensors``; names and shapes must match exactly."""
        self.check(tensors)
        flat = torch.zeros(self.size)
        for name, view in self.views(flat):
            view.copy_(tensors[name])
        return flat

    def unpack(self, flat: Tensor) -> dict[str, Tensor]:
        """Independent copies of all tensors by name."""
        return {name: view.clone() for name, view in self.views(flat)}

    def check(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise ``InputError`` unless names and shapes are exactly these."""
        expected = dict(zip(self.names, self.shapes, strict=True))
        got = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if expected == got:
            return
        missing = sorted(expected.keys() - got.keys())[:5]
        extra = sorted(got.keys() - expected.keys())[:5]
        shapes = [f"{n} {got[n]} for {expected[n]}" for n in expected if n in got and got[n] != expected[n]][:5]
        msg = (
            f"Expected the tensors of this experiment's network, got missing {missing}, unexpected {extra}, "
            f"wrong shapes {shapes}. Use arrays of the same method, model and labels."
        )
        raise InputError(msg)


def sha256(layout: Layout, flat: Tensor) -> str:
    """The hash of a model: over sorted names, dtypes, shapes and little-endian bytes."""
    digest = hashlib.sha256()
    for name, view in sorted(layout.views(flat.cpu())):
        digest.update(f"{name}|float32|{tuple(view.shape)}|".encode())
        digest.update(view.contiguous().numpy().astype("<f4", copy=False).tobytes())
    return digest.hexdigest()


class Resident:
    """A network that stays in memory while one client after another trains in it.

    Its trainable parameters and exchanged buffers are views of one vector. Loading a client's
    start is one copy; nothing of the client before remains. Gradients are not: a backward
    pass that finds none hands over its own buffers, which saves three passes over memory.

    Args:
        network: the network; its parameters are re-pointed in place.
        label_rows: names of exchanged tensors whose first axis is the labels.
        private: names of trainable parameters that never leave the client.
        moments: (mean, variance) buffer names that are exchanged and merged exactly.
        num_labels: size of the label space.
        device: where it lives.
        channels_last: keep the weights of convolutions in channels-last order, which GPUs
            prefer under autocast. They are exchanged in the usual order.

    Attributes:
        network: the network.
        layout: of the exchanged tensors.
        trainable: layout of everything that trains, private tensors last; with exchanged
            buffers in front of it.
        parameters: the trainable parameters, in the vector's order; give them to an optimiser.
        memory_format: of the network's images.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        num_labels: int,
        label_rows: Iterable[str] = (),
        private: Iterable[str] = (),
        moments: Sequence[tuple[str, str]] = (),
        device: torch.device | str = "cpu",
        channels_last: bool = False,
    ) -> None:
        self.network = network.to(device)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        trainable = {n: p for n, p in network.named_parameters() if p.requires_grad}
        label_rows, private = tuple(label_rows), tuple(private)
        _check_names(network, label_rows, private)
        rows = [name for name in trainable if name in set(label_rows)]
        own = [name for name in trainable if name in set(private)]
        shared = [name for name in trainable if name not in {*rows, *own}]
        buffers = [name for pair in moments for name in pair]
        tensors: dict[str, Tensor] = {**dict(network.named_buffers()), **trainable}
        _check_rows(tensors, rows, num_labels)

        def layout(names: list[str], row_tensors: int = 0) -> Layout:
            shapes = tuple(tuple(tensors[name].shape) for name in names)
            return Layout(tuple(names), shapes, num_labels, row_tensors, tuple(moments))

        self.layout = layout([*buffers, *shared, *rows], len(rows))
        self.trainable = everything = layout([*buffers, *shared, *rows, *own])
        vector = torch.zeros(everything.size, device=device)
        self._bound: list[tuple[str, Tensor, Tensor]] = []
        for name, view in everything.views(vector):
            values = self._ordered(view)
            values.copy_(tensors[name].detach())
            self._bound.append((name, tensors[name], values))
        self.parameters = [tensors[name] for name in everything.names[len(buffers) :]]
        self._modules = list(network.modules())
        self._links = [(*_place(network, name), module) for name, module in network.named_modules() if name]
        self._places = [_place(network, name) for name in everything.names]
        self._bind()
        self._exchanged = vector[: self.layout.size]
        # Where the order inside the vector is not that of the exchange, a second vector is filled on request.
        self._copied = torch.zeros_like(self._exchanged) if channels_last else None
        self._private = vector[self.layout.size :]
        self._private_start = self._private.clone()
        exchanged = {*self.layout.names, *own}
        self._other = [(b, b.detach().clone()) for n, b in network.named_buffers() if n not in exchanged]

    def load(self, flat: Tensor) -> None:
        """Start afresh from the exchanged tensors ``flat``; private tensors and buffers are reset."""
        # A client's method may have replaced tensors or dropped gradients; the next one must not notice.
        self._bind()
        with torch.no_grad():
            if self._copied is None:
                self._exchanged.copy_(flat)
            else:
                for (_, view), (_, _, values) in zip(self.layout.views(flat), self._bound, strict=False):
                    values.copy_(view)
            self._private.copy_(self._private_start)
            for buffer, start in self._other:
                buffer.copy_(start)

    @property
    def flat(self) -> Tensor:
        """float32 ``[layout.size]``, the exchanged tensors as they are now; do not keep it."""
        if self._copied is None:
            return self._exchanged
        for (_, view), (_, _, values) in zip(self.layout.views(self._copied), self._bound, strict=False):
            view.copy_(values)
        return self._copied

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self._exchanged.device

    @property
    def private(self) -> Tensor:
        """float32, the private tensors as they are now; do not keep it."""
        return self._private

    def _ordered(self, view: Tensor) -> Tensor:
        """A part of the vector in its own shape, with the memory order of the network's weights."""
        if self.memory_format is not torch.channels_last or view.dim() != 4:
            return view
        count, channels, height, width = view.shape
        return view.view(count, height, width, channels).permute(0, 3, 1, 2)

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def training_network(self) -> nn.Module:
        """The network in training mode; asking whether it is costs less than telling every module again."""
        return self.network if all(module.training for module in self._modules) else self.network.train()

    def check(self) -> None:
        """Raise ``RuntimeError`` if a tensor of the network was replaced, so that its training would be lost."""
        same = all(getattr(parent, own, None) is module for parent, own, module in self._links)
        replaced = [
            name
            for (name, tensor, view), (module, own) in zip(self._bound, self._places, strict=True)
            if not (same and getattr(module, own, None) is tensor)
            or tensor.data_ptr() != view.data_ptr()
            or tensor.shape != view.shape
        ]
        if replaced:
            msg = f"Expected training to change tensors in place, got others in place of {replaced[:5]}. Use copy_()."
            raise RuntimeError(msg)

    def _bind(self) -> None:
        for _, tensor, view in self._bound:
            tensor.data = view
        self.zero_grad()

    def other_state(self) -> dict[str, Tensor]:
        """What the network needs beyond the exchanged tensors: frozen tables and buffers, by name."""
        state = self.network.state_dict()
        return {name: tensor for name, tensor in state.items() if name not in self.layout.names}


def _place(network: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds a tensor, and what it calls it."""
    parent, _, own = name.rpartition(".")
    return network.get_submodule(parent), own


def _check_names(network: nn.Module, label_rows: Sequence[str], private: Sequence[str]) -> None:
    known = dict(network.named_parameters())
    for what, names in (("label_rows", label_rows), ("private", private)):
        for name in names:
            if name not in known:
                msg = f"Expected {what} to name parameters of the network, got {name!r}. {nearest(name, known)}"
                raise InputError(msg)
    both = sorted({*label_rows} & {*private})
    if both:
        msg = f"Expected private tensors to stay on the client, got {both} that are label rows too. Choose one."
        raise InputError(msg)


def _check_rows(tensors: Mapping[str, Tensor], rows: Sequence[str], num_labels: int) -> None:
    for name in rows:
        if tensors[name].shape[:1] != (num_labels,):
            shape = tuple(tensors[name].shape)
            msg = f"Expected label-row tensor {name} to have {num_labels} rows (first axis), got shape {shape}."
            raise InputError(msg)
