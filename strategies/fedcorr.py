"""fedcorr: the server's half of FedCorr: finds noisy clients by their scores and leads through three stages.

1. Rounds 1 to ``preprocessing``: models are averaged by images. From every score (``method="fedcorr()"``) the mean of
   its round's scores is taken off. After each round a mixture of two Gaussians over the clients' means of what is left,
   over all their turns so far, splits clients; those in the group with the larger mean are noisy (``noisy="smaller"``:
   the smaller), and are named to all clients. Entries that are flipped either way spread predictions and raise scores;
   misses alone make labels, predictions and scores smaller.
2. The next ``finetuning`` rounds: only clients whose noise level is ``limit`` at most train and count.
3. All further rounds: models are averaged by images.

A mixture finds two groups where there are none, and as the source does this rule believes it. With ``level`` below 1
nobody is noisy unless at most that share of clients that are all alike would look as much like two groups
(``fedmlic.two_groups.chance_of_one``); a dozen clients whose noise differs are hardly ever so clear.

Deviations: the option ``level``; the mean over a client's turns in place of a sum, and scores against the mean of their
round, so that clients that take part less often, or in other rounds, can be compared: scores of different rounds are of
different models. Where all take part in every round this is the source's split. A client that reports alone in its
round is at the mean. A score is of the network as the turn leaves it, which began as that round's model. Where nobody
may fine-tune, the model stays; the source draws its cohorts of the second stage from clean clients alone, here cohorts
are drawn as always.

Source: Xu et al., FedCorr (CVPR 2022) and its released code. It needs every client's update by itself.
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
from fedmlic.methods.fedcorr import LIMIT, NOISY, SCORE, SCORED, STAGE, TOOK_PART
from fedmlic.noisy_clients import client_of, mean_by
from fedmlic.two_groups import chance_of_one, two_groups
from fedmlic.update import METRIC_LIMIT, Update, Weighting
from strategies.strategy import Round, State, Strategy, with_method

REPORT = "fedcorr/against-round/"
"""Begins the names of what the server remembers of a client, float64: the sum of its scores less the means of their
rounds, and the number of scores."""

Rounds = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


def fedcorr(
    *,
    preprocessing: Annotated[int, Field(ge=1)] = 5,
    finetuning: Rounds = 200,
    limit: Share = 0.1,
    noisy: Literal["larger", "smaller"] = "larger",
    level: Share = 1.0,
) -> Strategy:
    """Noisy clients are found, left out of fine-tuning, and then take part again; with ``method="fedcorr()"``.

    Args:
        preprocessing: rounds in which noisy clients are found and relabel.
        finetuning: rounds of clean clients alone.
        limit: largest noise level with which a client takes part in these.
        noisy: which group of clients that is, by its scores.
        level: largest chance that clients that are all alike look so much like two groups at which the split is
            believed; 1 always splits.

    ``strategy/num-noisy`` and, with a level below 1, ``strategy/chance-of-one`` are recorded in the first stage.

    Raises:
        InputError: after the first stage, when no client has reported a score.
    """

    def stage(number: int) -> int:
        return 1 if number <= preprocessing else 2 if number <= preprocessing + finetuning else 3

    def init(flat: Tensor, layout: Layout) -> State:
        del layout
        return State(flat, shared={STAGE: torch.tensor(1), LIMIT: torch.tensor(limit, dtype=torch.float64)})

    def aggregate(state: State, updates: Iterable[Update], here: Round) -> State:
        received = sorted(updates, key=client_of)
        weights = [update.num_images * (update.metrics.get(TOOK_PART, 1.0) > 0) for update in received]
        flat = mean_by(weights, received, state.flat) if received else state.flat  # stages go on without answers
        shared = {**state.shared, STAGE: torch.tensor(stage(here.number + 1))}
        if stage(here.number) > 1 or (not received and here.number < preprocessing):
            return replace(state, flat=flat, shared=shared)
        memory = {**state.memory, **_reports(state.memory, received)}
        sign = 1.0 if noisy == "larger" else -1.0
        needed = here.number == preprocessing and bool(received)
        named, chance = verdict(memory, here, sign=sign, level=level, needed=needed)
        metrics = {"num-noisy": float(len(named))} | ({"chance-of-one": chance} if level < 1 else {})
        return replace(state, flat=flat, memory=memory, shared={**shared, NOISY: named}, metrics=metrics)

    return Strategy(
        aggregate,
        init,
        weighting=Weighting(shared="uniform"),
        needs="each",
        refuses=with_method("fedcorr"),
        metrics={SCORE: (0.0, METRIC_LIMIT), SCORED: (0.0, 1.0), TOOK_PART: (0.0, 1.0)},
    )


def verdict(
    memory: Mapping[str, Tensor], here: Round, *, sign: float, level: float, needed: bool
) -> tuple[Tensor, float]:
    """int64 ids of noisy clients, ascending, and how often clients that are all alike look as much like two groups.

    Args:
        memory: what clients reported.
        here: the round.
        sign: 1 where larger scores are noisy, -1 where smaller ones are.
        level: as ``fedcorr`` has it.
        needed: whether there must be reports by now.

    Raises:
        InputError: nobody reported.
    """
    ids = sorted(int(name.removeprefix(REPORT)) for name in memory if name.startswith(REPORT))
    if not ids and needed:
        msg = "Expected clients to report a score to the rule fedcorr, got none. Train with method='fedcorr()'."
        raise InputError(msg)
    if not ids:
        return torch.zeros(0, dtype=torch.int64), 1.0
    totals = torch.stack([memory[f"{REPORT}{client}"] for client in ids])
    points = sign * totals[:, :1] / totals[:, 1:]
    chance = chance_of_one(points, here.rng("fedcorr")) if level < 1 else 0.0
    return torch.tensor(ids)[two_groups(points, tied=True).upper & (chance <= level)], chance


def _reports(memory: Mapping[str, Tensor], received: Sequence[Update]) -> dict[str, Tensor]:
    """The reports that a round changes."""
    scores = {client_of(each): each.metrics[SCORE] for each in received if each.metrics.get(SCORED, 0.0) > 0}
    mean = sum(scores.values()) / max(len(scores), 1)
    found = {}
    for client, score in scores.items():
        name = f"{REPORT}{client}"
        told = torch.tensor([score - mean, 1.0], dtype=torch.float64)
        found[name] = memory.get(name, torch.zeros(2, dtype=torch.float64)) + told
    return found
