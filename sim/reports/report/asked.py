"""What the models of a row say of the server's images, over the row's seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from fedmlic.errors import InputError
from fedmlic.evaluation import SIDES
from fedmlic.labels import UNKNOWN
from fedmlic.metrics import unannotated_columns
from sim.reports.report.images import HardImage, hard_images
from sim.reports.report.read import Run
from sim.reports.report.rows import Model
from sim.reports.report.scores import (
    PairErrors,
    Reliability,
    Thresholds,
    image_losses,
    mean_pair_errors,
    pair_errors,
    pooled,
    reliability,
    thresholds,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedmlic.corpus import Corpus
    from sim.outcome import Scores

MAX_SEEDS = 5
"""Most seeds of a row whose models are asked: the lowest."""

CANNOT = (InputError, OSError, RuntimeError)
"""What keeps a model from being asked; the page says it and goes on. torch raises RuntimeError."""


@dataclass(frozen=True)
class Judged:
    """What the scores of a row's models say.

    Attributes:
        runs: that were asked, one a seed.
        split: whose images: ``test``, or ``val`` where there are none of test.
        label_names: columns: labels that are annotated at any of the seeds.
        pooled: reliability over all entries of all seeds.
        each: of every label, over the entries of all seeds.
        ece: float64 ``[seeds, 1 + labels]``, calibration error of each seed's model: of all entries, of every label.
        thresholds: of each seed, chosen on validation, judged on test; empty without one of both.
        pairs: errors by co-occurrence, mean over seeds.
        losses: float64 ``[images]``, of the first run.
        images: those with the highest loss.
    """

    runs: Sequence[Run]
    split: str
    label_names: tuple[str, ...]
    pooled: Reliability
    each: Sequence[Reliability]
    ece: NDArray[np.float64]
    thresholds: Sequence[Thresholds]
    pairs: PairErrors
    losses: NDArray[np.float64]
    images: Sequence[HardImage]


@dataclass(frozen=True)
class _OfSeed:
    """What one model's scores say, by the columns of all seeds."""

    run: Run
    whole: Reliability
    each: Sequence[Reliability]
    thresholds: Thresholds | None
    pairs: PairErrors
    losses: NDArray[np.float64]
    images: Sequence[HardImage]


def judge(runs: Sequence[Run], model: Model, notes: list[str]) -> Judged:
    """Ask the models of a row's runs.

    Args:
        runs: one a seed, with checkpoints.
        model: which model of each.
        notes: gets what is missing and why.

    Raises:
        InputError, OSError, RuntimeError: no model can be asked.
    """
    from sim.outcome import corpus_of

    corpus = corpus_of(runs[0].path)
    there = [split for split in SIDES if corpus.splits.get(split)]
    if not there:
        msg = f"{runs[0].name} has neither test nor validation images on the server, so nothing is judged there."
        raise InputError(msg)
    split = there[0]
    if split != "test":
        notes.append(
            f"{runs[0].name} has no test images: validation images are judged, which also chose its best round."
        )
    if len(there) < 2:
        missing = "validation" if split == "test" else "test"
        notes.append(f"{runs[0].name} has no {missing} images: no threshold is chosen.")
    columns = np.any([~_unannotated(run, corpus.label_names) for run in runs], axis=0)
    found: list[_OfSeed] = []
    for run in runs:
        try:
            found.append(_of_seed(run, there, model, corpus, columns, found[0] if found else None, notes))
        except CANNOT as error:
            if run is runs[-1] and not found:
                raise
            notes.append(f"{run.name}: {error}")
    return Judged(
        [each.run for each in found],
        split,
        tuple(np.array(corpus.label_names, dtype=object)[columns]),
        pooled([each.whole for each in found]),
        [pooled(of_label) for of_label in zip(*(each.each for each in found), strict=True)],
        np.array([[each.whole.ece, *(one.ece for one in each.each)] for each in found]),
        [each.thresholds for each in found if each.thresholds is not None],
        mean_pair_errors([each.pairs for each in found]),
        found[0].losses,
        found[0].images,
    )


def _of_seed(
    run: Run,
    splits: Sequence[str],
    model: Model,
    corpus: Corpus,
    columns: NDArray[np.bool_],
    first: _OfSeed | None,
    notes: list[str],
) -> _OfSeed:
    """Ask one model; images are shown of the ``first`` run alone."""
    from sim.outcome import scores_of

    asked = {split: scores_of(run.path, split, model) for split in splits}
    shown = asked[splits[0]]
    apart = _unannotated(run, shown.label_names)
    if apart.any():
        notes.append(
            f"{run.name}: {int(apart.sum())} of {len(apart)} labels, which nobody annotates, are left out here."
        )
    of = {split: _columns(found, apart, columns) for split, found in asked.items()}
    scores, labels = of[splits[0]]
    threshold = run.experiment.threshold
    losses = image_losses(scores, labels)
    return _OfSeed(
        run,
        reliability(scores, labels),
        [reliability(scores[:, label], labels[:, label]) for label in range(scores.shape[1])],
        thresholds(of["val"], of["test"], threshold) if len(of) > 1 else None,
        pair_errors(scores, labels, threshold, first.pairs.labels if first is not None else None),
        losses,
        () if first is not None else hard_images(corpus, _without(shown, apart), losses, threshold),
    )


def _unannotated(run: Run, names: Sequence[str]) -> NDArray[np.bool_]:
    """Labels that nobody annotates in a run: no number counts them with the others (docs/metrics.md)."""
    return unannotated_columns(tuple(names), run.data.get("unannotated_labels"))


def _columns(
    found: Scores, apart: NDArray[np.bool_], columns: NDArray[np.bool_]
) -> tuple[NDArray[np.floating], NDArray[np.int8]]:
    """Scores and labels by the columns of all seeds; what this run leaves out is unknown, which counts nowhere."""
    return found.scores[:, columns], np.where(apart, np.int8(UNKNOWN), found.labels)[:, columns]


def _without(found: Scores, apart: NDArray[np.bool_]) -> Scores:
    names = tuple(name for name, out in zip(found.label_names, apart, strict=True) if not out)
    return replace(found, label_names=names, scores=found.scores[:, ~apart], labels=found.labels[:, ~apart])
