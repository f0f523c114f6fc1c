"""Labels for image files are the scores that evaluation saw."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from fedmlic import spec
from fedmlic.corpus import open_corpus
from fedmlic.errors import InputError
from fedmlic.evaluation import Evaluator
from fedmlic.pixel_scale import to_float
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


WORDS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "kite",
    "sea",
    "animal",
    "negative",
    "positive",
]


@pytest.fixture(scope="module")
def by_words(play, tmp_path_factory):
    """A run whose label vectors are words, read out alike; of ten labels two are withheld."""
    folder = tmp_path_factory.mktemp("words")
    rows = np.random.default_rng(6).standard_normal((len(WORDS), 6))
    lines = (" ".join([word, *map(str, row)]) for word, row in zip(WORDS, rows, strict=True))
    (folder / "words.txt").write_text("\n".join(lines) + "\n")
    text = f"glove(path={str(folder / 'words.txt')!r})"
    method = f'fedlgt(text="{text}", readout="shared", layers=1, heads=1, width=8, dropout=0.0)'
    play(folder / "run", method=method, regime="withheld(labels='four, two')", num_rounds=1)
    return folder / "run"


def test_names_typed_at_run_time_are_scored_like_labels(by_words, pictures, tmp_path):
    corpus, rows = pictures
    for number, image in enumerate(corpus.images.take(rows[:2])):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    (tmp_path / "below").mkdir()
    Image.fromarray(corpus.images.take(rows[2:3])[0]).save(tmp_path / "below" / "third.PNG")
    (tmp_path / "notes.txt").write_text("no image")

    asked = predict(by_words, [tmp_path], labels="kite, four,Nine,sea animal,kite")

    assert asked["asked"] == ["kite", "four", "Nine", "sea animal"]
    assert asked["unjudged"] == ["kite", "Nine", "sea animal"]
    assert asked["unannotated"] == ["four"]
    assert "Not labels of this run: kite, Nine, sea animal (3 in all). They were never judged" in asked["note"]
    assert "nobody annotated: four" in asked["note"]
    usual = predict(by_words, [tmp_path])
    assert "note" not in usual
    assert [entry["image"] for entry in asked["images"]] == [entry["image"] for entry in usual["images"]]
    assert [entry["image"].removeprefix(str(tmp_path)) for entry in asked["images"]] == [
        "/0.png",
        "/1.png",
        "/below/third.PNG",
    ]
    for entry, as_trained in zip(asked["images"], usual["images"], strict=True):
        found, labels = ({i["label"]: i["probability"] for i in each["labels"]} for each in (entry, as_trained))
        assert set(found) == set(asked["asked"])
        assert found["four"] == labels["four"]
        assert found["Nine"] == labels["nine"]
        assert [i["probability"] for i in entry["labels"]] == sorted(found.values(), reverse=True)
        assert entry["present"] == [i["label"] for i in entry["labels"] if i["probability"] >= 0.5]


def test_names_are_scored_on_patches_too_where_the_network_is_asked_so(by_words, pictures, tmp_path):
    """PAT-I by hand, from what the network says of the image and of its quarters, each as large as the image."""
    corpus, rows = pictures
    stored = corpus.images.take(rows[:2])
    for number, image in enumerate(stored):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    ask = load_predictor(by_words).asked(["kite", "four"], "m").ask
    images = to_float(stored)
    height, width = (side // 2 for side in images.shape[2:])
    quarters = [images[..., y : y + height, x : x + width] for y in (0, height) for x in (0, width)]
    larger = [F.interpolate(each, size=images.shape[2:], mode="bilinear") for each in quarters]
    with torch.inference_mode():
        whole, *parts = (torch.logit(ask(each).double()).numpy() for each in (images, *larger))
    weights = np.exp(parts) / np.exp(parts).sum(axis=0)
    expected = 1 / (1 + np.exp(-(whole + (weights * parts).sum(axis=0)) / 2))

    found = predict(by_words, [tmp_path], labels="kite, four", inference="patching()")

    plain = 1 / (1 + np.exp(-whole))
    assert np.abs(expected - plain).max() > 1e-3
    assert (found["inference"], found["asked"]) == ("patching()", ["kite", "four"])
    for entry, row in zip(found["images"], expected, strict=True):
        by_name = {item["label"]: item["probability"] for item in entry["labels"]}
        assert [by_name["kite"], by_name["four"]] == pytest.approx(row.tolist(), abs=1e-5)


def test_two_hundred_names_and_what_else_is_asked_does_not_matter(by_words, pictures):
    corpus, rows = pictures
    images = corpus.images.take(rows[:5])
    names = [f"{a} {b}" for a in WORDS for b in WORDS if a != b] + [
        f"{a} {a} {b}" for a in WORDS[:6] for b in WORDS[:8]
    ]
    names = list(dict.fromkeys(names))[:200]

    usual = load_predictor(by_words)
    many, one = usual.asked(names, "m"), usual.asked([names[150]], "m")

    assert many.scores(images).shape == (5, 200)
    assert many.scores(images)[:, [150]] == pytest.approx(one.scores(images), abs=1e-6)
    assert usual.scores(images).shape == (5, 10)


def test_runs_that_cannot_be_asked_say_why(finished, by_words, tmp_path):
    file = tmp_path / "a.png"
    Image.fromarray(np.zeros((24, 24, 3), np.uint8)).save(file)

    with pytest.raises(InputError, match=r"method can be asked .* got bce\(\): it has an output for each label"):
        predict(finished, [file], labels="kite")
    for labels, place in (("", 1), ("kite,,sea", 2), ("kite,", 2), (" , kite", 1)):
        with pytest.raises(InputError, match=f"an empty one at place {place}"):
            predict(by_words, [file], labels=labels)
    with pytest.raises(InputError, match="unheard"):
        predict(by_words, [file], labels="kite,unheard")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(InputError, match=r"nothing to hold images .*got none"):
        predict(by_words, [tmp_path / "nothing"])
