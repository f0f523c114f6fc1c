"""What ``fedmlic doctor`` finds: one line each, with what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

Verdict = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        about: what, in a word or two.
        verdict: ``problem`` is what a run would fail of.
        text: what was found.
        remedy: what to do; empty where nothing is to be done.
        values: the numbers behind the text, for ``--json``.
    """

    about: str
    verdict: Verdict
    text: str
    remedy: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Place:
    """Where the doctor looks: a device, a server, or as much as is there of one.

    Attributes:
        node: the node config of a device; None where there is none.
        about: what the kit says of its federation (``kit.json``); empty without.
        superlink: ``host:port`` of the server as nodes reach it; empty where unknown.
        authority: certificate of the authority that signed the server's.
        certificates: further certificates, of a server.
        key: private key of a node.
    """

    node: Mapping[str, Any] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    superlink: str = ""
    authority: Path | None = None
    certificates: tuple[Path, ...] = ()
    key: Path | None = None


def looked_at(about: str, look: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """Findings of one part; one that cannot be looked at is a problem like others, and the rest goes on."""
    try:
        yield from look()
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, ImportError, AttributeError) as error:
        text = str(error).strip() or type(error).__name__
        yield Finding(about, "problem", text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}")


def size(num_bytes: float) -> str:
    """Bytes as people say them.

    >>> size(1_500_000), size(2e9)
    ('1.5 MB', '2.0 GB')
    """
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.1f} MB"
