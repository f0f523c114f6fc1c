"""Dirichlet label skew for images with many labels, keyed by one label of each image.

Every image gets one key: by default its rarest present label, by frequency over
all training images (ties: the lower column). Images without a present label share
a key of their own. For every key c, proportions q_c ~ Dir(alpha, ..., alpha)
over the clients are drawn and the key's images, in random order, are dealt out
by q_c. The whole draw is repeated until every client holds ``min_images``.

Rare labels end up concentrated on few clients; the frequent labels that occur
beside them stay mixed. Source: recipe "rarest-label Dirichlet" of "Dissecting
output-space methods for multi-label FL" (J. K. Li, 2026). The other keys are the
primary labels that single-label code is usually fed with.

Departures:
- A key's images are dealt by systematic sampling and the repetition is bounded; see
  ``fedmlic.partitioning.dealing``. ``Partition.notes`` says how many draws and moves it took.
- With ``key="largest_object"`` an image whose present labels have no object falls back
  to its rarest present label; the notes count those images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from fedmlic.errors import InputError
from fedmlic.labels import PRESENT
from fedmlic.partition import Partition, Partitioner, Population, check_feasible
from fedmlic.partitioning.dealing import chunks, deal_by_key, first_labels, rarest_labels

if TYPE_CHECKING:
    from numpy.typing import NDArray

Key = Literal["rarest", "largest_object", "random", "first"]


def _largest_objects(population: Population) -> tuple[NDArray[np.int64], dict[str, int]]:
    """The label of each image's largest object (ties: the lower column), among its present labels."""
    objects, labels = population.objects, population.labels
    if objects is None:
        msg = (
            "Expected the data set to have objects for partition dirichlet(key='largest_object'), got none. "
            "Use another key, or a data set with boxes."
        )
        raise InputError(msg)
    keys = rarest_labels(labels)
    has_label = keys < labels.shape[1]
    here = labels[objects.row, objects.label] == PRESENT
    row, label, area = objects.row[here], objects.label[here], objects.area[here]
    order = np.lexsort((label, -area, row))
    rows, first = np.unique(row[order], return_index=True)
    keys[rows] = label[order][first]
    has_label[rows] = False
    return keys, {"images_keyed_by_rarest": int(has_label.sum())}


def _random_labels(labels: NDArray[np.int8], rng: np.random.Generator) -> NDArray[np.int64]:
    """A uniformly random present label of each image."""
    num_images, num_labels = labels.shape
    keys = np.full(num_images, num_labels, dtype=np.int64)
    for images in chunks(num_images):
        present = labels[images] == PRESENT
        counts = present.sum(axis=1)
        some = np.flatnonzero(counts)
        places = np.cumsum(counts)[some] - counts[some] + np.floor(rng.random(len(some)) * counts[some])
        keys[images.start + some] = np.nonzero(present)[1][places.astype(np.int64)]
    return keys


def _keys(population: Population, key: Key, rng: np.random.Generator) -> tuple[NDArray[np.int64], dict[str, int]]:
    labels = population.labels
    if key == "largest_object":
        return _largest_objects(population)
    if key == "random":
        return _random_labels(labels, rng), {}
    return (rarest_labels(labels) if key == "rarest" else first_labels(labels, np.arange(labels.shape[1]))), {}


def dirichlet(
    *,
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.3,
    min_images: Annotated[int, Field(ge=1)] = 8,
    key: Key = "rarest",
) -> Partitioner:
    """Label skew: the images of each key label are spread over the clients by its own Dirichlet draw.

    Args:
        alpha: concentration, above 0; 0.1 gives each client few labels, 100 is close to IID.
        min_images: least number of images per client, 1 or more.
        key: which present label an image is dealt by: the ``"rarest"``, the one of its
            ``"largest_object"`` (by visible area), a ``"random"`` one, or the ``"first"`` column.

    Raises:
        InputError: when the partitioner is asked for more clients than
            ``images / min_images``, or for the largest object of a data set without objects.
    """

    def partition(population: Population, num_clients: int, rng: np.random.Generator) -> Partition:
        check_feasible(population, num_clients, min_images)
        keys, notes = _keys(population, key, rng)
        client_of_row, dealt = deal_by_key(keys, num_clients, rng, alpha=alpha, min_images=min_images)
        return Partition.from_clients(client_of_row, num_clients, dealt | notes)

    return partition
