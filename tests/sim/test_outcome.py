"""The scores of a run's models are those that its record was made from."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score

from fedmlic.errors import InputError
from fedmlic.kept_scores import SCORE_ERROR, kept_rounds, path_of, read_scores
from fedmlic.metrics import evaluate
from sim.outcome import corpus_of, predictor_of, round_of, scores_of


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    from fedmlic.experiment import split_settings
    from sim.run import run

    path = tmp_path_factory.mktemp("outcome") / "run"
    settings = {
        "dataset": "multidigits(num_train=120, num_val=40, num_test=60, image_size=24, max_glyphs=3)",
        "model": "small_cnn(width=8)",
        "method": "bce()",
        "num-clients": 4,
        "cohort-size": 2,
        "num-rounds": 4,
        "engine": "inprocess",
        "keep-scores": "every",
        "home": str(tmp_path_factory.mktemp("home")),
    }
    run(*split_settings(settings), path)
    return path


@pytest.fixture(scope="module")
def without(run_folder, tmp_path_factory):
    """The same run as if it had kept no scores."""
    path = tmp_path_factory.mktemp("without") / "run"
    shutil.copytree(run_folder, path)
    shutil.rmtree(path / "scores")
    return path


@pytest.mark.parametrize("split", ["test", "val"])
@pytest.mark.parametrize("which", ["best", "last"])
def test_kept_scores_are_those_of_the_model(run_folder, without, which, split):
    kept, computed = scores_of(run_folder, split, which), scores_of(without, split, which)

    assert (kept.kept, computed.kept) == (True, False)
    assert kept.round == computed.round == round_of(run_folder, which)
    assert kept.label_names == computed.label_names
    np.testing.assert_array_equal(kept.rows, computed.rows)
    np.testing.assert_array_equal(kept.labels, computed.labels)
    assert np.abs(kept.scores - computed.scores).max() <= SCORE_ERROR * 1.001
    found, expected = (evaluate(each.scores, each.labels) for each in (kept, computed))
    np.testing.assert_array_equal(found.per_label.f1, expected.per_label.f1)  # whether a score reaches 0.5 is exact
    assert found.flat()["mAP"] == pytest.approx(expected.flat()["mAP"], abs=2e-3)


def test_every_evaluated_round_is_kept_with_the_ids_of_its_images(run_folder):
    assert kept_rounds(run_folder) == [1, 2, 3, 4]
    corpus, found = corpus_of(run_folder), read_scores(path_of(run_folder, 2, "test"))
    assert found.image_ids == [corpus.image_ids[row] for row in corpus.splits["test"]]
    recorded = pd.read_parquet(run_folder / "labels.parquet").query("round == 2 and split == 'test'")["f1"]
    f1 = evaluate(found.scores, corpus.labels.take(found.rows)).per_label.f1
    np.testing.assert_array_equal(recorded.to_numpy(), f1.astype(np.float32))


def test_scores_of_other_images_or_rounds_are_not_used(run_folder, without, tmp_path):
    shutil.copytree(without, tmp_path / "run")
    last = round_of(run_folder, "last")
    (tmp_path / "run" / "scores").mkdir()
    shutil.copy(path_of(run_folder, 1, "test"), path_of(tmp_path / "run", last, "test"))

    assert not scores_of(tmp_path / "run", "test", "last").kept


@pytest.mark.parametrize("which", ["best", "last"])
def test_scores_give_the_recorded_average_precision(without, which):
    found = scores_of(without, "test", which)
    labels = pd.read_parquet(without / "labels.parquet")
    recorded = labels[(labels["split"] == "test") & (labels["round"] == found.round)].set_index("label")["ap"]
    ours = {
        name: average_precision_score(found.labels[:, column], found.scores[:, column])
        for column, name in enumerate(found.label_names)
    }
    assert ours == pytest.approx(recorded.to_dict(), abs=1e-6)


def test_the_models_are_those_of_the_result(run_folder):
    result = json.loads((run_folder / "result.json").read_text())
    assert predictor_of(run_folder, "last").round == result["rounds"] == 4
    assert predictor_of(run_folder, "best").round == result["best_round"]


def test_a_split_without_images_is_refused(run_folder):
    with pytest.raises(InputError, match="Expected split to be one of train, val, test, got 'nothing'"):
        scores_of(run_folder, "nothing")


def test_other_images_are_refused(run_folder):
    about = run_folder / "data.json"
    before = about.read_text()
    about.write_text(json.dumps({**json.loads(before), "corpus": "other"}))
    try:
        with pytest.raises(InputError, match="Expected the images and labels that"):
            corpus_of(run_folder)
    finally:
        about.write_text(before)
