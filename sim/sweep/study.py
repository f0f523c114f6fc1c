"""The study file: a base experiment, axes, seeds, and settings that are searched on validation data.

::

    [base]                                  # settings of 'fedmlic run'; recipe = "NAME" begins with a recipe
    dataset = "scenes(preset='small')"
    num-rounds = 20

    [axes]                                  # crossed: every value of one with every value of the others
    method = ["bce()", "asl()"]
    seed = "0..4"

    [[axes.local-work]]                     # settings that go together are one axis, of tables with a name each
    name = "short"
    local-epochs = 1
    learning-rate = 0.01
    [[axes.local-work]]
    name = "long"
    local-epochs = 8
    learning-rate = 0.001

    [search]                                # for every combination of the axes but the seed
    weight-decay = [0.0, 1e-4]              # or a range, see sim/sweep/search.py
"""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fedmlic import spec
from fedmlic.errors import InputError, listing, nearest
from fedmlic.experiment import Experiment, Runtime, explain, split_settings
from sim.sweep.search import Search, Settings, Value, dashed, values_of
from sim.sweep.table import is_beside

WHOLE = {"mods", "label-names"}
"""Settings whose text holds commas: in a command it is one value, never several."""

Reference = Literal["central", "central-observed", "local-only", "fedavg", "untrained"]

REFERENCES: tuple[Reference, ...] = get_args(Reference)
"""Names of references; ``sim/references.py`` makes them."""

_ONE_CLIENT = {"single-client", "strategy", "cohort-size", "num-clients", "num-rounds", "partition"}
_BUDGET = {"local-epochs", "local-steps", "regime"}
DEFINING: Mapping[str, set[str]] = {
    "central": _ONE_CLIENT | _BUDGET,
    "central-observed": _ONE_CLIENT | _BUDGET,
    # It takes the settings that are chosen for its row, local work and labels among them.
    "local-only": _ONE_CLIENT,
    "fedavg": {"strategy", "method", "partition", "regime", "num-clients", "single-client"},
    # It takes what is chosen for its row, but for settings of training.
    "untrained": set(),
}
"""Settings that say what a reference is, or from which the length of its training follows: none of them is searched
beside it. A search would replace what the reference is, or choose other clients or more training for it than for
the row that it belongs to."""


class Study(BaseModel):
    """A study as its file has it.

    Attributes:
        base: settings of every run; ``recipe`` names one to begin with.
        axes: values by setting, or tables with a ``name`` by the name of the axis.
        search: what is chosen for every combination.
        references: what every table needs beside its rows (``sim/references.py``); ``true`` stands for all.
        references_of: rows that the references belong to: values by axis or setting, several of one in a list; all
            rows by default.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: Settings = {}
    axes: dict[str, Annotated[list[Value | Settings], Field(min_length=1)]] = {}
    search: Search | None = None
    references: tuple[Reference, ...] = ()
    references_of: dict[str, Annotated[list[Value], Field(min_length=1)]] = {}

    @field_validator("references", mode="before")
    @classmethod
    def _all_of_them(cls, found: object) -> object:
        return {True: REFERENCES, False: ()}[found] if isinstance(found, bool) else found

    @field_validator("references_of", mode="before")
    @classmethod
    def _lists(cls, found: Any) -> Any:  # noqa: ANN401
        if not isinstance(found, dict):
            return found
        return {dashed(key): value if isinstance(value, list) else [value] for key, value in found.items()}

    @field_validator("axes", mode="before")
    @classmethod
    def _ranges(cls, found: Any) -> Any:  # noqa: ANN401
        if not isinstance(found, dict):
            return found
        for key, value in found.items():
            if isinstance(value, dict):
                msg = f"Expected axis {key!r} to be a list of values, got {value}. Ranges belong in [search]."
                raise InputError(msg)
        return {dashed(k): values_of(k, v) for k, v in found.items()}

    @field_validator("base", mode="after")
    @classmethod
    def _dashes(cls, found: Settings) -> Settings:
        return {dashed(key): value for key, value in found.items()}

    @model_validator(mode="after")
    def _axes_fit(self) -> Study:
        problems = list(_problems(self))
        if problems:
            msg = "Expected a study's axes to go together"
            raise listing(msg, problems)
        return self

    @property
    def seeds(self) -> list[int]:
        """Seeds of every row."""
        return [int(seed) for seed in self.axes.get("seed", [self.base.get("seed", 0)])]  # type: ignore[arg-type]


def _problems(study: Study) -> Iterator[str]:
    """What does not go together, a line each."""
    tables: dict[str, set[str]] = {}
    yield from _settings_of_axes(study, tables)
    searched = set(study.search.settings) if study.search else set()
    for key in sorted(({key for keys in tables.values() for key in keys} | searched) & _where()):
        yield f"{key} says where and how fast a run is computed and cannot be varied; set it in [base]"
    if study.references_of and not study.references:
        yield "references-of says whose references are added, and none are. Name them: references = [...], --references"
    if "out" in study.base:
        yield "base.out: every run has a folder of its own in the study's; give that with --out"
    yield from _overlaps(tables, searched)
    yield from _wrong_seeds(study)
    for key in sorted(searched):
        names = [name for name in REFERENCES if name in study.references and key in DEFINING[name]]
        if names:
            yield (
                f"search.{key} would change what the reference{'s' * (len(names) > 1)} {', '.join(names)} stand for. "
                f"Make {key} an axis, or name other references (references = [...] in a study file)"
            )


def _settings_of_axes(study: Study, tables: dict[str, set[str]]) -> Iterator[str]:
    """Note which settings each axis sets; yield axes that set none."""
    known = {dashed(name) for name in Experiment.model_fields}
    for axis, values in study.axes.items():
        named = [value for value in values if isinstance(value, dict)]
        if named and len(named) < len(values):
            yield f"axis {axis!r}: values and tables side by side; give every value as a table with a name"
        elif named:
            searched = study.search is not None and axis in study.search.settings
            if is_beside(axis) or searched:
                what = "a searched setting" if searched else "another column of the study's table"
                yield f"axis {axis!r}: its name is that of {what}; choose another name"
            tables[axis] = {dashed(key) for table in named for key in table if key != "name"}
            names = [str(table.get("name", "")) for table in named]
            if "" in names or len(set(names)) < len(names):
                yield f"axis {axis!r}: every table needs a name of its own, got {names}"
        elif axis not in known | _where():
            yield f"axis {axis!r} is no setting. {nearest(axis, known)} Settings that go together are tables."
        else:
            tables[axis] = {axis}


def _wrong_seeds(study: Study) -> Iterator[str]:
    if "seed" in study.axes:
        wrong = [seed for seed in study.axes["seed"] if isinstance(seed, bool) or not isinstance(seed, int)]
        if wrong:
            yield f"axis 'seed': Expected whole numbers, got {wrong[0]!r}"
            return
    seeds = map(str, study.axes.get("seed", [study.base.get("seed", 0)]))  # what is no number is refused elsewhere
    if study.search is not None and str(study.search.seed) in seeds:
        yield f"search.seed {study.search.seed} is also a seed of the table. Choose another"


def _where() -> set[str]:
    return {dashed(name) for name in Runtime.model_fields}


def _overlaps(tables: Mapping[str, set[str]], searched: set[str]) -> Iterator[str]:
    for one, other in itertools.combinations(tables, 2):
        for key in sorted(tables[one] & tables[other]):
            yield f"axes {one!r} and {other!r} both set {key}"
    for axis, keys in tables.items():
        if "seed" in keys and axis != "seed":
            yield f"axis {axis!r} sets the seed; seeds are an axis of their own"
        for key in sorted(keys & searched):
            yield f"axis {axis!r} sets {key}, which is also searched"


def read_study(path: Path, recipe: Callable[[str], Settings]) -> dict[str, Any]:
    """The tables of a study file, ``recipe`` in its base filled in; not yet checked.

    Raises:
        InputError: no file, no TOML, or a table that a study has not.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        msg = f"Expected {path} to be a study in TOML, got an error: {error}."
        raise InputError(msg) from None
    known = [dashed(key) for key in Study.model_fields]
    unknown = [key for key in found if dashed(key) not in known]
    if unknown:
        hint = nearest(unknown[0], known)
        msg = f"Expected {path} to hold the tables of a study, got {unknown[0]!r}. {hint} Settings belong in [base]."
        raise InputError(msg)
    base = dict(found.get("base", {}))
    if "recipe" in base:
        base = {**recipe(str(base.pop("recipe"))), **{dashed(key): value for key, value in base.items()}}
    return {**{key.replace("-", "_"): value for key, value in found.items()}, "base": base}


def check_study(tables: Mapping[str, Any]) -> Study:
    """The study of these tables.

    Raises:
        InputError: anything that is wrong, all at once.
    """
    try:
        return Study(**tables)
    except ValidationError as error:
        raise InputError(explain(error)) from None


def split_values(key: str, text: str) -> list[str]:
    """The values of an axis in a command: separated by commas that lie in no brackets and no quotes.

    >>> split_values("method", "bce(),asl(clip=0.1)"), split_values("seed", "0..2")
    (['bce()', 'asl(clip=0.1)'], ['0', '1', '2'])
    """
    if key in WHOLE:
        return [text]
    parts, depth, quote = [""], 0, ""
    for letter in text:
        quote = "" if letter == quote else letter if not quote and letter in "'\"" else quote
        depth += 0 if quote else (letter in "([{") - (letter in ")]}")
        if letter == "," and not quote and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    if len(parts) == 1:
        return [str(value) for value in values_of(key, text)]  # type: ignore[attr-defined]
    return [part.strip() for part in parts]


@dataclass(frozen=True)
class Row:
    """One combination of all axes but the seed: a row of the table.

    Attributes:
        label: its values, for people.
        values: text of the value by axis.
        settings: of its runs, without those that are searched and without the seed.
        axes: settings by axis: its own name, or the keys of its tables.
        reference: which reference it is; empty for a row of the study itself.
        like: the row whose chosen settings it takes; its own by default.
        fixed: settings in which it does not differ from the reference of another row, whatever that row's are.
    """

    label: str
    values: Mapping[str, str]
    settings: Mapping[str, Any]
    axes: Mapping[str, frozenset[str]] = field(default_factory=dict)
    reference: str = ""
    like: Row | None = None
    fixed: frozenset[str] = frozenset()

    def experiment(self, **changes: Any) -> Experiment:  # noqa: ANN401  (settings are any)
        """The experiment with some settings changed (dashed names with underscores)."""
        return split_settings({**self.settings, **{dashed(key): value for key, value in changes.items()}})[0]


def rows_of(study: Study) -> list[Row]:
    """Every combination of the axes but the seed, the first axis varying slowest.

    Raises:
        InputError: settings that are wrong, those of all combinations at once.
    """
    axes = {axis: values for axis, values in study.axes.items() if axis != "seed"}
    base = {key: value for key, value in study.base.items() if key != "seed"}
    rows = [_row(list(axes), chosen, base) for chosen in itertools.product(*axes.values())]
    problems: dict[str, None] = {}
    for row in rows:
        for choice in study.search.ends() if study.search else [{}]:
            try:
                split_settings({**row.settings, **choice, "seed": study.seeds[0]})
            except InputError as error:
                problems[str(error)] = None
    if len(problems) == 1:
        raise InputError(next(iter(problems)))
    if problems:
        msg = "Expected the settings of a study to be those of experiments"
        raise listing(msg, list(problems), complete=True)
    return rows


def rows_with(rows: Sequence[Row], wanted: Mapping[str, Sequence[Any]]) -> list[Row]:
    """The rows that have one of the wanted values in every axis or setting that is named; all where none is.

    Values are compared by what they ask for: ``bce`` and ``bce()`` are one.

    Args:
        rows: of a study.
        wanted: values by axis or setting (``references-of``).

    Raises:
        InputError: no such axis or setting, or no row has such values.
    """
    found = list(rows)
    known = {dashed(name) for name in Experiment.model_fields}.union(*(row.values for row in rows))
    for key, values in wanted.items():
        if key not in known:
            msg = f"Expected references-of to name axes or settings of the study, got {key!r}. {nearest(key, known)}"
            raise InputError(msg)
        there = [_value(row, key) for row in found]
        found = [
            row for row, value in zip(found, there, strict=True) if any(_same(key, each, value) for each in values)
        ]
        if not found:
            msg = (
                f"Expected references-of to select rows of the study, got {key}={', '.join(map(str, values))}, which "
                f"none has. Choose of {', '.join(map(repr, dict.fromkeys(map(str, there))))}, or name no references."
            )
            raise InputError(msg)
    return found


def _value(row: Row, key: str) -> Any:  # noqa: ANN401  (settings are any)
    return row.values[key] if key in row.values else getattr(row.experiment(), key.replace("-", "_"))


def _same(key: str, one: object, other: object) -> bool:
    """Whether two values of an axis or setting ask for the same."""
    if str(one) == str(other):
        return True
    if key not in spec.CATALOGUES:
        return False
    try:
        texts = [[spec.resolve(key, str(each)) for each in spec.parse_all(str(text), key)] for text in (one, other)]
    except (InputError, ImportError):
        return False
    return texts[0] == texts[1]


def named_tables(axis: str, values: Sequence[Any], names: Sequence[str]) -> list[Settings] | None:
    """The tables of an axis that have these names, to play a part of a study.

    Args:
        axis: its name.
        values: of the axis.
        names: that were asked for.

    Returns:
        None where the axis has no tables, or where the names may be values of the setting that is called like it.

    Raises:
        InputError: no such table.
    """
    tables = {str(value.get("name")): value for value in values if isinstance(value, dict)}
    unknown = [name for name in names if name not in tables]
    if not tables or (unknown and dashed(axis) in {dashed(name) for name in Experiment.model_fields}):
        return None
    if unknown:
        msg = f"Expected {axis} to be one of {', '.join(map(repr, tables))}, got {unknown[0]!r}. Name its tables."
        raise InputError(msg)
    return [tables[name] for name in names]


def _row(axes: Sequence[str], chosen: Sequence[Any], base: Settings) -> Row:
    settings, values, keys = dict(base), {}, {}
    for axis, value in zip(axes, chosen, strict=True):
        if isinstance(value, dict):
            values[axis] = str(value["name"])
            found = {dashed(key): setting for key, setting in value.items() if key != "name"}
            settings |= found
            keys[axis] = frozenset(found)
        else:
            values[axis] = ", ".join(value) if isinstance(value, list) else str(value)
            settings[axis] = value
            keys[axis] = frozenset({axis})
    shown = [
        text if "(" in text or axis in {*spec.CATALOGUES} - {"mods"} else f"{axis} {text or 'none'}"
        for axis, text in values.items()
    ]
    return Row(", ".join(shown) or "base", values, settings, keys)
