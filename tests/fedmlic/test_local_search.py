"""The local search against the whole grid, on scores that are known."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmlic.local_search import LocalSearch


def run(search, score):
    """Step to the end; the search, and what was scored in every step."""
    steps = []
    while wanted := search.wanted():
        steps.append(wanted)
        search = search.scored({place: score(*place) for place in wanted})
    return search, steps


def hill(block, timestep, width=8.0):
    """One peak."""
    return lambda b, t: math.exp(-((b - block) ** 2) / 2 / width**2 - ((t - timestep) ** 2) / 2 / (12 * width) ** 2)


@pytest.mark.parametrize("peak", [(13, 120), (5, 300), (20, 40), (12, 100), (0, 0), (27, 500)])
def test_it_finds_a_planted_peak_with_few_probes(peak):
    search, _ = run(LocalSearch((28, 1000), (12, 100), (4, 50), budget=60), hill(*peak))

    assert search.ended
    assert search.best[0] == peak[0]
    assert abs(search.best[1] - peak[1]) <= 10
    grid = 28 * 100  # blocks by timesteps in steps of ten
    assert len(search.scores) < grid / 40


@given(
    peak=st.tuples(st.integers(0, 27), st.integers(0, 999)),
    budget=st.integers(1, 40),
    begin=st.tuples(st.integers(0, 27), st.integers(0, 999)),
)
def test_it_ends_within_its_budget_and_scores_no_place_twice(peak, budget, begin):
    search, steps = run(LocalSearch((28, 1000), begin, (4, 50), budget=budget), hill(*peak))

    scored = [place for step in steps for place in step]
    assert search.ended
    assert len(scored) == len(set(scored)) == len(search.scores) <= budget
    assert all(0 <= block < 28 and 0 <= timestep < 1000 for block, timestep in scored)
    assert all(1 <= len(step) <= 5 for step in steps)
    assert search.scores[search.best] == max(search.scores.values())
    assert scored[0] == begin


def test_on_a_plain_it_stays_where_it_began():
    search, _ = run(LocalSearch((28, 1000), (12, 100), (4, 50)), lambda *_: 0.5)

    assert search.best == (12, 100)
    # Steps (4, 50), (2, 25), (1, 12), (1, 10) look at four neighbours each, two of which were seen in the last.
    assert len(search.scores) == 1 + 4 + 4 + 4 + 2


def test_a_grid_of_one_place_is_scored_once():
    search, steps = run(LocalSearch((1, 1), (0, 0), (4, 50)), lambda *_: 0.5)

    assert steps == [[(0, 0)]]
    assert search.ended
