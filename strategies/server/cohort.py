"""Who takes part in a round, and who plays whom.

The cohort is a function of (seed, round) alone: a resumed run, another number of
workers or another transport samples the same clients.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from fedmlic.errors import InputError
from fedmlic.protocol import HostInfo
from fedmlic.seeds import stream

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Directory:
    """All clients that some host can play.

    Args:
        hosts: what the hosts said. Several may host the same client (simulation).

    Attributes:
        clients: int64 ``[clients]``, ascending ids.
        sizes: int64 ``[clients]``, their training images.
        label_names: the label space that all hosts share.
    """

    def __init__(self, hosts: Sequence[HostInfo]) -> None:
        if not hosts:
            msg = "Expected at least one host, got none. Start a worker or a SuperNode."
            raise InputError(msg)
        self.label_names = hosts[0].label_names
        for other in hosts[1:]:
            if other.label_names != self.label_names:
                msg = (
                    f"Expected all hosts to have one label space, got {list(self.label_names)[:8]} from "
                    f"{hosts[0].host} and {list(other.label_names)[:8]} from {other.host}. Set label-names."
                )
                raise InputError(msg)
        everyone = np.concatenate([host.clients for host in hosts])
        sizes = np.concatenate([host.sizes for host in hosts])
        self.clients, first = np.unique(everyone, return_index=True)
        self.sizes = sizes[first]

    def sizes_of(self, clients: Sequence[int]) -> NDArray[np.int64]:
        """Training images of ``clients``."""
        return self.sizes[np.searchsorted(self.clients, np.asarray(clients, dtype=np.int64))]


def sample_cohort(
    directory: Directory, *, size: int, how: Literal["uniform", "size"], seed: int, round_number: int
) -> list[int]:
    """Distinct clients of one round, costliest (most images) first.

    Args:
        directory: who there is.
        size: how many; 0 means everybody.
        how: ``uniform`` without replacement, or by ``size``: probability proportional to
            training images, drawn one after another without replacement.
        seed: the experiment's seed.
        round_number: 1, 2, ...
    """
    total = len(directory.clients)
    if size > total:
        msg = f"Expected cohort-size to be at most the {total} clients that are there, got {size}."
        raise InputError(msg)
    if size in (0, total):
        chosen = np.arange(total)
    else:
        rng = stream(seed, "cohort", round_number)
        if how == "uniform":
            chosen = rng.choice(total, size, replace=False)
        else:
            # Efraimidis and Spirakis (2006): the largest keys log(u)/size are such a draw.
            keys = np.log1p(-rng.random(total)) / np.maximum(directory.sizes, 1e-9)
            chosen = np.argsort(-keys, kind="stable")[:size]
    order = np.lexsort((directory.clients[chosen], -directory.sizes[chosen]))
    return [int(client) for client in directory.clients[chosen][order]]


def deal(
    clients: Sequence[int], costs: Mapping[int, float], hosts: Mapping[str, set[int] | None]
) -> dict[str, list[int]]:
    """Who plays whom: costliest first, each to the host with the least to do.

    Args:
        clients: who is to be played.
        costs: expected cost of a turn by client.
        hosts: by name, the clients a host can play; None means any.

    Returns:
        Clients by host; hosts without work are left out.

    Raises:
        InputError: a client that no host can play.
    """
    heap = [(0.0, name) for name in sorted(hosts)]
    heapq.heapify(heap)
    dealt: dict[str, list[int]] = {}
    for client in sorted(clients, key=lambda client: (-costs[client], client)):
        passed = []
        while heap:
            load, name = heapq.heappop(heap)
            allowed = hosts[name]
            if allowed is None or client in allowed:
                dealt.setdefault(name, []).append(client)
                passed.append((load + costs[client], name))
                break
            passed.append((load, name))
        else:
            msg = f"Expected some host to hold client {client}, got none among {sorted(hosts)}."
            raise InputError(msg)
        for entry in passed:
            heapq.heappush(heap, entry)
    return dealt
