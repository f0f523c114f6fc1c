"""``fedmlic rehearse``: play a kit on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sim.commands.shared import EXIT_FAILED, Json, print_json, report_errors, working


def rehearse(
    path: Annotated[Path, typer.Argument(metavar="KIT")],
    *,
    without_proxy: Annotated[
        bool, typer.Option("--without-proxy", help="Leave out nginx, and all steps that are about it.")
    ] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each run.")] = 2,
    keep: Annotated[bool, typer.Option("--keep", help="Keep logs and run folders, and say where they are.")] = False,
    json_output: Json = False,
) -> None:
    """Play a kit on this machine over loopback: proxy, TLS, keys, intruders, devices that drop, restart and lie.

    KIT is a folder of 'fedmlic kit'; it is only read, and images are made up. Takes some minutes. Exit code 1 if a
    step did not go as it should.
    """
    with report_errors("Everything that was started was ended."):
        from sim.console import open_console, say
        from sim.deployment.rehearsal import rehearse as play

        console = open_console(stderr=json_output)
        with working(json_output=json_output):
            found = play(
                path,
                proxy=not without_proxy,
                rounds=rounds,
                keep=keep,
                tell=lambda text, style: say(console, text, style),
            )
        if json_output:
            print_json(found, "rehearse")
    if not found["ok"]:
        raise typer.Exit(EXIT_FAILED)
