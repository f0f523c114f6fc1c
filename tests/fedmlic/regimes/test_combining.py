"""Regimes made of regimes: a composition is a plain loop over its parts, a mixture is one of its parts."""

import numpy as np
import pytest

from fedmlic.labels import ABSENT, PRESENT, known
from fedmlic.regime import Assignment, looks_of, prepared
from fedmlic.seeds import text_keys
from fedmlic.spec import build


def assignment_of(labels, client=0, seed=0):
    labels = np.asarray(labels, dtype=np.int8)
    return Assignment(labels, text_keys([f"image {i}" for i in range(len(labels))]), None, client, seed)


def random_labels(num_images=2000, num_labels=6):
    return (np.random.default_rng(5).random((num_images, num_labels)) < 0.3).astype(np.int8)


def within(count, trials, probability, sigmas=3):
    return abs(count - trials * probability) <= sigmas * np.sqrt(trials * probability * (1 - probability)) + 1e-9


NOISE, SUBSET, MISSING = "label_noise(miss=0.3, spurious=0.1)", "label_subset(labels_per_client=2)", "random_missing()"


def composed(*texts):
    return build("regime", f"compose(regimes={list(texts)})")


def test_a_later_part_works_on_what_the_earlier_one_wrote():
    labels = random_labels()
    noisy = build("regime", NOISE).annotate(assignment_of(labels, client=3))
    observed = composed(NOISE, SUBSET).annotate(assignment_of(labels, client=3))
    annotated = known(observed).all(axis=0)

    assert annotated.sum() == 2
    assert np.array_equal(observed[:, annotated], noisy[:, annotated])
    assert not known(observed[:, ~annotated]).any()


def test_the_same_regime_twice_hides_twice():
    """Known with probability 1/4; reusing the stream would leave 1/2."""
    labels = random_labels()

    assert within(int(known(composed(MISSING, MISSING).annotate(assignment_of(labels))).sum()), labels.size, 0.25)


@pytest.mark.parametrize(
    "texts",
    [
        [f"compose(regimes={[NOISE, SUBSET]})", MISSING],
        [NOISE, f"compose(regimes={[SUBSET, MISSING]})"],
    ],
)
def test_brackets_do_not_matter(texts):
    labels = random_labels(200)
    for client in range(5):
        flat = composed(NOISE, SUBSET, MISSING).annotate(assignment_of(labels, client))
        assert np.array_equal(composed(*texts).annotate(assignment_of(labels, client)), flat)


def test_declarations_are_those_of_the_parts():
    both = composed(NOISE, "fixed_per_class(over='client')", "uncertain()", "single_positive(bias='size')")

    assert both.adds_wrong
    assert both.adds_uncertain
    assert both.counts_images
    assert both.selective
    assert both.needs_objects
    assert not any((plain := composed(SUBSET, MISSING))[1:6]), plain


def test_looks_are_those_of_the_annotators_where_the_last_part_left_something():
    labels = random_labels(100)
    three = "annotators(num_annotators=3, size_effect=0, location_effect=0)"
    regime = composed(three, SUBSET)
    given_assignment = assignment_of(labels, client=2)
    observed = regime.annotate(given_assignment)

    assert np.array_equal(looks_of(regime, given_assignment, observed), 3 * known(observed))


def test_a_quota_of_the_federation_counts_the_data_set():
    labels = random_labels()
    regime = prepared(composed(SUBSET, "fixed_per_class(positives=50, negatives=50)"), assignment_of(labels))
    observed = regime.annotate(assignment_of(labels))
    annotated = known(observed).any(axis=0)

    assert annotated.sum() == 2
    for state in (PRESENT, ABSENT):
        assert (observed == state).sum(axis=0)[annotated].tolist() == [50, 50]


def test_each_client_is_annotated_under_one_regime():
    labels = np.zeros((30, 6))
    text = "one_of(regimes=['complete()', 'label_subset(labels_per_client=1)', 'candidate_sets(probability=1)']"
    regime = build("regime", text + ", probabilities=[0.5, 0.2, 0.3])")
    kinds = []
    for client in range(1500):
        observed = regime.annotate(assignment_of(labels, client))
        kinds.append(1 if not known(observed).all() else 2 if observed.any() else 0)

    assert all(within(kinds.count(kind), 1500, share) for kind, share in enumerate((0.5, 0.2, 0.3)))


def test_a_mixture_inside_a_mixture_draws_anew():
    """Half of the clients have the inner mixture, and half of those nothing: a quarter in all."""
    labels = np.zeros((2, 3))
    inner = "one_of(regimes=['complete()', 'random_missing(known_fraction=0)'])"
    regime = build("regime", f"one_of(regimes=['complete()', {inner!r}])")
    empty = sum(not known(regime.annotate(assignment_of(labels, client))).any() for client in range(1000))

    assert within(empty, 1000, 0.25)


def test_what_a_client_never_draws_is_not_declared():
    regime = build("regime", "one_of(regimes=['complete()', 'label_noise()'], probabilities=[1, 0])")

    assert not regime.adds_wrong
