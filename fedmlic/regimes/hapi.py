"""HAPI: real annotators. What a commercial labelling API said of an image is what a client has.

Source: Chen et al., "HAPI" (NeurIPS 2022 Datasets and Benchmarks) and, for 2020, Chen,
Zaharia, Zou, "FrugalMCT" (ICML 2022); the files are described in ``fedmlic.formats.hapi`` and
``fedmlic.formats.frugalmct``. Their errors are what noise models lack: an API is blind to some
labels, errs more in crowded images, and errs where other APIs err.

An API's answer to an image is complete: what it names is present, everything else absent,
unless ``unsaid`` says otherwise. A label that the API names on no image of the whole
benchmark is one it does not annotate: ``blind`` says what becomes of it. What the data set
itself does not know stays as it is. Answers are joined to images by id, in every spelling that
the data sets here use.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from fedmlic.errors import InputError, listing, nearest
from fedmlic.files import file_sha256
from fedmlic.formats import frugalmct
from fedmlic.formats import hapi as files
from fedmlic.labels import ABSENT, PRESENT, UNKNOWN, known
from fedmlic.regime import Assignment, Regime
from fedmlic.seeds import text_keys

if TYPE_CHECKING:
    from types import ModuleType

    from numpy.typing import NDArray

TRUTH = "truth"
"""The annotator that writes down the data set's own labels."""

COCO_ID = re.compile(r"COCO_(train|val)2014_(\d{12})")
MIR_ID = re.compile(r"im(\d+)")
STATES = {"absent": ABSENT, "unknown": UNKNOWN}


def _spellings(example_id: str) -> list[str]:
    """The image ids that stand for one example in the data sets here and in a ``folder`` of its files.

    >>> _spellings("im45")
    ['im45', 'im45.jpg', 'im00045']
    """
    found = [example_id, f"{example_id}.jpg"]
    coco = COCO_ID.fullmatch(example_id)
    if coco:
        split, number = coco[1], coco[2]
        found += [number, str(int(number)), f"{number}.jpg", f"{split}2014/{example_id}.jpg"]
        found += [f"{folder}2017/{number}.jpg" for folder in ("train", "val")]
    elif mir := MIR_ID.fullmatch(example_id):
        found.append(f"im{int(mir[1]):05d}")
    else:
        found.append(f"JPEGImages/{example_id}.jpg")
    return found


def _normal(name: str) -> str:
    """A label name without case, spaces, dashes and underscores."""
    return re.sub(r"[\W_]", "", name.casefold())


class _Notes(NamedTuple):
    """What one API wrote about the images of the benchmark.

    Attributes:
        keys: uint64, ascending: image keys in every spelling.
        places: int64, the row of ``states`` of each key.
        states: int8 ``[examples, labels]``.
    """

    keys: NDArray[np.uint64]
    places: NDArray[np.int64]
    states: NDArray[np.int8]


class _Reading(NamedTuple):
    """How answers become states."""

    unsaid: int
    empty: int | None
    blind: int
    blind_miss_rate: float | None
    min_confidence: float
    rename: Mapping[str, str]


def _columns(answers: files.Answers, label_names: tuple[str, ...], rename: Mapping[str, str]) -> dict[str, int]:
    """The column of every name that is a label of the data set.

    Raises:
        InputError: none is.
    """
    column_of = {_normal(name): place for place, name in enumerate(label_names)}
    renamed = {_normal(own): name for own, name in rename.items()}
    said = sorted({name for names in answers.names for name in names})
    found = {name: column_of.get(_normal(renamed.get(_normal(name), name)), -1) for name in said}
    if said and max(found.values()) < 0:
        msg = (
            f"Expected labels of the API to be among those of the data set, got {said[:5]} of {len(said)} and "
            f"{list(label_names[:5])} of {len(label_names)}. Choose the benchmark of this data set or give rename=..."
        )
        raise InputError(msg)
    return {name: place for name, place in found.items() if place >= 0}


def _said(answers: files.Answers, label_names: tuple[str, ...], reading: _Reading) -> NDArray[np.bool_]:
    """Bool ``[examples, labels]``: what was named, with enough confidence where each name has its own."""
    columns = _columns(answers, label_names, reading.rename)
    said = np.zeros((len(answers.names), len(label_names)), dtype=np.bool_)
    for row, names in enumerate(answers.names):
        sure = answers.confidences[row] if answers.confidences else (1.0,) * len(names)
        kept = [columns[n] for n, c in zip(names, sure, strict=True) if n in columns and c >= reading.min_confidence]
        said[row, kept] = True
    return said


def _misses(
    said: NDArray[np.bool_], answers: files.Answers, true: files.Answers, present: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """float64 ``[labels]``: share of the images with a label on which it was not named; 0 where there are none."""
    row_of = {example_id: row for row, example_id in enumerate(true.example_ids)}
    pairs = [(place, row_of[i]) for place, i in enumerate(answers.example_ids) if i in row_of]
    ours, theirs = (np.array([pair[side] for pair in pairs], dtype=np.int64) for side in (0, 1))
    with_label = present[theirs]
    return np.asarray((with_label & ~said[ours]).sum(axis=0) / np.maximum(with_label.sum(axis=0), 1))


def _form(run: files.Run) -> ModuleType:
    """The reader of a run's files."""
    return frugalmct if run.form == "frugalmct" else files


def _notes(run: files.Run, label_names: tuple[str, ...], reading: _Reading, place: Path) -> _Notes:
    """Read one run and write down what it means for each image."""
    form = _form(run)
    answers = form.predictions(run)
    said = _said(answers, label_names, reading)
    states = np.where(said, PRESENT, reading.unsaid).astype(np.int8)
    blind = ~said.any(axis=0)
    if reading.blind_miss_rate is not None:
        true = form.truth(place, run.benchmark)
        present = _said(true, label_names, reading._replace(min_confidence=0.0))
        blind |= _misses(said, answers, true, present) >= reading.blind_miss_rate
    states[:, blind] = reading.blind
    if reading.empty is not None:
        states[np.ix_(~said.any(axis=1), ~blind)] = reading.empty
    if not answers.confidences:
        unsure = (answers.confidence < reading.min_confidence) & np.array([bool(names) for names in answers.names])
        states[unsure] = UNKNOWN
    spellings = [_spellings(example_id) for example_id in answers.example_ids]
    keys = text_keys([text for each in spellings for text in each])
    places = np.repeat(np.arange(len(spellings)), [len(each) for each in spellings])
    order = np.argsort(keys, kind="stable")
    return _Notes(keys[order], places[order], states)


def _look_up(notes: _Notes, image_keys: NDArray[np.uint64], uncovered: str, run: files.Run) -> NDArray[np.int8]:
    """int8 ``[images, labels]``: the notes on these images; unknown where there are none."""
    found = np.minimum(np.searchsorted(notes.keys, image_keys), max(len(notes.keys) - 1, 0))
    covered = notes.keys[found] == image_keys if len(notes.keys) else np.zeros(len(image_keys), dtype=np.bool_)
    if uncovered == "error" and not covered.all():
        msg = (
            f"Expected {run.path} to say something about every image, got nothing about {int((~covered).sum())} of a "
            f"client's {len(image_keys)}. Choose the benchmark of this data set, or set uncovered='unknown'."
        )
        raise InputError(msg)
    observed = np.full((len(image_keys), notes.states.shape[1]), UNKNOWN, dtype=np.int8)
    observed[covered] = notes.states[notes.places[found[covered]]]
    return observed


def _check_names(rename: Mapping[str, str], label_names: tuple[str, ...], read: Iterable[files.Answers]) -> None:
    """Refuse names in ``rename`` that would lose a label: no label of the data set, or said nowhere in what is read.

    Answers are read until every name was said.
    """
    labels = {_normal(label) for label in label_names}
    wrong = [
        f"{name!r}, the value of {own!r}, which is no label of the data set. {nearest(name, label_names)}"
        for own, name in rename.items()
        if _normal(name) not in labels
    ]
    unsaid = {_normal(own): own for own in rename}
    said = set[str]()
    for answers in read if unsaid else ():
        said.update(name for names in answers.names for name in names)
        unsaid = {plain: own for plain, own in unsaid.items() if plain not in set(map(_normal, said))}
        if not unsaid:
            break
    wrong += [f"{own!r}, which no chosen API says. {nearest(own, said)}" for own in unsaid.values()]
    if wrong:
        expected = "Expected rename of regime hapi to give labels of the data set for names of the API"
        raise listing(expected, wrong)


def _check_rename(rename: Mapping[str, str], *, asks: bool) -> None:
    """Refuse a ``rename`` that says two things of one name, or that nothing is renamed by.

    Args:
        rename: the data set's name for a name of the API.
        asks: whether an API is among the annotators.
    """
    if rename and not asks:
        msg = (
            f"Expected rename of regime hapi to be left out where apis are [{TRUTH!r}], which has the data set's own "
            f"names, got {dict(rename)}. Leave it out, or name an API."
        )
        raise InputError(msg)
    written: dict[str, dict[str, str]] = {}
    for own, name in rename.items():
        written.setdefault(_normal(own), {})[own] = name
    twice = [
        ", ".join(f"{name!r} for {own!r}" for own, name in names.items())
        for names in written.values()
        if len(set(map(_normal, names.values()))) > 1
    ]
    if twice:
        expected = "Expected rename of regime hapi to give one label for a name of the API, however it is spelt"
        raise listing(expected, twice)


def _runs_of(place: Path, benchmark: str, apis: list[str], date: str) -> dict[str, list[files.Run]]:
    """The runs to choose from, for each API.

    Raises:
        InputError: there is no such API or date.
    """
    runs = files.runs(place, benchmark) or frugalmct.runs(place, benchmark)
    if not runs and apis != [TRUTH]:
        msg = f"Expected {place} to hold predictions for {benchmark}, got none. Give HAPI's or FrugalMCT's folder."
        raise InputError(msg)
    chosen: dict[str, list[files.Run]] = {}
    for api in apis or sorted({run.api for run in runs}):
        mine = [run for run in runs if run.api == api]
        if not mine and api != TRUTH:
            hint = nearest(api, [TRUTH, *{run.api for run in runs}])
            msg = f"Expected apis to be among those of {benchmark}, got {api!r}. {hint}"
            raise InputError(msg)
        dated = {"latest": mine[-1:], "first": mine[:1], "drawn": mine}.get(date, [r for r in mine if r.date == date])
        if mine and not dated:
            hint = nearest(date, {run.date for run in mine})
            msg = f"Expected date to be one at which {api} was asked, got {date!r}. {hint}"
            raise InputError(msg)
        chosen[api] = dated
    return chosen


def _identity(runs: Mapping[str, list[files.Run]], place: Path, *, with_truth: bool) -> dict[str, Any]:
    """The annotators to choose from with the SHA-256 of their files, wherever they lie; None for a missing file."""
    every = [run for dated in runs.values() for run in dated]
    kept: dict[str, Any] = {
        "apis": {api: [[run.date, _sha256(run.path)] for run in dated] for api, dated in sorted(runs.items())}
    }
    if with_truth:
        truths = {_form(run).truth_file(place, run.benchmark) for run in every}
        kept["truth"] = sorted(filter(None, map(_sha256, truths)))
    return {"hapi": kept}


def _sha256(path: Path) -> str | None:
    # What is missing is named when the first client needs it.
    return file_sha256(path) if path.is_file() else None


def _in_turn(assignment: Assignment, runs: dict[str, list[files.Run]]) -> files.Run | None:
    """The client's annotator: pairs of API and date in order, client after client; ``None`` is the truth."""
    pairs: list[files.Run | None] = []
    for api in sorted(runs):
        pairs += runs[api] or [None]
    return pairs[assignment.client % len(pairs)]


def _drawn(assignment: Assignment, runs: dict[str, list[files.Run]]) -> files.Run | None:
    """The client's annotator: one API, then one of its dates; ``None`` is the truth."""
    rng = assignment.rng("annotator")
    dated = runs[sorted(runs)[int(rng.integers(len(runs)))]]
    return dated[int(rng.integers(len(dated)))] if dated else None


def hapi(
    *,
    root: str = "",
    benchmark: Literal["coco", "pascal", "mir"] = "coco",
    apis: list[str] | None = None,
    date: str = "latest",
    assign: Literal["drawn", "in_turn"] = "drawn",
    unsaid: Literal["absent", "unknown"] = "absent",
    empty: Literal["as_unsaid", "absent", "unknown"] = "as_unsaid",
    blind: Literal["unknown", "absent"] = "unknown",
    blind_miss_rate: Annotated[float, Field(gt=0, le=1)] | None = None,
    min_confidence: Annotated[float, Field(ge=0, le=1)] = 0.0,
    uncovered: Literal["error", "unknown"] = "error",
    rename: dict[str, str] | None = None,
) -> Regime:
    """A commercial API annotates each client's images.

    Args:
        root: HAPI's data folder (it holds ``tasks``) or FrugalMCT's (it holds
            ``mlserviceperformance_...``); blank is ``$HAPI_DATA_DIR``, else ``~/.hapi``.
        benchmark: ``coco`` (train and val 2014), ``pascal`` (VOC 2012 trainval) or ``mir``
            (MIRFLICKR-25k).
        apis: one for all clients, or several of which each client draws one; by default all
            that are there. ``truth`` stands for the data set's own labels.
        date: ``latest``, ``first``, one as ``20-10-28``, or ``drawn``: each client draws one.
        assign: how clients get their API (and date, where it is ``drawn``): each draws, or pairs of
            API and date go round, so that client k has number k modulo their number.
        unsaid: what a label is that the API does not name.
        empty: what all labels but blind ones are on an image of which it says nothing.
        blind: what a label is that the API names on no image of the benchmark.
        blind_miss_rate: count as such a label also one that it misses on at least this share
            of the benchmark's images that show it.
        min_confidence: names below it are not named (FrugalMCT); images whose mean is below
            it are unknown (HAPI, which keeps only the mean).
        uncovered: what to do about images of which the files say nothing: an error, or
            unknown.
        rename: the data set's name for a name of the API; spaces, case, dashes and
            underscores never matter.

    Raises:
        InputError: no such files, API or date; a ``rename`` that gives two labels for one name,
            or that no API is there for; at the first client also: files that are not as
            described, no label in common, a name in ``rename`` that the data set does not have or
            no chosen API says, or an image that they do not cover.
    """
    place = files.data_folder(root)
    runs = _runs_of(place, benchmark, apis or [], date)
    _check_rename(rename or {}, asks=any(runs.values()))
    reading = _Reading(
        STATES[unsaid],
        None if empty == "as_unsaid" else STATES[empty],
        STATES[blind],
        blind_miss_rate,
        min_confidence,
        rename or {},
    )
    read: dict[tuple[Path, tuple[str, ...]], _Notes] = {}
    checked: set[tuple[str, ...]] = set()

    def everything_said() -> Iterator[files.Answers]:
        every = [run for dated in runs.values() for run in dated]
        yield from (_form(run).predictions(run) for run in every)
        if blind_miss_rate is not None:
            yield from (_form(run).truth(place, run.benchmark) for run in every[:1])

    def annotate(assignment: Assignment) -> NDArray[np.int8]:
        labels = assignment.labels
        if any(runs.values()) and assignment.label_names not in checked:
            _check_names(reading.rename, assignment.label_names, everything_said())
            checked.add(assignment.label_names)
        run = _in_turn(assignment, runs) if assign == "in_turn" else _drawn(assignment, runs)
        if run is None:
            return labels.copy()
        key = run.path, assignment.label_names
        if key not in read:
            read[key] = _notes(run, assignment.label_names, reading, place)
        notes = _look_up(read[key], assignment.image_keys, uncovered, run)
        return np.where(known(labels), notes, labels).astype(np.int8)

    selective = "unknown" in {unsaid, empty} or min_confidence > 0
    return Regime(
        annotate,
        adds_wrong=True,
        selective=selective,
        identity=lambda: _identity(runs, place, with_truth=blind_miss_rate is not None),
    )
