"""What is in a corpus: tables, pictures, a sheet of sample images, and the same as JSON.

*Prevalence* of a label is its present entries over its known ones. *phi* of two labels is their
correlation over the images on which both are known:
``(n * n11 - a * b) / sqrt(a * (n - a) * b * (n - b))`` with n such images, a and b of them with the
one and the other label, n11 with both. It does not exist where a label is constant.
"""

from __future__ import annotations

import json
import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedmlic.dataset import CROWD_ONLY, DIFFICULT_ONLY, MACHINE, NOT_EXHAUSTIVE, NOT_VISIBLE, SPLITS
from fedmlic.labels import ABSENT, PRESENT, STATES, UNCERTAIN, UNKNOWN, known
from fedmlic.seeds import stream
from sim.data import corpus_summary, row_blocks, state_counts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from rich.console import Console
    from rich.table import Table

    from fedmlic.corpus import Corpus

PAIR_LABELS = 256
"""Most labels between which co-occurrence is counted: those with the most positives."""

MAX_PAIRS = 50
"""Pairs of labels that the JSON names, from either end."""

MAX_NAMED = 40
"""Most labels that are named in a picture or a table."""

SHEET_COLUMNS, SHEET_ROWS = 6, 4
SAMPLE_POOL = 5000
"""Images that the sheet's are chosen from."""

FLAG_NAMES = {
    "difficult_only": DIFFICULT_ONLY,
    "crowd_only": CROWD_ONLY,
    "not_exhaustive": NOT_EXHAUSTIVE,
    "machine": MACHINE,
    "not_visible": NOT_VISIBLE,
}

QUANTILES = {"min": 0.0, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "max": 1.0}

INK, ACCENT, LIGHT = "#1f4e79", "#d1495b", "#9dbbd8"
SPLIT_COLOURS = dict(zip(SPLITS, (INK, LIGHT, ACCENT), strict=True))


class Pairs(NamedTuple):
    """Co-occurrence among some labels.

    Attributes:
        labels: int64 ``[chosen]``, columns, most frequent first.
        both: int64 ``[chosen, chosen]``, images on which both are present.
        phi: float64 ``[chosen, chosen]``, NaN where it does not exist and on the diagonal.
    """

    labels: NDArray[np.int64]
    both: NDArray[np.int64]
    phi: NDArray[np.float64]


class Portrait(NamedTuple):
    """All numbers of a corpus that are shown.

    Attributes:
        counts: int64 ``[splits, states, labels]``.
        cardinality: int64 ``[splits, labels + 1]``, images with so many present labels.
        pairs: co-occurrence.
        flags: int64 ``[flag names, labels]``.
        owner_sizes: int64 ``[owners]``, images of each owner who has one.
    """

    counts: NDArray[np.int64]
    cardinality: NDArray[np.int64]
    pairs: Pairs
    flags: NDArray[np.int64]
    owner_sizes: NDArray[np.int64]


def describe_corpus(corpus: Corpus, out: Path | None = None, console: Console | None = None) -> dict[str, Any]:
    """Report what a corpus holds.

    Args:
        corpus: an opened corpus.
        out: folder for ``labels.png``, ``cooccurrence.png`` (of two labels or more), ``owners.png``
            (where images have owners), ``samples.png``, ``labels.csv``, ``pairs.csv`` and
            ``summary.json``; ``None`` writes nothing.
        console: where tables are printed; ``None`` prints nothing.

    Returns:
        JSON values: everything of ``fedmlic data import --json``, and ``states`` (per split),
        ``cardinality``, ``labels``, ``pairs`` (highest phi), ``avoiding`` (lowest), ``owners``
        and ``files`` (paths written).
    """
    portrait = measure(corpus)
    report = _report(corpus, portrait)
    if console is not None:
        for table in _tables(report):
            console.print(table)
    if out is not None:
        report["files"] = [str(path) for path in _write(out, corpus, portrait, report)]
    return report


# Numbers


def measure(corpus: Corpus) -> Portrait:
    """Count everything, reading the label matrix block by block."""
    counts = state_counts(corpus)
    sizes = np.bincount(corpus.owners[corpus.owners >= 0])
    return Portrait(counts, _cardinality(corpus), count_pairs(corpus, counts), _flag_counts(corpus), sizes[sizes > 0])


def _cardinality(corpus: Corpus) -> NDArray[np.int64]:
    num_labels = len(corpus.label_names)
    counts = np.zeros((len(SPLITS), num_labels + 1), dtype=np.int64)
    for place, split in enumerate(SPLITS):
        for rows in row_blocks(corpus.splits[split], num_labels):
            present = np.count_nonzero(corpus.labels.take(rows) == PRESENT, axis=1)
            counts[place] += np.bincount(present, minlength=num_labels + 1)
    return counts


def _flag_counts(corpus: Corpus) -> NDArray[np.int64]:
    num_labels = len(corpus.label_names)
    if corpus.flags is None:
        return np.zeros((len(FLAG_NAMES), num_labels), dtype=np.int64)
    label, bits = corpus.flags.label, corpus.flags.bits
    return np.stack([np.bincount(label[(bits & bit) > 0], minlength=num_labels) for bit in FLAG_NAMES.values()])


def count_pairs(corpus: Corpus, counts: NDArray[np.int64]) -> Pairs:
    """Co-occurrence among the most frequent labels, over the images of all splits."""
    positives = counts[:, 0].sum(axis=0)
    chosen = np.argsort(-positives, kind="stable")[:PAIR_LABELS]
    chosen = chosen[positives[chosen] > 0]
    size = len(chosen)
    both, one, images = (np.zeros((size, size)) for _ in range(3))
    for rows in row_blocks(range(corpus.num_images), len(corpus.label_names)):
        labels = corpus.labels.take(rows)[:, chosen]
        # Counts of a block are below 2^24, so float32 is exact.
        present = (labels == PRESENT).astype(np.float32)
        both += present.T @ present
        if labels.min(initial=0) >= 0:  # every entry is known
            one += present.sum(axis=0)[:, None]
            images += len(rows)
            continue
        is_known = known(labels).astype(np.float32)
        one += present.T @ is_known
        images += is_known.T @ is_known
    other = one.T
    spread = one * (images - one) * other * (images - other)
    phi = np.full((size, size), np.nan)
    np.divide(images * both - one * other, np.sqrt(spread), out=phi, where=spread > 0)
    np.fill_diagonal(phi, np.nan)
    return Pairs(chosen, both.astype(np.int64), phi)


def _report(corpus: Corpus, portrait: Portrait) -> dict[str, Any]:
    highest, lowest = _pair_rows(corpus, portrait.pairs)
    totals = portrait.counts.sum(axis=2)
    return {
        **corpus_summary(corpus),
        "states": {split: dict(zip(STATES, totals[place].tolist(), strict=True)) for place, split in enumerate(SPLITS)},
        "cardinality": _cardinality_report(portrait.cardinality),
        "labels": _label_rows(corpus, portrait),
        "pairs": highest,
        "avoiding": lowest,
        "owners": _owner_report(corpus, portrait.owner_sizes),
        "files": [],
    }


def _cardinality_report(counts: NDArray[np.int64]) -> dict[str, Any]:
    total = counts.sum(axis=0)
    last = int(np.flatnonzero(total)[-1]) if total.any() else 0
    number = np.arange(len(total))
    return {
        "mean": float((total * number).sum() / total.sum()),
        "max": last,
        "without_positives": int(total[0]),
        "histogram": {split: counts[place, : last + 1].tolist() for place, split in enumerate(SPLITS)},
    }


def _label_rows(corpus: Corpus, portrait: Portrait) -> list[dict[str, Any]]:
    by_state = dict(zip(STATES.values(), portrait.counts.sum(axis=0), strict=True))
    parents = corpus.parents or ("",) * len(corpus.label_names)
    rows = []
    for label, name in enumerate(corpus.label_names):
        present, absent = int(by_state[PRESENT][label]), int(by_state[ABSENT][label])
        row: dict[str, Any] = {
            "label": name,
            "positives": present,
            **{f"positives_{split}": int(portrait.counts[place, 0, label]) for place, split in enumerate(SPLITS)},
            "known": present + absent,
            "prevalence": present / (present + absent) if present + absent else None,
            "unknown": int(by_state[UNKNOWN][label]),
            "uncertain": int(by_state[UNCERTAIN][label]),
        }
        if corpus.parents:
            row["parent"] = parents[label]
        if corpus.flags is not None:
            row |= {name: int(portrait.flags[place, label]) for place, name in enumerate(FLAG_NAMES)}
        rows.append(row)
    return rows


def _pair_rows(corpus: Corpus, pairs: Pairs) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Pairs with the highest phi above 0 and with the lowest below 0."""
    first, second = np.triu_indices(len(pairs.labels), k=1)
    phi = pairs.phi[first, second]
    order = np.lexsort((second, first, -pairs.both[first, second], -np.nan_to_num(phi, nan=0.0)))
    names = corpus.label_names

    def rows(places: NDArray[np.int64]) -> list[dict[str, Any]]:
        return [
            {
                "labels": [names[pairs.labels[first[place]]], names[pairs.labels[second[place]]]],
                "phi": float(phi[place]),
                "images_with_both": int(pairs.both[first[place], second[place]]),
            }
            for place in places.tolist()
        ]

    return rows(order[phi[order] > 0][:MAX_PAIRS]), rows(order[phi[order] < 0][::-1][:MAX_PAIRS])


def _owner_report(corpus: Corpus, sizes: NDArray[np.int64]) -> dict[str, Any]:
    report: dict[str, Any] = {"owners": len(sizes), "images_without_owner": int(corpus.num_images - sizes.sum())}
    if len(sizes):
        values = np.quantile(sizes, list(QUANTILES.values())).tolist()
        report["images_per_owner"] = {"mean": float(sizes.mean()), **dict(zip(QUANTILES, values, strict=True))}
    return report


# Tables


def _table(title: str, *columns: str) -> Table:
    from rich.table import Table  # noqa: PLC0415  (--json needs no tables)

    table = Table(title=title or None, title_justify="left")
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left")
    return table


def _tables(report: Mapping[str, Any]) -> list[Table | str]:
    shown: list[Table | str] = [_overview(report), _split_table(report), _label_table(report)]
    hidden = len(report["labels"]) - MAX_NAMED
    if hidden > 0:
        shown.append(f"... and {hidden:,} labels with fewer positives (--out writes all to labels.csv)")
    if report["pairs"]:
        shown.append(_pair_table(report["pairs"][:10]))
    return shown


def _overview(report: Mapping[str, Any]) -> Table:
    table = _table("Corpus", "", "")
    table.show_header = False
    owners, cardinality = report["owners"], report["cardinality"]
    rows = {
        "data set": f"{report['name']} (version {report['version']})",
        "licence": report["licence"],
        "folder": report["corpus"],
        "images": f"{report['num_images']:,}, {' x '.join(map(str, report['image_shape']))}, {report['storage']}",
        "labels": f"{report['num_labels']:,}",
        "labels per image": f"mean {cardinality['mean']:.2f}, at most {cardinality['max']}",
        "images without positives": f"{cardinality['without_positives']:,}",
        "objects": f"{report['num_objects']:,}",
        "owners": f"{owners['owners']:,}",
    }
    if owners["owners"]:
        per = owners["images_per_owner"]
        rows["images per owner"] = f"mean {per['mean']:.1f}, median {per['median']:g}, at most {per['max']:,.0f}"
    rows |= {"left out": f"{report['num_bad_files']:,} unreadable images"} if report["num_bad_files"] else {}
    rows |= {"equal images": f"{report['num_duplicates']:,}"} if report["num_duplicates"] else {}
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _split_table(report: Mapping[str, Any]) -> Table:
    table = _table("Per split", "split", "images", *STATES)
    for split, images in report["splits"].items():
        table.add_row(split, f"{images:,}", *(f"{count:,}" for count in report["states"][split].values()))
    return table


def _label_table(report: Mapping[str, Any]) -> Table:
    rows = report["labels"]
    flags = [name for name in FLAG_NAMES if any(row.get(name) for row in rows)]
    columns = ["positives", *(split for split in SPLITS), "prevalence", "unknown", "uncertain"]
    table = _table("Per label", "label", *columns, *(name.replace("_", " ") for name in flags))
    chosen = rows if len(rows) <= MAX_NAMED else sorted(rows, key=lambda row: -row["positives"])[:MAX_NAMED]
    for row in chosen:
        counts = [row["positives"], *(row[f"positives_{split}"] for split in SPLITS)]
        prevalence = "-" if row["prevalence"] is None else f"{row['prevalence']:.1%}"
        others = [row["unknown"], row["uncertain"], *(row[name] for name in flags)]
        cells = (*(f"{count:,}" for count in counts), prevalence, *(f"{count:,}" for count in others))
        table.add_row(_plain(row["label"]), *cells)
    return table


def _plain(text: str) -> str:
    from rich.markup import escape  # noqa: PLC0415

    return escape(text)


def _pair_table(pairs: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("Labels that occur together", "pair", "phi", "images with both")
    for pair in pairs:
        table.add_row(_plain(" + ".join(pair["labels"])), f"{pair['phi']:.3f}", f"{pair['images_with_both']:,}")
    return table


def print_summary(found: Mapping[str, Any], console: Console) -> None:
    """What ``fedmlic data import`` built."""
    title = f"{found['name']}: {found['num_images']:,} images, {found['num_labels']:,} labels"
    console.print(title, style="bold", highlight=False, markup=False)
    table = _table("", "", "")
    table.show_header = False
    for split, images in found["splits"].items():
        table.add_row(split, f"{images:,} images")
    for state in STATES:
        table.add_row(state, f"{found[f'num_{state}']:,} entries")
    for name, key in {"owners": "num_owners", "objects": "num_objects", "left out": "num_bad_files"}.items():
        if found[key]:
            table.add_row(name, f"{found[key]:,}")
    console.print(table)
    console.print(f"corpus: {found['corpus']}", highlight=False, markup=False, soft_wrap=True)
    console.print(f'dataset = "{found["dataset"]}"', highlight=False, markup=False, soft_wrap=True)


def print_check(found: Mapping[str, Any], console: Console) -> None:
    """What ``fedmlic data check`` found, up to ten problems."""
    names = ("num_images", "num_labels", "num_owners", "num_missing", "num_undecodable", "extra_files")
    table = _table("Checked", "", "")
    table.show_header = False
    for name in names:
        if name in found:
            table.add_row(name.removeprefix("num_").replace("_", " "), f"{found[name]:,}")
    for split, images in found.get("splits", {}).items():
        table.add_row(split, f"{images:,} images")
    table.add_row("modes", ", ".join(f"{mode} {count:,}" for mode, count in found["modes"].items()) or "-")
    table.add_row("turned by EXIF", f"{found['exif_turned']:,}")
    console.print(table)
    if found["ok"]:
        console.print("no problem found", style="green", highlight=False)
        return
    count = found["num_problems"]
    console.print(f"{count:,} problem{'s' if count != 1 else ''}:", style="red", highlight=False)
    for problem in found["problems"][:10]:
        console.print(f"  {problem}", highlight=False, markup=False, soft_wrap=True)
    if count > 10:
        console.print(f"  ... and {count - 10:,} more (--json has all)", highlight=False)


# Pictures


def _write(out: Path, corpus: Corpus, portrait: Portrait, report: dict[str, Any]) -> list[Path]:
    import pandas as pd  # noqa: PLC0415

    out.mkdir(parents=True, exist_ok=True)
    figures = {"labels.png": _labels_figure(corpus, portrait)}
    if len(portrait.pairs.labels) > 1:
        figures["cooccurrence.png"] = _pairs_figure(corpus, portrait)
    if len(portrait.owner_sizes):
        figures["owners.png"] = _owners_figure(portrait.owner_sizes)
    figures["samples.png"] = _samples_figure(corpus, portrait)
    for name, figure in figures.items():
        figure.savefig(out / name, dpi=150)
    pd.DataFrame(report["labels"]).to_csv(out / "labels.csv", index=False)
    pairs = [{"first": p["labels"][0], "second": p["labels"][1], **p} for p in report["pairs"] + report["avoiding"]]
    columns = ["first", "second", "phi", "images_with_both"]
    pd.DataFrame(pairs, columns=columns).to_csv(out / "pairs.csv", index=False)
    files = [out / name for name in (*figures, "labels.csv", "pairs.csv", "summary.json")]
    text = json.dumps({**report, "files": [str(path) for path in files]}, indent=1, ensure_ascii=False)
    (out / "summary.json").write_text(text, encoding="utf-8")
    return files


def _name(text: str, width: int = 28) -> str:
    """A label's name as matplotlib draws it: not too long, and no dollar begins a formula."""
    return textwrap.shorten(text, width, placeholder="...").replace("$", r"\$") or text[:width].replace("$", r"\$")


def _figure(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure  # noqa: PLC0415  (no pyplot: it keeps global state)

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, list(axes)


def _labels_figure(corpus: Corpus, portrait: Portrait) -> Figure:
    """How frequent each label is, and how many an image has."""
    positives = portrait.counts[:, 0]
    order = np.argsort(-positives.sum(axis=0), kind="stable")
    few = len(order) <= MAX_NAMED
    figure, (left, right) = _figure(13, max(4.5, 1.2 + 0.2 * len(order)) if few else 5, 2)
    if few:
        _named_bars(left, positives[:, order], [_name(corpus.label_names[label]) for label in order])
    else:
        _rank_curves(left, positives[:, order])
    _cardinality_bars(right, portrait.cardinality)
    handles, names = left.get_legend_handles_labels()
    figure.legend(handles, names, frameon=False, loc="outside lower center", ncols=len(names), markerscale=3)
    figure.suptitle(
        f"{_name(corpus.name)}: {corpus.num_images:,} images, {len(order):,} labels", fontsize=10, color="0.4"
    )
    return figure


def _named_bars(axis: Axes, positives: NDArray[np.int64], names: list[str]) -> None:
    places = np.arange(len(names))
    before = np.zeros(len(names), dtype=np.int64)
    for split, counts in zip(SPLITS, positives, strict=True):
        axis.barh(places, counts, left=before, color=SPLIT_COLOURS[split], label=split)
        before = before + counts
    axis.set_yticks(places, names, fontsize=8)
    axis.set_ylim(max(len(names), 1) - 0.5, -0.5)
    axis.set_xlabel("images with the label")
    axis.set_title("Labels, most frequent first")


def _rank_curves(axis: Axes, positives: NDArray[np.int64]) -> None:
    ranks = np.arange(1, positives.shape[1] + 1)
    for split, counts in zip(SPLITS, positives, strict=True):
        if counts.any():
            shown = np.where(counts > 0, counts, np.nan)
            axis.plot(ranks, shown, ".", markersize=3, color=SPLIT_COLOURS[split], label=split)
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axis.set_xlabel(f"{len(ranks):,} labels, most frequent of all splits first")
    axis.set_ylabel("images with the label")
    without = int((positives.sum(axis=0) == 0).sum())
    axis.set_title("Label frequencies" + (f" ({without:,} labels have none)" if without else ""))


def _cardinality_bars(axis: Axes, counts: NDArray[np.int64]) -> None:
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415

    total = counts.sum(axis=0)
    last = int(np.flatnonzero(total)[-1]) if total.any() else 0
    # A few images with very many labels must not squeeze the rest into a corner.
    share = np.cumsum(total) / total.sum()
    edge = min(last, max(int(np.searchsorted(share, 0.999)), 4))
    before = np.zeros(edge + 1, dtype=np.int64)
    for split, row in zip(SPLITS, counts, strict=True):
        axis.bar(np.arange(edge + 1), row[: edge + 1], bottom=before, color=SPLIT_COLOURS[split], width=0.9)
        before = before + row[: edge + 1]
    beyond = int(total[edge + 1 :].sum())
    more = f"; {beyond:,} images have up to {last}" if beyond else ""
    mean = (total * np.arange(len(total))).sum() / total.sum()
    axis.axvline(mean, color="0.3", linestyle="--", linewidth=1)
    axis.set_xlabel(f"present labels of an image{more}")
    axis.set_ylabel("images")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_title(f"Labels per image (mean {mean:.2f})")


def chain(phi: NDArray[np.float64]) -> NDArray[np.int64]:
    """An order in which each label stands beside the one it occurs with most, starting with the first."""
    strength = np.nan_to_num(phi, nan=-1.0)
    left = list(range(1, len(phi)))
    order = [0] if len(phi) else []
    while left:
        best = max(left, key=lambda label: strength[order[-1], label])
        left.remove(best)
        order.append(best)
    return np.array(order, dtype=np.int64)


def _pairs_figure(corpus: Corpus, portrait: Portrait) -> Figure:
    """Heat map of phi among the most frequent labels."""
    chosen = portrait.pairs.labels[:MAX_NAMED]
    phi = portrait.pairs.phi[: len(chosen), : len(chosen)]
    order = chain(phi)
    phi, names = phi[np.ix_(order, order)], [_name(corpus.label_names[chosen[place]], 20) for place in order]
    side = min(11.0, 4.0 + 0.2 * len(names))
    figure, (axis,) = _figure(side + 1.2, side)
    limit = max(float(np.nanmax(np.abs(phi))) if np.isfinite(phi).any() else 0.0, 0.05)
    axis.set_facecolor("0.85")
    drawn = axis.imshow(np.ma.masked_invalid(phi), cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
    axis.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    if len(names) <= 12:
        _write_cells(axis, phi, limit)
    figure.colorbar(drawn, ax=axis, label="phi (correlation); grey: does not exist", shrink=0.8)
    total = len(corpus.label_names)
    some = f" (the {len(names)} most frequent of {total:,})" if len(names) < total else ""
    axis.set_title(f"Which labels occur together{some}", fontsize=11)
    return figure


def _write_cells(axis: Axes, phi: NDArray[np.float64], limit: float) -> None:
    for row, column in zip(*np.nonzero(np.isfinite(phi)), strict=True):
        value = phi[row, column]
        colour = "white" if abs(value) > 0.6 * limit else "0.2"
        axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)


def _owners_figure(sizes: NDArray[np.int64]) -> Figure:
    """Owner sizes, and how much the largest of them hold."""
    figure, (left, right) = _figure(12, 4.5, 2)
    wide = sizes.max() > 20 * sizes.min()
    spaced = np.geomspace if wide else np.linspace
    edges = np.unique(np.round(spaced(sizes.min(), sizes.max() + 1, min(41, int(np.ptp(sizes)) + 2)))) - 0.5
    left.hist(sizes, bins=edges.tolist(), color=INK)
    if wide:
        left.set_xscale("log")
        left.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    middle = float(np.median(sizes))
    left.axvline(middle, color=ACCENT, linestyle="--", label=f"median {middle:,.0f}")
    left.set_xlabel("images of an owner")
    left.set_ylabel("owners")
    left.legend(frameon=False)
    left.set_title(f"{len(sizes):,} owners with {sizes.min():,} to {sizes.max():,} images")
    held = np.concatenate(([0], np.cumsum(np.sort(sizes)[::-1]))) / sizes.sum()
    right.plot(100 * np.arange(len(held)) / len(sizes), 100 * held, color=INK, linewidth=2)
    right.plot([0, 100], [0, 100], color="0.7", linestyle=":", label="all equal")
    right.set_xlabel("owners, largest first (%)")
    right.set_ylabel("their share of the images (%)")
    right.set_xlim(0, 100)
    right.set_ylim(0, 100)
    right.legend(frameon=False, loc="lower right")
    tenth = held[max(1, math.ceil(len(sizes) / 10))]
    right.set_title(f"The largest tenth holds {tenth:.0%}")
    return figure


# Sample images


def choose_samples(corpus: Corpus, portrait: Portrait, count: int) -> NDArray[np.int64]:
    """Rows of images that between them show frequent and rare labels alike; the same at every call."""
    rng = stream(0, "data/samples")
    pool = rng.permutation(corpus.num_images)[:SAMPLE_POOL]
    present = corpus.labels.take(pool) == PRESENT
    ranked = np.argsort(-portrait.counts[:, 0].sum(axis=0), kind="stable")
    ranked = ranked[present[:, ranked].any(axis=0)]
    wanted = ranked[np.linspace(0, len(ranked) - 1, count).round().astype(int)] if len(ranked) else []
    free = np.ones(len(pool), dtype=np.bool_)
    taken: list[int] = []
    for label in [*wanted, *[None] * count]:
        candidates = np.flatnonzero(free if label is None else free & present[:, label])
        if len(candidates) and len(taken) < count:
            taken.append(int(candidates[0]))
            free[taken[-1]] = False
    return np.asarray(pool[taken])


def _samples_figure(corpus: Corpus, portrait: Portrait) -> Figure:
    """A sheet of images, each with its boxes, its id and what is said of it."""
    from matplotlib.figure import Figure  # noqa: PLC0415

    rows = choose_samples(corpus, portrait, SHEET_COLUMNS * SHEET_ROWS)
    images, labels = corpus.images.take(rows), corpus.labels.take(rows)
    lines = -(-len(rows) // SHEET_COLUMNS)
    colour_of = {label: f"C{place % 10}" for place, label in enumerate(portrait.pairs.labels.tolist())}
    captions = [_fill_lines(*_chips(corpus, states, colour_of)) for states in labels]
    side, gap, above = 2.2, 0.15, 0.25
    below = 0.08 + LINE_HEIGHT * side * max(map(len, captions))
    width, height = SHEET_COLUMNS * (side + gap) + gap, lines * (side + above + below) + 0.1
    figure = Figure(figsize=(width, height))
    for place, row in enumerate(rows.tolist()):
        line, column = divmod(place, SHEET_COLUMNS)
        left = gap + column * (side + gap)
        bottom = height - (line + 1) * (side + above + below) + below
        axis = figure.add_axes((left / width, bottom / height, side / width, side / height))
        _draw_sample(axis, corpus, row, images[place])
        _draw_boxes(axis, corpus, row, colour_of)
        _draw_caption(axis, captions[place])
    return figure


def _draw_sample(axis: Axes, corpus: Corpus, row: int, image: NDArray[np.uint8]) -> None:
    grey = image.shape[2] == 1
    small = max(image.shape[:2]) < 100
    axis.imshow(
        image[..., 0] if grey else image,
        cmap="gray" if grey else None,
        vmin=0,
        vmax=255,
        interpolation="nearest" if small else "antialiased",
        extent=(0, image.shape[1], image.shape[0], 0),
    )
    axis.set_axis_off()
    split = next(split for split, span in corpus.splits.items() if row in span)
    owner = int(corpus.owners[row])
    whose = (corpus.owner_names[owner] if corpus.owner_names else f"owner {owner}") if owner >= 0 else ""
    image_id = corpus.image_ids[row]
    short = image_id if len(image_id) <= 22 else f"...{image_id[-19:]}"
    title = "  ".join(part for part in (split, short, whose[:12]) if part)
    axis.set_title(title.replace("$", r"\$"), fontsize=6.5, color="0.45", pad=3)


def _draw_boxes(axis: Axes, corpus: Corpus, row: int, colour_of: Mapping[int, str]) -> None:
    from matplotlib.patches import Rectangle  # noqa: PLC0415

    if corpus.objects is None:
        return
    start, stop = np.searchsorted(corpus.objects.row, [row, row + 1])
    for place in range(start, stop):
        x, y, width, height = corpus.objects.box[place].tolist()
        if width <= 0 or height <= 0:
            continue
        label = int(corpus.objects.label[place])
        colour = colour_of.get(label, "0.5")
        axis.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor=colour, linewidth=1.2))
        box = {"facecolor": colour, "edgecolor": "none", "pad": 0.6, "alpha": 0.85}
        name = _name(corpus.label_names[label], 14)
        axis.text(x, y, name, fontsize=4.5, color="white", va="bottom", clip_on=True, bbox=box)


def _chips(corpus: Corpus, states: NDArray[np.int8], colour_of: Mapping[int, str]) -> tuple[list[tuple[str, str]], str]:
    """Present labels with their colours, uncertain ones in grey, and a remark on the rest."""
    names = corpus.label_names
    present, uncertain = (np.flatnonzero(states == state).tolist() for state in (PRESENT, UNCERTAIN))
    chips = [(_name(names[label], 20), colour_of.get(label, "0.5")) for label in present]
    chips += [(f"{_name(names[label], 18)}?", "0.6") for label in uncertain]
    unknown = int((states == UNKNOWN).sum())
    return chips, f"{unknown:,} unknown" if unknown else ("" if chips else "nothing present")


LINE_HEIGHT = 0.085
"""Of a line of labels, as a share of the image's height."""

CHIP_LINES = 4
"""Lines of labels below an image."""


def _chip_width(text: str) -> float:
    """About how wide a chip is, as a share of the image's width."""
    return 0.023 * len(text.replace(r"\$", "$")) + 0.05


def _fill_lines(chips: list[tuple[str, str]], rest: str) -> list[list[tuple[str, str]]]:
    """Chips dealt into lines; the last one says what did not fit."""
    lines: list[list[tuple[str, str]]] = [[]]
    used = 0.0
    for place, (text, colour) in enumerate(chips):
        width = _chip_width(text)
        if lines[-1] and used + width > 1.05:
            if len(lines) == CHIP_LINES - 1:
                rest = f"+{len(chips) - place} more" + (f", {rest}" if rest else "")
                break
            lines.append([])
            used = 0.0
        lines[-1].append((text, colour))
        used += width
    if rest:
        if lines[-1] and used + _chip_width(rest) > 1.05:
            lines.append([])
        lines[-1].append((rest, ""))
    return lines


def _draw_caption(axis: Axes, lines: list[list[tuple[str, str]]]) -> None:
    for line, entries in enumerate(lines):
        x = 0.0
        for text, colour in entries:
            box = {"facecolor": colour or "none", "edgecolor": "none", "pad": 1.2}
            style: dict[str, Any] = {"fontsize": 6, "va": "top", "ha": "left", "transform": axis.transAxes}
            y = -0.03 - LINE_HEIGHT * line
            axis.text(x + 0.01, y, text, color="white" if colour else "0.4", bbox=box, **style)
            x += _chip_width(text)
