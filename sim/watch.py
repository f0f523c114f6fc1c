"""Hooks by which a display follows a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedmlic.experiment import Experiment
    from fedmlic.protocol import Turn
    from fedmlic.record import RunFolder


class Watch:
    """Hooks by which a display follows a run; each does nothing by default."""

    def building(self, what: str, done: int, total: int) -> None:
        """Images or feature maps are being built."""

    def warning(self, text: str) -> None:
        """Something about the data that a person should know."""

    def started(self, folder: RunFolder, experiment: Experiment, resumed_round: int) -> None:
        """The run folder exists and rounds are about to start."""

    def turn(self, round_number: int, turn: Turn, total: int) -> None:
        """A client's turn ended; ``total`` clients take part in this round."""

    def event(self, kind: str, values: Mapping[str, object]) -> None:
        """Something was written to the event log."""
