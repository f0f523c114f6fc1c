"""Play runs and studies from Python."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmlic.errors import InputError
from fedmlic.experiment import Runtime, split_settings
from fedmlic.record import is_run, open_run, read_json
from fedmlic.resolved import differences, resolved
from sim import run as engine
from sim.api.progress import open_progress
from sim.api.results import Run, Study
from sim.api.settings import Base, settings_of
from sim.comparison.read import is_complete
from sim.console import Display

if TYPE_CHECKING:
    from fedmlic.experiment import Experiment
    from sim.sweep.study import Reference


class FailedRunsWarning(RuntimeWarning):
    """Runs of a study failed; the others are there."""


class OtherCodeWarning(UserWarning):
    """A complete run was made by other code than the present."""


def run(
    base: Base = "",
    /,
    *,
    out: str | Path | None = None,
    progress: bool = True,
    **settings: Any,  # noqa: ANN401  (settings are any)
) -> Run:
    """Run an experiment: build the data if it is not there, train, evaluate, record.

    A folder ``out`` that holds the same experiment is gone on with, and only read where it is complete: a cell of a
    notebook can be executed again.

    Args:
        base: a recipe's name, a TOML file, settings or a run to begin with; the default experiment without it.
        out: the run folder; ``runs/DATE-TIME`` by default.
        progress: whether progress is shown.
        settings: those of ``fedmlic run``, with underscores; they win over ``base``.

    Raises:
        InputError: bad settings or data, or ``out`` holds something else.
        RunFailedError: a round could not be completed; ``resume`` goes on from the last checkpoint.
        KeyboardInterrupt: with how to go on, where it was interrupted.
    """
    values = settings_of(base, settings)
    if out is not None:
        values["out"] = str(out)
    experiment, runtime = split_settings(values)
    folder = Path(runtime.out).expanduser() if runtime.out else None
    if folder is not None and is_run(folder):
        _check_same(folder, experiment)
        where = {key: value for key, value in values.items() if _is_runtime(key)}
        return resume(folder, progress=progress, **where)
    with _shown(progress=progress) as display:
        result = engine.run(experiment, runtime, folder, display)
    return Run(folder if folder is not None else _short(result["run"]))


def resume(path: str | Path, /, *, progress: bool = True, **changes: Any) -> Run:  # noqa: ANN401
    """Go on with an interrupted run, to the same final weights; a complete one is only read.

    Args:
        path: the run folder.
        progress: whether progress is shown.
        changes: settings that say where and how fast it is computed (``engine``, ``workers``, ...).

    Raises:
        InputError: not a run, a damaged one, or changes of what decides the result.
        RunFailedError: as ``run``.
        KeyboardInterrupt: as ``run``.
    """
    folder = Path(path).expanduser()
    wrong = [key for key in changes if not _is_runtime(key)]
    if wrong:
        msg = (
            f"Expected changes of where a run is computed, got {', '.join(wrong)}. Start a new run for other settings."
        )
        raise InputError(msg)
    before = open_run(folder)
    if is_complete(folder):
        _warn_of_code(folder, before.settings()[0])
        return Run(folder)
    with _shown(folder, progress=progress) as display:
        engine.resume(folder, display, {key.replace("-", "_"): value for key, value in changes.items()})
    return Run(folder)


def sweep(
    base: Base = "",
    /,
    *,
    out: str | Path | None = None,
    search: Mapping[str, Any] | None = None,
    references: bool | Sequence[Reference] | None = None,
    references_of: Mapping[str, Any] | None = None,
    jobs: int = 0,
    ray_address: str = "",
    progress: bool = True,
    **settings: Any,  # noqa: ANN401  (settings are any)
) -> Study:
    """Play many runs of one study, as many at once as there are cores; the same call goes on after an interruption.

    A setting that is a list (or a range) is an axis, and all axes are crossed; ``seed=range(5)`` makes five seeds.
    Settings that go together are a list of mappings with a ``name`` each (``docs/sweep.md``).

    Args:
        base: a study file, a shipped study, a recipe, settings or a run to begin with.
        out: the study's folder; ``runs/NAME`` by default.
        search: values by setting, or ranges as ``{"low": 1e-4, "high": 0.1, "log": True}``, of which the best on
            validation data is chosen for every row; also options of ``[search]`` such as ``trials``.
        references: whether to add central and local-only training, FedAvg and the model that never trains, or which of
            them (``docs/sweep.md``); those that a study file names by default, and none with ``False``.
        references_of: the rows that references belong to, as a value or a list of values by axis or setting
            (``{"method": "bce()"}``); those that a study file names by default, else all rows.
        jobs: runs at the same time; 0 for as many as there are cores or GPUs.
        ray_address: a Ray cluster whose machines play the runs, as ``host:port``; ``out`` is then on shared storage.
        progress: whether progress is shown.
        settings: of all runs, or axes.

    Raises:
        InputError: the study or its folder is wrong; nothing was played.
        KeyboardInterrupt: with how to go on, where it was interrupted.

    Warns:
        FailedRunsWarning: runs failed; the same call tries them again.
    """
    from sim.sweep.start import check_changes, folder_name, study_of
    from sim.sweep.start import sweep as play
    from sim.sweep.study import check_study, named_tables

    named, name = _tables(base, study_of)
    own = settings_of({}, settings)
    axes = {key: list(value) for key, value in own.items() if _is_axis(value)}
    for key, value in own.items():  # names of an axis's tables, to play a part of a study
        found_tables = named_tables(key, named.get("axes", {}).get(key, []), [str(each) for each in _listed(value)])
        axes |= {} if found_tables is None else {key: found_tables}
    fixed = {key: value for key, value in own.items() if key not in axes}
    tables = {
        **named,
        "base": {key: value for key, value in {**named.get("base", {}), **fixed}.items() if key not in axes},
        "axes": {key: value for key, value in {**named.get("axes", {}), **axes}.items() if key not in fixed},
    }
    if search:
        tables["search"] = {**(named.get("search") or {}), **search}
    if references is not None:
        tables["references"] = references if isinstance(references, bool) else list(references)
        tables |= {} if references else {"references_of": {}}
    if references_of is not None:
        tables["references_of"] = {key: _listed(value) for key, value in references_of.items()}
    study = check_study(tables)
    check_changes(study, list(fixed))
    place = (
        Path(out).expanduser()
        if out is not None
        else Path("runs") / folder_name(study, name, changed=bool(own or search))
    )
    try:
        found = play(study, place, open_progress(shown=progress), jobs=jobs, ray_address=ray_address)
    except KeyboardInterrupt:
        msg = f"Complete runs are kept in {place}; the same call goes on."
        raise KeyboardInterrupt(msg) from None
    if found["failed"]:
        lines = [f"{each['label']}: {each['reason'].splitlines()[0]} ({each['run']})" for each in found["failed"]]
        text = f"{len(lines)} runs failed; the same call tries them again. {'; '.join(lines[:5])}"
        warnings.warn(text, FailedRunsWarning, stacklevel=2)
    return Study(place)


def _tables(base: Base, study_of: Any) -> tuple[dict[str, Any], str]:  # noqa: ANN401  (the function of that name)
    """The tables of a study that ``base`` stands for, and its name."""
    from sim.commands.settings import read_recipe, read_value

    if not isinstance(base, (str, Path)):
        return {"base": settings_of(base, {})}, ""
    if not str(base):
        return {}, ""
    study, name = study_of([str(base)], [], recipe=read_recipe, value=read_value)
    return study.model_dump(exclude_none=True), name


def _is_axis(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _listed(value: Any) -> list[Any]:  # noqa: ANN401  (settings are any)
    return list(value) if _is_axis(value) else [value]


def _is_runtime(key: str) -> bool:
    return key.replace("-", "_") in Runtime.model_fields and key != "out"


def _check_same(folder: Path, experiment: Experiment) -> None:
    """Refuse to go on with a run of other settings."""
    there, asked = resolved(open_run(folder).settings()[0]), resolved(experiment)
    other = differences(asked, there)
    if other:
        shown = "; ".join(f"{key} {asked[key]!r}, not {there[key]!r}" for key in other[:5])
        msg = f"Expected {folder} to hold the run of these settings, got one of others: {shown}. Choose another out."
        raise InputError(msg)


def _warn_of_code(folder: Path, experiment: Experiment) -> None:
    from fedmlic import code
    from strategies.server.server import code_of

    note = folder / "code.json"
    change = code.compare(read_json(note)["files"], code_of(experiment)) if note.is_file() else None
    if change:
        text = (
            f"{folder} is complete and was made with other code than the present ({change}). Another out plays it anew."
        )
        warnings.warn(text, OtherCodeWarning, stacklevel=4)


@contextmanager
def _shown(folder: Path | None = None, *, progress: bool) -> Iterator[Display]:
    """Show a run; where it is interrupted, say what is kept and how to go on."""
    with Display(open_progress(shown=progress)) as display:
        try:
            yield display
        except KeyboardInterrupt:
            begun = display.folder.path if display.folder is not None else folder
            raise KeyboardInterrupt(_standing(begun)) from None


def _standing(folder: Path | None) -> str:
    if folder is None:
        return "There is no run folder yet. What was built of the data is kept; the same call starts again."
    if is_complete(folder):
        return f"The run is complete: load({str(folder)!r})."
    numbers = open_run(folder).checkpoints()
    kept = f"round {numbers[-1]} is kept" if numbers else "no round is complete"
    return f"Interrupted; {kept}. Go on with resume({str(folder)!r})."


def _short(path: str) -> Path:
    """A path as people write it: relative where it is below the working folder."""
    found = Path(path)
    return found.relative_to(Path.cwd()) if found.is_relative_to(Path.cwd()) else found
