import json
import os
import random
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedmlic.corpus import open_corpus
from fedmlic.dataset import CROWD_ONLY
from fedmlic.datasets.coco2014 import coco2014
from fedmlic.errors import InputError
from fedmlic.spec import build

FIXTURE = runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "coco2014.py"))
NAMES = ("person", "bottle", "tv", "toothbrush")


@pytest.fixture
def root(tmp_path):
    """The fixture's tree."""
    FIXTURE["write_tree"](tmp_path)
    return tmp_path


def change(root, part, edit):
    """Rewrite one annotation file."""
    path = root / "annotations" / f"instances_{part}2014.json"
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))


def made(root, **options):
    return coco2014(root=str(root), **{"image_size": 16, "val_fraction": 0, **options})


def labels(data):
    """Labels of every image, by its id as a number."""
    table = data.table()
    return dict(zip(map(int, table.image_ids), table.labels.tolist(), strict=True))


def flags(data):
    """Flags as (image id, label name) with bits."""
    table = data.table()
    if table.flags is None:
        return {}
    ids = [int(table.image_ids[row]) for row in table.flags.row]
    names = [data.label_names[label] for label in table.flags.label]
    return dict(zip(zip(ids, names, strict=True), table.flags.bits.tolist(), strict=True))


def problem(root, **options):
    """What is said about a wrong tree when it is described or its table is read."""
    with pytest.raises(InputError) as caught:
        made(root, **options).table()
    return str(caught.value)


# Labels


def test_labels_equal_a_plain_loop_over_the_file(root):
    data = made(root)
    expected = {}
    for part in ("train", "val"):
        document = json.loads((root / "annotations" / f"instances_{part}2014.json").read_text())
        names = {category["id"]: category["name"] for category in document["categories"]}
        for image in document["images"]:
            found = {names[a["category_id"]] for a in document["annotations"] if a["image_id"] == image["id"]}
            expected[image["id"]] = [int(name in found) for name in NAMES]

    assert data.label_names == NAMES
    assert data.label_ids == ("1", "44", "72", "90")
    assert data.parents == ("person", "kitchen", "electronic", "indoor")
    assert expected == labels(data)


def test_the_three_cases_of_every_loader(root):
    """A box given twice, a crowd region alone, nothing at all."""
    data = made(root)

    assert labels(data)[9] == [0, 0, 0, 1]
    assert labels(data)[25] == [1, 0, 0, 0]
    assert labels(data)[30] == [0, 0, 0, 0]
    assert data.table().report["equal_annotations_dropped"] == 1


@pytest.mark.parametrize(("crowd", "state"), [("present", 1), ("ignore", -1), ("absent", 0)])
def test_crowds(root, crowd, state):
    data = made(root, crowd=crowd)
    table = data.table()
    row = table.image_ids.index("000000000025")

    assert table.labels[row].tolist() == [state, 0, 0, 0]
    assert flags(data) == {(25, "person"): CROWD_ONLY}
    assert (row in table.objects.row.tolist()) == (state == 1)
    # A person beside the crowd is present whatever the crowd is.
    assert labels(data)[100] == [1, 0, 1, 0]


def test_annotations_without_an_area(root):
    """The television of image 100 is half a pixel wide."""
    assert labels(made(root))[100] == [1, 0, 1, 0]
    assert labels(made(root, degenerate="drop"))[100] == [1, 0, 0, 0]
    change(root, "train", lambda d: d["annotations"][-1].update(ignore=1))
    assert labels(made(root, degenerate="drop"))[34] == [0, 0, 0, 0]
    change(root, "val", lambda d: d["annotations"][0].update(area=0))
    assert labels(made(root))[42] == [0, 0, 1, 0]
    assert labels(made(root, degenerate="drop"))[42] == [0, 0, 0, 0]


def test_images_without_annotations_may_be_left_out(root):
    table = made(root, drop_unlabelled=True).table()

    assert sorted(map(int, table.image_ids)) == [9, 25, 34, 42, 73, 100, 5000000000]
    assert table.report["unlabelled_dropped"] == 1
    assert made(root).table().report["unlabelled_dropped"] == 0


def test_a_crowd_is_an_annotation_for_that_rule(root):
    """As in the loaders that made the rule, which look for any annotation."""
    assert 25 in labels(made(root, drop_unlabelled=True, crowd="absent"))


def test_labels_are_chosen_by_any_name(root):
    data = made(root, label_names=["tvmonitor", "person"])

    assert data.label_names == ("tvmonitor", "person")
    assert data.label_ids == ("72", "1")
    assert data.parents == ("electronic", "person")
    assert labels(data)[100] == [1, 1]
    assert labels(data)[9] == [0, 0]
    assert 9 not in labels(made(root, label_names=["tv"], drop_unlabelled=True))
    with pytest.raises(InputError, match="'perso': Did you mean 'person'"):
        made(root, label_names=["perso"])


# Rows and splits


def test_row_orders(root):
    numbers = [9, 25, 30, 34, 100, 5000000000]

    by_number = made(root).table()
    as_text = made(root, row_order="cole").table()

    assert by_number.image_ids[:6] == [f"{number:012}" for number in numbers]
    assert as_text.image_ids == [*sorted(map(str, numbers)), "42", "73"]
    assert as_text.image_ids[:2] == ["100", "25"]


@pytest.mark.parametrize("row_order", ["id", "cole"])
def test_a_corpus_keeps_the_row_order(root, tmp_path_factory, row_order):
    data = made(root, row_order=row_order)

    assert open_corpus(data, home=tmp_path_factory.mktemp("home")).image_ids == data.table().image_ids


def test_longer_ids_still_sort_as_numbers(root):
    def longer(document):
        document["images"][0]["id"] = 10**15
        document["annotations"] = []

    change(root, "train", longer)

    ids = made(root).table().image_ids
    assert ids[:6] == sorted(ids[:6])
    assert int(ids[5]) == 10**15


def test_splits(root):
    table = made(root, val_fraction=0.34).table()
    splits = dict(zip(map(int, table.image_ids), table.splits, strict=True))

    assert [splits[number] for number in (42, 73)] == ["test", "test"]
    assert table.splits.count("val") == 2
    assert table.splits.count("train") == 4
    assert (table.owners == -1).all()
    again = made(root, val_fraction=0.34, row_order="cole", resize="pad").table()
    assert splits == dict(zip(map(int, again.image_ids), again.splits, strict=True))
    others = [made(root, val_fraction=0.34, seed=seed).table().splits for seed in range(1, 8)]
    assert any(other != table.splits for other in others)


def test_expected_counts(root):
    assert made(root, val_fraction=0.1).expected == {"labels": 80, "train": 74505, "val": 8278, "test": 40504}
    assert made(root, drop_unlabelled=True).expected == {"labels": 80, "train": 82081, "val": 0, "test": 40137}
    assert "labels" not in made(root, label_names=["tv"]).expected


# Objects and pixels


def test_boxes_in_stored_pixels(root):
    """Image 9 is 64 x 48 with a box from (5, 5), 20 wide and 25 high, half of it filled."""
    data = made(root)
    objects = data.table().objects
    place = int(np.flatnonzero(objects.row == 0)[0])

    assert objects.box[place].tolist() == pytest.approx([1.25, 5 / 3, 5, 25 / 3])
    assert objects.area[place] == pytest.approx(20 * 25 / 2 / 4 / 3)
    assert (objects.row == 0).sum() == 1  # the same box twice is one object


def test_boxes_follow_a_bright_square(root):
    """What a box marks in the source is what it marks in the stored image."""
    path = root / "train2014" / "COCO_train2014_000000000009.jpg"
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[16:32, 32:48] = 255
    Image.fromarray(pixels).save(path, quality=95)
    change(root, "train", lambda d: [a.update(bbox=[32, 16, 16, 16], area=256) for a in d["annotations"][:2]])

    for resize in ("squash", "crop", "pad"):
        data = made(root, resize=resize, image_size=48)
        box = data.table().objects.box[0].astype(int)
        stored = data.image(0)[..., 0]
        inside = stored[box[1] + 1 : box[1] + box[3] - 1, box[0] + 1 : box[0] + box[2] - 1]

        assert inside.size
        assert inside.min() > 200
        assert (stored > 128).sum() == pytest.approx(box[2] * box[3], rel=0.1)


def test_images_saved_smaller_keep_their_boxes(root):
    before = made(root).table().objects.box
    for path in (root / "train2014").iterdir():
        with Image.open(path) as picture:
            picture.resize((picture.width // 2, picture.height // 2)).save(path)

    table = made(root).table()

    assert (before == table.objects.box).all()
    assert table.report["resized_files"] == 6


def test_a_wrong_size_in_the_file_does_not_move_boxes(root):
    before = made(root).table().objects.box
    change(root, "train", lambda d: d["images"][0].update(width=48, height=64))

    table = made(root).table()

    assert (before == table.objects.box).all()
    assert table.report["other_proportions_first"] == ["000000000009"]


def test_a_camera_held_sideways_is_not_turned(root):
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:, :32] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(root / "train2014" / "COCO_train2014_000000000009.jpg", exif=exif)

    data = made(root)

    assert data.image(0)[:, :6].min() > 200
    assert data.image(0)[:, 10:].max() < 50
    assert data.table().report["exif_turned"] == 1


def test_a_camera_held_sideways_may_be_turned_with_its_boxes(root):
    """Orientation 6 is turned clockwise: the left half comes to lie on top."""
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:, :32] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(root / "train2014" / "COCO_train2014_000000000009.jpg", exif=exif)
    change(root, "train", lambda d: [a.update(bbox=[0, 0, 32, 48]) for a in d["annotations"][:2]])

    data = made(root, upright=True)

    assert data.image(0)[:6].min() > 200
    assert data.image(0)[10:].max() < 50
    assert data.table().objects.box[0].tolist() == [0, 0, 16, 8]
    assert made(root).table().objects.box[0].tolist() == [0, 0, 8, 16]


def test_grey_and_cmyk_files_are_converted(root):
    folder = root / "train2014"
    Image.new("L", (64, 48), 90).save(folder / "COCO_train2014_000000000009.jpg")
    Image.new("CMYK", (48, 64), (0, 0, 0, 0)).save(folder / "COCO_train2014_000000000025.jpg")

    data = made(root)

    assert (data.image(0) == 90).all()
    assert data.image(1).min() > 250
    assert data.table().report["modes"] == {"CMYK": 1, "L": 1, "RGB": 6}


def test_bad_images_are_all_named_when_the_corpus_is_built(root, tmp_path_factory):
    names = [f"COCO_train2014_{number:012}.jpg" for number in (9, 25, 30)]
    os.truncate(root / "train2014" / names[0], 500)
    (root / "train2014" / names[1]).write_bytes(b"")
    (root / "train2014" / names[2]).write_text("not an image")

    with pytest.raises(InputError, match="got 3 problems") as caught:
        open_corpus(made(root), home=tmp_path_factory.mktemp("home"))

    assert all(name in str(caught.value) for name in names)


# Sameness


def test_shuffled_arrays_give_the_same_corpus(root, tmp_path_factory):
    tables = []
    for seed in (None, 0, 1):
        if seed is not None:
            for part in ("train", "val"):
                change(
                    root, part, lambda d, seed=seed: [random.Random(seed).shuffle(d[key]) for key in d if key != "info"]
                )
        data = made(root, val_fraction=0.34)
        corpus = open_corpus(data, home=tmp_path_factory.mktemp("home"))
        keep = [f for f in sorted(corpus.path.iterdir()) if f.name != "manifest.json"]
        tables.append({file.name: file.read_bytes() for file in keep})

    assert tables[0] == tables[1] == tables[2]


def test_identity_follows_content_and_options_but_not_the_place(root, tmp_path_factory):
    first = made(root)
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "copy"
    shutil.copytree(root, elsewhere)

    assert made(elsewhere).identity == first.identity
    assert json.loads(json.dumps(dict(first.identity))) == first.identity
    changes = [
        {"crowd": "ignore"},
        {"degenerate": "drop"},
        {"drop_unlabelled": True},
        {"row_order": "cole"},
        {"resize": "pad"},
        {"channels": 1},
        {"upright": True},
        {"image_size": 17},
        {"seed": 1},
        {"val_fraction": 0.2},
        {"label_names": ["tv"]},
    ]
    identities = [json.dumps(dict(made(elsewhere, **options).identity), sort_keys=True) for options in [{}, *changes]]
    assert len(set(identities)) == len(changes) + 1
    os.utime(elsewhere / "val2014" / "COCO_val2014_000000000042.jpg", ns=(1, 1))
    assert made(elsewhere).identity != first.identity
    elsewhere_again = tmp_path_factory.mktemp("again") / "copy"
    shutil.copytree(root, elsewhere_again)
    change(elsewhere_again, "val", lambda d: d["annotations"].pop())
    assert made(elsewhere_again).identity != first.identity


def test_a_byte_order_mark_and_indents_change_no_label(root):
    expected = labels(made(root))
    for part in ("train", "val"):
        path = root / "annotations" / f"instances_{part}2014.json"
        text = json.dumps(json.loads(path.read_text()), indent=1).replace("\n", "\r\n")
        path.write_bytes(b"\xef\xbb\xbf" + text.encode())

    assert expected == labels(made(root))


# Where things lie


def test_layouts(root, tmp_path_factory):
    expected = labels(made(root))
    other = tmp_path_factory.mktemp("other")
    shutil.copytree(root, other / "coco")
    (other / "coco" / "images").mkdir()
    for name in ("train2014", "val2014"):
        (other / "coco" / name).rename(other / "coco" / "images" / name)

    assert expected == labels(made(other))
    assert expected == labels(made(other / "coco"))


def test_a_file_name_may_carry_its_folder(root):
    expected = labels(made(root))
    change(root, "train", lambda d: [i.update(file_name=f"train2014\\{i['file_name']}") for i in d["images"]])

    assert expected == labels(made(root))


def test_missing_parts_are_all_named(root):
    shutil.rmtree(root / "val2014")
    (root / "annotations" / "instances_val2014.json").unlink()

    message = problem(root)

    assert "without annotations/instances_val2014.json, val2014; it holds annotations, train2014" in message


# Faults


def test_all_faults_of_both_parts_at_once(root):
    (root / "train2014" / "COCO_train2014_000000000030.jpg").unlink()
    (root / "val2014" / "COCO_val2014_000000000073.jpg").unlink()
    change(root, "train", lambda d: d["annotations"].append(FIXTURE["annotation"](1, 77, 1, [0, 0, 1, 1])))
    change(root, "train", lambda d: d["annotations"].append(FIXTURE["annotation"](2, 9, 12, [0, 0, 1, 1])))
    change(root, "val", lambda d: d["images"].append(dict(d["images"][0])))

    lines = problem(root).splitlines()

    assert lines[0].startswith("Expected the annotations of data set coco2014 to describe existing images correctly")
    assert lines[1:] == [
        "  instances_train2014.json: annotations[8]: image 77 is not described",
        "  instances_train2014.json: annotations[9]: category 12 is not described",
        "  instances_train2014.json: train2014/COCO_train2014_000000000030.jpg: no such image",
        "  instances_val2014.json: image 42 appears 2 times",
        "  instances_val2014.json: val2014/COCO_val2014_000000000073.jpg: no such image",
    ]


def test_faults_of_all_stages_at_once(root):
    """Missing parts, broken JSON, other categories and wrong options do not hide each other."""
    file = root / "annotations" / "instances_train2014.json"
    file.write_text(file.read_text()[:-20])
    change(root, "val", lambda d: d["categories"][0].update(name=" "))
    (root / "val2014" / "COCO_val2014_000000000073.jpg").unlink()
    (root / "train2014").rename(root / "elsewhere")

    with pytest.raises(InputError) as caught:
        coco2014(root=str(root))

    beginnings = [
        "Expected root of data set coco2014 to hold",
        f"Expected {file} to be JSON, got: ",
        "instances_val2014.json: categories[0]: name ' ' is blank",
        "instances_val2014.json: val2014/COCO_val2014_000000000073.jpg: no such image",
    ]
    assert len(caught.value.problems) == len(beginnings)
    for line, beginning in zip(caught.value.problems, beginnings, strict=True):
        assert line.startswith(beginning)


def test_labels_that_a_file_does_not_say_are_not_absent(root):
    change(root, "val", lambda d: d.pop("annotations"))

    assert problem(root).splitlines()[1:] == ["  instances_val2014.json: the key 'annotations' is missing"]


def test_many_faults_are_counted(root):
    change(
        root,
        "train",
        lambda d: d["annotations"].extend(FIXTURE["annotation"](n, 77, 1, [0, 0, 1, 1]) for n in range(40)),
    )

    assert "got 40 problems" in problem(root)
    assert problem(root).endswith("... and 30 more")


def test_an_image_of_both_parts_would_leak(root):
    change(root, "val", lambda d: d["images"][0].update(id=9))
    change(root, "val", lambda d: d["annotations"].pop(0))

    assert problem(root).splitlines()[1:] == [
        "  instances_train2014.json and instances_val2014.json: image 9 is described 2 times"
    ]


def test_a_file_of_two_images_would_leak(root):
    change(root, "train", lambda d: d["images"][1].update(file_name=d["images"][0]["file_name"]))

    assert problem(root).splitlines()[1:] == [
        "  instances_train2014.json: file train2014/COCO_train2014_000000000009.jpg is described 2 times"
    ]


def test_a_path_cannot_leave_the_folders(root):
    change(root, "train", lambda d: d["images"][0].update(file_name="../../../etc/passwd"))

    assert "train2014/passwd: no such image" in problem(root)


def test_different_categories_of_the_two_files(root):
    change(root, "val", lambda d: d["categories"][0].update(name="human"))

    assert "got 2 others, first [(1, 'human'), (1, 'person')]. Take both files from one release" in problem(root)


def test_a_broken_file_and_a_missing_image_at_once(root):
    path = root / "annotations" / "instances_val2014.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({"categories": document.pop("categories"), **document})[:-40])
    (root / "train2014" / "COCO_train2014_000000000030.jpg").unlink()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedmlic.formats.coco_json.STREAMED_BYTES", 0)
        message = problem(root)

    assert "train2014/COCO_train2014_000000000030.jpg: no such image" in message
    assert f"Expected {path} to be JSON, got: " in message


def test_files_that_nobody_describes_are_counted(root):
    (root / "train2014" / "other.jpg").write_bytes(b"x")

    assert made(root).table().report["unused_files"] == 1


def test_no_training_image(root):
    change(root, "train", lambda d: d.update(annotations=[]))

    assert "Expected data set coco2014 to hold a training image" in problem(root, drop_unlabelled=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expected root of dataset coco2014"),
        ("root='.', crowd='positive'", "'present', 'ignore' or 'absent'"),
        ("root='.', row_order='text'", "'id' or 'cole'"),
        ("root='.', val_fraction=0.6", "less than or equal to 0.5"),
        ("root='.', drop_unlabeled=True", "Did you mean 'drop_unlabelled'"),
        ("root='/none'", "got '/none', no such folder"),
    ],
)
def test_bad_parameters_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        build("dataset", f"coco2014({text})")


def test_what_cannot_be_but_hurts_no_label_is_a_warning(root):
    change(root, "val", lambda d: d["annotations"][0].update(bbox=[900, 1, 3, 4]))
    change(root, "val", lambda d: d["images"][1].update(width=480))

    assert made(root).table().report["warnings"] == [
        "images of other proportions than their annotation says: 1, first 000000000073",
        "boxes wholly outside of their images: 1, first in 000000000042",
    ]
