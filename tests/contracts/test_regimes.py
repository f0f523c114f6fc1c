"""What every regime promises: all entries of the catalogue are found by themselves.

A regime declares what it does beyond hiding entries at random (``fedmlic.regime``); the battery
reads those declarations and knows no regime by name.
"""

import dataclasses
import functools
import inspect
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmlic.dataset import Objects
from fedmlic.errors import InputError
from fedmlic.labels import UNCERTAIN, UNKNOWN, check_labels, known
from fedmlic.regime import Assignment, looks_of, prepared
from fedmlic.seeds import text_keys
from fedmlic.spec import build, entries, factory

NAMES = os.environ.get("FEDMLIC_ENTRY", "").split() or entries("regime")
VARIANTS = [
    *NAMES,
    "annotator_table(annotator='all', aggregation='unanimous')",
    "annotator_table(annotator='drawn', blind=0.9)",
    "annotators(num_annotators=3, aggregation='any', recall=[0.3, 0.9])",
    "annotators(num_annotators=2, aggregation='unanimous')",
    "annotators(num_annotators=4, aggregation='single', size_effect=0, location_effect=0)",
    "candidate_sets(probability={'beta': [1, 9]})",
    "compose(regimes=['annotators()', 'label_subset(labels_per_client=3)'])",
    "compose(regimes=['random_missing()', 'random_missing()'])",
    "compose(regimes=['fixed_per_class(positives=5, negatives=9)', 'compose(regimes=[\"label_noise()\"])'])",
    "fixed_per_class(positives=4, negatives=7)",
    "fixed_per_class(positives=4, negatives=7, over='client')",
    "label_noise(equal_count=True)",
    "label_noise(equal_count=True, over='client')",
    "label_noise(miss=[0, 0.4], spurious=0.1)",
    "label_subset(labels=[['dog', 'cat'], ['person'], []])",
    "label_subset(labels_per_client=[1, 4], rule='dirichlet')",
    "label_subset(missing='absent')",
    "label_subset(rule='round_robin')",
    "one_of(regimes=['complete()', 'label_subset()', 'candidate_sets()'], probabilities=[0.2, 0.5, 0.3])",
    "positive_only(known_fraction=0.5)",
    "random_missing(known_fraction=[0.2, 0.9])",
    "random_missing(of='absent')",
    "random_missing(of='present')",
    "single_positive(bias='location')",
    "single_positive(bias='semantic', concentration=0.5)",
    "single_positive(bias='semantic', mention_rates=[0, 1, 2, 3, 4, 5])",
    "single_positive(bias='size')",
    "uncertain(of='present')",
    "compose(regimes=['label_noise()', 'withheld(count=2)', 'random_missing()'])",
    "withheld(labels='dog, sofa')",
    "uncertain(rule='small', max_area_fraction=0.2, probability=0.7)",
]
LABELS = ("person", "cat", "dog", "car", "bottle", "sofa")
NUM_IMAGES, NUM_LABELS, SIZE = 80, len(LABELS), 32
every_regime = pytest.mark.parametrize("name", VARIANTS)


def truth():
    return drawn_labels().copy()


@functools.cache
def drawn_labels():
    rng = np.random.default_rng(12)
    labels = rng.choice(np.array([1, 0, -1, -2], dtype=np.int8), (NUM_IMAGES, NUM_LABELS), p=[0.3, 0.5, 0.15, 0.05])
    labels[0] = 0
    return labels


def assignment(client=0, seed=0, rows=None, labels=None):
    """Labels in all four states, each present one with a box, of the images ``rows`` in that order."""
    objects, all_keys = drawn_objects()
    rows = np.arange(NUM_IMAGES) if rows is None else rows
    labels = (truth() if labels is None else labels)[rows]
    keys = all_keys[rows]
    labels.flags.writeable = False
    return Assignment(labels, keys, objects.take(rows), client, seed, LABELS, (SIZE, SIZE))


@functools.cache
def drawn_objects():
    """Boxes of the present entries, and the key of every image."""
    row, label = np.nonzero(truth() == 1)
    box = SIZE * np.random.default_rng(13).random((len(row), 4)).astype(np.float32) / 2
    objects = Objects(row.astype(np.int64), label.astype(np.int16), box, box[:, 2] * box[:, 3])
    return objects, text_keys([f"image {i}" for i in range(NUM_IMAGES)])


@functools.cache
def regime_of(name):
    """The regime when all images of the battery belong to the federation; all tests ask this one."""
    return prepared(build("regime", name), assignment())


def observe(name, assigned):
    """What it writes down; that it does not matter what it was asked before is a test of its own."""
    return regime_of(name).annotate(assigned)


def test_the_catalogue_is_found():
    assert {"complete", "random_missing", "single_positive", "label_subset", "compose", "annotators"} <= set(NAMES)


@every_regime
def test_it_returns_valid_states_of_the_same_shape_and_leaves_its_input_alone(name):
    assigned = assignment()
    before = assigned.labels.copy()
    observed = observe(name, assigned)

    check_labels(observed, NUM_LABELS)
    assert observed.shape == before.shape
    assert np.array_equal(assigned.labels, before)
    assert not np.shares_memory(observed, assigned.labels)


@every_regime
def test_what_the_data_set_does_not_know_stays_as_it_is(name):
    assigned = assignment()
    unknown = ~known(assigned.labels)

    assert np.array_equal(observe(name, assigned)[unknown], assigned.labels[unknown])


@every_regime
def test_it_adds_wrong_and_uncertain_entries_if_and_only_if_it_says_so(name):
    wrong = unsure = 0
    for client in range(12):
        assigned = assignment(client)
        observed = observe(name, assigned)
        wrong += int((known(observed) & (observed != assigned.labels)).sum())
        unsure += int(((observed == UNCERTAIN) & (assigned.labels != UNCERTAIN)).sum())

    assert (wrong > 0) == build("regime", name).adds_wrong
    assert (unsure > 0) == build("regime", name).adds_uncertain


@every_regime
def test_the_same_client_gets_the_same_labels_whatever_others_do(name):
    regime = prepared(build("regime", name), assignment())
    alone = regime.annotate(assignment(client=3))
    for other in (0, 4, 7):
        regime.annotate(assignment(client=other))

    assert np.array_equal(regime.annotate(assignment(client=3)), alone)
    assert np.array_equal(prepared(build("regime", name), assignment()).annotate(assignment(client=3)), alone)
    assert np.array_equal(observe(name, assignment(client=3)), alone)


@every_regime
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_the_order_of_images_never_matters(name, data):
    rows = np.array(data.draw(st.lists(st.integers(0, NUM_IMAGES - 1), min_size=1, unique=True)))
    order = np.array(data.draw(st.permutations(range(len(rows)))))
    first, second = (observe(name, assignment(2, rows=r)) for r in (rows, rows[order]))

    assert np.array_equal(second, first[order])


@every_regime
def test_the_order_of_the_federations_images_never_matters(name):
    shuffled = prepared(build("regime", name), assignment(rows=np.random.default_rng(1).permutation(NUM_IMAGES)))

    assert np.array_equal(shuffled.annotate(assignment(client=5)), observe(name, assignment(client=5)))


@every_regime
@settings(max_examples=6, deadline=None)
@given(rows=st.lists(st.integers(0, NUM_IMAGES - 1), min_size=1, unique=True))
def test_other_images_matter_only_to_a_regime_that_counts_them(name, rows):
    if build("regime", name).counts_images:
        return
    whole = observe(name, assignment(client=2))

    assert np.array_equal(observe(name, assignment(client=2, rows=np.array(rows))), whole[rows])


@pytest.mark.parametrize("name", [name for name in VARIANTS if "positives=4" in name or "equal_count" in name])
def test_a_regime_that_counts_images_says_so(name):
    assert build("regime", name).counts_images


@every_regime
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_hidden_entries_carry_no_information_unless_it_is_selective(name, data):
    """Whatever the hidden entries are, the same entries are known; where nothing is wrong, all is the same."""
    regime = build("regime", name)
    if regime.selective:
        return
    assigned = assignment(client=data.draw(st.integers(0, 30)))
    observed = observe(name, assigned)
    hidden = np.argwhere((observed == UNKNOWN) & known(assigned.labels))
    flipped = truth()
    for row, label in hidden[data.draw(st.lists(st.integers(0, max(0, len(hidden) - 1)), max_size=40))[: len(hidden)]]:
        flipped[row, label] ^= 1
    again = observe(name, assignment(assigned.client, labels=flipped))

    assert np.array_equal(known(again), known(observed))
    assert regime.adds_wrong or np.array_equal(again, observed)


@every_regime
def test_known_entries_are_equally_often_present_and_absent_unless_it_is_selective(name):
    """Of a label's present and absent entries the same share is known, within three standard deviations."""
    if regime_of(name).selective:
        return
    gaps = []
    for client in range(100):
        assigned = assignment(client)
        is_known = known(observe(name, assigned))
        shares = [np.ma.masked_where(assigned.labels != state, is_known).mean(axis=0) for state in (1, 0)]
        gaps.append(np.mean(shares[0] - shares[1]))

    assert abs(np.mean(gaps)) <= 3 * np.std(gaps) / np.sqrt(len(gaps)) + 1e-12


@every_regime
def test_somebody_looked_at_every_true_annotation_and_at_nothing_unknown(name):
    regime = prepared(build("regime", name), assignment())
    for client in range(5):
        assigned = assignment(client)
        observed = regime.annotate(assigned)
        looks = looks_of(regime, assigned, observed)
        silent = known(observed) & (looks == 0)

        assert looks.shape == observed.shape
        assert looks.dtype.kind in "iu"
        assert (looks[observed == UNKNOWN] == 0).all()
        assert (looks[observed == UNCERTAIN] > 0).all()
        assert (observed[silent] == 0).all()
        assert regime.adds_wrong or not silent.any()


@every_regime
def test_boxes_are_needed_if_and_only_if_it_says_so(name):
    assigned = dataclasses.replace(assignment(client=1), objects=None)
    regime = prepared(build("regime", name), assignment())
    if not regime.needs_objects:
        assert np.array_equal(regime.annotate(assigned), regime.annotate(assignment(client=1)))
        return

    with pytest.raises(InputError, match=r"Expected the data set to have boxes .* got none\. (Set|Use) "):
        regime.annotate(assigned)


@every_regime
def test_inside_a_composition_it_draws_anew_except_as_the_first_part(name):
    assigned = assignment(client=3)
    alone = observe(name, assigned)
    regime = prepared(build("regime", name), assignment())
    first, second = (regime.annotate(assigned.part(assigned.labels, place)) for place in (0, 1))

    assert np.array_equal(first, alone)
    assert np.array_equal(second, regime.annotate(assigned.part(assigned.labels, 1)))


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

    assert page.read_text(encoding="utf-8").startswith(f"# {name}\n")
