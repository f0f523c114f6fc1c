"""What clients send, and how it adds up.

An update is a set of sums: of every exchanged number times its weight, of the
weights, and of counts and metrics. ``merge`` is exactly associative and
commutative, bit for bit, so updates may be added on the worker, on the node
and on the server, in any grouping and order of arrival, and the result is the
same model.

How: every term is rounded once, before it is added, to a multiple of 2**-36.
Sums of such multiples below 2**17 are exact in float64, and exact sums have no
order. Weights are divided by a power of two (``Units``) chosen so that a whole
round's weights sum to at most 1. It is one fused pass over blocks that stay
in the processor's cache and was measured to be faster than adding float32
tensors one by one.

Rounding moves a mean by at most n * 2**-37 / p, where n clients were added and p is the
sum of their weights divided by the unit. Where clients weigh by images or alike and all answer,
p is above 1/2: at most n * 1.5e-11, which up to 100 clients is below the rounding of a
float32 number of 0.05 (1.9e-9). Where annotations are the weight p can be small and the
bound large: a label that is annotated once among 345,879 images has p = 2**-19, and its row
is right to 3.8e-6, two thousand times the rounding of that float32 number.

Further named sums (``extras``) add exactly too: int64 tensors as they are, floating ones in the
same way as the model, divided by the unit of clients.

Source: the pre-rounding idea of Demmel and Nguyen, "Fast reproducible
floating-point summation" (ARITH 2013), with one fixed bin.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fedmlic.arrays import Layout
from fedmlic.errors import InputError

QUANTUM_BITS = 36
LIMIT = 2.0**15
"""Largest magnitude of an exchanged number; a client beyond it has diverged."""
METRIC_BITS = 20
METRIC_LIMIT = 2.0**25
"""Largest magnitude of a metric; sums of 256 such are exact."""
COUNT_LIMIT = 2**40
"""Largest magnitude of an integer that one client adds to a sum."""
TURN_METRICS = ("loss", "steps")
"""Metrics of every turn; a method's have other names."""
_ROUNDER = 1.5 * 2.0 ** (52 - QUANTUM_BITS)
_BLOCK = 1 << 18

SharedWeight = Literal["images", "annotations", "uniform"]
RowWeight = Literal["shared", "annotations"]


class Weighting(NamedTuple):
    """How much a client counts.

    Attributes:
        shared: for tensors all labels share: its images, its known annotations, or 1.
        rows: for a label's own rows: the same weight (``shared``), or its known
            annotations of that label (``annotations``).
    """

    shared: SharedWeight = "images"
    rows: RowWeight = "shared"


class Units(NamedTuple):
    """Powers of two that weights are divided by, so that a round's weights sum to at most 1.

    Attributes:
        shared: for the weights of shared tensors.
        rows: for the weights of label rows.
        clients: for floating extras, which every client adds with weight 1.
    """

    shared: float
    rows: float
    clients: float = 1.0


def weights_of(weighting: Weighting, num_images: int, annotations: Tensor) -> tuple[float, Tensor]:
    """A client's shared weight and its float64 ``[labels]`` row weights.

    Args:
        weighting: the rule.
        num_images: images it trained on.
        annotations: ``[labels]``, its known entries per label.
    """
    shared = float(annotations.sum()) if weighting.shared == "annotations" else 1.0
    if weighting.shared == "images":
        shared = float(num_images)
    if weighting.rows == "annotations":
        return shared, annotations.to(torch.float64)
    return shared, torch.full((len(annotations),), shared, dtype=torch.float64)


def units_for(weighting: Weighting, num_images: Iterable[int], num_labels: int) -> Units:
    """Units under which the weights of clients with these image counts sum to at most 1."""
    images = list(num_images)
    shared = {"images": sum(images), "annotations": sum(images) * num_labels, "uniform": len(images)}[weighting.shared]
    rows = sum(images) if weighting.rows == "annotations" else shared
    return Units(_power_of_two(shared), _power_of_two(rows), _power_of_two(len(images)))


def _power_of_two(bound: float) -> float:
    return 2.0 ** math.ceil(math.log2(max(bound, 1)))


@dataclass
class Update:
    """The sum of the contributions of some clients (possibly one, possibly none).

    Attributes:
        layout: of the exchanged tensors.
        units: what weights were divided by.
        sums: float64 ``[layout.size]``, weighted sums, multiples of 2**-36.
        weight: sum of shared weights, divided by its unit.
        row_weights: float64 ``[labels]``, sums of row weights, divided by their unit.
        clients: ids of the clients in it, in any order.
        num_images: images they trained on.
        annotations: int64 ``[labels]``, known entries they trained on.
        metrics: named sums (multiples of 2**-20), such as ``loss`` and ``steps``.
        extras: further named sums over the clients: int64 as they are, float64 divided by
            ``units.clients`` (``extra_sum`` multiplies it back).
        change: float32 ``[layout.size]``, of exactly one client whose mods made something else of its change: what
            it is to send in place of ``sums`` (``add_up`` makes them of it); None otherwise.
    """

    layout: Layout
    units: Units
    sums: Tensor
    weight: float
    row_weights: Tensor
    clients: list[int] = field(default_factory=list)
    num_images: int = 0
    annotations: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    metrics: dict[str, float] = field(default_factory=dict)
    extras: dict[str, Tensor] = field(default_factory=dict)
    change: Tensor | None = None

    @staticmethod
    def zero(layout: Layout, units: Units, device: torch.device | str = "cpu", buffer: Tensor | None = None) -> Update:
        """The identity of ``merge``.

        Args:
            layout: of the exchanged tensors.
            units: of the round.
            device: where the sums are.
            buffer: float64, at least ``[layout.size]``, to keep the sums in; what it held is lost.
        """
        sums = torch.zeros(layout.size, dtype=torch.float64, device=device) if buffer is None else buffer[: layout.size]
        sums.zero_()
        rows = torch.zeros(layout.num_labels, dtype=torch.float64)
        annotations = torch.zeros(layout.num_labels, dtype=torch.int64)
        return Update(layout, units, sums, 0.0, rows, annotations=annotations)

    def add_client(
        self,
        client: int,
        flat: Tensor,
        *,
        weighting: Weighting,
        num_images: int,
        annotations: Tensor,
        metrics: Mapping[str, float],
        extras: Mapping[str, Tensor] | None = None,
        change: Tensor | None = None,
    ) -> None:
        """Add one client's trained tensors ``flat`` (float32 ``[layout.size]``) in place.

        Args:
            client: its id.
            flat: what it started from plus ``change``, if that is given.
            weighting: the round's.
            num_images: images it trained on.
            annotations: int64 ``[labels]``, its known entries.
            metrics: named numbers to be summed.
            extras: further tensors to be summed.
            change: see ``Update.change``; kept while the client is the only one.

        Raises:
            ValueError: a number is NaN, infinite or beyond ``LIMIT`` (``METRIC_LIMIT`` for a
                metric, ``COUNT_LIMIT`` for an integer extra), an extra is of another shape than
                those before, or the weights exceed the units; the sum is then unchanged.
        """
        terms = extra_terms(extras or {}, self.units, self.extras)
        check_finite(self.layout, flat, metrics)
        shared, rows = weights_of(weighting, num_images, annotations)
        shared /= self.units.shared
        rows = rows / self.units.rows
        if max(shared, float(rows.max())) > 1:
            msg = f"Expected client {client}'s weights to fit {self.units}, got {shared} and {float(rows.max())}."
            raise ValueError(msg)
        self._add_numbers(flat, shared, rows, weighting)
        self.change = None if self.clients else change
        self.weight += shared
        self.row_weights += rows
        self.clients.append(client)
        self.num_images += num_images
        self.annotations += annotations
        for name, value in metrics.items():
            self.metrics[name] = self.metrics.get(name, 0.0) + round(value * 2**METRIC_BITS) / 2**METRIC_BITS
        add_extras(self.extras, terms)

    @torch.no_grad()
    def _add_numbers(self, flat: Tensor, shared: float, rows: Tensor, weighting: Weighting) -> None:
        # Where label rows weigh as much as everything else, all is one pass.
        one_weight = weighting.rows == "shared" and self.units.rows == self.units.shared
        split = self.layout.size if one_weight else self.layout.rows_start
        _add_scaled(self.sums[:split], flat[:split], shared)
        for mean, variance in self.layout.moments:
            # A variance travels as its second moment, which adds: E[x^2] = Var[x] + E[x]^2.
            square = self.layout.view(flat, mean).double().square()
            self.layout.view(self.sums, variance).add_(square.mul_(shared).add_(_ROUNDER).sub_(_ROUNDER))
        if not one_weight:
            columns = rows.to(flat.device)[:, None]
            pairs = zip(self.layout.row_views(self.sums), self.layout.row_views(flat), strict=True)
            for (_, total), (_, sent) in pairs:
                total.add_((sent.double() * columns).add_(_ROUNDER).sub_(_ROUNDER))

    def add_up(self, start: Tensor, weighting: Weighting) -> None:
        """Make the sums of ``change``, bit for bit those of the client, and let go of it.

        Args:
            start: float32 ``[layout.size]``, what the client's turn started from.
            weighting: the round's.

        Raises:
            ValueError: there is no change, it is not float32 of the layout's size, or a number of it, or of what it
                leads to, is NaN, infinite or beyond ``LIMIT``; nothing is then changed.
        """
        change, wanted = self.change, (self.layout.size,)
        if change is None or change.dtype != torch.float32 or change.shape != wanted or len(self.clients) != 1:
            got = "none" if change is None else f"{change.dtype} {tuple(change.shape)} of {len(self.clients)} clients"
            msg = f"Expected the change of one client to be {torch.float32} {wanted}, got {got}."
            raise ValueError(msg)
        if change.numel() and not bool(torch.isfinite(torch.stack(torch.aminmax(change))).all()):
            msg = "Expected the change of a client to be finite, got NaN or infinity."
            raise ValueError(msg)
        flat = start + change
        check_finite(self.layout, flat, {})
        self.change = None
        self.sums = torch.zeros(wanted, dtype=torch.float64, device=flat.device)
        self._add_numbers(flat, self.weight, self.row_weights, weighting)

    def extra_sum(self, name: str) -> Tensor:
        """The sum of an extra over the clients: int64, or float64 to about 2**-36 times their number.

        Raises:
            KeyError: no client sent it.
        """
        total = self.extras[name]
        return total if total.dtype == torch.int64 else total * self.units.clients

    def merge(self, other: Update) -> None:
        """Add ``other`` in place. Exactly associative and commutative.

        Raises:
            ValueError: the two are of different rounds, or an extra is of another shape or type in
                one than in the other; this sum is then unchanged.
        """
        if self.layout != other.layout or self.units != other.units:
            msg = f"Expected updates of one round to merge, got {self.units} and {other.units}."
            raise ValueError(msg)
        add_extras(self.extras, other.extras)
        self.sums += other.sums
        self.change = None
        self.weight += other.weight
        self.row_weights += other.row_weights
        self.clients = sorted([*self.clients, *other.clients])
        self.num_images += other.num_images
        self.annotations += other.annotations
        for name, value in other.metrics.items():
            self.metrics[name] = self.metrics.get(name, 0.0) + value

    def mean(self, otherwise: Tensor) -> Tensor:
        """The weighted mean, float32 ``[layout.size]``.

        Where nothing was sent (weight 0: nobody, or nobody who annotated that label) the
        numbers of ``otherwise`` stay.
        """
        sums = self.sums.to(otherwise.device)
        mean = otherwise.clone()
        if self.weight > 0:
            # In blocks that stay in the cache: a whole vector of quotients would cross memory twice more.
            for start in range(0, self.layout.rows_start, _BLOCK):
                block = slice(start, min(start + _BLOCK, self.layout.rows_start))
                mean[block] = sums[block] / self.weight
        annotated = (self.row_weights > 0).to(otherwise.device)
        weights = self.row_weights.to(otherwise.device)[:, None]
        for (_, result), (_, total) in zip(self.layout.row_views(mean), self.layout.row_views(sums), strict=True):
            result[annotated] = (total[annotated] / weights[annotated]).float()
        if self.weight > 0:
            _from_second_moments(self.layout, mean, sums, self.weight)
        return mean


def extra_terms(extras: Mapping[str, Tensor], units: Units, so_far: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What one client adds to the extras: int64 as it is, floating numbers rounded to multiples of 2**-36.

    Args:
        extras: named tensors, floating or int64, at most ``LIMIT`` or ``COUNT_LIMIT`` in magnitude.
        units: of the round.
        so_far: sums that they will be added to.

    Raises:
        ValueError: a number is out of bounds, or a tensor has another shape or type than in ``so_far``.
    """
    terms = {}
    for name, tensor in extras.items():
        exact = tensor.dtype == torch.int64
        limit = COUNT_LIMIT if exact else LIMIT
        if not (exact or tensor.is_floating_point()) or not bool(((tensor >= -limit) & (tensor <= limit)).all()):
            msg = f"Expected the sum {name} to get floating or int64 numbers within {limit:g}, got others."
            raise ValueError(msg)
        term = tensor.detach().clone() if exact else tensor.detach().to(torch.float64, copy=True)
        if not exact:
            term.mul_(1.0 / units.clients).add_(_ROUNDER).sub_(_ROUNDER)
        before = so_far.get(name)
        if before is not None and (before.shape != term.shape or before.dtype != term.dtype):
            msg = f"Expected the sum {name} to get {before.dtype} {tuple(before.shape)}, got {tuple(term.shape)}."
            raise ValueError(msg)
        terms[name] = term
    return terms


def add_extras(sums: dict[str, Tensor], terms: Mapping[str, Tensor]) -> None:
    """Add named sums in place; exactly associative and commutative.

    Raises:
        ValueError: two of one name have different shapes or types; the sums are then unchanged.
    """
    for name, term in terms.items():
        if name in sums and (sums[name].shape != term.shape or sums[name].dtype != term.dtype):
            here, there = (f"{each.dtype} {tuple(each.shape)}" for each in (sums[name], term))
            msg = f"Expected the sum {name} to have one shape and type, got {here} and {there}."
            raise ValueError(msg)
    for name, term in terms.items():
        if name in sums:
            sums[name] += term.to(sums[name].device)
        else:
            sums[name] = term.clone()


def turn_metrics(loss: float, num_steps: int, own: Mapping[str, float]) -> dict[str, float]:
    """The metrics of one client's turn: ``loss``, ``steps`` and those of its method.

    Raises:
        InputError: the method uses one of these two names, or something that is no number.
    """
    turn = {"loss": loss, "steps": float(num_steps)}
    for name, value in own.items():
        if name in turn:
            msg = f"Expected metrics of a method to have names of their own, got {name!r}. Give it another name."
            raise InputError(msg)
        try:
            turn[name] = float(value)
        except (TypeError, ValueError, RuntimeError):
            msg = f"Expected the metric {name} of a method to be a number, got {type(value).__name__}. Use float()."
            raise InputError(msg) from None
    return turn


def method_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Of an update's metrics, those that the method added."""
    return {name: value for name, value in metrics.items() if name not in TURN_METRICS}


def check_finite(layout: Layout, flat: Tensor, metrics: Mapping[str, float]) -> None:
    """Raise ``ValueError`` naming what is NaN, infinite or beyond ``LIMIT``."""
    low, high = torch.aminmax(flat) if flat.numel() else (torch.zeros(()), torch.zeros(()))
    if not (float(low) >= -LIMIT and float(high) <= LIMIT):
        wrong = [name for name, view in layout.views(flat) if not bool((view.abs() <= LIMIT).all())]
        msg = f"Expected trained tensors to be finite and within {LIMIT:g}, got NaN or larger in {wrong[:5]}."
        raise ValueError(msg)
    for mean, variance in layout.moments:
        second = layout.view(flat, mean).double().square() + layout.view(flat, variance)
        if bool((second > LIMIT).any()):
            msg = f"Expected mean squares of BatchNorm to be within {LIMIT:g}, got larger in {mean} and {variance}."
            raise ValueError(msg)
    for name, value in metrics.items():
        if not abs(value) <= METRIC_LIMIT:
            msg = f"Expected the metric {name} to be finite and within {METRIC_LIMIT:g}, got {value}."
            raise ValueError(msg)


def largest_terms(sums: Tensor, *, exact: bool = True) -> tuple[float, bool]:
    """The largest magnitude among sums, NaN if one is NaN, and whether all are multiples of 2**-36.

    Args:
        sums: float64, one dimension.
        exact: False leaves the second question open (True is returned).
    """
    largest, on_grid = 0.0, True
    for start in range(0, len(sums), _BLOCK):
        block = sums[start : start + _BLOCK]
        low, high = (float(each) for each in torch.aminmax(block))
        largest = max(largest, high, -low) if low <= high else math.nan
        if not largest <= 2 * LIMIT:
            return largest, False
        if exact and on_grid:
            on_grid = torch.equal(block + _ROUNDER - _ROUNDER, block)
    return largest, on_grid


def _add_scaled(total: Tensor, values: Tensor, weight: float) -> None:
    for start in range(0, len(total), _BLOCK):
        block = values[start : start + _BLOCK].to(torch.float64)
        # Adding and subtracting 1.5 * 2**16 rounds to the nearest multiple of 2**-36.
        total[start : start + _BLOCK].add_(block.mul_(weight).add_(_ROUNDER).sub_(_ROUNDER))


def _from_second_moments(layout: Layout, result: Tensor, sums: Tensor, weight: float) -> None:
    for first, second in layout.moments:
        variance = layout.view(sums, second) / weight - (layout.view(sums, first) / weight).square()
        layout.view(result, second).copy_(variance.clamp(min=0).float())
