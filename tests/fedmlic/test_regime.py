"""The assigned and its streams: what is drawn depends on names alone; old regimes draw what they always drew."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmlic.errors import InputError
from fedmlic.regime import Assignment, Regime, looks_of, prepared
from fedmlic.seeds import text_keys
from fedmlic.spec import build


def assignment_of(labels, client=0, seed=0, **more):
    labels = np.asarray(labels, dtype=np.int8)
    return Assignment(labels, text_keys([f"image {i}" for i in range(len(labels))]), None, client, seed, **more)


@pytest.mark.parametrize(
    ("regime", "digest"),
    [
        ("complete", "7d97cb8647cc2791"),
        ("random_missing", "018752e7129beb06"),
        ("random_missing(known_fraction=0.3, of='present')", "88f29c5c3bc6fef7"),
        ("random_missing(of='absent')", "608e52ebf27fe1b4"),
        ("single_positive", "1bbe96158c9cd66f"),
        ("label_subset", "5a373231e2524028"),
        ("label_subset(labels_per_client=5, missing='absent')", "a78edaecbb943f4f"),
    ],
)
def test_labels_of_earlier_versions_are_drawn_again(regime, digest):
    labels = np.random.default_rng(12).choice(
        np.array([1, 0, -1, -2], dtype=np.int8), (300, 7), p=[0.3, 0.5, 0.15, 0.05]
    )
    made = build("regime", regime)
    drawn = b"".join(made.annotate(assignment_of(labels, client, 3)).tobytes() for client in range(20))

    assert hashlib.sha256(drawn).hexdigest().startswith(digest)


def test_every_place_of_a_composition_has_streams_of_its_own():
    """Desks of parts, of options, of parts of options and of options of parts: all different, first ones alike."""
    first = assignment_of(np.zeros((3, 2)))
    moved = first.part(first.labels, 0)
    others = [
        first.part(first.labels, 1),
        first.part(first.labels, 2),
        first.option(0),
        first.option(1),
        first.part(first.labels, 1).option(0),
        first.option(0).part(first.labels, 1),
        first.option(0).option(0),
        first.option(1).part(first.labels, 2),
    ]
    names = ["uniforms", "shared_uniforms", "rng", "shared_rng"]

    def drawn(one):
        made = [getattr(one, name)("x") for name in names]
        return [(x if isinstance(x, np.ndarray) else x.random(6)).ravel().tolist() for x in made]

    assert drawn(moved) == drawn(first)
    found = [numbers for one in [first, *others] for numbers in drawn(one)]
    assert len({tuple(numbers) for numbers in found}) == len(found)


@given(st.integers(0, 5), st.integers(0, 5))
def test_places_add_up(one, other):
    start = assignment_of(np.zeros((1, 1)))

    assert start.part(start.labels, one).part(start.labels, other) == start.part(start.labels, one + other)


def test_shared_numbers_belong_to_no_client_and_may_be_asked_for_in_pieces():
    first, second = assignment_of(np.zeros((9, 4)), client=1), assignment_of(np.zeros((9, 4)), client=2)
    whole = first.shared_uniforms("x")

    assert np.array_equal(whole, second.shared_uniforms("x"))
    assert first.shared_rng("x").random() == second.shared_rng("x").random()
    assert np.array_equal(first.shared_uniforms("x", slice(3, 7)), whole[3:7])
    assert not np.array_equal(first.uniforms("x"), second.uniforms("x"))


def test_without_a_rule_of_its_own_every_entry_that_is_not_unknown_cost_one_look():
    labels = assignment_of([[1, 0, -1, -2]])

    assert looks_of(build("regime", "complete"), labels, labels.labels).tolist() == [[1, 1, 0, 1]]


def test_a_regime_is_prepared_with_everybodys_images():
    def prepare(everyone):
        return Regime(lambda assignment: np.full_like(assignment.labels, len(everyone.labels)))

    regime = Regime(lambda assignment: assignment.labels, prepare=prepare)

    assert prepared(regime, assignment_of(np.zeros((5, 1)))).annotate(assignment_of([[0]])).tolist() == [[5]]
    assert prepared(build("regime", "complete"), assignment_of([[1]])).annotate(assignment_of([[1]])).tolist() == [[1]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("random_missing(known_fraction=1.5)", "known_fraction.*less than or equal to 1.*1.5"),
        ("random_missing(known_fraction=[0.5, 0.1])", r"known_fraction.*a range is \[low, high\].*0.5, 0.1"),
        ("random_missing(known_fraction=[0.5, 2])", "known_fraction.range.1.*less than or equal to 1.*got 2"),
        ("random_missing(known_fraction={'beta': [0, 1]})", "known_fraction.*greater than 0"),
        ("random_missing(known_fraction={})", "known_fraction.*at least 1"),
        ("random_missing(of='positives')", "'all', 'present' or 'absent'"),
        ("label_subset(labels_per_client=0)", "labels_per_client.*greater than or equal to 1"),
        ("label_subset(labels_per_cleint=3)", "Did you mean 'labels_per_client'"),
        ("label_subset(labels=[['cat']], rule='dirichlet')", "labels or a rule, got labels and rule='dirichlet'"),
        (
            "label_subset(labels_per_client=[1, 2], rule='round_robin')",
            r"one number for rule='round_robin', got \[1, 2",
        ),
        ("single_positives", "Did you mean 'single_positive'"),
        ("single_positive(bias='semantic')", "a rate per label for bias='semantic', got none. Give"),
        ("single_positive(concentration=1)", "for bias='semantic' alone, got bias='uniform'"),
        ("single_positive(bias='semantic', mention_rates=[0, 0])", "a rate above 0, got none"),
        ("label_noise(spurious=0.1, equal_count=True)", "spurious or equal_count=True, got both"),
        ("compose(regimes=['annotatrs()'])", "Did you mean 'annotators'"),
        ("compose(regimes=['label_noise(mis=1)'])", "Did you mean 'miss'"),
        ("compose(regimes=[])", "at least 1 item"),
        ("one_of(regimes=['complete()'], probabilities=[0.5])", "1 numbers with sum 1, one per regime, got"),
        ("one_of(regimes=['complete()', 'complete'], probabilities=[1])", "2 numbers with sum 1, one per regime, got"),
        ("annotators(num_annotators=0)", "num_annotators.*greater than or equal to 1"),
    ],
)
def test_a_bad_regime_is_explained(text, message):
    with pytest.raises(InputError, match=message):
        build("regime", text)


@pytest.mark.parametrize(
    ("text", "labels", "message"),
    [
        ("label_subset", [[1, 0]], r"at most the 2 labels .* got 3"),
        ("label_subset(labels_per_client=[1, 9])", [[1, 0]], r"at most the 2 labels .* got 9"),
        ("label_subset(labels=[['cat', 'cra']])", [[1, 0]], r"to name labels of the data set.*\n  'cra': Did you mean"),
        (
            "single_positive(bias='semantic', mention_rates={'cat': 1})",
            [[1, 0]],
            r"mention_rates .* a value for every label.*\n  car",
        ),
        ("single_positive(bias='semantic', mention_rates=[1])", [[1, 0]], "each of the 2 labels, got 1"),
        (
            "single_positive(bias='size')",
            [[1, 0]],
            r"boxes of its objects for single_positive\(bias='size'\), got none",
        ),
        ("annotator_table", [[1, 0, 1]], r"among the 20 .*others='mean'.*\n  labels without names"),
    ],
)
def test_a_regime_that_does_not_fit_the_data_set_is_explained(text, labels, message):
    with pytest.raises(InputError, match=message):
        build("regime", text).annotate(assignment_of(labels, label_names=("cat", "car")))


def test_labels_without_a_row_in_the_annotator_table_are_all_named():
    given_assignment = assignment_of([[1, 0, 1]], label_names=("cat", "zebra", "fork"))

    with pytest.raises(InputError, match=r"2 problems.*\n  'zebra'\n  'fork'"):
        build("regime", "annotator_table").annotate(given_assignment)
