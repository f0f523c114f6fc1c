"""Sections on clients: who holds what, how good models are at each, and at each other's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sim.console import client_title
from sim.reports.report.charts import Dots, Heat, Line, Options, Text, dot_plot, figure, heat_map, line_chart
from sim.reports.report.curves import key_of
from sim.reports.report.gather import Held, Looked, Report
from sim.reports.report.markup import Cell, Child, Markup, details, element, joined, named, note, paragraph, table
from sim.reports.report.overview import num_seeds, spread
from sim.reports.report.read import Run
from sim.reports.report.sites import CrossSite, Holdings

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_COLUMNS = 40
"""Most clients that are drawn one by one; more are put together in groups of equal number."""

MAX_LINES = 40
"""Most labels that are drawn one by one; more are put together."""

MAX_CLIENT_ROWS = 30
"""Most clients in a plot with a line each."""

EACH = {
    "client/mAP/mean": "mean",
    "client/mAP/worst": "worst",
    "client/mAP/p10": "10th percentile",
    "client/mAP/std": "standard deviation over clients",
    "client/mAP/prevalence": "constant score",
    "client/mAP/chance": "random order",
}


def holdings_section(report: Report) -> Markup:
    """Heat maps of clients and labels: what is there, and what of it is annotated."""
    made: list[Child] = []
    for number, held in enumerate(report.held):
        made += _holdings(held, number)
    made += [note(named(text), kind="missing") for text in report.held_notes]
    if not report.held:
        made += [_turn_table(report)]
    return joined(made)


def groups_of(count: int, most: int) -> list[NDArray[np.int64]]:
    """Places 0 to ``count - 1`` in at most ``most`` groups of neighbours."""
    return [np.asarray(each, dtype=np.int64) for each in np.array_split(np.arange(count), min(count, most))]


def shares(
    top: NDArray[np.integer[Any]],
    below: NDArray[np.integer[Any]],
    rows: Sequence[NDArray[np.int64]],
    columns: Sequence[NDArray[np.int64]],
) -> NDArray[np.float64]:
    """float64 ``[columns, rows]``: sums of ``top`` over sums of ``below`` in groups of clients (rows) and labels."""
    out = np.full((len(columns), len(rows)), np.nan)
    for r, clients in enumerate(rows):
        over, under = top[clients].sum(axis=0), below[clients].sum(axis=0)
        for c, labels in enumerate(columns):
            total = int(under[labels].sum())
            out[c, r] = over[labels].sum() / total if total else np.nan
    return out


def _holdings(held: Held, number: int) -> list[Child]:
    what, settings = held.holdings, held.run.experiment
    rows = ", ".join(f"{row + 1}" for row in held.rows[:10]) + ", ..." * (len(held.rows) > 10)
    entries, wrong = int(what.images.sum()) * len(what.label_names), int(what.wrong.sum())
    lead = paragraph(
        f"{len(what.images):,} clients hold {int(what.images.sum()):,} training images and "
        f"{int(what.held_out.sum()):,} held-out ones; {int(what.annotated.sum()):,} of {entries:,} entries are "
        "annotated"
        + (f", {wrong:,} of them wrongly" if wrong else "")
        + f". Rows that this is of: {rows}, at seed {settings.seed}; another seed deals the images out differently."
    )
    head = element("h3", named(f"{settings.partition}, {settings.regime}, seed {settings.seed}"))
    return [head, lead, element("div", *_maps(what, number), class_="grid"), _client_table(what, held.run)]


def _maps(what: Holdings, number: int) -> list[Markup]:
    """What clients hold, and what they see of it."""
    clients, labels = len(what.images), len(what.label_names)
    order = np.argsort(-what.present.sum(axis=0), kind="stable")
    by_size = np.argsort(-what.images, kind="stable") if clients > MAX_COLUMNS else np.arange(clients)
    places = groups_of(clients, MAX_COLUMNS)
    rows, columns = [by_size[each] for each in places], [order[each] for each in groups_of(labels, MAX_LINES)]
    names = [what.label_names[each[0]] if len(each) == 1 else _span(order, each) for each in columns]
    titles = [f"{place[0] + 1}+" if len(each) > 1 else f"{each[0]}" for place, each in zip(places, rows, strict=True)]
    grouped = [f"; {clients:,} clients, largest first, in {len(rows)} groups"] if len(rows) < clients else []
    grouped += [f"; {labels:,} labels, most frequent first, in {len(columns)} groups"] if len(columns) < labels else []
    every = np.broadcast_to(what.images[:, None], what.annotated.shape)
    present, seen = shares(what.present, what.native, rows, columns), shares(what.annotated, every, rows, columns)
    top = max(float(np.nanmax(present)) if np.isfinite(present).any() else 0.0, 0.05)
    held_text = Text(
        f"held-{number}",
        "What clients hold",
        "Share of a client's training images that have the label, by the data set's own labels, in percent"
        f"{''.join(grouped)}. Entries that the data set does not know count nowhere.",
        "client",
    )
    seen_text = Text(
        f"seen-{number}",
        "What clients see",
        "Share of a client's training images of which the label is annotated, present or absent, in percent"
        f"{''.join(grouped)}. What is not annotated is unknown, not absent.",
        "client",
    )
    shown = ((held_text, present, min(1.0, top), "% of images"), (seen_text, seen, 1.0, "% annotated"))
    return [
        figure(text, heat_map(text, Heat(names, titles, v, 0, high, unit, percent=True)), _cells(names, titles, v))
        for text, v, high, unit in shown
    ]


def _span(order: NDArray[np.int64], each: NDArray[np.int64]) -> str:
    first, last = int(np.flatnonzero(order == each[0])[0]) + 1, int(np.flatnonzero(order == each[-1])[0]) + 1
    return f"ranks {first} to {last}"


def _cells(names: Sequence[str], titles: Sequence[str], values: NDArray[np.float64]) -> Markup:
    rows = [[name, *(round(100 * v, 1) for v in row)] for name, row in zip(names, values.tolist(), strict=True)]
    return table("Percent, labels against clients", ["label", *titles], rows, digits=0)


def _client_table(what: Holdings, run: Run) -> Markup:
    heads = [
        "client",
        "training images",
        "held out",
        "annotations",
        "% of entries",
        "labels annotated",
        "annotated present",
    ]
    labels = max(len(what.label_names), 1)
    order = np.argsort(-what.images, kind="stable")[:MAX_COLUMNS]
    rows: list[list[Cell]] = []
    for client in order.tolist():
        seen, images = int(what.annotated[client].sum()), int(what.images[client])
        share = 100 * seen / max(images * labels, 1)
        rows.append(
            [
                client_title(client, what.client_names),
                images,
                int(what.held_out[client]),
                seen,
                share,
                int((what.annotated[client] > 0).sum()),
                int(what.positives[client].sum()),
            ]
        )
    cut = f" (the {len(order)} largest of {len(what.images):,})" if len(order) < len(what.images) else ""
    return details(f"Clients{cut}", table(f"Clients of {run.name}{cut}", heads, rows, digits=1))


def _turn_table(report: Report) -> Markup:
    """What clients said in their turns, where the federation itself cannot be looked at."""
    run = report.own[0].first
    if not run.turns:
        return note("No client had a turn.", kind="missing")
    names = [str(name) for name in run.data.get("client_names", [])]
    rows: list[list[Cell]] = [
        [client_title(client, names), each.images, each.annotations, each.num, each.failed]
        for client, each in sorted(run.turns.items(), key=lambda item: -item[1].images)[:100]
    ]
    lead = paragraph("What clients said of themselves in their turns (", named(run.name), "):")
    return joined(
        [
            lead,
            table(
                "Clients by their turns", ["client", "training images", "annotations", "turns", "failed turns"], rows
            ),
        ]
    )


# How good models are at each client


def clients_section(report: Report) -> Markup:
    """The distribution over clients, and the matrix of models and clients."""
    made: list[Child] = [_spread_table(report)]
    looked = [each for each in report.looked if each.per_client is not None]
    if looked:
        made += [key_of(report, [each.place for each in looked]), _per_client(report, looked)]
    matrices = [_matrix(report, each, each.sites) for each in report.looked if each.sites is not None]
    if matrices:
        entries = next(each.sites.min_entries for each in report.looked if each.sites is not None)
        made += [
            element("h3", "Models on each client's images"),
            paragraph(
                "mAP of each model (lines) on each client's held-out images (columns), as the client's annotators "
                f"labelled them. A label counts at a client with at least {entries} present and {entries} absent "
                "images there; unknown entries count nowhere. Columns judge different labels: compare within a column. "
                "A frame marks a client's own model on its own images."
            ),
            element("div", *matrices, class_="grid"),
        ]
    notes = [text for each in report.looked if each.sites is None for text in each.notes]
    return joined([*made, *(note(named(text), kind="missing") for text in dict.fromkeys(notes))])


def _spread_table(report: Report) -> Markup:
    shown = {
        name: title for name, title in EACH.items() if any(row.over_clients(name, report.model) for row in report.rows)
    }
    if not shown:
        return note("No run was evaluated on its clients' held-out images one by one.", kind="missing")
    rows: list[list[Child | float | int]] = []
    for place, row in enumerate(report.rows):
        if row.reference.startswith("central"):
            continue  # all images are one client's: there are no clients to compare
        found = {name: list(row.over_clients(name, report.model).values()) for name in shown}
        if any(found.values()):
            shown_ = [spread(values) for values in found.values()]
            rows.append([f"{place + 1} {row.label}", *shown_, num_seeds(list(found.values()))])
    lead = paragraph(
        "mAP of clients one by one on their own held-out images, of the model after the last round; where clients "
        "keep tensors of their own, each client's own after the round that the results name; mean ± standard "
        "deviation over seeds. What chance reaches depends on how few images clients hold out: compare with it."
    )
    return joined([lead, table("Clients one by one", ["row", *shown.values(), "seeds"], rows)])


def _per_client(report: Report, looked: Sequence[Looked]) -> Markup:
    clients = sorted({client for each in looked for client in (each.per_client.clients if each.per_client else ())})
    titles = [
        client_title(client, [str(name) for name in looked[0].run.data.get("client_names", [])]) for client in clients
    ]
    sources = [f"{report.row_name(e.place)}, seed {e.run.seed}: {e.per_client.source}" for e in looked if e.per_client]
    values = {each.place: [_at(each, client) for client in clients] for each in looked}
    chance = {each.place: [_at(each, client, chance=True) for client in clients] for each in looked}
    ticks = _common(list(chance.values()))
    random = {"random order": ticks} if ticks else {f"random order {place + 1}": each for place, each in chance.items()}
    columns = {**{report.row_name(place): each for place, each in values.items()}, **random}
    rows: list[list[Cell]] = [
        [title, *(column[line] for column in columns.values())] for line, title in enumerate(titles)
    ]
    alternative = table("mAP by client", ["client", *columns], rows)
    about = f"mAP on each client's own held-out images. {'; '.join(sources)}."
    if all(math.isnan(value) for column in values.values() for value in column):
        return note(f"No client has a label that counts. {'; '.join(sources)}.", kind="missing")
    if len(clients) > MAX_CLIENT_ROWS:
        return element("div", _ranked(report, values, about, alternative), class_="grid")
    series = [Dots(report.rows[place].label, found, place, f"s{place}") for place, found in values.items()]
    random_order = (
        "The tick is a random order of the same images."
        if ticks
        else ("Rows hold different images out; the table says what a random order of each row's reaches.")
    )
    text = Text("per-client", "Clients one by one", f"{about} {random_order}", "mAP")
    plot = dot_plot(text, titles, series, ticks, "random order")
    return element("div", figure(text, plot, alternative), class_="grid")


def _common(columns: Sequence[Sequence[float]]) -> list[float]:
    """What columns agree on, where they are known; empty if they differ anywhere."""
    found = []
    for values in zip(*columns, strict=True):
        there = [value for value in values if not math.isnan(value)]
        if there and max(there) - min(there) > 1e-9:
            return []
        found.append(there[0] if there else math.nan)
    return found


def _ranked(report: Report, values: Mapping[int, Sequence[float]], about: str, alternative: Markup) -> Markup:
    """Many clients: from the worst to the best."""
    text = Text("per-client", "Clients from the worst to the best", about, "share of clients (%)", "mAP")
    lines = []
    for place, found in values.items():
        ordered = sorted(value for value in found if not math.isnan(value))
        share = [100 * (rank + 0.5) / len(ordered) for rank in range(len(ordered))]
        lines.append(Line(report.rows[place].label, share, ordered, place, switch=f"s{place}", end=f"{place + 1}"))
    return figure(text, line_chart(text, lines, Options(x_range=(0, 100), y_range=(0, 1))), alternative)


def _at(each: Looked, client: int, *, chance: bool = False) -> float:
    found = each.per_client
    if found is None or client not in found.clients:
        return math.nan
    return float((found.chance if chance else found.map)[found.clients.index(client)])


def _matrix(report: Report, each: Looked, sites: CrossSite) -> Markup:
    of = f" ({len(sites.clients)} of {sites.num_clients} clients)" if len(sites.clients) < sites.num_clients else ""
    title = f"{report.row_name(each.place)}, seed {each.run.seed}{of}"
    marked = [(row, sites.clients.index(owner)) for row, owner in enumerate(sites.owners) if owner in sites.clients]
    values = np.vstack([sites.map, sites.chance[None]])
    finite = values[np.isfinite(values)]
    if not len(finite):
        return note(f"{title}: no client has a label that counts.", kind="missing")
    low, high = float(finite.min()), float(finite.max())
    text = Text(
        f"sites-{each.place}",
        title,
        f"mAP of {len(sites.models)} models on the held-out images of {len(sites.clients)} clients; last line: a "
        f"random order. The run's model: {each.model}.",
        "client",
    )
    columns = [str(client) for client in sites.clients]
    lines = [*map(_brief, sites.models), "random order"]
    heat = Heat(lines, columns, values, low, high if high > low else low + 0.1, "mAP", marked=marked)
    rows: list[list[Cell]] = [
        [name, *row] for name, row in zip([*sites.models, "random order"], values.tolist(), strict=True)
    ]
    rows.append(["labels that count", *(int(count) for count in sites.num_labels)])
    left_out = [note(named(text), kind="missing") for text in sites.notes[:3]]
    return figure(text, heat_map(text, heat), table(title, ["model", *columns], rows), *left_out)


def _brief(name: str) -> str:
    return "global" if name.startswith("global") else name.replace(", client ", " ").replace("client ", "")
