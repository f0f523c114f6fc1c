"""Labels for image files are the scores that evaluation saw."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from fedmlic import spec
from fedmlic.corpus import open_corpus
from fedmlic.errors import InputError
from fedmlic.evaluation import Evaluator
from fedmlic.record import open_run
from sim.predict import load_predictor, predict


@pytest.fixture(scope="module")
def pictures(finished):
    corpus = open_corpus(spec.build("dataset", open_run(finished).settings()[0].dataset))
    rows = np.arange(corpus.splits["test"].start, corpus.splits["test"].stop)
    return corpus, rows


def test_the_best_checkpoint_scores_as_it_did_when_it_was_chosen(finished, pictures):
    corpus, _ = pictures
    predictor = load_predictor(finished)
    found = Evaluator(predictor.learner, corpus, 0.5).score(predictor.learner.resident.flat.clone()).values
    noted = {event["round"]: event for event in open_run(finished).events() if event["event"] == "round"}

    assert predictor.round == noted[max(noted)]["best-round"]
    assert found["server/mAP"] == pytest.approx(noted[predictor.round]["server/mAP"], abs=1e-9)


def test_files_are_labelled_as_stored_images_are(finished, pictures, tmp_path):
    corpus, rows = pictures
    stored = corpus.images.take(rows[:3])
    files = [tmp_path / f"{number}.png" for number in range(3)]
    for file, image in zip(files, stored, strict=True):
        Image.fromarray(image).save(file)
    expected = load_predictor(finished).scores(stored)
    found = predict(finished, files)

    assert [entry["image"] for entry in found["images"]] == [str(file) for file in files]
    for entry, scores in zip(found["images"], expected, strict=True):
        by_name = {item["label"]: item["probability"] for item in entry["labels"]}
        assert [by_name[name] for name in corpus.label_names] == pytest.approx(scores.tolist(), abs=1e-6)
        assert entry["present"] == [i["label"] for i in entry["labels"] if i["probability"] >= found["threshold"]]


def test_every_unreadable_file_is_named(finished, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")

    with pytest.raises(InputError, match=r"2 problems.*missing\.png.*broken\.jpg"):
        predict(finished, [tmp_path / "missing.png", broken])


def test_a_round_that_was_not_kept_is_refused(finished):
    with pytest.raises(InputError, match="one of the kept checkpoints"):
        load_predictor(finished, 99)
