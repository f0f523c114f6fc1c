"""Pictures of a corpus: label frequencies, co-occurrence, owners, and a sheet of sample images."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from fedmlic.dataset import SPLITS
from fedmlic.labels import PRESENT, UNCERTAIN, UNKNOWN
from fedmlic.seeds import stream
from sim.console import visible
from sim.reports.figures import ACCENT, INK, LIGHT, count_axis, new_figure, shorten

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from fedmlic.corpus import Corpus
    from sim.reports.portrait import Portrait

MAX_NAMED = 40
"""Most labels that are named in a picture."""

SHEET_COLUMNS, SHEET_ROWS = 6, 4

SAMPLE_POOL = 5000
"""Images that the sheet's are chosen from."""

SPLIT_COLOURS = dict(zip(SPLITS, (INK, LIGHT, ACCENT), strict=True))


def draw(corpus: Corpus, portrait: Portrait) -> dict[str, Figure]:
    """All pictures that there is something to show in, by file name."""
    figures = {"labels.png": _labels_figure(corpus, portrait)}
    if len(portrait.pairs.labels) > 1:
        figures["cooccurrence.png"] = _pairs_figure(corpus, portrait)
    if len(portrait.owner_sizes):
        figures["owners.png"] = _owners_figure(portrait.owner_sizes)
    figures["samples.png"] = _samples_figure(corpus, portrait)
    return figures


def _labels_figure(corpus: Corpus, portrait: Portrait) -> Figure:
    """How frequent each label is, and how many an image has."""
    positives = portrait.counts[:, 0]
    order = np.argsort(-positives.sum(axis=0), kind="stable")
    few = len(order) <= MAX_NAMED
    figure, (left, right) = new_figure(13, max(4.5, 1.2 + 0.2 * len(order)) if few else 5, 2)
    if few:
        _named_bars(left, positives[:, order], [shorten(corpus.label_names[label]) for label in order])
    else:
        _rank_curves(left, positives[:, order])
    _cardinality_bars(right, portrait.cardinality)
    handles, names = left.get_legend_handles_labels()
    figure.legend(handles, names, frameon=False, loc="outside lower center", ncols=len(names), markerscale=3)
    figure.suptitle(
        f"{shorten(corpus.name)}: {corpus.num_images:,} images, {len(order):,} labels", fontsize=10, color="0.4"
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
    count_axis(axis.yaxis, log=True)
    axis.set_xlabel(f"{len(ranks):,} labels, most frequent of all splits first")
    axis.set_ylabel("images with the label")
    without = int((positives.sum(axis=0) == 0).sum())
    axis.set_title("Label frequencies" + (f" ({without:,} labels have none)" if without else ""))


def _cardinality_bars(axis: Axes, counts: NDArray[np.int64]) -> None:
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
    count_axis(axis.xaxis, log=False)
    count_axis(axis.yaxis, log=False)
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
    phi, names = phi[np.ix_(order, order)], [shorten(corpus.label_names[chosen[place]], 20) for place in order]
    side = min(11.0, 4.0 + 0.2 * len(names))
    figure, (axis,) = new_figure(side + 1.2, side)
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
    figure, (left, right) = new_figure(12, 4.5, 2)
    wide = sizes.max() > 20 * sizes.min()
    spaced = np.geomspace if wide else np.linspace
    edges = np.unique(np.round(spaced(sizes.min(), sizes.max() + 1, min(41, int(np.ptp(sizes)) + 2)))) - 0.5
    left.hist(sizes, bins=edges.tolist(), color=INK)
    if wide:
        left.set_xscale("log")
    count_axis(left.xaxis, log=wide)
    count_axis(left.yaxis, log=False)
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
    from matplotlib.figure import Figure

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
    axis.set_title(visible(title), fontsize=6.5, color="0.45", pad=3)


def _draw_boxes(axis: Axes, corpus: Corpus, row: int, colour_of: Mapping[int, str]) -> None:
    from matplotlib.patches import Rectangle

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
        name = shorten(corpus.label_names[label], 14)
        axis.text(x, y, name, fontsize=4.5, color="white", va="bottom", clip_on=True, bbox=box)


def _chips(corpus: Corpus, states: NDArray[np.int8], colour_of: Mapping[int, str]) -> tuple[list[tuple[str, str]], str]:
    """Present labels with their colours, uncertain ones in grey, and a remark on the rest."""
    names = corpus.label_names
    present, uncertain = (np.flatnonzero(states == state).tolist() for state in (PRESENT, UNCERTAIN))
    chips = [(shorten(names[label], 20), colour_of.get(label, "0.5")) for label in present]
    chips += [(f"{shorten(names[label], 18)}?", "0.6") for label in uncertain]
    unknown = int((states == UNKNOWN).sum())
    return chips, f"{unknown:,} unknown" if unknown else ("" if chips else "nothing present")


LINE_HEIGHT = 0.085
"""Of a line of labels, as a share of the image's height."""

CHIP_LINES = 4
"""Lines of labels below an image."""


def _chip_width(text: str) -> float:
    """About how wide a chip is, as a share of the image's width."""
    return 0.023 * len(text) + 0.05


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
