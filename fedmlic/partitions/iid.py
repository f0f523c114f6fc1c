"""IID: a random permutation of the images, cut into equal parts.

Source: recipe (a) of the field's list, as in the released COCO and VOC code of
FedLGT (arXiv 2312.07165), whose last clients lose the remainder; here no image
is left out, so sizes differ by one at most.
"""

from __future__ import annotations

import numpy as np

from fedmlic.partition import Partition, Partitioner, Population, check_feasible


def _cut(population: Population, num_clients: int, rng: np.random.Generator) -> Partition:
    check_feasible(population, num_clients)
    num_images = len(population.labels)
    client_of_row = np.empty(num_images, dtype=np.int64)
    client_of_row[rng.permutation(num_images)] = np.arange(num_images) % num_clients
    return Partition.from_clients(client_of_row, num_clients)


def iid() -> Partitioner:
    """Equal random parts: every client sees the same distribution.

    Raises:
        InputError: when the partitioner is asked for more clients than images.
    """
    return _cut
