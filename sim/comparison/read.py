"""Read one number of a run: a metric, and of which model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fedmlic import spec
from fedmlic.errors import InputError, nearest
from fedmlic.record import metrics_at, open_run, read_json

if TYPE_CHECKING:
    from fedmlic.experiment import Experiment

Model = Literal["last", "best", "best-or-last"]

MODELS = {
    "last": "after the last round",
    "best": "best on validation",
    "best-or-last": "best on validation, after the last round where nothing chose one",
}
"""Which model of a run a number is of."""

PERSONAL = "each client's own"
"""The model of a run whose clients keep tensors of their own, and of runs of one client each."""

LOCAL = "local-only"
"""The reference whose runs are one client each: their mean over clients is a row."""


def is_complete(run: Path) -> bool:
    """Whether a run has been played to its end."""
    return (run / "result.json").is_file()


def metrics_of(run: Path, model: Model = "last") -> dict[str, float]:
    """All metrics of one model of a complete run, by name; those that do not exist are NaN.

    Args:
        run: its folder.
        model: the one after the last round, the best on validation data, or the best where a run has one and else the
            last.

    Raises:
        InputError: no complete run, or none that has a best round where the best is asked for.
    """
    if not is_complete(run):
        msg = f"Expected {run} to be a complete run, got one without a result. Finish it with 'fedmlic resume {run}'."
        raise InputError(msg)
    result = read_json(run / "result.json")
    if model == "last" or result["best_round"] == result["rounds"]:
        return _floats(result["metrics"])
    if not result["best_round"]:
        if model == "best-or-last":
            return _floats(result["metrics"])
        msg = f"Expected {run} to have a round that is best on validation data, got none. Compare the last model."
        raise InputError(msg)
    # Runs of earlier versions have it in their events only.
    found = result.get("best_metrics")
    return _floats(metrics_at(open_run(run), result["best_round"]) if found is None else found)


def metric_of(run: Path, metric: str, model: Model = "last") -> float:
    """One metric of one model of a complete run.

    Raises:
        InputError: as ``metrics_of``, or the run has no such metric.
    """
    found = metrics_of(run, model)
    if metric not in found:
        hint = nearest(metric, found) if found else "It has none."
        msg = f"Expected {run} to have {metric!r} of the model {MODELS[model]}, got none. {hint}"
        raise InputError(msg)
    return found[metric]


def on_server(run: Path) -> bool:
    """Whether the server of a complete run evaluated its model: it has images, and one model predicts for all."""
    return any(name.startswith("server/") for name in read_json(run / "result.json")["metrics"])


def keeps_private(experiment: Experiment, *, evaluated: bool) -> bool:
    """Whether clients keep tensors of the network to themselves, so that no one model predicts for all.

    They do where the method or a mod, the experiment's or its rule's, says so. A ``memory`` folder does not tell: there
    clients keep other tensors too.

    Args:
        experiment: of the run.
        evaluated: whether the server evaluated a model; where clients keep tensors it does not.
    """
    if evaluated:
        return False
    from fedmlic.method import none  # imports torch
    from strategies.server.check import mods_of

    try:
        method = spec.build("method", experiment.method)
        mods = mods_of(experiment, spec.build("strategy", experiment.strategy))
    except (InputError, ImportError):  # a plug-in, or what it needs, is not on this machine
        return True
    return method.private is not none or any(mod.private is not None for mod in mods.values())


def _floats(metrics: dict[str, Any]) -> dict[str, float]:
    return {name: math.nan if value is None else float(value) for name, value in metrics.items()}
