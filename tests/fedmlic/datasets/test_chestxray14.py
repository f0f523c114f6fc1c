import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fedmlic.corpus import open_corpus
from fedmlic.datasets.chestxray14 import POSITIVES, chestxray14
from fedmlic.errors import InputError
from fedmlic.spec import build

FIXTURE = runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "chestxray14.py"))
tree, ROWS, HEADER, TEST, BOXES = (FIXTURE[name] for name in ("tree", "ROWS", "HEADER", "TEST", "BOXES"))
FINDINGS = sorted(POSITIVES)


def made(root, **options):
    return chestxray14(root=str(root), **{"image_size": 16, **options})


def problem(root, **options):
    with pytest.raises(InputError) as caught:
        made(root, **options)
    return str(caught.value)


def brute_force(rows=ROWS, names=FINDINGS):
    """Labels by image, straight from the lines."""
    cells = (row.split(",") for row in rows)
    return {cell[0]: [int(name in cell[1].split("|")) for name in names] for cell in cells}


@pytest.fixture
def root(tmp_path):
    tree(tmp_path)
    return tmp_path


def labels_of(data):
    table = data.table()
    return dict(zip(table.image_ids, table.labels.tolist(), strict=True))


def splits_of(data):
    table = data.table()
    return dict(zip(table.image_ids, table.splits, strict=True))


# Labels and tables


def test_labels_are_those_of_the_lines(root):
    data = made(root)

    assert data.label_names == tuple(FINDINGS)
    assert labels_of(data) == brute_force()


@settings(max_examples=25, deadline=None)
@given(findings=st.lists(st.lists(st.sampled_from(FINDINGS), unique=True), min_size=7, max_size=7))
def test_any_findings_in_any_order_agree_with_a_plain_loop(tmp_path_factory, findings):
    cells = [row.split(",") for row in ROWS]
    rows = [
        ",".join([cell[0], "|".join(found) or "No Finding", *cell[2:]])
        for cell, found in zip(cells, findings, strict=True)
    ]
    root = tmp_path_factory.mktemp("findings")
    tree(root, rows)

    assert labels_of(made(root)) == brute_force(rows)


def test_no_finding_is_all_absent_and_a_label_on_request(root):
    plain, with_column = made(root), made(root, no_finding=True)

    assert labels_of(plain)["90000002_000.png"] == [0] * 14
    assert with_column.label_names == (*FINDINGS, "No Finding")
    assert labels_of(with_column) == brute_force(names=[*FINDINGS, "No Finding"])


def test_chosen_findings_in_their_order(root):
    names = ["Mass", "Hernia", "Atelectasis"]

    assert labels_of(made(root, label_names=names)) == brute_force(names=names)
    assert "'Infiltrate': Did you mean 'Infiltration'?" in problem(root, label_names=["Infiltrate"])
    assert "different findings" in problem(root, label_names=["Mass", "Mass"])


@pytest.mark.parametrize(
    "change",
    [
        lambda text: b"\xef\xbb\xbf" + text.encode(),
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: text.rstrip("\n").encode(),
        lambda text: text.replace("\n", ",\n").encode(),
        lambda text: text.replace("OriginalImage[Width,Height]", '"OriginalImage[Width,Height]"').encode(),
        lambda text: text.replace(",90000001,", ",090000001,").encode(),
        lambda text: "\n".join([text.splitlines()[0], *reversed(text.splitlines()[1:])]).encode(),
    ],
    ids=["byte order mark", "CRLF", "no final newline", "trailing commas", "quoted header", "padded patient", "order"],
)
def test_however_the_table_is_written_it_reads_the_same(root, change):
    expected = made(root).table()
    path = root / "Data_Entry_2017_v2020.csv"
    path.write_bytes(change(path.read_text()))

    table = made(root).table()

    assert table.image_ids == expected.image_ids
    assert table.labels.tolist() == expected.labels.tolist()
    assert table.owners.tolist() == expected.owners.tolist()
    assert table.splits == expected.splits


def test_the_older_table_is_found_and_the_newer_one_preferred(tmp_path):
    old = [row.replace(",33,", ",033Y,").replace("Mass,0", "Edema,0") for row in ROWS]
    tree(tmp_path, old, header=HEADER + ",", table="Data_Entry_2017.csv")
    assert labels_of(made(tmp_path)) == brute_force(old)
    tree(tmp_path)
    assert labels_of(made(tmp_path)) == brute_force()
    assert labels_of(made(tmp_path, csv="Data_Entry_2017.csv")) == brute_force(old)


# Splits and patients


def test_official_lists_are_kept_and_validation_is_whole_patients(root):
    table = made(root, val_fraction=0.5).table()

    assert {name for name, split in zip(table.image_ids, table.splits, strict=True) if split == "test"} == set(TEST)
    assert set(table.splits) == {"train", "val", "test"}
    assert {table.splits[0], table.splits[1]} in ({"train"}, {"val"})


@settings(max_examples=25, deadline=None)
@given(
    patients=st.lists(st.integers(1, 9), min_size=1, max_size=40),
    split=st.sampled_from(["official", "patients"]),
    shares=st.tuples(st.floats(0, 0.5), st.floats(0, 0.4)),
    seed=st.integers(0, 5),
)
def test_patients_never_cross_splits(tmp_path_factory, patients, split, shares, seed):
    root = tmp_path_factory.mktemp("nih")
    rows = [f"9000000{p}_{i:03d}.png,Mass,{i},9000000{p},33,F,PA,1,1,1,1" for i, p in enumerate(patients)]
    tree(root, rows, test=[row.split(",")[0] for row in rows if int(row[7]) % 4 == 0], boxes=[])

    table = made(root, split=split, val_fraction=shares[0], test_fraction=shares[1], seed=seed).table()

    sides = {}
    for owner, side in zip(table.owners.tolist(), table.splits, strict=True):
        sides.setdefault(owner, set()).add(side)
    assert all(len(side) == 1 for side in sides.values())
    assert len(table.splits) == len(patients)


def test_random_images_do_divide_patients_as_some_programs_do(tmp_path):
    rows = [f"90000001_{i:03d}.png,Mass,{i},90000001,33,F,PA,1,1,1,1" for i in range(20)]
    tree(tmp_path, rows, test=(), boxes=[])

    splits = list(splits_of(made(tmp_path, split="images", test_fraction=0.3, val_fraction=0.1)).values())

    assert [splits.count(split) for split in ("train", "val", "test")] == [12, 2, 6]
    assert set(splits_of(made(tmp_path, split="patients")).values()) == {"train"}


def test_a_patient_in_both_lists_and_other_faults_of_the_lists(root):
    with (root / "test_list.txt").open("a") as file:
        file.write("\n90000001_001.png\n90000009_000.png\n")
    (root / "train_val_list.txt").write_text("90000001_000.png\n90000002_000.png\n")

    message = problem(root)

    assert "patient 90000001 has images in both official lists" in message
    assert "'90000003_000.png' is in no official list" in message
    assert "'90000009_000.png' of test_list.txt is not in the table" in message
    assert "got 3 problems" in message


def test_an_image_in_both_lists_and_a_missing_list(root):
    with (root / "test_list.txt").open("a") as file:
        file.write("\n90000001_001.png")
    assert "'90000001_001.png', which is listed in train_val_list.txt already" in problem(root)
    (root / "test_list.txt").unlink()
    assert "Expected the official list" in problem(root)
    assert len(made(root, split="patients").table().image_ids) == 7


@pytest.mark.parametrize(
    ("owners", "names"),
    [
        ("patient", ["90000001", "90000002", "90000003", "90000004", "90000005"]),
        ("view", ["AP", "PA"]),
        ("sex", ["F", "M"]),
        ("age", ["000-019", "020-039", "040-059", "060-079", "080-099"]),
    ],
)
def test_natural_clients(root, owners, names):
    table = made(root, owners=owners, split="patients").table()

    assert table.owner_names == names
    assert (
        table.owner_names[table.owners[0]]
        == {
            "patient": "90000001",
            "view": "PA",
            "sex": "F",
            "age": "020-039",
        }[owners]
    )


def test_ages_of_the_older_table(tmp_path):
    ages = {"058Y": "040-059", "013M": "000-019", "414": "", "": ""}
    rows = [f"9000000{i}_000.png,Mass,0,9000000{i},{age},F,PA,1,1,1,1" for i, age in enumerate(ages)]
    tree(tmp_path, rows, test=(), boxes=[])

    table = made(tmp_path, owners="age").table()

    assert [table.owner_names[o] if o >= 0 else "" for o in table.owners] == list(ages.values())


def test_the_tables_patient_counts_and_not_the_files_name(tmp_path):
    tree(tmp_path, [row.replace(",90000002,", ",90000003,") for row in ROWS])

    table = made(tmp_path).table()

    assert table.owner_names == ["90000001", "90000003", "90000004", "90000005"]
    assert table.report["named_after_other_patients"] == 1


# Which images


def test_views_and_first_images(root):
    of_view = {view: [row.split(",")[0] for row in ROWS if f",{view}," in row] for view in ("PA", "AP")}

    assert made(root, views="PA").table().image_ids == of_view["PA"]
    assert made(root, views="AP").table().image_ids == of_view["AP"]
    assert made(root, views="PA").table().report["left_out"] == {"other_view": 2}
    firsts = made(root, unique_patients=True).table()
    assert firsts.image_ids == [f"9000000{p}_000.png" for p in range(1, 6)]
    assert firsts.report["left_out"] == {"other_view": 0, "later_image_of_patient": 2}
    # The view is chosen first: patient 4 keeps the later, PA image.
    assert "90000004_001.png" in made(root, unique_patients=True, views="PA").table().image_ids


@pytest.mark.parametrize("folder", ["images_003/images", "images_003"])
def test_archives_unpacked_side_by_side(root, folder):
    (root / folder).mkdir(parents=True)
    for name in ("90000001_000.png", "90000005_000.png"):
        (root / "images" / name).rename(root / folder / name)

    assert len(made(root).table().image_ids) == 7


def test_an_image_in_two_folders_is_a_problem(root):
    (root / "images_001" / "images").mkdir(parents=True)
    shutil.copy(root / "images" / "90000001_000.png", root / "images_001" / "images" / "90000001_000.png")

    assert "'90000001_000.png' lies in" in problem(root)


def test_missing_images_are_listed_or_left_out_and_counted(root):
    for name in ("90000001_000.png", "90000004_001.png"):
        (root / "images" / name).unlink()

    message = problem(root)
    table = made(root, missing="leave_out").table()

    assert "got 2 problems" in message
    assert "no image '90000004_001.png'" in message
    assert len(table.image_ids) == 5
    assert table.report["left_out"]["no_file"] == 2


def test_a_table_cut_to_a_part_of_the_images(root):
    path = root / "Data_Entry_2017_v2020.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:2]))

    message = problem(root)
    table = made(root, missing="leave_out").table()

    assert "'90000002_000.png' of train_val_list.txt is not in the table" in message
    assert "BBox_List_2017.csv line 3: no image '90000003_000.png'" in message
    assert table.image_ids == ["90000001_000.png"]
    assert table.report["boxes_elsewhere"] == 2


# Wrong tables


def test_everything_wrong_is_told_at_once(root):
    path = root / "Data_Entry_2017_v2020.csv"
    more = [
        "90000006_000.png,Mass|No Finding,0,90000006,33,F,PA,1,1,1,1",
        "90000006_001.png,Pleural Thickening,0,90000006,33,F,PA,1,1,1,1",
        "90000006_002.png,,0,90000006,33,F,PA,1,1,1,1",
        "90000006_003.png,Mass,0,P6,33,F,PA,1,1,1,1",
        "90000001_000.png,Mass,0,90000001,33,F,PA,1,1,1,1",
    ]
    path.write_text(path.read_text() + "\n".join(more) + "\n")
    (root / "BBox_List_2017.csv").write_text(
        "\n".join(
            [*BOXES, "90000009_000.png,Mass,1,1,1,1", "90000003_000.png,Mas,1,1,1,1", "90000003_000.png,Mass,a,1,1,1"]
        )
    )
    (root / "images" / "90000005_000.png").unlink()

    message = problem(root)

    for line in (
        "line 9: 'No Finding' beside findings",
        "line 10: finding 'Pleural Thickening'. Did you mean 'Pleural_Thickening'?",
        "line 11: no findings, where a healthy chest says 'No Finding'",
        "line 12: 'P6' in column 'Patient ID', which may say a whole number from 1",
        "line 13: '90000001_000.png' again",
        "no image '90000005_000.png'",
        "BBox_List_2017.csv line 4: no image '90000009_000.png'",
        "BBox_List_2017.csv line 5: finding 'Mas'. Did you mean 'Mass'?",
        "BBox_List_2017.csv line 6: box ['a', '1', '1', '1'], which is not four numbers",
    ):
        assert line in message
    assert "got 9 problems" in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("Finding Labels", "Findings"), "'Finding Labels' 0 times"),
        (lambda text: text.replace(",M,PA,3056,2544,0.139,0.139", ""), "line 4: 5 cells"),
        (lambda text: "\n" + text, "begin with a header, got none"),
    ],
)
def test_a_broken_table_is_explained(root, change, message):
    path = root / "Data_Entry_2017_v2020.csv"
    path.write_text(change(path.read_text()))

    assert message in problem(root)


@pytest.mark.parametrize(
    ("file", "before", "after", "message"),
    [
        ("Data_Entry_2017_v2020.csv", "Effusion|Mass", "Effusion,Mass", "line 5: 12 cells, where the header names 11"),
        ("Data_Entry_2017_v2020.csv", "M,PA,3056,", "M,PA,", "line 4: 10 cells, where the header names 11"),
        ("Data_Entry_2017_v2020.csv", "Effusion|Mass", "Effusion|Effusion", "finding 'Effusion' twice"),
        ("Data_Entry_2017_v2020.csv", "Effusion|Mass", "Effusion|", "a blank finding"),
        ("Data_Entry_2017_v2020.csv", "F,AP", "F,LL", "'LL' in column 'View Position'"),
        ("Data_Entry_2017_v2020.csv", "88,F", "old,F", "'old' in column 'Patient Age'"),
        ("Data_Entry_2017_v2020.csv", "88,F", "88,X", "'X' in column 'Patient Gender'"),
        ("Data_Entry_2017_v2020.csv", ",90000002,", ",0,", "'0' in column 'Patient ID'"),
        ("BBox_List_2017.csv", "50.0", "-50.0", "which has no area"),
        ("BBox_List_2017.csv", "100.5", "2000", "whose corner is not in the 1024 pixels"),
        ("BBox_List_2017.csv", "60.75", "nan", "which has no area"),
        ("train_val_list.txt", "90000002_000.png", "90000002_000.png 1", "got line 3: '90000002_000.png 1'"),
        ("train_val_list.txt", "90000002_000.png", "\udcff", "got byte 0xff on line 3"),
    ],
)
def test_what_a_column_cannot_say(root, file, before, after, message):
    text = (root / file).read_text()
    assert before in text
    (root / file).write_text(text.replace(before, after, 1), errors="surrogateescape")

    assert message in problem(root)


def test_impossible_ages_and_names_are_warnings(tmp_path):
    rows = [row.replace(",90000002,61,", ",90000003,412Y,") for row in ROWS]
    tree(tmp_path, rows)

    assert made(tmp_path).table().report["warnings"] == [
        "1 images of patients who are 120 years old or more",
        "1 files begin with another patient's number than the table says; the table counts",
    ]


def test_faults_of_all_files_are_told_at_once(root):
    (root / "Data_Entry_2017_v2020.csv").write_text("nothing\n")
    (root / "train_val_list.txt").write_bytes(b"\xff")
    (root / "test_list.txt").unlink()
    (root / "BBox_List_2017.csv").write_text("\n".join([*BOXES, "90000003_000.png,Mass,a,1,1,1"]))

    message = problem(root)

    assert "got 9 problems" in message  # six columns and one of each other file
    assert "BBox_List_2017.csv line 4: box" in message
    assert "test_list.txt, got none" in message


def test_no_folder_and_no_table(root, tmp_path_factory):
    with pytest.raises(InputError, match=r"Give the folder that holds Data_Entry_2017_v2020\.csv"):
        made(root / "none")
    with pytest.raises(InputError, match=r"got no CSV file there"):
        made(tmp_path_factory.mktemp("empty"))
    with pytest.raises(InputError, match="'official', 'patients' or 'images'"):
        build("dataset", f"chestxray14(root={str(root)!r}, split='patient')")


# Boxes and pixels


def test_boxes_follow_the_stored_pixels(root):
    table = made(root, image_size=64).table()

    # 64 / 1024 = 1 / 16 of the release's pixels; Infiltrate is Infiltration.
    assert table.objects.row.tolist() == [1, 3]
    assert [FINDINGS[label] for label in table.objects.label] == ["Infiltration", "Mass"]
    expected = np.array([[100.5, 200.25, 50.0, 60.75], [512, 0, 512, 256]]) / 16
    assert np.allclose(table.objects.box, expected, atol=1e-4)
    assert np.allclose(table.objects.area, expected[:, 2] * expected[:, 3], atol=1e-3)


def test_boxes_that_cannot_be_objects_are_counted(tmp_path):
    boxes = [*BOXES, "90000002_000.png,Nodule,1,1,9,9", "90000004_000.png,Mass,1,1,9,9"]
    tree(tmp_path, boxes=boxes)

    report = made(tmp_path, views="PA").table().report
    none = made(tmp_path, label_names=["Hernia"]).table()

    assert (report["boxes"], report["boxes_elsewhere"], report["boxes_of_absent_findings"]) == (1, 2, 1)
    assert none.objects is None
    (tmp_path / "BBox_List_2017.csv").unlink()
    assert made(tmp_path).table().objects is None


def test_rgba_files_read_as_grey_and_are_counted(root):
    data = made(root, image_size=32)
    table = data.table()
    with Image.open(root / "images" / table.image_ids[2]) as picture:
        mode, grey = picture.mode, np.asarray(picture.convert("L"))

    assert mode == "RGBA"
    assert (data.image(2) == grey[..., None]).all()
    assert (made(root, image_size=32, channels=1).image(2)[..., 0] == grey).all()
    assert table.report["modes"] == {"L": 5, "RGBA": 2}


def test_it_becomes_a_corpus_that_follows_its_sources(root, tmp_path_factory):
    corpus = open_corpus(made(root), home=tmp_path_factory.mktemp("home"))

    assert corpus.num_images == 7
    assert corpus.objects is not None
    assert len(corpus.owner_names) == 5
    first = made(root).identity
    assert made(root, seed=1).identity != first
    for name in ("test_list.txt", "BBox_List_2017.csv"):
        (root / name).write_text((root / name).read_text() + "\n")
        assert made(root).identity != first


def test_published_counts_are_for_the_whole_set_only(root):
    assert made(root).expected["positives/Hernia"] == 227
    assert made(root, val_fraction=0).expected["train"] == 86524
    assert made(root, views="PA").expected == {}
    assert sum(POSITIVES.values()) == 81176
