"""What a client's turn is expected to cost: measured where it has been played, else by its size.

Cohorts are played costliest first, so that no long turn is left for the end. The expectation
decides who waits for whom, never what comes out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedmlic.protocol import Turn
    from strategies.server.cohort import Directory

MEMORY = 0.5
"""Weight of a client's last turn against those before."""


class Costs:
    """Expected seconds of every client's next turn.

    Before anything was measured a client costs as many seconds as it has images, which gives
    the same order. Afterwards one that was not played yet is expected to cost what the line
    through all measured (images, seconds) says, and one that was, what it took.

    Args:
        directory: who there is, with their sizes.
    """

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._measured: dict[int, float] = {}
        # Sums behind the line: count, images, images squared, seconds, images times seconds.
        self._sums = np.zeros(5)

    def learn(self, turns: Iterable[Turn]) -> None:
        """Take in how long turns took; failed ones tell nothing."""
        for turn in turns:
            if turn.error or turn.seconds <= 0:
                continue
            before = self._measured.get(turn.client, turn.seconds)
            self._measured[turn.client] = MEMORY * turn.seconds + (1 - MEMORY) * before
            size, seconds = float(turn.num_images), turn.seconds
            self._sums += [1, size, size * size, seconds, size * seconds]

    def of(self, clients: Sequence[int]) -> dict[int, float]:
        """Expected seconds by client, costliest first (ties: the lower id)."""
        sizes = self._directory.sizes_of(clients).astype(np.float64)
        guesses = np.maximum(self._line(sizes), 1e-9)
        costs = {
            client: self._measured.get(client, float(guess)) for client, guess in zip(clients, guesses, strict=True)
        }
        return dict(sorted(costs.items(), key=lambda item: (-item[1], item[0])))

    def _line(self, sizes: NDArray[np.float64]) -> NDArray[np.float64]:
        count, size, square, seconds, product = self._sums
        if count == 0:
            return sizes
        spread = count * square - size * size
        slope = max((count * product - size * seconds) / spread, 0.0) if spread > 1e-9 else 0.0
        return (seconds - slope * size) / count + slope * sizes
