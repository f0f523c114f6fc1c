"""What all pictures share: colours, empty figures, names as they are, and how files are written."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sim.console import cut, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

INK, ACCENT, LIGHT = "#1f4e79", "#d1495b", "#9dbbd8"

OTHER_SCRIPTS = ("Noto Sans", "Source Han Sans", "WenQuanYi", "Microsoft YaHei", "SimHei", "PingFang", "Hiragino Sans")
"""Begin the names of fonts that hold letters which matplotlib's own font lacks."""


@contextmanager
def drawing() -> Iterator[None]:
    """While figures are made and written: no text is a formula, and letters come from any font that has them."""
    import matplotlib as mpl
    from matplotlib.font_manager import fontManager

    others = sorted({font.name for font in fontManager.ttflist if font.name.startswith(OTHER_SCRIPTS)})
    style: Any = {"text.parse_math": False, "font.family": ["DejaVu Sans", *others]}
    with mpl.rc_context(style), warnings.catch_warnings():
        # A letter that no font has is drawn as an empty box; a line per letter and picture helps nobody.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        yield


def new_figure(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of so many inches with axes side by side, which a notebook shows."""
    from sim.reports.picture import Picture  # no pyplot: it keeps global state

    figure = Picture(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, list(axes)


def shorten(text: str, width: int = 28) -> str:
    """A name on one line, at most ``width`` letters.

    >>> shorten("Enlarged Cardiomediastinum, left", 18)
    'Enlarged...m, left'
    """
    return cut(" ".join(visible(text).split()), width)


def names_height(names: Sequence[str]) -> float:
    """Inches that names below columns need beyond those of a few letters."""
    return 0.085 * max(0, max((len(shorten(name)) for name in names), default=0) - 8)


def plainly(value: float, place: object = None) -> str:
    """A tick's number as people write it: 20, not 2 x 10^1."""
    del place
    return f"{value:,g}"


def count_axis(axis: Axis, *, log: bool) -> None:
    """Ticks at whole numbers, few enough to stand apart; on a logarithmic axis at 1, 2, 5, 10, ..."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    if log:
        low, high = axis.get_view_interval()
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,)))
        axis.set_minor_formatter(NullFormatter())
        axis.set_major_formatter(lambda value, place: plainly(value, place) if value >= 1 else "")
    else:
        axis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
        axis.set_major_formatter(plainly)


def name_columns(axis: Axes, names: Sequence[str]) -> None:
    """Names below a picture's columns, each ending at its column."""
    upright = len(names) > 10
    options: dict[str, Any] = (
        {"rotation": 90} if upright else {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    )
    axis.set_xticks(range(len(names)), [shorten(name) for name in names], **options)
    if len(names) > 25:
        axis.tick_params(axis="x", labelsize=8)
