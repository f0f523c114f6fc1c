"""What every regime promises, whoever wrote it: all entries of the catalogue are found by themselves."""

import inspect
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmlic.dataset import Objects
from fedmlic.labels import UNCERTAIN, check_labels, known
from fedmlic.regime import Assignment
from fedmlic.seeds import text_keys
from fedmlic.spec import build, entries, factory

NAMES = entries("regime")
VARIANTS = [*NAMES, "label_subset(missing='absent')", "random_missing(of='present')", "random_missing(of='absent')"]
LABELS = ("person", "cat", "dog", "car", "bottle", "sofa")
NUM_LABELS = len(LABELS)
every_regime = pytest.mark.parametrize("name", VARIANTS)


def assignment(client=0, seed=0, num_images=80, rows=None):
    """Labels in all four states, each present one with a box, of the images ``rows`` in that order."""
    rng = np.random.default_rng(12)
    labels = rng.choice(np.array([1, 0, -1, -2], dtype=np.int8), (num_images, NUM_LABELS), p=[0.3, 0.5, 0.15, 0.05])
    labels[0] = 0
    row, label = np.nonzero(labels == 1)
    box = rng.random((len(row), 4)).astype(np.float32)
    objects = Objects(row.astype(np.int64), label.astype(np.int16), box, box[:, 2] * box[:, 3])
    rows = np.arange(num_images) if rows is None else rows
    labels, keys = labels[rows], text_keys([f"image {i}" for i in range(num_images)])[rows]
    labels.flags.writeable = False
    return Assignment(labels, keys, objects.take(rows), client, seed, LABELS)


def observe(name, given_assignment):
    return build("regime", name).annotate(given_assignment)


def test_the_catalogue_is_found():
    assert {"complete", "random_missing", "single_positive", "label_subset"} <= set(NAMES)


@every_regime
def test_it_returns_valid_states_of_the_same_shape_and_leaves_its_input_alone(name):
    given_assignment = assignment()
    before = given_assignment.labels.copy()
    observed = observe(name, given_assignment)

    check_labels(observed, NUM_LABELS)
    assert observed.shape == before.shape
    assert np.array_equal(given_assignment.labels, before)
    assert not np.shares_memory(observed, given_assignment.labels)


@every_regime
def test_what_the_data_set_does_not_know_stays_unknown(name):
    given_assignment = assignment()
    observed = observe(name, given_assignment)
    unknown = ~known(given_assignment.labels)

    assert np.array_equal(observed[unknown], given_assignment.labels[unknown])
    assert not (observed[~unknown] == UNCERTAIN).any()


@every_regime
def test_known_entries_are_true_unless_wrong_ones_are_declared(name):
    wrong = 0
    for client in range(20):
        given_assignment = assignment(client)
        observed = observe(name, given_assignment)
        wrong += int((known(observed) & (observed != given_assignment.labels)).sum())

    assert (wrong > 0) == build("regime", name).adds_wrong


@every_regime
def test_the_same_client_gets_the_same_labels_whatever_others_do(name):
    regime = build("regime", name)
    alone = regime.annotate(assignment(client=3))
    for other in (0, 4, 7):
        regime.annotate(assignment(client=other))

    assert np.array_equal(regime.annotate(assignment(client=3)), alone)
    assert np.array_equal(observe(name, assignment(client=3)), alone)


@every_regime
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_neither_the_order_of_images_nor_which_others_there_are_matters(name, data):
    rows = np.array(data.draw(st.lists(st.integers(0, 79), min_size=1, unique=True)))
    whole = observe(name, assignment(client=2))

    assert np.array_equal(observe(name, assignment(client=2, rows=rows)), whole[rows])


@every_regime
def test_a_client_without_images_has_no_labels(name):
    assert observe(name, assignment(rows=np.empty(0, dtype=np.int64))).shape == (0, NUM_LABELS)


@every_regime
def test_every_parameter_is_a_keyword_with_a_default(name):
    parameters = inspect.signature(factory("regime", name.partition("(")[0])).parameters.values()

    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in parameters)


@pytest.mark.parametrize("name", NAMES)
def test_a_page_explains_it(name):
    page = Path(__file__).parents[2] / "docs" / "regimes" / f"{name}.md"

    assert page.read_text(encoding="utf-8").startswith("# ")
