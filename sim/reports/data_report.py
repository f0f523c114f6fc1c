"""What is in a corpus: tables, pictures, a sheet of sample images, and the same as JSON.

*Prevalence* of a label is its present entries over its known ones; ``sim.reports.portrait`` says what phi is.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from fedmlic.dataset import SPLITS
from fedmlic.labels import ABSENT, PRESENT, STATES, UNCERTAIN, UNKNOWN
from sim.console import Grid, TextTable, plain, say
from sim.data.prepare import corpus_summary
from sim.reports.portrait import FLAG_NAMES, measure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from rich.console import Console, RenderableType

    from fedmlic.corpus import Corpus
    from sim.reports.portrait import Pairs, Portrait

MAX_PAIRS = 50
"""Pairs of labels that the JSON names, from either end."""

MAX_NAMED = 40
"""Most labels that are named in a table."""

QUANTILES = {"min": 0.0, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "max": 1.0}


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


def _tables(report: Mapping[str, Any]) -> list[RenderableType]:
    shown: list[RenderableType] = [_overview(report), _split_table(report), _label_table(report)]
    hidden = len(report["labels"]) - MAX_NAMED
    if hidden > 0:
        shown.append(plain(f"... and {hidden:,} labels with fewer positives (--out writes all to labels.csv)"))
    if report["pairs"]:
        shown.append(_pair_table(report["pairs"][:10]))
    return shown


def _overview(report: Mapping[str, Any]) -> TextTable:
    table = TextTable("Corpus", "", "", show_header=False)
    owners, cardinality = report["owners"], report["cardinality"]
    is_open = any(counts["unknown"] + counts["uncertain"] for counts in report["states"].values())
    present = "labels known to be present" if is_open else "labels"  # of an open entry nothing is known
    rows = {
        "data set": f"{report['name']} (version {report['version']})",
        "licence": report["licence"],
        "folder": report["corpus"],
        "images": f"{report['num_images']:,}, {' x '.join(map(str, report['image_shape']))}, {report['storage']}",
        "labels": f"{report['num_labels']:,}",
        f"{present} per image": f"mean {cardinality['mean']:.2f}, at most {cardinality['max']}",
        "images without a label known to be present"
        if is_open
        else "images without positives": f"{cardinality['without_positives']:,}",
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


def _split_table(report: Mapping[str, Any]) -> Grid:
    rows = [
        [split, f"{images:,}", *(f"{count:,}" for count in report["states"][split].values())]
        for split, images in report["splits"].items()
    ]
    return Grid("Per split", ("split", "images", *STATES), rows)


def _label_table(report: Mapping[str, Any]) -> Grid:
    every = report["labels"]
    flags = [name for name in FLAG_NAMES if any(row.get(name) for row in every)]
    heads = ["positives", *SPLITS, "prevalence", "unknown", "uncertain", *(name.replace("_", " ") for name in flags)]
    chosen = every if len(every) <= MAX_NAMED else sorted(every, key=lambda row: -row["positives"])[:MAX_NAMED]
    rows = []
    for row in chosen:
        counts = [row["positives"], *(row[f"positives_{split}"] for split in SPLITS)]
        prevalence = "-" if row["prevalence"] is None else f"{row['prevalence']:.1%}"
        others = [row["unknown"], row["uncertain"], *(row[name] for name in flags)]
        cells = (*(f"{count:,}" for count in counts), prevalence, *(f"{count:,}" for count in others))
        rows.append([row["label"], *cells])
    return Grid("Per label", ("label", *heads), rows)


def _pair_table(pairs: Sequence[Mapping[str, Any]]) -> TextTable:
    table = TextTable("Labels that occur together", "pair")
    for head in ("phi", "images with both"):
        table.add_column(head, justify="right")
    for pair in pairs:
        table.add_row(" + ".join(pair["labels"]), f"{pair['phi']:.3f}", f"{pair['images_with_both']:,}")
    return table


def print_summary(found: Mapping[str, Any], console: Console) -> None:
    """What ``fedmlic data import`` built."""
    title = f"{found['name']}: {found['num_images']:,} images, {found['num_labels']:,} labels"
    say(console, title, "bold")
    table = TextTable("", "", "", show_header=False)
    for split, images in found["splits"].items():
        table.add_row(split, f"{images:,} images")
    for state in STATES:
        table.add_row(state, f"{found[f'num_{state}']:,} entries")
    for name, key in {"owners": "num_owners", "objects": "num_objects", "left out": "num_bad_files"}.items():
        if found[key]:
            table.add_row(name, f"{found[key]:,}")
    console.print(table)
    say(console, f"corpus: {found['corpus']}")
    say(console, f'dataset = "{found["dataset"]}"')


def print_check(found: Mapping[str, Any], console: Console) -> None:
    """What ``fedmlic data check`` found, up to ten problems."""
    names = ("num_images", "num_labels", "num_owners", "num_missing", "num_undecodable", "extra_files")
    table = TextTable("Checked", "", "", show_header=False)
    for name in names:
        if name in found:
            table.add_row(name.removeprefix("num_").replace("_", " "), f"{found[name]:,}")
    for split, images in found.get("splits", {}).items():
        table.add_row(split, f"{images:,} images")
    table.add_row("modes", ", ".join(f"{mode} {count:,}" for mode, count in found["modes"].items()) or "-")
    table.add_row("turned by EXIF", f"{found['exif_turned']:,}")
    console.print(table)
    if found["ok"]:
        say(console, "no problem found", "green")
        return
    count = found["num_problems"]
    say(console, f"{count:,} problem{'s' if count != 1 else ''}:", "red")
    for problem in found["problems"][:10]:
        say(console, f"  {problem}")
    if count > 10:
        say(console, f"  ... and {count - 10:,} more (--json has all)")


# Files


def _write(out: Path, corpus: Corpus, portrait: Portrait, report: dict[str, Any]) -> list[Path]:
    import pandas as pd

    from sim.reports.data_pictures import draw
    from sim.reports.figures import drawing

    out.mkdir(parents=True, exist_ok=True)
    with drawing():
        figures = draw(corpus, portrait)
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
