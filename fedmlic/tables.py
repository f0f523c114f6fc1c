"""The tables of a run: which columns they have, and how they are made from the event log.

``SCHEMAS`` is the contract with whoever reads a Parquet file: names, types, units, and whether a number may be missing.
``docs/record.md`` says what each column means, ``docs/schemas/tables.json`` is this in JSON.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from fedmlic.label_events import LABELS

if TYPE_CHECKING:
    import pandas as pd

Dtype = Literal["int64", "float64", "float32", "bool", "string"]

METADATA: Final = b"fedmlic"
"""Key of a Parquet file's metadata under which the table's name and version stand, as JSON."""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: its name; one that ends in ``*`` stands for all columns that begin so.
        dtype: of its values; an integer column with missing numbers is float64.
        unit: what is counted or measured; empty for names and flags.
        nullable: whether a number may be missing (NaN).
        optional: whether the column may be missing.
    """

    name: str
    dtype: Dtype
    unit: str = ""
    nullable: bool = False
    optional: bool = False

    def stands_for(self, name: str) -> bool:
        """Whether it describes the column called ``name``."""
        return name.startswith(self.name[:-1]) if self.name.endswith("*") else name == self.name


@dataclass(frozen=True)
class TableSchema:
    """What a table looks like.

    Attributes:
        event: the kind of event that it is made of.
        columns: in their usual order.
        version: rises with every change that a reader could notice but a new optional column.
    """

    event: str
    columns: tuple[Column, ...]
    version: int = 1

    def column(self, name: str) -> Column | None:
        """The description of a column; None if there is none."""
        exact = [each for each in self.columns if each.name == name]
        return next(iter(exact or [each for each in self.columns if each.stands_for(name)]), None)


def _shares(prefix: str) -> Column:
    return Column(prefix, "float64", "see docs/metrics.md", nullable=True, optional=True)


_ROUND = Column("round", "int64", "rounds")
_CLIENT = Column("client", "int64")
_CLIENT_NAME = Column("client-name", "string", optional=True)
_ERROR = Column("error", "string")
_BYTES = (Column("bytes-down", "int64", "bytes"), Column("bytes-up", "int64", "bytes"))

SCHEMAS: Final[Mapping[str, TableSchema]] = {
    "rounds": TableSchema(
        "round",
        (
            _ROUND,
            Column("time", "float64", "seconds since 1970"),
            Column("seconds", "float64", "seconds, cumulative"),
            Column("train-seconds", "float64", "seconds"),
            Column("num-clients", "int64", "clients"),
            Column("num-failed", "int64", "clients"),
            Column("num-images", "int64", "images"),
            Column("loss", "float64", nullable=True),
            *_BYTES,
            _shares("method/*"),
            Column("withheld/*", "float64", "numbers", nullable=True, optional=True),
            _shares("strategy/*"),
            Column("best-round", "int64", "rounds"),
            Column("idle-share", "float64", "share", nullable=True, optional=True),
            Column("slowest-client", "int64", nullable=True, optional=True),
            Column("slowest-seconds", "float64", "seconds", nullable=True, optional=True),
            _shares("server/*"),
        ),
    ),
    "clients": TableSchema(
        "client",
        (
            _ROUND,
            _CLIENT,
            _CLIENT_NAME,
            Column("host", "string"),
            Column("started", "float64", "seconds since 1970"),
            Column("seconds", "float64", "seconds"),
            Column("num-images", "int64", "images"),
            Column("num-annotations", "int64", "entries"),
            Column("loss", "float64", nullable=True),
            Column("num-steps", "int64", "steps"),
            *_BYTES,
            _ERROR,
        ),
    ),
    "hosts": TableSchema(
        "host",
        (
            _ROUND,
            Column("host", "string"),
            Column("num-clients", "int64", "clients"),
            Column("num-images", "int64", "images"),
            Column("busy-seconds", "float64", "seconds"),
            Column("idle-share", "float64", "share", nullable=True),
        ),
    ),
    "labels": TableSchema(
        LABELS,
        (
            _ROUND,
            Column("split", "string"),
            Column("label", "string"),
            Column("annotated", "bool", nullable=True, optional=True),
            Column("train_present", "int64", "images", nullable=True, optional=True),
            Column("ap", "float32", "share", nullable=True),
            Column("precision", "float32", "share", nullable=True),
            Column("recall", "float32", "share", nullable=True),
            Column("f1", "float32", "share", nullable=True),
            Column("num_present", "int64", "images"),
            Column("num_known", "int64", "images"),
        ),
        version=2,
    ),
    "evaluations": TableSchema(
        "clients-evaluated",
        (
            _ROUND,
            Column("num-clients", "int64", "clients"),
            Column("num-failed", "int64", "clients"),
            Column("client/mAP/worst-client", "int64", nullable=True, optional=True),
            _shares("client/*"),
        ),
    ),
    "client-evaluations": TableSchema(
        "client-evaluation",
        (
            _ROUND,
            _CLIENT,
            _CLIENT_NAME,
            Column("split", "string"),
            Column("mAP", "float64", "share", nullable=True),
            Column("num-labels", "int64", "labels"),
            Column("num-images", "int64", "images"),
            Column("prevalence", "float64", "share", nullable=True),
            Column("chance", "float64", "share", nullable=True),
            Column("trained", "bool"),
            _ERROR,
        ),
    ),
}
"""By name of the table; its file is ``NAME.parquet``."""


def tables_of(events: Iterable[dict[str, Any]], client_names: Sequence[str] = ()) -> dict[str, pd.DataFrame]:
    """All tables, made from events.

    Args:
        events: as ``RunFolder`` reads them; columns of ``labels`` are arrays or lists.
        client_names: of clients that are owners with names; they get a column ``client-name``.
    """
    import pandas as pd  # a second of import that a run does not need before its first tables

    rows: dict[str, list[dict[str, Any]]] = {schema.event: [] for schema in SCHEMAS.values()}
    for event in events:
        kind = event.pop("event")
        if kind in rows:
            rows[kind].append(event)
    tables = {}
    for name, schema in SCHEMAS.items():
        found = rows[schema.event]
        table = pd.DataFrame(_label_columns(found) if schema.event == LABELS else found)
        tables[name] = _typed(table, schema, client_names)
    return tables


def write_table(path: Path, name: str, table: pd.DataFrame) -> None:
    """Write a table as a Parquet file, atomically; its metadata name it and its version."""
    import pyarrow as pa
    from pyarrow import parquet

    made = pa.Table.from_pandas(table, preserve_index=False)
    about = json.dumps({"table": name, "version": SCHEMAS[name].version})
    made = made.replace_schema_metadata({**(made.schema.metadata or {}), METADATA: about.encode()})
    temporary = path.with_name(f".{path.name}.tmp")
    parquet.write_table(made, temporary, compression="zstd")
    temporary.replace(path)


def _label_columns(events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The columns of all tables of labels below each other; a column that a part lacks is NaN there."""
    names = list(dict.fromkeys(name for event in events for name in event))
    parts: dict[str, list[Any]] = {name: [] for name in names}
    for event in events:
        for name in names:
            parts[name].append(_block(event.get(name, math.nan), len(event["label"])))
    return {name: _joined(blocks) for name, blocks in parts.items()}


def _block(value: Any, size: int) -> Any:  # noqa: ANN401  (a list, an array, or one value for all rows)
    if isinstance(value, np.ndarray):
        return value
    if not isinstance(value, list):
        return np.full(size, value, dtype=object if isinstance(value, str) else None)
    # Objects, since NumPy would copy every name into every row.
    return np.asarray(value, dtype=object if None in value or isinstance(value[0], str) else None)


def _joined(blocks: list[Any]) -> Any:  # noqa: ANN401  (an array of whatever the column holds)
    kinds = {block.dtype.kind for block in blocks}
    if kinds <= {"i", "u", "f"} or len(kinds) == 1:
        return np.concatenate(blocks)
    return np.concatenate([block.astype(object) for block in blocks])


def _typed(table: pd.DataFrame, schema: TableSchema, client_names: Sequence[str]) -> pd.DataFrame:
    """The table with the types of its schema; one without rows has every column that is not optional."""
    import pandas as pd

    if not len(table.columns):
        columns = [column for column in schema.columns if not column.optional]
        return pd.DataFrame({column.name: pd.Series(dtype=_pandas(column.dtype)) for column in columns})
    for empty in table.columns[table.isna().all()]:
        table[empty] = math.nan  # never None: the column is one of numbers
    if _ERROR in schema.columns:
        table["error"] = table["error"].fillna("").astype(str) if "error" in table else ""
    if client_names and _CLIENT_NAME in schema.columns:
        place = list(table.columns).index("client") + 1
        table.insert(place, "client-name", [client_names[client] for client in table["client"]])
    names = [str(name) for name in table.columns]
    places = {column.name: place for place, column in enumerate(schema.columns)}
    order = dict.fromkeys(names, len(places))
    for name in names:
        column = schema.column(name)
        if column is not None:
            table[name], order[name] = _cast(table[name], column.dtype), places[column.name]
    ordered = sorted(names, key=order.__getitem__)
    return table[ordered]


def _cast(series: pd.Series[Any], dtype: Dtype) -> pd.Series[Any]:
    whole = not bool(series.isna().any())
    if dtype == "int64":
        return series.astype("int64") if whole else series
    if dtype == "bool":
        return series.astype("bool") if whole else series
    if dtype == "float64":
        return series.astype("float64")
    return series.astype("float32") if dtype == "float32" else series.astype("str")


def _pandas(dtype: Dtype) -> str:
    return "str" if dtype == "string" else dtype
