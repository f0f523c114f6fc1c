"""A comparison as tables for the terminal, JSON, CSV, Markdown and LaTeX (booktabs)."""

from __future__ import annotations

import csv
import html
import io
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from sim.comparison.compare import Comparison, Group, Pair
from sim.console import Grid

Format = Literal["table", "csv", "markdown", "latex"]

PAIR_HEADS = ("first - second", "seeds", "difference", "95 % interval", "p", "p (Holm)", "P(better)")

MARKUP = re.compile(r"[\\`*\[\]|$~]|(?<![^\W_])_|_(?![^\W_])")
"""Letters that Markdown may take for markup; an underscore between letters it does not."""

LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {
    c: f"\\{c}" for c in "&%$#_{}"
}


def to_json(found: Comparison) -> dict[str, Any]:
    """Everything, with the values that the statistics are made of."""
    return {
        "metric": found.metric,
        "model": found.model,
        "by": list(found.by),
        "test": found.test,
        "rows": [
            {
                "label": group.label,
                "reference": group.reference,
                "mean": group.mean,
                "std": group.std,
                "values": {str(seed): value for seed, value in group.values.items()},
                "chosen": dict(group.chosen),
            }
            for group in found.groups
        ],
        "pairs": [
            {"first": pair.first, "second": pair.second, **pair.found._asdict(), "p_holm": pair.p_holm}
            for pair in found.pairs
        ],
        "best": found.best(),
        "notes": list(found.notes),
    }


def tables(found: Comparison) -> list[Grid]:
    """Tables for a terminal."""
    heads, rows = _group_rows(found, "±")
    number = {group.label: f"{place}" for place, group in enumerate(found.groups, 1)}
    grids = [Grid(_title(found), heads, [[f"{number[row[0]]}: {row[0]}", *row[1:]] for row in rows])]
    if found.pairs:
        lines = [pair_row(pair) for pair in found.pairs]
        for pair, line in zip(found.pairs, lines, strict=True):
            line[0] = f"{number[pair.first]} - {number[pair.second]}"
        grids.append(Grid(f"paired differences, {found.test} test", ("rows", *PAIR_HEADS[1:]), lines))
    return grids


def render(found: Comparison, form: Format) -> str:
    """The comparison as text of a file format."""
    return {"csv": _csv, "markdown": _markdown, "latex": _latex}[form](found)


def _title(found: Comparison) -> str:
    return f"{found.metric}, model {found.model}"


def _group_rows(found: Comparison, plus_minus: str) -> tuple[list[str], list[list[str]]]:
    keys = list(dict.fromkeys(key for group in found.groups for key in group.chosen))
    heads = [", ".join(found.by) or "row", found.metric, "seeds", *keys]
    rows = [
        [group.label, _spread(group, plus_minus), str(len(group.values)), *(group.chosen.get(key, "") for key in keys)]
        for group in found.groups
    ]
    return heads, rows


def _spread(group: Group, plus_minus: str) -> str:
    if math.isnan(group.mean):
        return "-"
    return f"{group.mean:.3f}" + ("" if math.isnan(group.std) else f" {plus_minus} {group.std:.3f}")


def pair_row(pair: Pair) -> list[str]:
    """The cells of a pair, under ``PAIR_HEADS``."""
    each = pair.found
    interval = "-" if math.isnan(each.low) else f"{each.low:+.3f} to {each.high:+.3f}"
    return [
        f"{pair.first} - {pair.second}",
        str(each.num_seeds),
        "-" if math.isnan(each.mean) else f"{each.mean:+.3f}",
        interval,
        _p(each.p),
        _p(pair.p_holm),
        "-" if math.isnan(each.improvement) else f"{each.improvement:.2f}",
    ]


def _p(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3g}"


def _csv(found: Comparison) -> str:
    """One line per row and per pair, told apart by ``kind``; numbers in full."""
    numbers = ("seeds", "mean", "std", "low", "high", "p", "p_holm", "improvement")
    heads = ["kind", "row", "against", "metric", "model", *numbers, "chosen", "values"]
    text = io.StringIO()
    writer = csv.DictWriter(text, heads, restval="")
    writer.writeheader()
    about = {"metric": found.metric, "model": found.model}
    for group in found.groups:
        shown = {
            "chosen": "; ".join(f"{key}={value}" for key, value in group.chosen.items()),
            "values": "; ".join(f"{seed}: {value!r}" for seed, value in group.values.items()),
        }
        spread = {"seeds": len(group.values), "mean": group.mean, "std": group.std}
        writer.writerow({"kind": "row", "row": group.label, **about, **spread, **shown})
    for pair in found.pairs:
        each = pair.found._asdict()
        values = {name: each[name] for name in ("mean", "low", "high", "p", "improvement")}
        line = {"kind": "difference", "row": pair.first, "against": pair.second, **about, **values}
        writer.writerow({**line, "seeds": pair.found.num_seeds, "p_holm": pair.p_holm})
    return text.getvalue()


def _markdown(found: Comparison) -> str:
    heads, rows = _group_rows(found, "±")
    best = found.best()
    strong = {(place, 1) for place, row in enumerate(rows) if row[0] == best}
    title = markdown_text(_title(found))
    parts = [f"{title}; mean ± standard deviation over seeds", "", *markdown_table(heads, rows, strong)]
    if found.pairs:
        parts += ["", f"Paired differences, {found.test} test", ""]
        parts += markdown_table(PAIR_HEADS, [pair_row(pair) for pair in found.pairs])
    parts += ["", *(f"- {markdown_text(note)}" for note in found.notes)] if found.notes else []
    return "\n".join(parts) + "\n"


def markdown_text(text: str) -> str:
    r"""A text from data on one line of Markdown, where it is shown as it is: no markup, HTML or formula.

    >>> print(markdown_text("<b>x</b> & *y*, snake_case, a|b, $z$"))
    &lt;b&gt;x&lt;/b&gt; &amp; \*y\*, snake_case, a\|b, \$z\$
    """
    marked = MARKUP.sub(r"\\\g<0>", " ".join(text.splitlines()))
    return html.escape(marked, quote=False)


def markdown_table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], strong: Collection[tuple[int, int]] = ()
) -> list[str]:
    """The lines of a table in Markdown.

    Args:
        heads: of the columns.
        rows: cells, as they are to be read.
        strong: places (row, column) of cells in bold.
    """
    cells = [
        [f"**{markdown_text(cell)}**" if (row, column) in strong else markdown_text(cell) for column, cell in each]
        for row, each in enumerate(map(enumerate, rows))
    ]
    return ["| " + " | ".join(line) + " |" for line in (list(map(markdown_text, heads)), ["---"] * len(heads), *cells)]


def _latex(found: Comparison) -> str:
    """Two booktabs tables; the row that is better than all others after correction, if there is one, is bold."""
    heads, rows = _group_rows(found, "@PM@")
    best = found.best()
    cells = [[_escaped(cell) for cell in row] for row in rows]
    for row, line in zip(rows, cells, strict=True):
        line[1] = line[1].replace("@PM@", r"$\pm$")
        if row[0] == best:
            line[1] = rf"\textbf{{{line[1]}}}"
    about = {"caption": _escaped(f"{_title(found)}. Mean and standard deviation over seeds.")}
    text = _latex_table(list(map(_escaped, heads)), cells, about)
    if found.pairs:
        lines = [list(map(_escaped, pair_row(pair))) for pair in found.pairs]
        about = {"caption": _escaped(f"Paired differences of {_title(found)}, {found.test} test.")}
        text += "\n" + _latex_table(list(map(_escaped, PAIR_HEADS)), lines, about)
    return text + "".join(f"% {note}\n" for note in found.notes)


def _latex_table(heads: Sequence[str], rows: Sequence[Sequence[str]], about: Mapping[str, str]) -> str:
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{about['caption']}}}"]
    lines += [rf"\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}", r"\toprule", " & ".join(heads) + r" \\", r"\midrule"]
    lines += [" & ".join(row) + r" \\" for row in rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def _escaped(text: str) -> str:
    return "".join(LATEX.get(letter, letter) for letter in text)
