"""What reaches a terminal: text as it is, in any encoding, within its width."""

import io
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from fedmlic.experiment import split_settings
from sim.console import Display, Grid, TextTable, cut, open_console, say

NASTY = ("dog [red]", "[/]", "[/INST]", ":smile:", "[link=x]y", "\\[x]", "café ●", "猫", "\x1b[31mred", "a$b_{$")


def printed(*shown, width=80):
    """The text of renderables on a console that knows markup and emoji codes."""
    console = Console(file=io.StringIO(), width=width)
    for each in shown:
        console.print(each)
    return console.file.getvalue()


@pytest.mark.parametrize("name", NASTY)
def test_names_are_shown_as_they_are(name):
    table = TextTable(f"title {name}", f"head {name}")
    table.add_row(f"cell {name}")
    grid = Grid(f"grid {name}", ("label", f"column {name}"), [(f"row {name}", "1")], caption=f"caption {name}")
    console = Console(file=io.StringIO(), width=200)
    say(console, f"line {name}")
    shown = name.replace("\x1b", "\\x1b")

    text = printed(table, grid, width=200) + console.file.getvalue()

    for where in ("title", "head", "cell", "grid", "column", "row", "caption", "line"):
        assert f"{where} {shown}" in text
    assert "\x1b" not in text


@given(st.text(max_size=60), st.integers(8, 40))
def test_a_cut_text_fits_and_a_short_one_stays(text, width):
    found = cut(text, width)

    assert cell_len(found) <= width
    assert cell_len(text) > width or found == text


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_grid_fits_the_terminal_and_loses_no_number(width):
    heads = ("client", *(f"a rather long label name number {i}" for i in range(16)))
    rows = [[f"client {row}", *(str(1000 * row + place) for place in range(16))] for row in range(1, 4)]

    text = printed(Grid("cells", heads, rows, first="right"), width=width)

    assert max(map(cell_len, text.splitlines())) <= width
    for row in rows:
        assert text.count(row[0]) == text.count("client 1") >= 1
        for cell in row[1:]:
            assert text.count(f" {cell} ") == 1
    assert ("(continued)" in text) == (width < 200)


def test_what_an_encoding_lacks_is_escaped(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    console = open_console()
    console.print(Grid("●", ("label", "AP"), [("café", "0.5")]))
    say(console, "猫 [red]")
    stream.flush()

    text = stream.buffer.getvalue().decode("ascii")

    assert "caf\\xe9" in text
    assert "\\u732b [red]" in text
    assert "\\u25cf" in text


@pytest.mark.parametrize("terminal", [True, False])
def test_evaluated_rounds_stay_on_a_terminal_and_all_elsewhere(settings, tmp_path, terminal):
    experiment, _ = split_settings(settings(num_rounds=4))
    console = Console(file=io.StringIO(), width=80, force_terminal=terminal, color_system=None)

    class Folder:
        path = tmp_path / "[red] run"

    with Display(console) as display:
        display.started(Folder(), experiment, 0)
        for number in range(1, 5):
            values = {"round": number, "loss": 0.5, "num-failed": 0, "num-clients": 4}
            display.event("round", values | ({"server/mAP": number / 10} if number % 2 == 0 else {}))

    text = console.file.getvalue()
    for number in range(1, 5):
        expected = number % 2 == 0 or not terminal
        assert (f"round {number}/4  clients 4  loss 0.500" in text) == expected
    assert "mAP 0.400" in text
    assert "[red] run" in text.replace("\n", "")
