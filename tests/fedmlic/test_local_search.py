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
def test_it_ends_within_its_budget_and_every_step_asks_for_something_new(peak, budget, begin):
    search, steps = run(LocalSearch((28, 1000), begin, (4, 50), budget=budget), hill(*peak))

    known = set()
    for step in steps:
        assert 1 <= len(step) == len(set(step)) <= 5
        assert not set(step) <= known
        known |= set(step)
    assert search.ended
    assert known == set(search.scores)
    assert len(known) <= budget
    assert all(0 <= block < 28 and 0 <= timestep < 1000 for block, timestep in known)
    assert search.scores == {place: hill(*peak)(*place) for place in known}  # one judge: no score was changed
    assert search.scores[search.best] == max(search.scores.values())
    assert steps[0][0] == begin


@given(
    peak=st.tuples(st.integers(0, 27), st.integers(0, 999)),
    budget=st.integers(1, 40),
    easier=st.lists(st.integers(-8, 8), min_size=1, max_size=8),
)
def test_judges_who_differ_by_a_number_lead_where_one_judge_leads(peak, budget, easier):
    def rounded(block, timestep):  # in multiples of 2^-20, so that sums are exact
        return round(hill(*peak)(block, timestep) * 2**20) / 2**20

    begin = LocalSearch((28, 1000), (12, 100), (4, 50), budget=budget)
    one, steps = run(begin, rounded)
    search, asked = begin, []
    while wanted := search.wanted():
        asked.append(wanted)
        judge = easier[(len(asked) - 1) % len(easier)] / 8
        search = search.scored({place: rounded(*place) + judge for place in wanted})

    assert asked == steps
    assert search.best == search.place == one.place
    assert search.scores == {place: score + easier[0] / 8 for place, score in one.scores.items()}


def test_a_neighbour_is_compared_with_the_place_by_the_scores_of_one_step():
    begin = LocalSearch((28, 1000), (12, 100), (4, 50))
    easy = begin.scored({(12, 100): 0.8, (16, 100): 0.9, (8, 100): 0.7, (12, 150): 0.8, (12, 50): 0.8})
    assert easy.wanted() == [(16, 100), (20, 100), (12, 100), (16, 150), (16, 50)]

    hard = easy.scored({(16, 100): 0.3, (20, 100): 0.4, (12, 100): 0.2, (16, 150): 0.3, (16, 50): 0.3})
    back = easy.scored({(16, 100): 0.3, (20, 100): 0.2, (12, 100): 0.4, (16, 150): 0.3, (16, 50): 0.3})

    assert hard.place == (20, 100)
    assert back.place == (12, 100)  # what the first step found does not hold for other judges
    assert back.scores[12, 100] == pytest.approx(1.0)


def test_scores_without_that_of_the_place_are_refused():
    begin = LocalSearch((28, 1000), (12, 100), (4, 50))

    with pytest.raises(ValueError, match=r"hold that of the place \(12, 100\), got \[\(16, 100\)\]"):
        begin.scored({(16, 100): 0.5})


def test_on_a_plain_it_stays_where_it_began():
    search, _ = run(LocalSearch((28, 1000), (12, 100), (4, 50)), lambda *_: 0.5)

    assert search.best == (12, 100)
    # Steps (4, 50), (2, 25), (1, 12), (1, 10) look at four neighbours each, two of which were seen in the last.
    assert len(search.scores) == 1 + 4 + 4 + 4 + 2


def test_a_grid_of_one_place_is_scored_once():
    search, steps = run(LocalSearch((1, 1), (0, 0), (4, 50)), lambda *_: 0.5)

    assert steps == [[(0, 0)]]
    assert search.ended
