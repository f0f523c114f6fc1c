"""What came of a run: its network, the scores that it gives to images, and the truth about them.

Reports, exports and notebooks ask here, so that "the model of a run" means one thing: the round that was best on
validation, or the last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fedmlic.errors import InputError
from fedmlic.kept_scores import KeptScores, path_of, read_scores
from fedmlic.record import open_run, read_json
from sim.predict import Predictor, load_predictor
from sim.thresholds import DEFAULT_PRECISION, MIN_ENTRIES, Thresholds, fit

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from fedmlic.corpus import Corpus

Which = Literal["best", "last"]
"""Of a run's models: after the round that was best on validation, or after the last round."""

BLOCK = 1024
"""Images of a split between two reports of progress; a multiple of what is predicted at once."""


@dataclass(frozen=True)
class Scores:
    """What a model says of the images of a split, and what is known of them.

    Attributes:
        label_names: columns.
        round: after which the model was taken.
        rows: int64 ``[images]``, of the corpus.
        scores: float32 ``[images, labels]``, probabilities.
        labels: int8 ``[images, labels]``, states as in ``fedmlic.labels``; unknown stays unknown.
        kept: whether the run kept them (``keep-scores``), so that they are within
            ``fedmlic.kept_scores.SCORE_ERROR`` of what the model said; else the model was asked again.
    """

    label_names: tuple[str, ...]
    round: int
    rows: NDArray[np.int64]
    scores: NDArray[np.float32]
    labels: NDArray[np.int8]
    kept: bool = False


def corpus_of(path: Path) -> Corpus:
    """The corpus of a run, built where it is not there.

    Raises:
        InputError: not a run, or images or labels that are not those that the run was started with.
    """
    from clients.opening import images_of

    folder = open_run(path)
    corpus = images_of(*folder.settings())
    if read_json(path / "data.json").get("corpus") != corpus.content:
        msg = (
            f"Expected the images and labels that {path} was started with, got others: the data set or the code that "
            "reads it was changed since. Restore it."
        )
        raise InputError(msg)
    return corpus


def predictor_of(path: Path, which: Which = "best", client: int | None = None) -> Predictor:
    """The network of a run.

    Args:
        path: the run folder.
        which: of its models.
        client: whose, where clients keep tensors to themselves.

    Raises:
        InputError: as ``load_predictor``.
    """
    return load_predictor(path, round_of(path, which), client)


def round_of(path: Path, which: Which = "best") -> int | None:
    """The round after which one of a run's models was taken; None while there is no checkpoint.

    ``best`` is the last one where nothing was chosen on validation data, or where that checkpoint is gone.
    """
    folder = open_run(path)
    numbers = folder.checkpoints()
    if not numbers:
        return None
    best = int(folder.checkpoint_values(numbers[-1])["best_round"]) if which == "best" else 0
    return best if best and best in numbers else numbers[-1]


def scores_of(path: Path, split: str = "test", which: Which = "best", client: int | None = None) -> Scores:
    """The scores that the model of a run gives to the images of a split.

    Where the run kept them (``keep-scores``), they are read and the network is not built.

    Args:
        path: the run folder.
        split: of the corpus: ``test``, ``val`` or ``train``.
        which: of the run's models.
        client: whose model, where clients keep tensors to themselves.

    Raises:
        InputError: as ``predictor_of`` and ``corpus_of``, or a split without images.
    """
    corpus = corpus_of(path)
    kept = None if client is not None else _kept(path, split, round_of(path, which), corpus)
    if kept is not None:
        return Scores(kept.label_names, kept.round, kept.rows, kept.scores, corpus.labels.take(kept.rows), kept=True)
    return score_split(predictor_of(path, which, client), corpus, split)


def score_split(
    predictor: Predictor, corpus: Corpus, split: str, progress: Callable[[int, int], None] | None = None
) -> Scores:
    """Score the images of a split with a model that is loaded already.

    Args:
        predictor: the model.
        corpus: of the run that it is of.
        split: ``test``, ``val`` or ``train``.
        progress: called with (images done, images in all).

    Raises:
        InputError: a split without images.
    """
    found = corpus.splits.get(split, range(0))
    if not found:
        filled = [name for name, rows in corpus.splits.items() if rows]
        msg = f"Expected split to be one of {', '.join(filled)}, got {split!r}, which has no images. Choose another."
        raise InputError(msg)
    rows = np.arange(found.start, found.stop, dtype=np.int64)
    learner = predictor.learner
    stored = learner.stored(corpus)
    parts = []
    for start in range(0, len(rows), BLOCK):
        parts.append(learner.predict(stored, rows[start : start + BLOCK]))
        if progress is not None:
            progress(min(start + BLOCK, len(rows)), len(rows))
    scores = np.concatenate(parts)
    return Scores(predictor.label_names, predictor.round, rows, scores, corpus.labels.take(rows))


def _kept(path: Path, split: str, number: int | None, corpus: Corpus) -> KeptScores | None:
    """The scores that a run kept of the model after round ``number``; None if it kept others or none."""
    if number is None or not path_of(path, number, split).is_file():
        return None
    kept = read_scores(path_of(path, number, split))
    belongs_here = (kept.round, kept.split, kept.belongs_to) == (
        number,
        split,
        (open_run(path).identity(), corpus.content),
    )
    return kept if belongs_here else None


def thresholds_of(
    path: Path,
    predictor: Predictor,
    corpus: Corpus,
    *,
    precision: float = DEFAULT_PRECISION,
    min_entries: int = MIN_ENTRIES,
    client: int | None = None,
    inference: str | None = None,
    progress: Callable[[str], Callable[[int, int], None]] | None = None,
) -> Thresholds:
    """Thresholds of a run's model, fitted on the validation images of its data set.

    Without validation images every threshold is the fixed one.

    Args:
        path: the run folder.
        predictor: the model.
        corpus: of the run.
        precision: target of the rule ``precision``.
        min_entries: known present, and known absent, validation images that a label's own threshold needs.
        client: whose model it is, where clients keep tensors to themselves.
        inference: how it is asked; None for the run's own way.
        progress: from what is counted to what is called with (images done, images in all).
    """
    names = predictor.label_names
    scores, labels = np.zeros((0, len(names)), np.float32), np.zeros((0, len(names)), np.int8)
    if corpus.splits.get("val", range(0)):
        counting = None if progress is None else progress("scoring validation images")
        found = score_split(predictor, corpus, "val", counting)
        scores, labels = found.scores, found.labels
    about = about_of(path, predictor, client, inference)
    return fit(
        scores, labels, names, fixed=predictor.threshold, precision=precision, min_entries=min_entries, about=about
    )


def about_of(
    path: Path, predictor: Predictor, client: int | None = None, inference: str | None = None
) -> dict[str, Any]:
    """Which model of a run it is, for programs: identity of the experiment, round, client, inference."""
    folder = open_run(path)
    return {
        "identity": folder.identity(),
        "round": predictor.round,
        "client": client,
        "inference": inference or folder.settings()[0].inference,
    }
