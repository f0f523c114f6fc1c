"""The command that plays a run again."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from fedmlic.experiment import Experiment, Runtime

if TYPE_CHECKING:
    from sim.reports.report.read import Run

PLACES = {"out", "home", "workers", "ray_address", "node_ids"}
"""Settings of this machine, which another one does not have."""


def command_of(run: Run) -> str:
    """``fedmlic run`` with every setting that is not at its default; on another machine it finds its own places."""
    pairs = [
        (name, value)
        for settings in (run.experiment, run.runtime)
        for name, value in settings.model_dump().items()
        if value != _default(name) and name not in PLACES
    ]
    return " ".join(["fedmlic run", *(_word(name.replace("_", "-"), _text(value)) for name, value in pairs)])


def _word(name: str, text: str) -> str:
    """A setting as a word of a shell, in quotes that people can read where that is safe.

    >>> print(_word("method", "bce(pool='mean')"), _word("seed", "0"))
    method="bce(pool='mean')" seed=0
    """
    if text and shlex.quote(text) == text:
        return f"{name}={text}"
    return f'{name}="{text}"' if not set(text) & set('"$`\\!') else shlex.quote(f"{name}={text}")


def _default(name: str) -> object:
    return {**Experiment.model_fields, **Runtime.model_fields}[name].default


def _text(value: object) -> str:
    """A value as the command reads it: TOML for numbers and booleans, text as it is."""
    return str(value).lower() if isinstance(value, bool) else str(value)
