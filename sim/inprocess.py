"""Clients in this very process: tests, debuggers, notebooks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from clients.host import Host
from fedmlic.protocol import HostInfo, Reply, Request


class InProcess:
    """A transport that is a function call.

    Args:
        host: plays the clients.
    """

    def __init__(self, host: Host) -> None:
        self._host = host

    def hosts(self) -> list[HostInfo]:
        """The one host."""
        return [self._host.info()]

    def play(self, request: Request, clients: Sequence[int]) -> Iterator[Reply]:
        """Play one client after another; errors are turns, as with every transport."""
        for client in clients:
            if request.each:
                yield self._host.turn_alone(request, client)
            else:
                yield Reply((self._host.turn(request, client),))
        yield self._host.collect()

    def close(self) -> None:
        """Nothing to let go of."""
