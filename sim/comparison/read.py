"""Read one number of a run: a metric, and of which model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from fedmlic.errors import InputError, nearest
from fedmlic.record import metrics_at, open_run, read_json

Model = Literal["last", "best", "best-or-last"]

MODELS = {
    "last": "after the last round",
    "best": "best on validation",
    "best-or-last": "best on validation, after the last round where nothing chose one",
}
"""Which model of a run a number is of."""

PERSONAL = "each client's own"
"""The model that a metric of clients is of, where clients keep tensors of their own."""


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


def is_personal(run: Path) -> bool:
    """Whether clients of a complete run keep tensors of their own, so that no one model predicts for all."""
    return not any(name.startswith("server/") for name in read_json(run / "result.json")["metrics"])


def _floats(metrics: dict[str, Any]) -> dict[str, float]:
    return {name: math.nan if value is None else float(value) for name, value in metrics.items()}
