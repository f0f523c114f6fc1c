import dataclasses
import itertools
import math
import subprocess
import sys
import warnings

import numpy as np
import pytest
import sklearn.metrics
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torchmetrics.functional.classification import multilabel_average_precision

from fedmlic import metrics
from fedmlic.errors import InputError
from fedmlic.labels import ABSENT, PRESENT, UNCERTAIN, UNKNOWN
from fedmlic.metrics import (
    across_clients,
    average_precision,
    average_precisions,
    client_metrics,
    evaluate,
    evaluate_apart,
    random_average_precision,
    spread,
    unannotated_columns,
)
from fedmlic.seeds import stream

SCORES = st.sampled_from([0.0, 0.1, 0.25, 0.4999, 0.5, 0.75, 1.0]) | st.floats(0, 1, width=32)
"""Few different values, so that ties are common, and any other."""


@st.composite
def tables(draw, states=(PRESENT, ABSENT, UNKNOWN, UNCERTAIN)):
    """Scores and labels, among them one image, constant scores, empty and wholly unknown columns."""
    shape = draw(st.tuples(st.integers(1, 12), st.integers(1, 6)))
    scores = draw(hnp.arrays(np.float64, shape, elements=SCORES))
    labels = draw(hnp.arrays(np.int8, shape, elements=st.sampled_from(states)))
    for column in range(shape[1]):
        forced = draw(st.sampled_from([None, None, None, *states]))
        if forced is not None:
            labels[:, column] = forced
    return scores, labels


COMPLETE = tables(states=(PRESENT, ABSENT))
ONE_IMAGE = (np.array([[0.5, 0.5, 0.2]]), np.array([[1, 0, -1]], np.int8))


def columns(scores, labels):
    """Per label: the scores and truths of its known entries."""
    for column in range(labels.shape[1]):
        chosen = labels[:, column] >= 0
        yield scores[chosen, column], labels[chosen, column]


def has_both(truths):
    return PRESENT in truths and ABSENT in truths


def same(expected, actual):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12, equal_nan=True)


# --- average precision ---


@settings(deadline=None)
@given(tables())
@example(ONE_IMAGE)
def test_label_ap_is_scikit_learns_over_known_entries(table):
    expected = [sklearn.metrics.average_precision_score(y, s) if has_both(y) else np.nan for s, y in columns(*table)]

    same(expected, average_precisions(*table))


@settings(max_examples=60, deadline=None)
@given(tables())
def test_label_ap_is_torchmetrics_over_evaluable_columns(table):
    """torchmetrics raises IndexError on a wholly ignored column, so only evaluable ones go in."""
    scores, labels = table
    kept = [column for column, (_, y) in enumerate(columns(*table)) if has_both(y)]
    if len(kept) < 2:  # it demands at least two labels
        return
    target = torch.from_numpy(np.where(labels < 0, -1, labels)[:, kept].astype(np.int64))

    expected = multilabel_average_precision(
        torch.from_numpy(scores[:, kept]), target, num_labels=len(kept), average=None, ignore_index=-1
    )

    np.testing.assert_allclose(average_precisions(scores, labels)[kept], expected.numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_many_images_agree_with_scikit_learn_and_torchmetrics(dtype):
    rng = stream(0, "test/metrics")
    labels = rng.choice(np.array([1, 0, -1], np.int8), (700, 9), p=[0.15, 0.6, 0.25])
    scores = np.clip(rng.normal(0.3, 0.2, labels.shape) + 0.2 * (labels == 1), 0, 1).astype(dtype)

    actual = average_precisions(scores, labels)

    same([sklearn.metrics.average_precision_score(y, s) for s, y in columns(scores, labels)], actual)
    theirs = multilabel_average_precision(
        torch.from_numpy(scores.astype(np.float64)), torch.from_numpy(labels.astype(np.int64)), 9, None, ignore_index=-1
    )
    np.testing.assert_allclose(actual, theirs.numpy(), rtol=0, atol=1e-6)


def test_tied_scores_are_one_step():
    """By hand: four equal scores, two present: one threshold of precision 1/2, whatever the order."""
    for order in set(itertools.permutations([True, True, False, False])):
        assert average_precision(np.full(4, 0.3), np.array(order)) == 0.5


def test_average_precision_by_hand():
    """Present at ranks 1 and 3 of 4: steps (1 + 2/3) / 2; recall 0..0.5 sees 1, recall 0.6..1 sees 2/3."""
    scores, present = np.array([0.2, 0.9, 0.4, 0.7]), np.array([False, True, True, False])

    assert average_precision(scores, present) == pytest.approx(5 / 6, abs=1e-15)
    assert average_precision(scores, present, "voc07") == pytest.approx((6 * 1 + 5 * 2 / 3) / 11, abs=1e-15)


@settings(deadline=None)
@given(st.lists(st.tuples(SCORES, st.booleans()), min_size=1, max_size=30))
@example([(i / 20, i % 2 == 0) for i in range(20)])
def test_voc07_is_a_plain_loop_over_recall_levels(entries):
    scores, present = np.array([s for s, _ in entries]), np.array([p for _, p in entries])
    points = []  # present found, precision
    for threshold in scores:
        above = scores >= threshold
        points.append((int((above & present).sum()), (above & present).sum() / above.sum()))
    levels = [max((p for found, p in points if 10 * found >= r * present.sum()), default=0) for r in range(11)]

    expected = np.mean(levels) if present.any() else np.nan

    same(expected, average_precision(scores, present, "voc07"))


def test_average_precision_without_present_or_absent_entries():
    scores = np.array([0.1, 0.6])

    assert np.isnan(average_precision(scores, np.array([False, False])))
    assert np.isnan(average_precision(np.zeros(0), np.zeros(0, bool)))
    assert average_precision(scores, np.array([True, True])) == 1.0


# --- averages over labels ---


@settings(deadline=None)
@given(tables())
@example(ONE_IMAGE)
def test_map_and_prevalence_run_over_evaluable_labels(table):
    found = [(sklearn.metrics.average_precision_score(y, s), y.mean()) for s, y in columns(*table) if has_both(y)]

    result = evaluate(*table)

    assert result.num_evaluable == len(found)
    same(np.mean([ap for ap, _ in found]) if found else np.nan, result.values["mAP"])
    same(np.mean([share for _, share in found]) if found else np.nan, result.prevalence)


@settings(deadline=None)
@given(COMPLETE)
def test_empty_labels_zero_is_scikit_learns_macro_average(table):
    scores, labels = table
    predicted = scores >= 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns of labels without present entries
        ap = [sklearn.metrics.average_precision_score(y, s) for s, y in columns(scores, labels)]
        overall = sklearn.metrics.average_precision_score(labels.ravel(), scores.ravel())
    macro = sklearn.metrics.precision_recall_fscore_support(
        labels.T.ravel() + 2 * np.repeat(np.arange(labels.shape[1]), len(labels)),
        predicted.T.ravel() + 2 * np.repeat(np.arange(labels.shape[1]), len(labels)),
        labels=2 * np.arange(labels.shape[1]) + 1,
        average="macro",
        zero_division=0,
    )
    micro = sklearn.metrics.precision_recall_fscore_support(
        labels.ravel(), predicted.ravel(), average="binary", zero_division=0
    )

    values = evaluate(scores, labels, empty_labels="zero").values

    same([np.mean(ap), overall], [values["mAP"], values["O-AP"]])
    same(macro[:3], [values[name] for name in ("CP", "CR", "macro-F1")])
    same(micro[:3], [values[name] for name in ("OP", "OR", "OF1")])


@settings(deadline=None)
@given(tables(), st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0]))
@example(ONE_IMAGE, 0.5)
def test_thresholded_metrics_are_scikit_learns_over_known_entries(table, threshold):
    scores, labels = table
    per_label = [
        sklearn.metrics.precision_recall_fscore_support(y, s >= threshold, average="binary", zero_division=0)[:3]
        for s, y in columns(scores, labels)
        if has_both(y)
    ]
    known = labels >= 0
    truth, predicted = labels[known], scores[known] >= threshold
    undefined = np.full(3, np.nan)
    micro = undefined
    if has_both(truth):
        support = sklearn.metrics.precision_recall_fscore_support(truth, predicted, average="binary", zero_division=0)
        micro = support[:3]

    result = evaluate(scores, labels, threshold)

    same(
        np.mean(per_label, axis=0) if per_label else undefined,
        [result.values[name] for name in ("CP", "CR", "macro-F1")],
    )
    same(micro, [result.values[name] for name in ("OP", "OR", "OF1")])
    same((truth != predicted).mean() if known.any() else np.nan, result.values["hamming"])
    table_rows = np.stack([result.per_label.precision, result.per_label.recall, result.per_label.f1], axis=1)
    same(np.reshape(per_label, (-1, 3)), table_rows[~np.isnan(table_rows[:, 0])])


def test_cf1_is_the_harmonic_mean_of_means():
    """By hand: P = 1, R = 1/2 and P = 1/2, R = 1 give F1 = 2/3 twice, but CP = CR = CF1 = 3/4."""
    labels = np.array([[1, 1], [1, 0], [0, 0]], np.int8)
    scores = np.array([[0.9, 0.9], [0.1, 0.9], [0.1, 0.1]])

    values = evaluate(scores, labels).values

    assert (values["CP"], values["CR"], values["CF1"]) == (0.75, 0.75, 0.75)
    assert values["macro-F1"] == pytest.approx(2 / 3, abs=1e-15)


@settings(deadline=None)
@given(COMPLETE)
def test_hamming_and_subset_accuracy_are_scikit_learns(table):
    scores, labels = table
    predicted = (scores >= 0.5).astype(int)

    result = evaluate(scores, labels)

    same(sklearn.metrics.hamming_loss(labels, predicted), result.values["hamming"])
    same((labels == predicted).all(axis=1).mean(), result.values["subset-accuracy"])
    assert result.num_complete == len(labels)


def test_subset_accuracy_runs_over_completely_known_images():
    labels = np.array([[1, 0], [1, 1], [1, UNKNOWN], [UNCERTAIN, 0]], np.int8)
    scores = np.array([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.9, 0.1]])

    result = evaluate(scores, labels)

    assert result.values["subset-accuracy"] == 0.5
    assert result.num_complete == 2


# --- top 3 ---


def top_metrics_by_loop(scores, labels, threshold):
    """CP, OP and OR in both variants from sets of predicted labels, image by image."""
    num_images, num_labels = scores.shape
    result = {}
    for suffix in ("@3", "@3t"):
        tally = {"tp": np.zeros(num_labels), "fp": np.zeros(num_labels), "fn": np.zeros(num_labels)}
        for i in range(num_images):
            ranked = sorted(range(num_labels), key=lambda c: (-scores[i, c], c))
            third = scores[i, ranked[:3][-1]]
            above = {c for c in ranked if scores[i, c] >= max(third, threshold)}
            predicted = set(ranked[:3]) if suffix == "@3" else above
            for c in range(num_labels):
                if labels[i, c] >= 0:
                    kind = ("tp" if labels[i, c] else "fp") if c in predicted else ("fn" if labels[i, c] else None)
                    if kind:
                        tally[kind][c] += 1
        both = [has_both(y) for _, y in columns(scores, labels)]
        tp, fp, fn = (tally[kind] for kind in ("tp", "fp", "fn"))
        precision = [tp[c] / (tp[c] + fp[c]) if tp[c] + fp[c] else 0.0 for c in range(num_labels) if both[c]]
        recall = [tp[c] / (tp[c] + fn[c]) for c in range(num_labels) if both[c]]
        result["CP" + suffix] = np.mean(precision) if any(both) else np.nan
        result["CR" + suffix] = np.mean(recall) if any(both) else np.nan
        whole = has_both(labels[labels >= 0])
        result["OP" + suffix] = tp.sum() / max(1, tp.sum() + fp.sum()) if whole else np.nan
        result["OR" + suffix] = tp.sum() / (tp.sum() + fn.sum()) if whole else np.nan
        for group in "CO":
            p, r = result[f"{group}P{suffix}"], result[f"{group}R{suffix}"]
            result[f"{group}F1{suffix}"] = 0.0 if p + r == 0 else 2 * p * r / (p + r)
    return result


@settings(deadline=None)
@given(tables())
@example(ONE_IMAGE)
def test_top3_metrics_are_a_plain_loop(table):
    expected = top_metrics_by_loop(*table, 0.5)

    values = evaluate(*table).values

    assert len(expected) == 12
    for name, value in expected.items():
        same(value, values[name])


def test_top3_variants_by_hand():
    """Strict predicts three labels though only two reach 0.5; the other adds the tie at the third place."""
    labels = np.array([[1, 1, 0, 0, 0], [0, 0, 1, 1, 1]], np.int8)
    scores = np.array([[0.9, 0.8, 0.3, 0.2, 0.1], [0.6, 0.1, 0.9, 0.6, 0.6]])

    values = evaluate(scores, labels).values

    assert values["OP@3"] == pytest.approx(4 / 6)  # {0, 1, 2} and {2, 0, 3}
    assert values["OR@3"] == pytest.approx(4 / 5)
    assert values["OP@3t"] == pytest.approx(5 / 6)  # {0, 1} and {0, 2, 3, 4}
    assert values["OR@3t"] == 1.0


# --- per image ---


@settings(deadline=None)
@given(COMPLETE)
def test_ranking_metrics_are_scikit_learns_over_images_with_both(table):
    scores, labels = table
    both = (labels == 1).any(axis=1) & (labels == 0).any(axis=1)
    scores, labels = scores[both], labels[both]
    if not both.any():
        return
    expected = [
        sklearn.metrics.label_ranking_loss(labels, scores),
        sklearn.metrics.coverage_error(labels, scores),
        sklearn.metrics.label_ranking_average_precision_score(labels, scores),
    ]

    result = evaluate(*table)

    same(expected, [result.values[name] for name in ("ranking-loss", "coverage", "LRAP")])
    assert result.num_ranked == both.sum()


def ranking_by_loop(scores, labels):
    rows = []
    for s, y in zip(scores, labels, strict=True):
        present = [c for c in range(len(y)) if y[c] == PRESENT]
        absent = [c for c in range(len(y)) if y[c] == ABSENT]
        if not present or not absent:
            continue
        wrong = sum(s[n] >= s[p] for p in present for n in absent) / (len(present) * len(absent))
        coverage = max(sum(s[c] >= s[p] for c in present + absent) for p in present)
        one_error = max(s[n] for n in absent) >= max(s[p] for p in present)
        lrap = np.mean(
            [sum(s[q] >= s[p] for q in present) / sum(s[c] >= s[p] for c in present + absent) for p in present]
        )
        rows.append((wrong, coverage, one_error, lrap))
    return np.mean(rows, axis=0, dtype=np.float64) if rows else np.full(4, np.nan), len(rows)


@settings(deadline=None)
@given(tables())
@example(ONE_IMAGE)
def test_masked_ranking_metrics_are_a_plain_double_loop(table):
    expected, num_ranked = ranking_by_loop(*table)

    result = evaluate(*table)

    same(expected, [result.values[name] for name in ("ranking-loss", "coverage", "one-error", "LRAP")])
    assert result.num_ranked == num_ranked


# --- all metrics ---


@settings(deadline=None)
@given(tables())
def test_counts_beside_the_averages_are_plain_counts(table):
    _, labels = table

    result = evaluate(*table)

    assert result.num_known == sum(int(label) in (0, 1) for label in labels.ravel())
    assert result.per_label.num_known.tolist() == [len(y) for _, y in columns(*table)]
    assert result.per_label.num_present.tolist() == [int(y.sum()) for _, y in columns(*table)]
    assert result.flat().items() >= {"num-known": result.num_known, "num-images": len(labels)}.items()


@settings(deadline=None)
@given(tables(), st.randoms(use_true_random=False))
def test_order_of_images_changes_nothing(table, random):
    scores, labels = table
    order = list(range(len(labels)))
    random.shuffle(order)

    before, after = evaluate(scores, labels).flat(), evaluate(scores[order], labels[order]).flat()

    assert before.keys() == after.keys()
    same(list(before.values()), list(after.values()))


@settings(deadline=None)
@given(tables())
def test_uncertain_counts_as_unknown_and_unknown_scores_do_not_matter(table):
    scores, labels = table
    hidden = np.where(labels < 0, np.int8(UNKNOWN), labels)
    other = np.where(labels < 0, 1 - scores, scores)

    before = evaluate(scores, labels).flat()

    same(list(before.values()), list(evaluate(scores, hidden).flat().values()))
    after = evaluate(other, labels).flat()
    # A high score at an unknown entry takes one of the image's three places.
    same(*([v for n, v in values.items() if "@" not in n] for values in (before, after)))


@settings(deadline=None)
@given(tables(), st.sampled_from([0.0, 0.3, 1.0]))
def test_a_constant_score_reaches_exactly_the_prevalence(table, constant):
    _, labels = table

    for rule in ("exclude", "zero"):
        result = evaluate(np.full(labels.shape, constant), labels, empty_labels=rule)
        same(result.prevalence, result.values["mAP"])


def test_shuffled_labels_stay_near_the_prevalence():
    rng = stream(0, "test/shuffled")
    labels = (rng.random((5000, 8)) < 0.2).astype(np.int8)
    scores = np.clip(0.3 * rng.random(labels.shape) + 0.6 * labels, 0, 1)

    learned = evaluate(scores, labels)
    shuffled = evaluate(scores, rng.permuted(labels, axis=0))

    assert learned.values["mAP"] == 1.0
    assert abs(shuffled.values["mAP"] - shuffled.prevalence) < 0.02


def test_nothing_known_is_nan_without_warning():
    labels = np.full((3, 2), UNKNOWN, np.int8)

    for rule in ("exclude", "zero"):
        result = evaluate(np.zeros((3, 2)), labels, empty_labels=rule)
        assert all(np.isnan(value) for value in result.values.values())
        assert np.isnan(result.prevalence)
        assert (result.num_evaluable, result.num_known, result.num_ranked) == (0, 0, 0)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_empty_tables_are_nan(shape):
    result = evaluate(np.zeros(shape), np.zeros(shape, np.int8))

    assert all(np.isnan(value) for value in result.values.values())


def test_blocks_do_not_show(monkeypatch):
    rng = stream(0, "test/blocks")
    labels = rng.choice(np.array([1, 0, -1], np.int8), (40, 5))
    scores = rng.random((40, 5))
    whole = evaluate(scores, labels).flat()

    monkeypatch.setattr(metrics, "_BLOCK_ENTRIES", 7)

    same(list(whole.values()), list(evaluate(scores, labels).flat().values()))


def test_input_is_not_changed():
    scores, labels = np.array([[0.5, 0.1], [0.2, 0.9]]), np.array([[1, 0], [-1, 1]], np.int8)
    before = scores.copy(), labels.copy()

    evaluate(scores, labels)

    np.testing.assert_array_equal(before[0], scores)
    np.testing.assert_array_equal(before[1], labels)


# --- bad input ---


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -0.01, 1.01])
def test_bad_scores_name_the_label(value):
    scores = np.full((4, 3), 0.5)
    scores[2, 1] = value

    with pytest.raises(InputError, match=r"label 1 \('cat'\) at image 2"):
        evaluate(scores, np.full((4, 3), UNKNOWN, np.int8), label_names=["dog", "cat", "cow"])
    with pytest.raises(InputError, match=r"label 1 at image 2"):
        average_precisions(scores, np.zeros((4, 3), np.int8))


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (np.zeros((2, 3)), np.zeros((2, 2), np.int8), r"\[2, 2\] like the labels"),
        (np.zeros(2), np.zeros((2, 1), np.int8), r"got float64 \[2\]"),
        (np.zeros((2, 2), np.int64), np.zeros((2, 2), np.int8), "got int64"),
        (np.zeros((2, 2)), np.zeros((2, 2)), "labels to be int8"),
        (np.zeros((2, 2)), np.full((2, 2), 3, np.int8), r"got \[3\]"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(scores, labels, message):
    with pytest.raises(InputError, match=message):
        evaluate(scores, labels)


def test_bad_arguments_are_refused():
    scores, labels = np.zeros((2, 2)), np.zeros((2, 2), np.int8)

    with pytest.raises(InputError, match="threshold"):
        evaluate(scores, labels, float("nan"))
    with pytest.raises(InputError, match="empty_labels"):
        evaluate(scores, labels, empty_labels="drop")
    with pytest.raises(InputError, match="2 label names, got 1"):
        evaluate(scores, labels, label_names=["dog"])
    with pytest.raises(InputError, match="interpolation"):
        average_precisions(scores, labels, "voc12")
    with pytest.raises(InputError, match="bool"):
        average_precision(scores[0], labels[0])


# --- spread over clients ---


@settings(deadline=None)
@given(st.lists(st.floats(0, 1) | st.just(float("nan")), max_size=20))
def test_spread_ignores_clients_without_a_value(per_client):
    found = sorted(value for value in per_client if value == value)  # noqa: PLR0124  (NaN is not itself)

    result = spread(per_client)

    assert result["num-clients"] == len(found)
    if not found:
        assert all(np.isnan(result[name]) for name in ("mean", "worst", "std", "p10"))
        return
    place = 0.1 * (len(found) - 1)
    low = int(place)
    high = min(low + 1, len(found) - 1)
    mean = sum(found) / len(found)
    expected = [
        mean,
        found[0],
        (sum((value - mean) ** 2 for value in found) / len(found)) ** 0.5,
        found[low] + (place - low) * (found[high] - found[low]),
    ]
    same(expected, [result[name] for name in ("mean", "worst", "std", "p10")])


def test_metrics_need_no_torch():
    """A server without a GPU stack can judge: the modules import NumPy alone."""
    code = "import sys, fedmlic.metrics, fedmlic.histograms; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Clients compared


@pytest.mark.parametrize(("num_present", "num_known"), [(1, 2), (1, 5), (2, 5), (4, 5), (3, 7)])
def test_the_chance_of_a_random_order_is_the_mean_over_all_orders(num_present, num_known):
    orders = itertools.combinations(range(num_known), num_present)
    found = [
        average_precision(np.linspace(1, 0, num_known), np.isin(np.arange(num_known), places)) for places in orders
    ]

    chance = random_average_precision(np.array([num_present]), np.array([num_known]))

    assert chance[0] == pytest.approx(np.mean(found), abs=1e-12)


def test_a_client_is_judged_by_labels_with_enough_images_of_both_kinds():
    rng = np.random.default_rng(3)
    labels = rng.choice(np.array([1, 0, -1, -2], np.int8), (60, 5), p=[0.3, 0.5, 0.1, 0.1])
    labels[labels[:, 1] == 1, 1] = -1  # nothing present
    labels[labels[:, 2] == 0, 2] = -1  # nothing absent
    labels[np.flatnonzero(labels[:, 3] == 1)[4:], 3] = 0  # four present
    scores = rng.random(labels.shape)

    found = client_metrics(scores, labels, 5)
    more = client_metrics(scores, labels, 4)

    def expected(label):
        is_known = labels[:, label] >= 0
        return sklearn.metrics.average_precision_score(labels[is_known, label], scores[is_known, label])

    shares = [(labels[:, label] == 1).sum() / (labels[:, label] >= 0).sum() for label in (0, 4)]
    assert found["num-labels"] == 2
    assert found["mAP"] == pytest.approx(np.mean([expected(0), expected(4)]))
    assert found["prevalence"] == pytest.approx(np.mean(shares))
    assert more["num-labels"] == 3
    assert more["mAP"] == pytest.approx(np.mean([expected(0), expected(3), expected(4)]))


def test_every_label_counts_with_one_image_of_each_kind_as_in_evaluate():
    labels = np.array([[1, 0, -1], [0, 0, 1], [1, -2, 0]], np.int8)
    scores = np.random.default_rng(0).random(labels.shape)

    found, whole = client_metrics(scores, labels, 1), evaluate(scores, labels)

    assert found["mAP"] == pytest.approx(whole.values["mAP"])
    assert found["prevalence"] == pytest.approx(whole.prevalence)
    assert found["num-labels"] == whole.num_evaluable


@pytest.mark.parametrize("num_images", [0, 1, 2, 9])
def test_few_images_give_no_number(num_images):
    labels = (np.arange(num_images)[:, None] % 2).astype(np.int8).repeat(3, axis=1)

    found = client_metrics(np.full(labels.shape, 0.5), labels)

    assert found["num-labels"] == 0
    assert all(math.isnan(found[name]) for name in ("mAP", "prevalence", "chance"))


def test_random_scores_reach_chance_and_not_more():
    """2,000 clients of 20 images each whose network learned nothing."""
    rng = np.random.default_rng(0)
    clients = [(rng.random((20, 4)), (rng.random((20, 4)) < 0.4).astype(np.int8)) for _ in range(2000)]

    found = across_clients([client_metrics(scores, labels) for scores, labels in clients], 5)

    assert found["mean"] == pytest.approx(found["chance"], abs=0.005)
    assert found["chance"] > found["prevalence"] + 0.04
    assert found["num-evaluated"] == 2000


def test_clients_without_a_label_that_counts_are_left_out_and_counted():
    nothing = {"mAP": math.nan, "prevalence": math.nan, "chance": math.nan, "num-labels": 0.0}
    some = [
        {"mAP": 0.5, "prevalence": 0.1, "chance": 0.2, "num-labels": 1.0},
        {"mAP": 0.9, "prevalence": 0.3, "chance": 0.4, "num-labels": 3.0},
    ]

    found = across_clients([some[0], nothing, some[1]], 7)

    assert found == pytest.approx(
        {
            **spread([0.5, 0.9]),
            "prevalence": 0.2,
            "chance": 0.3,
            "num-pairs": 4,
            "num-evaluated": 3,
            "min-entries": 7,
        }
    )
    assert math.isnan(across_clients([nothing], 5)["chance"])
    assert across_clients([], 5)["num-clients"] == 0


# --- Labels that nobody annotates -----------------------------------------------------------


def test_labels_that_nobody_annotates_are_judged_apart_and_leave_every_other_number_alone():
    rng = np.random.default_rng(8)
    scores, labels = rng.random((60, 7)), rng.integers(-1, 2, (60, 7)).astype(np.int8)
    apart = np.array([False, True, False, False, True, False, True])

    found = evaluate_apart(scores, labels, apart, 0.4)

    alone = evaluate(scores[:, ~apart], labels[:, ~apart], 0.4)
    for name, value in alone.flat().items():
        assert found.flat()[name] == pytest.approx(value, nan_ok=True), name
    by_label = {
        c: sklearn.metrics.average_precision_score(labels[labels[:, c] >= 0, c], scores[labels[:, c] >= 0, c])
        for c in range(7)
    }
    shares = {c: (labels[:, c] == 1).sum() / (labels[:, c] >= 0).sum() for c in range(7)}
    extra = {name: value for name, value in found.flat().items() if name not in alone.flat()}
    assert extra == pytest.approx(
        {
            "mAP/unannotated": np.mean([by_label[c] for c in (1, 4, 6)]),
            "prevalence/unannotated": np.mean([shares[c] for c in (1, 4, 6)]),
            "num-evaluable/unannotated": 3,
            "num-labels/unannotated": 3,
        }
    )
    assert found.values["mAP"] == pytest.approx(np.mean([by_label[c] for c in (0, 2, 3, 5)]))
    whole = evaluate(scores, labels, 0.4).per_label
    for each in dataclasses.fields(whole):
        np.testing.assert_array_equal(getattr(found.per_label, each.name), getattr(whole, each.name))
        assert getattr(found.per_label, each.name).dtype == getattr(whole, each.name).dtype


def test_without_such_labels_every_number_is_that_of_evaluate():
    rng = np.random.default_rng(9)
    scores, labels = rng.random((30, 4)), rng.integers(0, 2, (30, 4)).astype(np.int8)

    found = evaluate_apart(scores, labels, np.zeros(4, np.bool_))

    assert found.unannotated is None
    assert found.flat() == evaluate(scores, labels).flat()


def test_if_nobody_annotates_anything_only_the_numbers_apart_exist():
    rng = np.random.default_rng(9)
    scores, labels = rng.random((30, 2)), rng.integers(0, 2, (30, 2)).astype(np.int8)

    found = evaluate_apart(scores, labels, np.ones(2, np.bool_)).flat()

    assert math.isnan(found["mAP"])
    assert found["num-evaluable"] == 0
    assert found["mAP/unannotated"] == evaluate(scores, labels).values["mAP"]


def test_columns_are_found_by_name():
    assert unannotated_columns(("a", "b", "c"), ("c", "a")).tolist() == [True, False, True]
    assert unannotated_columns(("a", "b"), None).tolist() == [False, False]
    assert unannotated_columns((), ()).shape == (0,)
