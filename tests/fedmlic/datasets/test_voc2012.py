import json
import os
import random
import re
import runpy
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedmlic.corpus import open_corpus
from fedmlic.dataset import DIFFICULT_ONLY
from fedmlic.datasets.voc2012 import voc2012
from fedmlic.errors import InputError
from fedmlic.sources.voc import LABEL_NAMES
from fedmlic.sources.voc_counts import POSITIVES
from fedmlic.spec import build

FIXTURE = runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "voc2012.py"))
CHAIR, DOG, PERSON, SOFA = (LABEL_NAMES.index(name) for name in ("chair", "dog", "person", "sofa"))


@pytest.fixture
def root(tmp_path):
    FIXTURE["write"](tmp_path)
    return tmp_path


def made(root, **options):
    return voc2012(root=str(root), **{"image_size": 16, "val_fraction": 0, **options})


def place(root, *parts):
    return root.joinpath("VOCdevkit", "VOC2012", *parts)


def states(data):
    """Present and unknown labels of every image, by name."""
    table = data.table()
    return {
        name: {data.label_names[c]: int(s) for c, s in enumerate(row) if s != 0}
        for name, row in zip(table.image_ids, table.labels, strict=True)
    }


def problem(root, **options):
    with pytest.raises(InputError) as caught:
        made(root, **options).table()
    return str(caught.value)


def plain_loop(root, name, difficult):
    """One image's row, from the raw file by regular expressions alone."""
    text = place(root, "Annotations", f"{name}.xml").read_text()
    text = re.sub(r"<part>.*?</part>", "", text, flags=re.DOTALL)
    row = [0] * 20
    for found in re.findall(r"<object>(.*?)</object>", text, flags=re.DOTALL):
        column = LABEL_NAMES.index(re.search(r"<name>(.*?)</name>", found)[1])
        hard = "<difficult>1</difficult>" in found
        state = {"ignore": -1, "absent": 0, "present": 1}[difficult] if hard else 1
        row[column] = 1 if 1 in (row[column], state) else state or row[column]
    return row


@pytest.mark.parametrize("difficult", ["ignore", "absent", "present"])
def test_labels_equal_a_plain_loop_over_the_files(root, difficult):
    table = made(root, difficult=difficult).table()
    expected = {name: plain_loop(root, name, difficult) for name in FIXTURE["IMAGES"]}

    assert expected == dict(zip(table.image_ids, table.labels.tolist(), strict=True))


def test_difficult_objects(root):
    ignore, absent, present = (states(made(root, difficult=d)) for d in ("ignore", "absent", "present"))

    assert ignore["2008_000900"] == {"person": 1, "dog": 1, "chair": -1}
    assert absent["2008_000900"] == {"person": 1, "dog": 1}
    assert present["2008_000900"] == {"person": 1, "dog": 1, "chair": 1}
    # A plain chair beside a difficult one is present whatever the rule.
    assert ignore["2008_000905"] == absent["2008_000905"] == present["2008_000905"] == {"chair": 1}
    # An image with nothing else keeps its row.
    assert (ignore["2009_000010"], absent["2009_000010"]) == ({"sofa": -1}, {})


@pytest.mark.parametrize("difficult", ["ignore", "absent", "present"])
def test_difficult_entries_carry_a_flag_whatever_their_state(root, difficult):
    table = made(root, difficult=difficult).table()
    entries = zip(table.flags.row.tolist(), table.flags.label.tolist(), table.flags.bits.tolist(), strict=True)

    assert {(table.image_ids[row], label, bits) for row, label, bits in entries} == {
        ("2008_000900", CHAIR, DIFFICULT_ONLY),
        ("2009_000010", SOFA, DIFFICULT_ONLY),
    }


def test_a_parts_name_is_not_the_objects(root):
    assert "head" in place(root, "Annotations", "2008_000900.xml").read_text()
    assert states(made(root))["2008_000900"]["person"] == 1


def test_objects(root):
    """Of 64 x 48 stored as 16 x 16: the person spans 8.7 to 30 and 2 to 47, counted from 1 and inclusive."""
    objects = made(root).table().objects
    place_of_person = int(np.flatnonzero((objects.row == 0) & (objects.label == PERSON))[0])

    assert objects.box[place_of_person].tolist() == pytest.approx([7.70000076 / 4, 1 / 3, 22.29999924 / 4, 46 / 3])
    assert objects.area[place_of_person] == pytest.approx(22.29999924 / 4 * 46 / 3)
    assert (objects.row == 1).sum() == 1
    assert (made(root, difficult="present").table().objects.row == 1).sum() == 2
    assert objects.box[(objects.row == 1)].tolist() == [[0, 0, 16, 16]]


def test_equal_objects_are_kept_once(root):
    table = made(root).table()

    assert (table.objects.row == table.image_ids.index("2009_000011")).sum() == 1
    assert table.report["equal_annotations_dropped"] == 1


def test_lists_decide_the_splits(root):
    table = made(root).table()
    of = dict(zip(table.image_ids, table.splits, strict=True))
    assert of == dict.fromkeys(FIXTURE["LISTS"]["train"], "train") | dict.fromkeys(FIXTURE["LISTS"]["val"], "test")

    everything = made(root, train_part="trainval", val_fraction=0.34).table().splits
    assert (everything.count("train"), everything.count("val"), everything.count("test")) == (4, 2, 0)


def test_validation_images_do_not_depend_on_the_order_of_lines(root):
    first = made(root, train_part="trainval", val_fraction=0.34)
    path = place(root, "ImageSets", "Main", "trainval.txt")
    lines = path.read_text().splitlines()
    random.Random(0).shuffle(lines)
    path.write_bytes("\r\n".join(lines).encode())

    second = made(root, train_part="trainval", val_fraction=0.34)

    assert first.table().splits == second.table().splits
    assert first.identity == second.identity


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("final", [True, False])
def test_a_list_without_final_line_end_keeps_its_last_name(root, ending, final):
    expected = states(made(root))
    for name in ("train", "val"):
        path = place(root, "ImageSets", "Main", f"{name}.txt")
        path.write_bytes((ending.join(FIXTURE["LISTS"][name]) + (ending if final else "")).encode())

    assert expected == states(made(root))


def test_annotations_with_other_line_ends_and_a_byte_order_mark(root):
    expected = states(made(root))
    for path in place(root, "Annotations").iterdir():
        path.write_bytes(b"\xef\xbb\xbf" + path.read_text().replace("><", ">\r\n<").encode())

    assert expected == states(made(root))


def test_labels_are_chosen_by_any_name(root):
    data = made(root, label_names=["tv", "sofa", "person"])

    assert data.label_names == ("tv", "sofa", "person")
    assert data.parents == ("indoor", "indoor", "person")
    assert data.table().labels.tolist()[0] == [0, 0, 1]
    assert states(data)["2010_000001"] == {"tv": 1}


def test_groups_are_vocs(root):
    data = made(root)

    assert data.label_names == LABEL_NAMES
    assert data.parents[:4] == ("vehicle", "vehicle", "animal", "vehicle")
    assert sorted(map(data.parents.count, ("person", "animal", "vehicle", "indoor"))) == [1, 6, 6, 7]


def test_expected_counts(root):
    expected = dict(made(root).expected)
    assert [expected.pop(key) for key in ("train", "val", "test")] == [5717, 0, 5823]
    assert expected["positives/person"] == 4087
    counted = made(root, difficult="present", train_part="trainval").expected
    assert counted["positives/person"] == 4374
    assert "test" not in counted
    assert "positives/person" not in made(root, label_names=["person"]).expected


def test_published_tables_add_up():
    """Cardinality 1.535 with difficult objects, as recomputed from the released list; 2.05 in VOC-MLT."""
    totals = [sum(column) for column in zip(*POSITIVES.values(), strict=True)]

    assert totals[4] / 11_540 == pytest.approx(1.535, abs=0.001)
    assert totals[5] / 1_142 == pytest.approx(2.05, abs=0.01)


@pytest.mark.parametrize("at", [".", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_layouts(root, at):
    assert states(made(root)) == states(made(root / at))


def test_identity_follows_content_and_options_but_not_the_place(root, tmp_path_factory):
    first = made(root)
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "copy"
    shutil.copytree(root, elsewhere)
    assert made(elsewhere).identity == first.identity
    changes = [{}, {"difficult": "absent"}, {"resize": "pad"}, {"channels": 1}, {"image_size": 17}, {"seed": 1}]
    changes += [{"train_part": "trainval"}, {"val_fraction": 0.5}, {"label_names": ["dog"]}]
    identities = {json.dumps(dict(made(elsewhere, **options).identity), sort_keys=True) for options in changes}
    assert len(identities) == len(changes)
    # Pictures and annotations that no list names do not count.
    place(elsewhere, "JPEGImages", "2007_000027.jpg").write_bytes(b"x")
    place(elsewhere, "Annotations", "2007_000027.xml").write_text("x")
    assert made(elsewhere).identity == first.identity
    path = place(elsewhere, "Annotations", "2008_000905.xml")
    path.write_text(path.read_text().replace("chair", "sofa"))
    assert made(elsewhere).identity != first.identity


def test_all_faults_at_once(root):
    place(root, "JPEGImages", "2008_000905.jpg").unlink()
    place(root, "Annotations", "2010_000001.xml").unlink()
    path = place(root, "Annotations", "2009_000011.xml")
    path.write_text(path.read_text().replace("cat", "pottedflant").replace("<xmin>3<", "<xmin>30<", 1))
    place(root, "Annotations", "2011_000002.xml").write_text("<annotation><object>")

    lines = problem(root).splitlines()

    assert lines[0].startswith("Expected the annotations of data set voc2012 to describe existing images correctly")
    assert lines[1:] == [
        "  VOC2012/JPEGImages/2008_000905.jpg: no such image",
        "  VOC2012/Annotations/2009_000011.xml: object 1: its box ends before it begins, from (30, 3) to (9, 9)",
        "  VOC2012/Annotations/2009_000011.xml: label 'pottedflant'. Did you mean 'pottedplant'?",
        "  VOC2012/Annotations/2010_000001.xml: no such file",
        "  VOC2012/Annotations/2011_000002.xml: no XML: no element found: line 1, column 20",
    ]


def test_an_image_of_two_lists_would_leak(root):
    with place(root, "ImageSets", "Main", "val.txt").open("a") as file:
        file.write("2008_000900\n")

    main = root / "VOCdevkit" / "VOC2012" / "ImageSets" / "Main"
    assert problem(root).splitlines()[1:] == [f"  {main / 'train.txt'} and {main / 'val.txt'}: 2008_000900 is in both"]


def test_class_files_that_say_anything_else_are_reported(root):
    assert made(root).table().report["class_file_differences"] == 0
    path = place(root, "ImageSets", "Main", "chair_train.txt")
    assert path.read_text() == "2008_000900  0\n2008_000905  1\n2009_000010 -1\n"
    path.write_text("2008_000900 1\r\n2008_000905  0\r\n2009_000010 -1")

    for difficult in ("ignore", "absent", "present"):
        report = made(root, difficult=difficult).table().report

        assert report["class_file_differences_first"] == [
            "chair_train.txt: 2008_000900 has 1, its annotation means 0",
            "chair_train.txt: 2008_000905 has 0, its annotation means 1",
        ]


def test_missing_parts_are_all_named(root):
    place(root, "ImageSets", "Main", "val.txt").unlink()
    shutil.rmtree(place(root, "JPEGImages"))

    assert "without VOC2012/ImageSets/Main/val.txt, VOC2012/JPEGImages; it holds VOC2012" in problem(root)


def test_a_class_file_is_no_list_of_images(root):
    place(root, "ImageSets", "Main", "val.txt").write_text("2009_000011  1\n2010_000001 -1\n")

    assert "line 1: '2009_000011  1'" in problem(root)


def test_pictures_are_not_turned_and_bad_ones_are_named(root, tmp_path_factory):
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:, :32] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(place(root, "JPEGImages", "2008_000900.jpg"), exif=exif)
    data = made(root)
    assert data.image(0)[:, :6].min() > 200
    assert data.table().report["exif_turned"] == 1

    os.truncate(place(root, "JPEGImages", "2009_000010.jpg"), 300)
    place(root, "JPEGImages", "2011_000002.jpg").write_bytes(b"")
    with pytest.raises(InputError, match="got 2 problems") as caught:
        open_corpus(made(root), home=tmp_path_factory.mktemp("home"))
    assert all(name in str(caught.value) for name in ("2009_000010.jpg", "2011_000002.jpg"))


def test_a_size_that_the_annotation_gets_wrong(root):
    before = made(root).table().objects.box
    path = place(root, "Annotations", "2008_000900.xml")
    path.write_text(path.read_text().replace("<width>64", "<width>48").replace("<height>48", "<height>64"))

    table = made(root).table()

    assert (before == table.objects.box).all()
    assert table.report["other_proportions_first"] == ["2008_000900"]


def test_the_fixture_is_what_other_parsers_read(root):
    """The standard library's tree of every file has the fields that the official ones have."""
    for path in place(root, "Annotations").iterdir():
        tree = ET.parse(path).getroot()  # noqa: S314
        assert tree.findtext("filename") == f"{path.stem}.jpg"
        assert tree.find("object/bndbox/xmax") is not None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("root='.', difficult='negative'", "'ignore', 'absent' or 'present'"),
        ("root='.', train_part='val'", "'train' or 'trainval'"),
        ("root='.', dificult='absent'", "Did you mean 'difficult'"),
        ("root='/none'", "no such folder"),
    ],
)
def test_bad_parameters_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        build("dataset", f"voc2012({text})")
