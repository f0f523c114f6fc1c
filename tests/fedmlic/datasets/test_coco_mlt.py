import pickle
import runpy
from collections import Counter
from pathlib import Path

import pytest

from fedmlic.datasets import coco_mlt as module
from fedmlic.datasets.coco_mlt import coco_mlt
from fedmlic.errors import InputError

FIXTURE = Path(__file__).parents[2] / "fixtures" / "coco_mlt.py"


@pytest.fixture
def root(tmp_path):
    runpy.run_path(str(FIXTURE))["write"](tmp_path)
    return tmp_path


def made(root, **options):
    return coco_mlt(root=str(root), **{"image_size": 16, "val_fraction": 0, **options})


def the_list(root):
    return root / "appendix" / "coco" / "longtail2017" / "img_id.pkl"


def test_only_listed_images_train_and_all_of_val2017_tests(root):
    table = made(root).table()
    of = dict(zip(map(int, table.image_ids), table.splits, strict=True))

    assert of == {9: "train", 25: "train", 34: "train", 100: "train", 42: "test", 73: "test"}


def test_images_that_are_not_listed_need_not_exist(root):
    (root / "coco" / "train2017" / "000000000030.jpg").unlink()

    assert len(made(root).table().image_ids) == 6


def test_labels_as_in_the_released_loader(root):
    """Crowds count; the television of image 100, half a pixel wide, does not."""
    data = made(root)
    labels = dict(zip(map(int, data.table().image_ids), data.table().labels.tolist(), strict=True))

    assert labels[25] == [1, 0, 0, 0]
    assert labels[100] == [1, 0, 0, 0]


def test_groups_are_those_of_the_paper(root):
    assert made(root).parents == ("head", "head", "head", "tail")
    groups = Counter(
        "head" if c.mlt >= module.HEAD else "medium" if c.mlt >= module.MEDIUM else "tail"
        for c in module.POSITIVES.values()
    )
    assert groups == {"head": 22, "medium": 33, "tail": 25}


def test_expected_counts(root):
    expected = made(root).expected

    assert (expected["train"], expected["val"], expected["test"]) == (1909, 0, 5000)
    assert expected["positives/person"] == 1128 + 2693
    assert made(root, val_fraction=0.1).expected["val"] == 191


@pytest.mark.parametrize("place", ["longtail2017", "dbl/coco/longtail2017", "coco/longtail2017", "."])
def test_the_list_is_found_in_several_places(root, place):
    expected = made(root).identity
    (root / place).mkdir(parents=True, exist_ok=True)
    the_list(root).rename(root / place / "img_id.pkl")

    assert expected == made(root).identity


def test_the_list_may_be_named(root, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("list") / "mine.txt"
    elsewhere.write_text("9\n")

    table = made(root, image_ids=str(elsewhere)).table()

    assert table.splits.count("train") == 1
    with pytest.raises(InputError, match=r"without none\.txt"):
        made(root, image_ids="none.txt")


def test_the_list_is_part_of_the_identity(root):
    first = made(root).identity
    the_list(root).write_text("9\n")

    assert made(root).identity != first


def test_wrong_lists(root):
    the_list(root).write_text("9\n4711\n30\n9.5\n")
    with pytest.raises(InputError, match=r"img_id.pkl .* got line 4: '9\.5' is no whole number") as caught:
        made(root)
    assert "instances_train2017.json: image 4711 of the list is not described" in caught.value.problems
    the_list(root).write_text("9\n4711\n30\n")
    with pytest.raises(InputError, match=r"instances_train2017\.json: image 4711 of the list is not described"):
        made(root).table()
    the_list(root).write_bytes(pickle.dumps([9]))
    with pytest.raises(InputError, match="Pickles are not opened"):
        made(root)
