"""A run's curves as TensorBoard event files, written while it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    from fedmlic.record import RunFolder


@contextmanager
def curves(folder: RunFolder) -> Iterator[None]:
    """Write the curves of whatever a block does in a run folder, below its ``tensorboard``."""
    writer = Writer(folder.path / "tensorboard")
    folder.listeners.append(writer.event)
    try:
        yield
    finally:
        folder.listeners.remove(writer.event)
        writer.close()


class Writer:
    """Writes every number of ``round`` and ``clients-evaluated`` events as a scalar.

    TensorBoard's own writer is used without torch's wrapper, whose import costs seconds.

    Args:
        folder: where the event files lie; made with the first event.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: EventFileWriter | None = None

    def event(self, kind: str, values: Mapping[str, object]) -> None:
        """Write one event's numbers at its round."""
        if kind == "start":
            self._purge(values)
        if kind in {"round", "clients-evaluated"}:
            self._scalars(values)

    def close(self) -> None:
        """Flush and close."""
        if self._writer is not None:
            self._writer.close()

    def _purge(self, values: Mapping[str, object]) -> None:
        """After a resume, have TensorBoard drop rounds that are played again."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        start = int(str(values["round"]))
        if start:
            self._add(Event(step=start + 1, session_log=SessionLog(status=SessionLog.START)))

    def _scalars(self, values: Mapping[str, object]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        numbers = {
            name: float(value)
            for name, value in values.items()
            if isinstance(value, (int, float)) and name != "round" and value == value  # noqa: PLR0124  (NaN)
        }
        scalars = [Summary.Value(tag=name, simple_value=number) for name, number in numbers.items()]
        self._add(Event(step=int(str(values["round"])), summary=Summary(value=scalars)))

    def _add(self, event: Any) -> None:  # noqa: ANN401  (a protocol buffer)
        import time

        if self._writer is None:
            from tensorboard.summary.writer.event_file_writer import EventFileWriter

            self._writer = EventFileWriter(str(self._folder))
        event.wall_time = time.time()
        self._writer.add_event(event)
        self._writer.flush()
