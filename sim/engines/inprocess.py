"""Clients in this very process: tests, debuggers, notebooks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

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

    def play(
        self, request: Request, clients: Sequence[int], costs: Mapping[int, float] | None = None
    ) -> Iterator[Reply]:
        """Play one client after another; errors are turns, as with every transport."""
        del costs
        # What a resumed run shares comes from its checkpoint, on the CPU.
        shared = {name: tensor.to(self._host.device) for name, tensor in request.shared.items()}
        request = replace(request, shared=shared)
        for start in range(0, len(clients), self._host.at_once):
            turns = tuple(self._host.turns(request, clients[start : start + self._host.at_once]))
            yield Reply(turns, self._host.collect().updates if request.each else ())
        yield self._host.collect()

    def close(self) -> None:
        """Nothing to let go of."""
