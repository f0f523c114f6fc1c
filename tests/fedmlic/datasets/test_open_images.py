import csv
import runpy
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fedmlic.corpus import open_corpus
from fedmlic.dataset import MACHINE
from fedmlic.datasets import open_images as module
from fedmlic.datasets.open_images import open_images
from fedmlic.errors import InputError
from fedmlic.formats import open_images as reader
from fedmlic.images import decode
from fedmlic.labels import ABSENT, PRESENT, UNCERTAIN, UNKNOWN

FIXTURE = runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "open_images.py"))
A, B, C, D, E, F = (FIXTURE[name] for name in "ABCDEF")
CLASSES, HUMAN, LISTED, write_rows = (FIXTURE[name] for name in ("CLASSES", "HUMAN", "LISTED", "write_rows"))
TRAIN = "oidv6-train-annotations-human-imagelabels.csv"


@pytest.fixture
def root(tmp_path):
    FIXTURE["write"](tmp_path)
    return tmp_path


def made(root, **options):
    return open_images(root=str(root), image_size=8, **options)


def problem(root, **options):
    with pytest.raises(InputError) as caught:
        made(root, **options).table()
    return str(caught.value)


def rewrite(root, change, file=TRAIN):
    """Change the lines of a CSV file."""
    with (root / file).open(newline="", encoding="utf-8-sig") as lines:
        rows = list(csv.reader(lines))
    changed = change(rows)
    write_rows(root / file, None, rows if changed is None else changed)


def states(data):
    """(image id, class id) -> state, of what is not unknown."""
    table = data.table()
    return {
        (table.image_ids[row], data.label_ids[column]): int(table.labels[row, column])
        for row, column in zip(*np.nonzero(table.labels != UNKNOWN), strict=True)
    }


def expected():
    """By a plain loop over the human rows."""
    said = {}
    for rows in HUMAN.values():
        for image_id, _, label, confidence in rows:
            said.setdefault((image_id, label), set()).add(float(confidence))
    return {key: UNCERTAIN if len(v) > 1 else PRESENT if 1.0 in v else ABSENT for key, v in said.items()}


def flags(data):
    table = data.table()
    return {
        (table.image_ids[row], data.label_ids[column])
        for row, column in zip(table.flags.row.tolist(), table.flags.label.tolist(), strict=True)
    }


# States


def test_people_say_present_or_absent_and_the_rest_is_unknown(root):
    data = made(root)
    table = data.table()

    assert states(data) == expected()
    assert expected()[B, "/m/07j7r"] == UNCERTAIN
    assert data.label_ids == tuple(label for label, _ in CLASSES)
    assert table.report["contradictions"] == 1
    assert table.report["rows_by_source"] == {"crowdsource-verification": 2, "machine": 4, "verification": 9}
    splits = {A: "train", B: "train", C: "train", D: "val", E: "test", F: "test"}
    assert dict(zip(table.image_ids, table.splits, strict=True)) == splits


def test_what_programs_claim_is_a_flag_or_present_or_nothing(root):
    claimed = {(A, "/m/07j7r"), (A, "/m/0jbk"), (C, "/m/01bqvp")}

    assert flags(made(root)) == claimed
    assert set(made(root).table().flags.bits.tolist()) == {MACHINE}
    assert flags(made(root, machine_confidence=0.85)) == {(A, "/m/07j7r")}
    assert states(made(root, machine="present")) == {
        **expected(),
        (A, "/m/0jbk"): PRESENT,
        (C, "/m/01bqvp"): PRESENT,
    }
    assert flags(made(root, machine="ignore")) == set()


def test_machine_rows_in_a_human_file_are_claims(root):
    rewrite(root, lambda rows: rows.append([C, "machine", "/m/07j7r", "0.7"]))

    assert (C, "/m/07j7r") in flags(made(root))
    assert states(made(root)) == expected()


def test_the_hierarchy_spreads_what_is_said(root):
    data = made(root, hierarchy="expand")

    assert states(data) == {
        **expected(),
        (B, "/m/0jbk"): PRESENT,  # a dog is an animal
        (C, "/m/0bt9lr"): ABSENT,  # no animal, so no dog
        (E, "/m/0jbk"): PRESENT,
    }
    assert data.parents == (
        "Head hair",
        "Tree",
        "Sky",
        "Lemon, lime and bitters",
        "Animal",
        "Animal",
        "Dog (/m/0other)",
    )


def test_the_hierarchy_can_contradict(root):
    rewrite(root, lambda rows: rows.append([B, "verification", "/m/0jbk", "0"]))
    found = states(made(root, hierarchy="expand"))

    assert found[B, "/m/0jbk"] == found[B, "/m/0bt9lr"] == UNCERTAIN
    (root / "bbox_labels_600_hierarchy.json").unlink()
    assert "hierarchy='none'" in problem(root, hierarchy="expand")
    assert made(root).parents == ()


# Classes


def test_names_with_commas_and_names_of_two_classes(root):
    names = made(root).label_names

    assert names[3] == "Lemon, lime and bitters"
    assert names[5:] == ("Dog (/m/0bt9lr)", "Dog (/m/0other)")
    assert made(root, classes="trainable").label_names == ("Sky", "Tree", "Dog")


def test_some_classes(root):
    trainable = made(root, classes="trainable")
    assert trainable.label_ids == tuple(FIXTURE["TRAINABLE"])
    assert states(trainable) == {key: state for key, state in expected().items() if key[1] in trainable.label_ids}
    assert trainable.table().report["rows_of_other_labels"] == 3

    assert made(root, classes="boxable").label_ids == ("/m/07j7r", "/m/0jbk", "/m/0bt9lr")
    assert made(root, label_names=["Sky", "/m/07j7r"]).label_ids == ("/m/01bqvp", "/m/07j7r")
    # Two classes are called Dog, one of them trainable.
    assert "'Dog', the name of 2 classes: /m/0bt9lr, /m/0other." in problem(root, label_names=["Dog", "Sky"])
    assert made(root, label_names=["Dog (/m/0other)", "Sky"]).label_ids == ("/m/0other", "/m/01bqvp")
    assert made(root, classes="trainable", label_names=["Dog"]).label_ids == trainable.label_ids[-1:]
    assert made(root, label_names=list(made(root).label_names)).label_names == made(root).label_names
    assert "Did you mean 'Sky'?" in problem(root, label_names=["Skyy"])
    assert "'/m/01bqvp', which is named 2 times" in problem(root, label_names=["Sky", "/m/01bqvp"])


def test_older_descriptions_have_no_header(root):
    rewrite(root, lambda rows: rows[1:], "oidv6-class-descriptions.csv")

    assert made(root).label_ids == tuple(label for label, _ in CLASSES)


def test_newer_names_of_files(root):
    renamed = {
        TRAIN: "oidv7-train-annotations-human-imagelabels.csv",
        "validation-annotations-human-imagelabels.csv": "oidv7-val-annotations-human-imagelabels.csv",
        "test-annotations-human-imagelabels.csv": "oidv7-test-annotations-human-imagelabels.csv",
        "oidv6-class-descriptions.csv": "oidv7-class-descriptions.csv",
        "image_ids_and_rotation.csv": "oidv6-train-images-with-labels-with-rotation.csv",
    }
    for old, new in renamed.items():
        (root / old).rename(root / new)

    assert states(made(root)) == expected()


# Owners and orientation


def test_authors_own_their_images(root):
    table = made(root).table()
    names = {i: table.owner_names[o] if o >= 0 else "" for i, o in zip(table.image_ids, table.owners, strict=True)}

    assert names == {image_id: profile or author for image_id, _, profile, author, _, _ in LISTED}
    assert table.report["without_author"] == 1
    assert (made(root, owners="none").table().owners == -1).all()


@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
def test_images_are_turned_counterclockwise_as_the_list_says(root, resize):
    data = open_images(root=str(root), image_size=40, resize=resize)
    turns = {image_id: turn for image_id, _, _, _, _, turn in LISTED}

    for row, image_id in enumerate(data.table().image_ids):
        path = next(root.glob(f"*/{image_id}.jpg"))
        angle = int(float(turns[image_id] or 0)) if turns[image_id] != "nan" else 0
        with Image.open(path) as picture:
            picture.rotate(angle, expand=True).save(root / "turned.png")  # Pillow turns counterclockwise, too
        reference = decode(root / "turned.png", 40, 3, resize).astype(int)
        assert np.abs(data.image(row).astype(int) - reference).max() <= 2
    assert data.table().report["unknown_rotation"] == 2


def test_exif_is_not_applied_on_top(root):
    path = next(root.glob(f"*/{B}.jpg"))
    with Image.open(path) as opened:
        picture = opened.copy()
    exif = Image.Exif()
    exif[0x0112] = 6
    row = made(root).table().image_ids.index(B)
    picture.save(path, quality=90)
    pixels = made(root).image(row)
    picture.save(path, quality=90, exif=exif)

    with Image.open(path) as opened:
        assert opened.getexif()[0x0112] == 6
    assert (made(root).image(row) == pixels).all()


def test_without_lists_nobody_owns_and_nothing_is_turned(root):
    (root / "image_ids_and_rotation.csv").unlink()
    table = made(root).table()

    assert (table.owners == -1).all()
    assert F not in table.image_ids
    assert table.report["lists_of_images"] == 0
    assert table.report["files_in_no_list"] == 1


def test_images_of_which_nothing_is_known(root):
    assert made(root).table().report["unlabelled"] == 1
    assert F not in made(root, drop_unlabelled=True).table().image_ids


# What is wrong


def test_missing_images(root):
    next(root.glob(f"*/{A}.jpg")).unlink()
    next(root.glob(f"*/{D}.jpg")).write_bytes(b"")

    text = problem(root)
    table = made(root, missing="drop").table()

    assert f"{A}: no such file" in text
    assert f"{D}: empty file" in text
    assert set(table.image_ids) == {B, C, E, F}
    assert table.report["missing_dropped"] == 2
    assert states(made(root, missing="drop")) == {k: v for k, v in expected().items() if k[0] not in {A, D}}
    assert flags(made(root, missing="drop")) == {(C, "/m/01bqvp")}


def test_a_truncated_image_is_named_when_the_corpus_is_built(root, tmp_path_factory):
    path = next(root.glob(f"*/{A}.jpg"))
    path.write_bytes(path.read_bytes()[:-100])

    with pytest.raises(InputError, match=A):
        open_corpus(made(root), home=tmp_path_factory.mktemp("home"))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (["b", "verification", "/m/07j7r", "1"], "row 10: ImageID 'b' is not 16 hexadecimal digits"),
        (["F00026E7EE790001", "verification", "/m/07j7r", "1"], "is not 16 hexadecimal digits"),
        ([A, "verification", "/m/none", "1"], "row 10: LabelName '/m/none' is in no class description"),
        ([A, "verification", "/m/07j7r", "0.5"], "row 10: Confidence '0.5' of source 'verification'"),
        ([A, "machine", "/m/07j7r", "1.5"], "row 10: Confidence '1.5' of source 'machine'"),
        ([A, "verification", "/m/07j7r", "x"], "row 10: Confidence 'x'"),
        ([A, "verification", "/m/07j7r"], "to be a CSV file with columns"),
    ],
)
def test_wrong_rows(root, row, said):
    rewrite(root, lambda rows: rows.append(row))

    assert said in problem(root)


def test_wrong_lists(root):
    def change(rows):
        rows[1][1] = "dev"
        rows.append(rows[2])

    rewrite(root, change, "image_ids_and_rotation.csv")
    text = problem(root)

    assert "image_ids_and_rotation.csv, got row 2: Subset 'dev'. Known: test, train, val, validation." in text
    assert f"Expected every image in image_ids_and_rotation.csv once, got {B} more than once" in text
    rewrite(root, lambda rows: rows[1].__setitem__(-1, "45.0"), "image_ids_and_rotation.csv")
    assert "Rotation '45.0'" in problem(root)


def test_an_image_in_two_splits(root):
    rewrite(
        root, lambda rows: rows.append([A, "verification", "/m/07j7r", "1"]), "test-annotations-human-imagelabels.csv"
    )

    assert f"got {A} in train and test" in problem(root)


def test_an_image_in_two_folders(root):
    path = next(root.glob(f"*/{A}.jpg"))
    (root / "train").mkdir()
    (root / "train" / path.name).write_bytes(path.read_bytes())

    assert "Expected every image in one folder" in problem(root)


def test_missing_files(root, tmp_path_factory):
    assert "the names of the classes" in problem(tmp_path_factory.mktemp("empty"))
    (root / TRAIN).unlink()
    assert "Download the human-verified labels" in problem(root)


def test_a_split_with_images_needs_its_labels(root):
    (root / "validation-annotations-human-imagelabels.csv").unlink()

    assert f"images in {root / 'validation'}. Download the human-verified labels of every split" in problem(root)
    (root / "validation" / f"{D}.jpg").unlink()
    assert D not in made(root, missing="drop").table().image_ids
    (root / "train-annotations-machine-imagelabels.csv").unlink()
    assert "Download what programs claim" in problem(root, machine="present", missing="drop")


def test_a_label_file_without_rows_is_not_one_without_labels(root):
    rewrite(root, lambda rows: rows[:1], "test-annotations-human-imagelabels.csv")

    assert "test-annotations-human-imagelabels.csv, got no row" in problem(root)


def test_faults_of_all_stages_at_once(root):
    """Classes, options, labels, lists, hierarchy, folders and images do not hide each other."""
    rewrite(root, lambda rows: rows.append(["/m/twice", "a\0b"]), "oidv6-class-descriptions.csv")
    rewrite(root, lambda rows: rows.append([A, "verification", "/m/07j7r", "7"]))
    rewrite(root, lambda rows: rows.append(["12", "verification", "/m/none", "1"]))
    rewrite(root, lambda rows: rows[2].__setitem__(-1, "45"), "image_ids_and_rotation.csv")
    (root / "test-annotations-human-imagelabels.csv").write_bytes(b"ImageID,Source,LabelName,Confidence\n\xff,a,b,1\n")
    (root / "bbox_labels_600_hierarchy.json").write_text('{"LabelName": "/m/a", "Subcategory": [{"LabelName": 7}]}')
    next(root.glob(f"*/{B}.jpg")).unlink()

    with pytest.raises(InputError) as caught:
        made(root, machine="ignore")

    said = [
        ("oidv6-class-descriptions.csv", r"line 9: ['/m/twice', 'a\x00b'] holds the control character"),
        ("bbox_labels_600_hierarchy.json", "{'LabelName': 7}"),
        (TRAIN, "row 10: Confidence '7'"),
        (TRAIN, "row 11: ImageID '12'"),
        (TRAIN, "row 11: LabelName '/m/none'"),
        ("test-annotations-human-imagelabels.csv", "UTF8"),
        ("image_ids_and_rotation.csv", "row 3: Rotation '45'"),
        (f"{B}: no such file", ""),
    ]
    lines = list(caught.value.problems)
    assert len(lines) == len(said)
    for file, what in said:
        assert any(file in line and what in line for line in lines), (file, what)


def test_wrong_descriptions(root):
    write_rows(root / "oidv6-class-descriptions.csv", None, [("/m/1", "a"), ("/m/1", "b"), ("/m/2",)])

    text = problem(root)

    assert "line 2: ['/m/1', 'b']" in text
    assert "line 3: ['/m/2']" in text


def test_a_table_that_cannot_fit(root, monkeypatch):
    monkeypatch.setattr(module, "MAX_ENTRIES", 10)

    assert "Choose fewer labels" in problem(root)


# Reading


def test_order_byte_order_marks_and_windows_ends(root):
    before = made(root).table()
    rewrite(root, lambda rows: [rows[0], *rows[:0:-1]])
    text = (root / TRAIN).read_text()
    (root / TRAIN).write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").rstrip().encode())
    after = made(root).table()

    assert before.image_ids == after.image_ids
    assert (before.labels == after.labels).all()


def test_small_blocks_read_the_same(root, monkeypatch):
    monkeypatch.setattr(reader, "BLOCK_BYTES", 200)
    monkeypatch.setattr(module, "BLOCK_ROWS", 2)

    assert states(made(root)) == expected()
    assert states(made(root, hierarchy="expand"))[B, "/m/0jbk"] == PRESENT


@settings(max_examples=40, deadline=None)
@given(st.lists(st.one_of(st.integers(0, 2**64 - 1), st.text(max_size=17)), max_size=20), st.integers(0, 3))
def test_ids_are_parsed_as_python_does(items, skipped):
    texts = [f"{item:016x}" if isinstance(item, int) else item for item in items]
    numbers, wrong = reader.parse_ids(pa.array([*["x"] * skipped, *texts], type=pa.string()).slice(skipped))
    good = [len(text) == 16 and set(text) <= set("0123456789abcdef") for text in texts]

    assert wrong.tolist() == [place for place, is_good in enumerate(good) if not is_good]
    assert numbers.tolist() == [int(text, 16) if is_good else 0 for text, is_good in zip(texts, good, strict=True)]
