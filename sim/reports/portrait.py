"""Everything that is counted of a corpus, in passes over blocks of its label matrix.

*phi* of two labels is their correlation over the images on which both are known:
``(n * n11 - a * b) / sqrt(a * (n - a) * b * (n - b))`` with n such images, a and b of them with the
one and the other label, n11 with both. It does not exist where a label is constant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedmlic.dataset import CROWD_ONLY, DIFFICULT_ONLY, MACHINE, NOT_EXHAUSTIVE, NOT_VISIBLE, SPLITS
from fedmlic.labels import PRESENT, known
from sim.data.prepare import row_blocks, state_counts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedmlic.corpus import Corpus

PAIR_LABELS = 256
"""Most labels between which co-occurrence is counted: those with the most positives."""

FLAG_NAMES = {
    "difficult_only": DIFFICULT_ONLY,
    "crowd_only": CROWD_ONLY,
    "not_exhaustive": NOT_EXHAUSTIVE,
    "machine": MACHINE,
    "not_visible": NOT_VISIBLE,
}


class Pairs(NamedTuple):
    """Co-occurrence among some labels.

    Attributes:
        labels: int64 ``[chosen]``, columns, most frequent first.
        both: int64 ``[chosen, chosen]``, images on which both are present.
        phi: float64 ``[chosen, chosen]``, NaN where it does not exist and on the diagonal.
    """

    labels: NDArray[np.int64]
    both: NDArray[np.int64]
    phi: NDArray[np.float64]


class Portrait(NamedTuple):
    """All numbers of a corpus that are shown.

    Attributes:
        counts: int64 ``[splits, states, labels]``.
        cardinality: int64 ``[splits, labels + 1]``, images with so many present labels.
        pairs: co-occurrence.
        flags: int64 ``[flag names, labels]``.
        owner_sizes: int64 ``[owners]``, images of each owner who has one.
    """

    counts: NDArray[np.int64]
    cardinality: NDArray[np.int64]
    pairs: Pairs
    flags: NDArray[np.int64]
    owner_sizes: NDArray[np.int64]


def measure(corpus: Corpus) -> Portrait:
    """Count everything, reading the label matrix block by block."""
    counts = state_counts(corpus)
    sizes = np.bincount(corpus.owners[corpus.owners >= 0])
    return Portrait(counts, _cardinality(corpus), count_pairs(corpus, counts), _flag_counts(corpus), sizes[sizes > 0])


def _cardinality(corpus: Corpus) -> NDArray[np.int64]:
    num_labels = len(corpus.label_names)
    counts = np.zeros((len(SPLITS), num_labels + 1), dtype=np.int64)
    for place, split in enumerate(SPLITS):
        for rows in row_blocks(corpus.splits[split], num_labels):
            present = np.count_nonzero(corpus.labels.take(rows) == PRESENT, axis=1)
            counts[place] += np.bincount(present, minlength=num_labels + 1)
    return counts


def _flag_counts(corpus: Corpus) -> NDArray[np.int64]:
    num_labels = len(corpus.label_names)
    if corpus.flags is None:
        return np.zeros((len(FLAG_NAMES), num_labels), dtype=np.int64)
    label, bits = corpus.flags.label, corpus.flags.bits
    return np.stack([np.bincount(label[(bits & bit) > 0], minlength=num_labels) for bit in FLAG_NAMES.values()])


def count_pairs(corpus: Corpus, counts: NDArray[np.int64]) -> Pairs:
    """Co-occurrence among the most frequent labels, over the images of all splits."""
    positives = counts[:, 0].sum(axis=0)
    chosen = np.argsort(-positives, kind="stable")[:PAIR_LABELS]
    chosen = chosen[positives[chosen] > 0]
    size = len(chosen)
    both, one, images = (np.zeros((size, size)) for _ in range(3))
    for rows in row_blocks(range(corpus.num_images), len(corpus.label_names)):
        labels = corpus.labels.take(rows)[:, chosen]
        # Counts of a block are below 2^24, so float32 is exact.
        present = (labels == PRESENT).astype(np.float32)
        both += present.T @ present
        if labels.min(initial=0) >= 0:  # every entry is known
            one += present.sum(axis=0)[:, None]
            images += len(rows)
            continue
        is_known = known(labels).astype(np.float32)
        one += present.T @ is_known
        images += is_known.T @ is_known
    other = one.T
    spread = one * (images - one) * other * (images - other)
    phi = np.full((size, size), np.nan)
    np.divide(images * both - one * other, np.sqrt(spread), out=phi, where=spread > 0)
    np.fill_diagonal(phi, np.nan)
    return Pairs(chosen, both.astype(np.int64), phi)
