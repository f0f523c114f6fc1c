"""``fedmlic report``: one page that shows runs and studies to a colleague."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from sim.commands.shared import Json, print_json, report_errors, working


def report(
    paths: Annotated[list[Path], typer.Argument(metavar="RUN|STUDY ...")],
    *,
    out: Annotated[Path, typer.Option(help="Folder of the page; an earlier report in it is replaced.")],
    model: Annotated[
        Literal["best", "last"], typer.Option(help="Best on validation (where there is one), or after the last round.")
    ] = "best",
    scored: Annotated[
        int, typer.Option(min=0, help="Rows whose models are asked for their scores (0: the record alone).")
    ] = 4,
    json_output: Json = False,
) -> None:
    """Write one page of runs and studies: who holds what, curves, labels, clients, calibration, errors, cost.

    RUN and STUDY are folders. The page opens from disk without a network; tables/ beside it holds its numbers as CSV.
    """
    with report_errors():
        from sim.console import open_console, say
        from sim.reports.report.write import write_report
        from sim.sweep.view import size

        errors = open_console(stderr=True)
        with working(json_output=json_output):
            found = write_report(paths, out.expanduser(), model, scored, lambda text: say(errors, text, "dim"))
        if json_output:
            print_json(found, "report")
            return
        for problem in found["problems"]:
            say(errors, f"note: {problem}", "yellow")
        console = open_console()
        count = f"{found['runs']} run{'s' if found['runs'] > 1 else ''}"
        rows = f"{len(found['rows'])} row{'s' if len(found['rows']) > 1 else ''}"
        say(console, f"{count} in {rows}, {size(found['bytes'])}")
        say(console, f"page: {found['page']}")
