"""The images that a model gets most wrong, small enough for a page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from fedmlic.labels import ABSENT, PRESENT, known
from sim.reports.report.scores import hardest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedmlic.corpus import Corpus
    from sim.outcome import Scores

MOST = 12
"""Images that are shown of a model."""

SIDE = 160
"""Longest side of an image in the page, pixels; smaller ones are enlarged by the browser."""

QUALITY = 72

MAX_ENTRIES = 8
"""Most labels that are written below an image."""

Kind = Literal["missed", "wrong", "found", "unknown"]


@dataclass(frozen=True)
class Entry:
    """One label of an image.

    Attributes:
        label: its name.
        kind: ``missed`` (present, not predicted), ``wrong`` (absent, predicted), ``found`` (present and
            predicted), ``unknown`` (nobody knows; predicted).
        score: probability.
    """

    label: str
    kind: Kind
    score: float


@dataclass(frozen=True)
class HardImage:
    """One image with what is known of it.

    Attributes:
        name: its id in the data set.
        loss: mean binary cross-entropy over its known labels.
        num_known: how many labels are known.
        num_unknown: how many are not.
        entries: labels, the worst first.
        num_more: entries that are left out.
        picture: a data URI.
        shape: height and width of the stored image.
        boxes: ``(x, y, width, height, label, kind)`` of its objects, in pixels of the stored image.
    """

    name: str
    loss: float
    num_known: int
    num_unknown: int
    entries: tuple[Entry, ...]
    num_more: int
    picture: str
    shape: tuple[int, int]
    boxes: tuple[tuple[float, float, float, float, str, str], ...]


def hard_images(
    corpus: Corpus, found: Scores, losses: NDArray[np.float64], threshold: float, most: int = MOST
) -> list[HardImage]:
    """The images with the highest loss, highest first."""
    places = hardest(losses, most)
    rows = found.rows[places]
    pixels = corpus.images.take(rows) if len(rows) else ()
    made = []
    for place, row, image in zip(places.tolist(), rows.tolist(), pixels, strict=True):
        states, scores = found.labels[place], found.scores[place]
        entries = entries_of(found.label_names, states, scores, threshold)
        kinds = {entry.label: entry.kind for entry in entries}
        made.append(
            HardImage(
                corpus.image_ids[row],
                float(losses[place]),
                int(known(states).sum()),
                int((~known(states)).sum()),
                tuple(entries[:MAX_ENTRIES]),
                max(0, len(entries) - MAX_ENTRIES),
                data_uri(image),
                image.shape[:2],
                _boxes(corpus, row, kinds),
            )
        )
    return made


def entries_of(
    names: tuple[str, ...], states: NDArray[np.int8], scores: NDArray[np.floating], threshold: float
) -> list[Entry]:
    """Labels that are present or predicted, in the order of how wrong they are; an unknown one is never wrong."""
    predicted = scores >= threshold
    wrong: list[tuple[float, Entry]] = []
    for label in np.flatnonzero((states == PRESENT) | predicted).tolist():
        score, state = float(scores[label]), int(states[label])
        kind: Kind = "unknown"
        if state == PRESENT:
            kind = "found" if predicted[label] else "missed"
        elif state == ABSENT:
            kind = "wrong"
        badness = {"missed": 2 - score, "wrong": 1 + score, "found": 0.5 - score / 4, "unknown": score / 8}[kind]
        wrong.append((badness, Entry(names[label], kind, score)))
    return [entry for _, entry in sorted(wrong, key=lambda each: -each[0])]


def data_uri(image: NDArray[np.uint8]) -> str:
    """A stored image as a small JPEG in an address."""
    from PIL import Image

    made = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    made.thumbnail((SIDE, SIDE))
    held = io.BytesIO()
    made.save(held, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(held.getvalue()).decode()


def _boxes(corpus: Corpus, row: int, kinds: dict[str, Kind]) -> tuple[tuple[float, float, float, float, str, str], ...]:
    if corpus.objects is None:
        return ()
    start, stop = np.searchsorted(corpus.objects.row, [row, row + 1])
    found = []
    for place in range(int(start), int(stop)):
        x, y, width, height = (float(v) for v in corpus.objects.box[place])
        name = corpus.label_names[int(corpus.objects.label[place])]
        if width > 0 and height > 0:
            found.append((x, y, width, height, name, kinds.get(name, "unknown")))
    return tuple(found)
