"""Who is there, and play these clients: all the round loop knows of the outside world."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from fedmlic.protocol import HostInfo, Reply, Request


class Transport(Protocol):
    """What carries requests to hosts and replies back.

    One that may refuse hosts also has ``set_aside()``: a list of rows with ``node`` and ``reason``,
    those since the last call, for the record.
    """

    def hosts(self) -> list[HostInfo]:
        """Ask everybody once what they host; waits until enough are there or raises."""

    def play(
        self, request: Request, clients: Sequence[int], costs: Mapping[int, float] | None = None
    ) -> Iterator[Reply]:
        """Have ``clients`` (costliest first) played, and yield replies as they come.

        ``costs`` says what each is expected to cost, in any unit; without it all are equal.

        Every client gets a turn, a failed one with its error. A host that dies is replaced
        where that is possible and its clients are played again: a client's later turn
        replaces the earlier one, whose update never arrived.
        """

    def close(self) -> None:
        """Let go of everything; safe to call twice."""
