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
        pairs = list(self.views(flat))
        for name, view in pairs[len(pairs) - self.num_row_tensors :]:
            yield name, view.view(self.num_labels, -1)

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

    Its trainable parameters and exchanged buffers are views of one vector, their gradients
    of another. Loading a client's start is one copy; nothing of the client before remains.

    Args:
        network: the network; its parameters are re-pointed in place.
        label_rows: names of exchanged tensors whose first axis is the labels.
        private: names of trainable parameters that never leave the client.
        moments: (mean, variance) buffer names that are exchanged and merged exactly.
        num_labels: size of the label space.
        device: where it lives.

    Attributes:
        network: the network.
        layout: of the exchanged tensors.
        flat: float32 ``[layout.size]``, the exchanged tensors; changes as the network does.
        parameter: float32, all trainable parameters as one; give it to an optimiser.
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
    ) -> None:
        self.network = network.to(device)
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
        everything = layout([*buffers, *shared, *rows, *own])
        vector = torch.zeros(everything.size, device=device)
        gradient = torch.zeros_like(vector)
        self._bound: list[tuple[str, Tensor, Tensor, Tensor | None]] = []
        for (name, view), (_, slope) in zip(everything.views(vector), everything.views(gradient), strict=True):
            view.copy_(tensors[name].detach())
            self._bound.append((name, tensors[name], view, slope if name in trainable else None))
        self._bind()
        start = everything.offsets[len(buffers)]
        self.flat = vector[: self.layout.size]
        self.parameter = nn.Parameter(vector[start:])
        self.parameter.grad = gradient[start:]
        self._gradient = gradient
        self._private = vector[self.layout.size :]
        self._private_start = self._private.clone()
        exchanged = {*self.layout.names, *own}
        self._other = [(b, b.detach().clone()) for n, b in network.named_buffers() if n not in exchanged]

    def load(self, flat: Tensor) -> None:
        """Start afresh from the exchanged tensors ``flat``; private tensors and buffers are reset."""
        # A client's method may have replaced tensors or dropped gradients; the next one must not notice.
        self._bind()
        with torch.no_grad():
            self.flat.copy_(flat)
            self._private.copy_(self._private_start)
            for buffer, start in self._other:
                buffer.copy_(start)
            self._gradient.zero_()

    def zero_grad(self) -> None:
        """Set all gradients to zero."""
        self._gradient.zero_()

    def check(self) -> None:
        """Raise ``RuntimeError`` if a tensor of the network was replaced, so that its training would be lost."""
        there = {**dict(self.network.named_parameters()), **dict(self.network.named_buffers())}
        replaced = [
            name
            for name, tensor, view, _ in self._bound
            if there.get(name) is not tensor or tensor.data_ptr() != view.data_ptr() or tensor.shape != view.shape
        ]
        if replaced:
            msg = f"Expected training to change tensors in place, got others in place of {replaced[:5]}. Use copy_()."
            raise RuntimeError(msg)

    def _bind(self) -> None:
        for _, tensor, view, slope in self._bound:
            tensor.data = view
            if slope is not None:
                tensor.grad = slope

    def other_state(self) -> dict[str, Tensor]:
        """What the network needs beyond the exchanged tensors: frozen tables and buffers, by name."""
        state = self.network.state_dict()
        return {name: tensor for name, tensor in state.items() if name not in self.layout.names}


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
