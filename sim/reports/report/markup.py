"""HTML that is well formed and in which every text is escaped: only what ``element`` made is markup."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence

from sim.console import visible

VOID = {"br", "hr", "img", "input", "link", "meta"}


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Child = str | Markup | None
Value = str | int | float | bool | None


def escaped(text: object) -> Markup:
    """Any text as HTML; what is no letter (control characters, half of a surrogate pair) as an escape.

    >>> escaped('<b>&"')
    '&lt;b&gt;&amp;&quot;'
    """
    clean = visible(str(text)).encode("utf-8", "backslashreplace").decode()
    return Markup(html.escape(clean, quote=True))


def element(name: str, /, *children: Child, **attributes: Value) -> Markup:
    """One element; children that are not ``Markup`` are escaped.

    Attributes: ``class_`` is ``class``, other underscores are dashes; None and False leave one out, True gives it no
    value.

    >>> element("p", "a < b", class_="note", hidden=True)
    '<p class="note" hidden>a &lt; b</p>'
    """
    parts = [f"<{name}"]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        named = key.rstrip("_").replace("_", "-")
        parts.append(f" {named}" if value is True else f' {named}="{escaped(value)}"')
    parts.append(">")
    if name in VOID:
        return Markup("".join(parts))
    return Markup("".join(parts) + joined(children) + f"</{name}>")


def joined(children: Iterable[Child]) -> Markup:
    """Children one after another."""
    return Markup(
        "".join(child if isinstance(child, Markup) else escaped(child) for child in children if child is not None)
    )


def named(text: object) -> Markup:
    """A name from data: of any script and direction, apart from the text around it."""
    return element("bdi", str(text))


def number(value: float | None, digits: int = 3) -> str:
    """A number for people; a dash where it is not defined.

    >>> number(0.12345), number(float("nan")), number(1234567)
    ('0.123', '-', '1,234,567')
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.{digits}f}"


LONG = 20
"""Letters of a cell from which on its column is wide."""

Cell = str | Markup | float | None


def table(
    caption: str, heads: Sequence[str], rows: Sequence[Sequence[Cell]], *, sort: bool = True, digits: int = 3
) -> Markup:
    """A table whose first column names its rows.

    Args:
        caption: what it shows.
        heads: of the columns.
        rows: cells; numbers are aligned and formatted, and sorted by their full value.
        sort: whether a reader may sort it.
        digits: of floats.
    """
    head = element("tr", *(element("th", name, scope="col") for name in heads))
    body = [
        element("tr", _cell(row[0], digits, "th"), *(_cell(cell, digits, "td") for cell in row[1:])) for row in rows
    ]
    made = element(
        "table",
        element("caption", caption),
        element("thead", head),
        element("tbody", *body),
        class_="sortable" if sort and len(rows) > 2 else None,
    )
    return element("div", made, class_="scroll", tabindex=0, role="region", aria_label=caption)


def _cell(cell: Cell, digits: int, tag: str) -> Markup:
    scope = "row" if tag == "th" else None
    if cell is None or isinstance(cell, (int, float)):
        value = "" if cell is None or cell != cell else f"{cell:.6g}"  # noqa: PLR0124  (NaN)
        return element(tag, number(cell, digits), class_="n", data_v=value, scope=scope)
    long = tag == "td" and not isinstance(cell, Markup) and len(cell) > LONG
    return element(tag, cell if isinstance(cell, Markup) else named(cell), scope=scope, class_="long" if long else None)


def details(summary: str, *content: Child, is_open: bool = False) -> Markup:
    """Something that opens when it is asked for."""
    return element("details", element("summary", summary), *content, open=is_open)


def note(*content: Child, kind: str = "note") -> Markup:
    """A paragraph set apart: ``note``, or ``warning`` for what a reader must not miss."""
    word = {"warning": "Warning: ", "missing": "Not shown: "}.get(kind, "")
    return element("p", element("strong", word) if word else None, *content, class_=kind)


def paragraph(*content: Child) -> Markup:
    """A paragraph."""
    return element("p", *content)


def bullets(items: Iterable[Child]) -> Markup:
    """A list."""
    return element("ul", *(element("li", item) for item in items))
