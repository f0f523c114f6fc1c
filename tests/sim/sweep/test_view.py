"""What a person sees of a sweep on a terminal."""

import io

import pytest
from rich.console import Console

from sim.sweep.view import SweepView


@pytest.mark.parametrize(("width", "has_loss"), [(80, False), (120, True)])
def test_one_line_per_run_says_where_it_plays_its_curve_and_the_time_left(width, has_loss):
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    view = SweepView(console, 9, "machine")
    view.began("a", "fedlgt(width=64, layers=1), labelwise(), search learning-rate 0.01477", "waiting", 120)
    view.began("b", "bce(), seed 0", "waiting", 120)
    view.placed("a", "10.120.130.140")
    for number in range(1, 101):
        view.round("a", {"round": number, "loss": 0.5, "server/val/mAP": number / 1000})
    view.counted(9, 2, 130.0)
    console.print(view._table())
    lines = console.file.getvalue().splitlines()

    assert all(len(line) <= width for line in lines)
    playing = next(line for line in lines if "100/120" in line)
    assert {"10.120.130.140", "0.100"} <= set(playing.split())
    assert playing.count("█") == 1  # the end of the curve
    assert "fedlgt" in playing
    assert "0.01477" in playing
    assert ("loss" in lines[lines.index(playing) - 2]) == has_loss
    assert "waiting" in next(line for line in lines if "bce(), seed 0" in line)
    assert "2 of 9 runs, about 2m10s left" in lines[-1 if lines[-1] else -2]
