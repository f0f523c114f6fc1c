"""Co-occurrence clusters: clients see the same labels about equally often, with different other labels beside them.

Images are clustered by k-means on their label vectors; for every cluster g, proportions
q_g ~ Dir(alpha, ..., alpha) over the clients are drawn.

- ``keep_marginals=False``: each cluster is dealt out by q_g, as other Dirichlet partitions
  deal their keys. Clusters differ in which labels they have, so this skews label rates
  and co-occurrence together.
- ``keep_marginals=True`` (default): images are dealt by iterative stratification, every
  client wanting the same number of positives of every label (``fedmlic.partitioning.stratification``).
  Where several images serve that equally, those of cluster g prefer clients with a large
  q_g. Label rates stay nearly those of the whole data set and sizes equal, while the
  labels that a label occurs with depend on the client: co-occurrence skew alone.

Source: clustering label vectors is recipe (e) of the field's list, from the released code
of FedMPT (arXiv 2605.28347) with 2 to 8 clusters; FLAG (arXiv 2302.13571) has a similar
one. Departures: plain multi-hot vectors instead of their softmax; Dirichlet proportions
instead of whole clusters per client; ``keep_marginals`` is ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from fedmlic.partition import Partition, Partitioner, Population, check_feasible
from fedmlic.partitioning.dealing import deal_by_key, positives
from fedmlic.partitioning.kmeans import cluster
from fedmlic.partitioning.stratification import Affinity, even_sizes, stratify

if TYPE_CHECKING:
    from numpy.typing import NDArray


def _keeping_marginals(
    population: Population, num_clients: int, rng: np.random.Generator, clusters: NDArray[np.int64], alpha: float
) -> NDArray[np.int64]:
    """int64 ``[images]``: a client per image; label rates even, clusters by preference."""
    num_images, num_labels = population.labels.shape
    wanted = np.empty((num_labels, num_clients), dtype=np.float32)
    wanted[:] = (positives(population.labels) / num_clients)[:, None]
    num_clusters = int(clusters.max()) + 1
    preference = np.stack([rng.dirichlet(np.full(num_clients, alpha)) for _ in range(num_clusters)], axis=1)
    sizes = even_sizes(num_images, num_clients)
    return stratify(population.labels, wanted, sizes, rng, Affinity(clusters, preference))


def cooccurrence_clusters(
    *,
    num_clusters: Annotated[int, Field(ge=2, le=256)] = 8,
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1,
    keep_marginals: bool = True,
    min_images: Annotated[int, Field(ge=1)] = 8,
) -> Partitioner:
    """Co-occurrence skew: clusters of label vectors are spread over the clients by Dirichlet draws.

    Args:
        num_clusters: clusters of label vectors, 2 to 256.
        alpha: concentration, above 0; 0.1 gives each client few clusters, 100 is close to IID.
        keep_marginals: keep every client's label rates near those of the whole data set.
        min_images: least number of images per client, 1 or more.

    Raises:
        InputError: when the partitioner is asked for more clients than
            ``images / min_images``.
    """

    def partition(population: Population, num_clients: int, rng: np.random.Generator) -> Partition:
        check_feasible(population, num_clients, min_images)
        clusters = cluster(population.labels, num_clusters, rng)
        notes = {"clusters_used": len(np.unique(clusters))}
        if keep_marginals:
            client_of_row = _keeping_marginals(population, num_clients, rng, clusters, alpha)
        else:
            client_of_row, dealt = deal_by_key(clusters, num_clients, rng, alpha=alpha, min_images=min_images)
            notes |= dealt
        return Partition.from_clients(client_of_row, num_clients, notes)

    return partition
