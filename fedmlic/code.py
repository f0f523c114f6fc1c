"""Which source code decides a result: the files behind a catalogue entry, and what became of them since.

The key of a federation, the key of a plug-in's corpus and the record of a run hold these hashes, so that
whoever edits a regime, a data set or a method does not get yesterday's result, or is told.

Found are Python files that are imported by name, at the top of a file or inside a function. Modules that
are loaded in another way, and installed packages (their versions stand in ``environment.json``), are not.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

OURS = ("fedmlic", "clients", "strategies", "sim")
"""Packages of this project."""

DECIDING = ("fedmlic", "clients", "strategies")
"""Those whose code decides a result."""

DIGITS = 16
"""Hexadecimal digits of SHA-256 that are kept of a file."""

INSTALLED_FOLDERS = ("site-packages", "dist-packages")
"""Names of folders of installed packages."""

_SPACE = r"(?:[ \t]|\\\n)"
IMPORT = re.compile(
    rf"(?:^|[;:])[ \t]*(?:from{_SPACE}+(?P<start>[.\w]+){_SPACE}+import{_SPACE}*"
    r"(?P<names>\([^)]*\)|(?:[^\n;\\]|\\\n)+)"
    rf"|import{_SPACE}+(?P<modules>(?:[^\n;\\]|\\\n)+))",
    re.MULTILINE,
)
"""A statement that imports. Python's own parser takes a hundred times as long."""


class Change(NamedTuple):
    """Files that differ between two states of the code, by name."""

    changed: list[str]
    added: list[str]
    removed: list[str]

    def __bool__(self) -> bool:
        """Whether there are any."""
        return any(self)

    def __str__(self) -> str:
        """A line that names up to ten files."""
        parts = []
        for what, names in (("changed", self.changed), ("new", self.added), ("gone", self.removed)):
            if names:
                more = f" and {len(names) - 10} more" if len(names) > 10 else ""
                parts.append(f"{what}: {', '.join(names[:10])}{more}")
        return "; ".join(parts)


def compare(before: Mapping[str, str], after: Mapping[str, str]) -> Change:
    """What became of the files ``before`` (name to hash)."""
    return Change(
        sorted(name for name in before.keys() & after.keys() if before[name] != after[name]),
        sorted(after.keys() - before.keys()),
        sorted(before.keys() - after.keys()),
    )


def digest(files: Mapping[str, str]) -> str:
    """One hash of many files: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(sorted(files.items())).encode()).hexdigest()[:DIGITS]


def package_files(name: str, folder: Path) -> dict[str, str]:
    """Hash of every Python file of the package ``name``, which lies in ``folder``."""
    return {f"{name}/{file.relative_to(folder).as_posix()}": _file_hash(file) for file in sorted(folder.rglob("*.py"))}


def own_files() -> dict[str, str]:
    """Hash of every Python file of this project that decides a result."""
    files: dict[str, str] = {}
    for name in DECIDING:
        place = _locate(name)
        files |= package_files(name, place.parent) if place is not None else {}
    return files


def files_behind(*modules: str) -> dict[str, str]:
    """Hash of the modules' files and of all files that they import and that are not installed packages.

    Args:
        modules: dotted names. Their own packages count as the entry's even where they are installed.
    """
    tops = {*OURS, *(name.partition(".")[0] for name in modules)}
    waiting, seen, files = list(modules), set(modules), {}
    while waiting:
        module = waiting.pop()
        place = (
            _locate(module) if module.partition(".")[0] in tops or not _installed(module.partition(".")[0]) else None
        )
        if place is None:
            continue
        end = "/__init__.py" if place.name == "__init__.py" else ".py"
        files[module.replace(".", "/") + end] = _module_hash(module, place)
        for name in _imports(place, module):
            if name not in seen:
                seen.add(name)
                waiting.append(name)
    return files


def outside(files: Mapping[str, str]) -> dict[str, str]:
    """Those files that are not of this project: a plug-in's own."""
    return {name: value for name, value in files.items() if name.partition("/")[0].removesuffix(".py") not in OURS}


def _locate(module: str) -> Path | None:
    """The Python file of a module, without importing anything; ``None`` if it has none."""
    top, *parts = module.split(".")
    place, folders = _top_level(top)
    for part in parts:
        place, folders = _below(part, folders)
    return place


def _below(part: str, folders: tuple[Path, ...]) -> tuple[Path | None, tuple[Path, ...]]:
    for folder in folders:
        if (folder / part / "__init__.py").is_file():
            return folder / part / "__init__.py", (folder / part,)
        if (folder / f"{part}.py").is_file():
            return folder / f"{part}.py", ()
    spaces = tuple(folder / part for folder in folders if (folder / part).is_dir())
    return None, spaces


def _top_level(name: str) -> tuple[Path | None, tuple[Path, ...]]:
    """File and folders of a top-level module or package."""
    loaded = sys.modules.get(name)
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):  # a module that was made by hand, or __main__
        file = getattr(loaded, "__file__", None)
        return (Path(file) if file else None), ()
    if found is None:
        return None, ()
    place = Path(found.origin) if found.origin and found.origin.endswith(".py") else None
    return place, tuple(map(Path, found.submodule_search_locations or ()))


@functools.cache
def _installed(top: str) -> bool:
    """Whether a top-level module is Python's own or was installed."""
    if top in sys.stdlib_module_names or top in sys.builtin_module_names:
        return True
    place, folders = _top_level(top)
    homes = [Path(sysconfig.get_path(kind)).resolve() for kind in ("purelib", "platlib")]
    # Of the user or of the Python that a virtual environment was made from: kernels of notebooks often see those.
    homes += [Path(entry).resolve() for entry in sys.path if Path(entry).name in INSTALLED_FOLDERS]
    places = [place] if place is not None else list(folders)
    return not places or any(home in path.resolve().parents for path in places for home in homes)


def _stamp(file: Path) -> tuple[int, int]:
    about = file.stat()
    return about.st_size, about.st_mtime_ns


_LOADED: dict[str, tuple[object, str]] = {}
"""By module: what stands for its last import, and the hash of its file then."""


def _module_hash(module: str, file: Path) -> str:
    """The hash of a module's file; once it is imported, that of the code which runs, whatever the file has become."""
    imported = getattr(sys.modules.get(module), "__spec__", None)  # a new one for each import
    if imported is None:
        return _file_hash(file)
    if module not in _LOADED or _LOADED[module][0] is not imported:
        _LOADED[module] = (imported, _file_hash(file))
    return _LOADED[module][1]


def _file_hash(file: Path) -> str:
    return _hash_once(file, _stamp(file))


@functools.cache
def _hash_once(file: Path, stamp: tuple[int, int]) -> str:
    del stamp  # part of the cache's key: a file that was edited is read again
    return hashlib.sha256(file.read_bytes()).hexdigest()[:DIGITS]


def _imports(file: Path, module: str) -> tuple[str, ...]:
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    return _imports_once(file, _stamp(file), package)


@functools.cache
def _imports_once(file: Path, stamp: tuple[int, int], package: str) -> tuple[str, ...]:
    """Every dotted name that a file imports, and its parents; names that are no modules too."""
    del stamp
    found = {name for match in IMPORT.finditer(file.read_text("utf-8", "replace")) for name in _named(match, package)}
    return tuple(sorted(found | {parent for name in found for parent in _parents(name)}))


def _named(match: re.Match[str], package: str) -> Iterator[str]:
    """The dotted names of one statement."""
    start, names = match["start"], re.sub(r"#[^\n]*", "", match["names"] or match["modules"]).strip("( )\\\n")
    parts = [words[0] for words in (name.replace("\\", " ").split() for name in names.split(",")) if words]
    if start is None:
        yield from parts
        return
    level = len(start) - len(start.lstrip("."))
    above = package.split(".")[: len(package.split(".")) - level + 1] if level else []
    base = ".".join([*above, *([start[level:]] if start[level:] else [])])
    if base:
        yield base
        yield from (f"{base}.{name}" for name in parts if name != "*")


def _parents(name: str) -> Iterable[str]:
    parts = name.split(".")
    return (".".join(parts[:length]) for length in range(1, len(parts)))
