"""Put the server together: everything but the transport, for every engine.

``fedmlic run`` (in process, with worker processes, on Ray) and Flower's ServerApp call the same
two functions, so that there is one way a run starts, resumes and ends.
"""

from __future__ import annotations

import functools
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fedmlic import code, spec
from fedmlic.corpus import Corpus, load_corpus, open_corpus
from fedmlic.errors import InputError
from fedmlic.evaluation import Evaluator
from fedmlic.experiment import home_of
from fedmlic.features import features_of
from fedmlic.federation import modules_behind
from fedmlic.kept_scores import KeptScores, encode, keep_only, kept_rounds, write_scores
from fedmlic.learner import Learner, build_learner, choose_device, label_space
from fedmlic.process import prepare
from fedmlic.record import MODEL, RunFolder, best_metrics, metrics_at, read_json, write_bytes, write_json
from fedmlic.tensorboard import curves
from strategies.server.check import check_experiment, mods_of
from strategies.server.first_model import first_model, frozen_state
from strategies.server.rounds import Outcome, Progress, Rounds
from strategies.strategy import State, Strategy

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from fedmlic.dataset import Dataset
    from fedmlic.evaluation import Evaluation
    from fedmlic.experiment import Experiment, Runtime
    from fedmlic.protocol import Turn
    from strategies.server.transport import Transport

MEMORY = "memory/"
SHARED = "shared/"
COUNTED = "statistics/"
LAST = "last-turns"
"""Begin the names of a checkpoint's tensors; the last is int64 ``[clients, 2]``: client, round of its last turn."""

TABLES_EVERY_S = 30.0
"""Seconds between two writings of the tables while rounds are played."""

TABLES_SHARE = 0.05
"""Largest share of the time that goes into writing the tables: they are made anew from all events."""


@dataclass(frozen=True)
class Server:
    """The server's half of one experiment."""

    experiment: Experiment
    runtime: Runtime
    corpus: Corpus
    learner: Learner
    strategy: Strategy
    warnings: tuple[str, ...] = ()
    """What the record and whoever watches should know of the data."""

    @property
    def remembers(self) -> bool:
        """Whether clients keep tensors from turn to turn."""
        mods = mods_of(self.experiment, self.strategy).values()
        own = bool(self.learner.resident.private_names) or self.learner.method.remembers
        return own or any(mod.remembers for mod in mods)


def build_server(
    experiment: Experiment, runtime: Runtime, progress: Callable[[str, int, int], None] | None = None
) -> Server:
    """Open (or first build) the corpus and build the network and the strategy.

    Where the network's backbone does not train, its feature maps are opened (or first computed) too.

    Args:
        experiment: what is run.
        runtime: where and how fast.
        progress: called with ("images" or "features", how many are built, of how many).

    Raises:
        InputError: anything that the configuration or the data have wrong.
    """
    check_experiment(experiment, runtime)
    prepare(runtime.threads)
    strategy: Strategy = spec.build("strategy", experiment.strategy)
    dataset: Dataset = spec.build("dataset", experiment.dataset)
    home = home_of(runtime)
    corpus = open_corpus(dataset, home, progress=_counting(progress, "images"), **experiment.reading())
    device = choose_device(runtime.device)
    learner = build_learner(
        experiment,
        label_space(experiment, corpus),
        corpus.image_shape,
        device,
        channels_last=runtime.channels_last,
        features=features_of(experiment, corpus, device, home, _counting(progress, "features")),
    )
    return Server(experiment, runtime, corpus, learner, strategy, _about_data(dataset, corpus))


def _counting(progress: Callable[[str, int, int], None] | None, what: str) -> Callable[[int, int], None] | None:
    return None if progress is None else functools.partial(progress, what)


def _about_data(dataset: Dataset, corpus: Corpus) -> tuple[str, ...]:
    """A line if code of this project that drew the corpus was edited since."""
    change = code.compare(corpus.manifest.get("code", dataset.code), dataset.code)
    if not change:
        return ()
    text = (
        f"{corpus.path} was built by other code of data set {corpus.name} ({change}). If that draws other images or "
        "labels, delete the folder to have it built again."
    )
    return (text,)


class FolderRecord:
    """Writes the round loop's events and checkpoints into a run folder, while the loop goes on.

    One thread writes everything in the order in which it was given. What goes wrong there is
    raised by every later call, and nothing is written after it.
    """

    def __init__(self, folder: RunFolder, server: Server) -> None:
        self._folder = folder
        self._server = server
        self._writer = ThreadPoolExecutor(1, "record")
        self._error: BaseException | None = None
        self._checkpoint: Future[None] | None = None
        self._tables_due = time.monotonic() + TABLES_EVERY_S

    def event(self, kind: str, values: Mapping[str, object]) -> None:
        """Append one event."""
        self._later(lambda: self._folder.event(kind, values))

    def add_events(self, kind: str, rows: Sequence[Mapping[str, object]]) -> None:
        """Append events of one kind at once."""
        self._later(lambda: self._folder.add_events(kind, rows))

    def scores(self, progress: Progress, evaluation: Evaluation) -> None:
        """Write the scores of an evaluation, if they are among those that the run keeps."""
        keep = self._server.runtime.keep_scores
        if keep == "none" or (keep == "best" and progress.best_round not in {0, progress.round}):
            return
        corpus, belongs_to = self._server.corpus, (self._folder.identity(), self._server.corpus.content)
        names = tuple(self._server.learner.task.label_names)
        for split, scores in evaluation.scores.items():
            rows = evaluation.rows[split]
            codes = encode(scores)

            def write(split: str = split, rows: NDArray[np.int64] = rows, codes: NDArray[np.uint16] = codes) -> None:
                ids = [corpus.image_ids[row] for row in rows]
                kept = KeptScores(progress.round, split, names, rows, ids, codes, belongs_to)
                write_scores(self._folder.path, kept)

            self._later(write)

    def _prune_scores(self, progress: Progress) -> None:
        """Delete scores that are no longer wanted; after the checkpoint, so that a resumed run finds its own."""
        keep, rounds = self._server.runtime.keep_scores, kept_rounds(self._folder.path)
        if keep in {"last", "best"} and rounds:
            best = progress.best_round if keep == "best" and progress.best_round else rounds[-1]
            keep_only(self._folder.path, [best])

    def checkpoint(self, progress: Progress) -> None:
        """Write a checkpoint, then delete those no longer wanted."""
        # At most one round's model waits to be written. This round's events may: the next round need not wait for them.
        if self._checkpoint is not None:
            self._checkpoint.result()
        layout = self._server.learner.resident.layout
        tensors = {MODEL + name: view for name, view in layout.views(progress.state.flat)}
        for prefix, held in (
            (MEMORY, progress.state.memory),
            (SHARED, progress.state.shared),
            (COUNTED, progress.statistics),
        ):
            # Copies, since safetensors refuses names that share memory.
            tensors |= {prefix + name: tensor.clone() for name, tensor in held.items()}
        tensors[LAST] = torch.tensor(sorted(progress.last.items()), dtype=torch.int64).view(-1, 2)
        best = None if math.isinf(progress.best_value) else progress.best_value
        values = {
            "corpus": self._server.corpus.key,
            "best_round": progress.best_round,
            "best_value": best,
            "seconds": progress.seconds,
        }

        def write() -> None:
            self._folder.save_checkpoint(progress.round, tensors, values)
            self._folder.prune_checkpoints(self._server.runtime.keep_checkpoints, progress.best_round)
            self._prune_scores(progress)
            self._tables_when_due()

        self._checkpoint = self._later(write)

    def resumable(self) -> tuple[int, ...]:
        """Rounds whose checkpoints are kept, those still being written included."""
        if self._checkpoint is not None:
            self._checkpoint.result()
        return tuple(self._folder.checkpoints())

    def client_metrics(self, number: int) -> dict[str, float]:
        """What the log has of evaluations on clients after round ``number``; NaN for what is undefined."""
        self.settle()
        found = metrics_at(self._folder, number)
        return {
            name: math.nan if value is None else value for name, value in found.items() if name.startswith("client/")
        }

    def settle(self) -> None:
        """Wait until everything is on the disk; raises what went wrong."""
        self._writer.submit(lambda: None).result()
        self._raise()

    def _tables_when_due(self) -> None:
        started = time.monotonic()
        if started >= self._tables_due:
            self._folder.write_tables()
            ended = time.monotonic()
            self._tables_due = ended + max(TABLES_EVERY_S, (ended - started) / TABLES_SHARE)

    def _later(self, write: Callable[[], None]) -> Future[None]:
        self._raise()
        return self._writer.submit(self._write, write)

    def _write(self, write: Callable[[], None]) -> None:
        if self._error is not None:
            return
        try:
            write()
        except BaseException as error:  # noqa: BLE001  (it is raised where somebody listens)
            self._error = error

    def _raise(self) -> None:
        if self._error is not None:  # for good: what waits behind it must not be written
            raise self._error


def start_of(folder: RunFolder, server: Server) -> Progress:
    """Where a run goes on: its newest sound checkpoint, or the initial model if there is none yet.

    Raises:
        InputError: every checkpoint is damaged, or the newest sound one is of another experiment or
            of other images; the other run's model with which it begins does not fit.
    """
    layout = server.learner.resident.layout
    newest = folder.newest_checkpoint()
    if newest is None:
        folder.rewind(0)
        keep_only(folder.path, [])
        flat, about = first_model(server.experiment, server.learner)
        _write_frozen(folder, server)
        if about:
            write_json(folder.path / "start.json", about)
        return Progress(0, State(flat))
    tensors, values = newest
    if values["corpus"] != server.corpus.key and not _same_content(values["corpus"], server.corpus):
        msg = (
            f"Expected the images and labels that {folder.path} was started with (corpus {values['corpus']}), "
            f"got others (corpus {server.corpus.key}). Restore them, or start a new run."
        )
        raise InputError(msg)
    folder.rewind(values["events_bytes"])
    keep_only(folder.path, [number for number in kept_rounds(folder.path) if number <= values["round"]])
    flat = layout.pack(_named(tensors, MODEL)).to(server.learner.device)
    best = -math.inf if values["best_value"] is None else float(values["best_value"])
    return Progress(
        values["round"],
        State(flat, _named(tensors, MEMORY), _named(tensors, SHARED)),
        values["best_round"],
        best,
        values["seconds"],
        dict(tensors[LAST].tolist()) if LAST in tensors else {},
        _named(tensors, COUNTED),
    )


def _named(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _same_content(key: str, corpus: Corpus) -> bool:
    """Whether the corpus ``key`` holds the same: an edited plug-in may draw what it drew before."""
    folder = corpus.path.parent / Path(key).name
    try:
        return folder.is_dir() and load_corpus(folder).content == corpus.content
    except InputError:
        return False


def _write_frozen(folder: RunFolder, server: Server) -> None:
    """Keep what is frozen in the network, so that prediction needs no weight file of the past."""
    from safetensors.torch import save

    others = frozen_state(server.experiment, server.learner)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in others.items()}
    about = {
        "label_names": json.dumps(list(server.learner.task.label_names)),
        "image_shape": json.dumps(list(server.learner.task.image_shape)),
    }
    write_bytes(folder.path / "frozen.safetensors", save(state, metadata=about))


def code_of(experiment: Experiment) -> dict[str, str]:
    """Hash of every Python file that decides the result: this project's and those of plug-ins."""
    others = [key for key in spec.CATALOGUES if key not in {"partition", "regime"}]
    named = [(key, str(each)) for key in others for each in spec.parse_all(getattr(experiment, key), key)]
    modules = [module for key, text in named for module in spec.modules(key, text)]
    modules += modules_behind(experiment.partition, experiment.regime)
    return {**code.own_files(), **code.outside(code.files_behind(*modules))}


def note_code(folder: RunFolder, experiment: Experiment, *, resumed: bool) -> list[str]:
    """Keep the code of a new run as ``code.json``; for one that goes on, a line if its code has changed."""
    files, path = code_of(experiment), folder.path / "code.json"
    if not resumed:
        write_json(path, {"digest": code.digest(files), "files": files})
        return []
    if not path.exists():
        return ["the code that this run was started with is not known: it was not recorded then"]
    change = code.compare(read_json(path)["files"], files)
    if not change:
        return []
    text = (
        f"this run was started with other code ({change}). Rounds from here on are those of the code as it is now; "
        "the result may not be that of a run that was never interrupted."
    )
    return [text]


def note_features(folder: RunFolder, server: Server, *, resumed: bool) -> list[str]:
    """Keep which feature maps a new run uses as ``features.json``; for one that goes on, a line if it uses others."""
    learner, path = server.learner, folder.path / "features.json"
    maps = learner.first_features if learner.features is None else learner.features
    before = read_json(path)["key"] if path.exists() else ""
    now = "" if maps is None else maps.key
    if resumed and before != now:
        text = (
            f"this run was started with feature maps {before or 'computed in every step'} and goes on with "
            f"{now or 'maps computed in every step'}: code, packages, weights or device were changed since. The last "
            "bits of the result may not be those of a run that was never interrupted."
        )
        return [text]
    if not resumed:
        path.unlink(missing_ok=True)
        if maps is not None:
            write_json(path, maps.about())
    return []


def serve(
    server: Server,
    transport: Transport,
    folder: RunFolder,
    on_turn: Callable[[int, Turn, int], None] | None = None,
) -> Outcome:
    """Play the rounds that are left; write the tables meanwhile and at any end, and result.json when all is done."""
    start = start_of(folder, server)
    with curves(folder) as writer:
        folder.event("start", {"round": start.round, "num-rounds": server.experiment.num_rounds})
        resumed = bool(folder.checkpoints())  # that of round 0 holds sums that the clients have sent
        changes = (
            *note_code(folder, server.experiment, resumed=resumed),
            *note_features(folder, server, resumed=resumed),
        )
        for text in (*folder.damage, *server.warnings, *changes, *_without_scores(server)):
            folder.event("warning", {"text": text})
        record = FolderRecord(folder, server)
        rounds = Rounds(
            server.experiment,
            server.learner,
            server.strategy,
            transport,
            Evaluator(server.learner, server.corpus, server.experiment.threshold),
            record,
            on_turn,
            folder.token,
            folder.data()["present_counts"],
        )
        try:
            outcome = rounds.run(start)
            record.settle()
        except BaseException as error:
            with suppress(Exception):  # what is raised already says more
                record.settle()
            if isinstance(error, Exception):
                folder.event("failed", {"reason": f"{type(error).__name__}: {error}"})
            with suppress(Exception):
                folder.write_tables()
            raise
        folder.event("end", {"round": outcome.progress.round, "weights-sha256": outcome.weights_sha256})
        result = result_of(folder, server, outcome)
        best = result["best_metrics"]
        writer.results((outcome.progress.round, outcome.metrics), (outcome.progress.best_round, best))
    folder.write_tables()
    write_json(folder.path / "result.json", result)
    return outcome


def _without_scores(server: Server) -> tuple[str, ...]:
    """A line if scores are to be kept and there are none."""
    if server.runtime.keep_scores == "none" or not server.learner.resident.private_names:
        return ()
    text = (
        f"keep-scores={server.runtime.keep_scores} keeps nothing in this run: every client has tensors of its own, so "
        "that no one model scores the server's images."
    )
    return (text,)


def result_of(folder: RunFolder, server: Server, outcome: Outcome) -> dict[str, Any]:
    """The run in one JSON object, as ``fedmlic run --json`` prints it."""
    return {
        "run": str(folder.path.absolute()),
        "rounds": outcome.progress.round,
        "best_round": outcome.progress.best_round,
        "metrics": outcome.metrics,
        "best_metrics": best_metrics(folder, outcome.progress.best_round, outcome.progress.round, outcome.metrics),
        "weights_sha256": outcome.weights_sha256,
        "seconds": round(outcome.progress.seconds, 3),
        "num_values": server.learner.resident.layout.num_values,
    }
