"""What a reply must say to count: everything is checked before any of its numbers is used.

The server knows what each client announced and what it asked for, and so what a client's weight
must be, how large a sum can get and what a count can reach. What lies within these bounds cannot
be told from the truth; ``docs/trust.md`` says how far a client can get that way.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Final

import torch

from fedmlic.errors import InputError, shown
from fedmlic.experiment import Experiment
from fedmlic.histograms import DEFAULT_BINS, ScoreHistograms
from fedmlic.protocol import CLIENTS_BEHIND, HIGH, IMAGES_BEHIND, ROUND_SUMS, SOLUTION_SUMS, Turn
from fedmlic.sums import Declared
from fedmlic.update import (
    COUNT_LIMIT,
    LIMIT,
    METRIC_BITS,
    METRIC_LIMIT,
    TURN_METRICS,
    Units,
    Update,
    largest_terms,
    units_for,
)

if TYPE_CHECKING:
    from torch import Tensor

    from fedmlic.arrays import Layout
    from fedmlic.protocol import Reply, Request

REFUSED: Final = "Refused"
"""Begins the error of a turn whose reply was checked and not used."""

MOST_IMAGES: Final = 1 << 31
"""Images that a client may announce."""

CLIENT_METRICS: Final = ("mAP", "prevalence", "chance", "num-labels")
"""Of a client's own evaluation (``fedmlic.metrics.client_metrics``)."""

MOST_TRACEBACK: Final = 20_000
"""Characters of a client's error, with its traceback, that are kept."""

MOST_STEPS: Final = 1 << 40
"""Steps or bytes of one turn."""

Shapes = tuple[tuple[str, str, tuple[int, ...]], ...]


class RefusedError(ValueError):
    """A reply says what cannot be."""


def shapes_of(update: Update) -> Shapes:
    """Names, types and shapes of an update's further sums: those of one round must agree to be added.

    Sums for a solution are not among them: a client may have none, and ``Expected`` knows their shapes.
    """
    sums = ((name, each) for name, each in sorted(update.extras.items()) if not name.startswith(SOLUTION_SUMS))
    return tuple((name, str(each.dtype), tuple(each.shape)) for name, each in sums)


@dataclass
class Expected:
    """What the server knows of the answers to a request before they come.

    Args:
        request: what was asked.
        layout: of the tensors that clients send.
        sizes: the training images that each client announced, for all clients that were asked.
        holdout_share: the largest of a client's images that it may keep for evaluation, in [0, 1).
        declared: what clients' mods may add beside the model.
        rule_metrics: those that the rule reads, with the least and the largest of one client (``Strategy.metrics``).
        solved: zeros of the sums that the server solves with in this round, by name.
        everything: layout of ``request.flat``, from which updates that came as changes get their sums; None where
            none come.
    """

    request: Request
    layout: Layout
    sizes: Mapping[int, int]
    holdout_share: float = 0.0
    declared: Declared = field(default_factory=lambda: Declared(Experiment()))
    rule_metrics: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    solved: Mapping[str, Tensor] = field(default_factory=dict)
    everything: Layout | None = None
    counted: set[int] = field(default_factory=set)
    refused: dict[int, str] = field(default_factory=dict)

    def reply(self, reply: Reply, host: str, share: Sequence[int]) -> Reply:
        """A host's whole answer for the clients in ``share``, or the reason why it does not count.

        Returns:
            The reply, with nothing left in a failed turn but its error.

        Raises:
            RefusedError: it says what cannot be.
        """
        if reply.token != self.request.token:
            _refuse("it to answer this request", f"the answer to another one, {shown(reply.token, 80)!r}")
        turns = sorted(turn.client for turn in reply.turns if turn.host == host)
        if turns != sorted(share):
            _refuse(f"turns of clients {sorted(share)[:8]} by {host}", f"turns of {turns[:8]}")
        reply = replace(reply, turns=tuple(_bare(turn) if turn.error else turn for turn in reply.turns))
        good = [turn for turn in reply.turns if not turn.error]
        for turn in good:
            self.turn(turn)
        if self.request.kind == "evaluate":
            if reply.updates:
                _refuse("no sums beside an evaluation", f"{len(reply.updates)}")
            self.evaluation(reply, good)
            return reply
        if reply.evaluation:
            _refuse("no scores beside sums", shown(sorted(reply.evaluation)))
        summed = sorted(client for update in reply.updates for client in update.clients)
        if summed != sorted(turn.client for turn in good):
            _refuse(f"a sum of clients {sorted(turn.client for turn in good)[:8]}", f"one of {summed[:8]}")
        for update in reply.updates:
            self.update(update)
            self._fits_turns(update, [turn for turn in good if turn.client in set(update.clients)])
        return reply

    # --- turns ------------------------------------------------------------------------------

    def turn(self, turn: Turn) -> None:
        """Numbers of a turn that succeeded.

        Raises:
            RefusedError: one is not possible.
        """
        if turn.client not in self.sizes:
            _refuse("a turn of a client that was asked", f"one of client {turn.client}")
        size, labels = self.sizes[turn.client], self.layout.num_labels
        _in_range("the seconds of a turn", turn.seconds, 0.0, float(MOST_STEPS))
        _in_range("the start of a turn", turn.started, 0.0, float(MOST_STEPS))
        _in_range("the loss of a turn", turn.loss, -METRIC_LIMIT, METRIC_LIMIT)
        for name in ("num_steps", "bytes_up", "bytes_down"):
            _in_range(f"{name} of a turn", getattr(turn, name), 0, MOST_STEPS)
        if self.request.kind == "evaluate":
            most = math.ceil(self.holdout_share / (1 - self.holdout_share) * (size + 1)) + 1
            _in_range(f"held-out images of client {turn.client}", turn.num_images, 0, most)
            self.metrics(turn)
        elif turn.num_images != size:
            _refuse(f"client {turn.client} to have used the {size} images that it announced", turn.num_images)
        elif turn.metrics:
            _refuse("no evaluation beside a training", shown(sorted(turn.metrics)))
        _in_range(f"annotations of client {turn.client}", turn.num_annotations, 0, turn.num_images * labels)

    def metrics(self, turn: Turn) -> None:
        """A client's own evaluation.

        Raises:
            RefusedError: other names than ``CLIENT_METRICS``, or a value that is not possible.
        """
        found = turn.metrics
        if set(found) != set(CLIENT_METRICS):
            _refuse(f"metrics {list(CLIENT_METRICS)} of client {turn.client}", shown(sorted(found)[:9]))
        _in_range(f"num-labels of client {turn.client}", found["num-labels"], 0.0, float(self.layout.num_labels))
        for name in CLIENT_METRICS[:-1]:
            if not (math.isnan(found[name]) and found["num-labels"] == 0):
                _in_range(f"{name} of client {turn.client}", found[name], 0.0, 1.0)

    def evaluation(self, reply: Reply, good: Sequence[Turn]) -> None:
        """Histograms of the scores of some clients.

        Raises:
            RefusedError: of other labels or bins, or counts of more images than were judged.
        """
        if not reply.evaluation and not good:
            return
        found = scores_of(reply, self.layout.num_labels)
        images, known = sum(turn.num_images for turn in good), sum(turn.num_annotations for turn in good)
        # Each count alone first: sums of numbers near 2**63 wrap around.
        most = max(int(found.present.max(initial=0)), int(found.absent.max(initial=0)))
        most = max(most, int(found.num_known.max(initial=0))) if most <= images else most
        if most > images:
            _refuse(f"scores of at most {images} images a label", most)
        if int(found.num_known.sum()) > known:
            _refuse(f"scores of at most {known} annotations", int(found.num_known.sum()))

    # --- sums -------------------------------------------------------------------------------

    def update(self, update: Update, *, exact: bool = True) -> None:
        """A sum, or a single client's update, by itself.

        Args:
            update: it; one that came as a change gets its sums here.
            exact: check also that every term is rounded as all are, without which a sum would
                depend on the order of arrival.

        Raises:
            RefusedError: it is of other clients, its weights are not those of their announced
                sizes, or a number is not finite or beyond what these weights allow.
        """
        self._clients(update)
        images = sum(self.sizes[client] for client in update.clients)
        if update.num_images != images:
            _refuse(f"a sum over the {images} images that its clients announced", update.num_images)
        annotations = update.annotations
        if annotations.shape != (self.layout.num_labels,) or _outside(annotations, 0, images):
            _refuse(f"annotations of each label on 0 to {images} images", "others")
        self._weights(update)
        if update.change is not None and not update.sums.numel():
            self._add_up(update)
        self._numbers(update, exact=exact)
        count = len(update.clients)
        for name in TURN_METRICS:
            if name not in update.metrics:
                _refuse(f"a metric {name!r}", "none")
        for name, value in update.metrics.items():
            _in_range(f"the metric {shown(name, 40)!r}", value, -METRIC_LIMIT * count, METRIC_LIMIT * count)
        if self.request.kind == "train":
            self._read_by_the_rule(update.metrics, count)
        self._extras(update, images)

    def _add_up(self, update: Update) -> None:
        if self.request.kind != "train" or self.everything is None:
            _refuse("sums", "a change")
        try:
            update.add_up(self._start, self.request.weighting)
        except ValueError as error:
            raise RefusedError(shown(error)) from None

    @cached_property
    def _start(self) -> Tensor:
        """What every turn started from, of the tensors that clients send."""
        flat = self.request.flat
        return (flat if self.everything is None else self.everything.gather(flat, self.layout)).detach().cpu()

    def _read_by_the_rule(self, metrics: Mapping[str, float], count: int) -> None:
        """The metrics that the rule counts on are there, and are what so many clients can report."""
        slack = count * 2.0**-METRIC_BITS
        for name, (low, high) in self.rule_metrics.items():
            if name not in metrics:
                _refuse(f"the metric {name!r}, which the rule reads", "none")
            _in_range(f"the metric {name!r}", metrics[name], low * count - slack, high * count + slack)

    def _clients(self, update: Update) -> None:
        """Names clients that were asked, each once and in no sum before."""
        clients = update.clients
        if not clients or len(set(clients)) != len(clients):
            _refuse("a sum of distinct clients", clients[:8])
        if self.request.each and len(clients) != 1:
            _refuse("an update of one client", f"one of {len(clients)}")
        strangers = [client for client in clients if client not in self.sizes]
        if strangers:
            _refuse("a sum of clients that were asked", f"one with {strangers[:8]}")
        twice = sorted(self.counted & set(clients))
        if twice:
            _refuse("a sum of clients that were not counted yet", f"one with {twice[:8]}")

    def _weights(self, update: Update) -> None:
        weighting, units = self.request.weighting, self.units(update.clients)
        if update.units != units:
            _refuse(f"a sum in units {tuple(units)}", tuple(update.units))
        total = {
            "images": float(update.num_images),
            "annotations": float(update.annotations.sum()),
            "uniform": float(len(update.clients)),
        }[weighting.shared]
        if update.weight != total / units.shared:
            _refuse(f"the weight {total / units.shared} that its clients' sizes imply", update.weight)
        rows = update.annotations.double() if weighting.rows == "annotations" else torch.full((), total).double()
        if not bool((update.row_weights == rows / units.rows).all()):
            _refuse("the row weights that its clients' annotations imply", "others")

    def units(self, clients: Sequence[int]) -> Units:
        """What the weights of these clients' sum must be divided by."""
        if not self.request.each:
            return self.request.units
        return units_for(self.request.weighting, [self.sizes[client] for client in clients], self.layout.num_labels)

    def _numbers(self, update: Update, *, exact: bool) -> None:
        layout, sums = self.layout, update.sums
        if sums.shape != (layout.size,):
            _refuse(f"{layout.size} sums", list(sums.shape))
        slack = len(update.clients) * 2.0**-36
        largest, on_grid = largest_terms(sums[: layout.rows_start], exact=exact)
        if not largest <= LIMIT * update.weight + slack:
            _refuse(f"sums within {LIMIT:g} times the weight {update.weight:g}", f"up to {largest:g}")
        bounds = LIMIT * update.row_weights + slack
        for name, rows in layout.row_views(sums):
            if not rows.numel():
                continue
            low, high = (each.cpu() for each in torch.aminmax(rows, dim=1))
            if not bool(((high <= bounds) & (low >= -bounds)).all()):
                _refuse(f"sums of {name} within {LIMIT:g} times each label's weight", "larger ones, or NaN")
            on_grid = on_grid and largest_terms(rows.reshape(-1), exact=exact)[1]
        if not on_grid:
            _refuse("sums that are multiples of 2**-36", "others")

    def _extras(self, update: Update, images: int) -> None:
        count = len(update.clients)
        self._round_sums(update)
        self._solution_sums(update)
        for name, sums in update.extras.items():
            limit = COUNT_LIMIT * count if sums.dtype == torch.int64 else (LIMIT / update.units.clients + 1) * count
            if _outside(sums, -limit, limit):
                _refuse(f"the sum {shown(name, 40)!r} within {limit:g}", "larger numbers, or NaN")
            counted = self.request.kind == "count" or name.startswith((ROUND_SUMS, SOLUTION_SUMS))
            if counted and not name.endswith((CLIENTS_BEHIND, IMAGES_BEHIND, HIGH)):
                self._support(update, name, images)
        if self.request.kind == "train":
            own = {name: t for name, t in update.extras.items() if not name.startswith((ROUND_SUMS, SOLUTION_SUMS))}
            sizes = [self.sizes[client] for client in update.clients]
            problem = self.declared.problem(self.layout, sizes, update.annotations, own, update.units.clients)
            if problem:
                raise RefusedError(problem)

    def _round_sums(self, update: Update) -> None:
        """The method's sums of the round are those that the round before led to, all of them and no others."""
        given = {name: sums for name, sums in self.request.shared.items() if name.startswith(ROUND_SUMS)}
        for name, sums in given.items():
            found = update.extras.get(name)
            exact = not sums.is_floating_point()
            if found is None or found.shape != sums.shape or (found.dtype == torch.int64) != exact:
                _refuse(f"the sum {shown(name, 40)!r} of shape {list(sums.shape)}", "none, or another shape or type")
        known = {name + suffix for name in given for suffix in ("", CLIENTS_BEHIND, IMAGES_BEHIND)}
        others = sorted(name for name in update.extras if name.startswith(ROUND_SUMS) and name not in known)
        if others:
            _refuse("sums of the round that the method has", shown(others[:9]))

    def _solution_sums(self, update: Update) -> None:
        """Sums for a solution are of the names, shapes and types that this round has, and each is whole."""
        given = {name: each for name, each in update.extras.items() if name.startswith(SOLUTION_SUMS)}
        for name, zeros in self.solved.items():
            parts = {SOLUTION_SUMS + name: zeros.dtype}
            if zeros.is_floating_point():
                parts[SOLUTION_SUMS + name + HIGH] = torch.int64
            found = {part: given.pop(part, None) for part in parts}
            if all(each is None for each in found.values()):
                continue
            for part, dtype in parts.items():
                each = found[part]
                if each is None or each.shape != zeros.shape or each.dtype != dtype:
                    _refuse(f"the sum {shown(part, 40)!r} of shape {list(zeros.shape)}", "none, or another kind")
            for suffix in (CLIENTS_BEHIND, IMAGES_BEHIND):
                given.pop(SOLUTION_SUMS + name + suffix, None)
        if given:
            _refuse("sums that this round's solution has", shown(sorted(given)[:9]))

    @staticmethod
    def _support(update: Update, name: str, images: int) -> None:
        """How many clients and images stand behind every counted number; of one client all of its images or none."""
        behind = [update.extras.get(name + suffix) for suffix in (CLIENTS_BEHIND, IMAGES_BEHIND)]
        values, count = update.extras[name], len(update.clients)
        if name.startswith(SOLUTION_SUMS):  # rows, not single numbers
            parts = [update.extras[each] for each in (name, name + HIGH) if each in update.extras]
            values = torch.stack([(each != 0).reshape(len(each), -1).any(dim=1) for each in parts]).any(dim=0)
        for found, most in zip(behind, (count, images), strict=True):
            if found is None or found.shape != values.shape or found.dtype != torch.int64 or _outside(found, 0, most):
                _refuse(f"0 to {most} clients or images behind each number of {shown(name, 40)!r}", "others")
        clients, pictures = behind
        if (
            clients is not None
            and pictures is not None
            and bool(((clients == 0) & ((values != 0) | (pictures != 0))).any())
        ):
            _refuse(f"a client behind each number of {shown(name, 40)!r}", "none")
        if count == 1 and clients is not None and pictures is not None and bool((pictures != clients * images).any()):
            _refuse(f"0 or all of the client's {images} images behind each number of {shown(name, 40)!r}", "others")

    @staticmethod
    def _fits_turns(update: Update, turns: Sequence[Turn]) -> None:
        """What a sum says together must be what its clients' turns say one by one."""
        stated = sum(turn.num_annotations for turn in turns)
        if stated != int(update.annotations.sum()):
            _refuse(f"the {stated} annotations of its turns", int(update.annotations.sum()))
        slack = len(turns) * 2.0**-METRIC_BITS
        for name, total in (
            ("loss", sum(turn.loss for turn in turns)),
            ("steps", sum(turn.num_steps for turn in turns)),
        ):
            if abs(update.metrics[name] - total) > slack + 1e-9 * abs(total):
                _refuse(f"the {name} {total:g} of its turns", update.metrics[name])


def scores_of(reply: Reply, num_labels: int) -> ScoreHistograms:
    """The histograms of an evaluation.

    Raises:
        RefusedError: they are none, or of other labels or bins.
    """
    try:
        found = ScoreHistograms.from_arrays(reply.evaluation)
    except InputError as error:
        raise RefusedError(shown(error)) from None
    if found.present.shape != (num_labels, DEFAULT_BINS):
        _refuse(f"histograms of {num_labels} labels in {DEFAULT_BINS} bins", found.present.shape)
    return found


def not_finite(named: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Names of the tensors in which a number is NaN or infinite."""
    floating = [(name, each) for name, each in named if each.is_floating_point() and each.numel()]
    return [name for name, each in floating if not bool(torch.isfinite(torch.stack(torch.aminmax(each))).all())]


def _bare(turn: Turn) -> Turn:
    """A failed turn: nothing that it says besides is used."""
    return Turn(turn.client, turn.host, error=shown(turn.error, MOST_TRACEBACK, lines=True))


def _outside(values: Tensor, low: float, high: float) -> bool:
    """Whether a number is NaN or not between the two."""
    return bool(values.numel()) and not bool(((values >= low) & (values <= high)).all())


def _in_range(what: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        _refuse(f"{what} to be from {low:g} to {high:g}", value)


def _refuse(expected: str, got: object) -> None:
    msg = f"Expected {expected}, got {shown(got)}."
    raise RefusedError(msg)
