import json
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedmlic.corpus import open_corpus
from fedmlic.datasets.visual_genome import visual_genome
from fedmlic.errors import InputError
from fedmlic.formats.visual_genome import normalise, read_aliases
from fedmlic.images import decode
from fedmlic.labels import PRESENT, UNKNOWN
from fedmlic.problems import Problems

FIXTURE = runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "visual_genome.py"))
INDEX, TRAIN, TEST, SIZES, OBJECTS = (FIXTURE[name] for name in ("INDEX", "TRAIN", "TEST", "SIZES", "OBJECTS"))
CANONICAL = {"trees": "tree", "guy": "man", "men": "man"}


@pytest.fixture
def root(tmp_path):
    FIXTURE["write"](tmp_path)
    return tmp_path


def made(root, **options):
    return visual_genome(root=str(root), image_size=8, **{"val_fraction": 0, **options})


def topk(root, **options):
    return made(root, **{"labels": "topk", "k": 5, **options})


def problem(root, **options):
    with pytest.raises(InputError) as caught:
        made(root, **options).table()
    return str(caught.value)


def present(data):
    """Image number -> columns."""
    table = data.table()
    return {int(i[:-4]): np.flatnonzero(table.labels[row] == PRESENT).tolist() for row, i in enumerate(table.image_ids)}


def names_by_loop():
    """Image number -> canonical names, by a plain loop."""
    found = {}
    for image_id, objects in OBJECTS.items():
        names = [part for one in objects for text in one[0] for part in text.split(",")]
        clean = [" ".join(name.lower().split()) for name in names]
        found[image_id] = {CANONICAL.get(name, name) for name in clean}
    return found


# The released lists


def test_vg500_is_what_the_lists_say(root):
    data = made(root)
    table = data.table()

    assert len(data.label_names) == 500
    assert data.label_names[43] == "vg500_043"
    assert present(data) == {image_id: INDEX[image_id] for image_id in (*TRAIN, *TEST)}
    assert {int(i[:-4]): s for i, s in zip(table.image_ids, table.splits, strict=True)} == {
        **dict.fromkeys(TRAIN, "train"),
        **dict.fromkeys(TEST, "test"),
    }
    assert table.objects is None
    assert table.report["unlabelled"] == 1


def test_vg200_is_vg500_below_200_or_its_own_file(root):
    expected = {image_id: [i for i in INDEX[image_id] if i < 200] for image_id in (*TRAIN, *TEST)}

    assert present(made(root, labels="vg200")) == expected
    own = {f"{image_id}.jpg": [1, 2] for image_id in INDEX}
    (root / "ssgrl" / "vg_category_200_labels_index.json").write_text(json.dumps(own))
    assert set(map(tuple, present(made(root, labels="vg200")).values())) == {(1, 2)}
    assert len(made(root).label_names) == 500


def test_names_can_be_given(root):
    (root / "names.txt").write_text("".join(f"name {place}\n" for place in range(500)))
    assert made(root, label_names="names.txt").label_names[7] == "name 7"

    (root / "names.txt").write_text("one\n")
    assert "got 1" in problem(root, label_names="names.txt")


def test_released_files_may_lie_at_the_top(root):
    for path in (root / "ssgrl").iterdir():
        shutil.move(path, root)

    assert len(present(made(root))) == 5


def test_wrong_released_files(root):
    file = root / "ssgrl" / "vg_category_500_labels_index.json"
    index = {f"{i}.jpg": labels for i, labels in INDEX.items()}
    index["7.jpg"] = [500]
    del index["12.jpg"]
    file.write_text(json.dumps(index))

    text = problem(root)

    assert "7.jpg: [500]" in text
    assert "12.jpg: nothing" in text
    (root / "ssgrl" / "test_list_500.txt").write_text("7.jpg\n")
    assert "7.jpg appears 2 times" in problem(root)
    file.write_text("no")
    (root / "ssgrl" / "test_list_500.txt").write_text("12.jpg\n")
    assert "to be a JSON file" in problem(root)


# The commonest names


def test_the_commonest_names_are_counted_by_image(root):
    data = topk(root)
    names = names_by_loop()
    counts = {name: sum(name in own for own in names.values()) for name in set().union(*names.values())}
    order = sorted(counts, key=lambda name: (-counts[name], name))

    assert list(data.label_names) == order[:5]
    assert present(data) == {
        image_id: sorted(order.index(name) for name in own if name in order[:5]) for image_id, own in names.items()
    }
    assert data.table().report["unlabelled"] == 1


def test_without_aliases_plurals_are_other_names(root):
    assert "trees" in topk(root, k=9, aliases=False).label_names
    assert "trees" not in topk(root, k=7).label_names
    (root / "object_alias.txt").unlink()
    assert "aliases=False" in problem(root, labels="topk", k=2)


def test_rare_names_and_too_many(root):
    assert len(topk(root, k=4, min_images=2).label_names) == 4
    assert "Expected k to be at most 4" in problem(root, labels="topk", k=5, min_images=2)


def test_boxes_are_in_pixels_of_the_stored_image(root):
    data = topk(root, k=7)
    table = data.table()
    found = {}
    for row, label, box in zip(table.objects.row, table.objects.label, table.objects.box, strict=True):
        found.setdefault((int(table.image_ids[row][:-4]), data.label_names[label]), []).append(box.tolist())

    for image_id, objects in OBJECTS.items():
        width, height = SIZES[image_id]
        for texts, x, y, w, h in objects:
            name = " ".join(texts[0].split(",")[0].lower().split())
            left, top = max(x, 0) * 8 / width, max(y, 0) * 8 / height
            right, bottom = min(x + w, width) * 8 / width, min(y + h, height) * 8 / height
            boxes = found[image_id, CANONICAL.get(name, name)]
            assert any(np.allclose(box, [left, top, right - left, bottom - top], atol=1e-5) for box in boxes)
    assert len(found[7, "tree"]) == 2
    assert (table.objects.area <= 64).all()


def test_what_nobody_named_is_absent_or_unknown(root):
    known, unknown = topk(root).table().labels, topk(root, absent="unknown").table().labels

    assert (unknown == np.where(known == PRESENT, PRESENT, UNKNOWN)).all()
    assert (known != UNKNOWN).all()


def test_images_of_coco_can_be_left_out(root):
    outside = {i for i in SIZES if i not in FIXTURE["IN_COCO"]}

    assert set(present(topk(root, coco="drop"))) == outside
    assert topk(root, coco="drop").table().report["coco_dropped"] == 2
    assert set(present(made(root, coco="drop"))) == outside & {*TRAIN, *TEST}
    assert made(root, coco="drop").table().report["coco_dropped"] == 2


def test_random_and_released_splits(root):
    assert topk(root, test_fraction=0.34).table().splits.count("test") == 2
    table = topk(root, split="lists").table()

    assert set(table.image_ids) == {f"{i}.jpg" for i in (*TRAIN, *TEST)}
    assert table.report["not_in_lists"] == 1
    assert {i for i, s in zip(table.image_ids, table.splits, strict=True) if s == "test"} == {f"{i}.jpg" for i in TEST}
    assert made(root, split="random", test_fraction=0.2).table().splits.count("test") == 1
    assert made(root, val_fraction=0.34).table().splits.count("val") == 1


def test_shuffled_files_give_the_same_rows(root):
    before = topk(root).table()
    for name in ("objects.json", "image_data.json"):
        (root / name).write_text(json.dumps(json.loads((root / name).read_text())[::-1], indent=1))
    after = topk(root).table()

    assert before.image_ids == after.image_ids
    assert (before.labels == after.labels).all()
    assert before.report["label_names_sha256"] == after.report["label_names_sha256"]


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("objects.json", lambda o: o.append(o[0]), "image_id 1 appears again"),
        ("objects.json", lambda o: o[0].update(image_id="1"), "image_id '1' and objects are"),
        ("objects.json", lambda o: o[0].update(image_id=10**30), "image_id 1000000000000000000000000000000 and"),
        ("objects.json", lambda o: o[0].pop("objects"), "object 0: image_id 1 and objects are None"),
        ("objects.json", lambda o: o.pop(0), "to list the objects of every image, got nothing of image 1."),
        ("objects.json", lambda o: o[0]["objects"][0].update(w=-1), "object 0, object 0 of image 1"),
        ("objects.json", lambda o: o[0]["objects"][0].update(x=10**400), "object 0, object 0 of image 1"),
        ("objects.json", lambda o: o[0]["objects"][0].update(names=["a\0"]), r"a name of ['a\x00'] holds the control"),
        ("image_data.json", lambda o: o[2].pop("coco_id"), "coco_id of image 12 is missing"),
        ("image_data.json", lambda o: o[2].update(coco_id=True), "coco_id of image 12 is True"),
        ("image_data.json", lambda o: o[2].update(width=True), "[12, True, 60]"),
        ("objects.json", lambda o: o[0]["objects"][1].pop("x"), "object 0, object 1 of image 1"),
        ("objects.json", lambda o: o[0]["objects"][0].update(names="man"), "object 0, object 0 of image 1"),
        ("objects.json", lambda o: o[0].update(image_id=5), "objects.json, got nothing of image 5"),
        ("image_data.json", lambda o: o.append(o[0]), "image_id 1 appears again"),
        ("image_data.json", lambda o: o[2].update(width=0), "[12, 0, 60]"),
    ],
)
def test_wrong_objects(root, file, change, said):
    items = json.loads((root / file).read_text())
    change(items)
    (root / file).write_text(json.dumps(items))

    assert said in problem(root, labels="topk", k=2)


@pytest.mark.parametrize("labels", ["topk", "vg500"])
def test_faults_of_all_stages_at_once(root, labels):
    """Lists, indices, names, objects, folders and images do not hide each other."""
    with (root / "ssgrl" / "train_list_500.txt").open("a") as file:
        file.write("a b.jpg\n")
    (root / "ssgrl" / "vg_category_500_labels_index.json").write_text("[" * 100_000)
    (root / "names.txt").write_text("one\none\n")
    text = (root / "objects.json").read_text()
    (root / "objects.json").write_text(text[:-9])
    data = json.loads((root / "image_data.json").read_text())
    data[0]["height"] = None
    (root / "image_data.json").write_text(json.dumps(data))
    (root / "object_alias.txt").write_bytes(b"a,\xff\n")
    (root / "VG_100K_2" / "7.jpg").unlink()
    options = {"split": "lists"} if labels == "topk" else {"label_names": "names.txt", "coco": "drop"}

    with pytest.raises(InputError) as caught:
        visual_genome(root=str(root), labels=labels, **options)

    both = ["'a b.jpg' is not one word", "image_data.json to describe one image, got object 0", "7.jpg: no such file"]
    only = {
        "topk": ["objects.json to be a JSON list", "object_alias.txt to be text in UTF-8"],
        "vg500": ["labels_index.json to be a JSON file", "names.txt to name 500", "got 2 names"],
    }
    lines = list(caught.value.problems)
    for said in both + only[labels]:
        assert any(said in line for line in lines), said


def test_a_file_in_place_of_a_folder(root):
    for name in ("VG_100K", "VG_100K_2"):
        (root / name).rename(root / f"elsewhere {name}")
        (root / name).write_text("a link that an archive of another system kept as text")

    assert "2999001.jpg: no such file" in problem(root, labels="topk", k=2)


def test_names_are_cleaned_and_aliases_resolved(tmp_path):
    (tmp_path / "alias.txt").write_text("man,guy,men\nguy,dude\nMan ,person\n")

    assert normalise(" A  b ,, C") == ["a b", "c"]
    problems = Problems("Expected it")
    assert read_aliases(tmp_path / "alias.txt", problems) == {
        "man": "man",
        "guy": "man",
        "men": "man",
        "dude": "man",
        "person": "man",
    }


# Two folders of images


def test_pixels_from_either_folder_are_not_turned(root):
    path = root / "VG_100K" / "2999002.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(path) as opened:
        picture = opened.copy()
    picture.save(path, exif=exif)
    data = topk(root)

    for row, name in enumerate(data.table().image_ids):
        folder = "VG_100K" if (root / "VG_100K" / name).exists() else "VG_100K_2"
        assert (data.image(row) == decode(root / folder / name, 8, 3, "squash", upright=False)).all()


def test_one_merged_folder(root):
    before = made(root).table()
    for path in (root / "VG_100K_2").iterdir():
        shutil.move(path, root / "VG_100K")
    (root / "VG_100K_2").rmdir()

    assert made(root).table().image_ids == before.image_ids


def test_an_image_in_both_folders(root):
    shutil.copy(root / "VG_100K_2" / "7.jpg", root / "VG_100K" / "7.jpg")
    assert made(root).table().report["in_two_folders"] == 1

    (root / "VG_100K" / "7.jpg").write_bytes(b"x")
    assert "VG_100K_2/7.jpg have 1 and" in problem(root)


def test_missing_empty_and_truncated_images(root, tmp_path_factory):
    image = root / "VG_100K_2" / "1.jpg"
    whole = image.read_bytes()
    image.write_bytes(whole[:-200])
    with pytest.raises(InputError, match=r"1\.jpg"):
        open_corpus(made(root), home=tmp_path_factory.mktemp("home"))
    image.write_bytes(b"")
    (root / "VG_100K_2" / "7.jpg").unlink()

    assert "2 problems" in problem(root)
    table = made(root, missing="drop").table()
    assert table.report["missing_dropped"] == 2
    assert len(table.image_ids) == 3
    shutil.rmtree(root / "VG_100K")
    shutil.rmtree(root / "VG_100K_2")
    assert "the folders of images" in problem(root)
