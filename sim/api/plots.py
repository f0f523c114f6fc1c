"""Pictures of runs, studies and federations: matplotlib figures of their own, no state of pyplot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fedmlic.errors import InputError
from sim.api.federation import federation_of
from sim.api.results import Played, Run, rows_of
from sim.api.settings import Base
from sim.reports.figures import count_axis, drawing, new_figure, shorten

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sim.api.comparing import Compared
    from sim.outcome import Which

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Told apart by colour-blind readers (Okabe and Ito, 2008)."""

DASHES = ("-", "--", ":", "-.")
"""Where there are more rows than colours."""

MAX_LABELS = 50
"""Most labels that are drawn one by one."""


def plot_curves(*things: Played | Iterable[Played], metric: str = "server/mAP") -> Figure:
    """A metric over rounds: a line per row, the mean over its seeds, with a band of one standard deviation.

    Of runs that are under way those rounds are drawn that all runs of a row have.

    Args:
        things: runs, studies, or folders of such.
        metric: a column of ``rounds`` or ``evaluations``.

    Raises:
        InputError: no run has such a number.

    Warns:
        OtherDataWarning: runs whose settings ask for the same data were given others.
    """
    curves = {label: _curves(runs, metric) for label, runs in rows_of(things).items()}
    with drawing():
        figure, (axis,) = new_figure(7.0, 4.2)
        for place, (label, table) in enumerate((label, table) for label, table in curves.items() if len(table)):
            _band(axis, table, label, place)
        axis.set_xlabel("round")
        axis.set_ylabel(metric)
        count_axis(axis.xaxis, log=False)
        several = any(table.shape[1] > 1 for table in curves.values())
        axis.set_title("mean and standard deviation over seeds" if several else "", fontsize=9, color="0.4")
        _legend(axis, len(curves))
    return figure


def _curves(runs: Iterable[Run], metric: str) -> pd.DataFrame:
    """A column per run that has the metric, a row per round that all have."""
    import pandas as pd

    found, problem = [], None
    for run in runs:
        try:
            found.append(run.curve(metric))
        except InputError as error:
            if run.status == "complete":
                raise
            problem = error
    if not found and problem is not None:
        raise problem
    return pd.concat(found, axis=1, join="inner") if found else pd.DataFrame()


def _band(axis: Axes, table: pd.DataFrame, label: str, place: int) -> None:
    mean, colour = table.mean(axis=1), COLOURS[place % len(COLOURS)]
    seeds = f" ({table.shape[1]} runs)" if table.shape[1] > 1 else ""
    dash = DASHES[place // len(COLOURS) % len(DASHES)]
    axis.plot(mean.index, mean, dash, color=colour, label=f"{shorten(label, 48)}{seeds}")
    if table.shape[1] > 1:
        spread = table.std(axis=1)
        axis.fill_between(mean.index, mean - spread, mean + spread, color=colour, alpha=0.18, linewidth=0)


def plot_labels(*things: Played | Iterable[Played], which: Which = "last") -> Figure:
    """Average precision on test images by label: a dot per row, the mean over its seeds, with one standard deviation.

    A grey mark is what a constant score reaches (prevalence). Labels are in the order of that mark; where there are
    many, the most frequent are drawn.

    Args:
        things: runs, studies, or folders of such.
        which: after the round that was evaluated last, or that was best on validation data.

    Raises:
        InputError: nothing was evaluated yet.

    Warns:
        OtherDataWarning: runs whose settings ask for the same data were given others.
    """
    rows = {label: _by_label(runs, which) for label, runs in rows_of(things).items()}
    rows = {label: table for label, table in rows.items() if len(table)}
    if not rows:
        msg = "Expected a run with a round that was evaluated on test images, got none. Let a round finish."
        raise InputError(msg)
    chance = next(iter(rows.values()))["prevalence"].sort_values()
    names = list(chance.index[-MAX_LABELS:])
    with drawing():
        figure, (axis,) = new_figure(7.0, 1.6 + 0.24 * len(names))
        heights = np.arange(len(names), dtype=np.float64)
        axis.plot(chance[names], heights, "|", color="0.5", markersize=10, label="a constant score")
        for place, (label, table) in enumerate(rows.items()):
            shift = 0.5 * ((place + 0.5) / len(rows) - 0.5)
            axis.errorbar(
                table["ap"].reindex(names),
                heights - shift,
                xerr=table["std"].reindex(names).fillna(0),
                fmt="o",
                markersize=4,
                linewidth=1,
                color=COLOURS[place % len(COLOURS)],
                label=shorten(label, 48),
            )
        axis.set_yticks(heights.tolist(), [shorten(str(name)) for name in names])
        axis.set_xlim(0, 1)
        axis.set_xlabel("average precision on test images")
        more = f", the {len(names)} most frequent of {len(chance)} labels" * (len(chance) > len(names))
        axis.set_title(f"after the {which} round{more}", fontsize=9, color="0.4")
        _legend(axis, len(rows) + 1)
    return figure


def _by_label(runs: Iterable[Run], which: Which) -> pd.DataFrame:
    """Mean and standard deviation of AP over runs, and the prevalence, by label."""
    import pandas as pd

    found = []
    for run in runs:
        labels = run.labels
        if not len(labels):
            continue
        test = labels[labels["split"] == "test"]
        number = run.best_round if which == "best" and run.best_round else test["round"].max()
        found.append(test[test["round"] == number])
    if not found:
        return pd.DataFrame()
    table = pd.concat(found)
    table["prevalence"] = table["num_present"] / table["num_known"].where(table["num_known"] > 0)
    groups = table.groupby("label", sort=False)
    return pd.DataFrame(
        {"ap": groups["ap"].mean(), "std": groups["ap"].std(), "prevalence": groups["prevalence"].mean()}
    )


def plot_seeds(compared: Compared) -> Figure:
    """A dot per run, dots of one seed joined; the mean of every row, and the difference of two rows with its p-value.

    Args:
        compared: what ``compare`` returned.
    """
    found, values = compared.found, compared.by_seed
    with drawing():
        figure, (axis,) = new_figure(1.8 + 1.5 * values.shape[1], 4.2)
        own = [group.label for group in found.groups if not group.reference]
        places = {label: place for place, label in enumerate(values.columns)}
        axis.plot([places[label] for label in own], values[own].T, color="0.8", linewidth=1, zorder=1)
        for label, place in places.items():
            axis.plot(np.full(len(values), place), values[label], "o", color=COLOURS[0], alpha=0.7, markersize=5)
            axis.plot([place - 0.18, place + 0.18], [values[label].mean()] * 2, color="black", linewidth=2)
        axis.set_xticks(range(len(places)), [shorten(label) for label in places])
        axis.set_xlim(-0.5, len(places) - 0.5)
        axis.set_ylabel(f"{found.metric}, model {found.model}")
        axis.set_title(_difference(compared), fontsize=9, color="0.4")
    return figure


def _difference(compared: Compared) -> str:
    pairs = compared.found.pairs
    if len(pairs) != 1 or np.isnan(pairs[0].p_holm):
        return "a dot per run, lines join equal seeds, bars are means"
    pair = pairs[0]
    each = pair.found
    return f"{pair.first} - {pair.second}: {each.mean:+.3f} ({each.low:+.3f} to {each.high:+.3f}), p = {each.p:.2g}"


def plot_clients(base: Base = "", /, **settings: Any) -> Figure:  # noqa: ANN401
    """Who sees what: which share of its images a client has annotated for each label, and how much in all.

    Args:
        base: a recipe's name, a TOML file, settings or a run to begin with.
        settings: those of ``fedmlic run``, with underscores.

    Raises:
        InputError: bad settings or data.
    """
    from sim.reports.describe import draw

    figures: Mapping[str, Figure] = draw(federation_of(base, settings))
    return figures["known"]


def _legend(axis: Axes, num_entries: int) -> None:
    if num_entries > 1:
        axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0) if num_entries > 5 else None)
