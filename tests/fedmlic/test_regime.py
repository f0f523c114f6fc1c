"""Each regime against its formula: counts within four standard deviations, extremes exactly."""

import numpy as np
import pytest

from fedmlic.errors import InputError
from fedmlic.labels import ABSENT, PRESENT, UNKNOWN, known
from fedmlic.regime import Assignment
from fedmlic.seeds import text_keys
from fedmlic.spec import build


def desk(labels, client=0, seed=0):
    labels = np.asarray(labels, dtype=np.int8)
    return Assignment(labels, text_keys([f"image {i}" for i in range(len(labels))]), None, client, seed)


def random_labels(num_images=2000, num_labels=8, prevalence=0.3):
    return (np.random.default_rng(5).random((num_images, num_labels)) < prevalence).astype(np.int8)


def within(count, trials, probability, sigmas=4):
    return abs(count - trials * probability) <= sigmas * np.sqrt(trials * probability * (1 - probability))


def test_complete_shows_everything():
    labels = random_labels()

    assert np.array_equal(build("regime", "complete").annotate(desk(labels)), labels)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("of", ["all", "present", "absent"])
def test_random_missing_keeps_the_asked_fraction_of_what_it_names(of, fraction):
    labels = random_labels()
    observed = build("regime", f"random_missing(known_fraction={fraction}, of={of!r})").annotate(desk(labels))
    named = {"all": labels >= 0, "present": labels == PRESENT, "absent": labels == ABSENT}[of]

    assert within(int(known(observed)[named].sum()), int(named.sum()), fraction)
    assert np.array_equal(observed[~named], labels[~named])


def test_random_missing_at_its_ends_is_everything_or_nothing():
    labels = random_labels()

    assert np.array_equal(build("regime", "random_missing(known_fraction=1)").annotate(desk(labels)), labels)
    assert not known(build("regime", "random_missing(known_fraction=0)").annotate(desk(labels))).any()


def test_random_missing_hides_columns_clients_and_seeds_independently():
    labels = random_labels(num_labels=2)
    regime = build("regime", "random_missing")
    masks = [known(regime.annotate(desk(labels, client, seed))) for client, seed in ((0, 0), (1, 0), (0, 1))]

    for first, second in [(masks[0][:, 0], masks[0][:, 1]), (masks[0][:, 0], masks[1][:, 0]), (masks[0], masks[2])]:
        assert within(int((first == second).sum()), first.size, 0.5)


def test_more_known_entries_contain_the_fewer_ones():
    """The same uniforms decide at every fraction, so a sweep over fractions is nested."""
    labels = random_labels()
    few, many = (build("regime", f"random_missing(known_fraction={f})").annotate(desk(labels)) for f in (0.2, 0.6))

    assert (known(many) | ~known(few)).all()


def test_single_positive_picks_each_present_label_equally_often():
    labels = np.tile([1, 0, 1, 1, -1], (6000, 1))
    observed = build("regime", "single_positive").annotate(desk(labels))

    assert ((observed == PRESENT).sum(axis=1) == 1).all()
    assert (observed[observed != PRESENT] == UNKNOWN).all()
    assert (observed[:, [1, 4]] == UNKNOWN).all()
    assert all(within(int((observed[:, label] == PRESENT).sum()), 6000, 1 / 3) for label in (0, 2, 3))


def test_single_positive_of_an_image_without_present_label_is_all_unknown():
    observed = build("regime", "single_positive").annotate(desk([[0, 0, -1], [0, 1, 0], [0, 0, -2]]))

    assert observed.tolist() == [[-1, -1, -1], [-1, 1, -1], [-1, -1, -2]]


def test_label_subset_annotates_the_same_few_labels_on_every_image():
    labels = random_labels()
    observed = build("regime", "label_subset(labels_per_client=3)").annotate(desk(labels))
    annotated = known(observed).any(axis=0)

    assert annotated.sum() == 3
    assert np.array_equal(observed[:, annotated], labels[:, annotated])
    assert (observed[:, ~annotated] == UNKNOWN).all()


def test_label_subset_draws_each_label_for_the_same_share_of_clients():
    regime = build("regime", "label_subset(labels_per_client=3)")
    annotated = np.array([known(regime.annotate(desk(np.zeros((1, 8)), client)))[0] for client in range(2000)])

    assert all(within(int(count), 2000, 3 / 8) for count in annotated.sum(axis=0))
    assert len({tuple(row) for row in annotated.tolist()}) == 56  # all 8 over 3 choices


def test_silent_absence_turns_present_into_absent_outside_the_clients_labels():
    labels = random_labels()
    labels[::7, :] = -1
    unknown, absent = (
        build("regime", f"label_subset(missing={missing!r})").annotate(desk(labels, client=4))
        for missing in ("unknown", "absent")
    )
    annotated = known(unknown).any(axis=0)

    assert np.array_equal(absent[:, annotated], labels[:, annotated])
    assert np.array_equal(absent[:, ~annotated], np.where(labels == PRESENT, ABSENT, labels)[:, ~annotated])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("random_missing(known_fraction=1.5)", "known_fraction.*less than or equal to 1.*1.5"),
        ("random_missing(of='positives')", "'all', 'present' or 'absent'"),
        ("label_subset(labels_per_client=0)", "labels_per_client.*greater than or equal to 1"),
        ("label_subset(labels_per_cleint=3)", "Did you mean 'labels_per_client'"),
        ("single_positives", "Did you mean 'single_positive'"),
    ],
)
def test_a_bad_regime_is_explained(text, message):
    with pytest.raises(InputError, match=message):
        build("regime", text)


def test_more_labels_per_client_than_labels_is_an_error():
    with pytest.raises(InputError, match=r"at most the 2 labels .* got 3"):
        build("regime", "label_subset").annotate(desk([[1, 0]]))
