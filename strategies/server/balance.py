"""How evenly a round's work lay on its hosts, and who kept it waiting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedmlic.protocol import Turn


def hosts_of(turns: Sequence[Turn], seconds: float) -> list[dict[str, object]]:
    """One row per host that took part: clients, images, seconds at work, share of the round it waited.

    Args:
        turns: of the round.
        seconds: from handing out the model to having all updates.
    """
    rows: list[dict[str, object]] = []
    for name in sorted({turn.host for turn in turns}):
        own = [turn for turn in turns if turn.host == name]
        busy = sum(turn.seconds for turn in own)
        rows.append(
            {
                "host": name,
                "num-clients": len(own),
                "num-images": sum(turn.num_images for turn in own),
                "busy-seconds": round(busy, 4),
                "idle-share": round(max(0.0, 1 - busy / max(seconds, 1e-9)), 4),
            }
        )
    return rows


def balance(turns: Sequence[Turn], seconds: float, num_hosts: int) -> dict[str, object]:
    """The round's idle share over all hosts, and its slowest client.

    Args:
        turns: of the round, at least one.
        seconds: from handing out the model to having all updates.
        num_hosts: hosts that could have worked, those without a client included.
    """
    slowest = max(turns, key=lambda turn: (turn.seconds, -turn.client))
    busy = sum(turn.seconds for turn in turns)
    return {
        "idle-share": round(max(0.0, 1 - busy / max(seconds * num_hosts, 1e-9)), 4),
        "slowest-client": slowest.client,
        "slowest-seconds": round(slowest.seconds, 4),
    }
