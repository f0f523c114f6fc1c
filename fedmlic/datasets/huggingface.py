"""Any image set of the Hugging Face ``datasets`` library that says which labels an image has.

Read are folders written by ``save_to_disk``, folders of Parquet files, image folders with a
``metadata.jsonl`` or ``metadata.csv``, single Parquet files, and data sets of the hub. Labels
come in one of three forms:

* **list**: a column of lists names what is present, as class labels, text or numbers; every
  other label is absent. An empty list says that none is there; no list at all (null) says nothing
  about any label.
* **vector**: a column of lists holds one state per label. Booleans are states; numbers that may
  be either are refused until ``label_form`` says what they are.
* **columns**: one column per label holds its state.

A state is 1 or true (present), 0 or false (absent), -1, null or NaN (unknown), -2 (uncertain). Of class
labels -1 is what the library stores where no class was given: unknown; a list of nothing else is null.

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from fedmlic.corpus import home
from fedmlic.dataset import NO_OWNER, Dataset, Objects, Table
from fedmlic.errors import InputError, installing, listing, nearest
from fedmlic.formats.csv_rows import columns, lines
from fedmlic.formats.json_rows import odd_rows
from fedmlic.formats.reading import read_lines
from fedmlic.images import Resize, decode, read_header
from fedmlic.labels import ABSENT, PRESENT, STATES, UNCERTAIN, UNKNOWN
from fedmlic.problems import Problems
from fedmlic.sources.groups import SplitBy, deal, deal_within, number_groups, owner_warnings, owners_whole
from fedmlic.sources.label_names import check_names, composed
from fedmlic.sources.objects import boxed_objects
from fedmlic.sources.options import Channels, ImageSize, Seed

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = "2"

Fraction = Annotated[float, Field(ge=0, le=0.5)]

USUAL_SPLITS = {"train": ("train",), "val": ("validation", "valid", "val", "dev"), "test": ("test",)}
"""Names that the field gives to its splits."""

FILES = {".parquet": "parquet", ".arrow": "arrow", ".json": "json", ".jsonl": "json", ".csv": "csv"}
"""Readers of single files by the end of their name."""


MAX_NUMBERED = 1 << 15
"""Most labels that are numbers and have no names."""


WORDS = {
    **dict.fromkeys(("0", "0.0", "no", "false", "absent", "negative", "neg"), ABSENT),
    **dict.fromkeys(("1", "1.0", "yes", "true", "present", "positive", "pos"), PRESENT),
    **dict.fromkeys(("-1", "unknown"), UNKNOWN),
    **dict.fromkeys(("-2", "uncertain"), UNCERTAIN),
}
"""States as texts and as names of classes, in lower case."""

NO_CLASS = -1
"""What the library stores of a class label where no class was given."""


# Opening


def _library() -> Any:  # noqa: ANN401  (an optional package without types)
    try:
        return importlib.import_module("datasets")
    except ImportError as error:
        msg = f"Expected the package 'datasets' for data set huggingface, got: {error}. Run: {installing('hub')}."
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
        if place.exists():
            _name_odd_rows(place)
        what = "a folder or file that the library reads" if place.exists() else "a data set of the hub"
        msg = (
            f"Expected path of data set huggingface to be {what}, got {path!r}: {_causes(error)}. "
            "Correct the path, or give config=... or revision=..."
        )
        raise InputError(msg) from error
    finally:
        if not quiet:
            library.utils.enable_progress_bars()
    return dict(found) if isinstance(found, dict) else {str(found.split or "train"): found}


def _causes(error: BaseException) -> str:
    """An exception and those behind it: the library's own says only that one occurred."""
    texts: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(texts) < 4:
        text = f"{type(cause).__name__}: {str(cause).strip().rstrip('.')}"
        texts += [text] if text not in texts else []
        cause = cause.__cause__ or cause.__context__
    return "; caused by ".join(texts)


def _name_odd_rows(place: Path) -> None:
    """Raise ``InputError`` that names file, line and cause where metadata or tables on this machine are odd."""
    files = [place] if place.is_file() else sorted(_files_below(place))
    problems = Problems(f"Expected tables of data set huggingface at {place} to be readable", complete=True)
    for file in files:
        if file.suffix.lower() == ".jsonl":
            found = problems.attempt(odd_rows, file) or []
        elif file.suffix.lower() == ".csv":
            found = problems.attempt(_odd_cells, file) or []
        else:
            continue
        where = file.name if place.is_file() else file.relative_to(place).as_posix()
        if file.stem == "metadata" and not found:
            found = problems.attempt(_unnamed_rows, file) or []
        for problem in found:
            problems.add(f"{where} {problem}")
    problems.finish()


def _odd_cells(file: Path) -> list[str]:
    numbered = list(lines(file))
    width = len(numbered[0][1]) if numbered else 0
    return [
        f"line {number}: {len(cells)} cells for {width} columns" for number, cells in numbered if len(cells) != width
    ]


def _unnamed_rows(file: Path) -> list[str]:
    """Rows of the metadata of an image folder that name no file."""
    if file.suffix.lower() == ".csv":
        header = columns(file)
        return [] if any(map(_names_files, header)) else [f"line 1: no column 'file_name' among {header}"]
    rows = ((number, json.loads(text)) for number, text in read_lines(file))
    return [f"line {number}: no 'file_name'" for number, row in rows if not any(map(_names_files, row))]


def _names_files(name: str) -> bool:
    return name.endswith(("file_name", "file_names"))


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


def _check_columns(parts: Mapping[str, Any], wanted: list[str], led_into: list[str]) -> None:
    """Refuse columns that a split lacks; a dot of those in ``led_into`` may lead into records."""
    wrong = [
        f"split {name!r} has no column {column!r}. {nearest(column, part.features)}"
        for name, part in parts.items()
        for column in dict.fromkeys([*wanted, *led_into])
        if (_top(column, part)[0] if column in led_into else column) not in part.features
    ]
    if wrong:
        expected = "Expected data set huggingface to have the columns asked for"
        raise listing(expected, wrong)


# Labels


def _top(column: str, part: Any) -> tuple[str, list[str]]:  # noqa: ANN401
    """The column of a table, and the fields below it that dots lead to; a column may have dots in its own name."""
    if column in part.features:
        return column, []
    top, *path = column.split(".")
    return top, path


def _inner(part: Any, column: str) -> Any:  # noqa: ANN401
    """The feature of what a column's lists hold, following ``objects.category``; ``None`` if it holds no lists."""
    top, path = _top(column, part)
    feature = part.features[top]
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
    top, path = _top(column, part)
    return [_values(row, path) for row in part.select_columns([top])[:][top]]


@dataclass
class _Reader:
    """Turns a column into states and collects what is wrong on the way."""

    names: list[str]
    of_classes: bool = False
    problems: list[str] = field(default_factory=list)
    state_of: list[Mapping[Any, int]] = field(default_factory=list)

    def listed(self, values: list[Any] | None, where: str, column_of: Callable[[Any], int | None]) -> list[int]:
        """States of an image for which the present labels are listed."""
        nobody_said = self.of_classes and bool(values) and set(values or ()) == {NO_CLASS}
        if values is None or nobody_said:
            return [UNKNOWN] * len(self.names)
        states = [ABSENT] * len(self.names)
        for value in values:
            column = column_of(value)
            if self.of_classes and value == NO_CLASS:
                self.problems.append(f"{where}: label -1, which says that no class was given, beside others")
            elif column is None:
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
        return [self._state(value, where, place) for place, value in enumerate(values)]

    def _state(self, value: Any, where: str, place: int) -> int:  # noqa: ANN401
        if value is None or value != value:  # noqa: PLR0124  (NaN)
            return UNKNOWN
        if isinstance(value, (bool, int, float)) and value in self.state_of[place]:
            return self.state_of[place][value]
        if isinstance(value, str) and value.strip().lower() in WORDS:
            return WORDS[value.strip().lower()]
        name = self.names[place]
        self.problems.append(f"{where}: {value!r} for {name!r}, which may be 1, 0, -1, -2 or null")
        return UNKNOWN


def _state_of(feature: Any, column: str) -> Mapping[Any, int]:  # noqa: ANN401
    """What each number of a column of states means; of class labels, by the names of the classes."""
    classes = getattr(feature, "names", None)
    if classes is None:
        return {state: state for state in STATES.values()}
    unknown = [name for name in classes if name.lower() not in WORDS]
    if unknown:
        msg = (
            f"Expected classes of column {column!r} of data set huggingface to be states ({', '.join(WORDS)}), got "
            f"{', '.join(map(repr, unknown[:8]))}. Lists of present labels are read with label_column and "
            "label_form='list'."
        )
        raise InputError(msg)
    return {NO_CLASS: UNKNOWN, **{number: WORDS[name.lower()] for number, name in enumerate(classes)}}


def _shared_feature(features: Mapping[str, Any], column: str, *, kinds: bool) -> Any:  # noqa: ANN401
    """The feature that a column has in all splits; those without any value (type null) say nothing.

    Args:
        features: of every split, by its name.
        column: its name, for the error.
        kinds: whether splits may not hold numbers, texts or booleans where others hold something else of these.

    Raises:
        InputError: classes of two splits have other names or another order, or are classes in one split only.
    """
    said = {name: feature for name, feature in features.items() if _kind(feature) != "null"} or features
    (first, expected), *others = said.items()
    for other, found in others:
        difference = _difference(first, expected, other, found, kinds=kinds)
        if difference:
            msg = (
                f"Expected column {column!r} of data set huggingface to hold the same classes in the same order in "
                f"every split, got {difference}. Cast all splits to one feature (cast_column), after putting their "
                "values into that order."
            )
            raise InputError(msg)
    return expected


def _difference(first: str, expected: Any, other: str, found: Any, *, kinds: bool) -> str:  # noqa: ANN401
    """The first difference between the classes of two splits, or blank."""
    ours, theirs = (getattr(feature, "names", None) for feature in (expected, found))
    kind, another = _kind(expected), _kind(found)
    if (ours is None) != (theirs is None) or (kinds and kind != another):
        return f"values of kind {kind} in split {first!r} and of kind {another} in split {other!r}"
    for place, (name, instead) in enumerate(zip(ours or (), theirs or (), strict=False)):
        if name != instead:
            return f"class {place} {name!r} in split {first!r} and {instead!r} in split {other!r}"
    if len(ours or ()) != len(theirs or ()):
        return f"{len(ours or ())} classes in split {first!r} and {len(theirs or ())} in split {other!r}"
    return ""


def _listed_feature(parts: Mapping[str, Any], column: str) -> Any:  # noqa: ANN401
    """What a column's lists hold in all splits.

    Raises:
        InputError: a split's column holds no lists, or something else than that of another split.
    """
    whole = {name: part.features[_top(column, part)[0]] for name, part in parts.items()}
    inner = {name: _inner(part, column) for name, part in parts.items()}
    # A column without any value has no type, so that it is no list; it counts only where no split has one.
    odd = [name for name, feature in inner.items() if feature is None and _kind(whole[name]) != "null"]
    lists = {name: feature for name, feature in inner.items() if feature is not None}
    if odd or not lists:
        name = next(iter(odd or whole))
        msg = (
            f"Expected column {column!r} of data set huggingface to hold lists of labels, got {whole[name]} in split "
            f"{name!r}. Give label_column=... or label_columns=[...]."
        )
        raise InputError(msg)
    return _shared_feature(lists, column, kinds=True)


def _read_labels(
    parts: Mapping[str, Any], column: str, form: str, columns: list[str] | None, names: list[str] | None
) -> tuple[list[str], dict[str, NDArray[np.int8]], list[str]]:
    """Label names, states ``[images, labels]`` of every split, and problems."""
    if columns is not None:
        if names is None:
            check_names([composed(name) for name in columns], "data set huggingface")
        reader = _Reader(_different(names or columns, len(columns)))
        shared = (
            _shared_feature({name: part.features[one] for name, part in parts.items()}, one, kinds=False)
            for one in columns
        )
        reader.state_of = [_state_of(feature, one) for feature, one in zip(shared, columns, strict=True)]
        rows = {name: _zipped(part.select_columns(columns)[:], columns) for name, part in parts.items()}
        return _states(reader, rows, reader.stated)
    feature = _listed_feature(parts, column)
    rows = {name: _lists(part, column) for name, part in parts.items()}
    classes = getattr(feature, "names", None)
    in_records = any(_top(column, part)[1] for part in parts.values())
    form = _form(_Column(column, _kind(feature), rows, classes, in_records), form, names)
    if form == "vector":
        width = max((len(row) for part in rows.values() for row in part if row is not None), default=0)
        reader = _Reader(_different(names or [str(place) for place in range(width)], None))
        reader.state_of = [_state_of(feature, column)] * len(reader.names)
        return _states(reader, rows, reader.stated)
    reader, column_of = _vocabulary(rows, classes, names)
    return _states(reader, rows, lambda values, where: reader.listed(values, where, column_of))


class _Column(NamedTuple):
    """A column of lists.

    Attributes:
        name: as the user gave it.
        kind: what the lists hold: ``class``, ``text``, ``bool``, ``float``, ``int`` or something else.
        rows: the lists of every split.
        classes: names of the classes, of class labels.
        in_records: whether it is a field of records.
    """

    name: str
    kind: str
    rows: Mapping[str, list[list[Any] | None]]
    classes: Sequence[str] | None = None
    in_records: bool = False

    @property
    def lists(self) -> list[list[Any]]:
        """All lists that are there, without nulls and NaN in them."""
        given = [row for part in self.rows.values() for row in part if row is not None]
        return [[value for value in row if value is not None and value == value] for row in given]  # noqa: PLR0124  (NaN)

    def refused(self, what: str, advice: str) -> InputError:
        """The error for a column whose form is not clear."""
        return InputError(f"Expected column {self.name!r} of data set huggingface to hold labels, got {what}. {advice}")


def _kind(feature: Any) -> str:  # noqa: ANN401
    """What the library says that lists hold."""
    if getattr(feature, "names", None) is not None:
        return "class"
    dtype = str(getattr(feature, "dtype", ""))
    kinds = {
        "bool": "bool",
        "float": "float",
        "double": "float",
        "decimal": "float",
        "int": "int",
        "uint": "int",
        "string": "text",
    }
    return next((kind for start, kind in kinds.items() if dtype.removeprefix("large_").startswith(start)), dtype)


def _form(column: _Column, form: str, names: list[str] | None) -> str:
    """Whether lists name present labels (``list``) or hold a state per label (``vector``).

    The type decides where it can: booleans are states, texts and class labels are labels. Numbers
    are judged over the whole column, and what stays unclear is refused.
    """
    if column.kind == "bool":
        if form == "list":
            raise column.refused("booleans, which are states", "Give label_form='vector', or leave it out.")
        return "vector"
    if column.kind == "float":
        return _form_of_floats(column, form)
    if form != "auto":
        return form
    if column.kind in {"class", "text"}:
        _check_words(column)
    return _form_of_integers(column, names) if column.kind == "int" and not column.in_records else "list"


def _check_words(column: _Column) -> None:
    """Refuse vectors of states that are written as texts or as classes such as no and yes."""
    words = {str(word).lower() for word in column.classes or (value for row in column.lists for value in row)}
    if words and words <= set(WORDS) and any(len(row) > 1 for row in column.lists):
        what = f"lists of {', '.join(map(repr, sorted(words)))}, which are states rather than names of labels"
        advice = "Give label_form='vector'" if column.classes else "Store them as numbers, and give label_form='vector'"
        raise column.refused(what, f"{advice}, or label_form='list' if labels are called so.")


def _form_of_floats(column: _Column, form: str) -> str:
    lists = column.lists
    broken = next((value for row in lists for value in row if not float(value).is_integer()), None)
    if broken is not None:
        what = f"numbers such as {broken:.6g}, which are neither states nor labels"
        raise column.refused(
            what, "Scores have to be compared with a threshold first: 1 present, 0 absent, null unknown."
        )
    same = len({len(row) for part in column.rows.values() for row in part if row is not None}) <= 1
    if form == "auto" and not (same and all(value in STATES.values() for row in lists for value in row)):
        what = "whole numbers stored as decimals, which may be numbers of labels or states"
        raise column.refused(what, "Give label_form='list' or label_form='vector'.")
    return "vector" if form == "auto" else form


def _form_of_integers(column: _Column, names: list[str] | None) -> str:
    """``list`` where the whole column allows nothing else; else ``InputError``.

    Vectors have one length, one state per label. So lists of several lengths name labels, and so
    do lists with a number above 1, unless all have one length and repeat numbers, as counts would.
    Empty lists tell nothing: among vectors they stand for images that nobody looked at. Another number
    of names only settles lists of one number: of longer ones the names may as well be wrong.
    """
    lists = column.lists
    widths = {len(row) for part in column.rows.values() for row in part if row}
    numbers = {value for row in lists for value in row}
    widest = max(widths, default=0)
    repeats = any(len(set(row)) < len(row) for row in lists)
    several_named = names is not None and len(names) > 1
    if not numbers or (several_named and widest == 1 and min(numbers) >= 0):
        return "list"
    only_states = numbers <= set(STATES.values())
    unclear = (only_states and (len(widths) == 1 or widest > 2)) or (len(widths) == 1 and widest > 1 and repeats)
    if unclear:
        which = "0 or 1" if numbers <= {0, 1} else f"of {sorted(numbers)[:8]}"
        what = (
            f"up to {widest} number{'s' if widest > 1 else ''} in each list that are {which}: a vector with one state "
            "per label, or a list of the numbers of present labels"
        )
        if names is not None and len(names) != widest:
            what += f"; a vector would have {widest} names, and there are {len(names)} label_names"
        raise column.refused(what, "Give label_form='vector' or label_form='list'.")
    return "list"


def _zipped(columns: Mapping[str, list[Any]], names: list[str]) -> list[list[Any] | None]:
    return [list(values) for values in zip(*(columns[name] for name in names), strict=True)]


def _different(names: list[str], count: int | None) -> list[str]:
    names = [composed(name) for name in names]
    if not names or len(set(names)) != len(names) or (count is not None and len(names) != count):
        wanted = f"{count} different names" if count else "different names, at least one"
        msg = f"Expected label_names of data set huggingface to be {wanted}, got {names}."
        raise InputError(msg)
    return names


def _vocabulary(
    rows: Mapping[str, list[list[Any] | None]], classes: list[str] | None, names: list[str] | None
) -> tuple[_Reader, Callable[[Any], int | None]]:
    """Label names, and the column that each value stands for."""
    found = {value for part in rows.values() for row in part if row is not None for value in row}
    texts = {composed(value) for value in found if isinstance(value, str)}
    if names is None and (classes is not None or texts):
        check_names([composed(name) for name in classes] if classes is not None else texts, "data set huggingface")
    if classes is not None:
        chosen = _different(names or list(classes), None)
        of_name = {name: place for place, name in enumerate(chosen)}
        of_value: dict[Any, int | None] = {place: of_name.get(composed(name)) for place, name in enumerate(classes)}
        return _Reader(chosen, of_classes=True), of_value.get
    if texts:
        chosen = _different(names or sorted(texts), None)
        of_text = {name: place for place, name in enumerate(chosen)}
        return _Reader(chosen), lambda value: of_text.get(composed(value)) if isinstance(value, str) else None
    highest = max((int(value) for value in found if isinstance(value, (int, float)) and value == value), default=-1)  # noqa: PLR0124
    if names is None and highest >= MAX_NUMBERED:
        msg = (
            f"Expected labels without names to be numbers below {MAX_NUMBERED}, got {highest}. Give label_names=[...]."
        )
        raise InputError(msg)
    chosen = _different(names or [str(place) for place in range(highest + 1)], None)
    return _Reader(chosen), dict(enumerate(range(len(chosen)))).get


def _column_of(parts: Mapping[str, Any], column: str, names: list[str]) -> Callable[[Any], int | None]:
    """The column of the label matrix that a value of ``column`` stands for."""
    feature = _listed_feature(parts, column)
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
    """Owner numbers, and their names."""
    if column is None:
        return np.full(sum(len(parts[name]) for name in chosen.values()), NO_OWNER, dtype=np.int64), []
    feature = _shared_feature({name: part.features[column] for name, part in parts.items()}, column, kinds=False)
    nobody = (None,) if getattr(feature, "names", None) is None else (None, NO_CLASS)
    values = [value for name in chosen.values() for value in parts[name].select_columns([column])[:][column]]
    return number_groups(["" if value in nobody else composed(str(value)) for value in values])


def _deal(
    splits: list[str],
    owners: NDArray[np.int64],
    ids: list[str],
    fractions: Mapping[str, float],
    seed: int,
    *,
    whole: bool,
) -> list[str]:
    """Take the splits that the source lacks from its training images, owners kept whole or each divided."""
    by_id = np.argsort(np.argsort(np.array(ids)))
    groups = np.where(owners == NO_OWNER, int(owners.max(initial=0)) + 1 + by_id, owners)
    lacking = {split: fraction for split, fraction in fractions.items() if split not in splits}
    if not whole:
        return deal_within(splits, owners, ids, lacking, seed, "huggingface")
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
    label_form: Literal["auto", "list", "vector"] = "auto",
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
    split_by: SplitBy = "auto",
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
        label_column: column of lists of labels; a dot leads into records, ``objects.category``,
            unless a column has that whole name.
        label_columns: one column per label instead.
        label_form: what the lists of ``label_column`` hold: the present labels (``list``), or one
            state per label (``vector``). ``auto`` decides by their type, and for numbers by the
            whole column; where that leaves a doubt it is an error.
        label_names: names of the labels and their order; by default those of the class labels,
            the texts found (sorted), the columns, or the numbers.
        box_column: column of lists of boxes beside those of ``label_column``, ``objects.bbox``, in
            pixels of the upright image.
        box_form: what four numbers of a box are: left, top, width and height, or left, top,
            right and bottom.
        owner_column: column that says whose image it is; null, and -1 of class labels, is nobody.
        id_column: column of unique ids; split and row by default.
        image_size: height and width of stored images, pixels.
        resize: ``squash`` changes the aspect, ``crop`` cuts the longer side around the centre,
            ``pad`` adds black bars.
        channels: 3 (colour) or 1 (grey).
        val_fraction: share of the training images for validation, where there is no such split.
        test_fraction: share of the training images for testing, where there is no such split.
        split_by: ``owner`` keeps all images of an owner together in that split, ``image`` gives
            each owner its share of every split; ``auto`` is ``owner`` for 20 owners or more, else
            ``image``.
        seed: of that random split.

    Raises:
        InputError: the library is missing, the data set is not there, or its columns are not as
            described; all problems at once.
    """
    found = _open(path, config, revision)
    chosen = _choose_splits(found, splits)
    parts = {name: found[name] for name in chosen.values()}
    if box_column is not None and (label_columns is not None or label_form == "vector"):
        msg = "Expected boxes of data set huggingface beside lists of labels, got states. Leave box_column out."
        raise InputError(msg)
    extra = [column for column in (image_column, owner_column, id_column) if column is not None]
    led_into = [*([] if box_column is None else [box_column]), *([label_column] if label_columns is None else [])]
    _check_columns(parts, [*extra, *(label_columns or [])], led_into)
    problems = Problems(f"Expected data set huggingface at {path} to be as described")
    ids, double = _ids(chosen, parts, id_column)
    for problem in double:
        problems.add(problem)
    owned = problems.attempt(_owners, chosen, parts, owner_column)
    read_labels = problems.attempt(_read_labels, parts, label_column, label_form, label_columns, label_names)
    place = Path(path).expanduser()
    if read_labels is None and place.exists():
        problems.attempt(_name_odd_rows, place)  # often why a column is not what it should be
    names, states, wrong = read_labels or ([], {}, [])
    for problem in wrong:
        problems.add(problem)
    if problems or owned is None:
        raise problems.error()
    owners, owner_names = owned
    labels = np.concatenate([states[name] for name in chosen.values()])
    given = [split for split, name in chosen.items() for _ in range(len(parts[name]))]
    whole = owners_whole(split_by, owners) or not owner_names
    dealt = _deal(given, owners, ids, {"val": val_fraction, "test": test_fraction}, seed, whole=whole)
    warnings = owner_warnings(owner_names, owners, dealt if dealt != given else [], split_by)
    root = (place if place.is_dir() else place.parent).absolute() if place.exists() else None
    read = _image_reader([parts[name] for name in chosen.values()], image_column, root)
    where = [(split, row) for split, name in enumerate(chosen.values()) for row in range(len(parts[name]))]
    report = {
        "unused_splits": sorted(set(found) - set(parts)),
        "rows_without_labels": int((labels == UNKNOWN).all(axis=1).sum()),
        **({"warnings": warnings} if warnings else {}),
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
        own=place.exists(),
    )
