"""Which labels a client sees, and which of those are wrong.

A regime turns the data set's labels into what one client's annotators wrote
down. It may hide entries (``UNKNOWN``) and, where it says so, write wrong ones.
Its kinds are in ``regimes/``; each is a factory that returns a ``Regime``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedmlic.seeds import entry_uniforms, stream

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedmlic.dataset import Objects


@dataclass(frozen=True)
class Assignment:
    """One client's images on the annotator's desk.

    Attributes:
        labels: int8 ``[images, labels]``, the data set's own labels (the truth).
        image_keys: uint64 ``[images]``, a stable number per image.
        objects: instances of these images, where known.
        client: whose images these are.
        seed: the experiment's seed.
        label_names: column names, in order.
        image_size: height and width of the stored images, in which boxes are measured.
    """

    labels: NDArray[np.int8]
    image_keys: NDArray[np.uint64]
    objects: Objects | None
    client: int
    seed: int
    label_names: tuple[str, ...] = ()
    image_size: tuple[int, int] = (0, 0)

    def rng(self, purpose: str) -> np.random.Generator:
        """A stream for decisions about the client as a whole (which labels it annotates)."""
        return stream(self.seed, f"regime/{purpose}", self.client)

    def uniforms(self, purpose: str) -> NDArray[np.float64]:
        """float64 ``[images, labels]`` in [0, 1): one number per entry.

        It depends on (seed, purpose, client, image, label) alone, so neither the order of
        the rows nor which other images the client holds changes what is annotated.
        """
        return entry_uniforms(self.seed, f"regime/{purpose}", self.client, self.image_keys, self.labels.shape[1])


class Regime(NamedTuple):
    """How labels are observed.

    Attributes:
        annotate: the client's observed labels, int8 ``[images, labels]``; must not change
            its input.
        adds_wrong: whether an entry may become known with a value that is not the truth
            (silent absence counts). Checked by the contract battery.
    """

    annotate: Callable[[Assignment], NDArray[np.int8]]
    adds_wrong: bool = False
