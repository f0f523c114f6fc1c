"""Look at a federation before anything is trained: tables, pictures and a JSON summary.

Few clients are shown one by one; many are put in an order that shows structure
and averaged in groups, so a picture says as much about 50,000 clients as about 5.
"""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedmlic.statistics import CELLS, Statistics, Tallies, share_of, summarise
from sim.console import Grid, TextTable, client_title, plain, visible
from sim.data.federation_warnings import examine
from sim.reports.exchange import table as exchange_table
from sim.reports.figures import (
    ACCENT,
    INK,
    LIGHT,
    count_axis,
    drawing,
    name_columns,
    names_height,
    new_figure,
    plainly,
    shorten,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
    from numpy.typing import NDArray
    from rich.console import Console, RenderableType

    from fedmlic.federation import Federation

MAX_SINGLE = 40
"""Most clients that are drawn one by one."""

MAX_GROUPS = 200
"""Rows of a picture of more clients."""

MAX_NAMED = 40
"""Most labels that are named in a picture or a table."""

MAX_CLIENTS = 1000
"""Most clients that JSON lists one by one."""

MAX_CELLS = 1_000_000
"""Most pairs of client and label that ``cells.csv`` holds; above, the federation's own arrays do."""

MAX_JSON_CELLS = 50_000
"""Most pairs of client and label in JSON."""

MAX_COLUMNS = 16
"""Most labels that a table has columns for."""

_CHUNK_ENTRIES = 1 << 22


def describe(
    federation: Federation,
    out: Path | None = None,
    console: Console | None = None,
    method: str = "",
    exchanged: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Report what a federation's partition and regime achieved; clients that are named owners bear their names.

    Args:
        federation: a built federation.
        out: folder for pictures (``sizes.png``, ``skew.png``, ``prevalence.png``,
            ``positives.png``, ``known.png``, ``budget.png`` and, where anything is wrong,
            ``wrong.png``), ``summary.json`` (what is returned), ``labels.csv``, ``clients.csv``
            and ``cells.csv``; ``None`` writes nothing.
        console: where tables are printed; ``None`` prints nothing.
        method: what clients are to be trained by; it may be what a warning is about. Empty for none.
        exchanged: what ``sim.reports.exchange`` counted of the network, to be shown with the rest.

    Returns:
        JSON values: ``warnings`` (sentences), ``untrained_labels`` and ``unannotated_labels``
        (names), ``federation`` (settings and the partition's notes), ``summary``, ``labels``,
        ``clients`` (up to 1,000 of them), ``cells`` (per client and label what
        ``fedmlic.statistics.CELLS`` names, as ``[clients][labels]``; ``None`` above 50,000
        pairs), ``arrays`` (the files that hold the same in full), ``exchange`` (as given) and
        ``files`` (paths written).

    Raises:
        InputError: on a device's own images, whose truth is unknown.
    """
    tallies, found = federation.tallies(), examine(federation, method)
    statistics = summarise(tallies, federation.label_names)
    if federation.client_names:
        statistics.clients.insert(1, "name", list(federation.client_names))
    elsewhere = {"files", "label_names", "client_names", "warnings", "unannotated_labels"}
    settings = {name: value for name, value in federation.manifest.items() if name not in elsewhere}
    report = {
        "federation": settings,
        "warnings": found.warnings,
        "untrained_labels": found.untrained,
        "unannotated_labels": found.unannotated,
        **statistics.to_json(MAX_CLIENTS),
        **_cells(federation, tallies),
        **({} if exchanged is None else {"exchange": dict(exchanged)}),
        "files": [],
    }
    if console is not None:
        cells = _cell_tables(tallies, federation.label_names, federation.client_names)
        messages = [] if exchanged is None else [exchange_table(exchanged)]
        for shown in [*_tables(settings, statistics), *cells, *messages]:
            console.print(shown)
    if out is not None:
        report["files"] = [str(path) for path in _write(out, federation, tallies, statistics, report)]
    return report


def _cells(federation: Federation, tallies: Tallies) -> dict[str, Any]:
    """Counts per client and label, or where they are."""
    small = tallies.known.size <= MAX_JSON_CELLS
    cells = {name: getattr(tallies, name).tolist() for name in CELLS} if small else None
    return {
        "cells": cells,
        "arrays": {name: str((federation.path or Path()) / f"tallies.{name}.npy") for name in CELLS},
    }


def _write_cells(
    out: Path, tallies: Tallies, label_names: tuple[str, ...], client_names: tuple[str, ...] = ()
) -> list[str]:
    """``cells.csv``: a row per client and label, client after client."""
    import pandas as pd  # --json without --out needs no tables

    num_clients, num_labels = tallies.known.shape
    if num_clients * num_labels > MAX_CELLS:
        return []
    columns = {
        "client": np.repeat(np.arange(num_clients), num_labels),
        **({"name": np.repeat(np.array(client_names), num_labels)} if client_names else {}),
        "label": np.tile(np.array(label_names), num_clients),
        "images": np.repeat(tallies.images, num_labels),
        **{name: getattr(tallies, name).ravel() for name in CELLS},
    }
    pd.DataFrame(columns).to_csv(out / "cells.csv", index=False)
    return ["cells.csv"]


def _write(
    out: Path, federation: Federation, tallies: Tallies, statistics: Statistics, report: dict[str, Any]
) -> list[Path]:
    out.mkdir(parents=True, exist_ok=True)
    figures = draw(federation, tallies, statistics)
    with drawing():
        for name, figure in figures.items():
            figure.savefig(out / f"{name}.png", dpi=150)
    statistics.labels.to_csv(out / "labels.csv", index=False)
    statistics.clients.to_csv(out / "clients.csv", index=False)
    (out / "summary.json").write_text(json.dumps(report, indent=1, ensure_ascii=False), encoding="utf-8")
    cells = _write_cells(out, tallies, federation.label_names, federation.client_names)
    pictures = [f"{name}.png" for name in figures]
    return [out / name for name in (*pictures, "labels.csv", "clients.csv", "summary.json", *cells)]


def draw(
    federation: Federation, tallies: Tallies | None = None, statistics: Statistics | None = None
) -> dict[str, Figure]:
    """Pictures of who holds what and which labels they see, by name.

    Args:
        federation: a built federation.
        tallies: its counts, where they are there already.
        statistics: what is made of them, where it is there already.

    Returns:
        ``sizes``, ``skew``, ``prevalence``, ``positives``, ``known``, ``budget``; ``wrong`` where anything is.

    Raises:
        InputError: on a device's own images, whose truth is unknown.
    """
    tallies = tallies or federation.tallies()
    statistics = statistics or summarise(tallies, federation.label_names)
    title = "{partition}, {regime}, seed {seed}".format(**federation.manifest["identity"])
    title = visible(f"{federation.corpus.name}: {title}")
    names, rows = federation.label_names, _rows(tallies, federation.client_names)
    with drawing():
        figures = {
            "sizes": _sizes_figure(tallies, federation.client_names),
            "skew": _skew_figure(statistics),
            "prevalence": _prevalence_figure(tallies, names),
            "positives": _positives_figure(tallies, names, rows),
            "known": _known_figure(tallies, names, rows),
            "budget": _budget_figure(tallies, names, rows),
            **({"wrong": _wrong_figure(tallies, names, rows)} if tallies.wrong.any() else {}),
        }
        for figure in figures.values():
            figure.suptitle(textwrap.fill(title, int(13 * figure.get_figwidth())), fontsize=9, color="0.4")
    return figures


# Tables


def _tables(settings: dict[str, Any], statistics: Statistics) -> list[RenderableType]:
    hidden = len(statistics.labels) - MAX_NAMED
    remark = f"... and {hidden:,} labels with fewer positives (--out writes all to labels.csv)"
    more = [plain(remark)] if hidden > 0 else []
    return [_overview(settings, statistics.summary), _client_table(statistics), _label_table(statistics), *more]


def _overview(settings: dict[str, Any], summary: dict[str, Any]) -> TextTable:
    table = TextTable("Federation", "", "", show_header=False)
    identity = settings["identity"]
    rows = {
        "data set": settings["corpus"]["name"],
        "partition": identity["partition"],
        "regime": identity["regime"],
        "seed": str(identity["seed"]),
        "clients": f"{summary['num_clients']:,}",
        "training images": f"{summary['num_images']:,}",
        "held-out images": f"{summary['num_holdout_images']:,}",
        "images left out": f"{settings['images_left_out']:,}",
        "annotations": f"{summary['num_annotations']:,} ({summary['known_fraction']:.1%} of all entries)",
        "annotations that say present": f"{summary['num_positives']:,}",
        **_truth_rows(summary),
        "size skew (Gini)": f"{summary['size_gini']:.3f}",
        "label skew between clients (JS)": _number(summary["pairwise_js_true"]["mean"]),
        "annotation budget": f"{summary['budget']:,} looks ({summary['budget'] / summary['num_images']:.3g} per image)",
        "clients without annotation": f"{summary['clients_without_annotation']:,}",
        "labels without annotation": f"{summary['labels_without_annotation']:,} of {summary['num_labels']:,}",
    }
    rows |= {f"partition: {name.replace('_', ' ')}": f"{value:,}" for name, value in settings["notes"].items()}
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _truth_rows(summary: dict[str, Any]) -> dict[str, str]:
    """What the data set's own labels say; where these leave entries open, that too."""
    entries = summary["num_images"] * summary["num_labels"]
    known, checkable = summary["num_true_known"], summary["num_checkable"]
    everything = known == entries
    of_known = "all entries" if everything else "the entries that the data set knows"
    prevalence = "-" if summary["prevalence"] is None else f"{summary['prevalence']:.1%}"
    rows = {
        "present in the data set's labels": f"{summary['num_true_positives']:,} ({prevalence} of {of_known})",
        "wrong annotations": f"{summary['num_wrong']:,} ({summary['wrong_fraction']:.2%} of "
        + ("annotations)" if checkable == summary["num_annotations"] else f"{checkable:,} that can be checked)"),
        "images without a label" if everything else "images without a label known to be present": (
            f"{summary['empty_fraction']:.1%}"
        ),
    }
    if not everything:
        rows = {"entries that the data set knows": f"{known:,} ({known / max(entries, 1):.1%} of all)", **rows}
    return rows


QUANTITIES = {
    "images": "training images",
    "annotations": "annotations",
    "known_fraction": "known fraction",
    "labels_annotated": "labels annotated",
    "positives": "known positives",
    "wrong": "wrong annotations",
    "budget": "annotation budget (looks)",
    "cardinality": "present labels per image",
    "js_true": "label skew (JS), truth",
    "js_known": "label skew (JS), known",
    "phi_distance": "co-occurrence skew (phi)",
    "phi_frobenius": "co-occurrence (Frobenius)",
    "empty_fraction": "images without a label",
}
"""Per-client quantities of a summary, as tables name them."""


def _client_table(statistics: Statistics) -> Grid:
    columns = ("min", "p05", "median", "mean", "p95", "max")
    rows, undefined = [], []
    for quantity, name in QUANTITIES.items():
        found = statistics.summary["clients"][quantity]
        rows.append([name, *(_number(found[column]) for column in columns)])
        if found["undefined"]:
            undefined.append(f"{name} at {found['undefined']:,}")
    caption = f"undefined at some clients: {'; '.join(undefined)}" if undefined else ""
    return Grid("Per client", ("", *columns), rows, caption)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value == round(value) or value >= 1000 else f"{value:.3g}"


def _label_table(statistics: Statistics) -> Grid:
    heads = (
        "label",
        "present in truth",
        "% of known in truth",
        "annotated",
        "annotated present",
        "wrong",
        "budget",
        "clients annotating",
        "clients without positives",
    )
    labels = statistics.labels
    shown = labels if len(labels) <= MAX_NAMED else labels.nlargest(MAX_NAMED, "true_positives")
    rows = [
        [
            str(row["label"]),
            f"{row['true_positives']:,}",
            "-" if np.isnan(row["prevalence"]) else f"{row['prevalence']:.1%}",
            f"{row['known_fraction']:.1%}",
            f"{row['positives']:,}",
            f"{row['wrong']:,}",
            f"{row['budget']:,}",
            f"{row['clients_annotating']:,}",
            f"{row['zero_true_positives_fraction']:.1%}",
        ]
        for row in shown.to_dict("records")
    ]
    return Grid("Per label", heads, rows)


def _cell_tables(tallies: Tallies, label_names: tuple[str, ...], client_names: Sequence[str] = ()) -> list[Grid]:
    """Clients against labels, where there are few of both."""
    num_clients, num_labels = tallies.known.shape
    if num_clients > MAX_SINGLE or num_labels > MAX_COLUMNS:
        return []
    title = "Per client and label: known positives of known entries (wrong ones)"
    budget = tallies.budget.sum(axis=1, dtype=np.int64)
    rows = []
    for client in range(num_clients):
        counts = zip(tallies.positives[client], tallies.known[client], tallies.wrong[client], strict=True)
        cells = ["-" if not known else f"{some}/{known}" + f" ({bad})" * bool(bad) for some, known, bad in counts]
        name = client_title(client, client_names)
        rows.append([name, f"{tallies.images[client]:,}", f"{budget[client]:,}", *cells])
    heads = ("client", "images", "budget", *label_names)
    return [Grid(title, heads, rows, first="left" if client_names else "right")]


# Pictures


class _Rows(NamedTuple):
    """How clients become rows of a picture.

    Attributes:
        order: client ids from top to bottom.
        starts: where each row's group begins in ``order``.
        caption: what the vertical axis says.
        names: one per row, empty for groups.
    """

    order: NDArray[np.int64]
    starts: NDArray[np.int64]
    caption: str
    names: list[str]

    def mean(self, values: NDArray[Any], per: NDArray[Any] | None = None) -> NDArray[np.float64]:
        """float64 ``[rows, labels]``: the mean over each row's clients of ``[clients, labels]`` values.

        ``per``, one number per client, divides them first. One row is in memory at a time.
        """
        out = np.empty((len(self.starts), values.shape[1]))
        for row, clients in enumerate(np.split(self.order, self.starts[1:])):
            found = values[clients] if per is None else values[clients] / per[clients, None]
            out[row] = found.mean(axis=0, dtype=np.float64)
        return out


def _rows(tallies: Tallies, client_names: Sequence[str] = ()) -> _Rows:
    """Each client a row, or groups of clients with the same characteristic label side by side."""
    num_clients = len(tallies.images)
    if num_clients <= MAX_SINGLE:
        every = np.arange(num_clients)
        return _Rows(every, every, "client", [client_title(client, client_names) for client in every.tolist()])
    label, most = _characteristic(tallies)
    order = np.lexsort((-most, label))
    groups = min(MAX_GROUPS, num_clients)
    starts = np.arange(groups) * num_clients // groups
    size = "" if groups == num_clients else f", {num_clients / groups:,.0f} per row"
    return _Rows(order, starts, f"{num_clients:,} clients by characteristic label{size}", [])


def _characteristic(tallies: Tallies) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Per client: the label that is commonest there compared to overall, and by how much."""
    num_clients, num_labels = tallies.true_positives.shape
    sums = (counts.sum(axis=0, dtype=np.int64) for counts in (tallies.true_positives, tallies.true_known))
    overall = np.nan_to_num(share_of(*sums))
    label, most = np.zeros(num_clients, dtype=np.int64), np.zeros(num_clients)
    step = max(1, _CHUNK_ENTRIES // max(1, num_labels))
    for start in range(0, num_clients if num_labels else 0, step):
        here = slice(start, start + step)
        excess = np.nan_to_num(share_of(tallies.true_positives[here], tallies.true_known[here]) - overall)
        label[here], most[here] = excess.argmax(axis=1), excess.max(axis=1)
    return label, most


class _Columns(NamedTuple):
    """Label columns in drawing order, their names (if they fit) and the axis caption."""

    order: NDArray[np.int64]
    names: list[str]
    caption: str


class _Style(NamedTuple):
    """A colour map's name and its scale."""

    colours: str
    norm: Normalize


def _columns(tallies: Tallies, names: tuple[str, ...]) -> _Columns:
    if len(names) <= MAX_NAMED:
        return _Columns(np.arange(len(names)), list(names), "label")
    order = np.argsort(-tallies.true_positives.sum(axis=0, dtype=np.int64), kind="stable")
    return _Columns(order, [], f"{len(names):,} labels, most frequent first")


def _heat_map(axis: Axes, values: NDArray[np.float64], rows: _Rows, columns: _Columns, style: _Style) -> AxesImage:
    drawn = axis.imshow(values, aspect="auto", interpolation="nearest", cmap=style.colours, norm=style.norm)
    names = columns.names
    axis.set_xlabel(columns.caption)
    axis.set_ylabel(rows.caption)
    axis.set_yticks(range(len(rows.names)), rows.names)
    name_columns(axis, names)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    return drawn


def _map_size(rows: _Rows, columns: _Columns) -> tuple[float, float]:
    height = min(9.0, 3.0 + 0.22 * len(rows.starts)) + names_height(columns.names)
    return min(12.0, 4.0 + 0.3 * len(columns.order)), height


def _positives_figure(tallies: Tallies, label_names: tuple[str, ...], rows: _Rows | None = None) -> Figure:
    rows = rows or _rows(tallies)
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import LogLocator, NullLocator

    columns = _columns(tallies, label_names)
    values = rows.mean(tallies.positives)[:, columns.order]
    figure, (axis,) = new_figure(*_map_size(rows, columns))
    positive = values[values > 0]
    low, high = (float(positive.min()), float(positive.max())) if len(positive) else (1.0, 1.0)
    style = _Style("viridis", LogNorm(low, max(high, low * 1.5)))
    axis.set_facecolor("0.92")
    drawn = _heat_map(axis, np.ma.masked_equal(values, 0), rows, columns, style)
    each = "images" if rows.names else "images per client, mean of the row"
    label = f"known positives ({each}); grey: none"
    bar = figure.colorbar(drawn, ax=axis, label=label, ticks=LogLocator(subs=(1, 2, 5)), format=plainly)
    bar.ax.yaxis.set_minor_locator(NullLocator())
    axis.set_title("Which labels clients know to be present")
    return figure


class _Map(NamedTuple):
    """What a heat map of clients and labels shows.

    Attributes:
        cells: float64 ``[rows, labels]`` or masked, labels in the order of the data set.
        colours: a colour map's name.
        top: upper end of the scale.
        bar: what the colour bar says.
        title: what the map says.
    """

    cells: NDArray[np.float64]
    colours: str
    top: float
    bar: str
    title: str


def _map_and_more(rows: _Rows, columns: _Columns, shown: _Map) -> tuple[Figure, Axes]:
    """A heat map and an empty axis to its right."""
    from matplotlib.colors import Normalize

    width, height = _map_size(rows, columns)
    figure, (left, right) = new_figure(width + 4.5, height, 2)
    left.set_facecolor("0.92")
    style = _Style(shown.colours, Normalize(0, shown.top))
    drawn = _heat_map(left, shown.cells[:, columns.order], rows, columns, style)
    figure.colorbar(drawn, ax=left, label=shown.bar)
    left.set_title(shown.title)
    return figure, right


def _known_figure(tallies: Tallies, label_names: tuple[str, ...], rows: _Rows | None = None) -> Figure:
    rows = rows or _rows(tallies)
    num_labels = len(label_names)
    values = 100 * rows.mean(tallies.known, per=tallies.images)
    bar, title = "known entries (% of images)", "Which labels clients annotate"
    figure, right = _map_and_more(rows, _columns(tallies, label_names), _Map(values, "Blues", _top(values), bar, title))
    entries = np.maximum(tallies.images * num_labels, 1)
    shares = 100 * tallies.known.sum(axis=1, dtype=np.int64) / entries
    wrong = 100 * tallies.wrong.sum(axis=1, dtype=np.int64) / entries
    _known_shares(right, shares, wrong, rows)
    return figure


WRONG = "known but wrong"


def _top(percentages: NDArray[np.float64]) -> float:
    """Upper end of a percentage scale: 100, unless everything is small."""
    highest = float(percentages.max(initial=0))
    return 100.0 if highest > 50 or highest == 0 else highest


def _known_shares(axis: Axes, shares: NDArray[np.float64], wrong: NDArray[np.float64], rows: _Rows) -> None:
    """Known percentage per client and how much of it is wrong: bars beside the heat map, or a histogram."""
    top = min(100.0, 1.05 * _top(shares))
    axis.set_xlabel("known entries (% of a client's images x labels)")
    axis.set_xlim(0, top)
    if rows.names:
        _bars(axis, shares, rows)
        axis.barh(range(len(shares)), wrong, color=ACCENT, label=WRONG)
    else:
        bins = np.linspace(0, top, 41).tolist()
        axis.hist(shares, bins=bins, color=INK, label="known")
        if wrong.any():
            axis.hist(wrong, bins=bins, color=ACCENT, alpha=0.7, label=WRONG)
        axis.set_ylabel("clients")
        count_axis(axis.yaxis, log=False)
    axis.set_title(f"How much clients annotate (mean {shares.mean():.3g} %)")
    if wrong.any():
        axis.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.06), ncols=2)


def _bars(axis: Axes, values: NDArray[Any], rows: _Rows) -> None:
    """One bar per client, beside the rows of a heat map."""
    axis.barh(range(len(values)), values, color=INK, label="known")
    axis.set_yticks(range(len(values)), rows.names)
    axis.set_ylim(len(values) - 0.5, -0.5)
    axis.set_ylabel("client")


def _counts(axis: Axes, values: NDArray[np.int64]) -> None:
    """How many clients have which whole number, on a log scale where the numbers differ much."""
    from matplotlib.ticker import NullFormatter

    low, high = int(values.min()), int(values.max())
    edges = _size_bins(values)
    axis.hist(values, bins=edges.tolist(), color=INK, edgecolor="white", linewidth=0.5)
    if high > 20 * max(low, 1):
        # Zero has its place on the scale, left of one.
        axis.set_xscale("symlog" if low == 0 else "log", **({"linthresh": 1.0} if low == 0 else {}))
        axis.set_xlim(edges[0], edges[-1])
        axis.xaxis.set_major_formatter(plainly)
        axis.xaxis.set_minor_formatter(NullFormatter())
    else:
        count_axis(axis.xaxis, log=False)
    axis.set_ylabel("clients")
    count_axis(axis.yaxis, log=False)


def _budget_figure(tallies: Tallies, label_names: tuple[str, ...], rows: _Rows | None = None) -> Figure:
    rows = rows or _rows(tallies)
    values = rows.mean(tallies.budget, per=tallies.images)
    bar = "looks per image" if rows.names else "looks per image, mean of the row"
    shown = _Map(values, "Purples", max(1.0, float(values.max(initial=0))), bar, "Where the annotation budget went")
    figure, right = _map_and_more(rows, _columns(tallies, label_names), shown)
    spent = tallies.budget.sum(axis=1, dtype=np.int64)
    right.set_xlabel("looks of a client")
    if rows.names:
        _bars(right, spent, rows)
        right.xaxis.set_major_formatter(plainly)
    else:
        _counts(right, spent)
        right.axvline(float(np.median(spent)), color=ACCENT, linestyle="--", label=f"median {np.median(spent):,.0f}")
        right.legend(frameon=False)
    right.set_title(f"{spent.sum():,} looks in all")
    return figure


def _wrong_figure(tallies: Tallies, label_names: tuple[str, ...], rows: _Rows | None = None) -> Figure:
    rows = rows or _rows(tallies)
    columns = _columns(tallies, label_names)
    checkable = rows.mean(tallies.checkable)
    shares = 100 * rows.mean(tallies.wrong) / np.where(checkable == 0, 1, checkable)
    values = np.ma.masked_where(checkable == 0, shares)
    what = _checked(tallies)
    bar, title = f"wrong (% of {what}); grey: none", "Where annotations are wrong"
    figure, right = _map_and_more(rows, columns, _Map(values, "Reds", _top(values.filled(0)), bar, title))
    totals = np.maximum(tallies.checkable.sum(axis=0, dtype=np.int64), 1)
    shares = 100 * tallies.wrong.sum(axis=0, dtype=np.int64) / totals
    shown = np.argsort(-shares, kind="stable")[:MAX_NAMED]
    right.barh(range(len(shown)), shares[shown], color=ACCENT)
    right.set_yticks(range(len(shown)), [shorten(label_names[label]) for label in shown])
    right.set_ylim(len(shown) - 0.5, -0.5)
    right.set_xlabel(f"wrong (% of the label's {what})")
    right.set_title("Labels, most wrong first")
    return figure


def _checked(tallies: Tallies) -> str:
    """What a share of wrong annotations runs over."""
    everything = int(tallies.checkable.sum(dtype=np.int64)) == int(tallies.known.sum(dtype=np.int64))
    return "annotations" if everything else "annotations that the data set can check"


SKEWS = {
    "js_true": "label skew, truth\n(JS distance to all clients)",
    "js_known": "label skew, known labels\n(JS distance to all clients)",
    "phi_distance": "co-occurrence skew\n(mean |phi - phi of all|)",
}
"""Skew numbers of a client, as pictures name them."""


def _skew_figure(statistics: Statistics) -> Figure:
    figure, axes = new_figure(12, 4.5, len(SKEWS))
    for axis, (quantity, name) in zip(axes, SKEWS.items(), strict=True):
        values = statistics.clients[quantity].to_numpy()
        defined = values[~np.isnan(values)]
        axis.hist(defined, bins=np.linspace(0, max(1.0, defined.max(initial=0)), 41).tolist(), color=INK)
        axis.set_xlabel(name)
        axis.set_ylabel("clients")
        count_axis(axis.yaxis, log=False)
        if len(defined):
            axis.axvline(float(np.median(defined)), color=ACCENT, linestyle="--")
            title = f"median {np.median(defined):.3g}"
        else:
            title = "not defined"
        missing = len(values) - len(defined)
        axis.set_title(title + (f"\n({missing:,} clients have none)" if missing else ""))
    return figure


def _sizes_figure(tallies: Tallies, client_names: Sequence[str] = ()) -> Figure:
    sizes = tallies.images
    single = len(sizes) <= MAX_SINGLE
    figure, (axis,) = new_figure(max(8.0, 2.0 + 0.25 * len(sizes)) if single else 8.0, 4.5)
    if single:
        order = np.argsort(-sizes, kind="stable")
        axis.bar(range(len(sizes)), sizes[order], color=INK, label="training")
        held = tallies.holdout_images[order]
        axis.bar(range(len(sizes)), held, bottom=sizes[order], color=LIGHT, label="held out")
        titles = [shorten(visible(client_title(client, client_names))) for client in order.tolist()]
        axis.set_xticks(range(len(sizes)), titles, rotation=90 if client_names else 0, fontsize=8)
        axis.set_xlabel("client, largest first")
        axis.set_ylabel("images")
    else:
        _counts(axis, sizes)
        axis.set_xlabel("training images of a client")
    middle = float(np.median(sizes))
    line = axis.axhline if single else axis.axvline
    line(middle, color=ACCENT, linestyle="--", label=f"median {middle:,.0f} training images")
    axis.legend(frameon=False)
    spread = f"{sizes.min():,} to {sizes.max():,} each"
    axis.set_title(f"Client sizes: {len(sizes):,} clients, {sizes.sum():,} training images, {spread}")
    return figure


def _size_bins(sizes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Edges between whole numbers: equally wide or, where sizes differ much, 0, 1, 2, 3-4, 5-8, 9-16, ..."""
    low, high = int(sizes.min()), int(sizes.max())
    if high > 20 * max(low, 1):
        doubling = 2 ** np.arange(0, high.bit_length() + 1)
        edges = np.concatenate(([-1, 0], doubling[: np.searchsorted(doubling, high) + 1])) + 1.0
        edges = edges[max(0, int(np.searchsorted(edges, low, side="right")) - 1) :]
    else:
        edges = np.round(np.linspace(low, high + 1, min(41, high - low + 2)))
    return np.unique(edges) - 0.5


def _quantiles(shares: NDArray[np.float64], levels: tuple[float, ...]) -> NDArray[np.float64]:
    """float64 ``[levels, labels]``: quantiles over the clients that have a share, NaN without any."""
    columns = [column[~np.isnan(column)] for column in shares.T]
    return np.array([np.quantile(c, levels) if len(c) else np.full(len(levels), np.nan) for c in columns]).T.reshape(
        len(levels), len(columns)
    )


def _prevalence_figure(tallies: Tallies, label_names: tuple[str, ...]) -> Figure:
    overall = tallies.true_positives.sum(axis=0, dtype=np.int64)
    shown = np.argsort(-overall, kind="stable")[:MAX_NAMED]
    share = 100 * share_of(tallies.true_positives[:, shown], tallies.true_known[:, shown])
    whole = 100 * share_of(overall[shown], tallies.true_known[:, shown].sum(axis=0, dtype=np.int64))
    complete = int(tallies.true_known.sum(dtype=np.int64)) == int(tallies.images.sum()) * tallies.known.shape[1]
    places = np.arange(len(shown))
    names = [label_names[label] for label in shown]
    figure, (axis,) = new_figure(min(12.0, 8.5 + 0.1 * len(shown)), 5 + names_height(names))
    low, first, middle, third, high = _quantiles(share, (0.05, 0.25, 0.5, 0.75, 0.95))
    axis.vlines(places, low, high, color=LIGHT, linewidth=2, label="5 % to 95 % of clients")
    axis.vlines(places, first, third, color=INK, linewidth=6, label="middle half of clients")
    dots: dict[str, Any] = {"markeredgecolor": INK, "markersize": 4, "clip_on": False, "zorder": 3}
    axis.plot(places, middle, "o", color="white", label="median client", **dots)
    axis.plot(places, whole, "_", color=ACCENT, markersize=14, markeredgewidth=2.5, label="all clients together")
    name_columns(axis, names)
    axis.set_xlabel("label, most frequent first")
    of = "of training images" if complete else "of the training images of which the data set knows"
    axis.set_ylabel(f"with the label in the data set (%\n{of})")
    axis.set_ylim(bottom=0)
    figure.legend(frameon=False, loc="outside lower center", ncols=4)
    some = f" (the {len(shown)} most frequent of {len(label_names):,})" if len(shown) < len(label_names) else ""
    axis.set_title(f"How common labels are at clients and overall{some}")
    return figure
