"""Which labels a client sees, and which of those are wrong.

A regime turns the data set's labels into what one client's annotators wrote
down. It may hide entries (``UNKNOWN``) and, where it says so, write wrong ones.
Its kinds are in ``regimes/``; each is a factory that returns a ``Regime``.

Regimes compose (``regimes/compose.py``): a later one works on what the earlier
one wrote, with random streams of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedmlic.labels import UNKNOWN
from fedmlic.seeds import entry_uniforms, stream

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedmlic.dataset import Objects


def _nothing_judged() -> NDArray[np.int64]:
    return np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class Assignment:
    """One client's images and true labels, as an annotation regime gets them.

    Attributes:
        labels: int8 ``[images, labels]``, the data set's own labels (the truth).
        image_keys: uint64 ``[images]``, a stable number per image.
        objects: instances of these images, where known.
        client: whose images these are.
        seed: the experiment's seed.
        label_names: column names, in order.
        image_size: height and width of the stored images, in which boxes are measured.
        path: place in a composition; part of every stream's name, so the same regime twice
            draws twice. The first part draws what it would draw alone, and adding a part
            leaves those before it as they were.
        judged: how well each label can be judged: int64 ``[labels]``, the smaller of the numbers of
            test images on which it is known to be present and known to be absent (of validation
            images where there are no test images; empty without either).
    """

    labels: NDArray[np.int8]
    image_keys: NDArray[np.uint64]
    objects: Objects | None
    client: int
    seed: int
    label_names: tuple[str, ...] = ()
    image_size: tuple[int, int] = (0, 0)
    path: tuple[int, ...] = (0,)
    judged: Callable[[], NDArray[np.int64]] = _nothing_judged

    def _name(self, purpose: str) -> str:
        place = "".join(f"{number}." for number in self.path) if self.path != (0,) else ""
        return f"regime/{place}{purpose}"

    def part(self, labels: NDArray[np.int8], place: int) -> Assignment:
        """The assignment for part ``place`` of a composition; its input is ``labels``."""
        return replace(self, labels=labels, path=(*self.path[:-1], self.path[-1] + place))

    def option(self, number: int) -> Assignment:
        """The assignment for one of several regimes among which one is chosen."""
        return replace(self, path=(*self.path, number, 0))

    def rng(self, purpose: str) -> np.random.Generator:
        """A stream for decisions about the client as a whole (which labels it annotates)."""
        return stream(self.seed, self._name(purpose), self.client)

    def shared_rng(self, purpose: str) -> np.random.Generator:
        """A stream for what all clients have in common."""
        return stream(self.seed, self._name(f"shared/{purpose}"))

    def uniforms(self, purpose: str) -> NDArray[np.float64]:
        """float64 ``[images, labels]`` in [0, 1): one number per entry.

        It depends on (seed, purpose, client, image, label) alone, so neither the order of
        the rows nor which other images the client holds changes what is annotated.
        """
        return entry_uniforms(self.seed, self._name(purpose), self.client, self.image_keys, self.labels.shape[1])

    def shared_uniforms(self, purpose: str, images: slice = slice(None)) -> NDArray[np.float64]:
        """As ``uniforms``, independent of which client holds the images: for choices over all clients."""
        name = self._name(f"shared/{purpose}")
        return entry_uniforms(self.seed, name, 0, self.image_keys[images], self.labels.shape[1])


class Regime(NamedTuple):
    """How labels are observed. What it declares is checked by the contract battery.

    Attributes:
        annotate: the client's observed labels, int8 ``[images, labels]``; must not change
            its input.
        adds_wrong: whether an entry may become known with a value that is not the truth
            (silent absence counts).
        adds_uncertain: whether a known entry may become ``UNCERTAIN``.
        counts_images: whether what is annotated depends on which other images there are. The
            order of images never matters.
        selective: whether the truth has a say in which entries become known (missing not at
            random). Without it, the hidden entries could be anything and the same would be known.
        needs_objects: whether it reads the instances of the images.
        looks: ``assignment -> [images, labels]``, how many annotators look at each entry that
            does not end as ``UNKNOWN``; without it, one.
        prepare: the regime to annotate with, made from the images of all clients together
            (client 0), labels as in the data set; without it, the regime itself.
        parts: texts of the regimes it is made of, which it takes as argument ``regimes``.
        num_parts: places it takes in a composition.
        identity: what decides the labels beside the regime's text and its code, such as hashes of files
            that it reads, in JSON's terms; called when a federation is opened and part of its key. Parts
            say their own.
    """

    annotate: Callable[[Assignment], NDArray[np.int8]]
    adds_wrong: bool = False
    adds_uncertain: bool = False
    counts_images: bool = False
    selective: bool = False
    needs_objects: bool = False
    looks: Callable[[Assignment], NDArray[np.integer[Any]]] | None = None
    prepare: Callable[[Assignment], Regime] | None = None
    parts: tuple[str, ...] = ()
    num_parts: int = 1
    identity: Callable[[], Mapping[str, Any]] | None = None


def prepared(regime: Regime, everyone: Assignment) -> Regime:
    """The regime to annotate with, where ``everyone`` holds the images of all clients."""
    return regime if regime.prepare is None else regime.prepare(everyone)


def looks_of(regime: Regime, assignment: Assignment, observed: NDArray[np.int8]) -> NDArray[np.int64]:
    """int64 ``[images, labels]``: how many annotators looked at each entry: the annotation budget spent."""
    each = 1 if regime.looks is None else regime.looks(assignment)
    return np.asarray((observed != UNKNOWN) * each, dtype=np.int64)
