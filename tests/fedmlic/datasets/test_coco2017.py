import runpy
from pathlib import Path

import pytest

from fedmlic.datasets.coco2014 import coco2014
from fedmlic.datasets.coco2017 import coco2017
from fedmlic.sources.coco_counts import POSITIVES

FIXTURES = Path(__file__).parents[2] / "fixtures"


@pytest.fixture
def root(tmp_path):
    runpy.run_path(str(FIXTURES / "coco2017.py"))["write"](tmp_path)
    return tmp_path


def test_labels_are_those_of_2014_under_other_file_names(root, tmp_path_factory):
    other = tmp_path_factory.mktemp("2014")
    runpy.run_path(str(FIXTURES / "coco2014.py"))["write"](other)

    table = coco2017(root=str(root), image_size=16, val_fraction=0).table()
    expected = coco2014(root=str(other), image_size=16, val_fraction=0).table()

    assert expected.labels.tolist() == table.labels.tolist()
    assert expected.image_ids == table.image_ids
    assert table.sources[0].endswith("train2017/000000000009.jpg")
    assert expected.sources[0].endswith("train2014/COCO_train2014_000000000009.jpg")


def test_expected_counts(root):
    expected = dict(coco2017(root=str(root)).expected)

    assert {key: expected.pop(key) for key in ("labels", "train", "val", "test")} == {
        "labels": 80,
        "train": 106458,
        "val": 11829,
        "test": 5000,
    }
    assert len(expected) == 80
    assert expected["positives/person"] == 64115 + 2693
    assert not any(key.startswith("positives") for key in coco2017(root=str(root), crowd="absent").expected)


def test_published_tables_add_up():
    """2.92 and 2.95 labels per annotated image, 4.36 in the long-tailed list."""
    totals = [sum(column) for column in zip(*POSITIVES.values(), strict=True)]

    assert totals[:2] == [342_996, 14_631]
    assert totals[2] / 1909 == pytest.approx(4.36, abs=0.005)
