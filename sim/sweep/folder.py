"""The folder of a study: its runs, what is known of each, and the table.

::

    STUDY/study.json        axes, seeds, and for every row of the table what was chosen and which runs are its own
          table.csv         one row per run: settings, chosen values, state, metrics of the model after the last round
          runs/NAME-ID/     ordinary runs; ID begins the identity of the resolved experiment
          search/NAME-ID/   runs that were played to choose settings
          trials.jsonl      where ranges are searched: Optuna's journal of what was tried (sim/sweep/trials.py)
          players.log       what the processes printed
          frozen/           one file per network's frozen tensors, which its run folders link to

Nothing but the run folders and the journal is needed to go on: ``study.json`` and ``table.csv`` are made from them.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from fedmlic import code
from fedmlic.errors import InputError
from fedmlic.record import check_name, is_run, open_run, read_json, write_bytes, write_json
from fedmlic.resolved import identity_of, resolved
from sim.comparison.read import is_complete, metrics_of
from sim.comparison.same_data import unlike
from sim.sweep.plan import Job, Outcome, Plan
from sim.sweep.search import shown_value

SCHEMA = 1
FILE = "study.json"
FROZEN = "frozen.safetensors"


def is_study(path: Path) -> bool:
    """Whether ``path`` is the folder of a study."""
    return (path / FILE).is_file()


class _Given(NamedTuple):
    """A complete run with what it was given, and when."""

    path: Path
    settings: Mapping[str, Any]
    data: Mapping[str, Any]
    time: int


class StudyFolder:
    """The folder of one study, new or one to go on with.

    Raises:
        InputError: it holds something else.
    """

    def __init__(self, path: Path) -> None:
        check_name(path)
        self.path = path
        if path.exists() and (not path.is_dir() or (self._others() and not is_study(path))):
            msg = f"Expected {path} to be new, empty or a study's folder, got something else. Choose another --out."
            raise InputError(msg)
        self._runs: dict[str, Path] = {}
        self._given: dict[str, _Given] = {}
        self._outdated: dict[Path, None] = {}
        self._results: dict[str, dict[str, Any]] = {}

    def _others(self) -> bool:
        return any(not entry.name.startswith(".") for entry in self.path.iterdir())

    @contextmanager
    def alone(self, about: Mapping[str, Any]) -> Iterator[None]:
        """Make the folder and hold it for a block; ``InputError`` if another process is playing this study.

        Args:
            about: what ``study.json`` says besides its rows. A new folder gets the file before anything else that is
                not hidden, without rows, so that a study that is interrupted at any moment is known as one.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            msg = f"Expected the folder {self.path} to be makeable, got {error}. Choose another --out."
            raise InputError(msg) from None
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            msg = f"Expected {self.path} to be idle, got a study that another process is playing. Wait or stop it."
            raise InputError(msg) from None
        try:
            if not is_study(self.path):
                write_json(self.path / FILE, {"schema": SCHEMA, **about, "rows": []})
            (self.path / "runs").mkdir(exist_ok=True)
            yield
        finally:
            lock.release()

    def find_runs(self) -> list[str]:
        """Look at all run folders; a line for each that cannot be read, which will not be used."""
        problems = []
        self._runs = {}
        for place in sorted([*self.path.glob("runs/*"), *self.path.glob("search/*")]):
            if not is_run(place):
                continue
            try:
                self._runs.setdefault(identity_of(open_run(place).settings()[0]), place)
            except (Exception, SystemExit) as error:  # noqa: BLE001  (a plug-in may raise anything when it is imported)
                what = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
                problems.append(f"{place} is not used: {what}")
        return problems

    def run_of(self, job: Job) -> Path:
        """The folder of a job's run: the one that is there, else a new name."""
        if job.identity not in self._runs:
            base = self.path / ("search" if job.search else "runs")
            name = f"{_slug(job)}-{job.identity[:8]}"
            place, number = base / name, 1
            while is_run(place):  # of other settings
                place, number = base / f"{name}-{number}", number + 1
            place.parent.mkdir(parents=True, exist_ok=True)
            self._runs[job.identity] = place
        return self._runs[job.identity]

    def share_frozen(self, run: Path) -> None:
        """Make a run's frozen tensors one file with those of runs that have the same, where the disk has hard links."""
        file = run / FROZEN
        if not file.is_file():
            return
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        kept, temporary = self.path / "frozen" / f"{digest}.safetensors", run / f".{FROZEN}"
        kept.parent.mkdir(exist_ok=True)
        try:
            if not kept.exists():
                os.link(file, kept)
            elif not kept.samefile(file):
                temporary.unlink(missing_ok=True)
                os.link(kept, temporary)
                temporary.replace(file)
        except OSError:  # no hard links there: every run keeps its own file
            temporary.unlink(missing_ok=True)

    def note_complete(self, plan: Plan) -> None:
        """Tell the plan of runs that are complete; repeated, since what is chosen brings further runs."""
        found = True
        while found:
            found = False
            for job in list(plan.ready()):
                place = self._runs.get(job.identity)
                if place is not None and is_complete(place):
                    plan.outcomes[job.identity] = Outcome(place)
                    found = True

    def other_code(self, plan: Plan) -> list[Path]:
        """Complete runs that other code than the present one made."""
        from strategies.server.server import code_of

        found, present = [], {}
        for job in plan.jobs():
            note = self._runs.get(job.identity, self.path) / "code.json"
            if job.identity not in plan.outcomes or not note.is_file():
                continue
            entries = tuple(getattr(job.experiment, key) for key in _ENTRIES)
            if entries not in present:
                present[entries] = code_of(job.experiment)
            if code.compare(read_json(note)["files"], present[entries]):
                found.append(note.parent)
        return found

    def newly_outdated(self, plan: Plan) -> list[str]:
        """Complete runs that were given other images or labels than later ones whose settings ask for the same.

        Each is named once, by its folder in the study.
        """
        jobs = [job for job in plan.jobs() if job.identity in plan.outcomes and not plan.outcomes[job.identity].reason]
        latest_first = sorted((self._given_to(job) for job in jobs), key=lambda run: run.time, reverse=True)
        found = dict.fromkeys(min(pair[:2], key=lambda run: run.time).path for pair in unlike(latest_first))
        new = [path for path in found if path not in self._outdated]
        self._outdated |= found
        return sorted(map(self._name, new))

    def _given_to(self, job: Job) -> _Given:
        if job.identity not in self._given:
            place = self.run_of(job)
            note = place / "data.json"
            data = {name: value for name, value in open_run(place).data().items() if name in {"corpus", "federation"}}
            time = note.stat().st_mtime_ns if note.is_file() else 0
            self._given[job.identity] = _Given(place, resolved(job.experiment), data, time)
        return self._given[job.identity]

    def num_unused(self, plan: Plan) -> int:
        """Runs in the folder that belong to no row as far as known."""
        return len(self._runs.keys() - {job.identity for job in plan.jobs()})

    def write(self, plan: Plan, about: Mapping[str, Any]) -> None:
        """Write ``study.json`` and ``table.csv``."""
        rows = [self._row(plan, row) for row in plan.rows]
        write_json(self.path / FILE, {"schema": SCHEMA, **about, "rows": rows})
        write_bytes(self.path / "table.csv", _csv(self.table(plan)).encode())

    def table(self, plan: Plan) -> list[dict[str, Any]]:
        """One row per run of the table, in the order of the study."""
        rows = []
        for row in plan.rows:
            for job in plan.runs(row):
                outcome = plan.outcomes.get(job.identity)
                complete = outcome is not None and not outcome.reason
                about = {**row.values, "reference": row.reference, "seed": job.seed, **job.choice}
                state = "complete" if complete else "failed" if outcome else "missing"
                if plan.search is not None:
                    about["at-border"] = "" if row.like is not None else ", ".join(plan.edges(row))
                values: dict[str, Any] = {"state": state, "run": self._name(self.run_of(job))}
                rows.append({**about, **values, **(self._reached(job) if complete else {})})
        return rows

    def _reached(self, job: Job) -> dict[str, Any]:
        """What the table says of a complete run, read once."""
        if job.identity not in self._results:
            place = self.run_of(job)
            result = read_json(place / "result.json")
            about = {"rounds": result["rounds"], "best-round": result["best_round"]}
            self._results[job.identity] = {**about, "weights-sha256": result["weights_sha256"], **metrics_of(place)}
        return self._results[job.identity]

    def _row(self, plan: Plan, row: Any) -> dict[str, Any]:  # noqa: ANN401
        choice = plan.choice(row)
        return {
            "label": row.label,
            "values": dict(row.values),
            "reference": row.reference,
            "chosen": None if choice is None or choice.values is None else dict(choice.values),
            "score": None if choice is None else choice.score,
            "edges": list(plan.edges(row)),
            "search": [self._name(self.run_of(job)) for job in plan.searches(row)],
            "runs": [{"seed": job.seed, "run": self._name(self.run_of(job))} for job in plan.runs(row)],
        }

    def _name(self, place: Path) -> str:
        return place.relative_to(self.path).as_posix()


_ENTRIES = ("dataset", "partition", "regime", "model", "method", "strategy", "mods", "inference")


def _slug(job: Job) -> str:
    """A short name of a run that any file system takes."""
    parts = [job.row.reference, *job.row.values.values(), *map(shown_value, job.choice.values())]
    words = [re.sub(r"[^A-Za-z0-9.]+", "-", part.replace("()", "")).strip("-.") for part in parts]
    return "-".join([*(word[:24] for word in words if word), f"seed{job.seed}"])[-100:].lstrip("-.")


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    heads = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, heads, restval="")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
