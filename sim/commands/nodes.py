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
        from sim.console import Grid, open_console, say
        from sim.deployment import nodes as looking

        rows = looking.listed(superlink, looking.names_of(names) if names else {})
        seen = looking.seen(run) if run else []
        if json_output:
            print_json({"nodes": rows, "run": seen}, "nodes")
            return
        console = open_console()
        heads = ("node", "name", "status", "since")
        console.print(Grid("nodes (times in UTC)", heads, [[row[head] for head in heads] for row in rows]))
        if run:
            cells = [[row["host"], *(str(row[name]) for name in ("last_round", "turns", "failed"))] for row in seen]
            console.print(Grid("in the run", ("host", "last round", "turns", "failed"), cells))
            for row in seen:
                if row["error"]:
                    say(console, f"{row['host']}: {row['error']}", "yellow")
