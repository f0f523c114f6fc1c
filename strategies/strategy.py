"""What the server does with updates.

A strategy is two functions: ``init`` makes its state from the first model,
``aggregate`` turns state and updates into the next state. It reads updates once,
as they arrive. Its kinds are the other files of this folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from torch import Tensor

from fedmlic.arrays import Layout
from fedmlic.update import Update, Weighting


@dataclass(frozen=True)
class State:
    """What the server carries from round to round.

    Attributes:
        flat: float32 ``[layout.size]``, the global model.
        memory: further tensors of the strategy (momentum, control variates), by name.
    """

    flat: Tensor
    memory: dict[str, Tensor] = field(default_factory=dict)


def only_the_model(flat: Tensor, layout: Layout) -> State:
    """The state of a strategy that remembers nothing but the model."""
    del layout
    return State(flat)


class Strategy(NamedTuple):
    """How updates become the next model.

    Attributes:
        aggregate: the next state; if no update came, the state must not change.
        init: the first state from the initial model and its layout.
        weighting: how much a client counts in the sums it sends.
        needs: ``sum`` if updates may be added up before they arrive; ``each`` if every
            client's update is needed by itself.
    """

    aggregate: Callable[[State, Iterable[Update]], State]
    init: Callable[[Tensor, Layout], State] = only_the_model
    weighting: Weighting = Weighting()
    needs: Literal["sum", "each"] = "sum"


def total_of(updates: Iterable[Update]) -> Update | None:
    """The sum of all updates, or None if there are none."""
    total: Update | None = None
    for update in updates:
        if total is None:
            total = update
        else:
            total.merge(update)
    return total


def weighted_mean(state: State, updates: Iterable[Update]) -> State:
    """The next model is the weighted mean of the clients' models."""
    total = total_of(updates)
    return state if total is None else State(total.mean(state.flat), state.memory)
