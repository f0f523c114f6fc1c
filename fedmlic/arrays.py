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
    def statistics_end(self) -> int:
        """Where the statistics of BatchNorm end and the parameters begin."""
        return self.offsets[2 * len(self.moments)]

    @property
    def num_values(self) -> int:
        """Exchanged numbers, padding not counted."""
        return sum(math.prod(shape) for shape in self.shapes)

    def num_values_of(self, name: str) -> int:
        """Numbers of one tensor."""
        return math.prod(self.shapes[self.names.index(name)])

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

    def only(self, names: Iterable[str]) -> Layout:
        """The layout of some of these tensors, in the same order.

        Raises:
            InputError: a name is not among these tensors, or only one half of a BatchNorm's
                statistics is named.
        """
        chosen = set(names)
        for name in sorted(chosen - set(self.names)):
            msg = f"Expected exchanged tensors to be of the network, got {name!r}. {nearest(name, self.names)}"
            raise InputError(msg)
        places = [place for place, name in enumerate(self.names) if name in chosen]
        first_row = len(self.names) - self.num_row_tensors
        for pair in self.moments:
            if len(chosen & set(pair)) == 1:
                msg = f"Expected a BatchNorm's mean and variance to be exchanged together, got one of {pair}. Add both."
                raise InputError(msg)
        return Layout(
            tuple(self.names[place] for place in places),
            tuple(self.shapes[place] for place in places),
            self.num_labels,
            sum(place >= first_row for place in places),
            tuple(pair for pair in self.moments if pair[0] in chosen),
        )

    def gather(self, flat: Tensor, part: Layout) -> Tensor:
        """The vector ``[part.size]`` of the tensors of ``part``, out of one of this layout; a copy unless equal."""
        if part is self or part == self:
            return flat
        found = torch.zeros(part.size, dtype=flat.dtype, device=flat.device)
        for name, view in part.views(found):
            view.copy_(self.view(flat, name))
        return found

    def scatter(self, values: Tensor, part: Layout, flat: Tensor) -> Tensor:
        """A vector of this layout: ``values`` of the tensors of ``part``, those of ``flat`` elsewhere, bit for bit."""
        if part is self or part == self:
            return values
        result = flat.clone()
        for name, view in part.views(values):
            self.view(result, name).copy_(view)
        return result

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
        private: names of trainable parameters, and of floating buffers (statistics of norms),
            that never leave the client.
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
        private_names: of the tensors that never leave the client.
        parameters: the parameters that train now (``train_only``), in the vector's order; give
            them to an optimiser.
        memory_format: of the network's images.
        batch_norm: whether a layer normalises by the batch that it gets.
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
        moments = [pair for pair in moments if not {*pair} & {*private}]
        own_buffers = [name for name, _ in network.named_buffers() if name in set(private)]
        own = [*own_buffers, *(name for name in trainable if name in set(private))]
        rows = [name for name in rows if name not in set(own)]
        shared = [name for name in trainable if name not in {*rows, *own}]
        buffers = [name for pair in moments for name in pair]
        tensors: dict[str, Tensor] = {**dict(network.named_buffers()), **trainable}
        _check_rows(tensors, rows, num_labels)

        def layout(names: list[str], row_tensors: int = 0) -> Layout:
            shapes = tuple(tuple(tensors[name].shape) for name in names)
            return Layout(tuple(names), shapes, num_labels, row_tensors, tuple(moments))

        self.layout = layout([*buffers, *shared, *rows], len(rows))
        self.trainable = everything = layout([*buffers, *shared, *rows, *own])
        self.private_names = tuple(own)
        self.private_rows = tuple(name for name in own if name in set(label_rows))
        vector = torch.zeros(everything.size, device=device)
        self._bound: list[tuple[str, Tensor, Tensor]] = []
        for name, view in everything.views(vector):
            values = self._ordered(view)
            values.copy_(tensors[name].detach())
            self._bound.append((name, tensors[name], values))
        self._names = [name for name in everything.names[len(buffers) :] if name in trainable]
        self._every_parameter = [tensors[name] for name in self._names]
        self.parameters = self._every_parameter
        self._trained: frozenset[str] | None = None
        self._frozen: frozenset[str] = frozenset()
        self._still: list[nn.Module] = []
        self._modules = list(network.modules())
        self.batch_norm = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self._modules)  # noqa: SLF001
        self._links = [(*_place(network, name), module) for name, module in network.named_modules() if name]
        self._places = [_place(network, name) for name in everything.names]
        self._bind()
        self._exchanged = vector[: self.layout.size]
        # Where the order inside the vector is not that of the exchange, a second vector is filled on request.
        self._copied = torch.zeros_like(self._exchanged) if channels_last else None
        self._private = vector[self.layout.size :]
        self._private_start = self._private.clone()
        first = len(self.layout.names)
        self._own = [(name, values) for name, _, values in self._bound[first:]]
        exchanged = {*self.layout.names, *own}
        self._other = [(b, b.detach().clone()) for n, b in network.named_buffers() if n not in exchanged]

    def load(self, flat: Tensor, private: Mapping[str, Tensor] | None = None) -> None:
        """Start afresh from the exchanged tensors ``flat``.

        Args:
            flat: float32 ``[layout.size]``.
            private: the client's own tensors by name, as ``private_tensors`` gave them; those
                that are not named start as they were built, as all do for a client's first turn.

        Raises:
            InputError: ``private`` names a tensor that is none of the network's private ones, or
                one of another shape.
        """
        # A client's method may have replaced tensors or dropped gradients; the next one must not notice.
        self._bind()
        with torch.no_grad():
            if self._copied is None:
                self._exchanged.copy_(flat)
            else:
                for (_, view), (_, _, values) in zip(self.layout.views(flat), self._bound, strict=False):
                    values.copy_(view)
            self._private.copy_(self._private_start)
            if private:
                self.load_private(private)
            for buffer, start in self._other:
                buffer.copy_(start)

    @torch.no_grad()
    def load_private(self, private: Mapping[str, Tensor]) -> None:
        """Take over a client's own tensors by name, and leave everything else as it is.

        Raises:
            InputError: a name is none of the network's private tensors, or a shape is wrong.
        """
        own = dict(self._own)
        for name, tensor in private.items():
            if name not in own or own[name].shape != tensor.shape:
                expected = tuple(own[name].shape) if name in own else f"one of {sorted(own)[:5]}"
                msg = (
                    f"Expected a client's own tensor {name!r} to be {expected}, got {tuple(tensor.shape)}. "
                    "Use the memory of this experiment, or start a new run."
                )
                raise InputError(msg)
            own[name].copy_(tensor)

    def private_tensors(self) -> dict[str, Tensor]:
        """Copies of the private tensors as they are now, by name, on the CPU."""
        return {name: values.detach().cpu().clone(memory_format=torch.contiguous_format) for name, values in self._own}

    def train_only(self, names: Iterable[str] | None) -> None:
        """Let only these parameters train, until it is called again; None: all of them.

        The others need no gradient (so no backward pass is spent on them), and a BatchNorm whose
        statistics are not among ``names`` uses them as they are and does not change them.

        Args:
            names: of parameters and of exchanged or private statistics.
        """
        chosen = None if names is None else frozenset(names)
        if chosen == self._trained:
            return
        self._trained = chosen
        frozen = frozenset() if chosen is None else frozenset(self.trainable.names) - chosen
        self._frozen = frozen
        self.zero_grad()  # of those that stop training, too
        for name, parameter in zip(self._names, self._every_parameter, strict=True):
            parameter.requires_grad_(name not in frozen)
        self.parameters = [
            parameter for name, parameter in zip(self._names, self._every_parameter, strict=True) if name not in frozen
        ]
        self._still = [
            module
            for name, module in self.network.named_modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and f"{name}.running_mean" in frozen  # noqa: SLF001
        ]

    def per_parameter(self, flat: Tensor, layout: Layout | None = None) -> list[Tensor | None]:
        """For each of ``parameters`` its part of an exchanged vector; None for one that is not in it.

        Args:
            flat: ``[layout.size]``.
            layout: of ``flat``; that of all exchanged tensors by default.
        """
        places = dict((layout or self.layout).views(flat))
        trained = (name for name in self._names if name not in self._frozen)
        return [places.get(name) for name in trained]

    @property
    def flat(self) -> Tensor:
        """float32 ``[layout.size]``, the exchanged tensors as they are now; do not keep it."""
        if self._copied is None:
            return self._exchanged
        for (_, view), (_, _, values) in zip(self.layout.views(self._copied), self._bound, strict=False):
            view.copy_(values)
        return self._copied

    @property
    def trained(self) -> frozenset[str] | None:
        """Names of what ``train_only`` lets train; None for everything."""
        return self._trained

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
        if self._still:
            network = self.network.train()
            for module in self._still:
                module.eval()
            return network
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
    parameters = dict(network.named_parameters())
    buffers = {name: buffer for name, buffer in network.named_buffers() if buffer.is_floating_point()}
    for what, names, known in (("label_rows", label_rows, parameters), ("private", private, {**parameters, **buffers})):
        for name in names:
            if name not in known:
                msg = f"Expected {what} to name tensors of the network, got {name!r}. {nearest(name, known)}"
                raise InputError(msg)


def _check_rows(tensors: Mapping[str, Tensor], rows: Sequence[str], num_labels: int) -> None:
    for name in rows:
        if tensors[name].shape[:1] != (num_labels,):
            shape = tuple(tensors[name].shape)
            msg = f"Expected label-row tensor {name} to have {num_labels} rows (first axis), got shape {shape}."
            raise InputError(msg)
