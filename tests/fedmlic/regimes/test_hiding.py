"""Regimes that hide entries, each against its formula: counts within three standard deviations, extremes exactly."""

import itertools

import numpy as np
import pytest

from fedmlic.dataset import Objects
from fedmlic.errors import InputError
from fedmlic.labels import ABSENT, PRESENT, UNCERTAIN, UNKNOWN, known
from fedmlic.regime import Assignment, looks_of, prepared
from fedmlic.seeds import stream, text_keys
from fedmlic.spec import build

SIZE = 64


def assignment_of(labels, client=0, seed=0, objects=None, names=()):
    labels = np.asarray(labels, dtype=np.int8)
    keys = text_keys([f"image {i}" for i in range(len(labels))])
    return Assignment(labels, keys, objects, client, seed, names, (SIZE, SIZE))


def random_labels(num_images=2000, num_labels=8, prevalence=0.3):
    return (np.random.default_rng(5).random((num_images, num_labels)) < prevalence).astype(np.int8)


def within(count, trials, probability, sigmas=3):
    return abs(count - trials * probability) <= sigmas * np.sqrt(trials * probability * (1 - probability)) + 1e-9


# complete, random_missing


def test_complete_shows_everything():
    labels = random_labels()

    assert np.array_equal(build("regime", "complete").annotate(assignment_of(labels)), labels)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("of", ["all", "present", "absent"])
def test_random_missing_keeps_the_asked_fraction_of_what_it_names(of, fraction):
    labels = random_labels()
    observed = build("regime", f"random_missing(known_fraction={fraction}, of={of!r})").annotate(assignment_of(labels))
    named = {"all": labels >= 0, "present": labels == PRESENT, "absent": labels == ABSENT}[of]

    assert within(int(known(observed)[named].sum()), int(named.sum()), fraction)
    assert np.array_equal(observed[~named], labels[~named])


def test_random_missing_at_its_ends_is_everything_or_nothing():
    labels = random_labels()

    assert np.array_equal(build("regime", "random_missing(known_fraction=1)").annotate(assignment_of(labels)), labels)
    assert not known(build("regime", "random_missing(known_fraction=0)").annotate(assignment_of(labels))).any()


def test_random_missing_hides_columns_clients_and_seeds_independently():
    labels = random_labels(num_labels=2)
    regime = build("regime", "random_missing")
    masks = [known(regime.annotate(assignment_of(labels, client, seed))) for client, seed in ((0, 0), (1, 0), (0, 1))]

    for first, second in [(masks[0][:, 0], masks[0][:, 1]), (masks[0][:, 0], masks[1][:, 0]), (masks[0], masks[2])]:
        assert within(int((first == second).sum()), first.size, 0.5)


def test_more_known_entries_contain_the_fewer_ones():
    """The same uniforms decide at every fraction, so a sweep over fractions is nested."""
    labels = random_labels()
    few, many = (
        build("regime", f"random_missing(known_fraction={f})").annotate(assignment_of(labels)) for f in (0.2, 0.6)
    )

    assert (known(many) | ~known(few)).all()


@pytest.mark.parametrize(
    ("value", "mean", "variance"),
    [("[0.2, 0.8]", 0.5, 0.6**2 / 12), ("{'beta': [2, 6]}", 0.25, 2 * 6 / (8**2 * 9))],
)
def test_a_fraction_drawn_per_client_has_the_asked_mean_and_spread(value, mean, variance):
    labels = np.zeros((400, 5))
    regime = build("regime", f"random_missing(known_fraction={value})")
    shares = np.array([known(regime.annotate(assignment_of(labels, client))).mean() for client in range(1500)])
    # Of a share of n entries: the spread of the fractions, and that of counting.
    spread = variance + (mean * (1 - mean) - variance) / labels.size

    assert abs(shares.mean() - mean) <= 3 * np.sqrt(spread / len(shares))
    fourth = ((shares - shares.mean()) ** 4).mean()
    assert abs(shares.var() - spread) <= 3 * np.sqrt((fourth - spread**2) / len(shares))


# positive_only


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_positive_only_keeps_a_share_of_the_present_entries_and_no_absence(fraction):
    labels = random_labels()
    observed = build("regime", f"positive_only(known_fraction={fraction})").annotate(assignment_of(labels))

    assert set(np.unique(observed)) <= {PRESENT, UNKNOWN}
    assert (labels[observed == PRESENT] == PRESENT).all()
    assert within(int((observed == PRESENT).sum()), int((labels == PRESENT).sum()), fraction)


# fixed_per_class


@pytest.mark.parametrize(("positives", "negatives"), [(0, 5), (7, 0), (30, 200), (1000, 1000)])
def test_a_quota_per_client_is_filled_exactly(positives, negatives):
    labels = random_labels(500)
    text = f"fixed_per_class(positives={positives}, negatives={negatives}, over='client')"
    for client in (0, 5):
        observed = build("regime", text).annotate(assignment_of(labels, client))
        for state, quota in ((PRESENT, positives), (ABSENT, negatives)):
            assert (observed == state).sum(axis=0).tolist() == np.minimum((labels == state).sum(axis=0), quota).tolist()
        assert np.array_equal(observed[known(observed)], labels[known(observed)])


def test_a_quota_of_the_federation_is_filled_exactly_by_all_clients_together(monkeypatch):
    """Also when the images are counted in several pieces."""
    labels = random_labels(900, 5)
    cuts = [0, 100, 150, 600, 900]
    keys = text_keys([f"image {i}" for i in range(900)])
    everyone = Assignment(labels, keys, None, 0, 7)
    regime = prepared(build("regime", "fixed_per_class(positives=40, negatives=90)"), everyone)
    monkeypatch.setattr("fedmlic.regimes.fixed_per_class._CHUNK_ENTRIES", 300)
    in_pieces = prepared(build("regime", "fixed_per_class(positives=40, negatives=90)"), everyone)
    assignments = [Assignment(labels[a:b], keys[a:b], None, k, 7) for k, (a, b) in enumerate(itertools.pairwise(cuts))]
    observed = np.concatenate([regime.annotate(one) for one in assignments])

    assert (observed == PRESENT).sum(axis=0).tolist() == [40] * 5
    assert (observed == ABSENT).sum(axis=0).tolist() == [90] * 5
    assert np.array_equal(np.concatenate([in_pieces.annotate(one) for one in assignments]), observed)


def test_each_entry_is_in_the_quota_equally_often():
    labels = np.ones((20, 2))
    regime = build("regime", "fixed_per_class(positives=5, negatives=5, over='client')")
    times = sum(known(regime.annotate(assignment_of(labels, client))).astype(int) for client in range(3000))

    # 40 counts of which the largest may be a little beyond three sigma.
    assert all(within(int(count), 3000, 0.25, 4) for count in times.ravel())
    assert within(int(times[:, 0].sum()), 60000, 0.25)


# single_positive


def test_single_positive_picks_each_present_label_equally_often():
    labels = np.tile([1, 0, 1, 1, -1], (6000, 1))
    observed = build("regime", "single_positive").annotate(assignment_of(labels))

    assert ((observed == PRESENT).sum(axis=1) == 1).all()
    assert (observed[observed != PRESENT] == UNKNOWN).all()
    assert (observed[:, [1, 4]] == UNKNOWN).all()
    assert all(within(int((observed[:, label] == PRESENT).sum()), 6000, 1 / 3) for label in (0, 2, 3))


@pytest.mark.parametrize(
    "regime", ["single_positive", "single_positive(bias='size')", "single_positive(bias='location')"]
)
def test_single_positive_of_an_image_without_present_label_is_all_unknown(regime):
    none = Objects(
        *(np.empty(0, t) for t in (np.int64, np.int16)), np.empty((0, 4), np.float32), np.empty(0, np.float32)
    )
    observed = build("regime", regime).annotate(assignment_of([[0, 0, -1], [0, 1, 0], [0, 0, -2]], objects=none))

    assert observed.tolist() == [[-1, -1, -1], [-1, 1, -1], [-1, -1, -2]]


def scene(num_images):
    """One picture, many times: two small dogs, a large cat, a car in the very centre, a sky without a box."""
    boxes = [(0, 0, 4, 4), (8, 8, 4, 8), (40, 20, 20, 16), (28, 28, 8, 8)]
    columns = [0, 0, 1, 2]
    areas = [10.0, 30.0, 300.0, 60.0]
    row = np.repeat(np.arange(num_images), 4)
    box = np.tile(np.array(boxes, np.float32), (num_images, 1))
    label, area = np.tile(columns, num_images).astype(np.int16), np.tile(areas, num_images).astype(np.float32)
    return assignment_of(
        np.tile([1, 1, 1, 1, 0], (num_images, 1)), objects=Objects(row, label, box, area), names=tuple("abcde")
    )


def expected_weights(bias):
    """Straight from the definition."""
    if bias == "size":
        return np.array([10 + 30, 300, 60, 0, 0])
    middle = SIZE / 2
    far = [
        np.hypot(x + w / 2 - middle, y + h / 2 - middle)
        for x, y, w, h in [(0, 0, 4, 4), (8, 8, 4, 8), (40, 20, 20, 16)]
    ]
    return np.array([1 / far[0] + 1 / far[1], 1 / far[2], 1 / 5e-4, 0, 0])


@pytest.mark.parametrize("bias", ["size", "location"])
def test_a_biased_annotator_mentions_labels_by_their_weight(bias):
    found = build("regime", f"single_positive(bias={bias!r})").annotate(scene(8000))
    share = expected_weights(bias) / expected_weights(bias).sum()

    assert ((found == PRESENT).sum(axis=1) == 1).all()
    assert all(within(int((found[:, label] == PRESENT).sum()), 8000, share[label]) for label in range(5))


@pytest.mark.parametrize("rates", ["[1, 2, 0, 5, 7]", "{'a': 1, 'b': 2, 'c': 0, 'd': 5, 'e': 7}"])
def test_a_semantic_annotator_mentions_labels_by_their_rate(rates):
    found = build("regime", f"single_positive(bias='semantic', mention_rates={rates})").annotate(scene(8000))
    share = np.array([1, 2, 0, 5, 0]) / 8

    assert all(within(int((found[:, label] == PRESENT).sum()), 8000, share[label]) for label in range(5))


@pytest.mark.parametrize(
    "regime", ["single_positive(bias='size')", "single_positive(bias='semantic', mention_rates=[0, 0, 1])"]
)
def test_present_labels_that_all_weigh_nothing_are_drawn_uniformly(regime):
    none = Objects(
        *(np.empty(0, t) for t in (np.int64, np.int16)), np.empty((0, 4), np.float32), np.empty(0, np.float32)
    )
    found = build("regime", regime).annotate(
        assignment_of(np.tile([1, 1, 0], (4000, 1)), objects=none, names=tuple("abc"))
    )

    assert within(int((found[:, 0] == PRESENT).sum()), 4000, 0.5)
    assert ((found == PRESENT).sum(axis=1) == 1).all()


def test_each_client_draws_its_own_mention_rates_around_the_given_ones():
    """With g = (1, 3) and concentration 2 a client mentions label 0 with probability Beta(0.5, 1.5)."""
    regime = build("regime", "single_positive(bias='semantic', mention_rates=[1, 3], concentration=2)")
    shares = np.array(
        [
            (regime.annotate(assignment_of(np.ones((60, 2)), client, names=("a", "b")))[:, 0] == PRESENT).mean()
            for client in range(1500)
        ]
    )
    variance = 0.25 * 0.75 / 3

    assert abs(shares.mean() - 0.25) <= 3 * np.sqrt(variance / len(shares)) + 1e-3
    assert shares.var() == pytest.approx(variance + (0.1875 - variance) / 60, rel=0.1)


# label_subset


def test_label_subset_annotates_the_same_few_labels_on_every_image():
    labels = random_labels()
    observed = build("regime", "label_subset(labels_per_client=3)").annotate(assignment_of(labels))
    annotated = known(observed).any(axis=0)

    assert annotated.sum() == 3
    assert np.array_equal(observed[:, annotated], labels[:, annotated])
    assert (observed[:, ~annotated] == UNKNOWN).all()


def annotated_by(text, num_clients, num_labels=8, names=()):
    """Bool ``[clients, labels]``: which labels clients annotate."""
    regime = build("regime", text)
    return np.array(
        [
            known(regime.annotate(assignment_of(np.zeros((1, num_labels)), k, names=names)))[0]
            for k in range(num_clients)
        ]
    )


def test_label_subset_draws_each_label_for_the_same_share_of_clients():
    annotated = annotated_by("label_subset(labels_per_client=3)", 2000)

    assert all(within(int(count), 2000, 3 / 8) for count in annotated.sum(axis=0))
    assert len({tuple(row) for row in annotated.tolist()}) == 56  # all 8 over 3 choices


def test_numbers_of_labels_drawn_per_client_are_equally_likely():
    counts = np.bincount(annotated_by("label_subset(labels_per_client=[2, 5])", 2000).sum(axis=1), minlength=9)

    assert counts[2:6].sum() == 2000
    assert all(within(int(count), 2000, 0.25) for count in counts[2:6])


@pytest.mark.parametrize("each", [1, 3])
def test_round_robin_deals_labels_in_turn(each):
    annotated = annotated_by(f"label_subset(labels_per_client={each}, rule='round_robin')", 16)
    for client in range(16):
        assert np.flatnonzero(annotated[client]).tolist() == sorted((client * each + j) % 8 for j in range(each))
    assert set(annotated.sum(axis=0).tolist()) == {2 * each}


def test_lists_of_labels_go_round():
    annotated = annotated_by("label_subset(labels=[['b', 'a'], [], ['c']])", 7, 3, ("a", "b", "c"))

    assert annotated.astype(int).tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]] * 2 + [[1, 1, 0]]


def test_names_of_labels_may_be_composed_or_not_and_stand_once():
    whole, parts = "caf\u00e9", "cafe\u0301"
    for names in ((whole, "b"), (parts, "b")):
        given_assignment = assignment_of([[1, 1]], names=names)
        for written in (whole, parts):
            subset = build("regime", f"label_subset(labels=[[{written!r}]])")
            assert subset.annotate(given_assignment).tolist() == [[PRESENT, UNKNOWN]]
            rates = f"mention_rates={{{written!r}: 1, 'b': 0}}"
            single = build("regime", f"single_positive(bias='semantic', {rates})")
            assert single.annotate(given_assignment).tolist() == [[PRESENT, UNKNOWN]]
    for twice in ("['b', 'b']", f"[{whole!r}, {parts!r}]"):
        with pytest.raises(InputError, match="labels of label_subset to name each label once, got"):
            build("regime", f"label_subset(labels=[['b'], {twice}])")
    both = f"single_positive(bias='semantic', mention_rates={{{whole!r}: 1, {parts!r}: 2, 'b': 1}})"
    with pytest.raises(InputError, match="mention_rates of single_positive to name each label once"):
        build("regime", both).annotate(assignment_of([[1, 1]], names=(whole, "b")))


def drawn_in_turn(weights, count):
    """Probability of each label to be among ``count`` draws without replacement, over all orders."""
    out = np.zeros(len(weights))
    for order in itertools.permutations(range(len(weights)), count):
        chance, left = 1.0, weights.sum()
        for label in order:
            chance *= weights[label] / left
            left -= weights[label]
        out[list(order)] += chance
    return out


@pytest.mark.parametrize(("alpha", "seed"), [(0.5, 0), (5.0, 2)])
def test_popular_labels_are_annotated_by_more_clients(alpha, seed):
    rng = stream(seed, "regime/shared/popularity")
    # The popularities again, in plain numbers instead of logarithms.
    gammas, uniforms = rng.standard_gamma(np.full(5, alpha + 1)), rng.random(5)
    weights = gammas * (1 - uniforms) ** (1 / alpha)
    regime = build("regime", f"label_subset(labels_per_client=2, rule='dirichlet', alpha={alpha})")
    counts = sum(known(regime.annotate(assignment_of(np.zeros((1, 5)), k, seed)))[0].astype(int) for k in range(4000))

    assert all(within(int(n), 4000, p) for n, p in zip(counts, drawn_in_turn(weights, 2), strict=True))


def test_silent_absence_turns_present_into_absent_outside_the_clients_labels():
    labels = random_labels()
    labels[::7, :] = -1
    unknown, absent = (
        build("regime", f"label_subset(missing={missing!r})").annotate(assignment_of(labels, client=4))
        for missing in ("unknown", "absent")
    )
    annotated = known(unknown).any(axis=0)

    assert np.array_equal(absent[:, annotated], labels[:, annotated])
    assert np.array_equal(absent[:, ~annotated], np.where(labels == PRESENT, ABSENT, labels)[:, ~annotated])


def test_nobody_looks_for_labels_that_are_silently_absent():
    labels = random_labels()
    regime = build("regime", "label_subset(missing='absent')")
    given_assignment = assignment_of(labels, client=4)
    unknown = build("regime", "label_subset").annotate(given_assignment)

    assert np.array_equal(looks_of(regime, given_assignment, regime.annotate(given_assignment)) > 0, known(unknown))


# uncertain


@pytest.mark.parametrize("of", ["all", "present", "absent"])
def test_a_share_of_the_named_entries_turns_uncertain(of):
    labels = random_labels()
    observed = build("regime", f"uncertain(probability=0.3, of={of!r})").annotate(assignment_of(labels))
    named = {"all": labels >= 0, "present": labels == PRESENT, "absent": labels == ABSENT}[of]

    assert within(int((observed == UNCERTAIN).sum()), int(named.sum()), 0.3)
    assert named[observed == UNCERTAIN].all()
    assert np.array_equal(observed[observed != UNCERTAIN], labels[observed != UNCERTAIN])


def test_small_objects_are_uncertain():
    """Shares of the 4,096 pixels: 40, 300 and 60; the sky has no box and is not small."""
    observed = build("regime", f"uncertain(rule='small', probability=1, max_area_fraction={60 / 4096})").annotate(
        scene(2)
    )

    assert observed.tolist() == [[UNCERTAIN, 1, 1, 1, 0]] * 2
