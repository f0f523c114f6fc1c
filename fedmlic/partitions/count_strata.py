"""Count strata: a Dirichlet draw per number of present labels.

The key of an image is how many labels are present on it (0, 1, 2, ...); each such
stratum is spread over the clients by its own draw. It skews the number of labels
per image, not the labels themselves: a client with mostly crowded images sees more
of every frequent label.

Source: the non-IID option in the released code of FedMLP (arXiv 2406.18995), with
alpha 0.5. Departures: systematic sampling and bounded repetition (``fedmlic.partitioning.dealing``);
``min_images`` is our addition.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from fedmlic.partition import Partition, Partitioner, Population, check_feasible
from fedmlic.partitioning.dealing import cardinalities, deal_by_key


def count_strata(
    *, alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.5, min_images: Annotated[int, Field(ge=1)] = 8
) -> Partitioner:
    """Cardinality skew: the images with 0, 1, 2, ... present labels are each spread by a Dirichlet draw.

    Args:
        alpha: concentration, above 0; small values give each client images of few strata.
        min_images: least number of images per client, 1 or more.

    Raises:
        InputError: when the partitioner is asked for more clients than
            ``images / min_images``.
    """

    def partition(population: Population, num_clients: int, rng: np.random.Generator) -> Partition:
        check_feasible(population, num_clients, min_images)
        counts = cardinalities(population.labels)
        client_of_row, notes = deal_by_key(counts, num_clients, rng, alpha=alpha, min_images=min_images)
        return Partition.from_clients(client_of_row, num_clients, {"strata": len(np.unique(counts)), **notes})

    return partition
