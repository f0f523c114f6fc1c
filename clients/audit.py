"""What a device's owner can look up later: every message that came, and what was sent in answer.

Switched on by ``audit-log`` in the node config, the path of the file. An entry is on the disk before the answer leaves
the ClientApp; where it cannot be written, the answer is an error that says so and nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fedmlic import wire
from fedmlic.audit import AuditLog
from fedmlic.errors import shown

if TYPE_CHECKING:
    from flwr.app import Context, RecordDict

KEY: Final = "audit-log"
"""Of the node config."""

SAID: Final = ("method", "model", "mods", "strategy", "dataset", "num-rounds", "label-names")
"""Settings of a run that its introduction's entry holds."""


def note(kind: str, asked: RecordDict, answer: RecordDict, context: Context) -> None:
    """Write down one message and its answer, if the device's owner wants that.

    Args:
        kind: ``query``, ``train`` (a count of labels too) or ``evaluate``.
        asked: what the server sent.
        answer: what will be sent.
        context: Flower's, with the run and the node config.

    Raises:
        InputError: it cannot be written.
    """
    path = context.node_config.get(KEY)
    if not path:
        return
    entry: dict[str, Any] = {
        "event": kind,
        "run": str(context.run_id),
        "node": str(context.node_id),
        "settings": _digest(context.run_config),
        "code": wire.code_digest(),
        "allow-statistics": all(
            each.get("allow-statistics", default) is True
            for each, default in ((context.run_config, False), (context.node_config, True))
        ),
        **wire.about_request(asked),
        "in": wire.described(asked),
        "out": wire.described(answer),
        "outcome": shown(wire.failure_in(answer), 300) or "answered",
    }
    if kind == "query":
        entry["said"] = {name: shown(context.run_config[name], 500) for name in SAID if name in context.run_config}
    AuditLog(Path(str(path)).expanduser()).write(entry)


def _digest(settings: Mapping[str, Any]) -> str:
    """SHA-256 of a run's settings: equal for equal ones."""
    return hashlib.sha256(json.dumps(dict(settings), sort_keys=True).encode()).hexdigest()[:16]
