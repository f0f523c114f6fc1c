"""Thresholds against a loop over all of them, and against scikit-learn."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import precision_recall_curve

from fedmlic.errors import InputError
from fedmlic.labels import ABSENT, PRESENT, UNCERTAIN, UNKNOWN
from fedmlic.record import write_json
from sim.thresholds import RULES, fit, read_thresholds

STATES = st.sampled_from([PRESENT, ABSENT, UNKNOWN, UNCERTAIN])
# Few distinct values, so that ties are the rule.
SCORES = st.one_of(
    st.sampled_from(np.linspace(0, 1, 6, dtype=np.float32).tolist()), st.floats(0, 1, width=32, allow_subnormal=False)
)


@st.composite
def tables(draw):
    shape = draw(st.tuples(st.integers(2, 25), st.integers(1, 3)))
    return draw(hnp.arrays(np.float32, shape, elements=SCORES)), draw(hnp.arrays(np.int8, shape, elements=STATES))


def counts(scores, labels, threshold):
    """True positives, false positives, false negatives of one label, by a loop."""
    found = [0, 0, 0]
    for score, state in zip(scores.tolist(), labels.tolist(), strict=True):
        if state in {PRESENT, ABSENT}:
            place = (0 if state == PRESENT else 1) if score >= threshold else (2 if state == PRESENT else None)
            if place is not None:
                found[place] += 1
    return tuple(found)


def f1(tp, fp, fn):
    return 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else float("nan")


@given(tables(), st.sampled_from([0.3, 0.55, 0.7, 0.9, 1.0]))
def test_no_other_threshold_is_better(table, precision):
    scores, labels = table
    found = fit(scores, labels, [str(i) for i in range(scores.shape[1])], precision=precision, min_entries=1)

    for column in range(scores.shape[1]):
        here = scores[:, column], labels[:, column]
        known = here[0][here[1] >= 0]
        for rule in RULES:
            each = found.rules[rule][column]
            assert counts(*here, each.value) == (each.true_positives, each.false_positives, each.false_negatives)
        num_present = int((here[1] == PRESENT).sum())
        if not 0 < num_present < len(known):
            assert found.rules["best-f1"][column].why_fixed
            assert found.rules["best-f1"][column].value == 0.5
            continue
        every = [(threshold, *counts(*here, threshold)) for threshold in np.unique(known).tolist()]
        best = max(f1(*each[1:]) for each in every)
        chosen = found.rules["best-f1"][column]
        assert chosen.f1 == best
        # Of equally good ones the highest: it predicts least.
        assert chosen.true_positives + chosen.false_positives == min(
            tp + fp for _, tp, fp, fn in every if f1(tp, fp, fn) == best
        )
        reaching = [(tp, fp) for _, tp, fp, _ in every if tp + fp and tp / (tp + fp) >= precision]
        chosen = found.rules["precision"][column]
        assert bool(chosen.why_fixed) == (not reaching)
        if reaching:
            most = max(tp for tp, _ in reaching)
            assert (chosen.true_positives, chosen.false_positives) == min(pair for pair in reaching if pair[0] == most)


@pytest.mark.parametrize("seed", range(3))
def test_scikit_learn_finds_the_same_f1_and_recall(seed):
    rng = np.random.default_rng(seed)
    present = rng.random(300) < 0.3
    scores = np.clip(rng.normal(0.35 + 0.25 * present, 0.15), 0, 1).astype(np.float32).round(2)
    found = fit(scores[:, None], present.astype(np.int8)[:, None], ["a"], precision=0.8)

    precision, recall, _ = precision_recall_curve(present, scores)
    with np.errstate(invalid="ignore"):
        f1_curve = np.nan_to_num(2 * precision * recall / (precision + recall))
    best, at_precision = found.rules["best-f1"][0], found.rules["precision"][0]
    assert best.f1 == pytest.approx(f1_curve.max())
    # The curve's last point, of no threshold at all, has precision 1 and recall 0.
    assert at_precision.recall == pytest.approx(recall[:-1][precision[:-1] >= 0.8].max())
    assert at_precision.precision >= 0.8


def test_by_hand():
    scores = np.array([[0.9], [0.8], [0.4], [0.3], [0.1]], np.float32)
    labels = np.array([[1], [0], [1], [0], [-1]], np.int8)
    found = fit(scores, labels, ["a"], precision=1.0, min_entries=2)

    best, exact = found.rules["best-f1"][0], found.rules["precision"][0]
    # At 0.4: two of three are right, none is missed, F1 = 4/5; the threshold lies between 0.4 and 0.3.
    assert (best.true_positives, best.false_positives, best.false_negatives) == (2, 1, 0)
    assert best.value == pytest.approx(0.35)
    assert (exact.true_positives, exact.false_positives, exact.value) == (1, 0, pytest.approx(0.85))
    assert found.rules["fixed"][0].value == 0.5
    assert (found.num_present.tolist(), found.num_absent.tolist()) == ([2], [2])


def test_neighbouring_numbers_still_have_a_threshold_between_them():
    low = np.float32(0.3)
    high = np.nextafter(low, np.float32(1))
    scores = np.array([[high], [low]])
    found = fit(scores, np.array([[1], [0]], np.int8), ["a"], min_entries=1)

    assert ((scores >= found.values("best-f1")) == [[True], [False]]).all()


def test_a_label_with_too_few_images_keeps_the_fixed_threshold_and_says_so():
    rng = np.random.default_rng(0)
    labels = (rng.random((40, 2)) < [0.5, 0.1]).astype(np.int8)
    found = fit(rng.random((40, 2)).astype(np.float32), labels, ["often", "rare"], fixed=0.4, precision=1.0)

    assert found.rules["best-f1"][0].why_fixed == ""
    rare = found.rules["best-f1"][1]
    count = int(labels[:, 1].sum())
    assert (rare.value, rare.why_fixed) == (0.4, f"{count} known present validation images, 10 are needed")
    for label in found.to_json()["labels"]:
        assert label["fixed"]["value"] == 0.4


def test_without_images_all_are_fixed():
    found = fit(np.zeros((0, 2), np.float32), np.zeros((0, 2), np.int8), ["a", "b"])

    assert found.values("best-f1").tolist() == [0.5, 0.5]
    assert found.rules["precision"][0].why_fixed.startswith("0 known present and 0 known absent")


@pytest.mark.parametrize("precision", [0.0, 1.1, float("nan")])
def test_a_target_that_is_no_precision_is_refused(precision):
    with pytest.raises(InputError, match="Expected the target precision"):
        fit(np.zeros((1, 1), np.float32), np.zeros((1, 1), np.int8), ["a"], precision=precision)


@pytest.fixture
def written(tmp_path):
    rng = np.random.default_rng(1)
    labels = (rng.random((60, 2)) < 0.4).astype(np.int8)
    found = fit(rng.random((60, 2)), labels, ["cat", "dog"], about={"identity": "i", "round": 3})
    write_json(tmp_path / "thresholds.json", found.to_json())
    return tmp_path / "thresholds.json", found


@pytest.mark.parametrize("rule", RULES)
def test_what_is_written_is_read_in_the_order_of_the_model(written, rule):
    path, found = written

    read = read_thresholds(path, rule, ["dog", "cat"], {"identity": "i", "round": 3})

    assert read.tolist() == found.values(rule)[::-1].tolist()


def test_thresholds_of_another_model_are_refused(written):
    path, _ = written

    with pytest.raises(InputError, match="round 3 where the model has 4"):
        read_thresholds(path, "best-f1", ["cat", "dog"], {"identity": "i", "round": 4})
    with pytest.raises(InputError, match="no threshold of label 'bird'"):
        read_thresholds(path, "best-f1", ["cat", "dog", "bird"], {})


@pytest.mark.parametrize("value", [1.5, "0.5", True, None])
def test_a_threshold_that_is_no_probability_is_named(written, value):
    path, _ = written
    about = json.loads(path.read_text())
    about["labels"][1]["best-f1"]["value"] = value
    path.write_text(json.dumps(about))

    with pytest.raises(InputError, match="label 'dog'"):
        read_thresholds(path, "best-f1", ["cat", "dog"], {})


def test_another_json_is_refused(tmp_path):
    (tmp_path / "labels.json").write_text('{"labels": ["cat"]}')

    with pytest.raises(InputError, match=r"Expected .* to hold thresholds"):
        read_thresholds(tmp_path / "labels.json", "fixed", ["cat"], {})
