"""From the words of a command to a study, and from there to a table."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmlic.errors import InputError, nearest
from sim.references import reference_rows
from sim.sweep.folder import StudyFolder
from sim.sweep.plan import Plan, distinct
from sim.sweep.players import Players, Processes
from sim.sweep.search import OPTIONS, dashed
from sim.sweep.study import Study, check_study, named_tables, read_study, rows_of, rows_with, split_values
from sim.sweep.sweep import (
    Sweep,
    about,
    announce,
    announce_cost,
    calibrate,
    check_carrier,
    check_rows,
    crew_for,
    imports_of,
    runtime_of,
    warn_of_data,
)
from sim.sweep.trials import FILE, Trials, check_optuna
from sim.sweep.view import SweepView

if TYPE_CHECKING:
    from rich.console import Console

    from fedmlic.experiment import Experiment, Runtime
    from sim.sweep.cluster import Cluster
    from sim.sweep.study import Row

STUDIES = Path(__file__).parent.parent / "studies"

Reader = Callable[[str], dict[str, Any]]
ValueReader = Callable[[str, str], Any]


def study_of(
    arguments: Sequence[str],
    searched: Sequence[str],
    *,
    recipe: Reader,
    value: ValueReader,
    references: bool | None = None,
    references_of: Sequence[str] = (),
) -> tuple[Study, str]:
    """The study that a command asks for, and the name of its folder.

    Args:
        arguments: a study file, a shipped study or a recipe first, if any; then ``key=value`` pairs, of
            which those with several values are axes.
        searched: ``key=a,b,c`` or ``key={low=a, high=b}`` pairs to choose on validation data, and options of [search].
        recipe: reads a recipe.
        value: reads a setting's value as a person types it.
        references: whether to add all references, or none; those that the study names by default.
        references_of: ``key=a,b`` pairs: the rows that the references belong to; those that the study names by default.

    Raises:
        InputError: anything that is wrong.
    """
    tables: dict[str, Any] = {}
    name, rest = "", list(arguments)
    if rest and ("=" not in rest[0] or "(" in rest[0].partition("=")[0]):
        name = Path(rest[0]).stem
        tables = _named(rest.pop(0), recipe)
    base, axes, search = dict(tables.get("base", {})), dict(tables.get("axes", {})), dict(tables.get("search", {}))
    axes = {key.strip().replace("_", "-"): values for key, values in axes.items()}
    changed = []
    for argument in rest:
        key, texts = _pair(argument)
        tables_of_it = _tables_of(argument, axes)
        if tables_of_it is not None:
            axes[key] = tables_of_it
            continue
        changed += [key] * (len(texts) == 1)
        base.pop(key, None)
        axes.pop(key, None)
        if len(texts) > 1:
            axes[key] = [value(key, text) for text in texts]
        else:
            base[key] = value(key, texts[0])
    search |= {key: _searched(key, [value(key, text) for text in texts]) for key, texts in map(_pair, searched)}
    found = {**tables, "base": base, "axes": axes} | ({"search": search} if search else {})
    if references is not None:
        found |= {"references": references} | ({} if references else {"references_of": {}})
    if references_of:
        found["references_of"] = dict(_wanted(argument, axes, value) for argument in references_of)
    study = check_study(found)
    check_changes(study, changed)
    return study, folder_name(study, name, changed=bool(rest or searched))


def _tables_of(argument: str, axes: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]] | None:
    """The tables that an argument such as ``place=first,second`` names of an axis; None where it names none."""
    key, texts = _pair(argument)
    whole = argument.partition("=")[2].strip()
    names = [str(table.get("name")) for table in axes.get(key, []) if isinstance(table, dict)]
    return named_tables(key, axes.get(key, []), [whole] if whole in names else texts)


def _wanted(argument: str, axes: Mapping[str, Sequence[Any]], value: ValueReader) -> tuple[str, list[Any]]:
    """Values by axis or setting, of an argument of ``--references-of``."""
    key, texts = _pair(argument)
    tables = _tables_of(argument, axes)
    return key, [value(key, text) for text in texts] if tables is None else [table["name"] for table in tables]


def check_changes(study: Study, keys: Sequence[str]) -> None:
    """Refuse settings of all runs that the study sets again, run by run: they would change nothing.

    Args:
        study: with these settings in its base.
        keys: names of settings that were given one value beside a study file.

    Raises:
        InputError: a table of an axis or the search sets one of them.
    """
    for key in keys:
        axes = [axis for axis, values in study.axes.items() if any(_sets(value, key) for value in values)]
        if axes or (study.search is not None and key in study.search.settings):
            where = f"the tables of axis {axes[0]!r}" if axes else "the search"
            msg = (
                f"Expected {key}=VALUE to be a setting of all runs, got one that {where} set{'s' * (not axes)} too. "
                "Leave it out, or change the study."
            )
            raise InputError(msg)


def _sets(value: object, key: str) -> bool:
    return isinstance(value, dict) and key in map(dashed, value)


def folder_name(study: Study, name: str = "", *, changed: bool) -> str:
    """The default name of a study's folder: its own, with a hash of what it asks where more than that was said.

    Args:
        study: what is asked.
        name: of the study file, shipped study or recipe that it began with; empty for none.
        changed: whether anything was changed since.
    """
    if name and not changed:
        return name
    text = json.dumps(study.model_dump(exclude={"references", "references_of"}), sort_keys=True, default=str)
    return f"{name or 'sweep'}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _num_clients(experiment: Experiment, runtime: Runtime) -> int:
    """Clients of a federation whose partition says how many there are; it is built if it is not there."""
    from sim.run import describe_federation

    return describe_federation(experiment, runtime).num_clients


def _named(word: str, recipe: Reader) -> dict[str, Any]:
    """The tables of a study file or shipped study; a recipe is the base of one."""
    path = Path(word)
    shipped = {file.stem: file for file in STUDIES.glob("*.toml")}
    if path.suffix != ".toml" and word in shipped:
        path = shipped[word]
    if path.suffix == ".toml" and path.is_file():
        import tomllib

        try:
            is_study = any(isinstance(value, dict) for value in tomllib.loads(path.read_text("utf-8")).values())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError):
            is_study = True  # reading it says what is wrong
        if is_study:
            return read_study(path, recipe)
    try:
        return {"base": recipe(word)}
    except InputError as error:
        hint = f" {nearest(word, shipped)}" if shipped else ""
        msg = f"Expected a study file, a shipped study or a recipe first, got {word!r}.{hint} ({error})"
        raise InputError(msg) from None


def _pair(argument: str) -> tuple[str, list[str]]:
    key, equals, text = argument.partition("=")
    if not equals or "(" in key:
        msg = f"Expected settings as key=value or key=a,b,c, got {argument!r}. Quote values that contain spaces."
        raise InputError(msg)
    key = key.strip().replace("_", "-")
    return key, split_values(key, text)


def _searched(key: str, values: list[Any]) -> Any:  # noqa: ANN401  (as TOML has it)
    """What ``--search`` says of a setting or option: several values, or one table or option."""
    one = len(values) == 1 and (isinstance(values[0], dict) or key.replace("-", "_") in OPTIONS)
    return values[0] if one else values


def sweep(
    study: Study,
    out: Path,
    console: Console,
    *,
    jobs: int = 0,
    dry_run: bool = False,
    alone: bool = False,
    ray_address: str = "",
) -> dict[str, Any]:
    """Play a study, or say what that would take; what ``fedmlic sweep --json`` prints.

    Args:
        study: what is asked.
        out: its folder, new or to go on with.
        console: of stderr.
        jobs: runs at the same time; 0 for as many as there is room for.
        dry_run: play two rounds of some rows and say what all would take.
        alone: play the references without the rows that they belong to.
        ray_address: a Ray cluster that plays the runs; the setting ``ray-address``, or this machine, by default.

    Raises:
        InputError: the study, its folder or the cluster is wrong; nothing was played.
    """
    rows = rows_of(study)
    if study.search is not None and not study.search.is_grid:
        check_optuna()
    out = out.absolute()
    folder = StudyFolder(out)
    runtime = runtime_of(study)
    if ray_address:
        runtime = runtime.model_copy(update={"ray_address": ray_address})
    check_carrier(runtime)
    told = about(study, rows)
    with ExitStack() as stack:
        players, cluster = _players(stack, runtime, rows, out, dry_run=dry_run)
        rows, twice = _with_references(study, rows, runtime)
        rows = [row for row in rows if row.reference or not alone]
        if not dry_run:
            stack.enter_context(folder.alone(told))
            if cluster is not None:
                cluster.check_folder(out)
        plan = _plan(study, rows, None if dry_run else folder)
        view = SweepView(console, 0)
        _look_through(view, folder, plan, twice)
        num_left = sum(1 for _ in plan.ready()) + plan.num_unknown
        crew = crew_for(runtime, jobs, num_left, cluster.room if cluster is not None else 0)
        announce(view, plan, crew, folder, cluster.title if cluster is not None else "")
        _warn_of_code(view, folder, plan)
        if dry_run:
            players.open(1)
            costs = calibrate(plan, runtime, players, crew)
            return announce_cost(view, plan, costs, crew, out, runtime.keep_checkpoints)
        total = sum(1 for _ in plan.jobs()) + plan.num_unknown
        with SweepView(console, total, "machine" if cluster is not None else "process") as live:
            Sweep(told, plan, folder, runtime, crew, players, live).run()
            folder.write(plan, told)
        return result_of(folder, plan)


def check_references(study: Study) -> None:
    """Refuse a study whose rows or references cannot be run, without playing anything.

    Raises:
        InputError: what is wrong with them.
    """
    _with_references(study, rows_of(study), runtime_of(study))


def _with_references(study: Study, rows: Sequence[Row], runtime: Runtime) -> tuple[list[Row], list[tuple[Row, Row]]]:
    """The rows and the references beside them, all checked; those that are an earlier one, beside that one."""
    chosen = rows_with(rows, study.references_of)
    references = reference_rows(chosen, study.references, lambda experiment: _num_clients(experiment, runtime))
    found, twice = distinct([*rows, *references])
    check_rows(found, study.search, runtime)
    return found, twice


def _players(
    stack: ExitStack, runtime: Runtime, rows: Sequence[Row], out: Path, *, dry_run: bool
) -> tuple[Players, Cluster | None]:
    """Who plays, closed with ``stack``, and the cluster if there is one; a dry run measures on this machine."""
    cluster = None
    if runtime.ray_address:
        from sim.sweep.cluster import Cluster

        cluster = Cluster(runtime)
        stack.callback(cluster.close)
    if cluster is not None and not dry_run:
        return cluster, cluster
    processes = Processes(imports_of(rows), Path("/dev/null") if dry_run else out / "players.log")
    stack.callback(processes.close)
    return processes, cluster


def _look_through(view: SweepView, folder: StudyFolder, plan: Plan, twice: Sequence[tuple[Row, Row]]) -> None:
    """Find the runs that are there, and say what is not as asked."""
    problems = folder.find_runs()
    folder.note_complete(plan)
    for row, kept in twice:
        if not row.reference:
            view.line(f"{row.label} is the same experiment as {kept.label}: one row")
    for text in problems:
        view.warning(text)
    warn_of_data(view, folder, plan)


def _plan(study: Study, rows: Sequence[Row], folder: StudyFolder | None) -> Plan:
    """The plan of a study; without a folder, trials are proposed anew and not kept."""
    seeds, search = list(dict.fromkeys(study.seeds)), study.search
    if search is None or search.is_grid:
        return Plan(rows, seeds, search)
    return Plan(rows, seeds, search, Trials(search, folder.path / FILE if folder is not None else None))


def _warn_of_code(view: SweepView, folder: StudyFolder, plan: Plan) -> None:
    other = folder.other_code(plan)
    if other:
        view.warning(
            f"{len(other)} complete runs were made with other code than the present ({other[0].name}, ...); delete "
            "their folders to have them played again"
        )


def result_of(folder: StudyFolder, plan: Plan) -> dict[str, Any]:
    """The table and the failures of a study that was played."""
    failed = [
        {
            "label": job.label,
            "run": str(plan.outcomes[job.identity].folder),
            "reason": plan.outcomes[job.identity].reason,
        }
        for job in plan.jobs()
        if job.identity in plan.outcomes and plan.outcomes[job.identity].reason
    ]
    return {"study": str(folder.path.absolute()), "table": folder.table(plan), "failed": failed}
