"""``fedmlic nodes``: who is there, since when, and what went wrong last."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from sim.commands.shared import Json, print_json, report_errors


def nodes(
    superlink: Annotated[str, typer.Argument(metavar="[SUPERLINK]")] = "",
    *,
    run: Annotated[Optional[Path], typer.Option(help="The run's folder, for last turns and errors.")] = None,  # noqa: UP045
    names: Annotated[Optional[Path], typer.Option(help="A table of names, NODE NAME a line.")] = None,  # noqa: UP045
    json_output: Json = False,
) -> None:
    """Show the nodes of a SuperLink, and what a run has seen of them.

    SUPERLINK is a connection of ~/.flwr/config.toml (default: the one that is the default there).
    """
    with report_errors():
        from sim.console import Grid, open_console
        from sim.deployment import nodes as looking

        rows = looking.listed(superlink, looking.names_of(names) if names else {})
        seen = looking.seen(run) if run else []
        if json_output:
            print_json({"nodes": rows, "run": seen})
            return
        console = open_console()
        table = Grid("nodes", "node", "name", "is", "since (UTC)", "registered (UTC)")
        for row in rows:
            table.add_row(row["node"], row["name"], row["status"], row["since"], row["registered"])
        console.print(table)
        if run:
            table = Grid("in the run", "host", "last round", "turns", "failed", "last error")
            for row in seen:
                table.add_row(row["host"], row["last_round"], row["turns"], row["failed"], row["error"])
            console.print(table)
