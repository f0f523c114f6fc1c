"""Folders of images as CSV, JSON and a picture; thresholds of their own; files that cannot be read."""

import csv
import json
import os

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from PIL import Image
from typer.testing import CliRunner

from fedmlic.errors import InputError
from fedmlic.experiment import Experiment
from sim import predict as module
from sim.command import app
from sim.outcome import corpus_of, predictor_of, scores_of, thresholds_of
from sim.predict import Entry, predict, resize_of, start_prediction
from sim.prediction_files import csv_file, json_file
from sim.reports.sheet import write_sheet
from sim.schemas import check_output, json_schemas


@pytest.fixture(scope="module")
def folder(finished, tmp_path_factory):
    """Seven images of the test split as files, in two folders."""
    path = tmp_path_factory.mktemp("images")
    (path / "below").mkdir()
    corpus = corpus_of(finished)
    rows = np.arange(corpus.splits["test"].start, corpus.splits["test"].start + 7)
    for place, image in enumerate(corpus.images.take(rows)):
        Image.fromarray(image).save(path / ("below" if place > 4 else "") / f"{place}.png")
    return path


@pytest.fixture
def broken(folder, tmp_path):
    """The same with a file that is no image among them."""
    for file in folder.rglob("*.png"):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "in" / "3x.jpg").write_bytes(b"no image")
    return tmp_path / "in"


def fedmlic(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_blocks_make_no_difference(finished, folder, monkeypatch):
    whole = predict(finished, [folder])
    seen = []
    monkeypatch.setattr(module, "AT_ONCE", 3)

    found = start_prediction(finished, [folder], progress=lambda *done: seen.append(done))
    entries = [entry.to_json(found.label_names) for entry in found.entries]

    assert seen == [(3, 7), (6, 7), (7, 7)]
    assert [entry["image"] for entry in entries] == [entry["image"] for entry in whole["images"]]
    for ours, theirs in zip(entries, whole["images"], strict=True):
        assert {i["label"]: i["probability"] for i in ours["labels"]} == pytest.approx(
            {i["label"]: i["probability"] for i in theirs["labels"]}, abs=1e-6
        )


def test_csv_and_json_say_the_same_as_the_command_prints(finished, folder, tmp_path):
    written = fedmlic("predict", finished, folder, "--csv", tmp_path / "a.csv", "--out", tmp_path / "a.json", "--json")

    printed = json.loads(written.stdout)
    assert printed["schema"] == "predict/1"
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == printed
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row, entry in zip(rows, printed["images"], strict=True):
        probabilities = {i["label"]: i["probability"] for i in entry["labels"]}
        assert row["image"] == entry["image"]
        assert [name for name in row["present"].split("|") if name] == entry["present"]
        assert {n: np.float32(row[n]) for n in probabilities} == {n: np.float32(p) for n, p in probabilities.items()}
    assert printed["num_bad_files"] == 0
    assert not list(tmp_path.glob(".*"))


def test_a_bar_in_a_name_cannot_be_taken_for_a_separator(tmp_path):
    scores = np.array([0.9, 0.8], np.float32)
    entry = Entry(tmp_path / "a, b.png", scores, np.full(2, 0.5, np.float32), {})
    found = module.Prediction({"run": "é"}, ("a|b", 'c"\\'), 1, iter([entry]), [])
    with csv_file(tmp_path / "a.csv", found) as write, json_file(tmp_path / "a.json", found) as write_json:
        write(entry)
        write_json(entry)

    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        head, row = csv.reader(file)
    assert head == ["image", "present", "a|b", 'c"\\']
    assert row == [str(tmp_path / "a, b.png"), 'a\\|b|c"\\\\', "0.9", "0.8"]
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["images"][0]["present"] == ["a|b", 'c"\\']


def test_without_an_image_the_json_is_still_one_object(tmp_path):
    with json_file(tmp_path / "a.json", module.Prediction({"run": "r"}, ("a",), 0, iter(()), [])):
        pass

    assert json.loads((tmp_path / "a.json").read_text())["images"] == []


def test_a_name_that_is_no_utf_8_is_written_with_an_escape(finished, folder, tmp_path):
    r"""Byte E9, Latin-1's é, which Python reads as U+DCE9 and JSON may write as ``\udce9``."""
    (tmp_path / "in").mkdir()
    name = tmp_path / "in" / os.fsdecode(b"caf\xe9.png")
    name.write_bytes((folder / "0.png").read_bytes())
    to = {option: tmp_path / f"a{end}" for option, end in (("--csv", ".csv"), ("--out", ".json"), ("--sheet", ".png"))}

    result = fedmlic("predict", finished, tmp_path / "in", *(word for pair in to.items() for word in pair))

    assert result.exit_code == 0, result.output
    assert json.loads(to["--out"].read_text(encoding="utf-8"))["images"][0]["image"] == str(name)
    with to["--csv"].open(newline="", encoding="utf-8") as file:
        assert next(csv.DictReader(file))["image"].endswith(r"caf\udce9.png")
    assert to["--sheet"].stat().st_size > 0


# Files that cannot be read


def test_skipped_files_are_named_and_counted(finished, broken, tmp_path):
    result = fedmlic("predict", finished, broken, "--bad-files", "skip", "--out", tmp_path / "a.json")

    assert result.exit_code == 0, result.stderr
    assert "7 images labelled" in result.stdout
    assert "1 of 8 files could not be read" in result.stderr
    assert "3x.jpg" in result.stderr
    written = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert [entry["image"] for entry in written["bad_files"]] == [str(broken / "3x.jpg")]
    assert written["num_bad_files"] == 1
    assert len(written["images"]) == 7


@pytest.mark.parametrize("block", [2, 256])
def test_a_file_that_cannot_be_read_leaves_no_table_behind(finished, broken, tmp_path, monkeypatch, block):
    monkeypatch.setattr(module, "AT_ONCE", block)
    (tmp_path / "a.csv").write_text("of yesterday")
    (broken / "6x.png").write_bytes(b"nor this")

    result = fedmlic("predict", finished, broken, "--csv", tmp_path / "a.csv")

    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Expected 9 readable images, got 2 problems" in result.stderr.replace("\n", " ")
    assert (tmp_path / "a.csv").read_text() == "of yesterday"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "in"]


def test_nothing_but_bad_files_is_an_error_even_so(finished, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")

    with pytest.raises(InputError, match="Expected 1 readable images, got 1 problems"):
        list(start_prediction(finished, [tmp_path], bad_files="skip").entries)


def test_a_file_that_cannot_be_written_is_told(finished, folder, tmp_path):
    result = fedmlic("predict", finished, folder, "--csv", tmp_path / "absent" / "a.csv")

    assert result.exit_code == 2
    assert "to be a file that can be written" in " ".join(result.stderr.split())


# Thresholds


def test_fitted_thresholds_decide_what_is_present(finished, folder, tmp_path):
    values = thresholds_of(finished, predictor_of(finished), corpus_of(finished), precision=0.9)
    (tmp_path / "thresholds.json").write_text(json.dumps(values.to_json()).replace("NaN", "null"))

    fitted = json.loads(fedmlic("predict", finished, folder, "--thresholds", "fit", "--json").stdout)
    read = json.loads(
        fedmlic("predict", finished, folder, "--thresholds", tmp_path / "thresholds.json", "--json").stdout
    )

    names = predictor_of(finished).label_names
    assert fitted == read
    check_output(fitted)
    assert fitted["thresholds"] == dict(zip(names, values.values("best-f1").tolist(), strict=True))
    for entry in fitted["images"]:
        assert entry["present"] == [
            i["label"] for i in entry["labels"] if i["probability"] >= fitted["thresholds"][i["label"]]
        ]
    usual = predict(finished, [folder])
    assert "thresholds" not in usual
    assert [e["labels"] for e in usual["images"]] == [e["labels"] for e in fitted["images"]]


def test_thresholds_rest_on_validation_images_alone(finished):
    found = thresholds_of(finished, predictor_of(finished), corpus_of(finished), min_entries=1)
    val = scores_of(finished, "val")

    assert found.num_images == len(val.rows) == 30
    assert found.num_present.tolist() == (val.labels == 1).sum(axis=0).tolist()
    assert found.about["round"] == val.round


def test_thresholds_of_another_round_are_refused(finished, folder, tmp_path):
    found = thresholds_of(finished, predictor_of(finished), corpus_of(finished)).to_json()
    (tmp_path / "t.json").write_text(json.dumps({**found, "round": 99}).replace("NaN", "null"))

    result = fedmlic("predict", finished, folder, "--thresholds", tmp_path / "t.json")

    assert result.exit_code == 2
    assert "round 99 where the model has" in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("options", "got"),
    [
        (["--rule", "precision"], "Expected --thresholds with --rule, got none"),
        (["--precision", "0.95"], "Expected --thresholds with --precision, got none"),
        (["--precision", "0.95", "--rule", "precision", "--thresholds", "t.json"], "got the thresholds of t.json"),
        (["--precision", "0.95", "--thresholds", "fit"], "got --rule best-f1, which it does not change"),
    ],
)
def test_options_that_would_change_nothing_are_refused(finished, folder, options, got):
    result = fedmlic("predict", finished, folder / "0.png", *options)

    assert result.exit_code == 2
    assert got in " ".join(result.stderr.split())


def test_the_written_file_follows_the_schema_also_with_thresholds(finished, folder, tmp_path):
    for words in ([], ["--thresholds", "fit", "--rule", "precision", "--precision", "0.6"]):
        result = fedmlic("predict", finished, folder, "--out", tmp_path / "a.json", *words)

        assert result.exit_code == 0, result.stderr
        written = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
        assert written["schema"] == "predict/1"
        assert ("thresholds" in written) == bool(words)
        check_output(written)
        Draft202012Validator(json_schemas()["predict.json"]).validate(written)


def test_every_predicted_label_is_printed_however_low_its_threshold(finished, folder, tmp_path, monkeypatch):
    found = thresholds_of(finished, predictor_of(finished), corpus_of(finished)).to_json()
    for row in found["labels"]:
        row["best-f1"]["value"] = 0.0
    (tmp_path / "t.json").write_text(json.dumps(found).replace("NaN", "null"))
    monkeypatch.setattr("sim.commands.predict.MAX_PREDICTED", 2)

    result = fedmlic("predict", finished, folder / "0.png", "--thresholds", tmp_path / "t.json")

    assert len([line for line in result.stdout.splitlines() if line.startswith("  ")]) == len(found["labels"])


# From a file to the stored size


@pytest.mark.parametrize(
    ("dataset", "resize"),
    [
        ("multidigits()", "squash"),
        ("folder(root='images')", "squash"),
        ("folder(root='images', resize='crop')", "crop"),
        ("coco2014(root='coco', resize='pad')", "pad"),
    ],
)
def test_files_become_squares_as_the_data_set_makes_them(dataset, resize):
    assert resize_of(Experiment(dataset=dataset)) == resize


# The sheet


def test_the_sheet_shows_images_and_their_labels(finished, folder, tmp_path):
    result = fedmlic("predict", finished, folder, "--sheet", tmp_path / "a.png")

    assert result.exit_code == 0, result.stderr
    with Image.open(tmp_path / "a.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.shape[1] > 1000
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


def test_the_text_of_the_sheet(folder, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    scores = np.array([0.9, 0.2, 0.7, 0.6, 0.5, 0.4, 0.3], np.float32)
    thresholds = np.array([0.95, 0.1, 0.5, 0.9, 0.9, 0.9, 0.9], np.float32)
    names = ("a$1$", "b", "c", "d", "e", "f", "g")

    write_sheet(tmp_path / "a.png", [Entry(folder / "0.png", scores, thresholds, {})] * 30, names, 40, 3, "model m")

    figure = drawn[0]
    assert figure.texts[0].get_text().startswith("first 24 of 40 images; model m")
    texts = [text.get_text() for text in figure.axes[1].texts]
    # Predicted ones first, however low their probability.
    assert texts[::2] == ["● c", "● b", "○ a$1$", "○ d", "○ e"]
    assert texts[1::2] == ["0.70", "0.20", "0.90", "0.60", "0.50"]
    assert len(figure.axes) == 48


def test_a_sheet_without_images_or_a_place_is_refused(folder, tmp_path):
    entry = Entry(folder / "0.png", np.array([0.9], np.float32), np.array([0.5], np.float32), {})
    with pytest.raises(InputError, match="at least one readable image"):
        write_sheet(tmp_path / "a.png", [], ("a",), 0, 3, "m")
    with pytest.raises(InputError, match="to be a picture that can be written"):
        write_sheet(tmp_path / "absent" / "a.png", [entry], ("a",), 1, 3, "m")
    with pytest.raises(InputError, match="to be a picture that can be written"):
        write_sheet(tmp_path / "a.nonsense", [entry], ("a",), 1, 3, "m")
