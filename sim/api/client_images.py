"""A client's images as torch reads data sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fedmlic.pixel_scale import to_float

if TYPE_CHECKING:
    from fedmlic.shard import Shard


class ClientImages(Dataset[tuple[Tensor, Tensor]]):
    """Images of one client with the labels that its annotators wrote down.

    An item is ``(image, labels)``: float32 ``[channels, height, width]``, (byte - 127.5) / 63.75, as networks see it
    before augmentation (or uint8 ``[height, width, channels]`` as stored); int8 ``[labels]``: 1 present, 0 absent,
    -1 unknown, -2 uncertain. A slice gives batches of both.

    Attributes:
        client: its id.
        name: of the owner that it is; empty where clients are no named owners.
        label_names: columns.
        labels: int8 ``[images, labels]``, all of them.
    """

    def __init__(self, shard: Shard, name: str = "", *, held_out: bool = False, stored: bool = False) -> None:
        self.client, self.name, self.label_names = shard.client, name, shard.label_names
        self.labels = torch.from_numpy(shard.holdout_labels if held_out else shard.labels)
        self._images, self._rows = shard.images, shard.holdout_rows if held_out else shard.rows
        self._stored = stored

    def __repr__(self) -> str:
        return f"ClientImages(client {self.client}, {len(self)} images, {len(self.label_names)} labels)"

    def __len__(self) -> int:
        """Images."""
        return len(self._rows)

    def __getitem__(self, index: int | slice) -> tuple[Tensor, Tensor]:
        """One image with its labels; several, stacked, for a slice."""
        if isinstance(index, slice):
            return self._take(np.arange(len(self))[index])
        if not -len(self) <= index < len(self):
            msg = f"Expected an index below {len(self)}, got {index}."
            raise IndexError(msg)
        images, labels = self._take(np.array([index % len(self)]))
        return images[0], labels[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """What a ``DataLoader`` asks for: a batch, read at once."""
        images, labels = self._take(np.asarray(indices, dtype=np.int64))
        return list(zip(images, labels, strict=True))

    def _take(self, numbers: np.ndarray[tuple[int], np.dtype[np.int64]]) -> tuple[Tensor, Tensor]:
        pixels = self._images.take(self._rows[numbers])
        return torch.from_numpy(pixels) if self._stored else to_float(pixels), self.labels[torch.from_numpy(numbers)]
