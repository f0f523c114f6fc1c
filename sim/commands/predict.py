"""``fedmlic predict``: label images with a run's model."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional

import typer

from sim.commands.shared import Json, RunPath, print_json, report_errors, working

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray
    from rich.console import Console

    from sim.data.prepare import Counting
    from sim.predict import Entry, Prediction, Predictor
    from sim.thresholds import Rule

MAX_PREDICTED = 10
"""Labels of an image that are printed, unless more are present."""

MAX_NAMED = 10
"""Unreadable files that are named on the terminal."""

File = Optional[Path]  # noqa: UP045  (typer reads the annotation)


def predict(
    path: RunPath,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE ...")],
    *,
    round_number: Annotated[Optional[int], typer.Option("--round", help="A kept round (default: the best).")] = None,  # noqa: UP045
    client: Annotated[Optional[int], typer.Option(help="Whose model, where clients keep tensors of their own.")] = None,  # noqa: UP045
    labels: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Ask for these names instead, with commas between them (needs a read-out shared by labels)."),
    ] = None,
    inference: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="How the network is asked, such as 'patching()' (default: as the run was evaluated)."),
    ] = None,
    thresholds: Annotated[
        str, typer.Option(metavar="FILE|fit", help="A thresholds.json, or fit on the run's validation images.")
    ] = "",
    rule: Annotated[
        Optional[Literal["best-f1", "precision", "fixed"]],  # noqa: UP045
        typer.Option(help="Which of these thresholds (default: best-f1)."),
    ] = None,
    precision: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Target of the rule 'precision' where thresholds are fitted (default: 0.9)."),
    ] = None,
    csv: Annotated[File, typer.Option(metavar="FILE", help="Write one row per image.")] = None,
    out: Annotated[File, typer.Option(metavar="FILE", help="Write what --json prints.")] = None,
    sheet: Annotated[File, typer.Option(metavar="FILE.png", help="Draw the first images with their labels.")] = None,
    bad_files: Annotated[
        Literal["fail", "skip"], typer.Option(help="Name all unreadable images, or leave them out and name them.")
    ] = "fail",
    json_output: Json = False,
) -> None:
    """Label images with a run's model (the best on validation).

    RUN is the run's folder, IMAGE an image file or a folder of such. A filled mark stands before labels at or above
    their threshold: the run's, or that of --thresholds.
    """
    with report_errors():
        from sim.console import open_console, say
        from sim.data.prepare import Countings
        from sim.predict import AT_ONCE, image_files, start_prediction

        _check_rule(thresholds, rule, precision)
        with working(json_output=json_output), Countings(open_console(stderr=True)) as countings:
            many = len(image_files(images)) > AT_ONCE
            bars: list[Counting] = []

            def labelling(done: int, total: int) -> None:
                if not bars:  # not before thresholds have been fitted, which has a bar of its own
                    bars.append(countings("labelling images"))
                bars[0](done, total)

            found = start_prediction(
                path,
                images,
                round_number,
                client,
                labels,
                inference,
                thresholds=_chosen(path, thresholds, rule, precision, (client, inference), countings),
                bad_files=bad_files,
                progress=labelling if many else None,
            )
            kept, num_images = _write(
                found, csv, out, sheet=sheet is not None, keep=json_output or not (csv or out or sheet)
            )
        if sheet is not None:
            _draw(sheet, path, found, kept, num_images)
        if json_output:
            from sim.prediction_files import bad_files as listed

            skipped = {"num_bad_files": len(found.problems), "bad_files": listed(found)}
            print_json({**found.about, "images": [e.to_json(found.label_names) for e in kept], **skipped}, "predict")
            return
        console = open_console()
        say(console, f"model {found.about['model']}", "dim")
        if csv or out or sheet:
            _say_written(console, num_images, [csv, out, sheet])
        else:
            _say(console, found, kept, every=labels is not None)
        _notes(found)


def _check_rule(thresholds: str, rule: Rule | None, precision: float | None) -> None:
    """Refuse options of thresholds that would change nothing.

    Raises:
        InputError: there are such.
    """
    from fedmlic.errors import InputError

    if not thresholds and (rule is not None or precision is not None):
        given = "--rule" if rule is not None else "--precision"
        msg = (
            f"Expected --thresholds with {given}, got none, so that the run's own threshold decides. Give --thresholds "
            f"fit, or a thresholds.json, or leave {given} out."
        )
        raise InputError(msg)
    if precision is not None and (thresholds != "fit" or rule != "precision"):
        got = f"the thresholds of {thresholds}" if thresholds != "fit" else f"--rule {rule or 'best-f1'}"
        msg = (
            f"Expected --precision with --thresholds fit --rule precision, got {got}, which it does not change. Leave "
            "it out, or export again with another --precision."
        )
        raise InputError(msg)


def _chosen(
    path: Path,
    thresholds: str,
    rule: Rule | None,
    precision: float | None,
    asked: tuple[int | None, str | None],
    progress: Callable[[str], Callable[[int, int], None]],
) -> Callable[[Predictor], NDArray[np.float32]] | None:
    """What gives the thresholds of a model; None for the run's own."""
    if not thresholds:
        return None
    chosen: Rule = rule or "best-f1"

    def of(predictor: Predictor) -> NDArray[np.float32]:
        from sim.outcome import about_of, corpus_of, thresholds_of
        from sim.thresholds import DEFAULT_PRECISION, read_thresholds

        client, inference = asked
        if thresholds != "fit":
            about = about_of(path, predictor, client, inference)
            return read_thresholds(Path(thresholds), chosen, predictor.label_names, about)
        found = thresholds_of(
            path,
            predictor,
            corpus_of(path),
            precision=DEFAULT_PRECISION if precision is None else precision,
            client=client,
            inference=inference,
            progress=progress,
        )
        return found.values(chosen)

    return of


def _write(
    found: Prediction, csv: Path | None, out: Path | None, *, sheet: bool, keep: bool
) -> tuple[list[Entry], int]:
    """Draw all entries and write them; the entries that are shown afterwards, and how many there were."""
    from sim.prediction_files import csv_file, json_file
    from sim.reports.sheet import MOST_IMAGES

    kept: list[Entry] = []
    count = 0
    with ExitStack() as files:
        sinks = [files.enter_context(csv_file(csv, found))] if csv else []
        sinks += [files.enter_context(json_file(out, found))] if out else []
        for entry in found.entries:
            count += 1
            for sink in sinks:
                sink(entry)
            if keep or (sheet and len(kept) < MOST_IMAGES):
                kept.append(entry)
    return kept, count


def _draw(sheet: Path, path: Path, found: Prediction, kept: list[Entry], num_images: int) -> None:
    from sim.predict import load_shape
    from sim.reports.sheet import write_sheet

    note = f"model of {path.name or path} after round {found.about['round']}"
    write_sheet(sheet, kept, found.label_names, num_images, load_shape(path)[2], note)


def _say_written(console: Console, num_images: int, files: list[Path | None]) -> None:
    from sim.console import say

    written = ", ".join(str(file) for file in files if file is not None)
    say(console, f"{num_images:,} image{'s' * (num_images != 1)} labelled: {written}")


def _say(console: Console, found: Prediction, entries: list[Entry], *, every: bool) -> None:
    from sim.console import plain, say

    present, absent = "*-" if console.options.ascii_only else "●○"
    for entry in entries:
        console.print(plain(entry.file, "bold"), soft_wrap=True)
        if entry.uncertainty:
            numbers = ", ".join(f"{name} {value:.4g}" for name, value in entry.uncertainty.items())
            say(console, f"  uncertainty: {numbers}")
        order = entry.order()
        predicted = (entry.scores >= entry.thresholds)[order].nonzero()[0]
        # Down to the last one that is predicted: a label's own threshold may be low.
        most = len(order) if every else max([MAX_PREDICTED, *(predicted[-1:] + 1).tolist()])
        for column in order[:most].tolist():
            mark = present if entry.scores[column] >= entry.thresholds[column] else absent
            say(console, f"  {mark} {entry.scores[column]:.3f}  {found.label_names[column]}")


def _notes(found: Prediction) -> None:
    from sim.console import open_console, say

    errors = open_console(stderr=True)
    note: Any = found.about.get("note")
    if note:
        say(errors, f"note: {note}", "yellow")
    if found.problems:
        say(errors, f"warning: {len(found.problems)} of {found.num_files} files could not be read:", "yellow")
        for file, problem in found.problems[:MAX_NAMED]:
            say(errors, f"  {file}: {problem}", "yellow")
        if len(found.problems) > MAX_NAMED:
            say(errors, f"  and {len(found.problems) - MAX_NAMED} more (--out lists all)", "yellow")
