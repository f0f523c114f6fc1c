"""How good the global model is on the server's own images.

The test split selects nothing; the validation split is what selection may use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedmlic.metrics import Metrics, evaluate_apart, unannotated_columns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from fedmlic.corpus import Corpus
    from fedmlic.learner import Learner

SIDES = {"test": "server", "val": "server/val"}
"""Metric prefix of each split that the server evaluates."""


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one model on the server's splits.

    Attributes:
        values: ``server/mAP``, ``server/val/mAP``, ... and the counts of evaluable labels; with
            ``server/mAP/unannotated`` and others where there are labels that nobody annotates.
        splits: the full metrics by split, with their per-label tables.
    """

    values: dict[str, float]
    splits: dict[str, Metrics]


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

    def score(self, flat: Tensor, unannotated: Sequence[str] = ()) -> Evaluation:
        """Evaluate the global model on every split.

        Args:
            flat: float32 ``[layout.size]``.
            unannotated: names of the labels that no client annotates, which are judged apart.
        """
        self._learner.resident.load(flat)
        apart = unannotated_columns(self._learner.task.label_names, unannotated)
        values: dict[str, float] = {}
        splits: dict[str, Metrics] = {}
        for split, rows in self._rows.items():
            scores = self._learner.predict(self._learner.stored(self._corpus), rows)
            metrics = evaluate_apart(scores, self._corpus.labels.take(rows), apart, self._threshold)
            splits[split] = metrics
            values.update({f"{SIDES[split]}/{name}": value for name, value in metrics.flat().items()})
        return Evaluation(values, splits)
