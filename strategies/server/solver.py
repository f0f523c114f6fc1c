"""Tensors that the server solves for with sums over the clients (``fedmlic.method.Solution``), round by round."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from fedmlic.errors import InputError
from fedmlic.method import stretch_of
from fedmlic.protocol import CLIENTS_BEHIND, HIGH, HIGH_UNIT, IMAGES_BEHIND, LOW_UNIT, SOLUTION_SUMS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from fedmlic.experiment import Experiment
    from fedmlic.learner import Learner
    from fedmlic.method import Solution
    from strategies.strategy import State


class Solver:
    """The server's half of a method that has a ``Solution`` in some stretch of rounds.

    What was added up so far lies in the state's ``memory`` under ``SOLUTION_SUMS``, so it is in every checkpoint and
    goes to nobody.

    Args:
        learner: the method with its network, for the shapes.
        experiment: the least numbers of clients and images behind a row.
    """

    def __init__(self, learner: Learner, experiment: Experiment) -> None:
        self._method, self._network = learner.method, learner.resident.network
        self._layout = learner.resident.layout
        self._experiment = experiment

    def _solution(self, number: int) -> Solution | None:
        return stretch_of(self._method, number).phase.solution

    def sums(self, number: int, shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Zeros of the sums that a round's clients send, by name; none where nothing is solved for.

        Raises:
            InputError: they would be too large.
        """
        solution = self._solution(number)
        return {} if solution is None else dict(solution.sums(self._network, shared))

    def kept(
        self, before: State, after: State, declared: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
    ) -> tuple[State, dict[str, int]]:
        """The next state with the sums so far in its memory, and how many rows of each sum too few stand behind.

        Args:
            before: the state before the round.
            after: what the strategy made of it.
            declared: zeros of the sums, as ``sums`` gives them.
            tensors: what this round's clients added up, by the names of their extras.
        """
        held = {name: each for name, each in before.memory.items() if name.startswith(SOLUTION_SUMS)}
        for name, zeros in declared.items():
            for part, start in _parts(SOLUTION_SUMS + name, zeros).items():
                new = tensors[part].to(start.dtype) if part in tensors else start
                held[part] = held.get(part, start) + new
        hidden = {SOLUTION_SUMS + name: int((~self._enough(held, name) & _seen(held, name)).sum()) for name in declared}
        return replace(after, memory={**after.memory, **held}), hidden

    def solved(self, number: int, state: State, declared: Mapping[str, Tensor]) -> State:
        """The state whose model holds the solution; forgets sums that later rounds do not need.

        Raises:
            InputError: too few clients or images stand behind every row of a sum.
        """
        solution = self._solution(number)
        if solution is None:
            return state
        held = state.memory
        last = number == self._experiment.num_rounds or not solution.keeps
        sums = {name: self._sum(held, name, zeros, last=last) for name, zeros in declared.items()}
        flat = state.flat.clone()
        tensors = {name: view.clone() for name, view in self._layout.views(flat)}
        with torch.no_grad():
            for name, tensor in solution.solve(self._network, sums, tensors).items():
                self._layout.view(flat, name).copy_(tensor)
        metrics = dict(state.metrics)
        if solution.metrics is not None:
            metrics |= solution.metrics(dict(self._layout.views(flat)))
        if not solution.keeps:
            held = {name: each for name, each in held.items() if not name.startswith(SOLUTION_SUMS)}
        return replace(state, flat=flat, memory=dict(held), metrics=metrics)

    def _enough(self, held: Mapping[str, Tensor], name: str) -> Tensor:
        clients, images = (held[SOLUTION_SUMS + name + suffix] for suffix in (CLIENTS_BEHIND, IMAGES_BEHIND))
        experiment = self._experiment
        return (clients >= experiment.statistics_min_clients) & (images >= experiment.statistics_min_images)

    def _sum(self, held: Mapping[str, Tensor], name: str, zeros: Tensor, *, last: bool) -> Tensor:
        enough, seen = self._enough(held, name), _seen(held, name)
        if last and bool(seen.any()) and not bool(enough.any()):
            experiment = self._experiment
            msg = (
                f"Expected at least {experiment.statistics_min_clients} clients and {experiment.statistics_min_images} "
                f"images behind rows of the sum {name}, got fewer behind every one. Lower statistics-min-clients or "
                "statistics-min-images if the clients agree."
            )
            raise InputError(msg)
        total = held[SOLUTION_SUMS + name]
        if zeros.is_floating_point():
            total = total * LOW_UNIT + held[SOLUTION_SUMS + name + HIGH].to(zeros.dtype) * HIGH_UNIT
        return torch.where(enough.view(-1, *(1 for _ in zeros.shape[1:])), total, torch.zeros_like(total))


def _parts(name: str, zeros: Tensor) -> dict[str, Tensor]:
    """Zeros of everything that is kept of a sum."""
    rows = torch.zeros(len(zeros), dtype=torch.int64)
    parts = {name: zeros, name + CLIENTS_BEHIND: rows, name + IMAGES_BEHIND: rows}
    return parts | ({name + HIGH: torch.zeros(zeros.shape, dtype=torch.int64)} if zeros.is_floating_point() else {})


def _seen(held: Mapping[str, Tensor], name: str) -> Tensor:
    return held[SOLUTION_SUMS + name + CLIENTS_BEHIND] > 0
