import json
import runpy
import zipfile
from pathlib import Path

import numpy as np
import pytest

from fedmlic.errors import InputError
from fedmlic.formats import frugalmct, hapi

FIXTURE = runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "hapi.py"))
tree, TRUTH, ANSWERS, confidence_of = (FIXTURE[n] for n in ("tree", "TRUTH", "ANSWERS", "confidence_of"))


@pytest.fixture
def root(tmp_path):
    tree(tmp_path)
    return tmp_path


def frugal(root, benchmark="PASCAL"):
    """Write the folder of one benchmark as FrugalMCT's repository has it."""
    folder = root / f"mlserviceperformance_{benchmark}"
    folder.mkdir(parents=True)
    (folder / "meta.csv").write_text(
        "Index,MLaaS(API),Cost per 10k texts,label number\n0,Google,15,2\n6,EveryPixel,6,2\n100000,GitHub(SSD),0.001,2"
    )
    said = {
        "2011_000494": [
            {"transcription": "dog", "confidence": 0.9, "language": "Latin"},
            {"transcription": "sofa", "confidence": 0.5, "language": "Latin"},
        ],
        "2008_000008": [],
    }
    for number in (0, 100000):
        (folder / f"Model{number}_PredictedLabel.txt").write_text(json.dumps(said))
        true = {example: [{"transcription": "dog"}, {"transcription": "dog"}] for example in said}
        (folder / f"Model{number}_TrueLabel.txt").write_text(json.dumps(true))
    return folder


# HAPI


def test_runs_of_a_benchmark_by_api_and_date(root):
    found = hapi.runs(root, "mir")

    assert [(run.api, run.date) for run in found] == sorted(ANSWERS)
    assert all(run.path.is_file() for run in found)
    assert hapi.runs(root / "tasks", "mir") == found
    assert hapi.runs(root, "coco") == []
    assert hapi.runs(root / "tasks" / "mic", "mir") == []


def test_answers_are_those_of_the_file(root):
    for run in hapi.runs(root, "mir"):
        answers = hapi.predictions(run)
        said = ANSWERS[run.api, run.date]

        assert dict(zip(answers.example_ids, map(list, answers.names), strict=True)) == said
        assert np.allclose(answers.confidence, [confidence_of(names) for names in said.values()])
        assert answers.confidences == []


def test_the_truth(root):
    true = hapi.truth(root, "mir")

    assert dict(zip(true.example_ids, map(list, true.names), strict=True)) == TRUTH
    assert (true.confidence == 1).all()


def test_the_mean_over_nothing_may_be_null(root):
    run = hapi.runs(root, "mir")[0]
    run.path.write_text('[{"confidence": null, "predicted_label": [], "example_id": "im1"}]')

    assert hapi.predictions(run).confidence.tolist() == [0.0]


def test_everything_wrong_in_a_file_is_told_at_once(root):
    run = hapi.runs(root, "mir")[0]
    good = {"confidence": 0.5, "predicted_label": ["dog"], "example_id": "im1"}
    changes = [{}, {"example_id": 7}, {"predicted_label": "dog"}, {"predicted_label": [1]}, {"confidence": 2}, {}]
    entries = [good | change for change in changes]
    run.path.write_text(json.dumps([*entries, "text", good | {"example_id": "im2", "confidence": True}]))

    with pytest.raises(InputError) as caught:
        hapi.predictions(run)

    for line in (
        "entry 1: example_id 7, which is no text",
        "entry 2: predicted_label 'dog', which is no list of names",
        "entry 3: predicted_label [1], which is no list of names",
        "entry 4: confidence 2, which is no number from 0 to 1",
        "entry 5: example_id 'im1' again",
        "entry 6: 'text', which is no object",
        "entry 7: confidence True",
    ):
        assert line in str(caught.value)
    assert "got 7 problems" in str(caught.value)


@pytest.mark.parametrize(("text", "message"), [("[", "to be a JSON file"), ("{}", "to hold a JSON list, got a dict")])
def test_files_that_are_something_else(root, text, message):
    run = hapi.runs(root, "mir")[0]
    run.path.write_text(text)
    with pytest.raises(InputError, match=message):
        hapi.predictions(run)
    run.path.unlink()
    with pytest.raises(InputError, match="No such file"):
        hapi.predictions(run)


def test_where_the_data_lie(root, monkeypatch):
    monkeypatch.setenv("HAPI_DATA_DIR", str(root))
    assert hapi.data_folder("") == root
    monkeypatch.delenv("HAPI_DATA_DIR")
    monkeypatch.setenv("HOME", str(root))
    with pytest.raises(InputError, match="set HAPI_DATA_DIR"):
        hapi.data_folder("")
    (root / ".hapi").mkdir()
    assert hapi.data_folder("") == root / ".hapi"
    assert hapi.data_folder(str(root)) == root


# FrugalMCT


def test_frugalmct_has_vendors_and_a_confidence_per_name(tmp_path):
    folder = frugal(tmp_path / "dataset")

    found = frugalmct.runs(tmp_path, "pascal")

    # EveryPixel's predictions are not there: that model is left to a fuller copy.
    assert [(run.api, run.date, run.form) for run in found] == [
        ("google_mic", "2020", "frugalmct"),
        ("ssd_mic", "2020", "frugalmct"),
    ]
    assert frugalmct.runs(folder, "pascal") == frugalmct.runs(folder.parent, "pascal") == found
    assert frugalmct.runs(tmp_path, "coco") == []
    answers = frugalmct.predictions(found[0])
    assert answers.example_ids == ["2011_000494", "2008_000008"]
    assert answers.names == [("dog", "sofa"), ()]
    assert answers.confidences == [(0.9, 0.5), ()]
    assert np.allclose(answers.confidence, [0.7, 0])
    assert frugalmct.truth(tmp_path, "pascal").names == [("dog", "dog")] * 2


def test_zipped_predictions(tmp_path):
    folder = frugal(tmp_path)
    plain = frugalmct.predictions(frugalmct.runs(tmp_path, "pascal")[0])
    file = folder / "Model0_PredictedLabel.txt"
    with zipfile.ZipFile(file.with_suffix(".zip"), "w") as archive:
        archive.writestr("__MACOSX/._Model0_PredictedLabel.txt", b"")
        archive.writestr(file.name, file.read_bytes())
    file.unlink()

    run = frugalmct.runs(tmp_path, "pascal")[0]

    assert run.path.suffix == ".zip"
    assert frugalmct.predictions(run).names == plain.names
    run.path.write_bytes(b"no archive")
    with pytest.raises(InputError, match="File is not a zip file"):
        frugalmct.predictions(run)
    with zipfile.ZipFile(run.path, "w") as archive:
        archive.writestr("other.txt", b"{}")
    with pytest.raises(InputError, match=r"Model0_PredictedLabel\.txt 0 times in the archive"):
        frugalmct.predictions(run)


def test_wrong_frugalmct_files(tmp_path):
    folder = frugal(tmp_path)
    run = frugalmct.runs(tmp_path, "pascal")[0]
    run.path.write_text('{"a": [{"confidence": 1}], "b": 3, "c": [{"transcription": "dog", "confidence": "high"}]}')

    with pytest.raises(InputError, match=r"got 3 problems") as caught:
        frugalmct.predictions(run)

    assert "c: [{'transcription': 'dog', 'confidence': 'high'}]" in str(caught.value)
    for file in folder.glob("*TrueLabel*"):
        file.unlink()
    with pytest.raises(InputError, match=r"got no Model\*_TrueLabel\.txt"):
        frugalmct.truth(tmp_path, "pascal")
