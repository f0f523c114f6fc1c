"""What every command has: its common options, its errors and exit codes, its JSON."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated, NoReturn, Optional

import typer

from fedmlic.errors import InputError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]
# What arguments mean is said in the text of their commands: click 8.5 drops the help of typer's arguments.
Settings = Annotated[
    Optional[list[str]],  # noqa: UP045  (typer reads the annotation)
    typer.Argument(metavar="[RECIPE] [KEY=VALUE ...]"),
]
Out = Annotated[Optional[Path], typer.Option(help="Folder to write into (default runs/DATE-TIME).")]  # noqa: UP045
Pictures = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(help="Folder for pictures and tables (default: nothing is written)."),
]
Name = Annotated[str, typer.Argument(metavar="NAME")]
Root = Annotated[Optional[Path], typer.Option(help="Folder that holds the download.")]  # noqa: UP045
Options = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Argument(metavar="[KEY=VALUE ...]"),
]
Workers = Annotated[Optional[int], typer.Option(min=1, help="Threads (default: one per core, up to 8).")]  # noqa: UP045
REFERENCES_HELP = "Add central and local-only training, FedAvg and the model that never trains, as runs of their own."
References = Annotated[bool, typer.Option("--references", help=REFERENCES_HELP)]
ReferencesOrNot = Annotated[
    Optional[bool],  # noqa: UP045
    typer.Option("--references/--no-references", help=f"{REFERENCES_HELP} Default: as the study says."),
]
ReferencesOf = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        help="KEY=A,B of an axis or setting: the rows that references belong to (default: as the study says, or all). "
        "May be given several times."
    ),
]
RunPath = Annotated[Path, typer.Argument(metavar="RUN")]

EXIT_FAILED, EXIT_INPUT, EXIT_INTERRUPTED = 1, 2, 130

NOTHING_HINT = "Nothing was written."
BUILD_HINT = "What was decoded is kept; the same command goes on."


@contextmanager
def report_errors(kept: str = NOTHING_HINT) -> Iterator[None]:
    """Turn exceptions into messages on stderr and exit codes."""
    previous = {number: signal.signal(number, _terminate) for number in _endings()}
    try:
        yield
    except InputError as error:
        fail(str(error), EXIT_INPUT)
    except typer.Exit:
        raise  # it is a RuntimeError
    except KeyboardInterrupt as interrupt:
        fail(f"Interrupted. {str(interrupt) or kept}", EXIT_INTERRUPTED)
    except (RuntimeError, OSError) as error:
        # RunFailedError, worker deaths, a full disk: the cause is in the text, the rest in the event log.
        if os.environ.get("FEDMLIC_TRACEBACK"):
            raise
        fail(f"{type(error).__name__}: {error}", EXIT_FAILED)
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


def _endings() -> list[signal.Signals]:
    """Signals that end a command as Ctrl-C does; a terminal that is closed sends SIGHUP, but not to ``nohup``."""
    hang_up: signal.Signals | None = getattr(signal, "SIGHUP", None)  # Windows has none
    if hang_up is None or signal.getsignal(hang_up) == signal.SIG_IGN:
        return [signal.SIGTERM]
    return [signal.SIGTERM, hang_up]


def _terminate(signum: int, frame: object) -> NoReturn:
    del frame
    if signum == getattr(signal, "SIGHUP", None):
        signal.signal(signum, signal.SIG_IGN)  # shell and system both send it, and what was started is to be ended
    raise KeyboardInterrupt


def fail(text: str, code: int) -> NoReturn:
    """Say why on stderr and end with the exit code."""
    from sim.console import open_console, say

    say(open_console(stderr=True), text, "red")
    raise typer.Exit(code)


def working(*, json_output: bool) -> AbstractContextManager[object]:
    """While work is done: what a plug-in prints must not end up beside the JSON."""
    return redirect_stdout(sys.stderr) if json_output else nullcontext()


def print_json(value: Mapping[str, object], schema: str = "") -> None:
    """One JSON object on stdout; numbers that do not exist are null.

    Args:
        value: the object.
        schema: which of ``sim.schemas.OUTPUTS`` it follows, which it then says itself.
    """
    from fedmlic.record import jsonable
    from sim.schemas import tag

    tagged = {"schema": tag(schema), **value} if schema else value
    sys.stdout.write(json.dumps(jsonable(tagged), allow_nan=False) + "\n")
