"""Write a report: ``index.html`` and the tables behind it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedmlic.errors import InputError
from fedmlic.record import write_bytes
from sim.reports.report.gather import Report, Tell, gather
from sim.reports.report.page import GENERATOR, page_of
from sim.reports.report.rows import Model
from sim.reports.report.tables import tables_of

PAGE = "index.html"

TABLES = "tables"


def write_report(
    paths: Sequence[Path],
    out: Path,
    model: Model = "best",
    scored: int = 4,
    tell: Tell = lambda text: None,  # noqa: ARG005
) -> dict[str, Any]:
    """Write the page of runs and studies.

    Args:
        paths: folders of runs and studies.
        out: folder of the page; an earlier report in it is replaced.
        model: which model of a run is meant.
        scored: rows whose models are asked for their scores.
        tell: hears what is being done.

    Returns:
        JSON values: ``page``, ``bytes``, ``tables``, ``runs``, ``rows``, ``model``, ``problems``.

    Raises:
        InputError: no runs, or a folder that holds something else.
    """
    _check(out)
    report = gather(paths, model, scored, tell)
    tell("writing the page")
    tables = tables_of(report)
    text = page_of(report, list(tables))
    return {"page": str(_write(out, text, tables)), "bytes": len(text.encode()), **_about(report, tables)}


def _check(out: Path) -> None:
    page = out / PAGE
    if out.exists() and not out.is_dir():
        msg = f"Expected {out} to be a folder, got a file. Choose another --out."
        raise InputError(msg)
    if page.exists() and f'content="{GENERATOR}"' not in page.read_text(encoding="utf-8", errors="replace")[:4000]:
        msg = f"Expected {page} to be an earlier report, got another page. Choose another --out."
        raise InputError(msg)


def _write(out: Path, text: str, tables: dict[str, str]) -> Path:
    try:
        (out / TABLES).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"Expected the folder {out} to be makeable, got {error}. Choose another --out."
        raise InputError(msg) from None
    if (out / PAGE).exists():  # an earlier report, whose tables must not stay beside the new ones
        for file in (out / TABLES).glob("*.csv"):
            file.unlink()
    for name, content in tables.items():
        write_bytes(out / TABLES / name, content.encode("utf-8", "backslashreplace"))
    write_bytes(out / PAGE, text.encode())
    return (out / PAGE).absolute()


def _about(report: Report, tables: dict[str, str]) -> dict[str, Any]:
    notes = [*report.problems, *report.held_notes, *(text for each in report.looked for text in each.notes)]
    return {
        "tables": [f"{TABLES}/{name}" for name in tables],
        "runs": len(report.runs),
        "rows": [row.label for row in report.rows],
        "model": report.model,
        "problems": list(dict.fromkeys([report.uncompared] * bool(report.uncompared) + notes)),
    }
