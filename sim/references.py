"""The references that every table needs, as rows of a study: made of settings, so that they are ordinary runs.

- ``central``: one client that holds all images with all labels.
- ``central-observed``: one client that holds all images with the labels that the clients see.
- ``local-only``: every client alone, evaluated on the server's images and on its own held-out ones.
- ``fedavg``: the same clients and method, merged by FedAvg.
- ``untrained``: the model as it begins, a run of 0 rounds.

Those that train pass over their images as often as the federation's clients do on average. A constant score needs no
run: every evaluation has it (``server/prevalence``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from fedmlic.experiment import Experiment
from sim.comparison.fixed import TRAINING, UNTRAINED, fixed_in
from sim.sweep.study import REFERENCES, Row

Counter = Callable[[Experiment], int]


def reference_rows(rows: Sequence[Row], names: Sequence[str], num_clients: Counter) -> list[Row]:
    """The references of rows, those of different rows that are the same experiment included.

    Args:
        rows: of a study.
        names: which references.
        num_clients: counts the clients of an experiment whose ``num-clients`` is 0.
    """
    found: list[Row] = []
    for name in (name for name in REFERENCES if name in names):
        for row in rows:
            experiment = row.experiment()
            clients = experiment.num_clients or num_clients(experiment)
            if name == "local-only":
                found += [_local(row, experiment, client, clients) for client in range(clients)]
            elif name == UNTRAINED:
                found.append(_untrained(row))
            else:
                found.append(_as_reference(row, name, _CHANGES[name](experiment, clients)))
    return found


def _as_reference(row: Row, name: str, changes: dict[str, Any], **more: Any) -> Row:  # noqa: ANN401
    """A row with settings changed; axes of settings that are fixed, as that of the strategy, have no value in it."""
    fixed = fixed_in(name)
    values = {axis: "" if row.axes.get(axis, {axis}) <= fixed else text for axis, text in row.values.items()}
    shown = [text for text in values.values() if text]
    label = ", ".join([name, *shown])
    settings = {**row.settings, **changes}
    return replace(row, label=label, values=values, settings=settings, reference=name, fixed=fixed, **more)


def _untrained(row: Row) -> Row:
    """The model of a row as it begins; settings of training are left out, so that rows with one model have one run."""
    made = _as_reference(row, UNTRAINED, {"strategy": "fedavg()", "num-rounds": 0}, like=row)
    kept = {key: value for key, value in made.settings.items() if key not in TRAINING}
    return replace(made, settings={**kept, "cohort-size": 0})


def _central(experiment: Experiment, clients: int) -> dict[str, Any]:
    pooled = {"partition": "iid()", "regime": "complete()", "num-clients": 1}
    return {**_alone(experiment), **pooled, **_passes(experiment, clients)}


def _central_observed(experiment: Experiment, clients: int) -> dict[str, Any]:
    return {**_alone(experiment), "single-client": "pooled", **_passes(experiment, clients)}


def _local(row: Row, experiment: Experiment, client: int, clients: int) -> Row:
    """One client alone; its settings are those that its row chooses: a search per client would choose on few images."""
    changes = {**_alone(experiment), "single-client": str(client), "num-rounds": _turns(experiment, clients)}
    made = _as_reference(row, "local-only", changes, like=row)
    values = {**made.values, "single-client": str(client)}
    return replace(made, label=f"{made.label}, client {client}", values=values)


def _alone(experiment: Experiment) -> dict[str, Any]:
    """One client in every round, nothing to protect from the server."""
    del experiment
    return {"strategy": "fedavg()", "cohort-size": 0, "statistics-min-clients": 1, "statistics-min-images": 1}


def _turns(experiment: Experiment, clients: int) -> int:
    """Turns that a client has on average."""
    return max(1, round(experiment.num_rounds * (experiment.cohort_size or clients) / clients))


def _passes(experiment: Experiment, clients: int) -> dict[str, Any]:
    """As many passes over all images as the federation makes: a pass a round; with local-steps as many steps."""
    cohort = experiment.cohort_size or clients
    if experiment.local_steps:
        return {"local-steps": experiment.local_steps * cohort}
    passes = experiment.num_rounds * experiment.local_epochs * cohort / clients
    return {"num-rounds": max(1, round(passes)), "local-epochs": 1}


_CHANGES: dict[str, Callable[[Experiment, int], dict[str, Any]]] = {
    "central": _central,
    "central-observed": _central_observed,
    "fedavg": lambda experiment, clients: {"strategy": "fedavg()"},  # noqa: ARG005
}
