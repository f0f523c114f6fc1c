"""What a partition and a regime achieved, in numbers: sizes, skew, annotations, wrong labels.

``tally`` counts while a federation is built, the only moment at which the truth
is at hand; the counts are stored with the federation and never reach a client.
``summarise`` turns them into tables: one row per client, one row per label, and
a summary that fits on a screen.

Definitions, all over training images and, where "true", over the data set's own labels:

- *native*: an entry is natively known if the data set's own labels say present or absent. Many
  data sets leave entries open; nothing is said of these, so no share of positives runs over them.
- *prevalence* of a label: its true positives over its natively known entries.
- *cardinality* of a client: mean number of true present labels per image. Where entries are
  natively unknown it is a lower bound of what is in the images.
- *marginal* of a client: its positives per label, divided by their sum. Its
  Jensen-Shannon distance to the marginal of all clients together is the square
  root of the Jensen-Shannon divergence in bits (base 2), so 0 to 1; once over true
  positives (the skew of the partition), once over known ones (what the client sees).
- *pairwise Jensen-Shannon distance*: the same between the marginals of two clients,
  mean over all pairs of clients, or over ``PAIRS`` random pairs where there are more.
- *phi distance* of a client: mean over pairs of labels of |phi_k - phi|, where phi
  is the correlation of two labels over the images on which both are natively known.
  It shows a skew of co-occurrence that the marginals hide. Pairs that are constant
  at the client or overall are left out; so are all but the ``PHI_LABELS`` labels
  with the most positives. *phi Frobenius* is the Frobenius norm of phi_k - phi over the
  same pairs, each counted twice as in the matrix; it grows with their number, *phi pairs*.
- *empty* images: without a true present label, whatever is natively unknown of them.
- *Gini* coefficient of client sizes: 0 where all are equal, near 1 where one client has all.
- *checkable*: annotations of natively known entries; *wrong*: those of them that differ from the
  truth. What an annotator wrote where the data set knows nothing is neither right nor wrong.
- *budget*: how often an annotator looked at an entry (``fedmlic.regime``).

Both phi numbers of a client are noisy where it holds few images: compare them with those
of an IID partition into clients of the same size, not with 0.

A quantity that does not exist (the marginal of a client without positives) is NaN
in the tables, ``null`` in JSON, left out of quantiles and counted as ``undefined``.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fedmlic.labels import ABSENT, PRESENT, UNKNOWN, known
from fedmlic.seeds import stream

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pandas as pd
    from numpy.typing import NDArray

PHI_LABELS = 64
"""Most labels between which co-occurrence is compared."""

QUANTILES = {"min": 0.0, "p05": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "max": 1.0}
"""Quantiles of every per-client quantity in a summary."""

PAIRS = 20_000
"""Most pairs of clients whose marginals are compared; more are sampled, always alike."""

_CHUNK_ENTRIES = 1 << 24
_FLOAT_ENTRIES = 1 << 21


CELLS = ("known", "positives", "wrong", "budget", "true_positives", "true_known", "checkable")
"""What is counted per client and label."""


@dataclass(frozen=True)
class Tallies:
    """Counts over training images, per client and per client and label.

    Counts ``[clients, labels]`` are signed integers as narrow as the largest client allows
    (int64 tables of 50,000 clients x 1,628 labels would take 2.6 GB): sum them with
    ``dtype=np.int64`` and turn them into floats before they are multiplied.

    Attributes:
        images: int64 ``[clients]``.
        holdout_images: int64 ``[clients]``, held out of training.
        empty_images: int64 ``[clients]``, images without a label that is present in truth.
        known: integers ``[clients, labels]``, entries that are annotations.
        positives: integers ``[clients, labels]``, annotations that say present.
        checkable: integers ``[clients, labels]``, annotations whose truth is natively known.
        wrong: integers ``[clients, labels]``, annotations that differ from a natively known truth.
        true_known: integers ``[clients, labels]``, natively known entries.
        true_positives: integers ``[clients, labels]``, entries that are present in truth.
        budget: integers ``[clients, labels]``, looks at entries; one at each that is not
            unknown, unless the regime counts otherwise.
        phi_distance: float64 ``[clients]``, or NaN.
        phi_frobenius: float64 ``[clients]``, or NaN.
        phi_pairs: int64 ``[clients]``, pairs of labels that both phi numbers are over.
    """

    images: NDArray[np.int64]
    holdout_images: NDArray[np.int64]
    empty_images: NDArray[np.int64]
    known: NDArray[np.integer[Any]]
    positives: NDArray[np.integer[Any]]
    checkable: NDArray[np.integer[Any]]
    wrong: NDArray[np.integer[Any]]
    true_known: NDArray[np.integer[Any]]
    true_positives: NDArray[np.integer[Any]]
    budget: NDArray[np.integer[Any]]
    phi_distance: NDArray[np.float64]
    phi_frobenius: NDArray[np.float64]
    phi_pairs: NDArray[np.int64]


@dataclass(frozen=True)
class Statistics:
    """The report on one federation.

    Attributes:
        clients: one row per client: images, holdout_images, annotations, known_fraction,
            labels_annotated, positives, true_known, true_positives, checkable, wrong, budget,
            cardinality, empty_fraction, js_true, js_known, phi_distance, phi_frobenius, phi_pairs.
        labels: one row per label: true_known, true_positives, prevalence, annotations,
            known_fraction, positives, checkable, wrong, budget, clients_annotating, share of
            clients with zero positives (true and known).
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
    sizes = np.diff(client_ptr)
    narrow = np.promote_types(np.min_scalar_type(int(sizes.max(initial=0))), np.int8)
    counts: dict[str, NDArray[Any]] = {name: np.zeros((num_clients, num_labels), dtype=narrow) for name in CELLS}
    empty_images = np.zeros(num_clients, dtype=np.int64)
    for clients in _chunks(client_ptr, num_labels):
        images = slice(client_ptr[clients.start], client_ptr[clients.stop])
        starts = client_ptr[clients.start : clients.stop] - images.start
        for name, mask in _masks(truth[images], observed[images]):
            np.add.reduceat(mask, starts, axis=0, dtype=narrow, out=counts[name][clients])
        is_empty = ~(truth[images] == PRESENT).any(axis=1)
        empty_images[clients] = np.add.reduceat(is_empty, starts, dtype=np.int64)
    total = counts["true_positives"].sum(axis=0, dtype=np.int64)
    skew = _phi_skew(truth, client_ptr, total)
    return Tallies(sizes, holdout_images, empty_images, **counts, **skew)


def _chunks(client_ptr: NDArray[np.int64], num_labels: int) -> Iterator[slice]:
    """Runs of clients with about ``_CHUNK_ENTRIES`` entries, one client at least."""
    start, last = 0, len(client_ptr) - 1
    step = max(1, _CHUNK_ENTRIES // max(1, num_labels))
    while start < last:
        stop = max(start + 1, int(np.searchsorted(client_ptr, client_ptr[start] + step, side="right")) - 1)
        yield slice(start, stop)
        start = stop


def _masks(truth: NDArray[np.int8], observed: NDArray[np.int8]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """What is counted, one bool ``[images, labels]`` at a time."""
    is_known, native = known(observed), known(truth)
    checkable = is_known & native
    yield "known", is_known
    yield "checkable", checkable
    yield "wrong", checkable & (observed != truth)
    yield "true_known", native
    yield "positives", observed == PRESENT
    yield "true_positives", truth == PRESENT
    yield "budget", observed != UNKNOWN


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


def _phi_skew(
    truth: NDArray[np.int8], client_ptr: NDArray[np.int64], positives: NDArray[np.int64]
) -> dict[str, NDArray[Any]]:
    """Distances of each client's co-occurrence to that of all, by the names of their tallies."""
    compared = np.sort(np.argsort(-positives, kind="stable")[:PHI_LABELS])
    overall = np.zeros((3, len(compared), len(compared)))
    for chunk in _chunks(client_ptr, len(compared)):
        overall += _pair_counts(truth[client_ptr[chunk.start] : client_ptr[chunk.stop], compared])
    reference = _phi(overall)
    num_clients = len(client_ptr) - 1
    distance, frobenius = np.full(num_clients, np.nan), np.full(num_clients, np.nan)
    pairs = np.zeros(num_clients, dtype=np.int64)
    for chunk in _chunks(client_ptr, len(compared)):
        bounds = client_ptr[chunk.start : chunk.stop + 1]
        labels = truth[bounds[0] : bounds[-1], compared]
        bounds = bounds - bounds[0]
        varies = _both_occur(labels, bounds[:-1])
        for client in np.flatnonzero(varies.sum(axis=1) > 1):
            columns = np.flatnonzero(varies[client])
            here = labels[bounds[client] : bounds[client + 1], columns]
            upper = _upper(len(columns))
            gaps = phi(here)[upper] - reference[columns[upper[0]], columns[upper[1]]]
            gaps = gaps[~np.isnan(gaps)]
            place = chunk.start + client
            pairs[place] = len(gaps)
            if len(gaps):
                distance[place] = np.abs(gaps).mean()
                frobenius[place] = np.sqrt(2 * (gaps**2).sum())
    return {"phi_distance": distance, "phi_frobenius": frobenius, "phi_pairs": pairs}


@functools.cache
def _upper(num_labels: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The pairs of up to ``PHI_LABELS`` labels, once each."""
    first, second = np.triu_indices(num_labels, 1)
    return first, second


def _both_occur(labels: NDArray[np.int8], starts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Bool ``[clients, labels]``: present and absent both occur, without which a correlation does not exist."""
    present, absent = (np.logical_or.reduceat(labels == state, starts, axis=0) for state in (PRESENT, ABSENT))
    return np.asarray(present & absent)


def js_distances(counts: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """float64 ``[clients]``: Jensen-Shannon distance of each row's distribution to that of the column sums.

    Base 2, so 0 to 1. Rows are divided by their sum; a row without counts gives NaN.

    Args:
        counts: integers ``[clients, labels]``, not negative.

    Source: Endres and Schindelin, "A new metric for probability distributions" (2003).
    """
    total = counts.sum(axis=0, dtype=np.int64)
    step = max(1, _FLOAT_ENTRIES // max(1, counts.shape[1]))
    with np.errstate(invalid="ignore", divide="ignore"):
        reference = total / total.sum()
        parts = [_js(_marginals(counts[at : at + step]), reference) for at in range(0, len(counts), step)]
    return np.concatenate([np.empty(0), *parts])


def pairwise_js(counts: NDArray[np.integer[Any]]) -> dict[str, float | int | bool | None]:
    """Mean Jensen-Shannon distance between the marginals of two clients, over pairs of different clients.

    Args:
        counts: ``[clients, labels]``, not negative; clients without counts are left out.

    Returns:
        ``mean`` (``None`` where there is no pair), ``pairs`` and whether they were ``sampled``:
        up to ``PAIRS`` pairs all are taken, of more ``PAIRS`` are drawn uniformly, the same
        ones for the same number of clients.
    """
    clients = np.flatnonzero(counts.any(axis=1))
    num_pairs = len(clients) * (len(clients) - 1) // 2
    sampled = num_pairs > PAIRS
    if sampled:
        rng = stream(0, "statistics/pairs")
        first = rng.integers(len(clients), size=PAIRS)
        second = (first + rng.integers(1, len(clients), size=PAIRS)) % len(clients)
    else:
        first, second = np.triu_indices(len(clients), 1)
    if not len(first):
        return {"mean": None, "pairs": 0, "sampled": False}
    total, step = 0.0, max(1, _FLOAT_ENTRIES // max(1, counts.shape[1]))
    for at in range(0, len(first), step):
        rows = (_marginals(counts[clients[side[at : at + step]]]) for side in (first, second))
        total += float(_js(*rows).sum())
    return {"mean": total / len(first), "pairs": len(first), "sampled": sampled}


def gini(sizes: NDArray[np.int64]) -> float:
    """Gini coefficient of client sizes: half the mean difference of two clients, divided by the mean size.

    >>> gini(np.array([5, 5, 5])), gini(np.array([0, 0, 0, 8]))
    (0.0, 0.75)
    """
    ascending = np.sort(sizes).astype(np.float64)
    places = 2 * np.arange(1, len(sizes) + 1) - len(sizes) - 1
    return float((places * ascending).sum() / (len(sizes) * ascending.sum()))


def _marginals(counts: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    return np.asarray(counts / counts.sum(axis=1, keepdims=True, dtype=np.int64))


def _js(rows: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """float64 ``[rows]``: distance of each row to the one beside it, or of all to one."""
    middle = (rows + others) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        divergence = (_relative_entropy(rows, middle) + _relative_entropy(others, middle)) / 2
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
    import pandas as pd  # training does not need tables

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
            "true_known": tallies.true_known.sum(axis=1, dtype=np.int64),
            "true_positives": true_positives,
            "checkable": tallies.checkable.sum(axis=1, dtype=np.int64),
            "wrong": tallies.wrong.sum(axis=1, dtype=np.int64),
            "budget": tallies.budget.sum(axis=1, dtype=np.int64),
            "cardinality": true_positives / images,
            "empty_fraction": tallies.empty_images / images,
            "js_true": js_distances(tallies.true_positives),
            "js_known": js_distances(tallies.positives),
            "phi_distance": tallies.phi_distance,
            "phi_frobenius": tallies.phi_frobenius,
            "phi_pairs": tallies.phi_pairs,
        }
    )


def share_of(part: NDArray[np.integer[Any]], whole: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """``part / whole``, NaN for 0/0: a share of nothing does not exist."""
    out = np.full(np.broadcast_shapes(part.shape, whole.shape), np.nan)
    np.divide(part, whole, out=out, where=whole > 0)
    return out


def _label_table(tallies: Tallies, label_names: Sequence[str]) -> pd.DataFrame:
    import pandas as pd

    num_images = int(tallies.images.sum())
    true_positives = tallies.true_positives.sum(axis=0, dtype=np.int64)
    true_known = tallies.true_known.sum(axis=0, dtype=np.int64)
    annotations = tallies.known.sum(axis=0, dtype=np.int64)
    return pd.DataFrame(
        {
            "label": list(label_names),
            "true_known": true_known,
            "true_positives": true_positives,
            "prevalence": share_of(true_positives, true_known),
            "annotations": annotations,
            "known_fraction": annotations / num_images,
            "positives": tallies.positives.sum(axis=0, dtype=np.int64),
            "checkable": tallies.checkable.sum(axis=0, dtype=np.int64),
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
    wrong, checkable = int(clients["wrong"].sum()), int(clients["checkable"].sum())
    true_known, true_positives = int(clients["true_known"].sum()), int(clients["true_positives"].sum())
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
    skew = ("empty_fraction", "js_true", "js_known", "phi_distance", "phi_frobenius", "phi_pairs")
    return {
        "num_clients": num_clients,
        "num_labels": num_labels,
        "num_images": num_images,
        "num_holdout_images": int(tallies.holdout_images.sum()),
        "num_annotations": annotations,
        "known_fraction": annotations / max(num_images * num_labels, 1),
        "num_positives": int(clients["positives"].sum()),
        "num_true_known": true_known,
        "num_true_positives": true_positives,
        "prevalence": true_positives / true_known if true_known else None,
        "num_checkable": checkable,
        "num_wrong": wrong,
        "wrong_fraction": wrong / max(checkable, 1),
        "empty_fraction": int(tallies.empty_images.sum()) / max(num_images, 1),
        "size_gini": gini(tallies.images),
        "pairwise_js_true": pairwise_js(tallies.true_positives),
        "pairwise_js_known": pairwise_js(tallies.positives),
        "budget": int(clients["budget"].sum()),
        "clients_without_annotation": int((clients["annotations"] == 0).sum()),
        "labels_without_annotation": int((tallies.known.sum(axis=0, dtype=np.int64) == 0).sum()),
        "clients": {name: quantiles(clients[name].to_numpy()) for name in (*per_client, *skew)},
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
