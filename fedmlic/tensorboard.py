"""A run's curves as TensorBoard event files, written while it runs, with its settings for the HParams page."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    from fedmlic.experiment import Experiment
    from fedmlic.record import RunFolder

RESULTS: Final = ("server/mAP", "server/val/mAP", "client/mAP", "client/mAP/mean", "client/mAP/worst")
"""Metrics of a run's last and best model that TensorBoard shows beside its settings."""

MODELS: Final = ("last", "best")
"""Begin their names there: ``last/server/mAP``."""


@contextmanager
def curves(folder: RunFolder) -> Iterator[Writer]:
    """Write the curves of whatever a block does in a run folder, below its ``tensorboard``."""
    writer = Writer(folder.path / "tensorboard", folder.settings()[0])
    folder.listeners.append(writer.event)
    try:
        yield writer
    finally:
        folder.listeners.remove(writer.event)
        writer.close()


class Writer:
    """Writes every number of ``round`` and ``clients-evaluated`` events as a scalar.

    TensorBoard's own writer is used without torch's wrapper, whose import costs seconds.

    Args:
        folder: where the event files lie; made with the first event.
        experiment: its settings are the hyper-parameters.
    """

    def __init__(self, folder: Path, experiment: Experiment) -> None:
        self._folder = folder
        self._experiment = experiment
        self._writer: EventFileWriter | None = None

    def event(self, kind: str, values: Mapping[str, object]) -> None:
        """Write one event's numbers at its round."""
        if kind == "start":
            self._purge(values)
            self._settings()
        if kind in {"round", "clients-evaluated"}:
            self._scalars(values)

    def results(
        self, last: tuple[int, Mapping[str, float | None]], best: tuple[int, Mapping[str, float | None]]
    ) -> None:
        """Write the metrics of ``RESULTS`` of a complete run's last and best model.

        Args:
            last: its round and metrics.
            best: the same of the model that is best on validation; no metrics if none was chosen.
        """
        from tensorboard.plugins.hparams.api_pb2 import Status
        from tensorboard.plugins.hparams.metadata import SESSION_END_INFO_TAG
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo

        for model, (number, metrics) in zip(MODELS, (last, best), strict=True):
            found = {f"{model}/{name}": metrics[name] for name in RESULTS if metrics.get(name) is not None}
            if found:
                self._scalars({"round": number, **found})
        end = SessionEndInfo(status=Status.Value("STATUS_SUCCESS"), end_time_secs=time.time())
        self._hparams(SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=end))

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

    def _settings(self) -> None:
        """The experiment's settings, and which metrics stand beside them."""
        from tensorboard.plugins.hparams import api_pb2
        from tensorboard.plugins.hparams.metadata import EXPERIMENT_TAG, SESSION_START_INFO_TAG
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionStartInfo

        start = SessionStartInfo(start_time_secs=time.time())
        infos = []
        for field, value in self._experiment.model_dump().items():
            name = field.replace("_", "-")
            if isinstance(value, bool):
                start.hparams[name].bool_value, kind = value, "DATA_TYPE_BOOL"
            elif isinstance(value, (int, float)):
                start.hparams[name].number_value, kind = value, "DATA_TYPE_FLOAT64"
            else:
                start.hparams[name].string_value, kind = str(value), "DATA_TYPE_STRING"
            infos.append(api_pb2.HParamInfo(name=name, type=api_pb2.DataType.Value(kind)))
        tags = [f"{model}/{name}" for name in RESULTS for model in MODELS]
        metrics = [api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag)) for tag in tags]
        experiment = api_pb2.Experiment(hparam_infos=infos, metric_infos=metrics)
        self._hparams(EXPERIMENT_TAG, HParamsPluginData(experiment=experiment))
        self._hparams(SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=start))

    def _hparams(self, tag: str, content: Any) -> None:  # noqa: ANN401  (a protocol buffer)
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.hparams.metadata import NULL_TENSOR, create_summary_metadata

        value = Summary.Value(tag=tag, metadata=create_summary_metadata(content), tensor=NULL_TENSOR)
        self._add(Event(summary=Summary(value=[value])))

    def _scalars(self, values: Mapping[str, object]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        numbers = {
            name: float(value)
            for name, value in values.items()
            if isinstance(value, (int, float)) and name not in {"round", "client/mAP/worst-client"} and value == value  # noqa: PLR0124  (NaN)
        }
        scalars = [Summary.Value(tag=name, simple_value=number) for name, number in numbers.items()]
        self._add(Event(step=int(str(values["round"])), summary=Summary(value=scalars)))

    def _add(self, event: Any) -> None:  # noqa: ANN401  (a protocol buffer)
        if self._writer is None:
            from tensorboard.summary.writer.event_file_writer import EventFileWriter

            self._writer = EventFileWriter(str(self._folder))
        event.wall_time = time.time()
        self._writer.add_event(event)
        self._writer.flush()
