"""Marginal matching: every client draws its own label rates and is filled to come close to them.

Client k draws a distribution over labels, pi_k ~ Dir(alpha * L * g), where g is the
distribution of all positives over the L labels that occur. Its wish for label c is the
rate min(1, cardinality * pi_kc), where cardinality is the mean number of present labels
per image. Because all wishes together must ask for the positives there are, the rates of
a label are scaled to add up to them (and cut at 1) in turn. Then images are dealt by
iterative stratification (Sechidis et al., ECML PKDD 2011; ``fedmlic.partitioning.stratification``).

All clients hold equally many images, so label skew comes alone. Label sets are what they
are: wishes cannot be met exactly, and ``Partition.notes`` says how close they came:

- ``mean_hellinger``: mean over clients of the Hellinger distance (0 to 1) between the
  wanted and the achieved distribution of positives over labels;
- ``mean_kl_bits``: mean over clients of the Kullback-Leibler divergence of the achieved
  from the wanted one, with 0.5 added to every count so that it is finite;
- ``mean_hellinger_to_all``: mean Hellinger distance between the wanted distribution and
  that of all images: what a partition that ignores the wishes would miss by.

Source: the user-wise Dirichlet prior of pfl-research (arXiv 2404.06430) gave the idea of
drawing per client; it deals images of one key label. Everything else is as cited above.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from fedmlic.labels import PRESENT
from fedmlic.partition import Partition, Partitioner, Population, check_feasible
from fedmlic.partitioning.dealing import chunks, positives
from fedmlic.partitioning.stratification import even_sizes, stratify

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BALANCING_STEPS = 20


def _draw_distributions(
    concentration: NDArray[np.float64], num_clients: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """float32 ``[labels, clients]``: Dirichlet draws, 0 where the concentration is.

    From gamma variates on the log scale, ln G(a) = ln G(a + 1) + ln(U) / a, because a
    gamma variate of a small parameter underflows and its logarithm does not.
    """
    logarithms = np.empty((len(concentration), num_clients), dtype=np.float32)
    lowest = np.finfo(np.float32).min / 2
    for label, a in enumerate(concentration):
        if a == 0:
            logarithms[label] = lowest
            continue
        draws = np.log(rng.standard_gamma(a + 1, num_clients)) + np.log1p(-rng.random(num_clients)) / a
        logarithms[label] = np.maximum(draws, lowest)
    logarithms -= logarithms.max(axis=0)
    shares = np.exp(logarithms, out=logarithms)
    shares /= shares.sum(axis=0)
    return shares


def _wishes(
    distributions: NDArray[np.float32], num_positives: NDArray[np.int64], sizes: NDArray[np.int64], num_images: int
) -> NDArray[np.float32]:
    """float32 ``[labels, clients]``: positives wanted, adding up to the positives of every label."""
    rates = distributions * np.float32(num_positives.sum() / num_images)
    for _ in range(_BALANCING_STEPS):
        np.minimum(rates, np.float32(1), out=rates)
        rates += np.float32(1e-12)  # a label that nobody wants must still go somewhere
        asked = rates @ sizes.astype(np.float32)
        rates *= (num_positives / asked).astype(np.float32)[:, None]
    rates *= sizes.astype(np.float32)
    return rates


def _hellinger(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    """Mean over clients of the Hellinger distance between columns that add up to 1."""
    overlap = np.sqrt(p * q).sum(axis=0)
    return float(np.sqrt(np.clip(1 - overlap, 0, 1)).mean())


def _closeness(
    labels: NDArray[np.int8], client_of_row: NDArray[np.int64], wanted: NDArray[np.float32]
) -> dict[str, float]:
    num_labels, num_clients = wanted.shape
    achieved = np.zeros((num_labels, num_clients), dtype=np.int32)
    for images in chunks(len(labels)):
        image, label = np.nonzero(labels[images] == PRESENT)
        np.add.at(achieved, (label, client_of_row[images.start + image]), 1)
    everyone = achieved.sum(axis=1, dtype=np.float64)[:, None]
    everyone /= everyone.sum()
    sums, step = np.zeros(3), max(1, (1 << 21) // num_labels)
    counted = 0
    for start in range(0, num_clients, step):
        some = slice(start, start + step)
        has_any = achieved[:, some].any(axis=0)
        got, asked = achieved[:, some][:, has_any].astype(np.float64), wanted[:, some][:, has_any].astype(np.float64)
        count = got.shape[1]
        if count:
            p, q = got / got.sum(axis=0), asked / asked.sum(axis=0)
            smooth_p, smooth_q = ((x + 0.5) / (x + 0.5).sum(axis=0) for x in (got, asked))
            divergence = float((smooth_p * np.log2(smooth_p / smooth_q)).sum(axis=0).mean())
            sums += count * np.array([_hellinger(p, q), divergence, _hellinger(np.broadcast_to(everyone, q.shape), q)])
            counted += count
    means = (sums / max(counted, 1)).round(4).tolist()
    names = ("mean_hellinger", "mean_kl_bits", "mean_hellinger_to_all")
    return {**dict(zip(names, means, strict=True)), "clients_without_positives": num_clients - counted}


def marginal_matching(*, alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.3) -> Partitioner:
    """Label skew without size skew: every client draws label rates and gets images that come close to them.

    Args:
        alpha: concentration, above 0; 0.1 makes clients want few labels, 100 all labels as in
            the whole data set.

    Raises:
        InputError: when the partitioner is asked for more clients than images.
    """

    def partition(population: Population, num_clients: int, rng: np.random.Generator) -> Partition:
        check_feasible(population, num_clients)
        labels, sizes = population.labels, even_sizes(len(population.labels), num_clients)
        num_positives = positives(labels)
        if not num_positives.any():
            return Partition.from_clients(rng.permutation(np.repeat(np.arange(num_clients), sizes)), num_clients)
        frequency = num_positives / num_positives.sum()
        # Below 1e-20 every client wants one label, drawn by frequency, as it does at 1e-20.
        concentration = max(alpha, 1e-20) * np.count_nonzero(num_positives) * frequency
        distributions = _draw_distributions(concentration, num_clients, rng)
        wanted = _wishes(distributions, num_positives, sizes, len(labels))
        client_of_row = stratify(labels, wanted, sizes, rng)
        return Partition.from_clients(client_of_row, num_clients, _closeness(labels, client_of_row, wanted))

    return partition
