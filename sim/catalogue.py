"""What there is to choose from: every catalogue with one line per entry.

Read from the source text, not by importing it, so listing costs nothing and a
broken plug-in cannot break the list.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from fedmlic import spec, text
from fedmlic.errors import InputError
from fedmlic.experiment import Experiment, Runtime

if TYPE_CHECKING:
    from fedmlic.method import Method


class Entry(NamedTuple):
    """One entry of a catalogue.

    Attributes:
        name: its config value.
        summary: the first line of its docstring.
        arguments: keyword and default, as text; no default means it must be given.
        meanings: keyword and what its docstring says of it.
        page: path of its page below the project's folder; empty if it has none there.
        traits: of a method, what it needs and does with its default arguments, by name; empty for
            other entries, and where nobody asked (``with_traits``).
    """

    name: str
    summary: str
    arguments: dict[str, str | None]
    meanings: Mapping[str, str] = MappingProxyType({})
    page: str = ""
    traits: Mapping[str, bool | str] = MappingProxyType({})

    @property
    def call(self) -> str:
        """The entry as it is written in a configuration, with its defaults."""
        parts = [name if default is None else f"{name}={default}" for name, default in self.arguments.items()]
        return f"{self.name}({', '.join(parts)})"

    def to_json(self) -> dict[str, object]:
        """All of it as JSON values."""
        return {**self._asdict(), "meanings": dict(self.meanings), "traits": dict(self.traits)}


def catalogue(key: str) -> list[Entry]:
    """All entries of the catalogue behind the config key ``key``."""
    package = importlib.util.find_spec(spec.CATALOGUES[key])
    folder = Path(str(package.origin)).parent if package and package.origin else Path()
    return [_read(folder / f"{name}.py")._replace(page=_page(key, name)) for name in spec.entries(key)]


def with_traits(entry: Entry) -> Entry:
    """A method's entry with what the method says of itself; one that cannot be built has none.

    This imports the entry, which listing alone does not.
    """
    try:
        return entry._replace(traits=_traits(entry))
    except Exception:  # noqa: BLE001  (a broken entry must not break the list)
        return entry


def _traits(entry: Entry) -> dict[str, bool | str]:
    from fedmlic.method import none, why_one_by_one

    method: Method = spec.build("method", entry.name)
    trial = getattr(importlib.import_module(method_module(entry.name)), "TRIAL", entry.name)
    return {
        "guesses": method.guesses,
        "needs-absences": method.needs_absences,
        "memory": method.remembers or method.private is not none,
        "counts": _asks_leave(method, entry.name),
        "text": _reads_names(entry.arguments),
        "text-option": bool(TEXT_ARGUMENTS & set(entry.arguments)),
        "pretrained": "weights" in spec.parse(trial, "method").arguments,  # which a trial replaces by random ones
        "phases": str(len(method.phases) or ""),
        "one-by-one": why_one_by_one(method),
    }


def _asks_leave(method: Method, name: str) -> bool:
    """Whether an experiment must allow statistics: for what the method declares, or since it refuses to do without."""
    solved = any(phase.solution is not None for phase in method.phases)
    if method.statistics is not None or method.round_sums is not None or solved:
        return True
    if method.refuses is None:
        return False
    own_rule = name in spec.entries("strategy")  # without which it refuses anyway
    rule = f"{name}()" if own_rule else Experiment.model_fields["strategy"].default
    refused, allowed = (Experiment(method=name, strategy=rule, allow_statistics=leave) for leave in (False, True))
    return bool(method.refuses(refused)) and not method.refuses(allowed)


def _reads_names(arguments: Mapping[str, str | None]) -> bool:
    """Whether label names become vectors with a method's default arguments."""
    if "text_model" in arguments:
        return True
    default = arguments.get("text")
    return default is not None and text.reads_names(ast.literal_eval(default))


TEXT_ARGUMENTS = frozenset({"text", "text_model"})
"""Arguments of methods that turn label names into vectors."""


def method_module(name: str) -> str:
    """The module of a method: that of the catalogue, or what is in front of the last dot."""
    return name.rpartition(".")[0] or f"{spec.CATALOGUES['method']}.{name}"


PROJECT = Path(__file__).parents[1]


def _page(key: str, name: str) -> str:
    """Where a checkout has the entry's page; an installed package has no pages."""
    path = Path("docs", spec.CATALOGUES[key].rpartition(".")[2], f"{name}.md")
    return path.as_posix() if (PROJECT / path).is_file() else ""


def everything() -> dict[str, list[Entry]]:
    """All catalogues by config key."""
    return {key: catalogue(key) for key in spec.CATALOGUES}


def settings() -> dict[str, tuple[object, str]]:
    """Every other key with its default and one line on what it is."""
    fields = {**Experiment.model_fields, **Runtime.model_fields}
    return {
        name.replace("_", "-"): (field.default, field.description or "")
        for name, field in fields.items()
        if name not in spec.CATALOGUES
    }


def key_of(name: str) -> str:
    """The config key of the catalogue ``name`` (``method`` or ``methods``); empty if there is none."""
    return next((key for key in (name, name.removesuffix("s")) if key in spec.CATALOGUES), "")


def find(
    name: str, every: Mapping[str, list[Entry]], others: Mapping[str, tuple[object, str]]
) -> tuple[dict[str, list[Entry]], dict[str, tuple[object, str]]]:
    """The entries and settings of a name.

    Args:
        name: of an entry or a setting; dashes or underscores.
        every: all catalogues.
        others: all settings that are no catalogues.

    Raises:
        InputError: there is nothing of that name; the nearest is named.
    """
    wanted = name.partition("(")[0].strip().lower().replace("-", "_")
    entries = {key: [entry for entry in found if entry.name == wanted] for key, found in every.items()}
    found = {key: matches for key, matches in entries.items() if matches}
    settings = {key: value for key, value in others.items() if key.replace("-", "_") == wanted}
    if not found and not settings:
        names = [*every, *others, *(entry.name for found in every.values() for entry in found)]
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"Did you mean {close[0]!r}?" if close else f"Catalogues: {', '.join(every)}."
        msg = f"Expected a catalogue, an entry or a setting, got {name!r}. {hint}"
        raise InputError(msg)
    return found, settings


def _read(path: Path) -> Entry:
    name = path.stem
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            text = ast.get_docstring(node) or ast.get_docstring(tree) or ""
            defaults = [None if d is None else ast.unparse(d) for d in node.args.kw_defaults]
            arguments = {a.arg: d for a, d in zip(node.args.kwonlyargs, defaults, strict=True)}
            return Entry(name, " ".join(text.split("\n\n")[0].split()), arguments, _meanings(text))
    return Entry(name, f"(defines no factory {name})", {})


def _meanings(docstring: str) -> dict[str, str]:
    """What the section ``Args`` of a docstring says of each argument."""
    _, _, section = docstring.partition("\nArgs:\n")
    section = re.split(r"\n(?=\S)", section, maxsplit=1)[0]
    found = re.findall(r"^    (\w+): (.*(?:\n(?: {5,}.*)?)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}
