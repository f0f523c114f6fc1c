"""What there is to choose from: every catalogue with one line per entry.

Read from the source text, not by importing it, so listing costs nothing and a
broken plug-in cannot break the list.
"""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from typing import NamedTuple

from fedmlic import spec
from fedmlic.experiment import Experiment, Runtime


class Entry(NamedTuple):
    """One entry of a catalogue.

    Attributes:
        name: its config value.
        summary: the first line of its docstring.
        arguments: keyword and default, as text; no default means it must be given.
    """

    name: str
    summary: str
    arguments: dict[str, str | None]

    @property
    def call(self) -> str:
        """The entry as it is written in a configuration, with its defaults."""
        parts = [name if default is None else f"{name}={default}" for name, default in self.arguments.items()]
        return f"{self.name}({', '.join(parts)})"


def catalogue(key: str) -> list[Entry]:
    """All entries of the catalogue behind the config key ``key``."""
    package = importlib.util.find_spec(spec.CATALOGUES[key])
    folder = Path(str(package.origin)).parent if package and package.origin else Path()
    return [_read(folder / f"{name}.py") for name in spec.entries(key)]


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


def _read(path: Path) -> Entry:
    name = path.stem
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            text = ast.get_docstring(node) or ast.get_docstring(tree) or ""
            defaults = [None if d is None else ast.unparse(d) for d in node.args.kw_defaults]
            arguments = {a.arg: d for a, d in zip(node.args.kwonlyargs, defaults, strict=True)}
            return Entry(name, " ".join(text.split("\n\n")[0].split()), arguments)
    return Entry(name, f"(defines no factory {name})", {})
