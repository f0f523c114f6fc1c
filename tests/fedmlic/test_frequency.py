"""Groups of labels by how often they are annotated."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from fedmlic.errors import InputError
from fedmlic.experiment import split_settings
from fedmlic.frequency import GROUPS, Frequencies, by_frequency
from fedmlic.metrics import evaluate


def test_the_bounds_are_those_of_coco_mlt():
    groups = Frequencies(np.array([0, 19, 20, 100, 101])).groups()

    assert {name: mask.tolist() for name, mask in groups.items()} == {
        "head": [False, False, False, False, True],
        "medium": [False, False, True, True, False],
        "tail": [True, True, False, False, False],
    }


@given(st.lists(st.integers(0, 300), min_size=1, max_size=20), st.integers(0, 200), st.integers(-1, 200))
def test_every_label_is_in_one_group(counts, tail_below, more):
    groups = Frequencies(np.array(counts), tail_below, tail_below + more).groups()

    assert (sum(mask.astype(int) for mask in groups.values()) == 1).all()


def test_each_group_is_judged_by_its_own_labels_alone():
    rng = np.random.default_rng(1)
    scores, labels = rng.random((50, 6)), (rng.random((50, 6)) < 0.4).astype(np.int8)
    labels[:, 4] = 1  # nothing absent: cannot be judged
    counts, unannotated = np.array([500, 120, 50, 5, 6, 7]), np.array([False] * 5 + [True])

    found = by_frequency(evaluate(scores, labels).per_label, Frequencies(counts), unannotated)

    ap = [average_precision_score(labels[:, k], scores[:, k]) for k in range(6)]
    assert found["mAP/head"] == pytest.approx((ap[0] + ap[1]) / 2)
    assert found["mAP/medium"] == pytest.approx(ap[2])
    assert found["mAP/tail"] == pytest.approx(ap[3])
    assert found["prevalence/head"] == pytest.approx(labels[:, :2].mean())
    counts = [found[f"{name}/{group}"] for group in GROUPS for name in ("num-labels", "num-evaluable")]
    assert counts == [2, 2, 1, 1, 2, 1]


def test_a_group_without_labels_has_no_name_and_one_that_cannot_be_judged_no_number():
    per_label = evaluate(np.full((4, 1), 0.5), np.ones((4, 1), dtype=np.int8)).per_label

    found = by_frequency(per_label, Frequencies(np.array([1])))

    assert set(found) == {f"{name}/tail" for name in ("mAP", "prevalence", "num-labels", "num-evaluable")}
    assert np.isnan(found["mAP/tail"])
    assert found["num-evaluable/tail"] == 0


def test_groups_that_overlap_are_refused():
    with pytest.raises(InputError, match="Expected head-above to be at least 49"):
        split_settings({"tail-below": 50, "head-above": 48})
    assert split_settings({"tail-below": 50, "head-above": 49})[0].identity() == split_settings({})[0].identity()
