"""From the text ``dirichlet(alpha=0.3)`` to the factory of that name, its arguments checked.

A catalogue is a package whose file ``name.py`` defines the factory ``name``.
Nothing is registered: the text names the file. A dotted name
(``my_lab.methods.foo(a=3)``) loads a factory from outside the repository. The
factory's keyword-only signature is the schema; pydantic checks the arguments.
"""

from __future__ import annotations

import ast
import fnmatch
import functools
import importlib
import importlib.util
import inspect
import re
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model, validate_call

from fedmlic.errors import InputError, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from types import ModuleType

CATALOGUES = {
    "dataset": "fedmlic.datasets",
    "partition": "fedmlic.partitions",
    "regime": "fedmlic.regimes",
    "method": "fedmlic.methods",
    "mods": "fedmlic.mods",
    "model": "fedmlic.models",
    "strategy": "strategies",
    "inference": "fedmlic.inferences",
}
"""Config key of each catalogue and the package that holds its entries."""

RESULTS = {
    "dataset": "Dataset",
    "regime": "Regime",
    "method": "Method",
    "mods": "Mod",
    "model": "Model",
    "strategy": "Strategy",
    "inference": "Inference",
    "label vectors": "VectorKind",
}
"""What a factory of each catalogue returns, and one of label vectors; a partition is any function."""

OWN_PACKAGES = ("fedmlic", "strategies", "clients")
"""Packages of this project that plug-ins import from."""


SPELLED = {"true": "True", "false": "False", "none": "None", "null": "None"}
"""Words of other languages, in small letters, and how these texts spell them."""


class Spec(NamedTuple):
    """A parsed call: the (possibly dotted) name and its keyword arguments."""

    name: str
    arguments: dict[str, Any]

    def __str__(self) -> str:
        """The canonical text: sorted arguments, always with parentheses."""
        arguments = ", ".join(f"{key}={value!r}" for key, value in sorted(self.arguments.items()))
        return f"{self.name}({arguments})"


def parse(text: str, what: str = "value") -> Spec:
    """Read ``name`` or ``name(key=literal, ...)``; literals only, nothing is evaluated.

    >>> parse("dirichlet(alpha=0.3)")
    Spec(name='dirichlet', arguments={'alpha': 0.3})
    """
    problem = f"Expected {what} to look like name(key=value, ...), got {text!r}."
    return _read(_expression(text, problem), problem)


def parse_all(text: str, what: str = "value") -> list[Spec]:
    """Read several calls, separated by commas; none in an empty text.

    >>> [str(each) for each in parse_all("clip(norm=1.0), int8()")]
    ['clip(norm=1.0)', 'int8()']
    """
    problem = f"Expected {what} to look like name(key=value, ...), other(...), got {text!r}."
    node = _expression(f"({text},)" if text.strip() else "()", problem)
    if not isinstance(node, ast.Tuple):
        raise InputError(problem)
    return [_read(element, problem) for element in node.elts]


def _expression(text: str, problem: str) -> ast.expr:
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        msg = f"{problem} {getattr(error, 'msg', error)}."
        raise InputError(msg) from None


def _read(node: ast.expr, problem: str) -> Spec:
    call = node if isinstance(node, ast.Call) else ast.Call(func=node, args=[], keywords=[])
    if call.args:
        msg = f"{problem} Give every argument by name."
        raise InputError(msg)
    arguments: dict[str, Any] = {}
    for keyword in call.keywords:
        if keyword.arg is None or keyword.arg in arguments:
            msg = f"{problem} Give every argument once, by name."
            raise InputError(msg)
        try:
            arguments[keyword.arg] = ast.literal_eval(keyword.value)
        except (ValueError, TypeError):
            value = ast.unparse(keyword.value)
            msg = f"{problem} {keyword.arg}={value} is not a number, text, list or boolean; {_remedy(keyword.value)}."
            raise InputError(msg) from None
    return Spec(_dotted(call.func, problem), arguments)


def _remedy(value: ast.expr) -> str:
    """What to write in place of a value that is none: TOML and JSON spell three words in another way."""
    open_nodes: list[ast.expr] = [value]
    found: list[str] = []
    while open_nodes:
        node = open_nodes.pop(0)
        if isinstance(node, ast.List | ast.Tuple | ast.Set):
            open_nodes += node.elts
        elif isinstance(node, ast.Dict):
            open_nodes += [each for each in (*node.keys, *node.values) if each is not None]
        elif isinstance(node, ast.Name) and node.id.lower() in SPELLED:
            found.append(f"write {SPELLED[node.id.lower()]}")
        elif not isinstance(node, ast.Constant | ast.UnaryOp):
            found.append("quote text")
    return " and ".join(dict.fromkeys(found)) or "quote text"


def _dotted(node: ast.expr, problem: str) -> str:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        raise InputError(problem)
    return ".".join([node.id, *reversed(parts)])


class Allowed(NamedTuple):
    """What texts that somebody else wrote may name here.

    Attributes:
        plugins: patterns of names from outside the catalogues, in which ``*`` stands for anything.
        folders: below which files may be named; ``*`` for any.
    """

    plugins: tuple[str, ...]
    folders: tuple[str, ...]


_ALLOWED: ContextVar[Allowed | None] = ContextVar("what texts may name", default=None)

LONGEST_PATH = 255
"""Longer relative texts name no file."""

VECTOR_ARGUMENTS = frozenset({"text", "of"})
"""Arguments that name label vectors (``fedmlic.text``)."""

VECTORS = "label vectors"
"""What ``fedmlic.text`` calls its kinds, which are functions of its own and no catalogue."""


@contextmanager
def allowing(plugins: Iterable[str], folders: Iterable[str] = ()) -> Iterator[None]:
    """Inside the block no text names code or files of this machine but what is allowed.

    It holds for every text that is built, those among the arguments of other entries included.

    Args:
        plugins: patterns of dotted names of code from outside the catalogues; nothing else of it is imported.
        folders: below which files may be named; ``*`` for any.
    """
    token = _ALLOWED.set(Allowed(tuple(plugins), tuple(folders)))
    try:
        yield
    finally:
        _ALLOWED.reset(token)


def is_restricted() -> bool:
    """Whether texts are somebody else's, so that errors must not tell what files hold."""
    allowed = _ALLOWED.get()
    return allowed is not None and "*" not in allowed.folders


def _check_allowed(key: str, name: str) -> None:
    allowed = _ALLOWED.get()
    own = key == VECTORS and name.rpartition(".")[0] == "fedmlic.text"
    if allowed is not None and not own and not _matches(name, allowed.plugins):
        raise refusal(key, [name], allowed.plugins)


def _check_files(key: str, name: str, value: Any) -> None:  # noqa: ANN401  (arguments are any)
    """Refuse an argument that names a file elsewhere than allowed, whether or not it is there."""
    allowed = _ALLOWED.get()
    if allowed is None or "*" in allowed.folders:
        return
    if isinstance(value, (list, tuple)):
        for item in value:
            _check_files(key, name, item)
    elif isinstance(value, (str, Path)) and _is_path(str(value)):
        place = Path(value).expanduser().resolve()
        if not any(place.is_relative_to(Path(folder).expanduser().resolve()) for folder in allowed.folders):
            msg = (
                f"Expected files that {key} {name} names to lie below what this device allows "
                f"({', '.join(allowed.folders) or 'nothing'}), got one elsewhere. Its owner can add "
                "allow-files='/FOLDER' to --node-config."
            )
            raise InputError(msg)


def _is_path(text: str) -> bool:
    """Whether a text names a place on this machine: absolute, with ``..`` or ``~``, or relative and there.

    So a plain word is one, too, where the working folder has something of this name.
    """
    if text.startswith(("/", "~", "\\")) or ".." in Path(text).parts or Path(text).is_absolute():
        return True
    return bool(text) and len(text) < LONGEST_PATH and "\0" not in text and Path(text).exists()


def refusal(key: str, names: Sequence[str], patterns: Sequence[str]) -> InputError:
    """The error for names from outside the catalogues that no pattern allows."""
    msg = (
        f"Expected {key} to be of the catalogue or of what this device allows ({', '.join(patterns) or 'nothing'}), "
        f"got {', '.join(names)}. Its owner can add allow-plugins='{names[0].rpartition('.')[0]}.*' to --node-config."
    )
    return InputError(msg)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, each) for each in patterns)


def entries(key: str) -> list[str]:
    """Names of all entries in the catalogue of ``key``, without importing them.

    An entry is a file ``name.py`` that defines a function ``name``; whatever else lies beside
    the entries (a catalogue's type, a package of shared parts) is none.
    """
    files = [file for folder in _folders(key) for file in folder.glob("[!_]*.py")]
    return sorted(file.stem for file in files if _defines(file, file.stem))


def is_entry(key: str, name: str) -> bool:
    """Whether ``entries`` lists a name: one file is looked at, since every experiment asks for all that it names."""
    if name.startswith("_") or not name.isidentifier():
        return False
    files = [folder / f"{name}.py" for folder in _folders(key)]
    return any(file.is_file() and _defines(file, name) for file in files)


def _folders(key: str) -> list[Path]:
    found = importlib.util.find_spec(CATALOGUES[key])
    return [Path(folder) for folder in found.submodule_search_locations or []] if found else []


def _defines(file: Path, name: str) -> bool:
    about = file.stat()
    return _text_defines(file, name, about.st_mtime_ns, about.st_size)


@functools.lru_cache(maxsize=4096)
def _text_defines(file: Path, name: str, *unchanged: int) -> bool:
    """``unchanged``: what tells another text of the file."""
    del unchanged
    return re.search(rf"^def {re.escape(name)}\(", file.read_text(encoding="utf-8"), re.MULTILINE) is not None


def factory(key: str, name: str) -> Callable[..., Any]:
    """The factory that ``name`` stands for in the catalogue of ``key``."""
    if "." in name:
        _check_allowed(key, name)
        module_name, _, attribute = name.rpartition(".")
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            # An import that fails inside the plug-in is its author's error, not a wrong name.
            if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
                raise
            msg = (
                f"Expected {key} {name!r} to be an importable factory, got no module {error.name!r}. "
                "Install it or put its folder on PYTHONPATH."
            )
            raise InputError(msg) from error
        names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
    else:
        attribute, names = name, []
        if not is_entry(key, name):
            known = nearest(name, entries(key))
            msg = f"Expected {key} to name an entry of {CATALOGUES[key]}, got {name!r}. {known}"
            raise InputError(msg)
        module = importlib.import_module(f"{CATALOGUES[key]}.{name}")
    found = getattr(module, attribute, None)
    if not callable(found):
        known = nearest(attribute, names or entries(key))
        msg = f"Expected {module.__name__} to define a factory {attribute!r}, got none. {known}"
        raise InputError(msg)
    if "." in name and (key in CATALOGUES or key == VECTORS):
        _check_plugin(key, name, found, module)
    return found  # type: ignore[no-any-return]


def _check_plugin(key: str, name: str, found: object, module: ModuleType) -> None:
    """Refuse, before it is called, what is no entry of this catalogue: any name of any package can be written down.

    An entry is a function that says what it returns (``-> Method``), or one that says nothing in
    a module that uses this project.
    """
    kind = RESULTS.get(key, "Partitioner")
    made = inspect.unwrap(found) if callable(found) else found
    stated = getattr(made, "__annotations__", {}).get("return")
    if inspect.isfunction(made) and stated is not None:
        text = stated if isinstance(stated, str) else getattr(stated, "__name__", repr(stated))
        right = text.rpartition(".")[2] == kind or (key not in RESULTS and "Callable" in text)
    else:
        uses = (getattr(each, "__module__", None) or getattr(each, "__name__", "") for each in vars(module).values())
        right = inspect.isfunction(made) and any(str(each).partition(".")[0] in OWN_PACKAGES for each in uses)
    if not right:
        got = type(found).__name__ if stated is None else f"one that returns {stated}"
        msg = (
            f"Expected {key} {name} to be a factory that says that it returns a {kind}, got {got}. "
            f"Write def {name.rpartition('.')[2]}(*, ...) -> {kind}."
        )
        raise InputError(msg)


def not_allowed(key: str, text: str, patterns: Iterable[str]) -> list[str]:
    """Names in ``text`` from outside the catalogues that no pattern allows; nothing is imported.

    Args:
        key: of the catalogue.
        text: one entry, or several separated by commas.
        patterns: dotted names, in which ``*`` stands for anything.

    >>> not_allowed("mods", "clip(norm=1.0), my_lab.mods.mine(), os.system()", ["my_lab.*"])
    ['os.system']
    """
    allowed = list(patterns)
    return [name for name, _ in parse_all(text, key) if "." in name and not _matches(name, allowed)]


def modules(key: str, text: str) -> list[str]:
    """Modules that define the factory that ``text`` names, and those that texts among its arguments name."""
    name, arguments = parse(text, key)
    named = name.rpartition(".")[0] or f"{CATALOGUES[key]}.{name}"
    # A factory may be defined in another module than the one it is asked for from.
    found = [named, getattr(inspect.unwrap(factory(key, name)), "__module__", named)]
    found += [module for argument, value in arguments.items() for module in _modules_among(argument, value)]
    return list(dict.fromkeys(found))


def _modules_among(argument: str, value: Any) -> list[str]:  # noqa: ANN401  (arguments are any)
    """Modules behind one argument, if it holds texts of a catalogue or of label vectors."""
    if isinstance(value, (list, tuple)):
        return [module for item in value for module in _modules_among(argument, item)]
    catalogue = _catalogue_of(argument)
    if not isinstance(value, str) or not (catalogue or argument in VECTOR_ARGUMENTS):
        return []
    try:
        named = parse_all(value, argument)
    except InputError:  # a text of another kind, or wrong: the entry itself says what
        return []
    if catalogue:
        return [module for each in named for module in modules(catalogue, str(each))]
    outside = [each.name.rpartition(".")[0] for each in named if "." in each.name]
    return [*outside, *(m for each in named for a, v in each.arguments.items() for m in _modules_among(a, v))]


def _catalogue_of(argument: str) -> str | None:
    """The catalogue that an argument is called like: ``regime`` or ``regimes``."""
    return next((key for key in CATALOGUES if argument in {key, f"{key}s"}), None)


def build(key: str, text: str) -> Any:  # noqa: ANN401  (the catalogue decides the type)
    """Call the factory that ``text`` names, with its arguments checked against its signature.

    Raises:
        InputError: unknown name, unknown argument (the nearest is named) or a value of
            the wrong type or range.
    """
    spec, make = _checked_names(key, text)
    for value in spec.arguments.values():
        _check_files(key, spec.name, value)
    try:
        found = _checked_call(make)(**spec.arguments)
    except ValidationError as error:
        raise InputError(_explain(key, spec.name, error)) from None
    if type(found).__name__ != RESULTS.get(key, type(found).__name__):
        msg = f"Expected {key} {spec.name} to return a {RESULTS[key]}, got a {type(found).__name__}."
        raise InputError(msg)
    if key == "dataset":
        found = found.by(*modules(key, text))
    return found


def build_all(key: str, text: str) -> list[Any]:
    """Call every factory that ``text`` names, in order, as ``build`` does."""
    return [build(key, str(each)) for each in parse_all(text, key)]


def check(key: str, text: str) -> None:
    """Check a factory's name and arguments as ``build`` does, without calling it.

    Raises:
        InputError: as ``build``, but for what only the factory itself can know.
    """
    _arguments(key, text)


def resolve(key: str, text: str) -> str:
    """The text of an entry with every argument spelled out, as its signature reads it; nothing is built.

    Two texts that ask for the same resolve to the same: ``bce`` and ``bce()``, ``alpha=1`` and ``alpha=1.0``. An
    argument that is called like a catalogue (``regime``) or several of its entries (``regimes``) holds texts of that
    catalogue, which are resolved too.

    Raises:
        InputError: as ``check``.

    >>> resolve("partition", "dirichlet(alpha=1)")
    "dirichlet(alpha=1.0, key='rarest', min_images=8)"
    """
    arguments = _arguments(key, text)
    return str(Spec(parse(text, key).name, {name: _resolved(name, value) for name, value in arguments.items()}))


def _resolved(name: str, value: Any) -> Any:  # noqa: ANN401  (arguments are any)
    if isinstance(value, (list, tuple)):
        return [_resolved(name, item) for item in value]
    if isinstance(value, Path):
        return str(value)
    catalogue = _catalogue_of(name)
    if catalogue is None or not isinstance(value, str):
        return value
    try:
        return ", ".join(resolve(catalogue, str(each)) for each in parse_all(value, catalogue))
    except InputError:  # a text of another kind, or wrong: the entry itself says what
        return value


def _arguments(key: str, text: str) -> dict[str, Any]:
    """All arguments of an entry by name, checked and converted by its signature."""
    spec, make = _checked_names(key, text)
    try:
        made = _signature_of(make)(**spec.arguments)
    except ValidationError as error:
        raise InputError(_explain(key, spec.name, error)) from None
    return {name: getattr(made, name) for name in type(made).model_fields}


@functools.lru_cache(maxsize=512)  # making one takes milliseconds, and every run of a study asks for the same few
def _signature_of(make: Callable[..., Any]) -> type[BaseModel]:
    """The arguments of a factory as a model that checks them."""
    hints = get_type_hints(make, include_extras=True)
    fields: dict[str, Any] = {
        name: (hints.get(name, Any), ... if parameter.default is parameter.empty else parameter.default)
        for name, parameter in inspect.signature(make).parameters.items()
    }
    return create_model(make.__name__, __config__=ConfigDict(arbitrary_types_allowed=True), **fields)


@functools.lru_cache(maxsize=512)
def _checked_call(make: Callable[..., Any]) -> Callable[..., Any]:
    """A factory that checks its arguments."""
    return validate_call(config=ConfigDict(arbitrary_types_allowed=True))(make)


def _checked_names(key: str, text: str) -> tuple[Spec, Callable[..., Any]]:
    spec = parse(text, key)
    make = factory(key, spec.name)
    parameters = _parameters(key, spec.name, make)
    for argument in spec.arguments:
        if argument not in parameters:
            hint = nearest(argument, parameters) if parameters else "It takes none."
            msg = f"Expected arguments of {key} {spec.name} to be among its parameters, got {argument!r}. {hint}"
            raise InputError(msg)
    return spec, make


def _parameters(key: str, name: str, make: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        parameters = inspect.signature(make).parameters
    except (ValueError, TypeError):  # some built-in callables have none
        parameters = None
    if parameters is None or any(p.kind is not p.KEYWORD_ONLY for p in parameters.values()):
        msg = f"Expected {key} {name} to be a factory with keyword-only parameters, def {name}(*, ...), got another."
        raise InputError(msg)
    return parameters


def _explain(key: str, name: str, error: ValidationError) -> str:
    lines = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"])
        if item["type"].startswith("missing"):
            lines.append(f"Expected {where} of {key} {name} to be given, got nothing. Write {name}({where}=...).")
        else:
            lines.append(f"Expected {where} of {key} {name}: {item['msg'].lower()}, got {item['input']!r}.")
    return " ".join(lines)
