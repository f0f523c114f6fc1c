"""Everything about one run, in one folder, safe against being killed at any moment.

::

    RUN/experiment.json     the resolved settings and the identity of the experiment
        environment.json    command, code, versions and machine, no host names
        code.json           hash of every Python file that decides the result
        data.json           hashes of the corpus and of what each client holds, warnings, names of clients
        events.jsonl        append-only; the source of every table
        checkpoints/        round-00012.safetensors, then round-00012.json, which makes it count
        frozen.safetensors  what the network needs besides the exchanged tensors
        start.json          whose model it began with, where it was another run's
        rounds.parquet clients.parquet hosts.parquet labels.parquet evaluations.parquet client-evaluations.parquet
                            tables made from the events; written now and then, and at any end
        tensorboard/        event files
        result.json         written when the run is complete

A file is written under a temporary name, synced and renamed. A checkpoint counts
once its JSON is there; it says how long ``events.jsonl`` was then, and a resumed
run cuts the log back to that length. Both files of a checkpoint are hashed; where one
is damaged, a resumed run goes on from the one before. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from fedmlic.environment import environment
from fedmlic.errors import InputError
from fedmlic.experiment import Experiment, Runtime, split_settings
from fedmlic.files import append_whole, sync
from fedmlic.label_events import LABELS, Packer, Unpacker, listed
from fedmlic.tables import SCHEMAS, tables_of, write_table

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

_log = logging.getLogger("fedmlic")

SCHEMA = 1

MODEL = "model/"
"""Begins the names of the model's tensors in a checkpoint."""

MANIFEST_HASH = "manifest_sha256"
"""Key of a checkpoint's manifest under which its hash of itself stands."""

DAMAGED = ".damaged"
"""Ends the names of a checkpoint's files that a resumed run could not use."""
TABLES = {name: schema.event for name, schema in SCHEMAS.items()}
"""Table name and the kind of event it is made of; ``docs/record.md`` explains every column."""

Listener = Callable[[str, Mapping[str, object]], None]


class DamagedCheckpointError(InputError):
    """A checkpoint whose files are not as they were written."""


class RunFolder:
    """The folder of one run. Make it with ``create`` or open it with ``open_run``.

    Attributes:
        path: of the folder.
        listeners: called with every event.
        damage: what was found damaged and gone around since it was opened, a sentence each.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.listeners: list[Listener] = []
        self.damage: list[str] = []
        self._damaged_lines: set[int] = set()
        self._packer = Packer()

    @property
    def events_path(self) -> Path:
        """The append-only log."""
        return self.path / "events.jsonl"

    # --- settings -----------------------------------------------------------------

    def settings(self) -> tuple[Experiment, Runtime]:
        """The experiment and runtime this run was started with."""
        found = read_json(self.path / "experiment.json")
        try:
            values = {**found["experiment"], **found["runtime"]}
        except (KeyError, TypeError):
            msg = f"Expected {self.path / 'experiment.json'} to hold settings, got something else. Restore it."
            raise InputError(msg) from None
        return split_settings(values)

    @property
    def token(self) -> str:
        """A random name of this run, under which devices keep what is theirs; empty for a run of an older version."""
        return str(read_json(self.path / "experiment.json").get("token", ""))

    def data(self) -> dict[str, Any]:
        """What was noted of the run's data, empty where it was not.

        ``warnings``, ``untrained_labels``, ``unannotated_labels`` and ``client_names``, and ``present_counts``: for
        each label, how many training images of all clients are annotated as having it; None where that is not known.
        """
        names = ("warnings", "untrained_labels", "unannotated_labels", "client_names")
        empty: dict[str, Any] = {**{name: [] for name in names}, "present_counts": None}
        path = self.path / "data.json"
        return {**empty, **read_json(path)} if path.exists() else empty

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the folder for a block; ``InputError`` if another process is running it."""
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            msg = f"Expected {self.path} to be idle, got one that another process is running. Wait for it or stop it."
            raise InputError(msg) from None
        try:
            yield
        finally:
            lock.release()

    # --- events -------------------------------------------------------------------

    def event(self, kind: str, values: Mapping[str, object]) -> None:
        """Append one event and tell the listeners."""
        self.add_events(kind, [values])

    def add_events(self, kind: str, rows: Sequence[Mapping[str, object]]) -> None:
        """Append events of one kind at once and tell the listeners of each.

        Raises:
            OSError: they could not all be written, and none of them was.
        """
        written = map(self._packer.pack, rows) if kind == LABELS else rows
        lines = [
            json.dumps({"event": kind, **jsonable(values)}, separators=(",", ":"), allow_nan=False)
            for values in written
        ]
        with self.events_path.open("ab", buffering=0) as log:
            try:
                append_whole(log.fileno(), "".join(line + "\n" for line in lines).encode(), wait=False)
            except OSError:
                self._packer = Packer()  # what later tables would refer to is not there
                raise
        for values in rows:
            for listener in self.listeners:
                listener(kind, values)

    def events(self, *kinds: str) -> Iterator[dict[str, Any]]:
        """The complete events so far, all or of some kinds; NaN is None.

        A damaged line is skipped with a warning that names it.
        """
        for event in self._unpacked_events(kinds):
            yield listed(event) if event["event"] == LABELS else event

    def _unpacked_events(self, kinds: Sequence[str]) -> Iterator[dict[str, Any]]:
        """The same; the columns of tables of labels are arrays, with NaN."""
        if not self.events_path.exists():
            return
        unpacker = Unpacker()
        with self.events_path.open(encoding="utf-8", errors="replace") as log:
            for number, line in enumerate(log, 1):
                if not line.endswith("\n"):
                    return  # the writer was killed in the middle of this line
                found = _event_of(line)
                if found is not None and kinds and found["event"] not in kinds:
                    continue
                if found is not None and found["event"] == LABELS:
                    found = unpacker.unpack(found)
                if found is not None:
                    yield found
                elif number not in self._damaged_lines:
                    self._damaged_lines.add(number)
                    what = "Expected line %d of %s to be an event, got damaged content. The tables lack it."
                    _log.warning(what, number, self.events_path)

    def tables(self) -> dict[str, pd.DataFrame]:
        """The tables of ``fedmlic.tables.SCHEMAS``, made from the events so far, also while the run goes on.

        In ``labels`` every row is one label of one split in one round. ``clients`` and ``client-evaluations``
        have a column ``client-name`` where clients are owners that have names. Numbers that do not exist are
        NaN; a client that succeeded has an empty ``error``.
        """
        return tables_of(self._unpacked_events(()), self.data()["client_names"])

    def write_tables(self) -> None:
        """Write the tables as Parquet files."""
        for name, table in self.tables().items():
            write_table(self.path / f"{name}.parquet", name, table)

    # --- checkpoints --------------------------------------------------------------

    @property
    def checkpoint_folder(self) -> Path:
        """Where checkpoints lie."""
        return self.path / "checkpoints"

    def save_checkpoint(self, number: int, tensors: Mapping[str, Tensor], values: Mapping[str, object]) -> None:
        """Keep ``tensors`` and ``values`` as the checkpoint of round ``number``, atomically."""
        from safetensors.torch import save

        self.checkpoint_folder.mkdir(exist_ok=True)
        sync(self.events_path)
        data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
        stem = self.checkpoint_folder / f"round-{number:05d}"
        write_bytes(stem.with_suffix(".safetensors"), data)
        manifest = {
            "schema": SCHEMA,
            "round": number,
            "identity": self.identity(),
            "sha256": hashlib.sha256(data).hexdigest(),
            "events_bytes": self.events_path.stat().st_size if self.events_path.exists() else 0,
            **jsonable(values),
        }
        manifest[MANIFEST_HASH] = _hash_of(manifest)
        write_json(stem.with_suffix(".json"), manifest)

    def identity(self) -> str:
        """The hash of the experiment this folder belongs to."""
        return str(read_json(self.path / "experiment.json").get("identity"))

    def checkpoints(self) -> list[int]:
        """Rounds that have a complete checkpoint, ascending."""
        if not self.checkpoint_folder.exists():
            return []
        numbers = [file.stem.removeprefix("round-") for file in self.checkpoint_folder.glob("round-*.json")]
        return sorted(int(number) for number in numbers if number.isdecimal())

    def checkpoint_values(self, number: int) -> dict[str, Any]:
        """The values of the checkpoint of round ``number``, without its tensors.

        Raises:
            DamagedCheckpointError: they are not those that were written.
        """
        file = self.checkpoint_folder / f"round-{number:05d}.json"
        try:
            found = read_json(file)
        except (InputError, OSError) as error:
            raise DamagedCheckpointError(str(error)) from None
        stated = found.get(MANIFEST_HASH)  # older runs have none
        if stated is not None and stated != _hash_of(found):
            msg = (
                f"Expected {file}, which says what belongs to its .safetensors, to have the hash that it states, got "
                "another. Restore it from a copy, or resume from the checkpoint before."
            )
            raise DamagedCheckpointError(msg)
        return found

    def load_checkpoint(self, number: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors and values of the checkpoint of round ``number``.

        Raises:
            DamagedCheckpointError: it is missing or damaged.
            InputError: it is of another experiment.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        stem = self.checkpoint_folder / f"round-{number:05d}"
        manifest = self.checkpoint_values(number)
        if manifest.get("identity") != self.identity():
            msg = (
                f"Expected the checkpoint of round {number} in {self.path} to belong to this run's experiment, "
                f"got one with identity {str(manifest.get('identity'))[:12]}. Restore the right file."
            )
            raise InputError(msg) if MANIFEST_HASH in manifest else DamagedCheckpointError(msg)
        file = stem.with_suffix(".safetensors")
        try:
            data = file.read_bytes() if file.exists() else b""
        except OSError as error:
            msg = f"Expected {file} to be readable, got an error: {error}. Restore it from a copy."
            raise DamagedCheckpointError(msg) from None
        if hashlib.sha256(data).hexdigest() != manifest.get("sha256") or manifest.get("round") != number:
            msg = f"Expected {file} to have the hash its manifest states, got another. Delete both files and resume."
            raise DamagedCheckpointError(msg)
        try:
            return load(data), manifest
        except SafetensorError as error:
            msg = f"Expected {file} to be safetensors, got {error}. Delete both files and resume."
            raise DamagedCheckpointError(msg) from None

    def newest_checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The tensors and values of the newest checkpoint that is as it was written; None without any.

        Newer ones are noted in ``damage``, and their files get the ending ``.damaged``: they no longer
        count, and nothing is lost.

        Raises:
            InputError: all are damaged, or the newest sound one is of another experiment.
        """
        problems: list[str] = []
        numbers = self.checkpoints()
        for number in reversed(numbers):
            try:
                tensors, values = self.load_checkpoint(number)
            except DamagedCheckpointError as error:
                problems.append(f"The checkpoint of round {number} is damaged and was left out. {error}")
                continue
            for damaged in numbers[numbers.index(number) + 1 :]:
                stem = self.checkpoint_folder / f"round-{damaged:05d}"
                for suffix in (".json", ".safetensors"):
                    file = stem.with_suffix(suffix)
                    if file.exists():
                        file.replace(file.with_name(file.name + DAMAGED))
            self.damage += problems
            return tensors, values
        if not numbers:
            return None
        msg = (
            f"Expected a sound checkpoint in {self.checkpoint_folder}, got {len(numbers)} damaged ones: {problems[0]} "
            "Restore one from a copy, or move the folder away to start again from round 1."
        )
        raise InputError(msg)

    def prune_checkpoints(self, keep: int, best: int) -> None:
        """Delete all checkpoints but the ``keep`` last ones and the ``best``."""
        for number in self.checkpoints()[:-keep]:
            if number != best:
                stem = self.checkpoint_folder / f"round-{number:05d}"
                # The manifest goes first: without it the tensors no longer count.
                stem.with_suffix(".json").unlink()
                stem.with_suffix(".safetensors").unlink(missing_ok=True)

    def rewind(self, events_bytes: int) -> None:
        """Cut the event log back to what it was at a checkpoint, and clear what was half-written.

        Where the log is shorter than it was then, it goes on, or a new one starts, and ``damage`` says
        so: the tables lack the rounds that are gone. The model does not depend on it.
        """
        there = self.events_path.stat().st_size if self.events_path.exists() else 0
        if there < events_bytes:
            missing = f"{there}" if self.events_path.exists() else "no such file"
            self.damage.append(
                f"Expected {self.events_path.name} to have the {events_bytes} bytes of the last checkpoint, got "
                f"{missing}. The log goes on with what is there; the tables lack the rounds that are missing."
            )
            events_bytes = self._whole_lines(there)
        self._packer = Packer()  # what it refers to may be cut off
        if there > events_bytes:
            with self.events_path.open("r+b") as log:
                log.truncate(events_bytes)
        orphans = [
            file
            for file in self.checkpoint_folder.glob("round-*.safetensors")
            if not file.with_suffix(".json").exists()
        ]
        for leftover in [*self.path.glob(".*.tmp"), *self.checkpoint_folder.glob(".*.tmp"), *orphans]:
            leftover.unlink(missing_ok=True)

    def _whole_lines(self, there: int) -> int:
        """Bytes of the log up to the end of its last complete line."""
        if not there:
            return 0
        with self.events_path.open("rb") as log:
            return log.read().rfind(b"\n") + 1


def _event_of(line: str) -> dict[str, Any] | None:
    """The event in a line of the log; None if it is damaged."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("event"), str) else None


def _hash_of(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest's other values, in JSON with sorted keys."""
    others = {key: value for key, value in manifest.items() if key != MANIFEST_HASH}
    return hashlib.sha256(json.dumps(jsonable(others), sort_keys=True).encode()).hexdigest()


def create(path: Path | None, experiment: Experiment, runtime: Runtime) -> RunFolder:
    """Make the folder of a new run: ``path``, or one named by date and time.

    Raises:
        InputError: it exists and is not empty, or cannot be made.
    """
    if path is None:
        path = _reserve()
    check_new(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"Expected the run folder {path} to be makeable, got {error}. Choose another --out."
        raise InputError(msg) from None
    folder = RunFolder(path)
    with folder.alone():
        check_new(path)  # again: of two runs that start at once, one comes first
        _write_settings(path, experiment, runtime)
    return folder


def _write_settings(path: Path, experiment: Experiment, runtime: Runtime) -> None:
    settings = {
        "schema": SCHEMA,
        "identity": experiment.identity(),
        "token": uuid.uuid4().hex,
        "experiment": experiment.model_dump(),
        "runtime": runtime.model_dump(),
    }
    write_json(path / "experiment.json", settings)
    write_json(path / "environment.json", environment(experiment, runtime))


def check_name(path: Path) -> None:
    """Raise ``InputError`` unless the name of a folder to write into is UTF-8: TensorBoard takes no other."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        msg = f"Expected the name of a folder to write into to be UTF-8, got {str(path)!r}. Choose another --out."
        raise InputError(msg) from None


def check_new(path: Path) -> None:
    """Raise ``InputError`` unless ``path`` is free for a new run."""
    check_name(path)
    if not path.exists():
        return
    # A run that was killed while it made its folder leaves at most a hidden file.
    if path.is_dir() and all(entry.name.startswith(".") for entry in path.iterdir()):
        return
    advice = f"Use 'fedmlic resume {path}' or another --out." if is_run(path) else "Choose another --out."
    msg = f"Expected the run folder {path} to be new or empty, got one with files in it. {advice}"
    raise InputError(msg)


def _reserve() -> Path:
    """A new empty folder of default name; two runs that start at once get two."""
    while True:
        path = default_path()
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            msg = f"Expected the folder {path} to be makeable, got {error}. Choose one with --out."
            raise InputError(msg) from None
        return path


def open_run(path: Path) -> RunFolder:
    """Open the folder of an existing run; ``InputError`` if it is none."""
    if not is_run(path):
        msg = f"Expected {path} to be the folder of a run (with experiment.json), got something else. Check the path."
        raise InputError(msg)
    folder = RunFolder(path)
    if folder.settings()[0].identity() != folder.identity():
        msg = f"Expected experiment.json in {path} to be as it was written, got edited settings. Start a new run."
        raise InputError(msg)
    return folder


def is_run(path: Path) -> bool:
    """Whether ``path`` is the folder of a run."""
    return (path / "experiment.json").is_file()


def default_path(base: Path | None = None) -> Path:
    """A new folder name below ``base`` (default ``runs`` here), made of date and time."""
    base = base or Path("runs")
    stamp = time.strftime("%Y%m%d-%H%M%S")
    path, number = base / stamp, 1
    while path.exists():
        path, number = base / f"{stamp}-{number}", number + 1
    return path


def metrics_at(folder: RunFolder, number: int) -> dict[str, float | None]:
    """The metrics of the model after round ``number``, by name, as far as it was evaluated; None for undefined ones."""
    found: dict[str, float | None] = {}
    for event in folder.events("round", "clients-evaluated"):
        if event["round"] == number:
            found |= {name: value for name, value in event.items() if name.startswith(("server/", "client/"))}
    return found


def best_metrics(
    folder: RunFolder, best_round: int, last_round: int, last: Mapping[str, float | None]
) -> dict[str, float | None]:
    """The metrics of the model that is best on validation; empty where none was chosen.

    Args:
        folder: of the run, with all its events.
        best_round: 0 for none.
        last_round: rounds played.
        last: metrics after the last of them.
    """
    if best_round in {0, last_round}:
        return dict(last) if best_round else {}
    return metrics_at(folder, best_round)


# --- small files --------------------------------------------------------------------


def jsonable(value: Any) -> Any:  # noqa: ANN401  (JSON is any)
    """The value with NumPy scalars made plain and numbers that are not finite made null."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; ``InputError`` if it is missing or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        msg = f"Expected the file {path}, got none. Check the path."
        raise InputError(msg) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        msg = f"Expected {path} to be JSON, got damaged content ({error}). Restore it from a copy."
        raise InputError(msg) from None
    if not isinstance(found, dict):
        msg = f"Expected {path} to hold a JSON object, got {type(found).__name__}."
        raise InputError(msg)
    return found


def read_frozen(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...], tuple[int, int, int]]:
    """What the run in ``path`` keeps besides its checkpoints: frozen tensors, label names, image shape.

    Raises:
        InputError: the file is missing or not as the run wrote it.
    """
    from safetensors import SafetensorError, safe_open

    file = path / "frozen.safetensors"
    try:
        with safe_open(file, framework="pt") as frozen:
            about = frozen.metadata()
            tensors = {name: frozen.get_tensor(name) for name in frozen.keys()}  # noqa: SIM118  (not a mapping)
        height, width, channels = json.loads(about["image_shape"])
        return tensors, tuple(json.loads(about["label_names"])), (height, width, channels)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        msg = f"Expected {file} to be as the run wrote it, got {error}. Restore it from a copy."
        raise InputError(msg) from None


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """Write a JSON object atomically."""
    write_bytes(path, json.dumps(jsonable(value), indent=2, allow_nan=False).encode() + b"\n")


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically: temporary name, sync, rename, sync of the folder."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync(path.parent)
