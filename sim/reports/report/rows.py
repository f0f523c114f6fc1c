"""Runs that differ in nothing but the seed are one row; its numbers are means over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fedmlic.evaluation import SIDES
from fedmlic.metrics import spread as metrics_spread
from sim.comparison.fixed import fixed_in
from sim.comparison.named import named_axes, named_parts
from sim.comparison.read import LOCAL, MODELS, PERSONAL
from sim.comparison.same_data import check_same_data, unlike

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sim.reports.report.read import LabelHistory, Run

Model = Literal["best", "last"]

MODELS_OF_A_RUN: tuple[Model, ...] = ("best", "last")

MAX_POINTS = 160
"""Most points of a curve in the page; the tables hold all."""


@dataclass(frozen=True)
class Row:
    """Runs with equal settings but the seed.

    Attributes:
        label: for people: names of tables of a study, and the settings in which rows differ.
        reference: which reference of a study it is; empty for none.
        runs: by seed, then client.
    """

    label: str
    reference: str
    runs: Sequence[Run]

    @property
    def seeds(self) -> list[int]:
        """Of its runs, each once."""
        return sorted({run.seed for run in self.runs})

    @property
    def first(self) -> Run:
        """The run that stands for the row where one model is looked at: of the lowest seed that has a checkpoint."""
        return next((run for run in self.runs if run.checkpoints and run.status == "complete"), self.runs[0])

    @property
    def asked(self) -> list[Run]:
        """The runs whose models are looked at over seeds: a complete one with a checkpoint a seed, or ``first``."""
        found = {run.seed: run for run in reversed(self.runs) if run.checkpoints and run.status == "complete"}
        return [found[seed] for seed in sorted(found)] or [self.first]

    def values(self, metric: str, model: Model) -> dict[int, float]:
        """A metric of the chosen model by seed, mean over clients of a local-only row; NaN left out."""
        by_seed: dict[int, list[float]] = {}
        for run in self.runs:
            by_seed.setdefault(run.seed, []).append(run.metric(metric, run.round_of(model)))
        found = {seed: statistics.fmean(values) for seed, values in sorted(by_seed.items())}
        return {seed: value for seed, value in found.items() if not math.isnan(value)}

    def over_clients(self, metric: str, model: Model = "last") -> dict[int, float]:
        """A number over clients one by one, by seed; of a local-only row over its runs.

        It is of the model after the last round; where clients keep tensors of their own, of the chosen model.
        """
        if self.reference != LOCAL:
            return self.values(metric, model if any(run.is_personal for run in self.runs) else "last")
        by_seed: dict[int, list[float]] = {}
        for run in self.runs:
            value = run.metric("client/mAP/mean", run.last_round)
            by_seed.setdefault(run.seed, []).extend([] if math.isnan(value) else [value])
        name = metric.rpartition("/")[2]
        if name not in {"mean", "worst", "std", "p10"}:
            return self.values(metric, "last")
        return {seed: metrics_spread(values)[name] for seed, values in sorted(by_seed.items()) if values}


@dataclass(frozen=True)
class Curve:
    """A number over rounds, over the seeds of a row.

    Attributes:
        rounds: int64 ``[points]``, ascending.
        mean, low, high: float64 ``[points]``: mean, lowest and highest over seeds.
        num_seeds: int64 ``[points]``, that have the round.
    """

    rounds: NDArray[np.int64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    num_seeds: NDArray[np.int64]


def rows_of(runs: Sequence[Run]) -> list[Row]:
    """Runs in rows, in the order in which they were found, references last.

    Raises:
        InputError: runs with numbers, whose settings ask for the same data, were given others.
    """
    check_same_data(run for run in runs if run.rounds)
    found: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        left_out = {"seed", *run.searched, *({"single-client"} if run.reference == LOCAL else ())}
        rest = tuple((name, str(value)) for name, value in run.settings.items() if name not in left_out)
        found.setdefault((run.reference, rest), []).append(run)
    ordered = sorted(found.values(), key=lambda each: bool(each[0].reference))
    varying = differing([each[0] for each in ordered if not each[0].reference] or [each[0] for each in ordered])
    axes = named_axes(runs, varying, varying)
    labels = [_label(each[0], varying, axes) for each in ordered]
    for place, label in enumerate(labels):
        if labels.count(label) > 1:  # rows that differ in what is not named: the folder tells them apart
            labels[place] = f"{label} ({ordered[place][0].name})"
    return [
        Row(label, each[0].reference, sorted(each, key=lambda run: run.seed))
        for label, each in zip(labels, ordered, strict=True)
    ]


def of_other_data(runs: Sequence[Run]) -> list[str]:
    """A sentence on each run without a round that was given other data than one whose settings ask for the same."""
    pairs = [pair[:2] for pair in unlike(sorted(runs, key=lambda run: not run.rounds))]
    found = dict.fromkeys((other if one.rounds else one).name for one, other in pairs)
    return [
        f"{name} has completed no round, and was given other images or labels than runs that ask for the same."
        for name in found
    ]


def differing(runs: Sequence[Run]) -> list[str]:
    """Settings but the seed in which runs differ, in the order of an experiment."""
    if not runs:
        return []
    first = runs[0].settings
    searched = frozenset[str]().union(*(run.searched for run in runs))
    names = [name for name in first if name != "seed" and name not in searched]
    return [name for name in names if any(run.settings[name] != first[name] for run in runs)]


def written(run: Run, key: str) -> str:
    """A setting as it was written, without empty brackets."""
    return str(getattr(run.experiment, key.replace("-", "_"))).replace("()", "")


def _label(run: Run, varying: Sequence[str], axes: Mapping[str, frozenset[str]]) -> str:
    parts, covered = named_parts(run, varying, axes)
    for key in varying:
        value = written(run, key)
        if key in covered | fixed_in(run.reference):
            continue
        entry = key in {"dataset", "partition", "regime", "model", "method", "strategy", "inference"}
        parts.append(value if entry else f"{key} {value or 'none'}")
    return ", ".join([*[run.reference] * bool(run.reference), *parts]) or written(run, "method")


def curve(row: Row, metric: str) -> Curve | None:
    """A number of ``rounds.parquet`` or ``evaluations.parquet`` over rounds; ``None`` where no run has it."""
    by_round: dict[int, dict[int, list[float]]] = {}
    for run in row.runs:
        for number, value in _series(run, metric):
            by_round.setdefault(number, {}).setdefault(run.seed, []).append(value)
    return _mean_of_seeds(by_round)


def _mean_of_seeds(by_round: Mapping[int, Mapping[int, Sequence[float]]]) -> Curve | None:
    """A curve of values by round and seed; several of one seed, of a local-only row's clients, count by their mean."""
    return _over_seeds({number: [statistics.fmean(v) for v in seeds.values()] for number, seeds in by_round.items()})


def _series(run: Run, metric: str) -> list[tuple[int, float]]:
    if metric == "round-seconds":  # the record's seconds are cumulative
        seconds = [0.0, *(float(event["seconds"]) for event in run.rounds)]
        return [
            (int(e["round"]), after - before)
            for e, before, after in zip(run.rounds, seconds, seconds[1:], strict=False)
        ]
    events = run.evaluations if metric.startswith("client/") else run.rounds
    return [(int(e["round"]), float(e[metric])) for e in events if e.get(metric) is not None and _is_number(e[metric])]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _over_seeds(by_round: Mapping[int, Sequence[float]]) -> Curve | None:
    if not by_round:
        return None
    rounds = sorted(by_round)
    values = [np.asarray(by_round[number], dtype=np.float64) for number in rounds]
    return Curve(
        np.array(rounds, dtype=np.int64),
        np.array([each.mean() for each in values]),
        np.array([each.min() for each in values]),
        np.array([each.max() for each in values]),
        np.array([len(each) for each in values], dtype=np.int64),
    )


def thinned(found: Curve, most: int = MAX_POINTS) -> Curve:
    """At most ``most`` points of a curve: in each stretch those where the mean, the low or the high is extreme.

    First and last point stay, so the drawn range is that of all points.
    """
    count = len(found.rounds)
    if count <= most:
        return found
    kept = {0, count - 1}
    for stretch in np.array_split(np.arange(count), max(1, (most - 2) // 4)):
        kept |= {
            int(stretch[np.argmin(found.mean[stretch])]),
            int(stretch[np.argmax(found.mean[stretch])]),
            int(stretch[np.argmin(found.low[stretch])]),
            int(stretch[np.argmax(found.high[stretch])]),
        }
    places = np.array(sorted(kept))
    return Curve(*(values[places] for values in (found.rounds, found.mean, found.low, found.high, found.num_seeds)))


def model_in_words(run: Run, model: Model) -> str:
    """Which model of a run the numbers of its record are of, with its round.

    >>> from types import SimpleNamespace
    >>> model_in_words(SimpleNamespace(is_personal=False, best_round=7, last_round=9), "best")
    'best on validation (round 7)'
    >>> model_in_words(SimpleNamespace(is_personal=False, best_round=0, last_round=0), "best")
    'as it begins (round 0)'
    """
    if run.is_personal:
        return f"{PERSONAL} (round {run.round_of(model)})"
    if model == "best" and run.best_round:
        return f"{MODELS['best']} (round {run.best_round})"
    if run.last_round == 0:
        return "as it begins (round 0)"
    why = ", since no validation images choose one" if model == "best" else ""
    return f"{MODELS['last']} (round {run.last_round}){why}"


def asked_in_words(run: Run, model: Model) -> str:
    """Which model of a run is asked for scores: that of a checkpoint, which may be older than the record's end."""
    number = run.asked_round(model)
    if number and run.is_personal:
        return f"{PERSONAL} (round {number})"
    if not number or (model == "best" and number == run.kept_best == run.best_round):
        return model_in_words(run, model)
    if model == "best" and number == run.kept_best:
        return f"{MODELS['best']} (round {number})"
    if number == run.last_round:
        return model_in_words(run, "last" if run.best_round else model)
    return f"of the last checkpoint (round {number})"


def all_asked_in_words(runs: Sequence[Run], model: Model) -> str:
    """Which models of several runs are asked for scores."""
    if len(runs) == 1:
        return asked_in_words(runs[0], model)
    kinds = dict.fromkeys(asked_in_words(run, model).split(" (")[0] for run in runs)
    rounds = sorted({run.asked_round(model) for run in runs})
    span = f"rounds {rounds[0]} to {rounds[-1]}" if len(rounds) > 1 else f"round {rounds[0]}"
    return f"{' or '.join(kinds)} ({span})"


@dataclass(frozen=True)
class LabelTable:
    """Numbers per label of a row's chosen models on one split, over seeds.

    Attributes:
        names: of the labels.
        split: ``test`` or ``val``.
        ap: float64 ``[seeds, labels]``, of a local-only row the mean over its clients; NaN also at a seed where nobody
            annotates a label that is annotated at another.
        prevalence: float64 ``[labels]``, mean over seeds.
        num_present, num_known: int64 ``[labels]`` of the first seed.
        annotated: bool ``[labels]``, at any seed; the AP of other labels is over all seeds.
    """

    names: tuple[str, ...]
    split: str
    ap: NDArray[np.float64]
    prevalence: NDArray[np.float64]
    num_present: NDArray[np.int64]
    num_known: NDArray[np.int64]
    annotated: NDArray[np.bool_]

    @property
    def mean(self) -> NDArray[np.float64]:
        """float64 ``[labels]``: mean of AP over the seeds where it exists."""
        return nan_mean(self.ap)

    @property
    def std(self) -> NDArray[np.float64]:
        """float64 ``[labels]``: standard deviation of AP over the seeds where it exists; NaN for one seed."""
        return nan_std(self.ap)


def nan_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the first axis of what is not NaN; NaN where nothing is."""
    there = ~np.isnan(values)
    count = there.sum(axis=0)
    total = np.where(there, values, 0.0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def nan_std(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard deviation (of a sample) over the first axis of what is not NaN; NaN for fewer than two values."""
    there = ~np.isnan(values)
    count = there.sum(axis=0)
    apart = np.where(there, values - nan_mean(values), 0.0)
    return np.where(count > 1, np.sqrt((apart**2).sum(axis=0) / np.maximum(count - 1, 1)), np.nan)


def label_table(row: Row, model: Model, split: str = "test") -> LabelTable | None:
    """Per label of a row's chosen models; ``None`` where no run was evaluated there at that round."""
    found: list[tuple[LabelHistory, int]] = []
    seeds: list[int] = []
    for run in row.runs:
        history = run.labels.get(split)
        place = None if history is None else history.at(run.round_of(model))
        if history is not None and place is not None and (not found or found[0][0].names == history.names):
            found.append((history, place))
            seeds.append(run.seed)
    if not found:
        return None
    first = found[0][0]
    counted = _counted([history for history, _ in found])
    ap = np.where(counted, np.stack([history.ap[place] for history, place in found]), np.nan)
    return LabelTable(
        first.names,
        split,
        np.stack([nan_mean(ap[np.array(seeds) == seed]) for seed in dict.fromkeys(seeds)]),
        nan_mean(np.stack([history.prevalence for history, _ in found])),
        first.num_present,
        first.num_known,
        np.any([history.annotated for history, _ in found], axis=0),
    )


def _counted(histories: Sequence[LabelHistory]) -> NDArray[np.bool_]:
    """Bool ``[histories, labels]``: whether a run counts for a label: it annotates it, or no run does."""
    annotated = np.stack([history.annotated for history in histories])
    return annotated | ~annotated.any(axis=0)


def label_curves(row: Row, split: str, labels: Sequence[int]) -> dict[int, Curve]:
    """Average precision over rounds of some labels, over the seeds of a row."""
    runs = [run for run in row.runs if split in run.labels]
    runs = [run for run in runs if run.labels[split].names == runs[0].labels[split].names]
    if not runs:
        return {}
    counted = _counted([run.labels[split] for run in runs])
    found = {}
    for label in labels:
        by_round: dict[int, dict[int, list[float]]] = {}
        for run in (each for each, counts in zip(runs, counted[:, label], strict=True) if counts):
            history = run.labels[split]
            for number, value in zip(history.rounds.tolist(), history.ap[:, label].tolist(), strict=True):
                if not math.isnan(value):
                    by_round.setdefault(number, {}).setdefault(run.seed, []).append(value)
        made = _mean_of_seeds(by_round)
        if made is not None:
            found[label] = made
    return found


def headline(rows: Sequence[Row]) -> str:
    """The metric by which rows are shown first: test mAP; else validation; else clients' own."""
    own = [row for row in rows if not row.reference] or list(rows)
    for name in (f"{SIDES['test']}/mAP", f"{SIDES['val']}/mAP", "client/mAP/mean", "client/mAP"):
        if any(row.values(name, model) for row in own for model in MODELS_OF_A_RUN):
            return name
    return ""
