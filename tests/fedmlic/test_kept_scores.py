"""Scores that a run keeps come back within the precision that is stated."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedmlic.errors import InputError
from fedmlic.kept_scores import (
    LOGIT_ERROR,
    SCORE_ERROR,
    KeptScores,
    decode,
    encode,
    keep_only,
    kept_rounds,
    path_of,
    read_scores,
    write_scores,
)

PROBABILITIES = hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(0, 1, width=32))


def kept(number=3, split="test", scores=None):
    scores = np.array([[0.1, 0.9], [0.5, 0.0], [1.0, 1e-6]], dtype=np.float32) if scores is None else scores
    ids = [f"image {row}" for row in range(len(scores))]
    rows = np.arange(10, 10 + len(scores))
    return KeptScores(number, split, ("cat", "dög"), rows, ids, encode(scores), ("identity", "corpus"))


@given(PROBABILITIES)
def test_scores_come_back_within_the_stated_precision_and_in_order(scores):
    found = decode(encode(scores))

    assert np.abs(found - scores).max() <= SCORE_ERROR * 1.001
    order = np.argsort(scores, kind="stable")
    assert (np.diff(found[order]) >= 0).all()
    assert ((found >= 0.5) == (scores >= 0.5)).all()
    assert ((found == 0) == (scores == 0)).all()
    assert ((found == 1) >= (scores == 1)).all()


@given(hnp.arrays(np.float64, 20, elements=st.floats(-19, 19)))
def test_small_scores_come_back_within_the_stated_share(logits):
    scores = 1 / (1 + np.exp(-logits))

    found = decode(encode(scores)).astype(np.float64)

    small = scores < 0.5
    assert (np.abs(found[small] / scores[small] - 1) < LOGIT_ERROR * 1.01).all()
    assert (encode(found[small].astype(np.float64)) == encode(scores[small])).all()


def test_scores_just_below_a_half_do_not_become_a_decision():
    below = np.nextafter(np.float32(0.5), np.float32(0))

    assert decode(encode(np.array([below])))[0] < 0.5 <= decode(encode(np.array([np.float32(0.5)])))[0]


@pytest.mark.parametrize("wrong", [np.nan, -0.1, 1.5])
def test_what_is_no_probability_is_refused(wrong):
    with pytest.raises(InputError, match="probabilities from 0 to 1"):
        encode(np.array([0.5, wrong]))


def test_a_file_comes_back(tmp_path):
    write_scores(tmp_path, kept())

    found = read_scores(path_of(tmp_path, 3, "test"))

    assert (found.round, found.split, found.label_names, found.belongs_to) == (
        3,
        "test",
        ("cat", "dög"),
        ("identity", "corpus"),
    )
    assert found.image_ids == ["image 0", "image 1", "image 2"]
    np.testing.assert_array_equal(found.rows, [10, 11, 12])
    np.testing.assert_array_equal(found.codes, kept().codes)
    assert found.scores.dtype == np.float32
    assert not list(path_of(tmp_path, 3, "test").parent.glob(".*"))


def test_a_damaged_file_is_named(tmp_path):
    write_scores(tmp_path, kept())
    path = path_of(tmp_path, 3, "test")
    for content in (b"", path.read_bytes()[:-40], b"PAR1 rubbish"):
        path.write_bytes(content)
        with pytest.raises(InputError, match="Delete it to have them computed"):
            read_scores(path)


def test_rounds_that_are_not_wanted_are_deleted(tmp_path):
    for number in (1, 2, 12):
        for split in ("test", "val"):
            write_scores(tmp_path, kept(number, split))
    (tmp_path / "scores" / ".round-00013-val.parquet.tmp").write_bytes(b"half")

    assert kept_rounds(tmp_path) == [1, 2, 12]
    keep_only(tmp_path, [2])

    assert sorted(file.name for file in (tmp_path / "scores").iterdir()) == [
        "round-00002-test.parquet",
        "round-00002-val.parquet",
    ]
    assert kept_rounds(tmp_path / "elsewhere") == []


def test_two_bytes_a_score(tmp_path):
    rng = np.random.default_rng(0)
    scores = 1 / (1 + np.exp(-rng.normal(-3, 2, (500, 40))))
    names = tuple(map(str, range(40)))
    ids = [str(row) for row in range(500)]
    write_scores(tmp_path, KeptScores(1, "test", names, np.arange(500), ids, encode(scores), ("a", "b")))

    assert path_of(tmp_path, 1, "test").stat().st_size < 2.6 * scores.size
