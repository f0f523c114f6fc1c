"""Where progress is shown: live in a terminal, in one output of a notebook's cell that is written anew, or nowhere."""

from __future__ import annotations

import importlib
import io
import sys
from typing import Any

from rich.console import Console

from sim.console import open_console

FIRST, LAST = 5, 10
"""Lines of a cell's output that stay: the first ones say what is played, the last ones how far it is."""

WIDTH = 100
"""Letters of a line in a notebook."""


def open_progress(*, shown: bool) -> Console:
    """The console that progress goes to.

    Args:
        shown: whether anything is shown at all.
    """
    if not shown:
        return Console(quiet=True)
    if not in_notebook():
        return open_console(stderr=True)
    plain: dict[str, Any] = {"force_jupyter": False, "force_terminal": False, "legacy_windows": False}
    return Console(file=_CellOutput(), width=WIDTH, markup=False, emoji=False, highlight=False, **plain)


def in_notebook() -> bool:
    """Whether this is the process of a notebook (a kernel of Jupyter)."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return hasattr(shell, "kernel")


class _CellOutput(io.StringIO):
    """Lines in one output of the cell that runs; a saved notebook then holds a few lines for each run."""

    def __init__(self) -> None:
        super().__init__()
        self._display = importlib.import_module("IPython.display").display
        self._handle: Any = None
        self._lines: list[str] = []
        self._open = ""

    def write(self, text: str) -> int:
        """Add text; whole lines are shown."""
        *lines, self._open = (self._open + text).split("\n")
        if lines:
            self._lines += [line.rstrip() for line in lines]
            self._show()
        return len(text)

    def _show(self) -> None:
        lines = self._lines
        if len(lines) > FIRST + LAST:
            lines = [*lines[:FIRST], "...", *lines[-LAST:]]
        shown = {"text/plain": "\n".join(lines)}
        if self._handle is None:
            self._handle = self._display(shown, raw=True, display_id=True)
        else:
            self._handle.update(shown, raw=True)
