"""Achieved statistics against plain loops, SciPy and NumPy's correlation."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.distance import jensenshannon

from fedmlic import statistics
from fedmlic.statistics import gini, js_distances, pairwise_js, phi, quantiles, summarise, tally

NAMES = ("cat", "dog", "car")


def world(seed=0, sizes=(5, 1, 12, 30), num_labels=3):
    """Truth in all four states and observed labels of which some are wrong and some revealed."""
    rng = np.random.default_rng(seed)
    num_images = sum(sizes)
    truth = rng.choice(np.array([1, 0, -1, -2], np.int8), (num_images, num_labels), p=[0.35, 0.5, 0.1, 0.05])
    observed = np.where(rng.random(truth.shape) < 0.6, truth, rng.integers(-1, 2, truth.shape)).astype(np.int8)
    client_ptr = np.concatenate(([0], np.cumsum(sizes)))
    return truth, observed, client_ptr


def counted(seed=0, **kwargs):
    truth, observed, client_ptr = world(seed, **kwargs)
    return tally(truth, observed, client_ptr, np.zeros(len(client_ptr) - 1, dtype=np.int64))


@pytest.mark.parametrize("chunk_entries", [1, 40, 1 << 24])
def test_counts_equal_a_plain_loop_for_any_chunk(monkeypatch, chunk_entries):
    monkeypatch.setattr(statistics, "_CHUNK_ENTRIES", chunk_entries)
    truth, observed, ptr = world()
    tallies = counted()

    for client in range(4):
        for label in range(3):
            pairs = [(int(truth[i, label]), int(observed[i, label])) for i in range(ptr[client], ptr[client + 1])]
            assert tallies.known[client, label] == sum(o >= 0 for _, o in pairs)
            assert tallies.positives[client, label] == sum(o == 1 for _, o in pairs)
            assert tallies.wrong[client, label] == sum(o >= 0 and t >= 0 and o != t for t, o in pairs)
            assert tallies.checkable[client, label] == sum(o >= 0 and t >= 0 for t, o in pairs)
            assert tallies.true_known[client, label] == sum(t >= 0 for t, _ in pairs)
            assert tallies.true_positives[client, label] == sum(t == 1 for t, _ in pairs)
    assert tallies.images.tolist() == [5, 1, 12, 30]


def test_chunks_do_not_change_the_phi_distance(monkeypatch):
    whole = counted().phi_distance
    monkeypatch.setattr(statistics, "_CHUNK_ENTRIES", 1)

    assert np.allclose(counted().phi_distance, whole, rtol=1e-12, equal_nan=True)


@settings(deadline=None)
@given(hnp.arrays(np.int64, st.tuples(st.integers(1, 6), st.integers(1, 6)), elements=st.integers(0, 50)))
def test_skew_is_scipys_jensen_shannon_distance_in_base_two(counts):
    total = counts.sum(axis=0)
    found = js_distances(counts)

    for row, distance in zip(counts, found, strict=True):
        if row.sum() == 0:
            assert np.isnan(distance)
        else:
            assert distance == pytest.approx(np.nan_to_num(jensenshannon(row, total, base=2)), abs=1e-6)


def test_skew_is_one_between_disjoint_and_zero_between_equal_marginals():
    assert js_distances(np.array([[3, 1], [6, 2]])) == pytest.approx([0, 0], abs=1e-7)
    # A client with a vanishing share of another label is as far from the rest as can be.
    assert js_distances(np.array([[1, 0], [0, 10**9]]))[0] == pytest.approx(1, abs=1e-4)


@settings(deadline=None)
@given(hnp.arrays(np.int64, st.tuples(st.integers(1, 6), st.integers(1, 6)), elements=st.integers(0, 9)))
def test_the_pairwise_distance_is_scipys_over_all_pairs(counts):
    rows = [row for row in counts if row.sum()]
    expected = [np.nan_to_num(jensenshannon(a, b, base=2)) for i, a in enumerate(rows) for b in rows[:i]]
    found = pairwise_js(counts)

    assert found["pairs"] == len(expected)
    assert not found["sampled"]
    if expected:
        assert found["mean"] == pytest.approx(np.mean(expected), abs=1e-6)
    else:
        assert found["mean"] is None


def test_many_pairs_are_sampled_without_bias_and_always_alike(monkeypatch):
    counts = np.random.default_rng(0).integers(0, 9, (60, 5))
    exact = pairwise_js(counts)["mean"]
    gaps = [jensenshannon(a, b, base=2) for i, a in enumerate(counts) for b in counts[:i]]
    monkeypatch.setattr(statistics, "PAIRS", 1000)
    monkeypatch.setattr(statistics, "_FLOAT_ENTRIES", 64)
    found = pairwise_js(counts)

    assert (found["pairs"], found["sampled"]) == (1000, True)
    assert found["mean"] == pairwise_js(counts)["mean"]
    assert 0 < abs(found["mean"] - exact) < 4 * np.std(gaps) / np.sqrt(1000)


def test_a_sampled_pair_never_compares_a_client_with_itself(monkeypatch):
    """Every client has a label of its own, so all distances are 1."""
    monkeypatch.setattr(statistics, "PAIRS", 100)

    assert pairwise_js(np.eye(20, dtype=np.int16))["mean"] == pytest.approx(1)


@pytest.mark.parametrize("float_entries", [1, 7])
def test_chunks_do_not_change_the_distances(monkeypatch, float_entries):
    counts = np.random.default_rng(0).integers(0, 9, (20, 5))
    whole, pairs = js_distances(counts), pairwise_js(counts)["mean"]
    monkeypatch.setattr(statistics, "_FLOAT_ENTRIES", float_entries)

    assert js_distances(counts) == pytest.approx(whole, rel=1e-12)
    assert pairwise_js(counts)["mean"] == pytest.approx(pairs, rel=1e-12)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=20).filter(any))
def test_gini_is_half_the_relative_mean_difference(sizes):
    differences = [abs(a - b) for a in sizes for b in sizes]

    assert gini(np.array(sizes)) == pytest.approx(np.mean(differences) / (2 * np.mean(sizes)), abs=1e-12)


@given(hnp.arrays(np.int8, st.tuples(st.integers(2, 20), st.just(4)), elements=st.integers(0, 1)))
def test_phi_is_the_correlation_of_two_columns(labels):
    found = phi(labels)

    for a in range(4):
        for b in range(4):
            if labels[:, a].std() == 0 or labels[:, b].std() == 0:
                assert np.isnan(found[a, b])
            else:
                assert found[a, b] == pytest.approx(np.corrcoef(labels[:, a], labels[:, b])[0, 1])


def test_phi_uses_the_images_on_which_both_labels_are_known():
    labels = world(3, sizes=(60,))[0]
    found = phi(labels)

    for a, b in [(0, 1), (1, 2), (0, 2)]:
        both = (labels[:, [a, b]] >= 0).all(axis=1)
        assert found[a, b] == pytest.approx(np.corrcoef(labels[both, a], labels[both, b])[0, 1])


def test_phi_distance_is_the_mean_gap_over_pairs_that_exist():
    truth, _, ptr = world(5, sizes=(20, 1, 40))
    truth = np.maximum(truth, 0)
    overall = np.corrcoef(truth.T)
    found = tally(truth, truth, ptr, np.zeros(3, np.int64)).phi_distance

    assert np.isnan(found[1])  # one image: every label is constant
    for client in (0, 2):
        here = np.corrcoef(truth[ptr[client] : ptr[client + 1]].T)
        gaps = [abs(here[a, b] - overall[a, b]) for a, b in [(0, 1), (0, 2), (1, 2)]]
        assert found[client] == pytest.approx(np.mean(gaps))


def test_the_frobenius_distance_is_the_norm_over_pairs_that_exist():
    truth, _, ptr = world(6, sizes=(20, 1, 2, 40, 9))
    overall = phi(truth)
    found = tally(truth, truth, ptr, np.zeros(5, np.int64))

    for client in range(5):
        gaps = phi(truth[ptr[client] : ptr[client + 1]]) - overall
        np.fill_diagonal(gaps, np.nan)
        num_pairs = int((~np.isnan(gaps)).sum()) // 2
        assert found.phi_pairs[client] == num_pairs
        if num_pairs:
            assert found.phi_frobenius[client] == pytest.approx(np.linalg.norm(np.nan_to_num(gaps)))
            assert found.phi_distance[client] == pytest.approx(np.nanmean(np.abs(gaps)))
        else:
            assert np.isnan(found.phi_frobenius[client])


@pytest.mark.parametrize("chunk_entries", [1, 40, 1 << 24])
def test_empty_images_are_those_without_a_label_that_is_present_in_truth(monkeypatch, chunk_entries):
    monkeypatch.setattr(statistics, "_CHUNK_ENTRIES", chunk_entries)
    truth, _, ptr = world(7)
    found = counted(7)

    expected = [sum(1 not in row for row in truth[ptr[k] : ptr[k + 1]].tolist()) for k in range(4)]
    assert sum(expected) > 0
    assert found.empty_images.tolist() == expected
    report = summarise(found, NAMES)
    assert report.clients["empty_fraction"].tolist() == [
        n / size for n, size in zip(expected, found.images, strict=True)
    ]
    assert report.summary["empty_fraction"] == sum(expected) / 48


@pytest.mark.parametrize(("size", "bits"), [(127, 16), (128, 16), (40_000, 32)])
def test_counts_are_signed_and_hold_the_largest_client(size, bits):
    truth = np.ones((size + 1, 1), dtype=np.int8)
    found = tally(truth, truth, np.array([0, 1, size + 1]), np.zeros(2, np.int64))

    for counts in (found.known, found.positives, found.true_positives):
        assert counts.dtype.kind == "i"
        assert counts.dtype.itemsize * 8 <= bits
        assert counts.tolist() == [[1], [size]]


def test_co_occurrence_skew_shows_where_marginals_hide_it():
    """Both clients have each label on half of their images, once together and once apart."""
    together, apart = [[1, 1], [0, 0]] * 10, [[1, 0], [0, 1]] * 10
    truth = np.array(together + apart, dtype=np.int8)
    table = summarise(tally(truth, truth, np.array([0, 20, 40]), np.zeros(2, np.int64)), ("a", "b")).clients

    assert table["js_true"].tolist() == pytest.approx([0, 0], abs=1e-7)
    assert table["phi_distance"].tolist() == pytest.approx([1, 1])


def test_only_the_most_frequent_labels_are_compared(monkeypatch):
    monkeypatch.setattr(statistics, "PHI_LABELS", 2)
    truth, _, ptr = world(5, sizes=(20, 40))
    truth = np.maximum(truth, 0)
    truth[:, 1] = 0  # never positive, so columns 0 and 2 are compared
    found = tally(truth, truth, ptr, np.zeros(2, np.int64)).phi_distance

    expected = abs(np.corrcoef(truth[:20, [0, 2]].T)[0, 1] - np.corrcoef(truth[:, [0, 2]].T)[0, 1])
    assert found[0] == pytest.approx(expected)


def test_tables_say_what_a_hand_example_says():
    """Two clients, two labels: client 0 knows everything, client 1 knows label b only, once wrongly."""
    truth = np.array([[1, 0], [1, 1], [0, 1], [0, 0]], dtype=np.int8)
    observed = np.array([[1, 0], [1, 1], [-1, 1], [-1, 1]], dtype=np.int8)
    found = summarise(tally(truth, observed, np.array([0, 2, 4]), np.array([1, 0])), ("a", "b"))

    clients = found.clients.set_index("client")
    assert clients["images"].tolist() == [2, 2]
    assert clients["holdout_images"].tolist() == [1, 0]
    assert clients["annotations"].tolist() == [4, 2]
    assert clients["known_fraction"].tolist() == [1.0, 0.5]
    assert clients["labels_annotated"].tolist() == [2, 1]
    assert clients["positives"].tolist() == [3, 2]
    assert clients["true_positives"].tolist() == [3, 1]
    assert clients["wrong"].tolist() == [0, 1]
    assert clients["budget"].tolist() == [4, 2]
    assert clients["cardinality"].tolist() == [1.5, 0.5]
    labels = found.labels.set_index("label")
    assert labels.loc["a"].to_dict() == {
        "true_known": 4,
        "true_positives": 2,
        "prevalence": 0.5,
        "annotations": 2,
        "budget": 2,
        "known_fraction": 0.5,
        "positives": 2,
        "checkable": 2,
        "wrong": 0,
        "clients_annotating": 1,
        "zero_true_positives_fraction": 0.5,
        "zero_positives_fraction": 0.5,
    }
    assert found.summary["num_annotations"] == 6
    assert found.summary["known_fraction"] == 6 / 8
    assert found.summary["wrong_fraction"] == 1 / 6
    assert found.summary["clients"]["images"]["median"] == 2
    assert found.summary["size_gini"] == 0
    assert found.summary["empty_fraction"] == 1 / 4
    # Known positives: client 0 has a, a, b and client 1 has b, b.
    assert found.summary["pairwise_js_known"]["mean"] == pytest.approx(jensenshannon([2, 1], [0, 2], base=2))
    assert found.summary["pairwise_js_true"]["mean"] == pytest.approx(jensenshannon([2, 1], [0, 1], base=2))


def test_shares_run_over_what_the_data_set_knows():
    """Label a is natively known on two of four images, label b on none, c on all."""
    truth = np.array([[1, -1, 0], [-1, -2, 1], [0, -1, 1], [-1, -1, 1]], dtype=np.int8)
    observed = np.array([[0, 0, 0], [0, -1, 1], [0, 0, 0], [1, -1, -1]], dtype=np.int8)
    found = summarise(tally(truth, observed, np.array([0, 2, 4]), np.zeros(2, np.int64)), NAMES)

    assert found.labels["true_known"].tolist() == [2, 0, 4]
    assert found.labels["prevalence"].tolist()[::2] == [1 / 2, 3 / 4]
    assert np.isnan(found.labels["prevalence"][1])
    assert found.labels["checkable"].tolist() == [2, 0, 3]
    assert found.labels["wrong"].tolist() == [1, 0, 1]
    assert found.summary["num_true_known"] == 6
    assert found.summary["prevalence"] == 4 / 6
    assert found.summary["num_checkable"] == 5
    assert found.summary["wrong_fraction"] == 2 / 5
    assert found.to_json()["labels"][1]["prevalence"] is None


def test_a_client_without_positives_is_left_out_of_quantiles_and_counted():
    truth = np.array([[1, 0], [0, 0]], dtype=np.int8)
    found = summarise(tally(truth, np.full_like(truth, -1), np.array([0, 1, 2]), np.zeros(2, np.int64)), ("a", "b"))

    assert np.isnan(found.clients["js_true"][1])
    assert found.summary["clients"]["js_true"]["undefined"] == 1
    assert found.summary["clients"]["js_known"] == {
        "mean": None, "min": None, "p05": None, "p25": None, "median": None, "p75": None, "p95": None, "max": None,
        "undefined": 2,
    }  # fmt: skip
    assert found.summary["clients_without_annotation"] == 2
    assert found.summary["labels_without_annotation"] == 2


@given(st.lists(st.integers(0, 100), min_size=1, max_size=20))
def test_quantiles_are_numpys(values):
    found = quantiles(np.array(values))

    assert found["median"] == pytest.approx(np.median(values))
    assert found["p95"] == pytest.approx(np.percentile(values, 95))
    assert (found["min"], found["max"]) == (min(values), max(values))


def test_json_has_no_nan_and_drops_the_rows_of_many_clients():
    found = summarise(counted(), NAMES)
    report = json.loads(json.dumps(found.to_json(), allow_nan=False))

    assert [row["label"] for row in report["labels"]] == list(NAMES)
    assert report["clients"][1]["phi_distance"] is None
    assert report["clients"][3]["images"] == 30
    assert "clients" not in found.to_json(max_clients=3)
