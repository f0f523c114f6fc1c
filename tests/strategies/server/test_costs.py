"""Expected costs of turns, and how evenly a round's work lay."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmlic.protocol import HostInfo, Turn
from strategies.server.balance import balance, hosts_of
from strategies.server.cohort import Directory
from strategies.server.costs import Costs


def directory(sizes):
    clients = np.arange(len(sizes), dtype=np.int64)
    return Directory([HostInfo("test", clients, np.array(sizes, dtype=np.int64), ("a",))])


def turn(client, seconds, num_images, **more):
    return Turn(client, "test", seconds=seconds, num_images=num_images, **more)


def test_without_a_measurement_the_largest_come_first():
    assert list(Costs(directory([5, 9, 9, 2])).of([3, 2, 0, 1])) == [1, 2, 0, 3]


def test_a_client_costs_what_it_took_and_others_what_the_line_says():
    costs = Costs(directory([10, 20, 30, 40]))
    costs.learn([turn(0, 0.2, 10), turn(1, 0.3, 20), turn(2, 9.0, 30, error="ValueError: no")])

    found = costs.of([0, 1, 2, 3])

    assert found[0] == pytest.approx(0.2)
    assert found[1] == pytest.approx(0.3)
    assert found[2] == pytest.approx(0.4), "a failed turn tells nothing"
    assert found[3] == pytest.approx(0.5)
    assert list(found) == [3, 2, 1, 0]


def test_a_straggler_is_played_first_the_next_time():
    costs = Costs(directory([10, 20, 30]))
    costs.learn([turn(0, 7.0, 10), turn(1, 0.2, 20), turn(2, 0.3, 30)])

    assert next(iter(costs.of([2, 1, 0]))) == 0


def test_later_turns_count_more_than_earlier_ones():
    costs = Costs(directory([10, 10]))
    for seconds in (1.0, 3.0, 3.0, 3.0):
        costs.learn([turn(0, seconds, 10)])

    assert 2.7 < costs.of([0])[0] < 3.0


@given(st.lists(st.tuples(st.integers(1, 50), st.floats(1e-4, 100)), min_size=1, max_size=12))
def test_costs_are_positive_and_in_order(played):
    costs = Costs(directory([size for size, _ in played] + [7, 50]))
    costs.learn([turn(client, seconds, size) for client, (size, seconds) in enumerate(played)])
    found = list(costs.of(range(len(played) + 2)).values())

    assert all(value > 0 for value in found)
    assert found == sorted(found, reverse=True)


def test_balance_by_hand():
    turns = [
        Turn(1, "x", seconds=1.0, num_images=3),
        Turn(2, "y", seconds=2.0, num_images=4),
        Turn(3, "x", seconds=0.5, num_images=5),
    ]

    assert balance(turns, 4.0, 2) == {"idle-share": 0.5625, "slowest-client": 2, "slowest-seconds": 2.0}
    assert hosts_of(turns, 4.0) == [
        {"host": "x", "num-clients": 2, "num-images": 8, "busy-seconds": 1.5, "idle-share": 0.625},
        {"host": "y", "num-clients": 1, "num-images": 4, "busy-seconds": 2.0, "idle-share": 0.5},
    ]
