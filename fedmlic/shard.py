"""What one client holds: its images and the labels its annotators wrote down.

The hidden truth is not in it, so no method can peek.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fedmlic.labels import known

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedmlic.corpus import Images


class OwnImages:
    """A client's own images out of a corpus that holds everybody's.

    Args:
        images: of the whole corpus, or the feature maps that stand in their place.
        rows: int64, which of them are the client's.
    """

    def __init__(self, images: Images, *rows: NDArray[np.int64]) -> None:
        self._images = images
        self.as_maps = images.as_maps
        self._own = np.unique(np.concatenate(rows)) if rows else np.zeros(0, dtype=np.int64)

    def take(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """uint8 ``[rows, height, width, channels]``: a contiguous copy, in the order asked.

        Where feature maps stand in place of images (``as_maps``): float32 ``[rows, features, height', width']``.

        Raises:
            ValueError: a row is not one of this client's.
        """
        places = np.searchsorted(self._own, rows)
        if len(rows) and not (places.max() < len(self._own) and np.array_equal(self._own[places], rows)):
            msg = "Expected rows of this client's own images, got others. Use shard.rows or shard.holdout_rows."
            raise ValueError(msg)
        return self._images.take(rows)


@dataclass(frozen=True)
class Shard:
    """One client's data.

    Attributes:
        client: the client's id, 0, 1, ...
        label_names: the federation's label names, in column order.
        images: its images, memory-mapped; other clients' cannot be read from them. Feature maps
            where the backbone does not train (``fedmlic.features``).
        rows: int64 ``[images]``, which of them this client trains on.
        labels: int8 ``[images, labels]``, observed.
        holdout_rows: int64 ``[held-out images]``, kept for federated evaluation, never trained on.
        holdout_labels: int8 ``[held-out images, labels]``, observed under the same regime.
    """

    client: int
    label_names: tuple[str, ...]
    images: Images | OwnImages
    rows: NDArray[np.int64]
    labels: NDArray[np.int8]
    holdout_rows: NDArray[np.int64]
    holdout_labels: NDArray[np.int8]

    @property
    def num_images(self) -> int:
        """Images this client trains on."""
        return len(self.rows)

    @property
    def num_labels(self) -> int:
        """Labels of the federation, annotated here or not."""
        return len(self.label_names)

    @property
    def annotations(self) -> NDArray[np.int64]:
        """int64 ``[labels]``: known entries per label among the training images."""
        return np.asarray(known(self.labels).sum(axis=0), dtype=np.int64)
