"""``fedmlic kit``: everything that a server and its devices need, a folder for each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sim.commands.shared import Json, print_json, report_errors, working


def kit(
    description: Annotated[Path, typer.Argument(metavar="FEDERATION.toml")],
    *,
    out: Annotated[Path, typer.Option(help="Folder of the kit; new, or with --update one that 'fedmlic kit' made.")],
    update: Annotated[bool, typer.Option("--update", help="Follow the file; keep keys and certificates.")] = False,
    renew: Annotated[bool, typer.Option("--renew", help="As --update, with new certificates of the server.")] = False,
    json_output: Json = False,
) -> None:
    """Make the kit of a federation: certificates, keys, proxy, services, containers, a README for each receiver.

    FEDERATION.toml says who takes part; docs/examples/federation.toml is one to begin with. The kit holds secrets:
    a receiver gets its own folder only.
    """
    with report_errors():
        from sim.deployment.kit import make_kit

        with working(json_output=json_output):
            found = make_kit(description, out, update=update, renew=renew)
        if json_output:
            print_json(found, "kit")
        else:
            _show(found)


def _show(found: dict[str, Any]) -> None:
    from sim.console import open_console, say

    console = open_console()
    say(console, f"kit: {found['kit']}  (secret; a receiver gets its own folder only)")
    say(console, "  authority/  stays here, offline")
    say(console, "  server/     for the server")
    for name in found["devices"]:
        say(console, f"  devices/{name}/  for {name}")
    say(console, f"made: {', '.join(found['made']) or 'no new keys'}")
    if found["kept"]:
        say(console, f"kept: {', '.join(found['kept'])}")
    if found["removed"]:
        say(console, f"deleted: {', '.join(found['removed'])}")
    for note in found["notes"]:
        say(console, f"note: {note}", "yellow")
    say(console, f"digest of the code: {found['digest']}")
    say(console, f"Next: fedmlic rehearse {found['kit']}   then read {found['kit']}/README.md")
