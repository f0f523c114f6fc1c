"""HAPI: what commercial image-labelling APIs said of the images of public benchmarks, by date.

Source: Chen et al., "HAPI: A Large-scale Longitudinal Dataset of Commercial ML API
Predictions" (NeurIPS 2022 Datasets and Benchmarks), github.com/lchen001/HAPI. Below its data
folder lie ``tasks/meta.csv`` (task, dataset, api, date, path, cost_per_10k), and for
multi-label image classification (``mic``) ``tasks/mic/<dataset>/labels.json`` and
``tasks/mic/<dataset>/<api>/<yy-mm-dd>.json``: lists of objects with ``example_id``,
``predicted_label`` or ``true_label`` (names, one per instance, so they repeat) and one
``confidence`` per image, the mean over its predictions, 0 where there are none.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedmlic.errors import InputError
from fedmlic.formats import csv_rows
from fedmlic.problems import Problems

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

TASK = "mic"
COLUMNS = ("task", "dataset", "api", "date", "path")
HOME_VARIABLE = "HAPI_DATA_DIR"


class Run(NamedTuple):
    """One API's answers to one benchmark at one date, and the file that holds them in which form."""

    benchmark: str
    api: str
    date: str
    path: Path
    form: str = "hapi"


class Answers(NamedTuple):
    """What was said of each image, in the file's order.

    Attributes:
        example_ids: the benchmark's own id of each image: the stem of its file name.
        names: label names said of each image, one per instance.
        confidence: float32 ``[images]``, the mean over an image's predictions; 0 where
            there are none, 1 for the truth.
        confidences: confidence of each name, where the file keeps them, else empty.
    """

    example_ids: list[str]
    names: list[tuple[str, ...]]
    confidence: NDArray[np.float32]
    confidences: list[tuple[float, ...]]


def data_folder(root: str) -> Path:
    """The folder that ``root`` names; blank is ``$HAPI_DATA_DIR``, else ``~/.hapi``, as for HAPI's own package.

    Raises:
        InputError: there is no such folder.
    """
    named = root or os.environ.get(HOME_VARIABLE) or "~/.hapi"
    place = Path(named).expanduser()
    if not place.is_dir():
        msg = f"Expected HAPI's data at {place}, got no such folder. Give it as root=... or set {HOME_VARIABLE}."
        raise InputError(msg)
    return place


def _tasks(place: Path) -> Path:
    """The folder ``tasks``, which ``place`` holds or is."""
    return place / "tasks" if (place / "tasks").is_dir() else place


def runs(place: Path, benchmark: str) -> list[Run]:
    """All runs on a benchmark (``coco``, ``pascal`` or ``mir``), by API and date; none where ``place`` is no HAPI."""
    tasks = _tasks(place)
    meta = tasks / "meta.csv"
    if not meta.is_file():
        return []
    rows = (row.cells for row in csv_rows.rows(meta, COLUMNS))
    found = [
        Run(data, api, date, tasks / path) for task, data, api, date, path in rows if (task, data) == (TASK, benchmark)
    ]
    return sorted(found, key=lambda run: (run.api, run.date))


def predictions(run: Run) -> Answers:
    """An API's answers.

    Raises:
        InputError: the file is missing or not as described above; all problems at once.
    """
    return _read(run.path, "predicted_label")


def truth(place: Path, benchmark: str, problems: Problems | None = None) -> Answers:
    """A benchmark's own labels.

    Args:
        place: HAPI's data folder.
        benchmark: ``coco``, ``pascal`` or ``mir``.
        problems: takes what is wrong with single entries, which are left out. Without it they
            are raised, all at once.

    Raises:
        InputError: the file is missing or not as described above.
    """
    return _read(truth_file(place, benchmark), "true_label", problems)


def truth_file(place: Path, benchmark: str) -> Path:
    """Where a benchmark's own labels lie, below HAPI's data folder."""
    return _tasks(place) / TASK / benchmark / "labels.json"


def load_json(
    path: Path, kind: type[list[Any] | dict[str, Any]], content: Callable[[Path], bytes] = Path.read_bytes
) -> Any:  # noqa: ANN401  (JSON is untyped)
    """What a JSON file holds, whose top is of a kind.

    Raises:
        InputError: it is missing, no JSON, or something else.
    """
    try:
        found = json.loads(content(path))
    except (OSError, ValueError, RecursionError) as error:
        msg = f"Expected {path} to be a JSON file, got: {error}. Download it again."
        raise InputError(msg) from error
    if not isinstance(found, kind):
        msg = f"Expected {path} to hold a JSON {kind.__name__}, got a {type(found).__name__}. Download it again."
        raise InputError(msg)
    return found


def _read(path: Path, key: str, problems: Problems | None = None) -> Answers:
    own = Problems(f"Expected {path} to hold objects with example_id, {key} and confidence", outer=problems)
    seen = set[str]()
    ids, names, confidence = [], [], []
    for place, entry in enumerate(load_json(path, list)):
        wrong = _wrong(entry, key)
        if not wrong and entry["example_id"] in seen:
            wrong = f"example_id {entry['example_id']!r} again"
        if wrong:
            own.add(f"entry {place}: {wrong}")
            continue
        seen.add(entry["example_id"])
        ids.append(entry["example_id"])
        names.append(tuple(entry[key]))
        # pandas, which wrote these files, has null for a mean over nothing.
        confidence.append(1.0 if key == "true_label" else float(entry.get("confidence") or 0))
    if problems is None:
        own.finish()
    return Answers(ids, names, np.array(confidence, dtype=np.float32), [])


def is_name(value: object) -> bool:
    """Whether a JSON value is a text that can name something: not blank, without control characters."""
    return isinstance(value, str) and value.isprintable() and bool(value.strip())


def _wrong(entry: object, key: str) -> str:
    """What is wrong with one entry, or blank."""
    if not isinstance(entry, dict):
        return f"{entry!r}, which is no object"
    labels, confidence = entry.get(key), entry.get("confidence")
    if not is_name(entry.get("example_id")):
        return f"example_id {entry.get('example_id')!r}, which is no text"
    if not isinstance(labels, list) or not all(is_name(label) for label in labels):
        return f"{key} {labels!r}, which is no list of names"
    number = isinstance(confidence, int | float) and not isinstance(confidence, bool) and 0 <= confidence <= 1
    return "" if confidence is None or number else f"confidence {confidence!r}, which is no number from 0 to 1"
