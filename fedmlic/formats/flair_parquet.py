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
from fedmlic.formats.flair_records import FIELDS, Entries, Layout, Records
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

    Raises:
        InputError: a file's name tells no split, or it lacks columns.
    """
    files = parquet_files(root)
    _check(files)
    stamps = list_files(root, depth=1)
    groups = functools.cache(lambda: _Groups(files))
    return Layout(
        name="parquet",
        names=lambda _: None,
        records=functools.cache(lambda: _read(files)),
        pixels=lambda record, size, channels, resize: _pixels(groups(), record, size, channels, resize),
        identity={"files": stamps_sha256(stamps, [file.relative_to(root).as_posix() for file in files])},
    )


def _check(files: list[Path]) -> None:
    import pyarrow.parquet as pq  # only this layout needs it
    from pyarrow.lib import ArrowException

    problems = Problems("Expected Parquet files of FLAIR named train-*, val-* and test-* with its columns")
    for file in files:
        if file.name.split("-")[0] not in SPLITS:
            problems.add(f"{file}: the name begins with no split")
            continue
        try:
            found = pq.read_schema(file).names
        except (OSError, ArrowException) as error:
            problems.add(f"{file}: {error}")
            continue
        missing = [name for name in ("image", "image_id", "user_id", *FIELDS.values()) if name not in found]
        if missing:
            problems.add(f"{file}: columns {found}, without {missing}")
    problems.finish()


def _read(files: list[Path]) -> Records:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = ["image_id", "user_id", *FIELDS.values()]
    tables = [pq.read_table(file, columns=columns) for file in files]
    partitions = [SPLITS[file.name.split("-")[0]] for file in files]
    table = pa.concat_tables(tables).combine_chunks()
    where = [f"{file}, row {row}" for file, part in zip(files, tables, strict=True) for row in range(part.num_rows)]
    return Records(
        image_ids=[str(value) for value in table["image_id"].to_pylist()],
        users=[str(value) for value in table["user_id"].to_pylist()],
        partitions=[name for name, part in zip(partitions, tables, strict=True) for _ in range(part.num_rows)],
        entries={kind: _entries(table[name], name) for kind, name in FIELDS.items()},
        where=where,
        notes={},
    )


def _entries(column: Any, name: str) -> Entries:  # noqa: ANN401  (pyarrow has no types)
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_list(column.type) and not pa.types.is_large_list(column.type):
        msg = f"Expected column {name!r} to hold lists of label names, got {column.type}. Use the official files."
        raise InputError(msg)
    values = pc.list_flatten(column).combine_chunks()
    if not pa.types.is_string(values.type) and not pa.types.is_large_string(values.type):
        msg = f"Expected column {name!r} to hold label names, got lists of {values.type}. Use the official files."
        raise InputError(msg)
    encoded = values.dictionary_encode()
    encoded = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
    record = np.asarray(pc.list_parent_indices(column), dtype=np.int64)
    return Entries(record, np.asarray(encoded.indices, dtype=np.int64), encoded.dictionary.to_pylist())


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
        group = int(np.searchsorted(self.starts, record, side="right")) - 1
        with self.lock:
            if group not in self.kept:
                place, number = self.places[group]
                self.kept[group] = self.files[place].read_row_group(number, columns=["image"])["image"]
            self.kept.move_to_end(group)
            while len(self.kept) > 1 and sum(images.nbytes for images in self.kept.values()) > KEPT_BYTES:
                self.kept.popitem(last=False)
            value = self.kept[group][record - int(self.starts[group])].as_py()
        content = value["bytes"] if isinstance(value, dict) else value
        if not isinstance(content, bytes):
            msg = "Expected column 'image' to hold the file's bytes, got none. Download the Parquet files again."
            raise InputError(msg)
        return content


def _pixels(groups: _Groups, record: int, size: int, channels: int, resize: Resize) -> NDArray[np.uint8]:
    return decode(io.BytesIO(groups.encoded(record)), size, channels, resize)
