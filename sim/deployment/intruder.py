"""What somebody outside tries who knows the address and has ``ca.crt``, and which ports answer.

Both are not secret: every owner of a device has them. Flower's own programs are used where they can be, and
plain requests for what no honest program sends.
"""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import http.client
import ssl
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

PATHS: Final = (
    "/",
    "/health",
    "/docs",
    "/openapi.json",
    "/v1/control/list-runs",
    "/v1/control/start-run",
    "/v1/control/register-node",
    "/v1/control/list-nodes",
    "/v1/runtime/acquire-task",
    "/v1/responses",
    "/v1/fleet/register-node",
    "/v1/fleet/unregister-node",
    "/v1/fleet/",
    "/v1/fleet/pull-messages/",
    "/flwr.proto.Control/ListRuns",
)
"""What the SuperLink, or an older one, has beside the calls of a SuperNode."""

TRICKS: Final = (
    "/v1/fleet/../control/list-runs",
    "/v1/fleet/%2e%2e/control/list-runs",
    "/v1/fleet/..%2fcontrol/list-runs",
    "/v1/fleet/pull-messages/../../control/list-runs",
    "/v1/fleet/pull-messages%00/../../control/list-runs",
    "//v1/control/list-runs",
    "/V1/Control/list-runs",
    "/v1/control%2flist-runs",
    "/v1/control/list-runs/../../fleet/pull-messages",
    "/v1/control/list-runs%3f/../../fleet/pull-messages",
    "/v1/control/list-runs#/../../fleet/pull-messages",
    "/v1/control/list-runs;/../../fleet/pull-messages",
)
"""Other spellings of a forbidden path: what the proxy reads in them and what the SuperLink reads may differ."""

HEADER: Final = "flwr-public-key"


class Answer(NamedTuple):
    """Status and body of an answer; status 0 if there was none."""

    path: str
    status: int
    body: bytes


class Listener(NamedTuple):
    """A port that a process listens on."""

    address: str
    port: int
    process: str


def post(
    port: int, path: str, trust: ssl.SSLContext, headers: dict[str, str] | None = None, body: bytes = b""
) -> Answer:
    """Send a request of Flower's kind to a port of this machine; the path goes out as it is written."""
    connection = http.client.HTTPSConnection("localhost", port, timeout=20, context=trust)
    try:
        connection.putrequest("POST", path, skip_accept_encoding=True)
        for key, value in {
            "Content-Type": "application/protobuf",
            "Content-Length": str(len(body)),
            **(headers or {}),
        }.items():
            connection.putheader(key, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        return Answer(path, answer.status, answer.read(2000))
    except (OSError, http.client.HTTPException):
        return Answer(path, 0, b"")
    finally:
        connection.close()


def impostor_headers(public_header: str) -> dict[str, str]:
    """Headers of somebody who has a device's public key but not its private one."""
    return {
        HEADER: public_header,
        "flwr-timestamp": dt.datetime.now(dt.UTC).isoformat(),
        "flwr-signature": base64.b64encode(b"0" * 64).decode("ascii"),
    }


def listeners(processes: Iterable[int]) -> list[Listener]:
    """TCP ports on which the processes listen (Linux)."""
    sockets = {}
    for process in processes:
        with contextlib.suppress(OSError):
            name = Path(f"/proc/{process}/comm").read_text(encoding="utf-8").strip()
            for handle in Path(f"/proc/{process}/fd").iterdir():
                with contextlib.suppress(OSError):
                    sockets[str(handle.readlink())] = name
    found = set()
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/net/{table}").read_text(encoding="ascii").splitlines()[1:]:
                parts = line.split()
                owner = sockets.get(f"socket:[{parts[9]}]")
                if parts[3] == "0A" and owner is not None:
                    host, _, port = parts[1].rpartition(":")
                    found.add(Listener(_address(host), int(port, 16), owner))
    return sorted(found, key=lambda each: each.port)


def _address(text: str) -> str:
    """The address of /proc/net/tcp and tcp6, whose words of 32 bits are in the machine's order."""
    import ipaddress
    import sys

    words = [bytes.fromhex(text[start : start + 8]) for start in range(0, len(text), 8)]
    raw = b"".join(word[::-1] if sys.byteorder == "little" else word for word in words)
    return str(ipaddress.ip_address(raw))
