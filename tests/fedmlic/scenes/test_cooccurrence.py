"""Frequencies and dependence of labels, against sampling the definition and against closed forms."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedmlic.errors import InputError
from fedmlic.scenes import normal
from fedmlic.scenes.cooccurrence import apply_rules, context_loadings, dependence, noise_spread
from fedmlic.scenes.marginals import long_tail, prevalences
from fedmlic.scenes.options import resolve
from fedmlic.scenes.vocabulary import vocabulary
from fedmlic.scenes.world import draw

COUNT = 20_000


def phi(present):
    return np.corrcoef(present.astype(float), rowvar=False)


def law(options):
    """The dependence of a configuration, and float64 ``[labels, moods]``: how likely labels are in each mood."""
    common = dependence(options, prevalences(options, vocabulary(options).group))
    spread = noise_spread(options, with_preference=True)
    return common, normal.distribution((common.loadings - common.thresholds[:, None]) / spread)


def labels_of(knobs):
    """Bool ``[images, labels]`` of images of nobody, before occlusion."""
    drawn = draw(resolve("small", {"num_test": COUNT, "num_images": 200, "population": 10, **knobs}))
    return drawn.wanted[drawn.census.owner < 0]


def test_the_normal_table_equals_scipy():
    places = np.linspace(-7, 7, 2003)
    shares = np.linspace(1e-6, 1 - 1e-6, 2003)

    assert np.abs(normal.distribution(places) - stats.norm.cdf(places)).max() < 1e-7
    assert np.abs(normal.quantile(shares) - stats.norm.ppf(shares)).max() < 1e-4


# Marginals


@settings(max_examples=60, deadline=None)
@given(
    num_labels=st.integers(1, 60),
    share=st.floats(0.01, 0.99),
    exponent=st.floats(0, 3),
    offset=st.floats(0, 20),
    limit=st.floats(0.05, 0.95),
)
def test_the_long_tail_keeps_its_promises(num_labels, share, exponent, offset, limit):
    cardinality = share * limit * num_labels
    found = long_tail(num_labels, cardinality, exponent, offset, limit)

    assert found.sum() == pytest.approx(cardinality)
    assert (np.diff(found) <= 1e-12).all()
    assert found.max() <= limit * (1 + 1e-9)
    free = found < limit * (1 - 1e-9)
    weights = (np.arange(1, num_labels + 1) + offset) ** -exponent
    assert np.ptp((found / weights)[free]) < 1e-9 * max(1, (found / weights).max()) if free.any() else True


def test_the_imbalance_ratio_replaces_the_exponent():
    options = resolve("small", {"imbalance_ratio": 50.0, "cardinality": 1.0})
    found = prevalences(options, vocabulary(options).group)

    assert found.max() / found.min() == pytest.approx(50)


# Co-occurrence


@pytest.mark.parametrize("knobs", [{}, {"correlation": 0.9, "num_contexts": 3}, {"context_kind": "soft"}])
def test_correlations_are_those_of_the_model(knobs):
    """Empirical phi of every pair against its closed form, within 4.5 standard errors."""
    options = resolve("small", knobs)
    common, likely = law(options)
    single = (likely * common.weights).sum(axis=1)
    pair = np.einsum("am,bm,m->ab", likely, likely, common.weights)
    spread = np.sqrt(single * (1 - single))
    expected = (pair - np.outer(single, single)) / np.outer(spread, spread)

    found = phi(labels_of(knobs))

    off = ~np.eye(20, dtype=bool)
    # The standard error of a correlation of rare labels is larger than 1 / sqrt(n).
    error = np.sqrt(pair * (1 - pair) / COUNT) / np.outer(spread, spread)
    assert (np.abs(found - expected)[off] < 4.5 * np.maximum(error, 1 / np.sqrt(COUNT))[off]).all()
    assert np.abs(expected[off]).max() > 0.1


def test_without_correlation_labels_are_independent():
    found = phi(labels_of({"correlation": 0.0}))

    assert np.abs(found - np.eye(20)).max() < 5 / np.sqrt(COUNT)


def test_the_number_of_labels_is_distributed_as_by_sampling_the_copula():
    """Sampling z = sqrt(rho) W c + sqrt(1 - rho) noise with thresholds found by counting, not by solving."""
    options = resolve("small", {"label_preference": 0.0})
    rng = np.random.default_rng(5)
    context = rng.integers(0, 8, 100_000)
    loadings = context_loadings(options)
    z = np.sqrt(0.6) * loadings[:, context].T + np.sqrt(0.4) * rng.standard_normal((100_000, 20))
    wanted = prevalences(options, vocabulary(options).group)
    thresholds = [np.quantile(z[:, label], 1 - wanted[label]) for label in range(20)]
    expected = np.bincount((z > thresholds).sum(axis=1), minlength=21)[:21] / 100_000

    found = np.bincount(labels_of({"label_preference": 0.0}).sum(axis=1), minlength=21)[:21] / COUNT

    assert np.abs(found - expected).sum() / 2 < 0.02
    assert np.abs(loadings.mean(axis=1)).max() < 1e-12
    assert np.allclose(loadings.var(axis=1), 1)


def test_one_context_leaves_labels_independent():
    found = phi(labels_of({"num_contexts": 1, "correlation": 0.9}))

    assert np.abs(found - np.eye(20)).max() < 5 / np.sqrt(COUNT)


# Rules


def test_rules_hold_and_keep_frequencies():
    """Attraction and exclusion hold in every image; all frequencies stay as wanted but the determined one's."""
    options = resolve("small", {})
    wanted = prevalences(options, vocabulary(options).group)
    rank = np.argsort(-wanted).tolist()
    a, b, c = rank[3], rank[1], rank[8]
    knobs = {
        "attract": [(a, b, 0.9)],
        "exclude": [(rank[2], rank[6])],
        "determine": [(rank[0], rank[4], c)],
    }
    found = labels_of(knobs)
    error = np.sqrt(wanted * (1 - wanted) / COUNT)
    others = np.arange(20) != c

    assert (np.abs(found.mean(axis=0) - wanted) / error)[others].max() < 4
    assert found[found[:, a], b].mean() > 0.88
    assert not (found[:, rank[2]] & found[:, rank[6]]).any()
    assert (found[:, c] == found[:, rank[0]] & found[:, rank[4]]).all()
    assert found[:, c].any()


def test_rules_on_a_small_table():
    options = resolve("tiny", {"attract": [(0, 1, 0.5)], "exclude": [(2, 3)], "determine": [(0, 2, 4)]})
    present = np.zeros((3, 8), dtype=bool)
    present[0, [0, 4]] = True
    present[1, [0, 2, 3]] = True
    present[2, [3, 4]] = True

    found = apply_rules(options, present, np.array([[0.4], [0.6], [0.1]]))

    assert [np.flatnonzero(row).tolist() for row in found] == [[0, 1], [0, 2, 4], [3]]
    assert present[0].tolist() == [True, False, False, False, True, False, False, False]


def test_impossible_rules_are_refused():
    options = resolve("small", {})
    rank = np.argsort(-prevalences(options, vocabulary(options).group)).tolist()

    with pytest.raises(InputError, match=f"leave label {rank[-1]} a frequency between"):
        labels_of({"attract": [(rank[0], rank[-1], 1.0)]})


# Owners' own dependence


def test_turning_dependence_keeps_each_owners_frequencies():
    """With contexts alike, frequencies do not differ between owners; correlations do."""
    knobs = {
        "population": 2,
        "owner_sizes": "constant",
        "num_images": 12_000,
        "max_size": 6000,
        "val_fraction": 0.0,
        "num_test": 0,
        "context_alpha": 1e6,
        "label_preference": 0.0,
    }

    def owners(rotation):
        drawn = draw(resolve("small", {**knobs, "cooccurrence_rotation": rotation}))
        return [drawn.wanted[drawn.census.owner == owner] for owner in (0, 1)]

    alike, turned = owners(0.0), owners(1.0)
    for first, second in (alike, turned):
        mean = (first.mean(axis=0) + second.mean(axis=0)) / 2
        assert (np.abs(first.mean(axis=0) - second.mean(axis=0)) < 4 * np.sqrt(2 * mean * (1 - mean) / 6000)).all()
    distance = [np.abs(phi(first) - phi(second)).mean() for first, second in (alike, turned)]
    assert distance[1] > 2.5 * distance[0]
