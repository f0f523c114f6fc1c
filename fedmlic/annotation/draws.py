"""A number that is the same for all clients, or drawn by each client: how annotators differ.

Wherever a regime takes a ``Chance``, its text may say

- ``0.3``: the same for all clients;
- ``[0.1, 0.5]``: each client draws its own, uniformly from that range;
- ``{"beta": [2, 5]}``: each client draws its own from Beta(2, 5).

A draw depends on the seed, the client and the parameter alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedmlic.regime import Assignment


def _form(value: Any) -> str:  # noqa: ANN401  (whatever a person wrote)
    if isinstance(value, dict):
        return "beta"
    return "range" if isinstance(value, list | tuple) else "number"


def _rising(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise PydanticCustomError("falling_range", "a range is [low, high], with low at most high")
    return bounds


Probability = Annotated[float, Field(ge=0, le=1)]
_Shape = Annotated[float, Field(gt=0, allow_inf_nan=False)]

Chance = Annotated[
    Annotated[Probability, Tag("number")]
    | Annotated[tuple[Probability, Probability], AfterValidator(_rising), Tag("range")]
    | Annotated[dict[Literal["beta"], tuple[_Shape, _Shape]], Field(min_length=1), Tag("beta")],
    Discriminator(_form),
]
"""A probability in [0, 1]: a number, a range or a Beta distribution."""

_Number = Annotated[int, Field(ge=1)]
Whole = Annotated[
    Annotated[_Number, Tag("number")] | Annotated[tuple[_Number, _Number], AfterValidator(_rising), Tag("range")],
    Discriminator(_form),
]
"""A whole number, 1 or more: one for all clients, or a range with both ends."""


Drawn = float | tuple[float, float] | dict[Literal["beta"], tuple[float, float]]
"""A ``Chance`` once it is checked."""


def chance(value: Drawn, assignment: Assignment, name: str) -> float:
    """The probability of this client, drawn from the stream of parameter ``name`` if it is drawn at all."""
    if isinstance(value, dict):
        return float(assignment.rng(f"{name} of client").beta(*value["beta"]))
    if isinstance(value, tuple | list):
        return float(assignment.rng(f"{name} of client").uniform(*value))
    return float(value)


def whole(value: int | tuple[int, int], assignment: Assignment, name: str) -> int:
    """The whole number of this client."""
    if isinstance(value, tuple | list):
        return int(assignment.rng(f"{name} of client").integers(*value, endpoint=True))
    return value


def log_dirichlet(alphas: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Logarithms of one draw from Dirichlet(alphas), up to a constant.

    In logarithms no share underflows to zero, however small its alpha; an alpha of 0 gives -inf.
    A Gamma(a) variable is Gamma(a + 1) times a uniform to the power 1/a.
    """
    gammas, uniforms = rng.standard_gamma(alphas + 1), rng.random(len(alphas))
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(gammas) + np.log1p(-uniforms) / alphas)


def race(uniforms: NDArray[np.float64], log_weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Tickets of the same shape: the largest is entry c with probability ``weight_c / sum of weights``.

    The n largest are n draws without replacement in proportion to the weights. Each ticket
    depends on its own entry alone. A weight of 0 (-inf) loses against every other.

    Source: the Gumbel-max trick (Yellott 1977; Efraimidis and Spirakis 2006 for n draws).
    """
    with np.errstate(divide="ignore"):
        return np.asarray(log_weights - np.log(-np.log(uniforms)))
