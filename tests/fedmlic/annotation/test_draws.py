"""Numbers drawn per client, weights in logarithms, and draws by tickets, each against a second implementation."""

import itertools

import numpy as np
import pytest
from scipy import stats

from fedmlic.annotation.draws import chance, log_dirichlet, race, whole
from fedmlic.annotation.votes import aggregate, turns
from fedmlic.labels import ABSENT, PRESENT, UNCERTAIN, UNKNOWN
from fedmlic.regime import Assignment
from fedmlic.seeds import stream


def assignment_of(client=0, images=0):
    return Assignment(np.zeros((images, 2), np.int8), np.arange(images, dtype=np.uint64), None, client, 0)


@pytest.mark.parametrize(
    ("value", "distribution"),
    [((0.2, 0.6), stats.uniform(0.2, 0.4)), ({"beta": (2.0, 5.0)}, stats.beta(2, 5))],
)
def test_a_chance_has_the_asked_distribution_over_clients(value, distribution):
    drawn = [chance(value, assignment_of(client), "x") for client in range(800)]

    assert stats.kstest(drawn, distribution.cdf).pvalue > 0.01
    assert drawn[5] == chance(value, assignment_of(5), "x") != chance(value, assignment_of(5), "y")


def test_a_plain_number_is_the_same_for_all():
    assert {chance(0.3, assignment_of(client), "x") for client in range(5)} == {0.3}
    assert {whole(4, assignment_of(client), "x") for client in range(5)} == {4}


def test_whole_numbers_include_both_ends():
    assert {whole((2, 4), assignment_of(client), "x") for client in range(50)} == {2, 3, 4}


@pytest.mark.parametrize("alphas", [[0.5, 0.5], [2.0, 1.0], [0.3, 1.2]])
def test_log_dirichlet_is_a_dirichlet_draw(alphas):
    """The first of two shares is Beta(a, b)."""
    draws = np.array([log_dirichlet(np.array(alphas), stream(0, "x", i)) for i in range(1500)])
    share = 1 / (1 + np.exp(draws[:, 1] - draws[:, 0]))

    assert stats.kstest(share, stats.beta(*alphas).cdf).pvalue > 0.01


def test_no_share_is_lost_to_rounding_however_small_alpha():
    draw = log_dirichlet(np.full(50, 1e-4), stream(0, "x"))

    assert np.isfinite(draw).all()
    assert len(np.unique(draw)) == 50
    assert log_dirichlet(np.array([0.0, 1.0]), stream(0, "x"))[0] == -np.inf


def test_the_largest_tickets_are_draws_without_replacement_by_weight():
    weights = np.array([1.0, 2.0, 5.0])
    tickets = race(stream(0, "x").random((6000, 3)), np.log(weights))
    order = np.argsort(-tickets, axis=1)
    for first, second in itertools.permutations(range(3), 2):
        probability = weights[first] / 8 * weights[second] / (8 - weights[first])
        count = int(((order[:, 0] == first) & (order[:, 1] == second)).sum())
        assert abs(count - 6000 * probability) <= 3 * np.sqrt(6000 * probability * (1 - probability))


def test_a_weight_of_zero_never_wins_and_a_uniform_of_zero_is_no_error():
    assert (race(np.array([0.999, 0.001]), np.array([-np.inf, 0.0])).argmax()) == 1
    assert race(np.array([0.0, 0.5]), np.zeros(2)).argmax() == 1


# Votes


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("majority", [ABSENT, ABSENT, PRESENT, PRESENT]),
        ("any", [ABSENT, PRESENT, PRESENT, PRESENT]),
        ("unanimous", [ABSENT, UNCERTAIN, UNCERTAIN, PRESENT]),
        ("single", [ABSENT, ABSENT, PRESENT, PRESENT]),
    ],
)
def test_votes_of_three(how, expected):
    """0, 1, 2 and 3 of them say present; under "single" the second annotator has the image."""
    says = np.array([[[0, 0, 0, 1, 1, 1]], [[0, 0, 1, 1, 1, 1]], [[0, 1, 1, 1, 1, 1]]], dtype=bool)
    truth = np.array([[0, 1, 0, 1, UNKNOWN, UNCERTAIN]], dtype=np.int8)

    assert aggregate(says, how, np.array([1]), truth).tolist() == [[*expected, UNKNOWN, UNCERTAIN]]


def test_half_is_no_majority():
    says = np.array([[[True]], [[False]]])

    assert aggregate(says, "majority", np.array([0]), np.ones((1, 1), np.int8)).tolist() == [[ABSENT]]


def test_annotators_take_turns_equally_often():
    chosen = turns(assignment_of(images=6000), "single", 3)

    assert all(abs(n - 2000) <= 3 * np.sqrt(6000 * 2 / 9) for n in np.bincount(chosen, minlength=3))
    assert turns(assignment_of(images=3), "majority", 3).tolist() == [0, 0, 0]
