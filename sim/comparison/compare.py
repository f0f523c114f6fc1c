"""Rows from runs: which runs belong together, which may be paired, and what came out.

A row is the runs with equal values of the compared settings; its units are seeds. Where further settings vary in
the same way in all rows (an axis of a study that is not compared), a seed's value is the mean over them. Runs that
differ in anything else are not paired: the comparison stops and names it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedmlic.errors import InputError, nearest
from fedmlic.record import is_run, open_run, read_json
from fedmlic.resolved import resolved
from sim.comparison.fixed import fixed_in
from sim.comparison.named import ALONE, HasStudy, OfStudy, compared_by, named_axes, named_parts, rows_in
from sim.comparison.read import (
    LOCAL,
    MODELS,
    PERSONAL,
    Model,
    is_complete,
    keeps_private,
    metric_of,
    metrics_of,
    on_server,
)
from sim.comparison.same_data import check_same_data
from sim.comparison.statistics import (
    LEVEL,
    RESAMPLES,
    Difference,
    Test,
    difference,
    holm,
    seeds_needed,
)

STUDY = "study.json"

LOWER_IS_BETTER = {"hamming", "ranking-loss", "coverage", "one-error", "std"}
"""Metrics, by the last part of their name, of which less is better; ``std`` is a spread over clients."""


@dataclass(frozen=True)
class Entry(HasStudy):
    """One run in a comparison.

    Attributes:
        path: its folder.
        written: settings as they were written, by dashed name.
        settings: the same, resolved.
        data: what ``data.json`` says; empty where there is none.
        of: what its study says of it.
        unknown: entries that cannot be looked up here, and are compared as they were written.
    """

    path: Path
    written: Mapping[str, Any]
    settings: Mapping[str, Any]
    data: Mapping[str, Any]
    of: OfStudy = ALONE
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True)
class Group:
    """One row of the comparison.

    Attributes:
        label: for people.
        values: the metric by seed.
        chosen: searched settings with their values.
        reference: whether it is one: shown, never paired.
    """

    label: str
    values: Mapping[int, float]
    chosen: Mapping[str, str]
    reference: bool = False

    @property
    def mean(self) -> float:
        """Over seeds."""
        return statistics.fmean(self.values.values()) if self.values else math.nan

    @property
    def std(self) -> float:
        """Standard deviation over seeds (n - 1); NaN with one seed."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else math.nan


@dataclass(frozen=True)
class Pair:
    """``first`` minus ``second``, with the p-value corrected for all pairs.

    ``found.improvement`` is the probability that a run of ``first`` is better, also where less of the metric is.
    """

    first: str
    second: str
    found: Difference
    p_holm: float


@dataclass(frozen=True)
class Comparison:
    """What ``fedmlic compare`` shows.

    Attributes:
        metric: which is compared.
        model: of which model, in words.
        by: settings in which rows differ, or axes of tables that name them.
        test: the paired test.
        groups: the rows.
        pairs: of rows.
        notes: what a reader must know.
    """

    metric: str
    model: str
    by: tuple[str, ...]
    test: Test
    groups: Sequence[Group]
    pairs: Sequence[Pair]
    notes: Sequence[str]

    @property
    def higher_is_better(self) -> bool:
        """Whether more of the metric is better."""
        return more_is_better(self.metric)

    def best(self) -> str:
        """The row that is better than every other row by its corrected p-value; empty if there is none."""
        sign = 1 if self.higher_is_better else -1
        for group in self.groups:
            wins = {pair.second for pair in self.pairs if pair.first == group.label and _won(pair, sign)}
            wins |= {pair.first for pair in self.pairs if pair.second == group.label and _won(pair, -sign)}
            others = {other.label for other in self.groups if not other.reference} - {group.label}
            if others and wins == others:
                return group.label
        return ""


def more_is_better(metric: str) -> bool:
    """Whether more of a metric is better."""
    return metric.rpartition("/")[2] not in LOWER_IS_BETTER


def _won(pair: Pair, sign: int) -> bool:
    return pair.p_holm <= 1 - LEVEL and sign * pair.found.mean > 0


def collect(paths: Sequence[Path]) -> tuple[list[Entry], list[str]]:
    """The complete runs in these folders of runs and studies, and a note for what is missing.

    Raises:
        InputError: a folder is neither, or holds no complete run.
    """
    entries: dict[Path, Entry] = {}
    notes: list[str] = []
    for path in paths:
        if (path / STUDY).is_file():
            found, missing = _of_study(path)
            notes += missing
        elif is_run(path):
            found = [_entry(path)]
        else:
            msg = f"Expected {path} to be the folder of a run or of a study, got something else. Check the path."
            raise InputError(msg)
        entries |= {entry.path.resolve(): entry for entry in found}
    complete = [entry for entry in entries.values() if is_complete(entry.path)]
    notes += [f"{entry.path} is not complete and left out" for entry in entries.values() if entry not in complete]
    if not complete:
        msg = f"Expected complete runs to compare, got none in {', '.join(map(str, paths))}. Play them first."
        raise InputError(msg)
    return complete, notes


def _of_study(path: Path) -> tuple[list[Entry], list[str]]:
    about = read_json(path / STUDY)
    wanted = len(about["seeds"])
    entries, missing = [], 0
    for row, of in rows_in(path, about):
        runs = [path / run["run"] for run in row["runs"]]
        there = [run for run in runs if is_run(run) and is_complete(run)]
        missing += wanted - len(there)
        entries += [_entry(run, of) for run in there]
    notes = [f"{missing} runs of the study {path} are missing"] * bool(missing)
    notes += _whose(about)
    return entries, notes + [
        f"{row['label']}: best {', '.join(row['edges'])} at the border of what was searched: widen the grid or range"
        for row in about["rows"]
        if row.get("edges") and not row["reference"]
    ]


def _whose(about: Mapping[str, Any]) -> list[str]:
    """To which rows the references of a study belong, where it is not all."""
    kinds = dict.fromkeys(row["reference"] for row in about["rows"] if row["reference"])
    of = about.get("references_of", [])  # older studies have none
    if not kinds or not of:
        return []
    others = sum(not row["reference"] for row in about["rows"]) - len(of)
    rows = f"the row {of[0]}" if len(of) == 1 else f"the rows {'; '.join(of)}"
    return [f"references ({', '.join(kinds)}) are those of {rows}; the other {others} have none"]


def _entry(run: Path, of: OfStudy = ALONE) -> Entry:
    folder = open_run(run)
    experiment = folder.settings()[0]
    written = {name.replace("_", "-"): value for name, value in experiment.model_dump().items()}
    unknown: list[str] = []
    settings = resolved(experiment, unknown)
    return Entry(run, written, settings, folder.data(), of, tuple(unknown))


def compared_keys(entries: Sequence[Entry], by: Sequence[str]) -> tuple[str, ...]:
    """Settings in which rows differ: those asked for, else a study's axes, else the one in which the runs differ.

    The name of an axis of tables asks for the settings in its tables.

    Raises:
        InputError: no such setting, or nothing says which of several differences is meant.
    """
    known = entries[0].settings
    tables = {named.axis: named.keys for entry in entries for named in entry.of.named}
    wrong = [key for key in by if key not in known and key not in tables]
    if wrong:
        msg = f"Expected --by to name settings, got {wrong[0]!r}. {nearest(wrong[0], [*tables, *known])}"
        raise InputError(msg)
    if by:
        return tuple(dict.fromkeys(key for asked in by for key in sorted(tables.get(asked, {asked}))))
    own = [entry for entry in entries if not entry.reference]
    searched = frozenset[str]().union(*(entry.searched for entry in own))
    differing = [key for key in _varying(own) if key not in {"seed", *searched}]
    axes = {key for entry in own for key in entry.of.axes or ()}
    if all(entry.of.axes is not None for entry in own) and set(differing) <= axes:
        return tuple(differing)
    if len(differing) > 1:
        msg = (
            f"Expected runs that differ in one setting besides the seed, got differences in {', '.join(differing)}. "
            f"Name those that make a row: --by {','.join(differing)}."
        )
        raise InputError(msg)
    return tuple(differing)


def _label(entry: Entry, keys: Sequence[str], axes: Mapping[str, frozenset[str]]) -> str:
    """A row's name: names of tables, and its own values of the other settings."""
    parts, covered = named_parts(entry, keys, axes)
    covered |= fixed_in(entry.reference)
    label = ", ".join([*parts, *(_shown(key, entry.written[key]) for key in keys if key not in covered)])
    if entry.reference:
        return f"{entry.reference}: {label}" if label else entry.reference
    return label or "all runs"


def _varying(entries: Sequence[Entry]) -> list[str]:
    first = entries[0].settings if entries else {}
    return [key for key in first if any(entry.settings[key] != first[key] for entry in entries)]


def compare(
    paths: Sequence[Path],
    *,
    by: Sequence[str] = (),
    metric: str = "",
    model: Model = "last",
    test: Test = "permutation",
    baseline: str = "",
) -> Comparison:
    """Compare runs and studies.

    Args:
        paths: folders of runs and studies.
        by: settings in which rows differ; see ``compared_keys``.
        metric: a name of ``docs/record.md``; test mAP by default, and mean mAP of clients where the server of some run
            evaluated no model.
        model: which model of a run; see ``metrics_of``.
        test: the paired test.
        baseline: label of the row that all others are compared with; all pairs by default.

    Raises:
        InputError: nothing to compare, runs that differ in more than is compared, or that were given other data
            than their settings say.
    """
    entries, notes = collect(paths)
    check_same_data(entries)
    keys = compared_keys(entries, by)
    own = [entry for entry in entries if not entry.reference] or entries
    personal = [entry for entry in entries if _is_personal(entry)]
    metric = metric or ("server/mAP" if all(on_server(entry.path) for entry in own) else "client/mAP/mean")
    entries = _each_once(entries, metric, model, notes)
    axes = named_axes(entries, keys, _varying([entry for entry in entries if not entry.reference]))
    groups = [
        group
        for found in _rows(entries, keys).values()
        for group in _groups(found, _label(found[0], keys, axes), keys, metric, model, notes)
    ]
    pairs = _pairs(groups, metric, test, baseline)
    if personal:
        notes.append(f"of {len(personal)} runs the model is {PERSONAL}: no one model predicts for all clients")
    searched = sorted(frozenset[str]().union(*(entry.searched for entry in entries)))
    if searched:
        notes.append(f"chosen on validation data for each row: {', '.join(searched)}")
    notes += [
        f"{text} cannot be looked up on this machine and is compared as it was written: another text for the same "
        "counts as another setting"
        for text in dict.fromkeys(text for entry in entries for text in entry.unknown)
    ]
    notes += [*_constant(entries, metric), *_too_few(groups, pairs, test)]
    words = PERSONAL if all(entry in personal for entry in own) else _in_words(entries, model)
    return Comparison(metric, words, compared_by(keys, axes), test, groups, pairs, notes)


def _is_personal(entry: Entry) -> bool:
    """Whether each client has a model of its own."""
    evaluated = on_server(entry.path)
    return entry.reference == LOCAL or keeps_private(open_run(entry.path).settings()[0], evaluated=evaluated)


def _in_words(entries: Sequence[Entry], model: Model) -> str:
    if model != "best-or-last":
        return MODELS[model]
    chosen = {bool(read_json(entry.path / "result.json")["best_round"]) for entry in entries}
    return MODELS["best-or-last" if len(chosen) > 1 else "best" if chosen == {True} else "last"]


def _each_once(entries: Sequence[Entry], metric: str, model: Model, notes: list[str]) -> list[Entry]:
    """Every experiment once: of folders that hold the same one, with the same result, the first."""
    first: dict[tuple[str, ...], Entry] = {}
    for entry in entries:
        kept = first.setdefault((entry.reference, *map(str, entry.settings.values())), entry)
        if kept is entry:
            continue
        one, other = (metric_of(each.path, metric, model) for each in (kept, entry))
        if one != other and not (math.isnan(one) and math.isnan(other)):
            msg = (
                f"Expected {kept.path} and {entry.path}, which hold the same experiment with the same seed, to have "
                f"the same {metric}, got {one!r} and {other!r}. Leave one of them out."
            )
            raise InputError(msg)
        notes.append(f"{entry.path} is the same run as {kept.path} and counts once")
    return list(first.values())


def _rows(entries: Sequence[Entry], keys: Sequence[str]) -> dict[tuple[Any, ...], list[Entry]]:
    """Entries by row; refuses rows whose runs differ in more than the compared settings."""
    rows: dict[tuple[Any, ...], list[Entry]] = {}
    for entry in entries:
        rows.setdefault((entry.reference, *(entry.settings[key] for key in keys)), []).append(entry)
    own = {row: found for row, found in rows.items() if not row[0]}
    beside = {row: {_rest(entry, keys) for entry in found} for row, found in own.items()}
    every = set().union(*beside.values()) if beside else set()
    if any(found != every for found in beside.values()):
        names = [name for name, *_ in next(iter(every))]
        differing = [name for place, name in enumerate(names) if len({str(rest[place]) for rest in every}) > 1]
        msg = (
            f"Expected runs compared by {', '.join(keys) or 'seed'} to differ in nothing else but the seed, got "
            f"differences in {', '.join(differing)}. Compare them too: --by {','.join([*keys, *differing])}."
        )
        raise InputError(msg)
    return rows


def _rest(entry: Entry, keys: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Settings that must not differ between rows."""
    left_out = {*keys, "seed", *entry.searched}
    return tuple((key, str(value)) for key, value in entry.settings.items() if key not in left_out)


def _group(
    entries: Sequence[Entry], label: str, keys: Sequence[str], metric: str, model: Model, notes: list[str]
) -> Group:
    first = entries[0]
    by_seed: dict[int, list[float]] = {}
    there: dict[int, set[tuple[tuple[str, str], ...]]] = {}
    for entry in entries:
        seed = int(entry.settings["seed"])
        by_seed.setdefault(seed, []).append(metric_of(entry.path, metric, model))
        there.setdefault(seed, set()).add(_rest(entry, keys))
    undefined = sorted(seed for seed, values in by_seed.items() if any(map(math.isnan, values)))
    if undefined:
        notes.append(f"{label}: {metric} does not exist at seeds {undefined}, which are left out")
    # The union, not the fullest seed: each seed may miss another run.
    wanted = set().union(*there.values())
    uneven = sorted(seed for seed, found in there.items() if found != wanted and seed not in undefined)
    if uneven:
        notes.append(f"{label}: runs are missing at seeds {uneven}, which are left out")
    values = {s: statistics.fmean(v) for s, v in sorted(by_seed.items()) if s not in {*undefined, *uneven}}
    chosen = {key: ", ".join(sorted({str(entry.written[key]) for entry in entries})) for key in sorted(first.searched)}
    return Group(label, values, chosen, bool(first.reference))


def _groups(
    entries: Sequence[Entry], label: str, keys: Sequence[str], metric: str, model: Model, notes: list[str]
) -> list[Group]:
    """The row of these runs; of local-only training one of the mean over clients and one of the worst client."""
    mean = _group(entries, label, keys, metric, model, notes)
    if entries[0].reference != LOCAL:
        return [mean]
    scores: dict[int, list[float]] = {seed: [] for seed in mean.values}
    for entry in entries:
        if entry.settings["seed"] in scores:
            scores[entry.settings["seed"]].append(metric_of(entry.path, metric, model))
    over = statistics.fmean(statistics.pstdev(values) for values in scores.values()) if scores else math.nan
    notes.append(f"{mean.label}: standard deviation over clients {over:.3f}")
    worst = min if more_is_better(metric) else max
    values = {seed: worst(found) for seed, found in scores.items()}
    return [
        replace(mean, label=mean.label.replace("local-only", "local-only mean", 1)),
        replace(mean, label=mean.label.replace("local-only", "local-only worst", 1), values=values),
    ]


def _constant(entries: Sequence[Entry], metric: str) -> list[str]:
    """The mAP of a constant score, where mAP is compared."""
    side, _, name = metric.rpartition("/")
    if name != "mAP":
        return []
    found = [metrics_of(entry.path).get(f"{side}/prevalence", math.nan) for entry in entries]
    good = [value for value in found if not math.isnan(value)]
    if not good:
        return []
    span = f"{min(good):.3f}" + f" to {max(good):.3f}" * (max(good) - min(good) >= 5e-4)
    return [f"a constant score reaches {metric} {span} (prevalence)"]


def _shown(key: str, value: object) -> str:
    text = str(value)
    return (
        text.replace("()", "") if "(" in text or key in {"method", "strategy", "model"} else f"{key} {text or 'none'}"
    )


def _pairs(groups: Sequence[Group], metric: str, test: Test, baseline: str) -> list[Pair]:
    own = [group for group in groups if not group.reference]
    if baseline:
        labels = [group.label for group in own]
        found = next((label for label in (baseline, baseline.replace("()", "")) if label in labels), None)
        if found is None:
            msg = f"Expected --baseline to be the label of a row, got {baseline!r}. {nearest(baseline, labels)}"
            raise InputError(msg)
        base = own[labels.index(found)]
        wanted = [(group, base) for group in own if group is not base]
    else:
        wanted = [(later, earlier) for place, later in enumerate(own) for earlier in own[:place]]
    pairs = []
    for one, other in wanted:
        seeds = [seed for seed in one.values if seed in other.values]
        each = difference([one.values[s] for s in seeds], [other.values[s] for s in seeds], test)
        better = each.improvement if more_is_better(metric) else 1 - each.improvement
        pairs.append(each._replace(improvement=better))
    corrected = holm([each.p for each in pairs])
    return [Pair(a.label, b.label, each, p) for (a, b), each, p in zip(wanted, pairs, corrected, strict=True)]


def _too_few(groups: Sequence[Group], pairs: Sequence[Pair], test: Test) -> list[str]:
    """What the number of seeds cannot show; a seed at which two rows are equal does not count."""
    if not pairs:
        return []
    values = {group.label: group.values for group in groups}
    different = [_num_different(values[pair.first], values[pair.second]) for pair in pairs]
    tests = sum(pair.found.num_seeds > 1 for pair in pairs)
    seeds = max(pair.found.num_seeds for pair in pairs)
    notes = []
    if any(pair.found.num_seeds == 0 for pair in pairs):
        notes.append("rows without a common seed cannot be paired")
    equal = sum(1 < pair.found.num_seeds > count for pair, count in zip(pairs, different, strict=True))
    if equal:
        notes.append(
            f"in {equal} of {len(pairs)} comparisons both rows are equal at some seeds, which say nothing of which is "
            "better: the test has fewer seeds there"
        )
    smallest = min(pair.found.smallest_p for pair in pairs)
    if max(tests, 1) * smallest > 1 - LEVEL + 1e-12:
        after = f", {min(1.0, tests * smallest):.3g} after Holm's correction for {tests} comparisons" * (tests > 1)
        needed = seeds_needed(tests, test)
        enough = (
            f"p <= {1 - LEVEL:.2g} needs at least {needed} seeds"
            if needed is not None
            else f"p <= {1 - LEVEL:.2g} cannot be reached with any number of seeds, since {RESAMPLES:,} permutations "
            f"give no p below {2 / (RESAMPLES + 1):.2g}: compare with one row (--baseline), or use --test wilcoxon"
        )
        counted = f"{max(different)} at which rows differ" if equal and max(different) < seeds else str(seeds)
        notes.append(
            f"too few seeds to tell: with {counted} the smallest attainable p is {smallest:.3g}{after}; {enough}"
        )
    return notes


def _num_different(one: Mapping[int, float], other: Mapping[int, float]) -> int:
    """Seeds that both rows have, with different values."""
    return sum(other.get(seed, value) != value for seed, value in one.items())
