import runpy
from pathlib import Path

import pytest

from fedmlic.datasets.voc0712 import voc0712
from fedmlic.datasets.voc2007 import voc2007
from fedmlic.datasets.voc2012 import voc2012
from fedmlic.errors import InputError

FIXTURE = Path(__file__).parents[2] / "fixtures" / "voc0712.py"


@pytest.fixture
def root(tmp_path):
    runpy.run_path(str(FIXTURE))["write"](tmp_path)
    return tmp_path


def made(root, **options):
    return voc0712(root=str(root), **{"image_size": 16, "val_fraction": 0, **options})


def rows(table):
    return {i: row for i, row, s in zip(table.image_ids, table.labels.tolist(), table.splits, strict=True) if s}


def test_it_is_the_union_of_both(root):
    table = made(root).table()
    old = voc2007(root=str(root), image_size=16).table()
    new = voc2012(root=str(root), image_size=16).table()

    assert rows(table) == rows(old) | rows(new)
    assert len(table.objects.row) == len(old.objects.row) + len(new.objects.row)
    tests = {i for i, split in zip(table.image_ids, table.splits, strict=True) if split == "test"}
    assert tests == {"000001", "000002"}
    assert table.splits.count("train") == 9


def test_expected_counts(root):
    expected = made(root).expected

    assert (expected["train"], expected["test"]) == (16551, 4952)
    assert expected["positives/aeroplane"] == 238 + 204 + 670


def test_an_image_of_2007_in_a_list_of_2012_would_leak(root):
    path = root / "VOCdevkit" / "VOC2012" / "ImageSets" / "Main" / "trainval.txt"
    path.write_text(path.read_text() + "2007_000027\n")

    with pytest.raises(InputError, match="2007_000027 is an image of 2007, whose test images it may be among"):
        made(root).table()


def test_a_test_image_in_the_training_list_would_leak(root):
    path = root / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main" / "trainval.txt"
    path.write_text(path.read_text() + "000001\n")

    with pytest.raises(InputError, match=r"trainval\.txt and .*test\.txt: 000001 is in both"):
        made(root).table()


def test_the_folder_devkit_may_be_the_root(root):
    assert made(root).identity == made(root / "VOCdevkit").identity
