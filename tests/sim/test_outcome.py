"""The scores of a run's models are those that its record was made from."""

import json

import pandas as pd
import pytest
from sklearn.metrics import average_precision_score

from fedmlic.errors import InputError
from sim.outcome import corpus_of, predictor_of, scores_of


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
        "home": str(tmp_path_factory.mktemp("home")),
    }
    run(*split_settings(settings), path)
    return path


@pytest.mark.parametrize("which", ["best", "last"])
def test_scores_give_the_recorded_average_precision(run_folder, which):
    found = scores_of(run_folder, "test", which)
    labels = pd.read_parquet(run_folder / "labels.parquet")
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
