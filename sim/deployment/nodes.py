"""The nodes of a SuperLink as Flower lists them, and what a run's events say of them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from fedmlic.errors import InputError, shown
from fedmlic.record import open_run
from sim.engines.flower import program

ASK_S: Final = 60.0
"""How long Flower's command may take."""


def listed(superlink: str, names: Mapping[str, str]) -> list[dict[str, str]]:
    """``node``, ``name``, ``status``, ``since`` and ``registered`` of every node, in Flower's order.

    Args:
        superlink: a connection of Flower's configuration; empty: its default.
        names: of nodes, by their ids.

    Raises:
        InputError: Flower's command does not answer; its reason is passed on.
    """
    command = [program("flwr"), "supernode", "list", *([superlink] if superlink else []), "--format", "json"]
    try:
        done = subprocess.run(  # noqa: S603  (a name that Flower looks up)
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=ASK_S
        )
    except subprocess.TimeoutExpired:
        msg = (
            f"Expected Flower to list the nodes of {superlink or 'its default SuperLink'} within {ASK_S:g} s, got no "
            "answer. Look whether the SuperLink runs and its address is right."
        )
        raise InputError(msg) from None
    try:
        answer = json.loads(done.stdout[done.stdout.index("{") :])
        found = answer["nodes"]
    except (ValueError, KeyError):
        reason = shown((done.stderr or done.stdout).strip() or f"exit code {done.returncode}", 1000)
        msg = f"Expected Flower to list the nodes of {superlink or 'its default SuperLink'}, got: {reason}"
        raise InputError(msg) from None
    return [_row(node, names) for node in found]


def _row(node: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, str]:
    status = str(node["status"])
    since = node["online-at"] if status == "online" else node["offline-at"] or node["created-at"]
    return {
        "node": str(node["node-id"]),
        "name": names.get(str(node["node-id"]), ""),
        "status": status,
        "since": _moment(since),
        "registered": _moment(node["created-at"]),
    }


def _moment(text: object) -> str:
    """Flower's time without what is smaller than a second."""
    found = str(text or "")
    return "" if found == "N/A" else found.partition(".")[0].replace("T", " ").removesuffix("Z")


def names_of(path: Path) -> dict[str, str]:
    """Names by node ids, from a file with ``NODE NAME`` on each line.

    Raises:
        InputError: it cannot be read, or a line is another.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        msg = f"Expected {path} to be a table of names, got an error: {error}."
        raise InputError(msg) from None
    found = {}
    for number, line in enumerate(lines, 1):
        node, _, name = line.strip().partition(" ")
        if not line.strip():
            continue
        if not node.isdecimal() or not name.strip():
            msg = f"Expected line {number} of {path} to be NODE NAME, got {shown(line, 100)!r}."
            raise InputError(msg)
        found[node] = name.strip()
    return found


def seen(run: Path) -> list[dict[str, Any]]:
    """What a run saw of each host: ``host``, ``last_round``, ``turns``, ``failed`` and ``error`` (the last one).

    A node that was set aside has its id as ``host``, no turns, and the reason as its error.

    Args:
        run: the run's folder; the run may be under way.
    """
    found: dict[str, dict[str, Any]] = {}
    for event in open_run(run).events():
        if event["event"] == "versions":
            _of(found, event["host"])
        elif event["event"] == "set-aside":
            _of(found, str(event.get("host") or f"node {event['node']}"))["error"] = f"set aside: {event['reason']}"
        elif event["event"] == "client":
            row = _of(found, event["host"])
            row["turns"] += 1
            row["last_round"] = event["round"]
            if event.get("error"):
                row["failed"] += 1
                last = str(event["error"]).strip().splitlines()[0]
                row["error"] = f"round {event['round']}: {shown(last, 300)}"
    return [found[host] for host in sorted(found)]


def _of(found: dict[str, dict[str, Any]], host: str) -> dict[str, Any]:
    return found.setdefault(host, {"host": host, "last_round": 0, "turns": 0, "failed": 0, "error": ""})
