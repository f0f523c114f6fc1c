"""fednoro: the server's half of FedNoRo: finds noisy clients by their losses, then trusts those that stray far less.

Up to round ``warm_up`` models are averaged by images, and clients report the global model's mean log-loss on their
annotated entries of every label and state (``method="fednoro()"``). From every number the mean over the clients is
taken off that report it in the same round. After that round the last reports of all clients make a matrix [clients,
2 labels] (``cells="label"``: [clients, labels], both states together, before means are taken off); a cell without
entries gets the least loss of its column; columns are scaled to 0 to 1. A mixture of two Gaussians splits clients;
those in the group with the larger mean are noisy. They are named to all clients, once.

From the next round on client k weighs n_k exp(-D_k): of a noisy client D_k is the distance of its model to the nearest
one of a client that is not noisy, over the largest such distance of the round; 0 for the others. The distance of two
models is the sum of the norms of their tensors' differences.

A mixture finds two groups where there are none, and as the source does this rule believes it. With ``level`` below 1
nobody is noisy unless at most that share of clients that are all alike would look as much like two groups
(``fedmlic.two_groups.chance_of_one``); a dozen clients whose noise differs are hardly ever so clear.

Deviations: one mixture from deterministic starts with variances of its own kind (``variances``) in place of nine with
full covariances and a vote; the option ``level``; a client that did not report by ``warm_up``, or has no annotated
entry, is not noisy; where a round has no client that is not noisy, models are averaged by images. The source asks all
clients about one model, after the warm-up. Here a report is of the model that began its round, and where not all
clients take part in the last round of the warm-up, reports are of several models, of which earlier ones have larger
losses; so each is taken against the mean of its round. Where all take part in that round, means change nothing. A
client that reports alone in its round is at the mean.

Source: Wu et al., FedNoRo (IJCAI 2023) and its released code. It needs every client's update by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedmlic.arrays import Layout
from fedmlic.errors import InputError
from fedmlic.methods.fednoro import ENTRIES, LOSSES, NOISY, SINCE
from fedmlic.noisy_clients import client_of, is_among, mean_by
from fedmlic.protocol import ROUND_SUMS
from fedmlic.two_groups import chance_of_one, two_groups
from fedmlic.update import Update, Weighting
from strategies.strategy import Round, State, Strategy, with_method

REPORT = "fednoro/against-round/"
"""Begins the names of what the server remembers of a client: ``[losses against its round's means and entries, cells]``,
the cells being the columns of the matrix."""

ROUNDING = 1e-9
"""Losses travel in steps of about 1e-11; what differs by less than this is equal."""


def cells_of(losses: Tensor, entries: Tensor, *, cells: str) -> tuple[Tensor, Tensor]:
    """Losses and entries of clients' cells, float64 and int64 ``[clients, columns]``.

    Args:
        losses: ``[clients, 2, labels]``, mean losses of absent and present entries.
        entries: likewise, how many.
        cells: ``state``: one column per label and state; ``label``: one per label.
    """
    losses = losses.double()
    if cells == "label":
        whole = entries.sum(dim=1, keepdim=True)
        losses, entries = (losses * entries).sum(dim=1, keepdim=True) / whole.clamp(min=1), whole
    return losses.flatten(1), entries.flatten(1)


def against_mean(losses: Tensor, entries: Tensor) -> Tensor:
    """Losses ``[clients, columns]`` of one round less the mean of their column over clients that have entries there.

    Args:
        losses: of cells.
        entries: likewise, how many.
    """
    held = entries > 0
    means = torch.where(held, losses, 0.0).sum(dim=0) / held.sum(dim=0).clamp(min=1)
    return torch.where(held, losses - means, 0.0)


def loss_matrix(losses: Tensor, entries: Tensor) -> Tensor:
    """float64 ``[clients, columns]``, each column from 0 to 1: what the mixture is made of.

    Args:
        losses: ``[clients, columns]``, of cells.
        entries: likewise, how many; a cell without any gets the least of its column, a column without any is 0.
    """
    losses, held = losses.double(), entries > 0
    least = torch.where(held, losses, torch.inf).amin(dim=0)
    filled = torch.where(held, losses, least)
    filled = torch.where(held.any(dim=0), filled, 0.0)
    low, high = filled.amin(dim=0), filled.amax(dim=0)
    differs = high - low > ROUNDING
    return torch.where(differs, (filled - low) / torch.where(differs, high - low, 1.0), 0.0)


def distances(models: Sequence[Tensor], noisy: Sequence[bool], layout: Layout) -> list[float]:
    """D of every client: a noisy one's distance to the nearest that is not, over the largest; 0 for the others.

    Args:
        models: float32 ``[layout.size]`` of every client.
        noisy: of every client.
        layout: of the models.
    """
    trusted = [model for model, wrong in zip(models, noisy, strict=True) if not wrong]

    def apart(first: Tensor, second: Tensor) -> float:
        return float(torch.stack([view.double().norm() for _, view in layout.views(first - second)]).sum())

    def nearest(model: Tensor) -> float:
        return min((apart(model, other) for other in trusted), default=0.0)

    found = [nearest(model) if wrong else 0.0 for model, wrong in zip(models, noisy, strict=True)]
    largest = max(found, default=0.0)
    return [each / largest if largest > 0 else 0.0 for each in found]


def fednoro(
    *,
    warm_up: Annotated[int, Field(ge=1)] = 10,
    cells: Literal["state", "label"] = "state",
    variances: Literal["shared", "own"] = "shared",
    level: Annotated[float, Field(ge=0, le=1)] = 1.0,
    distance_aware: bool = True,
) -> Strategy:
    """Noisy clients are found after a warm-up and weigh less the farther they stray; with ``method="fednoro()"``.

    Args:
        warm_up: rounds after which noisy clients are named.
        cells: losses of a client's labels ``state`` by state, or one per ``label``.
        variances: of both groups of clients: ``shared``, safer with few clients, or each group's ``own``.
        level: largest chance that clients that are all alike look so much like two groups at which the split is
            believed; 1 always splits.
        distance_aware: whether noisy clients weigh by their distance; otherwise all by images.

    ``strategy/num-noisy`` and, with a level below 1, ``strategy/chance-of-one`` are recorded with the verdict's round.

    Raises:
        InputError: after the warm-up, when clients report no losses.
    """

    def aggregate(state: State, updates: Iterable[Update], here: Round) -> State:
        received = sorted(updates, key=client_of)
        if not received:
            return state
        wrong = [bool(is_among(state.shared, NOISY, client_of(update))) for update in received]
        away = [0.0] * len(received)
        if distance_aware and any(wrong) and not all(wrong):
            away = distances([update.mean(state.flat) for update in received], wrong, here.layout)
        pairs = zip(received, away, strict=True)
        weights = [update.num_images * float(torch.tensor(-each).exp()) for update, each in pairs]
        after = replace(state, flat=mean_by(weights, received, state.flat), metrics={})
        return after if NOISY in state.shared else _heard(after, received, here)

    def _heard(state: State, received: Sequence[Update], here: Round) -> State:
        memory = {**state.memory, **_reports(received, cells)}
        if here.number < warm_up:
            return replace(state, memory=memory)
        if not any(ROUND_SUMS + LOSSES in update.extras for update in received):
            msg = (
                "Expected clients to report their losses to the rule fednoro, got none. Train with method='fednoro()'."
            )
            raise InputError(msg)
        noisy, chance = verdict(memory, here, tied=variances == "shared", level=level)
        shared = {**state.shared, NOISY: noisy, SINCE: torch.tensor(here.number + 1)}
        metrics = {"num-noisy": float(len(noisy))} | ({"chance-of-one": chance} if level < 1 else {})
        return replace(state, memory=memory, shared=shared, metrics=metrics)

    return Strategy(aggregate, weighting=Weighting(shared="uniform"), needs="each", refuses=with_method("fednoro"))


def verdict(memory: Mapping[str, Tensor], here: Round, *, tied: bool, level: float) -> tuple[Tensor, float]:
    """int64 ids of noisy clients, ascending, and how often clients that are all alike look as much like two groups.

    Args:
        memory: what clients reported.
        here: the round.
        tied: whether both groups have the same variances.
        level: as ``fednoro`` has it.
    """
    ids = sorted(int(name.removeprefix(REPORT)) for name in memory if name.startswith(REPORT))
    if not ids:
        return torch.zeros(0, dtype=torch.int64), 1.0
    points = loss_matrix(*torch.stack([memory[f"{REPORT}{client}"] for client in ids], dim=1))
    chance = chance_of_one(points, here.rng("fednoro")) if level < 1 else 0.0
    upper = two_groups(points, tied=tied).upper & (chance <= level)
    return torch.tensor(ids)[upper], chance


def _reports(received: Sequence[Update], cells: str) -> dict[str, Tensor]:
    """The round's reports by client, against their mean; clients without annotated entries have none."""
    told = {
        client_of(update): [update.extra_sum(ROUND_SUMS + name).double().cpu() for name in (LOSSES, ENTRIES)]
        for update in received
        if ROUND_SUMS + LOSSES in update.extras
    }
    told = {client: report for client, report in told.items() if bool((report[1] > 0).any())}
    if not told:
        return {}
    losses, entries = cells_of(*(torch.stack(each) for each in zip(*told.values(), strict=True)), cells=cells)
    compared = torch.stack([against_mean(losses, entries), entries], dim=1)
    return {f"{REPORT}{client}": compared[row].clone() for row, client in enumerate(told)}
