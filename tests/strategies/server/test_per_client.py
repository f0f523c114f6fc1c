"""Clients' own evaluations, one by one."""

import math

from fedmlic.protocol import Turn
from strategies.server.per_client import client_rows, own_values, worst_client


def turn(client, score=math.nan, labels=0, **others):
    found = {"mAP": score, "prevalence": 0.25, "chance": 0.3, "num-labels": float(labels)}
    return Turn(client, "host", num_images=10, metrics=found, **others)


TURNS = [turn(2, 0.25, 3), turn(0, 0.75, 1), turn(5), turn(1, 0.25, 2), Turn(4, "host", error="ValueError: bad day")]


def test_every_client_that_was_asked_has_a_row():
    rows = client_rows(7, TURNS, {0, 1, 4})

    assert [row["client"] for row in rows] == [0, 1, 2, 4, 5]
    assert rows[0] == {
        "round": 7,
        "client": 0,
        "split": "holdout",
        "mAP": 0.75,
        "num-labels": 1,
        "num-images": 10,
        "prevalence": 0.25,
        "chance": 0.3,
        "trained": True,
    }
    assert [row["trained"] for row in rows] == [True, True, False, True, False]
    assert rows[3]["error"] == "ValueError: bad day"
    assert math.isnan(rows[3]["mAP"])
    assert rows[3]["num-images"] == rows[3]["num-labels"] == 0
    assert "error" not in rows[4]


def test_the_worst_client_is_named_and_of_equals_the_first():
    found = own_values(sorted(TURNS, key=lambda each: each.client), 5)

    assert found["worst"] == 0.25
    assert found["worst-client"] == 1
    assert found["num-evaluated"] == 4


def test_without_a_client_that_counts_nobody_is_the_worst():
    assert worst_client({}) is None
    assert "worst-client" not in own_values([turn(5)], 5)
