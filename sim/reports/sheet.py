"""A picture sheet: images with the labels that a model gives them, and how sure it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fedmlic.errors import InputError
from sim.console import visible
from sim.reports.figures import ACCENT, INK, drawing, shorten

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from sim.predict import Entry

COLUMNS, MOST_IMAGES = 4, 24
"""Images in a row, and on a sheet."""

LINES = 5
"""Labels below an image."""

SIDE, LINE, GAP, TITLE = 2.4, 0.21, 0.25, 0.28
"""Inches: an image's side, a line of text, between images, an image's name."""

PIXELS = 360
"""Height and width to which a picture is brought."""


def write_sheet(
    path: Path, entries: Sequence[Entry], names: Sequence[str], num_images: int, channels: int, note: str
) -> None:
    """Write a sheet of the first images as PNG (or whatever the ending says that matplotlib writes).

    Args:
        path: of the picture.
        entries: the images, at most ``MOST_IMAGES`` are drawn.
        names: of the labels.
        num_images: of how many these are the first.
        channels: 3 (colour) or 1 (grey), as the model sees them.
        note: which model says so.

    Raises:
        InputError: the picture cannot be written, or there is no image.
    """
    shown = list(entries[:MOST_IMAGES])
    if not shown:
        msg = "Expected at least one readable image for the sheet, got none. Check the paths."
        raise InputError(msg)
    with drawing():
        figure = _figure(shown, names, num_images, channels, note)
        try:
            figure.savefig(path, dpi=130)
        except (OSError, ValueError) as error:
            msg = f"Expected {path} to be a picture that can be written (a name that ends in .png), got {error}."
            raise InputError(msg) from None


def _figure(shown: Sequence[Entry], names: Sequence[str], num_images: int, channels: int, note: str) -> Figure:
    from matplotlib.figure import Figure

    columns = min(COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    lines = min(LINES, len(names))
    cell = TITLE + SIDE + lines * LINE + GAP
    # Even a single image leaves room for the line above it.
    width, height = max(columns * (SIDE + GAP) + GAP, 6.0), rows * cell + 0.6
    figure = Figure(figsize=(width, height), facecolor="white")
    some = f"first {len(shown)} of {num_images:,} images" if num_images > len(shown) else f"{num_images:,} images"
    figure.text(
        GAP / width,
        1 - 0.2 / height,
        f"{some}; {visible(note)}; ● predicted, red: threshold",
        fontsize=9,
        va="top",
        color="0.25",
    )
    for place, entry in enumerate(shown):
        row, column = divmod(place, columns)
        left, top = GAP + column * (SIDE + GAP), height - 0.5 - row * cell
        box = (left / width, (top - TITLE - SIDE) / height, SIDE / width, SIDE / height)
        axis = figure.add_axes(box)
        _draw_image(axis, entry, channels)
        below = (top - TITLE - SIDE - lines * LINE) / height
        _draw_labels(figure.add_axes((left / width, below, SIDE / width, lines * LINE / height)), entry, names, lines)
    return figure


def _draw_image(axis: Axes, entry: Entry, channels: int) -> None:
    picture = _picture(entry.file, channels)
    small = picture.shape[0] < PIXELS
    options: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 255} if picture.shape[2] == 1 else {}
    axis.imshow(
        picture[..., 0] if picture.shape[2] == 1 else picture, interpolation="nearest" if small else "auto", **options
    )
    axis.set_axis_off()
    axis.set_title(shorten(visible(entry.file.name), 30), fontsize=8, color="0.35", loc="left", pad=3)


def _picture(file: Path, channels: int) -> NDArray[np.uint8]:
    """The picture with its own proportions on a black square, as large as it is but no larger than ``PIXELS``."""
    from fedmlic.images import decode, read_header

    header = read_header(file)
    size = PIXELS if header is None else min(PIXELS, max(header.width, header.height))
    return decode(file, size, channels, "pad")


def _draw_labels(axis: Axes, entry: Entry, names: Sequence[str], lines: int) -> None:
    """Predicted labels, dark with a filled mark, then the most probable others; bars, and thresholds as red marks."""
    axis.set_xlim(0, 1)
    axis.set_ylim(lines, 0)
    axis.set_axis_off()
    order = entry.order().tolist()
    predicted = [column for column in order if entry.scores[column] >= entry.thresholds[column]]
    rest = [column for column in order if entry.scores[column] < entry.thresholds[column]]
    for line, column in enumerate([*predicted, *rest][:lines]):
        score, threshold = float(entry.scores[column]), float(entry.thresholds[column])
        present = score >= threshold
        ink, weight = (INK, "bold") if present else ("0.5", "normal")
        axis.barh(line + 0.86, score, height=0.12, color=INK if present else "0.75")
        axis.plot([threshold, threshold], [line + 0.78, line + 0.96], color=ACCENT, linewidth=1)
        text = f"{'●' if present else '○'} {shorten(visible(names[column]), 24)}"
        axis.text(0, line + 0.72, text, fontsize=8, color=ink, weight=weight, va="bottom")
        axis.text(1, line + 0.72, f"{score:.2f}", fontsize=8, color=ink, weight=weight, va="bottom", ha="right")
    more = len(predicted) - lines
    if more > 0:
        axis.text(1, lines + 0.1, f"+{more} more", fontsize=7, color="0.4", va="top", ha="right")
