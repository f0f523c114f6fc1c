"""What a study says of its rows: settings that it varies or chose, and the names of an axis whose values are tables."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sim.comparison.fixed import fixed_in


class Named(NamedTuple):
    """The value of an axis of tables.

    Attributes:
        axis: its name.
        keys: settings in its tables.
        name: of the table.
    """

    axis: str
    keys: frozenset[str]
    name: str


@dataclass(frozen=True)
class OfStudy:
    """What its study says of a run.

    Attributes:
        reference: which reference it is; empty for a row of the study itself.
        searched: settings that were chosen on validation data for its row.
        axes: settings that the study varies; ``None`` for a run by itself.
        study: folder of the study.
        named: its values of the axes of tables.
    """

    reference: str = ""
    searched: frozenset[str] = frozenset()
    axes: tuple[str, ...] | None = None
    study: Path | None = None
    named: tuple[Named, ...] = ()


ALONE = OfStudy()
"""Of a run of no study."""


class HasStudy:
    """A run with what its study says of it, in ``of``."""

    if TYPE_CHECKING:

        @property
        def of(self) -> OfStudy:
            """That."""

    @property
    def reference(self) -> str:
        """Which reference of a study it is; empty for none."""
        return self.of.reference

    @property
    def searched(self) -> frozenset[str]:
        """Settings that its study chose on validation data for its row."""
        return self.of.searched


def rows_in(study: Path, about: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], OfStudy]]:
    """The rows of a study's file, and what it says of their runs.

    Args:
        study: its folder.
        about: what the file ``study.json`` in it says.
    """
    keys = {axis: _keys(axis, values) for axis, values in about["axes"].items() if axis != "seed"}
    axes = tuple(dict.fromkeys(key for found in keys.values() for key in found))
    tables = {axis: frozenset(found) for axis, found in keys.items() if found != [axis]}
    searched = frozenset((about.get("search") or {}).get("settings", {}))
    for row in about["rows"]:
        # A value is empty for a reference that does not depend on the axis; older studies have none.
        values = row.get("values", {})
        named = tuple(Named(axis, tables[axis], values[axis]) for axis in tables if values.get(axis))
        yield row, OfStudy(row["reference"], searched - fixed_in(row["reference"]), axes, study, named)


def _keys(axis: str, values: Sequence[Any]) -> list[str]:
    """Settings of an axis: its own name, or the keys of its tables."""
    tables = [value for value in values if isinstance(value, dict)]
    return [key.replace("_", "-") for table in tables for key in table if key != "name"] or [axis]


def named_axes(
    runs: Sequence[HasStudy], keys: Collection[str], differing: Collection[str]
) -> dict[str, frozenset[str]]:
    """Axes of tables, with their settings, by whose names rows can be told apart.

    Those of the one study that all runs are of, where no setting of theirs in which the runs differ is left out.

    Args:
        runs: of all rows.
        keys: settings that are to be named.
        differing: settings in which the runs differ, references aside.
    """
    if len({run.of.study for run in runs}) != 1:
        return {}
    left_out = frozenset(differing) - frozenset(keys)
    axes = {named.axis: named.keys for run in runs for named in run.of.named}
    return {axis: found for axis, found in axes.items() if not found.isdisjoint(keys) and not found & left_out}


def compared_by(keys: Sequence[str], axes: Mapping[str, frozenset[str]]) -> tuple[str, ...]:
    """What rows differ in: axes of tables by their names, and the settings of no such axis.

    >>> compared_by(["local-epochs", "method", "batch-size"], {"work": frozenset({"local-epochs", "batch-size"})})
    ('work', 'method')
    """
    covered = frozenset[str]().union(*axes.values())
    return (*axes, *(key for key in keys if key not in covered))


def named_parts(
    run: HasStudy, keys: Sequence[str], axes: Mapping[str, frozenset[str]]
) -> tuple[list[str], frozenset[str]]:
    """Names of a run's tables, and the settings that they stand for.

    A name stands alone where nothing but its axis is compared, else behind that of its axis.
    """
    alone = len(compared_by(keys, axes)) == 1
    names = [named for named in run.of.named if named.axis in axes]
    parts = [named.name if alone else f"{named.axis} {named.name}" for named in names]
    return parts, frozenset[str]().union(*(named.keys for named in names))
