"""What there is to choose from, for people: catalogues line by line, or one entry with its arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.console import TextTable, plain, say

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from sim.catalogue import Entry

    Settings = Mapping[str, tuple[object, str]]
    """Default and meaning by key."""


def show_catalogues(console: Console, found: Mapping[str, list[Entry]], settings: Settings) -> None:
    """A line per entry, and how it is written."""
    for key, entries in found.items():
        table = TextTable(key, box=None, pad_edge=False, show_header=False)
        table.add_column("name", style="bold", no_wrap=True)
        table.add_column("summary", overflow="fold")
        for entry in entries:
            table.add_row(entry.name, entry.summary.replace("``", ""))
            if entry.arguments:
                table.add_row("", plain(entry.call, "dim"))
            if entry.traits:
                table.add_row("", plain(in_words(entry.traits), "dim"))
        console.print(table)
        console.print()
    if settings:
        _show_settings(console, "other settings (key=value)", settings)


def show_entries(console: Console, found: Mapping[str, list[Entry]], settings: Settings) -> None:
    """Everything that is known of each entry."""
    for key, entries in found.items():
        for entry in entries:
            _show_entry(console, key, entry)
    if settings:
        _show_settings(console, "setting (key=value)", settings)


def in_words(traits: Mapping[str, bool | str]) -> str:
    """What a method needs and does, in a line."""
    guesses = traits["guesses"]
    words = [f"takes entries without annotation as {guesses}" if guesses else "learns from annotated entries alone"]
    words += ["needs annotated absences"] * bool(traits["needs-absences"])
    words += ["keeps state on the client"] * bool(traits["memory"])
    words += ["tells the server something of the labels (allow-statistics)"] * bool(traits["counts"])
    words += ["needs pretrained weights (see its page)"] * bool(traits["pretrained"])
    if traits["text-option"]:
        words += ["reads label names as text" if traits["text"] else "can read label names as text (text=...)"]
    phases = traits["phases"]
    words += [f"{phases} phase{'s' * (phases != '1')}"] * bool(phases)
    alone = traits["one-by-one"]
    return "; ".join([*words, f"no vectorize ({alone})" if alone else "vectorize"])


def _show_settings(console: Console, title: str, settings: Settings) -> None:
    table = TextTable(title, "key", "default", "what it is", box=None, pad_edge=False)
    for key, (default, about) in settings.items():
        table.add_row(key, str(default), about)
    console.print(table)


def _show_entry(console: Console, key: str, entry: Entry) -> None:
    console.print(plain(f"{key} {entry.name}", "bold"))
    console.print(plain(entry.summary.replace("``", "")))
    console.print()
    if entry.arguments:
        table = TextTable("", "argument", "default", "what it is", box=None, pad_edge=False)
        for name, default in entry.arguments.items():
            table.add_row(
                name, "(required)" if default is None else default, entry.meanings.get(name, "").replace("``", "")
            )
        console.print(table)
        console.print()
    required = ", ".join(f"{name}=..." for name, default in entry.arguments.items() if default is None)
    say(console, f'written: {key}="{entry.name}({required})"')
    if entry.traits:
        say(console, f"with its defaults: {in_words(entry.traits)}")
    if entry.page:
        say(console, f"page: {entry.page}")
