import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedmlic.corpus import open_corpus
from fedmlic.datasets.hapi import hapi
from fedmlic.errors import InputError
from fedmlic.federation import build_federation
from fedmlic.labels import PRESENT

FIXTURE = runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "hapi.py"))
tree, images, TRUTH, ANSWERS = (FIXTURE[name] for name in ("tree", "images", "TRUTH", "ANSWERS"))


@pytest.fixture
def root(tmp_path):
    tree(tmp_path)
    images(tmp_path / "pictures")
    return tmp_path


def made(root, **options):
    at = {"root": str(root), "images": str(root / "pictures"), "benchmark": "mir", "image_size": 16}
    return hapi(**{**at, **options})


def test_labels_are_the_true_ones_and_repeats_count_once(root):
    data = made(root)
    table = data.table()

    assert data.label_names == ("dog", "plant_life", "sky")
    assert dict(zip(table.image_ids, table.labels.tolist(), strict=True)) == {
        example: [int(name in names) for name in data.label_names] for example, names in TRUTH.items()
    }
    assert made(root, label_names=["sky", "dog"]).table().labels[0].tolist() == [1, 1]
    with pytest.raises(InputError, match="'cat': "):
        made(root, label_names=["cat"])


@pytest.mark.parametrize("folder", ["mirflickr", "VOC2012/JPEGImages", "JPEGImages"])
def test_images_lie_where_their_benchmark_puts_them(tmp_path, folder):
    tree(tmp_path)
    images(tmp_path / "pictures" / folder)

    assert len(made(tmp_path).table().image_ids) == 6


def test_coco_is_split_by_file_name(tmp_path):
    truth = {f"COCO_{'val' if n % 3 == 0 else 'train'}2014_{n:012d}": ["dog"] for n in range(1, 31)}
    tree(tmp_path, "coco", truth, {("google_mic", "20-10-28"): truth})
    for side in ("train", "val"):
        images(tmp_path / "pictures" / f"{side}2014", [example for example in truth if f"_{side}2014_" in example])

    table = made(tmp_path, benchmark="coco", val_fraction=0.2).table()

    of = dict(zip(table.image_ids, table.splits, strict=True))
    assert all((split == "test") == ("_val2014_" in example) for example, split in of.items())
    assert [table.splits.count(split) for split in ("train", "val", "test")] == [16, 4, 10]


def test_missing_and_doubled_images(root):
    (root / "pictures" / "im2.jpg").unlink()
    (root / "pictures" / "im5.jpg").unlink()
    with pytest.raises(InputError, match=r"got 2 problems"):
        made(root)
    table = made(root, missing="leave_out").table()
    assert table.image_ids == ["im1", "im3", "im4", "im6"]
    assert table.report["left_out"] == {"no_file": 2}

    images(root / "pictures" / "mirflickr", ["im1"])
    with pytest.raises(InputError, match=r"'im1\.jpg' lies in"):
        made(root)


def test_a_federation_whose_clients_have_an_apis_labels(root, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    corpus = open_corpus(made(root, val_fraction=0, test_fraction=0), home=home)
    regime = f"hapi(root={str(root)!r}, benchmark='mir', apis=['microsoft_mic'])"

    federation = build_federation(
        corpus, partition="iid()", regime=regime, num_clients=2, seed=0, holdout_fraction=0, home=home
    )

    seen = {}
    for client in range(2):
        rows, labels = federation.training.of(client)
        seen |= {
            corpus.image_ids[row]: np.flatnonzero(each == PRESENT).tolist()
            for row, each in zip(rows, labels, strict=True)
        }
    said = ANSWERS["microsoft_mic", "20-10-28"]
    names = corpus.label_names
    assert seen == {example: sorted({names.index(name) for name in said[example]}) for example in TRUTH}


def test_frugalmcts_labels(tmp_path):
    folder = tmp_path / "mlserviceperformance_MIR"
    folder.mkdir()
    (folder / "meta.csv").write_text("Index,MLaaS(API)\n0,Google\n")
    for what in ("True", "Predicted"):
        entries = {e: [{"transcription": name, "confidence": 1.0} for name in names] for e, names in TRUTH.items()}
        (folder / f"Model0_{what}Label.txt").write_text(json.dumps(entries))
    images(tmp_path / "pictures")

    assert made(tmp_path).table().labels[0].tolist() == [1, 1, 1]


def test_pixels_and_what_counts_as_unchanged(root):
    data = made(root, image_size=20, resize="crop")
    with Image.open(root / "pictures" / "im1.jpg") as picture:
        assert (data.image(0) == np.asarray(picture)[:, 2:22]).all()
    first = made(root).identity
    assert made(root, seed=1).identity != first
    tree(root, truth={**TRUTH, "im1": ["dog"]})
    assert made(root).identity != first


def test_faults_of_labels_and_images_are_told_at_once(root):
    path = root / "tasks" / "mic" / "mir" / "labels.json"
    entries = json.loads(path.read_text())
    entries[0]["true_label"] = [None]
    entries[1]["example_id"] = ""
    path.write_text(json.dumps(entries))
    (root / "pictures" / "im4.jpg").unlink()

    with pytest.raises(InputError) as caught:
        made(root)

    for line in ("entry 0: true_label [None]", "entry 1: example_id ''", "no image 'im4'"):
        assert any(line in problem for problem in caught.value.problems)
