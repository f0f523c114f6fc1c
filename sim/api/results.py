"""What came of runs and studies, read from their folders, also while they are under way."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from filelock import FileLock, Timeout

from fedmlic.errors import InputError, nearest
from fedmlic.record import is_run, open_run, read_json
from fedmlic.resolved import resolved
from sim.comparison.read import is_complete, metrics_of
from sim.comparison.same_data import check_same_data
from sim.sweep.folder import FILE, is_study

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from sim.outcome import Scores, Which
    from sim.predict import Predictor


class OtherDataWarning(UserWarning):
    """Runs that are drawn together were given other data, though their settings ask for the same."""


class _Given(NamedTuple):
    path: Path
    settings: Mapping[str, Any]
    data: Mapping[str, Any]


Status = Literal["complete", "failed", "running", "interrupted"]


class Run:
    """One run: its settings, its tables, its model.

    Tables are pandas copies made from the events so far; ask again to see more of a run that is under way.
    ``docs/record.md`` explains every column.

    Args:
        path: the run folder.

    Attributes:
        path: the run folder.

    Raises:
        InputError: it is none.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        self._folder = open_run(self.path)
        self._experiment, self._runtime = self._folder.settings()
        self._read: tuple[int, dict[str, pd.DataFrame]] = (-1, {})

    def __repr__(self) -> str:
        last = self._last_round()
        return f"Run({str(self.path)!r}, {self.status}, round {last} of {self._experiment.num_rounds})"

    # --- settings and state ---------------------------------------------------------

    @property
    def settings(self) -> dict[str, Any]:
        """All settings of the experiment by name, as keywords: ``run(**{**old.settings, "seed": 1})``."""
        return self._experiment.model_dump()

    @property
    def home(self) -> str:
        """Where its corpus and federation are kept; empty for the user's default."""
        return self._runtime.home

    @property
    def status(self) -> Status:
        """``complete``, ``failed`` (by an error), ``running`` (a process holds the folder) or ``interrupted``."""
        if is_complete(self.path):
            return "complete"
        try:
            with FileLock(self.path / ".lock", timeout=0):
                pass
        except Timeout:
            return "running"
        last = ""
        for event in self._folder.events():
            last = str(event["event"])
        return "failed" if last == "failed" else "interrupted"

    @property
    def warnings(self) -> list[str]:
        """What a person should know of its data."""
        return list(self._folder.data()["warnings"])

    @property
    def best_round(self) -> int:
        """The round that was best on validation data so far; 0 without one."""
        rounds = self._tables()["rounds"]
        return int(rounds["best-round"].iloc[-1]) if len(rounds) else 0

    def _last_round(self) -> int:
        rounds = self._tables()["rounds"]
        return int(rounds["round"].iloc[-1]) if len(rounds) else 0

    # --- tables ---------------------------------------------------------------------

    def _tables(self) -> dict[str, pd.DataFrame]:
        """The tables, made again where the log has grown."""
        log = self._folder.events_path
        size = log.stat().st_size if log.exists() else 0
        if self._read[0] != size:
            self._read = (size, self._folder.tables())
        return self._read[1]

    @property
    def rounds(self) -> pd.DataFrame:
        """One row per round: loss, bytes, seconds, metrics on test (``server/``) and validation (``server/val/``)."""
        return self._tables()["rounds"].copy()

    @property
    def clients(self) -> pd.DataFrame:
        """One row per client and round in which it took part."""
        return self._tables()["clients"].copy()

    @property
    def hosts(self) -> pd.DataFrame:
        """One row per host and round: how evenly the work lay."""
        return self._tables()["hosts"].copy()

    @property
    def labels(self) -> pd.DataFrame:
        """One row per label, split and evaluated round: average precision, precision, recall, F1, counts."""
        return self._tables()["labels"].copy()

    @property
    def evaluations(self) -> pd.DataFrame:
        """One row per evaluation on the clients' held-out images."""
        return self._tables()["evaluations"].copy()

    def curve(self, metric: str = "server/mAP") -> pd.Series[float]:
        """A metric by round, without the rounds that were not evaluated.

        Args:
            metric: a column of ``rounds`` or ``evaluations``.

        Raises:
            InputError: the run has no such number (yet).
        """
        tables = [self._tables()[name] for name in ("rounds", "evaluations")]
        for table in tables:
            if metric in table:
                return table.set_index("round")[metric].dropna()
        known = [name for table in tables for name in table.columns]
        hint = nearest(metric, known) if known else "No round has ended yet."
        msg = f"Expected {self.path} to have {metric!r}, got none. {hint}"
        raise InputError(msg)

    def metrics(self, which: Which = "last") -> dict[str, float]:
        """All metrics of one model of the complete run, by name; those that do not exist are NaN.

        Args:
            which: ``last``, after the last round, or ``best`` on validation data.

        Raises:
            InputError: the run is not complete, or has no best round.
        """
        return metrics_of(self.path, which)

    # --- the model ------------------------------------------------------------------

    def network(self, which: Which = "best", client: int | None = None) -> nn.Module:
        """The trained network, in evaluation mode.

        It takes float32 ``[batch, channels, height, width]`` as ``shard`` gives images; what it returns is the
        method's own (logits of most methods). ``predict`` and ``scores`` give probabilities of any method.

        Args:
            which: ``best`` on validation data (the last round without one), or ``last``.
            client: whose, where clients keep tensors of their own.

        Raises:
            InputError: there is no checkpoint yet, or a client that is missing or not wanted.
        """
        return self._predictor(which, client).learner.resident.network.eval()

    def scores(self, split: str = "test", which: Which = "best", client: int | None = None) -> Scores:
        """Probabilities of a split's images, and what is known of them, as NumPy arrays.

        Args:
            split: ``test``, ``val`` or ``train``.
            which: as in ``network``.
            client: as in ``network``.

        Raises:
            InputError: as ``network``; a split without images; images that are not those of the run.
        """
        from sim.outcome import scores_of

        return scores_of(self.path, split, which, client)

    def predict(
        self,
        images: str | Path | Sequence[str | Path] | NDArray[np.uint8] | Tensor,
        which: Which = "best",
        client: int | None = None,
    ) -> pd.DataFrame:
        """Probabilities ``[images, labels]``, a column per label.

        Args:
            images: image files and folders of such; or uint8 ``[images, height, width, channels]`` of the size that
                the network was trained on.
            which: as in ``network``.
            client: as in ``network``.

        Raises:
            InputError: as ``network``; unreadable images, or pixels of another type or size.
        """
        import pandas as pd

        names, pixels = self._pixels(images)
        predictor = self._predictor(which, client)
        return pd.DataFrame(predictor.scores(pixels), index=names, columns=list(predictor.label_names))

    def _predictor(self, which: Which, client: int | None) -> Predictor:
        from sim.outcome import predictor_of

        if which not in {"best", "last"}:
            msg = f"Expected which to be 'best' or 'last', got {which!r}."
            raise InputError(msg)
        return predictor_of(self.path, which, client)

    def _pixels(
        self, images: str | Path | Sequence[str | Path] | NDArray[np.uint8] | Tensor
    ) -> tuple[list[str] | None, NDArray[np.uint8]]:
        """Names where images are files, and stored images."""
        import numpy as np

        from fedmlic.images import read_images
        from sim.predict import image_files, load_shape

        shape = load_shape(self.path)
        if isinstance(images, (str, Path)):
            images = [images]
        if isinstance(images, (list, tuple)) and all(isinstance(image, (str, Path)) for image in images):
            files = image_files([Path(image).expanduser() for image in images])
            return [str(file) for file in files], read_images(files, shape)
        pixels = np.asarray(images)
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != shape:
            msg = (
                f"Expected images to be files or uint8 [images, {', '.join(map(str, shape))}], got {pixels.dtype} "
                f"{list(pixels.shape)}. Give files to have them read and scaled."
            )
            raise InputError(msg)
        return None, pixels


class Study:
    """Many runs with one table: what ``sweep`` and ``fedmlic sweep`` write.

    Args:
        path: the study's folder.

    Attributes:
        path: the study's folder.

    Raises:
        InputError: it is none.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        if not is_study(self.path):
            msg = f"Expected {self.path} to be the folder of a study (with {FILE}), got something else. Check the path."
            raise InputError(msg)

    def __repr__(self) -> str:
        runs = [run for row in self.rows.values() for run in row]
        complete = sum(is_complete(run.path) for run in runs)
        return f"Study({str(self.path)!r}, {len(self.rows)} rows, {complete} complete runs)"

    @property
    def table(self) -> pd.DataFrame:
        """One row per run: settings, chosen values, state, metrics of the model after the last round.

        Raises:
            InputError: the study was interrupted before it had any.
        """
        import pandas as pd

        file = self.path / "table.csv"
        if not file.is_file() or not file.read_bytes().strip():
            msg = f"Expected {file} to be the table of a study, got none: it was interrupted before. Play it again."
            raise InputError(msg)
        return pd.read_csv(file)

    @property
    def rows(self) -> dict[str, list[Run]]:
        """The runs that have begun, by the label of their row (its settings); references included."""
        rows = read_json(self.path / FILE)["rows"]
        places = {row["label"]: [self.path / run["run"] for run in row["runs"]] for row in rows}
        return {label: [Run(place) for place in found if is_run(place)] for label, found in places.items()}

    @property
    def runs(self) -> list[Run]:
        """The runs that have begun, row after row."""
        return [run for row in self.rows.values() for run in row]


Played = Run | Study | str | Path
"""A run, a study, or the folder of one."""


def load(path: str | Path) -> Run:
    """A run from its folder, complete or not.

    Raises:
        InputError: it is none.
    """
    return Run(path)


def load_study(path: str | Path) -> Study:
    """A study from its folder, complete or not.

    Raises:
        InputError: it is none.
    """
    return Study(path)


def opened(things: Iterable[Played | Iterable[Played]]) -> list[Run | Study]:
    """Runs and studies, folders of such opened, and what lies in lists taken out of them.

    Raises:
        InputError: a folder is neither, or there is nothing.
    """
    found: list[Run | Study] = []
    for thing in things:
        if isinstance(thing, (Run, Study)):
            found.append(thing)
        elif isinstance(thing, (str, Path)):
            found.append(Study(thing) if is_study(Path(thing).expanduser()) else Run(thing))
        else:
            found += opened(thing)
    if not found:
        msg = "Expected runs or studies, got none. Give what run, sweep, load or load_study returned, or folders."
        raise InputError(msg)
    return found


def rows_of(things: Iterable[Played | Iterable[Played]]) -> dict[str, list[Run]]:
    """Runs by row: those of a study as it names them, others by the settings in which they differ besides the seed.

    Warns:
        OtherDataWarning: runs whose settings ask for the same data were given others.
    """
    rows: dict[str, list[Run]] = {}
    single: list[Run] = []
    for thing in opened(things):
        if isinstance(thing, Study):
            for label, runs in thing.rows.items():
                rows.setdefault(label, []).extend(runs)
        else:
            single.append(thing)
    spelled = [resolved(run._experiment) for run in single]  # noqa: SLF001
    differing = (
        [key for key in spelled[0] if key != "seed" and len({str(each[key]) for each in spelled}) > 1]
        if spelled
        else []
    )
    for run in single:
        shown = {key: str(run.settings[key.replace("-", "_")]) for key in differing}
        label = ", ".join(text if "(" in text else f"{key} {text or 'none'}" for key, text in shown.items())
        rows.setdefault(label or "all runs", []).append(run)
    _warn_of_data([run for found in rows.values() for run in found])
    return rows


def _warn_of_data(runs: Iterable[Run]) -> None:
    given = [
        _Given(run.path, resolved(run._experiment, []), run._folder.data())  # noqa: SLF001
        for run in runs
        if len(run.rounds)
    ]
    try:
        check_same_data(given)
    except InputError as error:
        warnings.warn(str(error), OtherDataWarning, stacklevel=4)
