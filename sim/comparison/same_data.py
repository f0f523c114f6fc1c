"""Whether runs that stand side by side were trained and tested on the same images and labels.

Settings are texts: ``folder(root='images')`` asks for what lies there on that day, a regime may read a file, and code
may be edited. What a run was given, its ``data.json`` says by hashes. Runs that do not say it (images on devices, runs
of early versions) are taken at their settings.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from fedmlic import code
from fedmlic.errors import InputError

CORPUS = ("dataset", "bad-files", "max-bad-fraction")
"""Settings that decide which images and labels there are."""

FEDERATION = (*CORPUS, "partition", "regime", "num-clients", "holdout-fraction", "holdout-by", "seed")
"""Settings that decide what each client holds; of these clients ``single-client`` takes one, or all together."""

What = Literal["corpus", "federation"]
"""What of two runs differs, as ``data.json`` calls it."""


class Noted(Protocol):
    """A run with what it says of its data."""

    @property
    def path(self) -> Path:
        """Its folder."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Resolved, by dashed name."""

    @property
    def data(self) -> Mapping[str, Any]:
        """What ``data.json`` says."""


Given = TypeVar("Given", bound=Noted)


def check_same_data(runs: Iterable[Noted]) -> None:
    """Make sure that runs whose settings ask for the same data were given the same.

    Runs with equal settings ``CORPUS`` must have one corpus, those with equal settings ``FEDERATION`` one federation or
    a part of it.

    Raises:
        InputError: two do not; both are named.
    """
    for one, other, what in unlike(runs):
        raise _differ(one, other, what)


def unlike(runs: Iterable[Given]) -> Iterator[tuple[Given, Given, What]]:
    """Runs whose settings ask for the same data as an earlier one of ``runs`` and that were given other.

    Yields:
        The earlier one, the run, and what differs.
    """
    runs = list(runs)
    yield from _unlike(runs, "corpus", CORPUS)
    # Whole federations first: they say what a part of them must be.
    yield from _unlike(sorted(runs, key=lambda run: bool(run.settings["single-client"])), "federation", FEDERATION)


def _unlike(runs: Iterable[Given], what: What, names: Iterable[str]) -> Iterator[tuple[Given, Given, What]]:
    first: dict[tuple[Any, ...], dict[str, tuple[Given, str]]] = {}
    for run in runs:
        found = run.data.get(what)
        if not found:
            continue
        which = str(run.settings["single-client"]) if what == "federation" else ""
        known = first.setdefault(tuple(run.settings[name] for name in names), {})
        if which not in known:
            whole, its = known.get("", (run, ""))
            known[which] = (whole, part_of(its, which)) if its else (run, str(found))
        before, expected = known[which]
        if found != expected:
            yield before, run, what


def part_of(federation: str, which: str) -> str:
    """What ``Federation.content`` is of one client of a federation, or of all of them together.

    Args:
        federation: its own ``content``.
        which: as ``Federation.single`` takes it.
    """
    return code.digest({"whole": federation, "single_client": which})


def _differ(one: Noted, other: Noted, what: What) -> InputError:
    same, changed = {
        "corpus": ("data set", "the data set, or code that reads it,"),
        "federation": (
            "data set, partition, regime and seed",
            "the code that deals them out, or what it reads,",
        ),
    }[what]
    return InputError(
        f"Expected {one.path} and {other.path}, whose settings name the same {same}, to have been given the same "
        f"images and labels, got others ({what!r} in data.json): {changed} was changed between them. Leave one of them "
        "out, or delete its folder and play it again."
    )
