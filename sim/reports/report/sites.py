"""Who holds what, and how good each model is on each client's held-out images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fedmlic.errors import InputError
from fedmlic.metrics import client_metrics
from sim.comparison.read import LOCAL
from sim.comparison.same_data import FEDERATION
from sim.reports.report.read import nameless
from sim.reports.report.rows import Model, asked_in_words

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedmlic.federation import Federation
    from sim.reports.report.read import Run

MAX_SITES = 20
"""Most clients on whose images models are compared."""

BESIDE = {"strategy", "single-client", "num-rounds", "cohort-size", "statistics-min-clients", "statistics-min-images"}
"""Settings in which a client's local-only run differs from the run that it is a reference of."""


@dataclass(frozen=True)
class Holdings:
    """What clients hold and see of each label, over their training images.

    Attributes:
        label_names: columns.
        client_names: of the clients; empty where they have none.
        images: int64 ``[clients]``, training images.
        held_out: int64 ``[clients]``, images kept for evaluation.
        native: integers ``[clients, labels]``, entries that the data set itself knows.
        present: integers ``[clients, labels]``, those of them that are present.
        annotated: integers ``[clients, labels]``, known entries that the client sees.
        positives: integers ``[clients, labels]``, those of them that say present.
        wrong: integers ``[clients, labels]``, annotations that differ from the data set.
    """

    label_names: tuple[str, ...]
    client_names: tuple[str, ...]
    images: NDArray[np.int64]
    held_out: NDArray[np.int64]
    native: NDArray[np.integer[Any]]
    present: NDArray[np.integer[Any]]
    annotated: NDArray[np.integer[Any]]
    positives: NDArray[np.integer[Any]]
    wrong: NDArray[np.integer[Any]]


def same_federation(one: Run, other: Run) -> bool:
    """Whether two runs dealt out the same images and labels; ``rows_of`` has compared what they say of them."""
    return all(one.settings[name] == other.settings[name] for name in FEDERATION)


def federation_of(run: Run) -> Federation:
    """The whole federation of a run, built where it is not there.

    Raises:
        InputError: it is on devices, or is not the one that the run was started with.
    """
    from sim.run import describe_federation

    noted = run.data.get("federation")
    if not noted:
        msg = (
            f"Expected {run.name} to say what its clients hold, got nothing: its federation is not on this machine's "
            "side (images on devices, a run that did not begin, or a damaged data.json). Look at its clients' turns."
        )
        raise InputError(msg)
    whole = describe_federation(run.experiment, run.runtime)
    single = run.experiment.single_client
    if (whole.single(single) if single else whole).content != noted:
        msg = (
            f"Expected the images and labels that {run.name} was started with, got others: the data set or the code "
            "that deals it out was changed since. Restore it."
        )
        raise InputError(msg)
    return whole


def holdings_of(federation: Federation) -> Holdings:
    """Counts of a built federation."""
    found = federation.tallies()
    return Holdings(
        tuple(federation.label_names),
        federation.client_names,
        found.images,
        found.holdout_images,
        found.true_known,
        found.true_positives,
        found.known,
        found.positives,
        found.wrong,
    )


@dataclass(frozen=True)
class CrossSite:
    """Models against clients' held-out images.

    Attributes:
        clients: ids of the columns.
        num_clients: how many there are in all.
        client_names: of all clients; empty where they have none.
        models: names of the rows.
        owners: for each row the client whose own model it is; -1 for one that all share.
        map: float64 ``[models, clients]``, mAP over the labels that count at the client; NaN without one.
        chance: float64 ``[clients]``, expected mAP of a random order of the same images.
        num_labels: int64 ``[clients]``, labels that count.
        min_entries: present and absent images that a label needs to count.
        notes: models that could not be asked.
    """

    clients: tuple[int, ...]
    num_clients: int
    client_names: tuple[str, ...]
    models: tuple[str, ...]
    owners: tuple[int, ...]
    map: NDArray[np.float64]
    chance: NDArray[np.float64]
    num_labels: NDArray[np.int64]
    min_entries: int
    notes: tuple[str, ...] = ()


def local_runs(run: Run, runs: Sequence[Run]) -> dict[int, Run]:
    """The local-only runs that are references of a run, by client."""
    rest = {name: value for name, value in run.settings.items() if name not in BESIDE}
    return {
        int(other.experiment.single_client): other
        for other in runs
        if other.reference == LOCAL
        and other.experiment.single_client.isdecimal()
        and other.checkpoints
        and all(other.settings[name] == value for name, value in rest.items())
    }


def chosen_clients(sizes: NDArray[np.int64], most: int = MAX_SITES) -> tuple[int, ...]:
    """Clients with held-out images; of more than ``most`` some from the largest to the smallest, evenly."""
    there = np.flatnonzero(sizes > 0)
    if len(there) > most:
        ordered = there[np.argsort(-sizes[there], kind="stable")]
        there = np.sort(ordered[np.linspace(0, len(ordered) - 1, most).round().astype(int)])
    return tuple(int(client) for client in there)


def cross_site(run: Run, runs: Sequence[Run], federation: Federation, model: Model) -> CrossSite:
    """Score every client's held-out images with the run's model, clients' own, and those of local-only runs.

    Held-out labels are those that the client's annotators wrote down; a label counts at a client as in the record
    (``client-min-entries``).

    Raises:
        InputError: there are no held-out images, or no model can be asked.
    """
    sizes = np.diff(federation.holdout.client_ptr)
    clients = chosen_clients(sizes)
    if not clients:
        msg = f"Expected clients of {run.name} to hold images out, got none. Set holdout-fraction above 0."
        raise InputError(msg)
    held = [federation.holdout.of(client) for client in clients]
    locals_ = local_runs(run, runs)
    wanted: list[tuple[str, int, Run, int | None]] = []
    if run.keeps_private:
        wanted += [(f"client {client}'s own", client, run, client) for client in clients]
    elif run.reference != LOCAL:
        wanted.append((f"global, {asked_in_words(run, model)}", -1, run, None))
    wanted += [
        (f"local-only, client {client}", client, locals_[client], None) for client in clients if client in locals_
    ]
    rows, names, owners, notes = [], [], [], []
    for name, owner, of, client in wanted:
        try:
            rows.append(_scored(of, held, federation, model, client))
        except InputError as error:
            notes.append(f"{name}: {error}")
            continue
        names.append(name)
        owners.append(owner)
    if not rows:
        raise InputError(" ".join(notes[:3]))
    entries = run.experiment.client_min_entries
    judged = [[client_metrics(s, labels, entries) for s, (_, labels) in zip(r, held, strict=True)] for r in rows]
    return CrossSite(
        clients,
        len(sizes),
        federation.client_names,
        tuple(names),
        tuple(owners),
        np.array([[each["mAP"] for each in row] for row in judged]),
        np.array([each["chance"] for each in judged[0]]),
        np.array([int(each["num-labels"]) for each in judged[0]], dtype=np.int64),
        entries,
        tuple(nameless(text, run.path) for text in notes),
    )


def _scored(
    run: Run,
    held: Sequence[tuple[NDArray[np.int64], NDArray[np.int8]]],
    federation: Federation,
    model: Model,
    client: int | None,
) -> list[NDArray[np.float32]]:
    """Scores of one model on the held-out images of all clients, client by client."""
    from sim.outcome import predictor_of

    learner = predictor_of(run.path, model, client).learner
    rows = np.concatenate([rows for rows, _ in held])
    scores = learner.predict(learner.stored(federation.corpus), rows)
    return np.split(scores, np.cumsum([len(rows) for rows, _ in held])[:-1])
