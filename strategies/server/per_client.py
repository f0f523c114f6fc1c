"""Clients' own evaluations, one by one: what the record keeps of them, and which is the worst."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from fedmlic.metrics import across_clients

if TYPE_CHECKING:
    from fedmlic.protocol import Turn

HOLDOUT = "holdout"
"""The split that clients are evaluated on: images of their own that they do not train on."""


def client_rows(number: int, turns: Sequence[Turn], trained: Collection[int]) -> list[dict[str, object]]:
    """One row per client that was asked, as ``client-evaluations.parquet`` has it.

    Args:
        number: the round whose model was scored.
        turns: of the evaluation.
        trained: clients that have had a turn that counted.
    """
    rows: list[dict[str, object]] = []
    for turn in sorted(turns, key=lambda turn: turn.client):
        found = turn.metrics
        row: dict[str, object] = {
            "round": number,
            "client": turn.client,
            "split": HOLDOUT,
            "mAP": found.get("mAP", math.nan),
            "num-labels": int(found.get("num-labels", 0)),
            "num-images": turn.num_images,
            "prevalence": found.get("prevalence", math.nan),
            "chance": found.get("chance", math.nan),
            "trained": turn.client in trained,
        }
        rows.append({**row, "error": turn.error} if turn.error else row)
    return rows


def own_values(turns: Sequence[Turn], min_entries: int) -> dict[str, float]:
    """How clients' own mAP differs, and ``worst-client``, whose is the lowest.

    Args:
        turns: of the evaluation, in the order of client ids, on which a mean must not depend otherwise.
        min_entries: present and absent images that a label needed to count.
    """
    good = [turn for turn in turns if turn.metrics]
    found: dict[str, float] = across_clients([turn.metrics for turn in good], min_entries)
    worst = worst_client({turn.client: turn.metrics for turn in good})
    return found if worst is None else {**found, "worst-client": worst}


def worst_client(metrics: Mapping[int, Mapping[str, float]]) -> int | None:
    """The client with the lowest mAP of its own, of equals that with the lowest id; None if no client counts."""
    counted = {client: found["mAP"] for client, found in metrics.items() if found["num-labels"] > 0}
    return min(sorted(counted), key=lambda client: counted[client], default=None)
