import runpy
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fedmlic.datasets.uc_merced import COUNTS, LAND_USES, uc_merced
from fedmlic.errors import InputError
from fedmlic.images import decode

FIXTURE = runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "uc_merced.py"))
IMAGES = FIXTURE["IMAGES"]


@pytest.fixture
def root(tmp_path):
    FIXTURE["write"](tmp_path)
    return tmp_path


@pytest.fixture
def label_file(root):
    return root / "multilabels" / "LandUse_Multilabeled.txt"


def made(root, **options):
    return uc_merced(root=str(root), image_size=8, **options)


def problem(root, **options):
    with pytest.raises(InputError) as caught:
        made(root, **options).table()
    return "\n".join(caught.value.problems)


def test_it_is_read_as_written(root):
    data = made(root, owners="land_use")
    table = data.table()
    found = {
        name: {data.label_names[column] for column in np.flatnonzero(table.labels[row])}
        for row, name in enumerate(table.image_ids)
    }

    assert found == {name: set(labels) for name, labels in IMAGES.items()}
    assert list(data.label_names) == FIXTURE["LABELS"] == sorted(COUNTS)
    for row, name in enumerate(table.image_ids):
        assert table.owner_names[table.owners[row]] == name[:-2]
        file = root / "UCMerced_LandUse" / "Images" / name[:-2] / f"{name}.tif"
        assert (data.image(row) == decode(file, 8, 3, "squash")).all()
    assert set(made(root).table().owners) == {-1}


def test_a_random_split_takes_its_share_of_every_land_use(root):
    splits = {}
    for seed in (0, 0, 1):
        table = made(root, seed=seed).table()
        counts = Counter((name[:-2], split) for name, split in zip(table.image_ids, table.splits, strict=True))
        assert set(counts.values()) == {1, 3}
        splits.setdefault(seed, []).append(dict(zip(table.image_ids, table.splits, strict=True)))
    assert splits[0][0] == splits[0][1] != splits[1][0]
    assert set(made(root, val_fraction=0, test_fraction=0).table().splits) == {"train"}


def test_the_published_lists(root):
    table = made(root, split="lists").table()
    by_hand = {0: "train", 1: "train", 2: "train", 3: "val", 4: "test"}

    assert table.splits == [by_hand[int(name[-2:])] for name in table.image_ids]


def test_the_root_may_be_the_unpacked_folder_with_the_labels_in_it(root, label_file):
    before = made(root).table()
    shutil.move(label_file, root / "UCMerced_LandUse")
    table = made(root / "UCMerced_LandUse").table()

    assert table.image_ids == before.image_ids
    assert (table.labels == before.labels).all()


def test_columns_may_stand_in_another_order(root, label_file):
    before = made(root).table()
    lines = [line.split("\t") for line in label_file.read_text().splitlines()]
    label_file.write_text("\n".join("\t".join([line[0], *line[:0:-1]]) for line in lines))
    data = made(root)

    assert list(data.label_names) == FIXTURE["LABELS"][::-1]
    assert (data.table().labels[:, ::-1] == before.labels).all()


def test_all_faults_at_once(root, label_file):
    images = root / "UCMerced_LandUse" / "Images"
    (images / "beach" / "beach01.tif").unlink()
    (images / "beach" / "beach02.tif").write_bytes(b"")
    shutil.copy(images / "beach" / "beach03.tif", images / "beach" / "beach77.tif")
    lines = label_file.read_text().splitlines()
    zeros = "\t0" * 17
    lines += [
        f"agricultural00{zeros}",
        f"forrest00{zeros}",
        f"forest0{zeros}",
        f"forest01{zeros[2:]}",
        f"river01{zeros}1",
    ]
    label_file.write_text("\n".join(lines))
    found = problem(root)

    for part in (
        "beach01.tif: no such file",
        "beach02.tif: empty file",
        "beach77.tif: an image without a line in the label file",
        "line 17: agricultural00 for the second time",
        "line 18: forrest00 begins with no land use. Did you mean 'forest'?",
        "line 19: 'forest0' is no name such as agricultural00",
        "line 20: 16 cells",
        "line 21: 17 cells",
    ):
        assert part in found


def test_faults_of_the_header(root, label_file):
    content = label_file.read_bytes()
    label_file.write_bytes(content.replace(b"\tship\t", b"\tships\t", 1))
    found = problem(root)
    assert "line 1: the label 'ships'. Did you mean 'ship'?" in found
    assert "the label 'ship' 0 times" in found
    label_file.write_bytes(content.replace(b"\tship\t", b"\tsea\t", 1))
    assert "the label 'sea' 2 times" in problem(root)
    label_file.write_bytes(content.replace(b"\t", b","))
    assert "the label 'airplane' 0 times" in problem(root)
    label_file.unlink()
    assert "LandUse_Multilabeled.txt" in problem(root)


def test_faults_of_the_lists(root):
    (root / "uc_merced-val.txt").write_text("agricultural00.tif\nriver55.tif\n")
    found = problem(root, split="lists")

    assert "agricultural00, which is in train already" in found
    assert "line 2: 'river55.tif', which has no labels" in found
    assert "beach03 in none of them" in found
    (root / "uc_merced-test.txt").unlink()
    assert "the list of test images" in problem(root, split="lists")
    made(root)


def test_published_numbers():
    assert len(COUNTS) == 17
    assert len(LAND_USES) == 21
    assert sum(COUNTS.values()) == 7003  # 3.33 labels an image
