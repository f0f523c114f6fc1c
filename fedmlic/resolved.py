"""When two experiments are one: settings with everything spelled out, and the identity made of them.

``bce``, ``bce()`` and ``bce(pool='mean')`` ask for the same. A sweep reuses runs by this identity, and a comparison
says in which resolved settings two runs differ. It counts all settings of an experiment, those that only decide what is
measured (``evaluate-every``, ``threshold``) included; the identity in a run's ``experiment.json``, which guards
checkpoints, is another one, of the texts as they were written.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from fedmlic import spec
from fedmlic.errors import InputError
from fedmlic.experiment import Experiment

DIGITS = 12
"""Hexadecimal digits of an identity."""


def resolved(experiment: Experiment, unknown: list[str] | None = None) -> dict[str, Any]:
    """All settings of an experiment by dashed name, entries with every argument spelled out.

    Args:
        experiment: as it was written.
        unknown: gets the texts of entries that cannot be looked up here, such as those of a plug-in of another machine;
            they stay as they are written. ``None`` to refuse them.

    Raises:
        InputError: an entry's name or arguments are wrong.

    >>> resolved(Experiment(method="bce"))["method"] == resolved(Experiment(method="bce()"))["method"]
    True
    """
    found = {}
    for name, value in experiment.model_dump().items():
        if name in spec.CATALOGUES:
            value = ", ".join(_spelled(name, str(each), unknown) for each in spec.parse_all(value, name))  # noqa: PLW2901
        elif name == "label_names":
            value = ",".join(part.strip() for part in value.split(","))  # noqa: PLW2901
        found[name.replace("_", "-")] = value
    return found


def identity_of(experiment: Experiment) -> str:
    """12 hexadecimal digits that are equal for equal resolved settings.

    Settings at their default do not count, so that a setting that is added later leaves identities as they are.
    """
    default = _default()
    counted = {name: value for name, value in resolved(experiment).items() if value != default[name]}
    return hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()[:DIGITS]


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Names of settings in which two resolved experiments differ, in the order of the first."""
    return [name for name in {**one, **other} if one.get(name) != other.get(name)]


@functools.cache
def _default() -> dict[str, Any]:
    return resolved(Experiment())


def _spelled(key: str, text: str, unknown: list[str] | None) -> str:
    try:
        return _entry(key, text)
    except (InputError, ImportError):
        if unknown is None:
            raise
        unknown.append(f"{key} {text}")
        return text


@functools.cache
def _entry(key: str, text: str) -> str:
    """A resolved text; asked again and again by a sweep of many runs."""
    return spec.resolve(key, text)
