"""What a person types for settings and options: recipes, ``key=value`` pairs, values as TOML."""

from __future__ import annotations

import tomllib
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedmlic.errors import InputError, nearest

RECIPES = Path(__file__).parent.parent / "recipes"
DEFAULT_RECIPE = "default"
"""Of a command that names neither a recipe nor a data set."""


def read_settings(arguments: list[str]) -> dict[str, Any]:
    """Recipe first (if the first argument has no ``=``), then ``key=value`` pairs over it.

    Values are read as TOML where that works (numbers, booleans, quoted text), else as text; for a
    setting that is text, ``2026`` and ``true`` are text as well.
    """
    settings: dict[str, Any] = {}
    for position, argument in enumerate(arguments):
        key, equals, value = argument.partition("=")
        if "(" in key or not equals:
            if position:
                msg = f"Expected settings as key=value, got {argument!r}. Quote values that contain spaces."
                raise InputError(msg)
            settings.update(read_recipe(argument))
        else:
            name = key.strip().replace("_", "-")
            settings[name] = _value(value, _setting_type(name))
    return settings


def with_recipe(arguments: Sequence[str]) -> list[str]:
    """What was typed, after the default recipe where it names neither a recipe, a study nor a data set.

    >>> with_recipe(["seed=1"])
    ['default', 'seed=1']
    >>> with_recipe(["quick", "seed=1"]), with_recipe(["dataset=scenes()"])
    (['quick', 'seed=1'], ['dataset=scenes()'])
    """
    keys = [argument.partition("=")[0].strip() for argument in arguments]
    recipe_first = bool(arguments) and ("=" not in arguments[0] or "(" in keys[0])
    return list(arguments) if recipe_first or "dataset" in keys else [DEFAULT_RECIPE, *arguments]


def read_recipe(name: str) -> dict[str, Any]:
    """The settings of a recipe of ``sim/recipes``, one in a folder there as FOLDER/NAME, or of any TOML file."""
    path = Path(name)
    if path.suffix != ".toml":
        path = RECIPES / f"{name}.toml"
    if not path.is_file():
        known = [file.relative_to(RECIPES).with_suffix("").as_posix() for file in RECIPES.rglob("*.toml")]
        hint = nearest(name, known) if known else ""
        msg = f"Expected a recipe or a TOML file, got {name!r}. {hint} Settings are written key=value."
        raise InputError(msg)
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        msg = f"Expected {path} to be TOML, got an error: {error}."
        raise InputError(msg) from None
    named = {key.replace("_", "-"): value for key, value in found.items()}
    return {key: _as_declared(value, _toml_text(value), _setting_type(key)) for key, value in named.items()}


def _value(text: str, declared: Any = Any) -> Any:  # noqa: ANN401  (TOML is any)
    """What a person typed for a value of the declared type."""
    try:
        found = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    return _as_declared(found, text, declared)


def read_value(key: str, text: str) -> Any:  # noqa: ANN401  (TOML is any)
    """What a person typed for the value of a setting."""
    return _value(text, _setting_type(key))


def _as_declared(value: Any, text: str, declared: Any) -> Any:  # noqa: ANN401
    """``text`` where the declared type takes that and not the ``value`` that TOML reads in it."""
    if isinstance(value, str) or _accepts(declared, value) or not _accepts(declared, text):
        return value
    return text


def _accepts(declared: Any, value: object) -> bool:  # noqa: ANN401  (a type as annotations have it)
    from pydantic import PydanticUserError, TypeAdapter, ValidationError

    try:
        TypeAdapter(declared).validate_python(value)
    except ValidationError:
        return False
    except PydanticUserError:  # a type that pydantic does not know
        return True
    return True


def _toml_text(value: Any) -> str:  # noqa: ANN401
    """A value of a TOML file as it is written there."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value.isoformat()) if hasattr(value, "isoformat") else str(value)


def _setting_type(key: str) -> Any:  # noqa: ANN401
    """The declared type of a setting; any type where there is no such setting."""
    from fedmlic.experiment import Experiment, Runtime

    found = {**Experiment.model_fields, **Runtime.model_fields}.get(key.replace("-", "_"))
    return found.annotation if found is not None else Any


def parameter_types(name: str) -> dict[str, Any]:
    """The declared types of a data set's parameters; none where there is no such data set."""
    from fedmlic import spec

    try:
        return typing.get_type_hints(spec.factory("dataset", spec.parse(name).name), include_extras=True)
    except (InputError, NameError, TypeError):  # the error of building it says more
        return {}


def read_options(arguments: list[str] | None, types: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """``key=value`` pairs of a data set; values as those of settings.

    Args:
        arguments: as they were typed.
        types: declared types by parameter.
    """
    options: dict[str, Any] = {}
    for argument in arguments or []:
        key, equals, value = argument.partition("=")
        if not equals or not key.strip():
            msg = f"Expected options as key=value, got {argument!r}. Quote values that contain spaces."
            raise InputError(msg)
        options[key] = _value(value, (types or {}).get(key.strip().replace("-", "_"), Any))
    return options
