"""What a user should hear of a federation before and after training, one sentence each."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedmlic import spec
from fedmlic.labels import PRESENT, known
from sim.data.prepare import (
    blank_splits,
    row_blocks,
    source_warnings,
    unannotated_warnings,
    untrained_labels,
    untrained_warnings,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from fedmlic.corpus import LabelStore
    from fedmlic.federation import Federation
    from fedmlic.statistics import Tallies


class Findings(NamedTuple):
    """What was found out.

    Attributes:
        warnings: sentences for the user.
        untrained: labels that no client knows a positive of, but test images have.
        unannotated: labels of which no client has a known entry on a training image.
        present_counts: for each label, training images of all clients that are annotated as having it.
    """

    warnings: list[str]
    untrained: list[str]
    unannotated: list[str]
    present_counts: list[int]


def examine(federation: Federation, method: str = "") -> Findings:
    """Look at a built federation: its source, its partition, its regime, its labels.

    Args:
        federation: what clients hold.
        method: what they are to be trained by, to say what it does with labels that nobody annotates;
            empty to leave that out.
    """
    corpus, tallies = federation.corpus, federation.tallies()
    trained = tallies.positives.sum(axis=0, dtype=np.int64)
    tested = _positives(corpus.labels, corpus.splits.get("test", range(0)))
    names, unannotated = federation.label_names, list(federation.unannotated_labels or ())
    held_out = {split: corpus.splits.get(split, range(0)) for split in ("val", "test")}
    present = {split: int(_positives(corpus.labels, rows).sum()) for split, rows in held_out.items()}
    warnings = [
        *source_warnings(corpus.manifest["report"]),
        *federation.manifest.get("warnings", ()),
        *(_hiding(federation, tallies) if corpus.own else []),
        *blank_splits({split: len(rows) for split, rows in held_out.items()}, present),
        *untrained_warnings(names, trained, tested, unannotated),
        *unannotated_warnings(names, unannotated),
        *(_guessed(method, len(unannotated)) if method and unannotated else []),
        *(_never_absent(names, tallies, method) if method else []),
    ]
    return Findings(warnings, untrained_labels(names, trained, tested), unannotated, trained.tolist())


def _guessed(method: str, num_labels: int) -> list[str]:
    """What a method makes of labels that nobody annotates, if it trains on them nevertheless."""
    guesses = spec.build("method", method).guesses
    if not guesses:
        return []
    text = (
        f"method {method} takes entries that nobody annotated as {guesses}: the {num_labels} labels that nobody "
        f"annotates are trained as {guesses} on every image, so mAP/unannotated is that of a guess, not of labels left "
        "alone. Use a method that leaves unknown entries out, such as bce or fedlgt"
    )
    return [text]


def _never_absent(names: Sequence[str], tallies: Tallies, method: str) -> list[str]:
    """A method that learns from annotations calls a label present everywhere if nobody ever said that it is absent."""
    made = spec.build("method", method)
    if made.guesses and not made.needs_absences:
        return []
    positives = tallies.positives.sum(axis=0, dtype=np.int64)
    only_present = np.flatnonzero((positives > 0) & (tallies.known.sum(axis=0, dtype=np.int64) == positives))
    if not len(only_present):
        return []
    shown = ", ".join(repr(names[place]) for place in only_present[:8]) + (", ..." if len(only_present) > 8 else "")
    how = (
        f"takes entries without annotation as {made.guesses}, which comes from annotated entries"
        if made.guesses
        else "learns from annotated entries alone"
    )
    line = (
        f"{len(only_present)} of {len(names)} labels are annotated as present and never as absent: {shown}. The method "
        f"{how}, so it learns to call these present in every image. Use a method that assumes something about entries "
        "without annotation and needs no absences, such as assume_negative or role ('fedmlic list method' names them), "
        "or a regime that keeps absences"
    )
    return [line]


def _positives(labels: LabelStore, rows: range) -> NDArray[np.int64]:
    counts = np.zeros(labels.num_labels, dtype=np.int64)
    for block in row_blocks(rows, labels.num_labels):
        counts += np.count_nonzero(labels.take(block) == PRESENT, axis=0)
    return counts


def _hiding(federation: Federation, tallies: Tallies) -> list[str]:
    """A regime at work on the user's own labels: how much of them it hides or changes."""
    rows, labels = federation.training.rows, federation.corpus.labels
    blocks = (np.asarray(rows[block]) for block in row_blocks(range(len(rows)), labels.num_labels))
    native = sum(int(known(labels.take(block)).sum(dtype=np.int64)) for block in blocks)
    hidden, wrong = native - int(tallies.known.sum(dtype=np.int64)), int(tallies.wrong.sum(dtype=np.int64))
    what = [f"hides {hidden:,} of {native:,} annotations"] * (hidden > 0)
    what += [f"changes {wrong:,} annotations"] * (wrong > 0)
    if not what:
        return []
    regime = federation.manifest["identity"]["regime"]
    return [
        f"regime {regime} {' and '.join(what)} of your own training images. regime='complete()' keeps all as they are"
    ]
