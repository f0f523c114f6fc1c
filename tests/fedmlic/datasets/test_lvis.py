import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from fedmlic.dataset import NOT_EXHAUSTIVE
from fedmlic.datasets.lvis import lvis
from fedmlic.errors import InputError

FIXTURE = runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "lvis.py"))


@pytest.fixture
def root(tmp_path):
    FIXTURE["write"](tmp_path)
    return tmp_path


def made(root, **options):
    return lvis(root=str(root), **{"image_size": 16, "val_fraction": 0, **options})


def change(root, part, edit, release="v1"):
    path = root / "lvis" / f"lvis_{release}_{part}.json"
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))


def problem(root, **options):
    with pytest.raises(InputError) as caught:
        made(root, **options).table()
    return str(caught.value)


def test_labels_equal_a_plain_loop_over_the_files(root):
    expected = {}
    for part in ("train", "val"):
        document = json.loads((root / "lvis" / f"lvis_v1_{part}.json").read_text())
        for image in document["images"]:
            states = dict.fromkeys([category["id"] for category in document["categories"]], -1)
            states |= dict.fromkeys(image["neg_category_ids"], 0)
            states |= {a["category_id"]: 1 for a in document["annotations"] if a["image_id"] == image["id"]}
            expected[f"{image['id']:012}"] = list(states.values())

    table = made(root).table()

    assert expected == dict(zip(table.image_ids, table.labels.tolist(), strict=True))
    assert sorted(set(table.labels.ravel().tolist())) == [-1, 0, 1]
    assert table.report["nothing_known"] == 1


def test_a_label_with_unmarked_instances_stays_present(root):
    data = made(root)
    table = data.table()

    assert table.labels[0, 1] == 1
    assert (table.flags.row.tolist(), table.flags.label.tolist()) == ([0], [1])
    assert table.flags.bits.tolist() == [NOT_EXHAUSTIVE]


def test_unmarked_instances_of_a_label_without_annotation(root):
    """The flag alone says nothing of presence; LVIS's own files are not known to hold such a record."""
    change(root, "train", lambda d: d["images"][1]["not_exhaustive_category_ids"].append(3))

    table = made(root).table()

    assert table.labels[1, 2] == -1
    assert (table.flags.row.tolist(), table.flags.label.tolist()) == ([0, 1], [1, 2])
    assert table.report["not_exhaustive_without_annotation"] == 1
    assert not made(root, frequencies=["rare"]).table().report["not_exhaustive_without_annotation"]


def test_loaders_that_ignore_what_is_unknown(root):
    table = made(root, unlisted="absent").table()

    assert (table.labels == np.maximum(made(root).table().labels, 0)).all()


def test_frequency_groups(root):
    assert made(root).parents == ("common", "frequent", "frequent", "frequent", "rare")
    data = made(root, frequencies=["common", "rare"])

    assert data.label_names == ("aerosol_can", "alcohol")
    assert data.label_ids == ("1", "5")
    assert data.table().labels.tolist()[0] == [1, 0]
    assert data.table().flags is None
    with pytest.raises(InputError, match="to name different labels of it"):
        made(root, frequencies=["rare"], label_names=["airplane"])


def test_validation_images_lie_in_two_folders(root):
    table = made(root).table()

    assert [source.split("/")[-2] for source in table.sources] == ["train2017"] * 3 + ["val2017", "train2017"]
    assert table.splits == ["train"] * 3 + ["test"] * 2


@pytest.mark.parametrize(
    ("json_place", "image_place"), [(".", "."), ("annotations", "images"), ("lvis", "coco/images"), ("lvis", "../coco")]
)
def test_layouts(root, json_place, image_place):
    expected = made(root).identity
    base = root / "base"
    for place in (json_place, image_place):
        (base / place).mkdir(parents=True, exist_ok=True)
    for path in (root / "lvis").iterdir():
        path.rename(base / json_place / path.name)
    if image_place != "../coco":
        for path in (root / "coco").iterdir():
            path.rename(base / image_place / path.name)

    assert expected == made(base).identity


def test_the_older_release_names_files_as_in_2014(root):
    """v0.5 has ``file_name`` instead of ``coco_url``; its validation images are those of val2017."""
    picture = runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "coco2014.py"))["picture"]
    picture(root / "coco" / "val2017" / "000000900005.jpg", (64, 48), 900005)
    for part in ("train", "val"):
        document = json.loads((root / "lvis" / f"lvis_v1_{part}.json").read_text())
        for image in document["images"]:
            del image["coco_url"]
            image["file_name"] = f"COCO_val2014_{image['id']:012}.jpg"
        (root / "lvis" / f"lvis_v0.5_{part}.json").write_text(json.dumps(document))

    table = made(root, release="v0.5").table()

    assert table.labels.tolist() == made(root).table().labels.tolist()
    assert table.sources[4].endswith("val2017/000000900005.jpg")
    assert made(root, release="v0.5").expected == {"labels": 1230}


def test_images_without_annotations(root):
    assert made(root, drop_unlabelled=True).table().image_ids[:2] == ["000000900001", "000000900003"]


def test_expected_counts(root):
    assert made(root, val_fraction=0.1).expected == {"labels": 1203, "train": 90153, "val": 10017, "test": 19809}


def test_a_label_that_is_annotated_and_verified_absent(root):
    change(root, "train", lambda d: d["images"][0]["neg_category_ids"].append(2))

    assert problem(root).splitlines()[1:] == [
        "  lvis_v1_train.json: image 900001: 'air_conditioner' is annotated and in neg_category_ids"
    ]


def test_faults_of_both_files_at_once(root):
    (root / "coco" / "val2017" / "000000900004.jpg").unlink()
    change(root, "train", lambda d: d["images"][1]["neg_category_ids"].append(1204))
    change(root, "train", lambda d: d["images"][2].pop("coco_url"))

    assert problem(root).splitlines()[1:] == [
        "  lvis_v1_train.json: images[2]: image 900003 has neither file_name nor coco_url",
        "  lvis_v1_train.json: image 900002: neg_category_ids names category 1204, which is not described",
        "  lvis_v1_val.json: val2017/000000900004.jpg: no such image",
    ]


def test_every_category_has_a_known_frequency(root):
    change(root, "val", lambda d: d["categories"][1].update(frequency="x"))
    change(root, "train", lambda d: d["categories"][0].pop("frequency"))

    assert problem(root).splitlines()[1:] == [
        "  lvis_v1_train.json: category 1 ('aerosol_can'): frequency None is none of r, c, f",
        "  lvis_v1_val.json: category 2 ('air_conditioner'): frequency 'x' is none of r, c, f",
    ]


def test_what_is_absent_must_be_said(root):
    change(root, "train", lambda d: d["images"][1].pop("neg_category_ids"))
    change(root, "val", lambda d: d.pop("annotations"))

    assert problem(root).splitlines()[1:] == [
        "  lvis_v1_train.json: images[1]: neg_category_ids of image 900002 is missing",
        "  lvis_v1_val.json: the key 'annotations' is missing",
    ]


def test_the_same_images_in_both_files_would_leak(root):
    change(root, "val", lambda d: d.update(json.loads((root / "lvis" / "lvis_v1_train.json").read_text())))

    assert "image 900001 is described 2 times" in problem(root)


def test_partly_known_objects(root):
    """Objects are those of present labels only, and every present label has one."""
    table = made(root).table()
    pairs = set(zip(table.objects.row.tolist(), table.objects.label.tolist(), strict=True))

    assert pairs == {tuple(entry) for entry in np.argwhere(table.labels == 1).tolist()}
