"""The ``fedmlic`` command."""

from __future__ import annotations

import io
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional

try:
    import typer

    from sim.commands.doctor import doctor
    from sim.commands.export import export
    from sim.commands.kit import kit
    from sim.commands.nodes import nodes
    from sim.commands.predict import predict
    from sim.commands.rehearse import rehearse
    from sim.commands.report import report
    from sim.commands.settings import parameter_types, read_options, read_recipe, read_settings, read_value, with_recipe
    from sim.commands.shared import (
        BUILD_HINT,
        EXIT_FAILED,
        Json,
        Name,
        Options,
        Out,
        Pictures,
        References,
        ReferencesOf,
        ReferencesOrNot,
        Root,
        RunPath,
        Settings,
        Workers,
        fail,
        print_json,
        report_errors,
        working,
    )
    from sim.commands.supernode import supernode
except KeyboardInterrupt:  # before there is anything that could say more
    sys.stderr.write("Interrupted. Nothing was written.\n")
    raise SystemExit(130) from None

if TYPE_CHECKING:
    from fedmlic.record import RunFolder
    from sim.sweep.study import Study

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

app = typer.Typer(
    help="Federated multi-label image classification with incomplete labels.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)

data = typer.Typer(
    help="Prepare data sets: build a corpus, verify a download, look at the images.", no_args_is_help=True
)
app.add_typer(data, name="data")


def main() -> None:
    """Entry point of the ``fedmlic`` command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # also what typer prints must not fail for want of a letter
            stream.reconfigure(errors="backslashreplace")
    # Last, so that a plug-in beside you is found and an installed package is never shadowed.
    sys.path.append(str(Path.cwd()))
    app()


def _print_version(wanted: bool) -> None:  # noqa: FBT001  (typer's callback)
    if wanted:
        from importlib.metadata import version

        typer.echo(f"fedmlic {version('fedmlic')}")
        raise typer.Exit


@app.callback()
def _options(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    del version


@app.command()
def run(
    settings: Settings = None,
    *,
    out: Out = None,
    engine: Annotated[Optional[str], typer.Option(help="auto, processes, ray, inprocess or flower.")] = None,  # noqa: UP045
    workers: Annotated[Optional[int], typer.Option(help="Worker processes (0: one per core).")] = None,  # noqa: UP045
    gpus_per_worker: Annotated[Optional[float], typer.Option(help="Share of a GPU per worker.")] = None,  # noqa: UP045
    ray_address: Annotated[Optional[str], typer.Option(help="A running Ray cluster, host:port or auto.")] = None,  # noqa: UP045
    references: References = False,
    json_output: Json = False,
) -> None:
    """Run an experiment: build the data if it is not there, train, evaluate, record.

    RECIPE is the name of a shipped recipe or a TOML file. KEY=VALUE sets what 'fedmlic list' names, and wins over the
    recipe: method="bce()" num-rounds=5.
    """
    with report_errors():
        from fedmlic.experiment import split_settings

        values = read_settings(with_recipe(settings or []))
        options = {
            "engine": engine,
            "workers": workers,
            "gpus-per-worker": gpus_per_worker,
            "ray-address": ray_address,
        }
        values.update({key: value for key, value in options.items() if value is not None})
        if out is not None:
            values["out"] = str(out)
        experiment, runtime = split_settings(values)
        folder = Path(runtime.out).expanduser() if runtime.out else None
        with working(json_output=json_output):
            study = _study_of_references(values) if references else None
            result = _run(experiment, runtime, folder, resume_from=None)
            beside, problem = _references(study, Path(result["run"])) if study is not None else (None, "")
        _finish({**result, "references": beside} if beside else result, json_output=json_output)
        if problem:
            fail(f"The run is complete, but its references are not: {problem}", EXIT_FAILED)
    if beside and beside["failed"]:
        raise typer.Exit(EXIT_FAILED)


@app.command()
def resume(
    path: RunPath,
    *,
    engine: Annotated[Optional[str], typer.Option(help="auto, processes, ray, inprocess or flower.")] = None,  # noqa: UP045
    workers: Annotated[Optional[int], typer.Option(help="Worker processes (0: one per core).")] = None,  # noqa: UP045
    ray_address: Annotated[Optional[str], typer.Option(help="A running Ray cluster, host:port or auto.")] = None,  # noqa: UP045
    json_output: Json = False,
) -> None:
    """Go on with an interrupted run, to the same final weights.

    RUN is the run's folder. Of the settings only where it is computed can be changed.
    """
    with report_errors():
        changes = {"engine": engine, "workers": workers, "ray-address": ray_address}
        kept = {key: value for key, value in changes.items() if value is not None}
        with working(json_output=json_output):
            result = _run(None, None, path, resume_from=kept)
        _finish(result, json_output=json_output)


def _run(experiment: Any, runtime: Any, folder: Path | None, resume_from: dict[str, Any] | None) -> dict[str, Any]:  # noqa: ANN401
    from fedmlic.record import open_run
    from sim import run as engine
    from sim.console import Display, open_console

    with Display(open_console(stderr=True)) as display:
        try:
            if folder is not None and resume_from is not None:
                return engine.resume(folder, display, resume_from)
            return engine.run(experiment, runtime, folder, display)
        except KeyboardInterrupt:
            begun = display.folder or (open_run(folder) if folder and resume_from is not None else None)
            raise KeyboardInterrupt(_standing(begun)) from None


_ELSEWHERE = {"out", "engine", "workers", "ray-address", "gpus-per-worker"}
"""Settings of a run that say how its rounds are carried: its references are played in processes of this machine."""


def _study_of_references(values: dict[str, Any]) -> Study:
    """The references of a run as a study; ``InputError`` where the run or one of them cannot be run."""
    from sim.sweep.start import check_references
    from sim.sweep.study import check_study

    base = {key: value for key, value in values.items() if key.replace("_", "-") not in _ELSEWHERE}
    study = check_study({"base": base, "references": True})
    check_references(study)
    return study


def _references(study: Study, run_folder: Path) -> tuple[dict[str, Any] | None, str]:
    """Play the references of a complete run, in its folder; what came of them, or why nothing did."""
    from fedmlic.errors import InputError
    from sim.console import open_console
    from sim.sweep.start import sweep as play

    try:
        return play(study, run_folder / "references", open_console(stderr=True), alone=True), ""
    except KeyboardInterrupt:
        msg = (
            f"The run is complete: {run_folder}. Its references are not; those that were played to the end are in "
            f"{run_folder / 'references'}."
        )
        raise KeyboardInterrupt(msg) from None
    except (InputError, RuntimeError, OSError) as error:  # what the run came to is said all the same
        return None, str(error)


def _standing(folder: RunFolder | None) -> str:
    """What an interrupted run leaves behind, and how to go on."""
    if folder is None:
        return "There is no run folder yet. What was built of the data is kept; the same command starts again."
    path = folder.path.absolute()
    if (path / "result.json").exists():
        return f"The run is complete: {path}"
    again = f"fedmlic resume {shlex.quote(str(path))}"
    numbers = folder.checkpoints()
    if not numbers:
        return f"There is no checkpoint yet; the settings are kept in {path}. Start it again with: {again}"
    total = folder.settings()[0].num_rounds
    return f"The last checkpoint is kept: round {numbers[-1]} of {total}, in {path}. Go on with: {again}"


@app.command()
def sweep(
    study: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(metavar="[STUDY.toml] [KEY=VALUE,VALUE ...]"),
    ] = None,
    *,
    out: Annotated[Optional[Path], typer.Option(help="Folder of the study (default runs/NAME).")] = None,  # noqa: UP045
    search: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            help="KEY=A,B,C or 'KEY={low=A, high=B, log=true}': choose on validation data for every row; also trials=N "
            "and what else a study's table search may hold. May be given several times."
        ),
    ] = None,
    jobs: Annotated[int, typer.Option(min=0, help="Runs at the same time (0: as many as there is room for).")] = 0,
    ray_address: Annotated[
        str, typer.Option(help="Ray cluster whose machines play the runs, host:port; --out on shared storage.")
    ] = "",
    references: ReferencesOrNot = None,
    references_of: ReferencesOf = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would take; play two rounds of rows.")
    ] = False,
    json_output: Json = False,
) -> None:
    """Play many runs of one study, as many at once as there are cores, and write one table.

    STUDY.toml names the base, the axes, the seeds and what to search (docs/sweep.md). KEY=VALUE sets a setting of
    all runs, KEY=A,B,C makes an axis of it, seed=0..4 makes five seeds. The same command goes on after an interruption.
    """
    with report_errors("Complete runs are kept; the same command goes on."):
        from sim.console import open_console
        from sim.sweep.start import study_of
        from sim.sweep.start import sweep as play

        asked, name = study_of(
            with_recipe(study or []),
            search or [],
            recipe=read_recipe,
            value=read_value,
            references=references,
            references_of=references_of or [],
        )
        place = (out or Path("runs") / name).expanduser()
        with working(json_output=json_output):
            console = open_console(stderr=True)
            found = play(asked, place, console, jobs=jobs, dry_run=dry_run, ray_address=ray_address)
        if json_output:
            print_json(found, "sweep-dry-run" if dry_run else "sweep")
        elif not dry_run:
            _finish_sweep(found)
    # Outside, where it is not taken for an error of the program.
    if found.get("failed"):
        raise typer.Exit(EXIT_FAILED)


def _finish_sweep(found: dict[str, Any]) -> None:
    from sim.console import open_console, say
    from sim.sweep.table import study_table

    console = open_console()
    console.print(study_table(found["table"]))
    for failure in found["failed"]:
        say(console, f"failed: {failure['label']}: {failure['reason'].splitlines()[0]} ({failure['run']})", "red")
    say(console, f"study: {found['study']} (table.csv). Differences and tests: fedmlic compare {found['study']}")


@app.command()
def compare(
    paths: Annotated[list[Path], typer.Argument(metavar="RUN|STUDY ...")],
    *,
    by: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Settings in which rows differ, separated by commas (default: a study's axes)."),
    ] = None,
    metric: Annotated[str, typer.Option(help="A name of docs/record.md (default server/mAP).")] = "",
    model: Annotated[
        Literal["last", "best"], typer.Option(help="After the last round, or best on validation.")
    ] = "last",
    test: Annotated[Literal["permutation", "wilcoxon"], typer.Option(help="Paired test over seeds.")] = "permutation",
    baseline: Annotated[
        str, typer.Option(help="Label of the row to compare all others with (default: all pairs).")
    ] = "",
    form: Annotated[
        Literal["table", "csv", "markdown", "latex"], typer.Option("--format", help="What to print.")
    ] = "table",
    json_output: Json = False,
) -> None:
    """Compare runs over seeds: means, paired differences with intervals and tests, and whether the seeds suffice.

    RUN and STUDY are folders. Runs that differ in more than the compared settings are refused.
    """
    with report_errors("Nothing was changed."):
        from sim.comparison.compare import compare as made
        from sim.comparison.output import render, tables, to_json
        from sim.console import open_console, say

        keys = [key.strip().replace("_", "-") for text in by or [] for key in text.split(",")]
        with working(json_output=json_output):
            found = made(paths, by=keys, metric=metric, model=model, test=test, baseline=baseline)
        if json_output:
            print_json(to_json(found), "compare")
        elif form != "table":
            sys.stdout.write(render(found, form))
        else:
            console = open_console()
            for grid in tables(found):
                console.print(grid)
            for note in found.notes:
                say(console, f"note: {note}")


def _finish(result: dict[str, Any], *, json_output: bool) -> None:
    if json_output:
        print_json(result, "run")
        return
    from fedmlic.record import open_run
    from sim.console import apart_line, groups_table, open_console, results_table, say, spread_line

    console = open_console()
    folder = open_run(Path(result["run"]))
    experiment = folder.settings()[0]
    console.print(results_table(result))
    groups = groups_table(result, experiment.tail_below, experiment.head_above)
    if groups is not None:
        console.print(groups)
    for side in ("server", "server/val", "client"):
        apart = apart_line(result["metrics"], side)
        if apart:
            say(console, apart)
    line = spread_line(result["metrics"], folder.data()["client_names"])
    if line:
        say(console, line)
    if result.get("references"):
        from sim.sweep.table import study_table

        console.print(study_table(result["references"]["table"]))
    say(console, f"run folder: {result['run']}")


@app.command()
def describe(settings: Settings = None, *, out: Pictures = None, json_output: Json = False) -> None:
    """Show who holds which images and labels, and what clients will send, before anything is trained.

    RECIPE and KEY=VALUE are those of 'fedmlic run'. The federation is built if it is not there.
    """
    with report_errors(BUILD_HINT):
        from fedmlic.experiment import split_settings
        from sim.console import open_console
        from sim.reports.describe import describe as report
        from sim.reports.exchange import exchange
        from sim.run import describe_federation

        experiment, runtime = split_settings(read_settings(with_recipe(settings or [])))
        with working(json_output=json_output):
            federation = describe_federation(experiment, runtime)
            messages = exchange(experiment, federation)
            shown = None if json_output else open_console()
            found = report(federation, out, shown, experiment.method, messages)
        _warn(found["warnings"])
        if json_output:
            print_json(found, "describe")


@app.command("list")
def list_entries(
    name: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(metavar="[NAME]"),
    ] = None,
    *,
    json_output: Json = False,
) -> None:
    """List data sets, partitions, regimes, models, methods, strategies and settings, or show one of them.

    NAME is a catalogue (method), an entry (fedlgt: its arguments, defaults and page) or a setting (seed).
    """
    with report_errors():
        from sim import catalogue
        from sim.console import open_console
        from sim.reports import entries as shown

        every, settings = catalogue.everything(), catalogue.settings()
        key = catalogue.key_of(name or "")
        if name is None or key:
            found, others = ({key: every[key]}, {}) if key else (every, settings)
            show_found = shown.show_catalogues
        else:
            found, others = catalogue.find(name, every, settings)
            show_found = shown.show_entries
        if name is not None and "method" in found:
            found = {**found, "method": [catalogue.with_traits(entry) for entry in found["method"]]}
        if not json_output:
            show_found(open_console(), found, others)
            return
        rows: dict[str, Any] = {key: [entry.to_json() for entry in entries] for key, entries in found.items()}
        if name is not None:
            rows |= {key: {"default": default, "about": about} for key, (default, about) in others.items()}
        print_json(rows, "list")


@app.command()
def show(path: RunPath, *, json_output: Json = False) -> None:
    """Show a run: its settings, curve, labels and failures.

    RUN is the run's folder; the run may still be under way.
    """
    with report_errors():
        from sim.console import open_console
        from sim.reports import show as reader

        found = reader.summary(path)
        if json_output:
            print_json(found, "show")
        else:
            reader.show(found, open_console())


# A command with a file of its own in sim/commands is one line here.
app.command()(predict)
app.command()(export)
app.command()(report)
app.command()(doctor)
app.command()(nodes)
app.command()(kit)
app.command()(rehearse)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(supernode)


@data.command("import")
def import_data(
    name: Name,
    options: Options = None,
    *,
    root: Root = None,
    out: Annotated[Path | None, typer.Option(help="Build exactly this folder (default: below FEDMLIC_HOME).")] = None,
    workers: Workers = None,
    bad_files: Annotated[
        Literal["fail", "skip"], typer.Option(help="Name all unreadable images, or leave their rows out, recorded.")
    ] = "fail",
    max_bad_fraction: Annotated[
        float, typer.Option(min=0, max=1, help="With skip: the share of unreadable images that is too many.")
    ] = 0.01,
    json_output: Json = False,
) -> None:
    """Build a data set's corpus; the same command goes on with one that was interrupted.

    NAME is a data set of 'fedmlic list dataset', KEY=VALUE one of its parameters: image-size=64.
    """
    with report_errors(BUILD_HINT):
        from sim.console import open_console
        from sim.data import prepare as tools
        from sim.reports.data_report import print_summary

        source = tools.read_source(name, root, read_options(options, parameter_types(name)))
        errors = open_console(stderr=True)
        with working(json_output=json_output), tools.Counting(errors, f"building {source.spec.name}") as watch:
            found = tools.import_data(source, watch, out, workers, bad_files, max_bad_fraction)
        _warn(found["warnings"])
        if json_output:
            print_json(found, "data-import")
        else:
            print_summary(found, open_console())


@data.command("check")
def check_data(
    name: Name,
    options: Options = None,
    *,
    root: Root = None,
    workers: Workers = None,
    json_output: Json = False,
) -> None:
    """Verify a download without building it: exit code 0 if it is fine, 1 if not, 2 for a wrong command.

    NAME is a data set of 'fedmlic list dataset', KEY=VALUE one of its parameters: image-size=64.
    """
    with report_errors():
        from sim.console import open_console
        from sim.data import prepare as tools
        from sim.data.check import check_data as check
        from sim.reports.data_report import print_check

        source = tools.read_source(name, root, read_options(options, parameter_types(name)))
        errors = open_console(stderr=True)
        with working(json_output=json_output), tools.Counting(errors, f"checking {source.spec.name}") as watch:
            found = check(source, watch, workers)
        _warn(found["warnings"])
        if json_output:
            print_json(found, "data-check")
        else:
            print_check(found, open_console())
    # Outside, where it is not taken for an error of the program.
    if not found["ok"]:
        raise typer.Exit(EXIT_FAILED)


@data.command("describe")
def describe_data(
    name: Annotated[str, typer.Argument(metavar="CORPUS|NAME")],
    options: Options = None,
    *,
    root: Root = None,
    out: Pictures = None,
    workers: Workers = None,
    json_output: Json = False,
) -> None:
    """Show counts, co-occurrence, owners and sample images of a corpus (built first if it is not there).

    CORPUS is a corpus folder, NAME a data set of 'fedmlic list dataset', KEY=VALUE one of its parameters.
    """
    with report_errors(BUILD_HINT):
        from sim.console import open_console
        from sim.data import prepare as tools
        from sim.reports.data_report import describe_corpus

        parameters = read_options(options, parameter_types(name))
        with working(json_output=json_output):
            corpus = tools.find_corpus(name, root, parameters, workers, open_console(stderr=True))
            found = describe_corpus(corpus, out, None if json_output else open_console())
        _warn(found["warnings"])
        if json_output:
            print_json(found, "data-describe")


@data.command("verify")
def verify_data(
    name: Annotated[
        str,
        typer.Argument(metavar="FOLDER|NAME", help="A folder of a corpus, a federation or features, or a data set."),
    ],
    options: Options = None,
    *,
    root: Root = None,
    workers: Workers = None,
    json_output: Json = False,
) -> None:
    """Compare a corpus, a federation or feature maps with what was written: exit code 0 if it is the same, 1 if not."""
    with report_errors("Nothing was changed."):
        from rich.console import Console

        from sim.data import prepare as tools
        from sim.data.verify import verify

        console = Console(stderr=True)
        with working(json_output=json_output):
            folder = Path(name).expanduser()
            if root is not None or not (folder / "manifest.json").is_file():
                folder = tools.find_corpus(name, root, read_options(options), workers, console).path
            with tools.Counting(console, f"verifying {folder.name}", "MB") as watch:
                found = verify(folder, watch, workers)
        if json_output:
            print_json(found, "data-verify")
        else:
            _print_verified(found)
        if not found["ok"]:
            raise typer.Exit(EXIT_FAILED)


@data.command("features")
def data_features(settings: Settings = None, *, json_output: Json = False) -> None:
    """Compute the feature maps of a backbone that does not train, ahead of 'fedmlic run'.

    RECIPE and KEY=VALUE are those of 'fedmlic run'. The same command goes on with maps that were interrupted.
    """
    with report_errors("What was computed is kept; the same command goes on."):
        from fedmlic.experiment import split_settings
        from sim.console import open_console, say
        from sim.data import prepare as tools
        from sim.data.features import compute

        experiment, runtime = split_settings(read_settings(with_recipe(settings or [])))
        errors = open_console(stderr=True)
        with working(json_output=json_output):
            found = compute(experiment, runtime, lambda what: tools.Counting(errors, what))
        if json_output:
            print_json(found, "data-features")
            return
        count, *shape = found["shape"]
        size = f"{count:,} maps of {' x '.join(map(str, shape))}, {found['bytes'] / 1e6:,.1f} MB"
        say(open_console(), f"{found['features']}: {size}; computed at {found['images_per_s']:,.1f} images/s")


def _print_verified(found: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console()
    lines = [f"{found['folder']}: {found['files']} files, {found['bytes'] / 1e6:,.1f} MB in {found['seconds']:.1f} s"]
    lines += found["problems"] or ["every byte is what was written"]
    lines += [f"damaged image: {image}" for image in found["damaged_images"]]
    if found["hashes_added"]:
        lines.append("a hash of every image was added; an earlier version had built this corpus without")
    if not found["ok"]:
        lines.append("Delete that folder to have it built again, or restore it from a copy.")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _warn(warnings: list[str]) -> None:
    from sim.console import open_console, say

    for warning in warnings:
        say(open_console(stderr=True), f"warning: {warning}", "yellow")


if __name__ == "__main__":
    main()
