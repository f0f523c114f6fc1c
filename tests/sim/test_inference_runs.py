"""A run whose network is asked about patches: the same everywhere it is asked, the same weights."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from fedmlic import spec
from fedmlic.corpus import open_corpus
from fedmlic.errors import InputError
from fedmlic.record import RunFolder, open_run
from sim.predict import load_predictor, predict
from sim.run import resume

SETTINGS = {"inference": "patching()", "num_rounds": 2, "evaluate_clients_every": 1}


@pytest.fixture(scope="module")
def patched(play, tmp_path_factory):
    """The folder of a finished run and its result."""
    path = tmp_path_factory.mktemp("patched") / "run"
    return path, play(path, **SETTINGS)


def values(path, event, metric):
    return [each[metric] for each in open_run(path).events() if each["event"] == event]


def test_weights_are_those_of_the_plain_run_and_scores_of_server_and_clients_are_others(patched, play, tmp_path):
    path, found = patched

    expected = play(tmp_path / "plain", **{**SETTINGS, "inference": "plain()"})

    assert found["weights_sha256"] == expected["weights_sha256"]
    for event, metric in (
        ("round", "server/mAP"),
        ("round", "server/val/mAP"),
        ("clients-evaluated", "client/mAP"),
    ):
        own, plain = (values(folder, event, metric) for folder in (path, tmp_path / "plain"))
        assert len(own) == 2
        assert all(left != right for left, right in zip(own, plain, strict=True)), metric


def test_a_run_that_was_broken_off_goes_on_with_it(patched, play, tmp_path, monkeypatch):
    expected = patched[1]
    save = RunFolder.save_checkpoint

    def once(self, number, *arguments, **keywords):
        save(self, number, *arguments, **keywords)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_checkpoint", once)
        with pytest.raises(KeyboardInterrupt):
            play(tmp_path / "run", **SETTINGS)
    found = resume(tmp_path / "run")

    assert found["weights_sha256"] == expected["weights_sha256"]
    assert found["metrics"] == pytest.approx(expected["metrics"], nan_ok=True)
    assert open_run(tmp_path / "run").settings()[0].inference == "patching()"


def test_prediction_asks_as_the_run_was_evaluated_unless_it_is_to_ask_otherwise(patched, tmp_path):
    path, _ = patched
    corpus = open_corpus(spec.build("dataset", open_run(path).settings()[0].dataset))
    rows = np.arange(corpus.splits["test"].start, corpus.splits["test"].stop)
    stored = corpus.images.take(rows)
    own, plain = load_predictor(path), load_predictor(path, inference="plain()")
    Image.fromarray(stored[0]).save(tmp_path / "one.png")

    assert np.array_equal(own.scores(stored), own.learner.predict(corpus.images, rows))
    assert np.abs(own.scores(stored) - plain.scores(stored)).max() > 1e-3
    for text, predictor in ((None, own), ("plain()", plain)):
        found = predict(path, [tmp_path / "one.png"], inference=text)
        by_name = {item["label"]: item["probability"] for item in found["images"][0]["labels"]}
        assert found["inference"] == (text or "patching()")
        expected = predictor.scores(stored[:1])[0].tolist()
        assert [by_name[name] for name in corpus.label_names] == pytest.approx(expected, abs=1e-6)
    with pytest.raises(InputError, match="inference to name an entry of its catalogue, got 'patchin'"):
        load_predictor(path, inference="patchin()")
