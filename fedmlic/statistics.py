"""What a partition and a regime achieved, in numbers: sizes, skew, annotations, wrong labels.

``tally`` counts while a federation is built, the only moment at which the truth
is at hand; the counts are stored with the federation and never reach a client.
``summarise`` turns them into tables: one row per client, one row per label, and
a summary that fits on a screen.

Definitions, all over training images and, where "true", over the data set's own labels:

- *cardinality* of a client: mean number of true present labels per image.
- *marginal* of a client: its positives per label, divided by their sum. Its
  Jensen-Shannon distance to the marginal of all clients together is the square
  root of the Jensen-Shannon divergence in bits (base 2), so 0 to 1; once over true
  positives (the skew of the partition), once over known ones (what the client sees).
- *phi distance* of a client: mean over pairs of labels of |phi_k - phi|, where phi
  is the correlation of two labels over the images on which both are natively known.
  It shows a skew of co-occurrence that the marginals hide. Pairs that are constant
  at the client or overall are left out; so are all but the ``PHI_LABELS`` labels
  with the most positives.
- *wrong*: known entries that differ from the truth.
- *budget*: how often an annotator looked at an entry (``fedmlic.regime``).

A quantity that does not exist (the marginal of a client without positives) is NaN
in the tables, ``null`` in JSON, left out of quantiles and counted as ``undefined``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fedmlic.labels import PRESENT, UNKNOWN, known

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pandas as pd
    from numpy.typing import NDArray

PHI_LABELS = 64
"""Most labels between which co-occurrence is compared."""

QUANTILES = {"min": 0.0, "p05": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "max": 1.0}
"""Quantiles of every per-client quantity in a summary."""

_CHUNK_ENTRIES = 1 << 24


@dataclass(frozen=True)
class Tallies:
    """Counts over training images, per client and per client and label.

    Attributes:
        images: int64 ``[clients]``.
        holdout_images: int64 ``[clients]``, held out of training.
        known: int32 ``[clients, labels]``, entries that are annotations.
        positives: int32 ``[clients, labels]``, annotations that say present.
        wrong: int32 ``[clients, labels]``, annotations that differ from the truth.
        true_positives: int32 ``[clients, labels]``, entries that are present in truth.
        budget: integers ``[clients, labels]``, looks at entries; one at each that is not
            unknown, unless the regime counts otherwise.
        phi_distance: float64 ``[clients]``, or NaN.
    """

    images: NDArray[np.int64]
    holdout_images: NDArray[np.int64]
    known: NDArray[np.integer[Any]]
    positives: NDArray[np.integer[Any]]
    wrong: NDArray[np.integer[Any]]
    true_positives: NDArray[np.integer[Any]]
    budget: NDArray[np.integer[Any]]
    phi_distance: NDArray[np.float64]


@dataclass(frozen=True)
class Statistics:
    """The report on one federation.

    Attributes:
        clients: one row per client: images, holdout_images, annotations, known_fraction,
            labels_annotated, positives, true_positives, wrong, budget, cardinality, js_true,
            js_known, phi_distance.
        labels: one row per label: true_positives, prevalence, annotations, known_fraction,
            positives, wrong, budget, clients_annotating, share of clients with zero positives
            (true and known).
        summary: counts and quantiles; JSON values only.
    """

    clients: pd.DataFrame
    labels: pd.DataFrame
    summary: dict[str, Any]

    def to_json(self, max_clients: int = 1000) -> dict[str, Any]:
        """JSON values; the rows of the clients are left out where there are more than ``max_clients``."""
        out = {"summary": self.summary, "labels": _records(self.labels)}
        if len(self.clients) <= max_clients:
            out["clients"] = _records(self.clients)
        return out


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    columns = {name: [_plain(value) for value in table[name].tolist()] for name in table.columns}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _plain(value: Any) -> Any:  # noqa: ANN401  (any JSON value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def tally(
    truth: NDArray[np.int8],
    observed: NDArray[np.int8],
    client_ptr: NDArray[np.int64],
    holdout_images: NDArray[np.int64],
) -> Tallies:
    """Count what every client holds and sees.

    Args:
        truth: int8 ``[images, labels]``, training images client after client.
        observed: int8 ``[images, labels]``, the same entries as annotated.
        client_ptr: int64 ``[clients + 1]``; client k owns images ``client_ptr[k]`` to
            ``client_ptr[k + 1]``. No client is empty.
        holdout_images: int64 ``[clients]``.
    """
    num_clients, num_labels = len(client_ptr) - 1, truth.shape[1]
    counts: dict[str, NDArray[np.integer[Any]]] = {
        name: np.zeros((num_clients, num_labels), dtype=np.int32)
        for name in ("known", "positives", "wrong", "true_positives", "budget")
    }
    for clients in _chunks(client_ptr, num_labels):
        images = slice(client_ptr[clients.start], client_ptr[clients.stop])
        starts = client_ptr[clients.start : clients.stop] - client_ptr[clients.start]
        for name, mask in _masks(truth[images], observed[images]).items():
            counts[name][clients] = np.add.reduceat(mask, starts, axis=0, dtype=np.int32)
    phi_distance = _phi_distances(truth, client_ptr, counts["true_positives"].sum(axis=0, dtype=np.int64))
    return Tallies(np.diff(client_ptr), holdout_images, **counts, phi_distance=phi_distance)


def _chunks(client_ptr: NDArray[np.int64], num_labels: int) -> Iterator[slice]:
    """Runs of clients with about ``_CHUNK_ENTRIES`` entries, one client at least."""
    start, last = 0, len(client_ptr) - 1
    step = max(1, _CHUNK_ENTRIES // max(1, num_labels))
    while start < last:
        stop = max(start + 1, int(np.searchsorted(client_ptr, client_ptr[start] + step, side="right")) - 1)
        yield slice(start, stop)
        start = stop


def _masks(truth: NDArray[np.int8], observed: NDArray[np.int8]) -> dict[str, NDArray[np.bool_]]:
    is_known = known(observed)
    return {
        "known": is_known,
        "positives": observed == PRESENT,
        "wrong": is_known & (observed != truth),
        "true_positives": truth == PRESENT,
        "budget": observed != UNKNOWN,
    }


def phi(labels: NDArray[np.int8]) -> NDArray[np.float64]:
    """float64 ``[labels, labels]``: correlation of presence, over images on which both labels are known.

    NaN where a label is constant on those images.

    >>> phi(np.array([[1, 1], [1, 1], [0, 0], [0, 1]], dtype=np.int8))[0, 1].round(3)
    np.float64(0.577)
    """
    return _phi(_pair_counts(labels))


def _pair_counts(labels: NDArray[np.int8]) -> NDArray[np.float64]:
    """float64 ``[3, labels, labels]``: both known; a present and b known; both present."""
    present = (labels == PRESENT).astype(np.float64)
    is_known = known(labels).astype(np.float64)
    return np.stack([is_known.T @ is_known, present.T @ is_known, present.T @ present])


def _phi(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    num, first, both = counts
    second = first.T
    variances = (first * (num - first)) * (second * (num - second))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(variances > 0, (num * both - first * second) / np.sqrt(variances), np.nan)


def _phi_distances(
    truth: NDArray[np.int8], client_ptr: NDArray[np.int64], positives: NDArray[np.int64]
) -> NDArray[np.float64]:
    compared = np.sort(np.argsort(-positives, kind="stable")[:PHI_LABELS])
    labels = truth[:, compared]
    overall = np.zeros((3, len(compared), len(compared)))
    for chunk in _chunks(client_ptr, len(compared)):
        overall += _pair_counts(labels[client_ptr[chunk.start] : client_ptr[chunk.stop]])
    pairs = np.triu_indices(len(compared), 1)
    reference = _phi(overall)[pairs]
    out = np.full(len(client_ptr) - 1, np.nan)
    for client, (start, stop) in enumerate(zip(client_ptr[:-1].tolist(), client_ptr[1:].tolist(), strict=True)):
        gaps = np.abs(phi(labels[start:stop])[pairs] - reference)
        defined = gaps[~np.isnan(gaps)]
        if len(defined):
            out[client] = defined.mean()
    return out


def js_distances(counts: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """float64 ``[clients]``: Jensen-Shannon distance of each row's distribution to that of the column sums.

    Base 2, so 0 to 1. Rows are divided by their sum; a row without counts gives NaN.

    Args:
        counts: integers ``[clients, labels]``, not negative.

    Source: Endres and Schindelin, "A new metric for probability distributions" (2003).
    """
    total = counts.sum(axis=0, dtype=np.int64)
    step = max(1, _CHUNK_ENTRIES // max(1, counts.shape[1]))
    with np.errstate(invalid="ignore", divide="ignore"):
        reference = total / total.sum()
        parts = [_js_distances(counts[start : start + step], reference) for start in range(0, len(counts), step)]
    return np.concatenate([np.empty(0), *parts])


def _js_distances(counts: NDArray[np.integer[Any]], reference: NDArray[np.float64]) -> NDArray[np.float64]:
    rows = counts / counts.sum(axis=1, keepdims=True, dtype=np.int64)
    reference = np.broadcast_to(reference, rows.shape)
    middle = (rows + reference) / 2
    divergence = (_relative_entropy(rows, middle) + _relative_entropy(reference, middle)) / 2
    # Rounding can push the divergence of equal distributions below zero.
    return np.sqrt(np.clip(divergence, 0, 1))


def _relative_entropy(p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
    terms: NDArray[np.float64] = np.where(p == 0, 0.0, p * np.log2(p / q))
    return np.asarray(terms.sum(axis=1))


def summarise(tallies: Tallies, label_names: Sequence[str]) -> Statistics:
    """The tables of a federation with ``label_names`` columns."""
    clients = _client_table(tallies)
    return Statistics(clients, _label_table(tallies, label_names), _summary(tallies, clients))


def _client_table(tallies: Tallies) -> pd.DataFrame:
    import pandas as pd  # noqa: PLC0415  (training does not need tables)

    images, num_labels = tallies.images, tallies.known.shape[1]
    annotations = tallies.known.sum(axis=1, dtype=np.int64)
    true_positives = tallies.true_positives.sum(axis=1, dtype=np.int64)
    return pd.DataFrame(
        {
            "client": np.arange(len(images)),
            "images": images,
            "holdout_images": tallies.holdout_images,
            "annotations": annotations,
            "known_fraction": annotations / np.maximum(images * num_labels, 1),
            "labels_annotated": (tallies.known > 0).sum(axis=1),
            "positives": tallies.positives.sum(axis=1, dtype=np.int64),
            "true_positives": true_positives,
            "wrong": tallies.wrong.sum(axis=1, dtype=np.int64),
            "budget": tallies.budget.sum(axis=1, dtype=np.int64),
            "cardinality": true_positives / images,
            "js_true": js_distances(tallies.true_positives),
            "js_known": js_distances(tallies.positives),
            "phi_distance": tallies.phi_distance,
        }
    )


def _label_table(tallies: Tallies, label_names: Sequence[str]) -> pd.DataFrame:
    import pandas as pd  # noqa: PLC0415

    num_images = int(tallies.images.sum())
    true_positives = tallies.true_positives.sum(axis=0, dtype=np.int64)
    annotations = tallies.known.sum(axis=0, dtype=np.int64)
    return pd.DataFrame(
        {
            "label": list(label_names),
            "true_positives": true_positives,
            "prevalence": true_positives / num_images,
            "annotations": annotations,
            "known_fraction": annotations / num_images,
            "positives": tallies.positives.sum(axis=0, dtype=np.int64),
            "wrong": tallies.wrong.sum(axis=0, dtype=np.int64),
            "budget": tallies.budget.sum(axis=0, dtype=np.int64),
            "clients_annotating": (tallies.known > 0).sum(axis=0),
            "zero_true_positives_fraction": (tallies.true_positives == 0).mean(axis=0),
            "zero_positives_fraction": (tallies.positives == 0).mean(axis=0),
        }
    )


def _summary(tallies: Tallies, clients: pd.DataFrame) -> dict[str, Any]:
    num_clients, num_labels = tallies.known.shape
    num_images, annotations = int(tallies.images.sum()), int(clients["annotations"].sum())
    wrong = int(clients["wrong"].sum())
    per_client = (
        "images",
        "annotations",
        "known_fraction",
        "labels_annotated",
        "positives",
        "wrong",
        "budget",
        "cardinality",
    )
    distances = ("js_true", "js_known", "phi_distance")
    return {
        "num_clients": num_clients,
        "num_labels": num_labels,
        "num_images": num_images,
        "num_holdout_images": int(tallies.holdout_images.sum()),
        "num_annotations": annotations,
        "known_fraction": annotations / max(num_images * num_labels, 1),
        "num_positives": int(clients["positives"].sum()),
        "num_true_positives": int(clients["true_positives"].sum()),
        "num_wrong": wrong,
        "wrong_fraction": wrong / max(annotations, 1),
        "budget": int(clients["budget"].sum()),
        "clients_without_annotation": int((clients["annotations"] == 0).sum()),
        "labels_without_annotation": int((tallies.known.sum(axis=0, dtype=np.int64) == 0).sum()),
        "clients": {name: quantiles(clients[name].to_numpy()) for name in (*per_client, *distances)},
    }


def quantiles(values: NDArray[Any]) -> dict[str, float | int | None]:
    """Mean and ``QUANTILES`` of the values that exist, and how many do not (``undefined``)."""
    values = np.asarray(values, dtype=np.float64)
    defined = values[~np.isnan(values)]
    undefined = len(values) - len(defined)
    if not len(defined):
        return {"mean": None, **dict.fromkeys(QUANTILES), "undefined": undefined}
    found = np.quantile(defined, list(QUANTILES.values())).tolist()
    return {"mean": float(defined.mean()), **dict(zip(QUANTILES, found, strict=True)), "undefined": undefined}
