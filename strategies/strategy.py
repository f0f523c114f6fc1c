"""What the server does with updates.

A strategy is two functions: ``init`` makes its state from the first model,
``aggregate`` turns state and updates into the next state. It reads updates once,
as they arrive. What a rule needs on the client it brings along as mods. Its kinds
are the other files of this folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import torch
from torch import Tensor

from fedmlic.arrays import Layout
from fedmlic.seeds import torch_seed
from fedmlic.update import Update, Weighting

if TYPE_CHECKING:
    from fedmlic.experiment import Experiment


@dataclass(frozen=True)
class State:
    """What the server carries from round to round.

    Attributes:
        flat: float32 ``[layout.size]``, the global model.
        memory: further tensors of the strategy (momentum, control variates), by name; they stay
            on the server.
        shared: tensors that are sent to the clients beside the model, by name.
        metrics: numbers for the record of this round, such as a mean norm.
    """

    flat: Tensor
    memory: dict[str, Tensor] = field(default_factory=dict)
    shared: dict[str, Tensor] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Round:
    """Where a rule is applied.

    Attributes:
        number: 1, 2, ...
        num_clients: in the federation.
        cohort_size: clients that were asked in this round.
        layout: of the tensors that are exchanged in this round, and so of ``State.flat``.
        seed: the experiment's.
        statistics: what was counted over all clients before the first round, by name.
    """

    number: int
    num_clients: int
    cohort_size: int
    layout: Layout
    seed: int = 0
    statistics: Mapping[str, Tensor] = field(default_factory=dict)

    def rng(self, purpose: str) -> torch.Generator:
        """A torch stream of the server in this round, on the CPU."""
        return torch.Generator().manual_seed(torch_seed(self.seed, f"server/{purpose}", self.number))


NONE: Final[Mapping[str, tuple[float, float]]] = MappingProxyType({})


def only_the_model(flat: Tensor, layout: Layout) -> State:
    """The state of a strategy that remembers nothing but the model."""
    del layout
    return State(flat)


class Strategy(NamedTuple):
    """How updates become the next model.

    Attributes:
        aggregate: the next state; if no update came, the state must not change.
        init: the first state from the initial model and its layout. Where a method trains in
            phases it is called again at the start of each, with the tensors exchanged there.
        weighting: how much a client counts in the sums it sends.
        needs: ``sum`` if updates may be added up before they arrive; ``each`` if every
            client's update is needed by itself.
        mods: what the rule adds to every client's turn, as texts of the mods' catalogue.
        refuses: why it does not work with an experiment; empty where it does.
        metrics: of the metrics that clients' methods report (``Trained.metrics``), those that the rule reads, each with
            the least and the largest that one client may report. An update without one of them, or beyond, is refused.
    """

    aggregate: Callable[[State, Iterable[Update], Round], State]
    init: Callable[[Tensor, Layout], State] = only_the_model
    weighting: Weighting = Weighting()
    needs: Literal["sum", "each"] = "sum"
    mods: tuple[str, ...] = ()
    refuses: Callable[[Experiment], str] | None = None
    metrics: Mapping[str, tuple[float, float]] = NONE


def with_method(name: str) -> Callable[[Experiment], str]:
    """Refuses every method but one, whose clients report what the rule needs.

    Args:
        name: of the method.
    """

    def refuses(experiment: Experiment) -> str:
        if experiment.method.partition("(")[0].strip() == name:
            return ""
        return f"clients report what it needs with method='{name}()', not with {experiment.method}; name that method"

    return refuses


def total_of(updates: Iterable[Update]) -> Update | None:
    """The sum of all updates, or None if there are none."""
    total: Update | None = None
    for update in updates:
        if total is None:
            total = update
        else:
            total.merge(update)
    return total


def weighted_mean(state: State, updates: Iterable[Update], here: Round) -> State:
    """The next model is the weighted mean of the clients' models."""
    del here
    total = total_of(updates)
    return state if total is None else replace(state, flat=total.mean(state.flat))
