"""Regimes that write wrong entries, each against its formula, computed here again from its definition."""

import itertools
import math

import numpy as np
import pytest

from fedmlic.dataset import Objects
from fedmlic.errors import InputError
from fedmlic.labels import ABSENT, PRESENT, UNCERTAIN, UNKNOWN, known
from fedmlic.methods.noise_corrected import published
from fedmlic.regime import Assignment, looks_of, prepared
from fedmlic.regimes.annotator_table import RATES
from fedmlic.seeds import text_keys
from fedmlic.spec import build

SIZE = 50


def assignment_of(labels, client=0, seed=0, objects=None, names=()):
    labels = np.asarray(labels, dtype=np.int8)
    keys = text_keys([f"image {i}" for i in range(len(labels))])
    return Assignment(labels, keys, objects, client, seed, names, (SIZE, SIZE))


def random_labels(num_images=3000, num_labels=8, prevalence=0.3):
    return (np.random.default_rng(5).random((num_images, num_labels)) < prevalence).astype(np.int8)


def within(count, trials, probability, sigmas=3):
    return abs(count - trials * probability) <= sigmas * np.sqrt(trials * probability * (1 - probability)) + 1e-9


def missed(labels, observed):
    return int(((labels == PRESENT) & (observed == ABSENT)).sum())


def invented(labels, observed):
    return int(((labels == ABSENT) & (observed == PRESENT)).sum())


# candidate_sets, label_noise


@pytest.mark.parametrize("probability", [0.0, 0.05, 0.1, 0.2, 1.0])
def test_candidate_sets_hold_every_true_label_and_a_share_of_the_false_ones(probability):
    labels = random_labels()
    observed = build("regime", f"candidate_sets(probability={probability})").annotate(assignment_of(labels))

    assert missed(labels, observed) == 0
    assert within(invented(labels, observed), int((labels == ABSENT).sum()), probability)


@pytest.mark.parametrize(("spurious", "miss"), [(0, 0.2), (0, 0.6), (0.2, 0), (0.6, 0), (0.1, 0.1), (0.2, 0.2)])
def test_the_six_standard_pairs(spurious, miss):
    labels = random_labels()
    observed = build("regime", f"label_noise(miss={miss}, spurious={spurious})").annotate(assignment_of(labels))

    assert known(observed).all()
    assert within(missed(labels, observed), int((labels == PRESENT).sum()), miss)
    assert within(invented(labels, observed), int((labels == ABSENT).sum()), spurious)


@pytest.mark.parametrize(("over", "ratio"), [("federation", 750 / 2250), ("client", 150 / 850)])
def test_equal_count_noise_adds_as_many_as_it_misses(over, ratio):
    """A client with 15 % positives in a federation with 25 %: the rates of the whole, or its own."""
    labels = np.zeros((3000, 10), np.int8)
    labels[:1000].reshape(-1)[:1500] = 1
    labels[1000:].reshape(-1)[:6000] = 1
    labels[:1000] = np.random.default_rng(0).permuted(labels[:1000], axis=0)
    everyone = assignment_of(labels)
    regime = prepared(build("regime", f"label_noise(miss=0.4, equal_count=True, over={over!r})"), everyone)
    mine = Assignment(labels[:1000], everyone.image_keys[:1000], None, 0, 0)
    observed = regime.annotate(mine)

    assert within(missed(mine.labels, observed), 1500, 0.4)
    assert within(invented(mine.labels, observed), 8500, 0.4 * ratio)


def test_equal_count_noise_never_needs_more_than_all_absent_entries():
    labels = np.array([[1] * 9 + [0]] * 50)
    observed = build("regime", "label_noise(miss=1, equal_count=True)").annotate(assignment_of(labels))

    assert (observed == [0] * 9 + [1]).all()


# annotators


def scene(num_images):
    """One picture many times: a cat (two boxes), a small dog in a corner, a car without a box, no bus."""
    boxes = np.array([(20, 20, 10, 10), (0, 0, 20, 20), (40, 40, 4, 4)], np.float32)
    row = np.repeat(np.arange(num_images), 3)
    label = np.tile([0, 0, 1], num_images).astype(np.int16)
    area = np.tile([100.0, 300.0, 16.0], num_images).astype(np.float32)
    objects = Objects(row, label, np.tile(boxes, (num_images, 1)), area)
    return assignment_of(np.tile([1, 1, 1, 0], (num_images, 1)), objects=objects)


def recall_of(label, recall=0.7, size=1.5, location=2.0, crowding=0.4):
    """The formula of the page, for the labels of ``scene``: 3 labels in the image, half diagonal 25 * sqrt(2)."""
    area = [400 / 2500, 16 / 2500, 0.05][label]
    reach = [0.0, math.hypot(17, 17) / (25 * math.sqrt(2)), 0.0][label]
    logit = math.log(recall / (1 - recall)) + size * math.log10(area / 0.05) - location * reach - crowding * 2
    return 1 / (1 + math.exp(-logit))


EFFECTS = "recall=0.7, spurious=0.05, size_effect=1.5, location_effect=2, crowding_effect=0.4"


def test_recall_depends_on_size_place_and_crowd_as_written():
    observed = build("regime", f"annotators({EFFECTS})").annotate(scene(6000))

    for label in range(3):
        assert within(int((observed[:, label] == PRESENT).sum()), 6000, recall_of(label))
    assert within(int((observed[:, 3] == PRESENT).sum()), 6000, 0.05)
    assert recall_of(1) < recall_of(2) < recall_of(0)


def binomial_tail(count, probability, at_least):
    return sum(
        math.comb(count, k) * probability**k * (1 - probability) ** (count - k) for k in range(at_least, count + 1)
    )


@pytest.mark.parametrize("correlation", [0.0, 0.6, 1.0])
@pytest.mark.parametrize(("how", "at_least"), [("majority", 3), ("any", 1), ("unanimous", 4), ("single", None)])
def test_votes_of_four_annotators_who_err_together_at_a_known_rate(how, at_least, correlation):
    """With probability ``correlation`` all four say what one says, otherwise each decides alone."""
    labels = np.tile([1, 0], (4000, 1))
    text = f"annotators(num_annotators=4, aggregation={how!r}, recall=0.7, spurious=0.2, correlation={correlation}, "
    observed = build("regime", text + "size_effect=0, location_effect=0)").annotate(assignment_of(labels))
    for column, rate in ((0, 0.7), (1, 0.2)):
        alone = rate if at_least is None else binomial_tail(4, rate, at_least)
        assert within(int((observed[:, column] == PRESENT).sum()), 4000, correlation * rate + (1 - correlation) * alone)
        if how == "unanimous":
            split = (1 - correlation) * (1 - rate**4 - (1 - rate) ** 4)
            assert within(int((observed[:, column] == UNCERTAIN).sum()), 4000, split)


def test_annotators_may_differ_from_each_other_and_between_clients():
    """Recall from [0.2, 1.0]: with one annotator per image, a client's mean recall varies as a mean of three."""
    labels = np.ones((300, 3))
    text = "annotators(num_annotators=3, aggregation='single', recall=[0.2, 1.0], size_effect=0, location_effect=0, "
    regime = build("regime", text + "crowding_effect=0)")
    shares = np.array([regime.annotate(assignment_of(labels, client)).mean() for client in range(800)])

    assert abs(shares.mean() - 0.6) <= 3 * np.sqrt(0.8**2 / 12 / 3 / 800) + 1e-3
    assert shares.var() == pytest.approx(0.8**2 / 12 / 3, rel=0.15)


@pytest.mark.parametrize(("how", "each"), [("single", 1), ("majority", 3)])
def test_every_annotator_who_looks_is_paid(how, each):
    labels = random_labels(50)
    labels[:5] = [1, 0, -1, -2, 1, 0, -1, -2]
    given_assignment = assignment_of(labels)
    regime = build("regime", f"annotators(num_annotators=3, aggregation={how!r}, size_effect=0, location_effect=0)")

    expected = np.where(labels >= 0, each, np.where(labels == UNCERTAIN, 1, 0))
    assert np.array_equal(looks_of(regime, given_assignment, regime.annotate(given_assignment)), expected)


def test_rates_of_two_annotators_cannot_be_estimated():
    """Two votes on a label have three free shares, two annotators and a prevalence five unknowns."""
    none = "size_effect=0, location_effect=0, recall=0.7, spurious=0.1"
    with pytest.raises(InputError, match=r"num_annotators .* to be 3 or more \(or 1\), got 2"):
        build("regime", f"annotators(num_annotators=2, aggregation='two_coin', {none})")

    given_assignment = assignment_of(random_labels(200))
    alone = [
        build("regime", f"annotators(aggregation={how!r}, {none})").annotate(given_assignment)
        for how in ("two_coin", "single")
    ]
    assert np.array_equal(*alone)
    three = build("regime", f"annotators(num_annotators=3, aggregation='two_coin', {none})").annotate(given_assignment)
    assert not np.array_equal(three, alone[0])


# annotator_table

PASCAL = tuple(RATES)


def test_the_published_table_has_the_means_that_its_source_gives():
    """Class-mean miss and false-positive rates of the three, as published beside the table."""
    rows = np.array(list(RATES.values()))

    assert len(rows) == 20
    assert rows.mean(axis=0)[::2] == pytest.approx([0.406, 0.230, 0.311], abs=6e-4)
    assert rows.mean(axis=0)[1::2] == pytest.approx([0.0072, 0.0134, 0.0139], abs=6e-5)
    assert (rows[:, ::2] > 0.5).sum(axis=0).tolist() == [8, 3, 6]


@pytest.mark.parametrize(("annotator", "place"), [("google", 0), ("microsoft", 2), ("everypixel", 4)])
def test_an_annotator_has_its_published_rates(annotator, place):
    labels = np.repeat([[1], [0]], 4000, axis=0) * np.ones((1, 20), dtype=np.int8)
    observed = build("regime", f"annotator_table(annotator={annotator!r})").annotate(
        assignment_of(labels, names=PASCAL)
    )
    for label, name in enumerate(PASCAL):
        miss, spurious = RATES[name][place : place + 2]
        assert within(int((observed[:4000, label] == PRESENT).sum()), 4000, 1 - miss, 3.5)
        assert within(int((observed[4000:, label] == PRESENT).sum()), 4000, spurious, 3.5)


@pytest.mark.parametrize("how", ["majority", "any", "unanimous", "single"])
def test_the_three_annotators_together(how):
    labels = np.repeat([[1], [0]], 6000, axis=0) * np.ones((1, 20), dtype=np.int8)
    text = f"annotator_table(annotator='all', aggregation={how!r})"
    observed = build("regime", text).annotate(assignment_of(labels, names=PASCAL))
    for label, name in enumerate(PASCAL):
        for truth, rates in ((1, 1 - np.array(RATES[name][::2])), (0, np.array(RATES[name][1::2]))):
            says = dict.fromkeys(range(4), 0.0)
            for votes in itertools.product([0, 1], repeat=3):
                says[sum(votes)] += np.prod([p if v else 1 - p for p, v in zip(rates, votes, strict=True)])
            expected = {
                "majority": says[2] + says[3],
                "any": 1 - says[0],
                "unanimous": says[3],
                "single": rates.mean(),
            }[how]
            part = observed[:6000] if truth else observed[6000:]
            assert within(int((part[:, label] == PRESENT).sum()), 6000, expected, 3.5)


def test_each_client_draws_its_annotator():
    names = ("person", "cat", "dining table", "TV", "motor_cycle")
    labels = np.ones((400, 5), np.int8)
    regime = build("regime", "annotator_table(annotator='drawn')")
    shares = np.array(
        [regime.annotate(assignment_of(labels, client, names=names)).mean(axis=0) for client in range(900)]
    )
    rows = 1 - np.array([RATES[n] for n in ("person", "cat", "diningtable", "tvmonitor", "motorbike")])[:, ::2].T
    nearest = np.abs(shares[:, None] - rows).sum(axis=2).argmin(axis=1)

    assert all(within(int(count), 900, 1 / 3) for count in np.bincount(nearest, minlength=3))
    assert np.abs(shares - rows[nearest]).max() < 0.15


def test_annotators_go_round_and_a_method_finds_the_rates_that_they_had():
    """Client by client, what the regime writes down and what ``noise_corrected`` takes its rates to be."""
    labels = np.repeat([[1], [0]], 4000, axis=0) * np.ones((1, 4), dtype=np.int8)
    names = ("bird", "bus", "car", "chair")
    for match, client in itertools.product(("name", "order"), range(4)):
        regime = build("regime", f"annotator_table(annotator='in_turn', match={match!r})")
        observed = regime.annotate(assignment_of(labels, client, names=names))
        rates = published(names, "in_turn", client, match)
        for column, (miss, spurious) in enumerate(zip(*(rate.tolist() for rate in rates), strict=True)):
            if miss + spurious < 0.95:
                assert within(int((observed[:4000, column] == PRESENT).sum()), 4000, 1 - miss, 3.5)
                assert within(int((observed[4000:, column] == PRESENT).sum()), 4000, spurious, 3.5)


def test_rows_are_matched_by_order_or_filled_with_the_mean():
    labels = np.ones((3000, 22), np.int8)
    by_order = build("regime", "annotator_table(match='order')").annotate(assignment_of(labels))
    mean = build("regime", "annotator_table(others='mean')").annotate(
        assignment_of(labels[:, :2], names=("cat", "zebra"))
    )

    assert within(int(by_order[:, 20].sum()), 3000, 1 - RATES["person"][0])
    assert within(int(by_order[:, 21].sum()), 3000, 1 - RATES["bird"][0])
    assert within(int(mean[:, 1].sum()), 3000, 1 - np.mean([row[0] for row in RATES.values()]))


def test_labels_that_an_annotator_is_blind_to_can_be_unknown():
    labels = np.ones((50, 2), np.int8)
    given_assignment = assignment_of(labels, names=("person", "cat"))
    regime = build("regime", "annotator_table(blind=0.9)")
    observed = regime.annotate(given_assignment)

    assert (observed[:, 0] == UNKNOWN).all()
    assert known(observed[:, 1]).all()
    assert looks_of(regime, given_assignment, observed).tolist() == [[0, 1]] * 50
