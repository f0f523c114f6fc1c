"""The picture of ``rounds.py``: time per round, start and memory, one row per workload."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from measure import Middle
from workloads import workload_of

OURS, THEIRS, FLOOR = "#1b6ca8", "#9aa5b1", "#4a5560"
PANELS = (
    ("relative", "time per round\n(plain loop in as many processes = 1)", "{:.2f}"),
    ("start_s", "start to first client's training (s)", "{:.1f}"),
    ("peak_mib", "peak memory of all processes (MiB)", "{:.0f}"),
)


def draw(summaries: dict[str, list[dict[str, object]]], about: dict[str, object], target: Path) -> None:
    """Write bars with their range over repeats.

    Args:
        summaries: of each workload, one row per contestant.
        about: the machine.
        target: a PNG file.
    """
    kept = {workload: rows for workload, rows in summaries.items() if rows}
    if not kept:
        return
    heights = [0.34 * len(rows) + 0.9 for rows in kept.values()]
    figure, grid = plt.subplots(
        len(kept),
        len(PANELS),
        figsize=(13, sum(heights) + 1.0),
        squeeze=False,
        layout="constrained",
        gridspec_kw={"height_ratios": heights},
    )
    for axes, (workload, rows) in zip(grid, kept.items(), strict=True):
        for axis, (name, title, form) in zip(axes, PANELS, strict=True):
            if name == "relative" and not any(row[name] for row in rows):
                name, title, form = "round_s", "time per round (s)", "{:.3f}"  # noqa: PLW2901  (no loop took part)
            _bars(axis, rows, name, form)
            axis.set_title(title, fontsize=9)
            axis.tick_params(labelleft=axis is axes[0])
            if name == "relative":
                axis.axvline(1.0, color=FLOOR, linewidth=0.8, linestyle="--")
        what = workload_of(workload)
        axes[0].set_ylabel(f"{workload}: {what.cohort} clients,\n{what.num_images} images of {what.image_size}²")
    machine = f"{about['cores']} cores, {about['device']}, {about['processes']} processes; {about['memory_measure']}"
    figure.suptitle(f"The same rounds side by side ({machine}); median, and range over repeats", fontsize=10)
    figure.savefig(target, dpi=130)
    plt.close(figure)


def _bars(axis: plt.Axes, rows: list[dict[str, object]], name: str, form: str) -> None:
    known = [(place, row) for place, row in enumerate(rows) if row[name]]
    values: list[Middle] = [row[name] for _, row in known]
    places = [place for place, _ in known]
    colours = [OURS if str(row["key"]).startswith(("fedmlic", "flwr")) else THEIRS for _, row in known]
    medians = [value.median for value in values]
    spread = [[v.median - v.low for v in values], [v.high - v.median for v in values]]
    axis.barh(places, medians, xerr=spread, color=colours, height=0.66, error_kw={"elinewidth": 1, "capsize": 2})
    most = max((value.high for value in values), default=1.0)
    for place, value in zip(places, values, strict=True):
        axis.text(value.high + 0.02 * most, place, form.format(value.median), va="center", fontsize=8)
    axis.set_yticks(range(len(rows)), [str(row["title"]) for row in rows], fontsize=8)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_xlim(0, 1.18 * most)
    axis.tick_params(axis="x", labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
