"""Any image set of the Hugging Face ``datasets`` library that says which labels an image has.

Read are folders written by ``save_to_disk``, folders of Parquet files, image folders with a
``metadata.jsonl`` or ``metadata.csv``, single Parquet files, and data sets of the hub. Labels
come in one of three forms:

* **list**: a column of lists names what is present, as class labels, text or numbers; every
  other label is absent. An empty list says that none is there; no list at all (null) says nothing
  about any label.
* **vector**: a column of lists holds one state per label.
* **columns**: one column per label holds its state.

A state is 1 or true (present), 0 or false (absent), -1, null or NaN (unknown), -2 (uncertain).

Source: https://huggingface.co/docs/datasets (``load_dataset``, ``load_from_disk``, the features
``Image``, ``List`` and ``ClassLabel``).
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from fedmlic.corpus import home
from fedmlic.dataset import NO_OWNER, Dataset, Objects, Table
from fedmlic.errors import InputError, listing, nearest
from fedmlic.images import Resize, decode, read_header
from fedmlic.labels import ABSENT, PRESENT, STATES, UNKNOWN
from fedmlic.sources.groups import deal, number_groups
from fedmlic.sources.objects import boxed_objects
from fedmlic.sources.options import Channels, ImageSize, Seed

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = "1"

Fraction = Annotated[float, Field(ge=0, le=0.5)]

USUAL_SPLITS = {"train": ("train",), "val": ("validation", "valid", "val", "dev"), "test": ("test",)}
"""Names that the field gives to its splits."""

FILES = {".parquet": "parquet", ".arrow": "arrow", ".json": "json", ".jsonl": "json", ".csv": "csv"}
"""Readers of single files by the end of their name."""


MAX_NUMBERED = 1 << 15
"""Most labels that are numbers and have no names."""


# Opening


def _library() -> Any:  # noqa: ANN401  (an optional package without types)
    try:
        return importlib.import_module("datasets")
    except ImportError as error:
        msg = f"Expected the package 'datasets' for data set huggingface, got: {error}. pip install 'fedmlic[hub]'."
        raise InputError(msg) from error


def _open(path: str, config: str | None, revision: str | None) -> dict[str, Any]:
    """Splits by their names in the library, images not decoded."""
    library = _library()
    place = Path(path).expanduser()
    if not place.exists() and path.startswith((".", "/", "~")):
        msg = f"Expected path of data set huggingface to exist, or to name a data set of the hub, got {path!r}."
        raise InputError(msg)
    quiet = library.utils.are_progress_bars_disabled()
    library.utils.disable_progress_bars()
    try:
        found = _load(library, place.absolute(), config) if place.exists() else None
        if found is None:
            found = library.load_dataset(path, name=config, revision=revision)
    except Exception as error:  # the library documents no common type
        what = "a folder or file that the library reads" if place.exists() else "a data set of the hub"
        msg = (
            f"Expected path of data set huggingface to be {what}, got {path!r}: {type(error).__name__}: {error}. "
            "Correct the path, or give config=... or revision=..."
        )
        raise InputError(msg) from error
    finally:
        if not quiet:
            library.utils.enable_progress_bars()
    return dict(found) if isinstance(found, dict) else {str(found.split or "train"): found}


def _load(library: Any, place: Path, config: str | None) -> Any:  # noqa: ANN401
    if (place / "dataset_dict.json").is_file() or (place / "state.json").is_file():
        return library.load_from_disk(str(place))
    cache = str(home() / "huggingface")
    if place.is_dir():
        return library.load_dataset(str(place), name=config, cache_dir=cache)
    if place.suffix.lower() not in FILES:
        msg = f"a file that ends in {place.suffix!r}; known: {', '.join(FILES)}"
        raise ValueError(msg)
    return library.load_dataset(FILES[place.suffix.lower()], data_files=str(place), cache_dir=cache)


def _fingerprint(path: str, parts: Mapping[str, Any], sources: list[str]) -> dict[str, Any]:
    """What changes when the source does: files where they are here, else the library's own fingerprints."""
    place = Path(path).expanduser().absolute()
    if not place.exists():
        return {"fingerprints": {name: part._fingerprint for name, part in sorted(parts.items())}}  # noqa: SLF001
    root = place.parent if place.is_file() else place
    files = [place] if place.is_file() else sorted(_files_below(place))
    stats = [(file.relative_to(root).as_posix(), *_stat(file)) for file in files]
    # Tables may name images that lie elsewhere.
    stats += [(text, *_stat(Path(text))) for text in sources if Path(text).is_absolute() and not _below(text, root)]
    return {"files_sha256": hashlib.sha256(json.dumps(stats).encode()).hexdigest()}


def _below(text: str, root: Path) -> bool:
    return Path(text).is_relative_to(root)


def _stat(file: Path) -> tuple[int, int]:
    if not file.exists():
        return -1, -1  # it is named when the corpus is built
    return file.stat().st_size, file.stat().st_mtime_ns


def _files_below(place: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(place):
        # The library leaves results of map() and lock files beside the data.
        yield from (Path(folder) / n for n in names if not n.startswith(("cache-", ".")) and not n.endswith(".lock"))


def _choose_splits(parts: Mapping[str, Any], splits: Mapping[Any, str] | None) -> dict[str, str]:
    """The library's name of each of our splits."""
    if splits is None:
        pairs = ((split, next((n for n in names if n in parts), None)) for split, names in USUAL_SPLITS.items())
        chosen = {split: name for split, name in pairs if name is not None}
    else:
        chosen = dict(splits)
    wrong = [f"{split}={name!r}. {nearest(name, parts)}" for split, name in chosen.items() if name not in parts]
    if wrong:
        expected = f"Expected splits of data set huggingface to be among {sorted(parts)}"
        raise listing(expected, wrong)
    if "train" not in chosen:
        msg = (
            f"Expected data set huggingface to have training images, got the splits {sorted(parts)}. "
            "Give splits={'train': NAME, ...}."
        )
        raise InputError(msg)
    return chosen


def _check_columns(parts: Mapping[str, Any], wanted: list[str]) -> None:
    wrong = [
        f"split {name!r} has no column {column!r}. {nearest(column.split('.')[0], part.features)}"
        for name, part in parts.items()
        for column in wanted
        if column.split(".")[0] not in part.features
    ]
    if wrong:
        expected = "Expected data set huggingface to have the columns asked for"
        raise listing(expected, wrong)


# Labels


def _inner(feature: Any, column: str) -> Any:  # noqa: ANN401
    """The feature of what a column's lists hold, following ``objects.category``; ``None`` if it holds no lists."""
    path = column.split(".")[1:]
    depth = 0
    while True:
        if isinstance(feature, (list, tuple)):
            feature, depth = feature[0], depth + 1
        elif hasattr(feature, "feature"):
            feature, depth = feature.feature, depth + 1
        elif isinstance(feature, dict) and path:
            feature = feature.get(path.pop(0))
        else:
            is_list = depth == 1 and not path and not isinstance(feature, dict)
            return feature if is_list else None


def _values(row: Any, path: list[str]) -> list[Any] | None:  # noqa: ANN401
    """The list that a row holds, following ``objects.category`` through lists of records or records of lists."""
    for key in path:
        if row is None:
            return None
        row = [item[key] for item in row] if isinstance(row, list) else row[key]
    return None if row is None else list(row)


def _lists(part: Any, column: str) -> list[list[Any] | None]:  # noqa: ANN401
    """The lists of a whole column."""
    top, *path = column.split(".")
    return [_values(row, path) for row in part.select_columns([top])[:][top]]


@dataclass
class _Reader:
    """Turns a column into states and collects what is wrong on the way."""

    names: list[str]
    problems: list[str] = field(default_factory=list)

    def listed(self, values: list[Any] | None, where: str, column_of: Callable[[Any], int | None]) -> list[int]:
        """States of an image for which the present labels are listed."""
        if values is None:
            return [UNKNOWN] * len(self.names)
        states = [ABSENT] * len(self.names)
        for value in values:
            column = column_of(value)
            if column is None:
                hint = nearest(value, self.names) if isinstance(value, str) else f"It has {len(self.names)} labels."
                self.problems.append(f"{where}: label {value!r}. {hint}")
            else:
                states[column] = PRESENT
        return states

    def stated(self, values: list[Any] | None, where: str) -> list[int]:
        """States of an image for which every label has one."""
        if values is None:
            return [UNKNOWN] * len(self.names)
        if len(values) != len(self.names):
            self.problems.append(f"{where}: {len(values)} states for {len(self.names)} labels")
            return [UNKNOWN] * len(self.names)
        return [self._state(value, where, name) for value, name in zip(values, self.names, strict=True)]

    def _state(self, value: Any, where: str, name: str) -> int:  # noqa: ANN401
        if value is None or value != value:  # noqa: PLR0124  (NaN)
            return UNKNOWN
        if isinstance(value, (bool, int, float)) and value in STATES.values():
            return int(value)
        self.problems.append(f"{where}: {value!r} for {name!r}, which may be 1, 0, -1, -2 or null")
        return UNKNOWN


def _read_labels(
    parts: Mapping[str, Any], column: str, form: str, columns: list[str] | None, names: list[str] | None
) -> tuple[list[str], dict[str, NDArray[np.int8]], list[str]]:
    """Label names, states ``[images, labels]`` of every split, and problems."""
    if columns is not None:
        reader = _Reader(_different(names or columns, len(columns)))
        rows = {name: _zipped(part.select_columns(columns)[:], columns) for name, part in parts.items()}
        return _states(reader, rows, reader.stated)
    path = column.split(".")[1:]
    top = column.split(".", maxsplit=1)[0]
    feature = _inner(next(iter(parts.values())).features[top], column)
    if feature is None:
        msg = (
            f"Expected column {column!r} of data set huggingface to hold lists of labels, got "
            f"{next(iter(parts.values())).features[top]}. Give label_column=... or label_columns=[...]."
        )
        raise InputError(msg)
    rows = {name: _lists(part, column) for name, part in parts.items()}
    if form == "vector":
        width = max((len(row) for part in rows.values() for row in part if row is not None), default=0)
        reader = _Reader(_different(names or [str(place) for place in range(width)], None))
        return _states(reader, rows, reader.stated)
    classes = getattr(feature, "names", None)
    if classes is None and not path:
        _check_form(rows, column)
    reader, column_of = _vocabulary(rows, classes, names)
    return _states(reader, rows, lambda values, where: reader.listed(values, where, column_of))


def _check_form(rows: Mapping[str, list[list[Any] | None]], column: str) -> None:
    """Refuse vectors of 0 and 1 that would pass for lists of the labels number 0 and 1."""
    listed = [row for part in rows.values() for row in part if row]
    widest = max((len(row) for row in listed), default=0)
    if widest > 2 and all(value in {0, 1} for row in listed for value in row):
        msg = (
            f"Expected column {column!r} of data set huggingface to list present labels, got up to {widest} numbers "
            "that are 0 or 1. Give label_form='vector'."
        )
        raise InputError(msg)


def _zipped(columns: Mapping[str, list[Any]], names: list[str]) -> list[list[Any] | None]:
    return [list(values) for values in zip(*(columns[name] for name in names), strict=True)]


def _different(names: list[str], count: int | None) -> list[str]:
    if not names or len(set(names)) != len(names) or (count is not None and len(names) != count):
        wanted = f"{count} different names" if count else "different names, at least one"
        msg = f"Expected label_names of data set huggingface to be {wanted}, got {names}."
        raise InputError(msg)
    return list(names)


def _vocabulary(
    rows: Mapping[str, list[list[Any] | None]], classes: list[str] | None, names: list[str] | None
) -> tuple[_Reader, Callable[[Any], int | None]]:
    """Label names, and the column that each value stands for."""
    found = {value for part in rows.values() for row in part if row is not None for value in row}
    texts = {value for value in found if isinstance(value, str)}
    if classes is not None:
        chosen = _different(names or list(classes), None)
        of_name = {name: place for place, name in enumerate(chosen)}
        of_value: dict[Any, int | None] = {place: of_name.get(name) for place, name in enumerate(classes)}
        return _Reader(chosen), of_value.get
    if texts:
        chosen = _different(names or sorted(texts), None)
        return _Reader(chosen), {name: place for place, name in enumerate(chosen)}.get
    highest = max((value for value in found if isinstance(value, int)), default=-1)
    if names is None and highest >= MAX_NUMBERED:
        msg = (
            f"Expected labels without names to be numbers below {MAX_NUMBERED}, got {highest}. Give label_names=[...]."
        )
        raise InputError(msg)
    chosen = _different(names or [str(place) for place in range(highest + 1)], None)
    return _Reader(chosen), dict(enumerate(range(len(chosen)))).get


def _column_of(parts: Mapping[str, Any], column: str, names: list[str]) -> Callable[[Any], int | None]:
    """The column of the label matrix that a value of ``column`` stands for."""
    feature = _inner(next(iter(parts.values())).features[column.split(".", maxsplit=1)[0]], column)
    rows = {name: _lists(part, column) for name, part in parts.items()}
    return _vocabulary(rows, getattr(feature, "names", None), names)[1]


def _states(
    reader: _Reader,
    rows: Mapping[str, list[list[Any] | None]],
    read: Callable[[list[Any] | None, str], list[int]],
) -> tuple[list[str], dict[str, NDArray[np.int8]], list[str]]:
    states = {
        name: np.array([read(row, f"{name}[{place}]") for place, row in enumerate(part)], dtype=np.int8).reshape(
            len(part), len(reader.names)
        )
        for name, part in rows.items()
    }
    return reader.names, states, reader.problems


# Images, owners, ids, splits


def _image_reader(parts: list[Any], column: str, root: Path | None) -> Callable[[int, int], Any]:
    """A function of split number and row: a file or bytes."""
    library = _library()
    bare = []
    for part in parts:
        one = part.select_columns([column])
        if isinstance(part.features[column], library.Image):
            one = one.cast_column(column, library.Image(decode=False))
        bare.append(one.with_format(None))

    def read(split: int, row: int) -> Any:  # noqa: ANN401
        value = bare[split][row][column]
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes):
            return BytesIO(value)
        if isinstance(value, str) and value:
            return Path(value) if root is None else root / value
        msg = f"Expected an image in column {column!r}, got {type(value).__name__}."
        raise InputError(msg)

    return read


def _sources(parts: Mapping[str, Any], column: str, root: Path | None) -> list[str]:
    """For messages: each image's file, or split and row of one that lies in a table. Reads no pixels."""
    library = _library()
    sources: list[str] = []
    for name, part in parts.items():
        one = part.select_columns([column])
        if isinstance(part.features[column], library.Image):
            one = one.cast_column(column, library.Image(decode=False))
        paths = _paths(one.with_format("arrow")[:][column])
        for row, path in enumerate(paths):
            sources.append(f"{name}[{row}]" if not path else str(path if root is None else root / path))
    return sources


def _paths(values: Any) -> list[str | None]:  # noqa: ANN401
    """File names in an Arrow column of images, where the pixels are not in it."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_struct(values.type):
        names = pc.struct_field(values, "path").to_pylist()
        missing = pc.is_null(pc.struct_field(values, "bytes")).to_pylist()
        return [name if absent else None for name, absent in zip(names, missing, strict=True)]
    is_text = pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
    return values.to_pylist() if is_text else [None] * len(values)


@dataclass
class _Boxes:
    """Collects boxes in source pixels, and what is wrong with them."""

    form: str
    row: list[int] = field(default_factory=list)
    label: list[int] = field(default_factory=list)
    box: list[list[float]] = field(default_factory=list)
    sides: list[tuple[int, int]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, row: int, label: int, box: Any, sides: tuple[int, int], where: str) -> None:  # noqa: ANN401
        """Note one box."""
        numbers = [float(value) for value in box or () if isinstance(value, (int, float)) and math.isfinite(value)]
        if len(numbers) != 4:
            self.problems.append(f"{where}: box {box!r}, which must be four numbers")
            return
        if self.form == "xyxy":
            numbers[2:] = [numbers[2] - numbers[0], numbers[3] - numbers[1]]
        if min(numbers[2:]) < 0:
            self.problems.append(f"{where}: box {box!r}, which ends before it begins; see box_form")
            return
        self.row.append(row)
        self.label.append(label)
        self.box.append(numbers)
        self.sides.append(sides)

    def fitted(self, size: int, resize: Resize) -> Objects:
        """The boxes in stored pixels."""
        box, sides = np.array(self.box, np.float32).reshape(-1, 4), np.array(self.sides, np.float64).reshape(-1, 2)
        row, label = np.array(self.row, dtype=np.int64), np.array(self.label, dtype=np.int64)
        return boxed_objects(row, label, box, sides, size, resize)


def _read_boxes(
    parts: Mapping[str, Any],
    columns: tuple[str, str],
    form: str,
    column_of: Callable[[Any], int | None],
    read: Callable[[int, int], Any],
) -> _Boxes:
    """Boxes of the columns (labels, boxes), in row order.

    Images whose header cannot be read have none here; they are named when they are decoded.
    """
    boxes, start = _Boxes(form), 0
    for split, (name, part) in enumerate(parts.items()):
        for row, (labels, found) in enumerate(zip(*(_lists(part, column) for column in columns), strict=True)):
            where = f"{name}[{row}]"
            if len(labels or ()) != len(found or ()):
                boxes.problems.append(f"{where}: {len(labels or ())} labels and {len(found or ())} boxes")
                continue
            header = read_header(read(split, row)) if found else None
            for label, box in zip(labels or (), found or (), strict=True):
                column = column_of(label)
                if header is not None and column is not None:
                    boxes.add(start + row, column, box, header.upright, where)
        start += len(part)
    return boxes


def _ids(chosen: Mapping[str, str], parts: Mapping[str, Any], column: str | None) -> tuple[list[str], list[str]]:
    """One id per image, and problems."""
    if column is None:
        return [f"{name}/{row:08}" for name in chosen.values() for row in range(len(parts[name]))], []
    ids = [str(value) for name in chosen.values() for value in parts[name].select_columns([column])[:][column]]
    double = [f"id {name!r} appears {times} times" for name, times in Counter(ids).items() if times > 1]
    return ids, double


def _owners(
    chosen: Mapping[str, str], parts: Mapping[str, Any], column: str | None
) -> tuple[NDArray[np.int64], list[str]]:
    if column is None:
        return np.full(sum(len(parts[name]) for name in chosen.values()), NO_OWNER, dtype=np.int64), []
    values = [value for name in chosen.values() for value in parts[name].select_columns([column])[:][column]]
    return number_groups(["" if value is None else str(value) for value in values])


def _deal(
    splits: list[str], owners: NDArray[np.int64], ids: list[str], fractions: Mapping[str, float], seed: int
) -> list[str]:
    """Take the splits that the source lacks from its training images, owners kept whole."""
    by_id = np.argsort(np.argsort(np.array(ids)))
    groups = np.where(owners == NO_OWNER, int(owners.max(initial=0)) + 1 + by_id, owners)
    lacking = {split: fraction for split, fraction in fractions.items() if split not in splits}
    return deal(splits, groups, lacking, seed, "huggingface")


def huggingface(
    *,
    path: Annotated[str, Field(min_length=1)],
    config: str | None = None,
    revision: str | None = None,
    splits: dict[Literal["train", "val", "test"], str] | None = None,
    image_column: str = "image",
    label_column: str = "labels",
    label_columns: list[str] | None = None,
    label_form: Literal["list", "vector"] = "list",
    label_names: list[str] | None = None,
    box_column: str | None = None,
    box_form: Literal["xywh", "xyxy"] = "xywh",
    owner_column: str | None = None,
    id_column: str | None = None,
    image_size: ImageSize = 224,
    resize: Resize = "squash",
    channels: Channels = 3,
    val_fraction: Fraction = 0.1,
    test_fraction: Fraction = 0.1,
    seed: Seed = 0,
) -> Dataset:
    """A Hugging Face ``datasets`` image set with several labels per image, from disk or from the hub.

    Args:
        path: a folder written by ``save_to_disk``, a folder of Parquet files or of images with
            metadata, one file, or the name of a data set of the hub; ``~`` is your home.
        config: the data set's configuration, where it has several.
        revision: commit, tag or branch, of a data set of the hub.
        splits: its name of each split, as ``{"train": "train", "val": "dev"}``; the usual names
            are found by themselves. Splits that are not named are left out.
        image_column: column of images (or of bytes, or of file names below a local ``path``).
        label_column: column of lists of labels; a dot leads into records, ``objects.category``.
        label_columns: one column per label instead.
        label_form: what the lists of ``label_column`` hold: the present labels, or one state
            per label.
        label_names: names of the labels and their order; by default those of the class labels,
            the texts found (sorted), the columns, or the numbers.
        box_column: column of lists of boxes beside those of ``label_column``, ``objects.bbox``, in
            pixels of the upright image.
        box_form: what four numbers of a box are: left, top, width and height, or left, top,
            right and bottom.
        owner_column: column that says whose image it is; null is nobody.
        id_column: column of unique ids; split and row by default.
        image_size: height and width of stored images, pixels.
        resize: ``squash`` changes the aspect, ``crop`` cuts the longer side around the centre,
            ``pad`` adds black bars.
        channels: 3 (colour) or 1 (grey).
        val_fraction: share of the training images for validation, where there is no such split.
        test_fraction: share of the training images for testing, where there is no such split.
        seed: of that random split; all images of an owner stay together.

    Raises:
        InputError: the library is missing, the data set is not there, or its columns are not as
            described; all problems at once.
    """
    found = _open(path, config, revision)
    chosen = _choose_splits(found, splits)
    parts = {name: found[name] for name in chosen.values()}
    if box_column is not None and (label_columns is not None or label_form != "list"):
        msg = "Expected boxes of data set huggingface beside lists of labels, got states. Leave box_column out."
        raise InputError(msg)
    extra = [column for column in (image_column, owner_column, id_column, box_column) if column is not None]
    _check_columns(parts, [*extra, *([label_column] if label_columns is None else label_columns)])
    names, states, problems = _read_labels(parts, label_column, label_form, label_columns, label_names)
    ids, double = _ids(chosen, parts, id_column)
    if problems or double:
        expected = f"Expected data set huggingface at {path} to be as described"
        raise listing(expected, [*double, *problems])
    labels = np.concatenate([states[name] for name in chosen.values()])
    owners, owner_names = _owners(chosen, parts, owner_column)
    given = [split for split, name in chosen.items() for _ in range(len(parts[name]))]
    dealt = _deal(given, owners, ids, {"val": val_fraction, "test": test_fraction}, seed)
    place = Path(path).expanduser()
    root = (place if place.is_dir() else place.parent).absolute() if place.exists() else None
    read = _image_reader([parts[name] for name in chosen.values()], image_column, root)
    where = [(split, row) for split, name in enumerate(chosen.values()) for row in range(len(parts[name]))]
    report = {
        "unused_splits": sorted(set(found) - set(parts)),
        "rows_without_labels": int((labels == UNKNOWN).all(axis=1).sum()),
    }

    sources = _sources(parts, image_column, root)

    def table() -> Table:
        objects = None
        if box_column is not None:
            column_of = _column_of(parts, label_column, names)
            boxes = _read_boxes(parts, (label_column, box_column), box_form, column_of, read)
            if boxes.problems:
                expected = f"Expected boxes of data set huggingface at {path} to be as described"
                raise listing(expected, boxes.problems)
            objects = boxes.fitted(image_size, resize)
        return Table(ids, dealt, labels, owners, objects, sources, owner_names, report)

    digest = hashlib.sha256(labels.tobytes())
    digest.update(json.dumps([ids, dealt, owner_names, owners.tolist()]).encode())
    options = {"config": config, "revision": revision, "image_column": image_column, "resize": resize}
    options |= {} if box_column is None else {"box_column": box_column, "box_form": box_form}
    return Dataset(
        name="huggingface",
        version=VERSION,
        identity={**options, "label_names": names, "size": image_size, "channels": channels}
        | {"table_sha256": digest.hexdigest(), **_fingerprint(path, parts, sources)},
        label_names=tuple(names),
        image_shape=(image_size, image_size, channels),
        table=table,
        image=lambda row: decode(read(*where[row]), image_size, channels, resize),
        licence=str(next(iter(parts.values())).info.license or "that of its page on the hub"),
    )
