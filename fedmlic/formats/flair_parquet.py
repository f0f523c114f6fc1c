"""FLAIR as Hugging Face serves it: Parquet files ``train-*``, ``val-*`` and ``test-*``.

Columns ``image`` (a struct of ``bytes`` and ``path``), ``image_id``, ``user_id``, ``labels``
and ``fine_grained_labels`` (lists of texts). The split is the beginning of the file's name.
Images are read a row group at a time; the last few groups are kept.

Source: huggingface.co/datasets/apple/flair and the code that reads it, github.com/apple/pfl-research.
"""

from __future__ import annotations

import functools
import io
import threading
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedmlic.errors import InputError
from fedmlic.files import list_files, stamps_sha256
from fedmlic.formats.flair_records import FIELDS, KINDS, EntryList, Layout, Records
from fedmlic.images import decode
from fedmlic.problems import Problems

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedmlic.images import Resize

KEPT_BYTES = 1 << 28
"""Encoded images kept in memory, in whole row groups (a hundred images of 13 kB, or more)."""

SPLITS = {"train": "train", "val": "val", "validation": "val", "test": "test"}


def parquet_files(root: Path) -> list[Path]:
    """The Parquet files in ``root`` or its folder ``data``, sorted."""
    return sorted(root.glob("*.parquet")) or sorted((root / "data").glob("*.parquet"))


def open_flair_parquet(root: Path) -> Layout:
    """The layout of Parquet files in ``root`` or ``root/data``.

    Files of another kind or with other columns are ``problems`` of the records.
    """
    files = parquet_files(root)
    stamps = list_files(root, depth=1)
    groups = functools.cache(lambda: _Groups(files))
    return Layout(
        name="parquet",
        names=lambda _: None,
        records=functools.cache(lambda: _read(root, files)),
        pixels=lambda record, size, channels, resize: _pixels(groups(), record, size, channels, resize),
        identity={"files": stamps_sha256(stamps, [file.relative_to(root).as_posix() for file in files])},
    )


def _read(root: Path, files: list[Path]) -> Records:
    problems = Problems("Expected Parquet files of FLAIR named train-*, val-* and test-* with its columns")
    if not files:
        problems.add(f"none in {root} and {root / 'data'}")
    ids: list[str] = []
    users: list[str] = []
    partitions: list[str] = []
    where: list[str] = []
    lists = {kind: EntryList() for kind in KINDS}
    for file in files:
        split = SPLITS.get(file.name.split("-")[0])
        if split is None:
            problems.add(f"{file}: the name begins with no split")
        part = _read_file(file, problems)
        if part is None or split is None:
            continue
        ids += part["image_id"]
        users += part["user_id"]
        partitions += [split] * len(part["image_id"])
        where += [f"{file}, row {row}" for row in range(len(part["image_id"]))]
        for kind, entries in lists.items():
            for labels in part[FIELDS[kind]]:
                entries.add(labels)
    return Records(
        ids, users, partitions, {kind: entries.finish() for kind, entries in lists.items()}, where, {}, problems.lines
    )


def _read_file(file: Path, problems: Problems) -> dict[str, list[Any]] | None:
    """The columns of one file but for its images, or None where they are not what they should be."""
    import pyarrow.parquet as pq  # only this layout needs it
    from pyarrow.lib import ArrowException

    before = len(problems)
    columns = ["image_id", "user_id", *FIELDS.values()]
    try:
        found = pq.read_schema(file).names
        missing = [name for name in ("image", *columns) if name not in found]
        if missing:
            problems.add(f"{file}: columns {found}, without {missing}")
            return None
        table = pq.read_table(file, columns=columns)
        values = {name: _column(table[name], name, lists=name in FIELDS.values()) for name in columns}
    except (OSError, ArrowException, InputError) as error:
        problems.add(f"{file}: {error}")
        return None
    for name, column in values.items():
        for row, value in enumerate(column):
            if value is None or (isinstance(value, list) and None in value):
                problems.add(f"{file}, row {row}: {name} is {value}")
    return values if len(problems) == before else None


def _column(column: Any, name: str, *, lists: bool) -> list[Any]:  # noqa: ANN401  (pyarrow has no types)
    """The values of a column of texts, or of lists of texts."""
    import pyarrow as pa

    kind = column.type
    if lists:
        if not pa.types.is_list(kind) and not pa.types.is_large_list(kind):
            msg = f"Expected column {name!r} to hold lists of label names, got {kind}. Use the official files."
            raise InputError(msg)
        kind = kind.value_type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    numbers = not lists and pa.types.is_integer(kind)
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or numbers):
        msg = f"Expected column {name!r} to hold {'label names' if lists else 'texts'}, got {column.type}. "
        msg += "Use the official files."
        raise InputError(msg)
    values: list[Any] = column.to_pylist()
    return [None if value is None else str(value) for value in values] if numbers else values


class _Groups:
    """The encoded images of row groups, the last ones used kept in memory."""

    def __init__(self, files: list[Path]) -> None:
        import pyarrow.parquet as pq

        self.files = [pq.ParquetFile(file) for file in files]
        self.places = [(place, group) for place, file in enumerate(self.files) for group in range(file.num_row_groups)]
        rows = [self.files[place].metadata.row_group(group).num_rows for place, group in self.places]
        self.starts = np.concatenate(([0], np.cumsum(rows))).astype(np.int64)
        self.kept: OrderedDict[int, Any] = OrderedDict()
        self.lock = threading.Lock()

    def encoded(self, record: int) -> bytes:
        """The image file of a record."""
        from pyarrow.lib import ArrowException

        try:
            content = self._encoded(record)
        except (OSError, ArrowException) as error:
            msg = f"Expected an undamaged Parquet file, got: {error}. Download it again."
            raise InputError(msg) from error
        if not isinstance(content, bytes):
            msg = "Expected column 'image' to hold the file's bytes, got none. Download the Parquet files again."
            raise InputError(msg)
        return content

    def _encoded(self, record: int) -> Any:  # noqa: ANN401  (pyarrow has no types)
        group = int(np.searchsorted(self.starts, record, side="right")) - 1
        with self.lock:
            if group not in self.kept:
                place, number = self.places[group]
                self.kept[group] = self.files[place].read_row_group(number, columns=["image"])["image"]
            self.kept.move_to_end(group)
            while len(self.kept) > 1 and sum(images.nbytes for images in self.kept.values()) > KEPT_BYTES:
                self.kept.popitem(last=False)
            value = self.kept[group][record - int(self.starts[group])].as_py()
        return value.get("bytes") if isinstance(value, dict) else value


def _pixels(groups: _Groups, record: int, size: int, channels: int, resize: Resize) -> NDArray[np.uint8]:
    return decode(io.BytesIO(groups.encoded(record)), size, channels, resize)
