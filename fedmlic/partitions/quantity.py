"""Quantity: clients differ in how many images they hold and in nothing else.

A weight w_k is drawn for every client and client k holds a random n_k of the
images, n_k = max(min_images, c * w_k) with the c that makes them add up; real
numbers are rounded by largest remainders, so every image has a client.

- ``"lognormal"``: ln w_k ~ N(0, sigma^2).
- ``"zipf_mandelbrot"``: w_k = (r_k + shift)^-exponent, where r is a random ranking 1 to K.
- ``"dirichlet"``: w ~ Dir(alpha, ..., alpha), the quantity skew of NIID-Bench
  (Li et al., "Federated learning on non-IID data silos"), there with alpha 0.5 and 0.1.

Departure: NIID-Bench repeats its draw until every client has 10 images; here small
clients are lifted to ``min_images`` at the cost of all others, in proportion, and
``Partition.notes`` counts them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from fedmlic.errors import InputError
from fedmlic.partition import Partition, Partitioner, Population, check_feasible

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

Rule = Literal["lognormal", "zipf_mandelbrot", "dirichlet"]


def _sizes(weights: NDArray[np.float64], num_images: int, min_images: int) -> tuple[NDArray[np.int64], int]:
    """int64 ``[clients]`` that add up to ``num_images``, and how many were lifted to ``min_images``.

    The client that is the ``above``-th largest stays above the minimum as long as the
    common factor, computed for the largest ``above`` clients, still gives it that much.
    """
    num_clients = len(weights)
    falling = np.sort(weights)[::-1]
    above = np.arange(1, num_clients + 1)
    factors = (num_images - min_images * (num_clients - above)) / np.cumsum(falling)
    stays = np.flatnonzero(factors * falling >= min_images)
    factor = factors[stays[-1]] if len(stays) else 0.0
    exact = np.maximum(factor * weights, min_images)
    sizes = np.floor(exact + 1e-9).astype(np.int64)
    short = num_images - int(sizes.sum())
    # Only clients above the minimum have a remainder; the sort is stable, so ties go to lower clients.
    sizes[np.argsort(sizes - exact, kind="stable")[:short]] += 1
    return sizes, int((factor * weights < min_images).sum())


def _check_parameters(rule: Rule, given: dict[str, tuple[Rule, float, float]]) -> None:
    for name, (its_rule, value, default) in given.items():
        if its_rule != rule and value != default:
            msg = (
                f"Expected {name} of quantity to be given with rule={its_rule!r} only, got {name}={value} with "
                f"rule={rule!r}. Remove it or change the rule."
            )
            raise InputError(msg)


def quantity(
    *,
    rule: Rule = "lognormal",
    sigma: Annotated[float, Field(ge=0, le=100)] = 1.0,
    exponent: Annotated[float, Field(ge=0, le=100)] = 1.0,
    shift: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0,
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.5,
    min_images: Annotated[int, Field(ge=1)] = 1,
) -> Partitioner:
    """Quantity skew: random images, unequal client sizes.

    Args:
        rule: how sizes are distributed: ``"lognormal"``, ``"zipf_mandelbrot"`` or ``"dirichlet"``.
        sigma: lognormal: standard deviation of the log size, 0 (equal sizes) to 100.
        exponent: zipf_mandelbrot: how fast sizes fall with the rank, 0 (equal sizes) to 100.
        shift: zipf_mandelbrot: added to the rank, 0 or more; flattens the largest clients.
        alpha: dirichlet: concentration, above 0; 0.1 is very uneven, 100 nearly equal.
        min_images: least number of images per client, 1 or more.

    Raises:
        InputError: when a parameter of another rule is given, or the partitioner is asked
            for more clients than ``images / min_images``.
    """
    _check_parameters(
        rule,
        {
            "sigma": ("lognormal", sigma, 1.0),
            "exponent": ("zipf_mandelbrot", exponent, 1.0),
            "shift": ("zipf_mandelbrot", shift, 0.0),
            "alpha": ("dirichlet", alpha, 0.5),
        },
    )
    draw: dict[Rule, Callable[[int, np.random.Generator], NDArray[np.float64]]] = {
        "lognormal": lambda clients, rng: _relative(sigma * rng.standard_normal(clients)),
        "zipf_mandelbrot": lambda clients, rng: _relative(-exponent * np.log(1.0 + shift + rng.permutation(clients))),
        "dirichlet": lambda clients, rng: rng.dirichlet(np.full(clients, alpha)),
    }

    def partition(population: Population, num_clients: int, rng: np.random.Generator) -> Partition:
        check_feasible(population, num_clients, min_images)
        num_images = len(population.labels)
        sizes, num_lifted = _sizes(draw[rule](num_clients, rng), num_images, min_images)
        client_of_row = np.empty(num_images, dtype=np.int64)
        client_of_row[rng.permutation(num_images)] = np.repeat(np.arange(num_clients), sizes)
        return Partition.from_clients(client_of_row, num_clients, {"clients_lifted_to_min_images": num_lifted})

    return partition


def _relative(logarithms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights up to a factor, the largest 1: no logarithm is too large."""
    return np.asarray(np.exp(logarithms - logarithms.max()))
