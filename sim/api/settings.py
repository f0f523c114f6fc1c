"""What callers give for an experiment: a recipe, a mapping or a run, and settings that win over it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedmlic.errors import InputError
from sim.api.results import Run
from sim.commands.settings import DEFAULT_RECIPE, read_recipe

Base = str | Path | Mapping[str, Any] | Run
"""A recipe's name, a TOML file, settings, or a run whose settings are meant.

Empty for the default recipe, or for nothing where a data set is named.
"""


def settings_of(base: Base, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by dashed name; those of ``changes`` win.

    Args:
        base: what to begin with.
        changes: settings, with dashes or underscores; paths may be given as such.

    Raises:
        InputError: there is no such recipe.

    >>> settings_of({"num-rounds": 5, "method": "bce()"}, {"num_rounds": 2})
    {'num-rounds': 2, 'method': 'bce()'}
    >>> settings_of("", {"num_rounds": 2})["dataset"]
    'emoji_scenes(num_train=3600, num_val=600, num_test=1000)'
    >>> settings_of("", {"dataset": "scenes()"})
    {'dataset': 'scenes()'}
    """
    own = _dashed(changes)
    if base == "" and "dataset" not in own:
        base = DEFAULT_RECIPE
    return {**_begin(base), **own}


def _begin(base: object) -> dict[str, Any]:
    if isinstance(base, Run):
        return _dashed({**base.settings, "home": base.home})
    if isinstance(base, (str, Path)):
        return read_recipe(str(base)) if str(base) else {}
    if not isinstance(base, Mapping):
        msg = f"Expected a recipe, settings or a run first, got {type(base).__name__}. Give settings by name."
        raise InputError(msg)
    return _dashed(base)


def _dashed(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key.replace("_", "-"): str(value) if isinstance(value, Path) else value for key, value in settings.items()}
