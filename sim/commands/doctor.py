"""``fedmlic doctor``: whether a device or a server is ready for a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from sim.commands.settings import read_settings
from sim.commands.shared import EXIT_FAILED, Json, print_json, report_errors, working

if TYPE_CHECKING:
    from fedmlic.experiment import Experiment, Runtime

MARKS = {"ok": ("ok", "green"), "warning": ("warning", "yellow"), "problem": ("PROBLEM", "red")}


def doctor(
    folder: Annotated[Optional[Path], typer.Argument(metavar="[FOLDER]")] = None,  # noqa: UP045
    *,
    node_config: Annotated[Optional[Path], typer.Option(help="A device's node.toml.")] = None,  # noqa: UP045
    superlink: Annotated[str, typer.Option(metavar="HOST:PORT", help="The server as nodes reach it.")] = "",
    root_certificates: Annotated[Optional[Path], typer.Option(help="The authority's ca.crt.")] = None,  # noqa: UP045
    certificate: Annotated[Optional[list[Path]], typer.Option(help="A server's own certificate.")] = None,  # noqa: UP045
    key: Annotated[Optional[Path], typer.Option(help="A node's private key.")] = None,  # noqa: UP045
    experiment: Annotated[
        str, typer.Option(metavar="RECIPE|RUN", help="What will be run (default: a device's run.toml).")
    ] = "",
    settings: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of it; may be repeated."),
    ] = None,
    link_mbit: Annotated[float, typer.Option(min=0, help="The link's upload in Mbit/s (default: measured).")] = 0.0,
    constraints: Annotated[Optional[Path], typer.Option(help="Only write installed versions there.")] = None,  # noqa: UP045
    json_output: Json = False,
) -> None:
    """Look at a device or a server before a run: exit code 0 if it is ready, 1 if there is a problem.

    FOLDER is that of a device or a server as 'fedmlic kit' makes it; options win over what it holds.
    """
    with report_errors():
        if constraints is not None:
            _write_constraints(constraints, json_output=json_output)
            return
        from sim.deployment import doctor as looking

        place = looking.place_of(folder)
        given: dict[str, Any] = {
            "node": looking.read_node(node_config) if node_config else None,
            "superlink": superlink,
            "authority": root_certificates,
            "certificates": tuple(certificate or ()),
            "key": key,
        }
        place = replace(place, **{name: value for name, value in given.items() if value})
        asked, runtime = _settings(experiment or looking.run_of(folder), settings or [])
        findings = []
        with working(json_output=json_output):
            for finding in looking.examine(place, asked, runtime, link_mbit):
                findings.append(finding)
                if not json_output:
                    _show(finding)
        problems = sum(finding.verdict == "problem" for finding in findings)
        if json_output:
            print_json({"ok": not problems, "findings": [finding.plain() for finding in findings]}, "doctor")
        else:
            _sum_up(problems, sum(finding.verdict == "warning" for finding in findings))
    if problems:
        raise typer.Exit(EXIT_FAILED)


def _settings(experiment: str, changes: list[str]) -> tuple[Experiment | None, Runtime]:
    """The experiment that is asked for, if any, and where it is computed."""
    from fedmlic.experiment import Runtime, split_settings
    from fedmlic.record import is_run, open_run

    if not experiment and not changes:
        return None, Runtime()
    values: dict[str, Any] = {}
    if experiment and is_run(Path(experiment)):
        for part in open_run(Path(experiment)).settings():
            values |= {name.replace("_", "-"): value for name, value in part.model_dump().items()}
        values |= read_settings(changes)
    else:
        values = read_settings([*([experiment] if experiment else []), *changes])
    return split_settings(values)


def _write_constraints(path: Path, *, json_output: bool) -> None:
    from sim.console import open_console, say
    from sim.deployment.doctor import constraints

    lines = constraints()
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if json_output:
        print_json({"constraints": str(path), "packages": len(lines)}, "doctor")
    else:
        say(open_console(), f"{path}: {len(lines)} packages; elsewhere: pip install -c {path.name} fedmlic")


def _show(finding: Any) -> None:  # noqa: ANN401  (a Finding, whose module is imported late)
    from sim.console import open_console, say

    word, style = MARKS[finding.verdict]
    say(open_console(), f"{word:8s} {finding.about}: {finding.text}", "" if finding.verdict == "ok" else style)
    if finding.remedy:
        say(open_console(), f"         {finding.remedy}")


def _sum_up(problems: int, warnings: int) -> None:
    from sim.console import open_console, say

    if problems:
        say(open_console(), f"{problems} problems, {warnings} warnings: not ready", "red")
    else:
        say(open_console(), f"no problems, {warnings} warnings: ready", "green")
