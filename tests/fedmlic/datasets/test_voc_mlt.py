import runpy
import shutil
from collections import Counter
from pathlib import Path

import pytest

from fedmlic.datasets.voc_mlt import GROUPS, voc_mlt
from fedmlic.errors import InputError

FIXTURE = Path(__file__).parents[2] / "fixtures" / "voc_mlt.py"


@pytest.fixture
def root(tmp_path):
    runpy.run_path(str(FIXTURE))["write"](tmp_path)
    return tmp_path


def made(root, **options):
    return voc_mlt(root=str(root), **{"image_size": 16, "val_fraction": 0, **options})


def the_list(root):
    return root / "appendix" / "VOCdevkit" / "longtail2012" / "img_id.txt"


def test_listed_images_train_and_those_of_2007_test(root):
    table = made(root).table()

    assert dict(zip(table.image_ids, table.splits, strict=True)) == {
        **dict.fromkeys(("2008_000900", "2009_000010", "2010_000001", "2011_000002"), "train"),
        **dict.fromkeys(("000001", "000002"), "test"),
    }


def test_difficult_objects_count_as_in_the_released_loader(root):
    data = made(root)
    row = data.table().labels[data.table().image_ids.index("2008_000900")]

    assert {data.label_names[c] for c, s in enumerate(row) if s == 1} == {"person", "chair", "dog"}


def test_groups_are_those_of_the_paper(root):
    assert Counter(GROUPS.values()) == {"head": 6, "medium": 6, "tail": 8}
    assert made(root, label_names=["person", "cow", "dog"]).parents == ("head", "tail", "medium")


def test_expected_counts(root):
    assert made(root).expected == {"train": 1142, "val": 0, "test": 4952}


def test_image_sets_of_2012_are_not_needed(root):
    expected = made(root).identity
    shutil.rmtree(root / "VOCdevkit" / "VOC2012" / "ImageSets")

    assert expected == made(root).identity


def test_the_list_may_be_named(root, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("list") / "mine.txt"
    the_list(root).rename(elsewhere)

    assert made(root, image_ids=str(elsewhere)).table().splits.count("train") == 4
    with pytest.raises(InputError, match=r"without appendix/VOCdevkit/longtail2012/img_id\.txt"):
        made(root)


def test_wrong_lists(root):
    the_list(root).write_text("2008_000900\n2008_999999\n2007_000027\n")

    with pytest.raises(InputError, match="got 5 problems") as caught:
        made(root).table()

    assert "VOC2012/Annotations/2008_999999.xml: no such file" in str(caught.value)
    assert "2007_000027 is an image of 2007" in str(caught.value)
