"""How good the global model is on the server's own images.

The test split selects nothing; the validation split is what selection may use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from fedmlic.frequency import by_frequency
from fedmlic.metrics import Metrics, evaluate_apart, unannotated_columns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from fedmlic.corpus import Corpus
    from fedmlic.frequency import Frequencies
    from fedmlic.learner import Learner

SIDES = {"test": "server", "val": "server/val"}
"""Metric prefix of each split that the server evaluates."""


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one model on the server's splits.

    Attributes:
        values: ``server/mAP``, ``server/val/mAP``, ... and the counts of evaluable labels; with
            ``server/mAP/unannotated`` and others where there are labels that nobody annotates, and
            ``server/mAP/head`` and others where it is known how often labels are annotated.
        splits: the full metrics by split, with their per-label tables.
        scores: float32 ``[images, labels]`` by split.
        rows: int64 ``[images]`` by split, of the corpus.
    """

    values: dict[str, float]
    splits: dict[str, Metrics]
    scores: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    rows: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)


class Evaluator:
    """Scores a model on the validation and test images of a corpus.

    Args:
        learner: the method and its resident network; it is loaded with the model to score.
        corpus: where the images are; splits without images are left out.
        threshold: probability above which a label counts as predicted.
    """

    def __init__(self, learner: Learner, corpus: Corpus, threshold: float) -> None:
        self._learner = learner
        self._corpus = corpus
        self._threshold = threshold
        self._rows = {
            split: np.arange(rows.start, rows.stop, dtype=np.int64)
            for split, rows in corpus.splits.items()
            if split in SIDES and len(rows)
        }

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have images."""
        return tuple(self._rows)

    def score(
        self, flat: Tensor, unannotated: Sequence[str] = (), frequencies: Frequencies | None = None
    ) -> Evaluation:
        """Evaluate the global model on every split.

        Args:
            flat: float32 ``[layout.size]``.
            unannotated: names of the labels that no client annotates, which are judged apart.
            frequencies: how often labels are annotated in training, where that is known.
        """
        self._learner.resident.load(flat)
        apart = unannotated_columns(self._learner.task.label_names, unannotated)
        values: dict[str, float] = {}
        splits: dict[str, Metrics] = {}
        found: dict[str, NDArray[np.float32]] = {}
        for split, rows in self._rows.items():
            scores = self._learner.predict(self._learner.stored(self._corpus), rows)
            metrics = evaluate_apart(scores, self._corpus.labels.take(rows), apart, self._threshold)
            splits[split], found[split] = metrics, scores
            own = metrics.flat()
            if frequencies is not None:
                own |= by_frequency(metrics.per_label, frequencies, apart)
            values.update({f"{SIDES[split]}/{name}": value for name, value in own.items()})
        return Evaluation(values, splits, found, self._rows)
