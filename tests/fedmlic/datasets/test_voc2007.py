import runpy
from pathlib import Path

import pytest

from fedmlic.datasets.voc2007 import voc2007
from fedmlic.errors import InputError

FIXTURE = Path(__file__).parents[2] / "fixtures" / "voc2007.py"


@pytest.fixture
def root(tmp_path):
    runpy.run_path(str(FIXTURE))["write"](tmp_path)
    return tmp_path


def made(root, **options):
    return voc2007(root=str(root), **{"image_size": 16, "val_fraction": 0, **options})


def of_images(data):
    return dict(zip(data.table().image_ids, data.table().splits, strict=True))


def test_faults_of_all_stages_at_once(root):
    """A list with a NUL byte, missing parts, a wrong option and broken annotations do not hide each other."""
    release = root / "VOCdevkit" / "VOC2007"
    main = release / "ImageSets" / "Main"
    with (main / "trainval.txt").open("ab") as file:
        file.write(b"0000\x0012\n../000001\n")
    (main / "test.txt").unlink()
    (release / "Annotations" / "000007.xml").write_bytes(b"<annotation>\0")
    (release / "JPEGImages" / "000009.jpg").unlink()

    with pytest.raises(InputError) as caught:
        made(root, label_names=["dogg"])

    text = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 6
    for said in (
        "without VOC2007/ImageSets/Main/test.txt",
        f"Expected {main / 'trainval.txt'} to hold one image id per line, each once, got line 4: ",
        "got line 5: '../000001' is a path",
        "got 'dogg': Did you mean 'dog'?",
        "VOC2007/Annotations/000007.xml: no XML",
        "VOC2007/JPEGImages/000009.jpg: no such image",
    ):
        assert said in text


@pytest.mark.parametrize("part", ["Annotations", "JPEGImages"])
def test_a_file_in_place_of_a_folder_is_not_a_folder_without_objects(root, part):
    folder = root / "VOCdevkit" / "VOC2007" / part
    folder.rename(root / "elsewhere")
    folder.write_text("a link that an archive of another system kept as text")

    with pytest.raises(InputError, match="got 5 problems"):
        made(root).table()


def test_trainval_trains_and_test_tests(root):
    expected = {"000005": "train", "000007": "train", "000009": "train", "000001": "test", "000002": "test"}

    assert expected == of_images(made(root))


def test_the_official_validation_images(root):
    """The shares of the random split do not matter then."""
    data = made(root, train_part="train", val_fraction=0.5)

    assert of_images(data) == {
        "000005": "train",
        "000007": "train",
        "000009": "val",
        "000001": "test",
        "000002": "test",
    }


def test_labels(root):
    data = made(root)
    rows = dict(zip(data.table().image_ids, data.table().labels, strict=True))
    named = {i: {data.label_names[c]: int(s) for c, s in enumerate(row) if s} for i, row in rows.items()}

    assert named == {
        "000005": {"chair": 1},
        "000007": {"car": 1},
        "000009": {"horse": 1, "person": -1},
        "000001": {"dog": 1, "person": 1},
        "000002": {"train": 1},
    }


def test_expected_counts(root):
    expected = made(root, val_fraction=0.1).expected
    assert (expected["train"], expected["val"], expected["test"]) == (4510, 501, 4952)
    assert expected["positives/person"] == 2008 + 2007
    official = made(root, train_part="train").expected
    assert (official["train"], official["val"]) == (2501, 2510)
    assert "positives/person" not in made(root, difficult="present").expected


def test_the_test_archive_is_needed(root):
    (root / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main" / "test.txt").unlink()

    with pytest.raises(InputError, match=r"without VOC2007/ImageSets/Main/test\.txt"):
        made(root)
