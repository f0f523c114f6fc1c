"""The ``fedmlic`` command."""

from __future__ import annotations

import json
import os
import signal
import sys
import tomllib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, Optional

import typer

from fedmlic.errors import InputError, nearest

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

RECIPES = Path(__file__).parent / "recipes"

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]
Settings = Annotated[
    Optional[list[str]],  # noqa: UP045  (typer reads the annotation)
    typer.Argument(metavar="[RECIPE] [KEY=VALUE ...]", help="A recipe (name or TOML file) and settings to change."),
]
Out = Annotated[Optional[Path], typer.Option(help="Folder to write into (default runs/DATE-TIME).")]  # noqa: UP045
Name = Annotated[str, typer.Argument(metavar="NAME", help="A data set of 'fedmlic list dataset'.")]
Root = Annotated[Optional[Path], typer.Option(help="Folder that holds the download.")]  # noqa: UP045
Options = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Argument(metavar="[KEY=VALUE ...]", help="Parameters of the data set, e.g. image-size=64."),
]
Workers = Annotated[Optional[int], typer.Option(min=1, help="Threads (default: one per core, up to 8).")]  # noqa: UP045
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]

EXIT_FAILED, EXIT_INPUT, EXIT_INTERRUPTED = 1, 2, 130


def main() -> None:
    """Entry point of the ``fedmlic`` command."""
    # Last, so that a plug-in beside you is found and an installed package is never shadowed.
    sys.path.append(str(Path.cwd()))
    app()


def read_settings(arguments: list[str]) -> dict[str, Any]:
    """Recipe first (if the first argument has no ``=``), then ``key=value`` pairs over it.

    Values are read as TOML where that works (numbers, booleans, quoted text), else as text.
    """
    settings: dict[str, Any] = {}
    for position, argument in enumerate(arguments):
        key, equals, value = argument.partition("=")
        if "(" in key or not equals:
            if position:
                msg = f"Expected settings as key=value, got {argument!r}. Quote values that contain spaces."
                raise InputError(msg)
            settings.update(read_recipe(argument))
        else:
            settings[key.strip().replace("_", "-")] = _value(value)
    return settings


def read_recipe(name: str) -> dict[str, Any]:
    """The settings of a recipe of ``sim/recipes`` or of any TOML file."""
    path = Path(name)
    if path.suffix != ".toml":
        path = RECIPES / f"{name}.toml"
    if not path.is_file():
        known = [file.stem for file in RECIPES.glob("*.toml")]
        hint = nearest(name, known) if known else ""
        msg = f"Expected a recipe or a TOML file, got {name!r}. {hint} Settings are written key=value."
        raise InputError(msg)
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        msg = f"Expected {path} to be TOML, got an error: {error}."
        raise InputError(msg) from None
    return {key.replace("_", "-"): value for key, value in found.items()}


def _value(text: str) -> Any:  # noqa: ANN401  (TOML is any)
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def read_options(arguments: list[str] | None) -> dict[str, Any]:
    """``key=value`` pairs of a data set; values as those of settings."""
    options: dict[str, Any] = {}
    for argument in arguments or []:
        key, equals, value = argument.partition("=")
        if not equals or not key.strip():
            msg = f"Expected options as key=value, got {argument!r}. Quote values that contain spaces."
            raise InputError(msg)
        options[key] = _value(value)
    return options


RESUME_HINT = "The last checkpoint is kept; 'fedmlic resume RUN' goes on."


@contextmanager
def _errors(kept: str = RESUME_HINT) -> Iterator[None]:
    """Turn exceptions into messages on stderr and exit codes."""
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    except InputError as error:
        _fail(str(error), EXIT_INPUT)
    except KeyboardInterrupt:
        _fail(f"Interrupted. {kept}", EXIT_INTERRUPTED)
    except (RuntimeError, OSError) as error:
        # RunFailedError, worker deaths, a full disk: the cause is in the text, the rest in the event log.
        if os.environ.get("FEDMLIC_TRACEBACK"):
            raise
        _fail(f"{type(error).__name__}: {error}", EXIT_FAILED)
    finally:
        signal.signal(signal.SIGTERM, previous)


def _terminate(signum: int, frame: object) -> NoReturn:
    del signum, frame
    raise KeyboardInterrupt


def _fail(text: str, code: int) -> NoReturn:
    from rich.console import Console

    Console(stderr=True).print(text, style="red", highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(code)


def _working(*, json_output: bool) -> AbstractContextManager[object]:
    """While work is done: what a plug-in prints must not end up beside the JSON."""
    return redirect_stdout(sys.stderr) if json_output else nullcontext()


def _print_json(value: object) -> None:
    from fedmlic.record import jsonable

    sys.stdout.write(json.dumps(jsonable(value), allow_nan=False) + "\n")


@app.command()
def run(
    settings: Settings = None,
    *,
    out: Out = None,
    engine: Annotated[Optional[str], typer.Option(help="auto, processes, ray, inprocess or flower.")] = None,  # noqa: UP045
    workers: Annotated[Optional[int], typer.Option(help="Worker processes (0: one per core).")] = None,  # noqa: UP045
    gpus_per_worker: Annotated[Optional[float], typer.Option(help="Share of a GPU per worker.")] = None,  # noqa: UP045
    ray_address: Annotated[Optional[str], typer.Option(help="A running Ray cluster, host:port or auto.")] = None,  # noqa: UP045
    json_output: Json = False,
) -> None:
    """Run an experiment: build the data if it is not there, train, evaluate, record."""
    with _errors():
        from fedmlic.experiment import split_settings

        values = read_settings(settings or [])
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
        with _working(json_output=json_output):
            result = _run(experiment, runtime, folder, resume_from=None)
        _finish(result, json_output=json_output)


@app.command()
def resume(
    path: RunPath,
    *,
    engine: Annotated[Optional[str], typer.Option(help="auto, processes, ray, inprocess or flower.")] = None,  # noqa: UP045
    workers: Annotated[Optional[int], typer.Option(help="Worker processes.")] = None,  # noqa: UP045
    ray_address: Annotated[Optional[str], typer.Option(help="A running Ray cluster, host:port or auto.")] = None,  # noqa: UP045
    json_output: Json = False,
) -> None:
    """Go on with an interrupted run, to the same final weights."""
    with _errors():
        changes = {"engine": engine, "workers": workers, "ray-address": ray_address}
        kept = {key: value for key, value in changes.items() if value is not None}
        with _working(json_output=json_output):
            result = _run(None, None, path, resume_from=kept)
        _finish(result, json_output=json_output)


def _run(experiment: Any, runtime: Any, folder: Path | None, resume_from: dict[str, Any] | None) -> dict[str, Any]:  # noqa: ANN401
    from rich.console import Console

    from sim import run as engine
    from sim.console import Display

    with Display(Console(stderr=True)) as display:
        if folder is not None and resume_from is not None:
            return engine.resume(folder, display, resume_from)
        return engine.run(experiment, runtime, folder, display)


def _finish(result: dict[str, Any], *, json_output: bool) -> None:
    if json_output:
        _print_json(result)
        return
    from rich.console import Console

    from sim.console import results_table, spread_line

    console = Console()
    console.print(results_table(result))
    line = spread_line(result["metrics"])
    if line:
        console.print(line, highlight=False)
    console.print(f"run folder: {result['run']}", highlight=False, markup=False, soft_wrap=True)


@app.command()
def describe(settings: Settings = None, *, out: Out = None, json_output: Json = False) -> None:
    """Show who holds which images and labels, before anything is trained."""
    with _errors():
        from rich.console import Console

        from fedmlic.experiment import split_settings
        from sim.reports.describe import describe as tell
        from sim.run import describe_federation

        experiment, runtime = split_settings(read_settings(settings or []))
        with _working(json_output=json_output):
            federation = describe_federation(experiment, runtime)
            found = tell(federation, out, None if json_output else Console())
        _warn(found["warnings"])
        if json_output:
            _print_json(found)


@app.command("list")
def list_entries(
    catalogue: Annotated[Optional[str], typer.Argument(help="Only this one, e.g. method.")] = None,  # noqa: UP045
    *,
    json_output: Json = False,
) -> None:
    """List data sets, partitions, regimes, models, methods and strategies."""
    with _errors():
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        from sim.catalogue import everything, settings

        found = everything()
        if catalogue is not None:
            key = catalogue.removesuffix("s") if catalogue not in found else catalogue
            if key not in found:
                msg = f"Expected a catalogue, got {catalogue!r}. {nearest(catalogue, found)}"
                raise InputError(msg)
            found = {key: found[key]}
        if json_output:
            _print_json({key: [entry._asdict() for entry in entries] for key, entries in found.items()})
            return
        console = Console()
        for key, entries in found.items():
            table = Table(title=key, title_justify="left", box=None, pad_edge=False, show_header=False)
            table.add_column("name", style="bold", no_wrap=True)
            table.add_column("summary")
            for entry in entries:
                table.add_row(entry.name, escape(entry.summary))
                if entry.arguments:
                    table.add_row("", f"[dim]{escape(entry.call)}[/]")
            console.print(table)
            console.print()
        if catalogue is None:
            table = Table(title="other settings (key=value)", title_justify="left", box=None, pad_edge=False)
            for title in ("key", "default", "what it is"):
                table.add_column(title)
            for key, (default, about) in settings().items():
                table.add_row(key, escape(str(default)), escape(about))
            console.print(table)


@app.command()
def show(path: RunPath, *, json_output: Json = False) -> None:
    """Show a run: its settings, curve, labels and failures."""
    with _errors():
        from rich.console import Console

        from sim.reports import show as reader

        found = reader.summary(path)
        if json_output:
            _print_json(found)
        else:
            reader.show(found, Console())


@app.command()
def predict(
    path: RunPath,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE ...", help="Image files.")],
    *,
    round_number: Annotated[Optional[int], typer.Option("--round", help="A kept round (default: the best).")] = None,  # noqa: UP045
    json_output: Json = False,
) -> None:
    """Label images with a run's model (the best on validation)."""
    with _errors():
        from rich.console import Console
        from rich.markup import escape

        from sim.predict import predict as label

        with _working(json_output=json_output):
            found = label(path, images, round_number)
        if json_output:
            _print_json(found)
            return
        console = Console()
        for entry in found["images"]:
            console.print(f"[bold]{escape(entry['image'])}[/]", highlight=False, soft_wrap=True)
            for item in entry["labels"][:10]:
                mark = "●" if item["probability"] >= found["threshold"] else "○"
                line = f"  {mark} {item['probability']:.3f}  {item['label']}"
                console.print(line, highlight=False, markup=False, soft_wrap=True)


BUILD_HINT = "What was decoded is kept; the same command goes on."


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
    """Build a data set's corpus; the same command goes on with one that was interrupted."""
    with _errors(BUILD_HINT):
        from rich.console import Console

        from sim.data import prepare as tools
        from sim.reports.data_report import print_summary

        source = tools.read_source(name, root, read_options(options))
        errors = Console(stderr=True)
        with _working(json_output=json_output), tools.Counting(errors, f"building {source.spec.name}") as watch:
            found = tools.import_data(source, watch, out, workers, bad_files, max_bad_fraction)
        _warn(found["warnings"])
        if json_output:
            _print_json(found)
        else:
            print_summary(found, Console())


@data.command("check")
def check_data(
    name: Name,
    options: Options = None,
    *,
    root: Root = None,
    workers: Workers = None,
    json_output: Json = False,
) -> None:
    """Verify a download without building it: exit code 0 if it is fine, 1 if not, 2 for a wrong command."""
    with _errors("Nothing was written."):
        from rich.console import Console

        from sim.data import prepare as tools
        from sim.data.check import check_data as check
        from sim.reports.data_report import print_check

        source = tools.read_source(name, root, read_options(options))
        with _working(json_output=json_output), tools.Counting(Console(stderr=True), f"checking {name}") as watch:
            found = check(source, watch, workers)
        _warn(found["warnings"])
        if json_output:
            _print_json(found)
        else:
            print_check(found, Console())
    # Outside, where it is not taken for an error of the program.
    if not found["ok"]:
        raise typer.Exit(EXIT_FAILED)


@data.command("describe")
def describe_data(
    name: Annotated[str, typer.Argument(metavar="CORPUS|NAME", help="A corpus folder, or a data set.")],
    options: Options = None,
    *,
    root: Root = None,
    out: Annotated[Optional[Path], typer.Option(help="Folder for pictures and tables.")] = None,  # noqa: UP045
    workers: Workers = None,
    json_output: Json = False,
) -> None:
    """Show counts, co-occurrence, owners and sample images of a corpus (built first if it is not there)."""
    with _errors(BUILD_HINT):
        from rich.console import Console

        from sim.data import prepare as tools
        from sim.reports.data_report import describe_corpus

        with _working(json_output=json_output):
            corpus = tools.find_corpus(name, root, read_options(options), workers, Console(stderr=True))
            found = describe_corpus(corpus, out, None if json_output else Console())
        _warn(found["warnings"])
        if json_output:
            _print_json(found)


def _warn(warnings: list[str]) -> None:
    from rich.console import Console

    for warning in warnings:
        text = f"warning: {warning}"
        Console(stderr=True).print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
