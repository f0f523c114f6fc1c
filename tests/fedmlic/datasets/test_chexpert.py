import csv
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fedmlic.corpus import open_corpus
from fedmlic.datasets.chexpert import OBSERVATIONS, chexpert
from fedmlic.errors import InputError
from fedmlic.labels import ABSENT, PRESENT, UNCERTAIN, UNKNOWN

FIXTURE = runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "chexpert.py"))
tree, TRAIN, VALID, HEADER, image_ids = (FIXTURE[n] for n in ("tree", "TRAIN", "VALID", "HEADER", "image_ids"))
MEANING = {"": UNKNOWN, "1.0": PRESENT, "0.0": ABSENT, "-1.0": UNCERTAIN}


def made(root, **options):
    return chexpert(root=str(root), **{"image_size": 16, **options})


def problem(root, **options):
    with pytest.raises(InputError) as caught:
        made(root, **options)
    return str(caught.value)


def states_of(data):
    """States by image id and label, as dictionaries."""
    table = data.table()
    names = data.label_names
    return {
        i: dict(zip(names, row, strict=True)) for i, row in zip(table.image_ids, table.labels.tolist(), strict=True)
    }


def cells(train=TRAIN):
    """What the lines say, by image id and column, read by the csv module."""
    lines = csv.DictReader([HEADER, *train, *VALID])
    return {line["Path"].split("/", 1)[1]: line for line in lines}


@pytest.fixture
def root(tmp_path):
    tree(tmp_path)
    return tmp_path


# States and policies


def test_the_four_states_are_those_of_the_cells(root):
    data = made(root)

    assert data.label_names == OBSERVATIONS
    expected = {i: {name: MEANING[line[name]] for name in OBSERVATIONS} for i, line in cells().items()}
    assert states_of(data) == expected


@settings(max_examples=25, deadline=None)
@given(states=st.lists(st.lists(st.sampled_from(list(MEANING)), min_size=14, max_size=14), min_size=6, max_size=6))
def test_any_states_agree_with_a_plain_loop(tmp_path_factory, states):
    train = [",".join([*row.split(",")[:5], *cell]) for row, cell in zip(TRAIN, states, strict=True)]
    root = tmp_path_factory.mktemp("states")
    tree(root, train)

    expected = {i: {name: MEANING[line[name]] for name in OBSERVATIONS} for i, line in cells(train).items()}
    assert states_of(made(root)) == expected


@pytest.mark.parametrize("uncertain", ["uncertain", "unknown", "absent", "present"])
@pytest.mark.parametrize("blank", ["unknown", "absent"])
@pytest.mark.parametrize("rule", [False, True])
def test_policies_rewrite_what_they_name(root, uncertain, blank, rule):
    words = {"uncertain": UNCERTAIN, "unknown": UNKNOWN, "absent": ABSENT, "present": PRESENT}
    expected = {}
    for image_id, line in cells().items():
        healthy = rule and line["No Finding"] == "1.0"
        expected[image_id] = {
            name: ABSENT
            if healthy and name not in {"No Finding", "Support Devices"}
            else {"": words[blank], "-1.0": words[uncertain], "1.0": PRESENT, "0.0": ABSENT}[line[name]]
            for name in OBSERVATIONS
        }

    assert states_of(made(root, uncertain=uncertain, blank=blank, no_finding_rule=rule)) == expected


def test_label_sets(root):
    everything = states_of(made(root))
    for label_set, names in {
        "competition": ["Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion"],
        "findings": sorted(set(OBSERVATIONS) - {"No Finding"}),
    }.items():
        data = made(root, label_set=label_set)

        assert list(data.label_names) == names
        assert states_of(data) == {i: {n: row[n] for n in names} for i, row in everything.items()}


def test_the_report_counts_the_tables_own_states_whatever_the_policy(root):
    report = made(root, uncertain="present", blank="absent", no_finding_rule=True).table().report

    assert report["train_states"]["Cardiomegaly"] == {"present": 2, "uncertain": 0, "absent": 2, "unknown": 2}
    assert report["train_states"]["Enlarged Cardiomediastinum"]["uncertain"] == 2
    assert report["test_unknown_or_uncertain"] == 0
    assert report["studies_whose_images_differ"] == 0


def test_views_of_one_study_that_disagree_are_counted(tmp_path):
    tree(tmp_path, [row.replace("Lateral,,,-1.0", "Lateral,,,1.0") for row in TRAIN])

    assert made(tmp_path).table().report["studies_whose_images_differ"] == 1


# Trees


@pytest.mark.parametrize("version", ["CheXpert-v1.0", "CheXpert-v1.0-small"])
def test_both_releases_and_the_folder_above(tmp_path, version):
    rows = [[row.replace("CheXpert-v1.0-small", version) for row in rows] for rows in (TRAIN, VALID)]
    tree(tmp_path / version, *rows)

    inside, above = made(tmp_path / version).table(), made(tmp_path).table()

    assert inside.image_ids == above.image_ids == sorted(image_ids([*TRAIN, *VALID]))
    assert made(tmp_path).identity == made(tmp_path / version).identity


def test_the_full_release_in_batches(tmp_path):
    batches = [f"CheXpert-v1.0 batch {number + 2} (train {number + 1})" for number in range(3)]
    tree(tmp_path, tables="CheXpert-v1.0 batch 1 (validate & csv)", batches=batches)

    table = made(tmp_path).table()

    assert table.image_ids == sorted(image_ids([*TRAIN, *VALID]))
    assert str(tmp_path / batches[2] / "patient90002") in table.sources[1]


def test_the_table_of_another_labeller(tmp_path):
    """It lies beside the batches, the official tables lie in the first of them."""
    batches = [f"CheXpert-v1.0 batch {number + 2} (train {number + 1})" for number in range(3)]
    tree(tmp_path, tables="CheXpert-v1.0 batch 1 (validate & csv)", batches=batches)
    other = [TRAIN[0].replace("PA,1.0,,0.0", "PA,1.0,,1.0"), *TRAIN[1:]]
    (tmp_path / "train_cheXbert.csv").write_text("\n".join([HEADER, *other]))

    first = image_ids(TRAIN)[0]
    assert states_of(made(tmp_path, csv="train_cheXbert.csv"))[first]["Cardiomegaly"] == PRESENT
    assert states_of(made(tmp_path))[first]["Cardiomegaly"] == ABSENT


def test_two_releases_side_by_side_are_ambiguous(tmp_path):
    for name in ("CheXpert-v1.0", "CheXpert-v1.0-small"):
        tree(tmp_path / name)

    assert "hold train.csv once, got it in CheXpert-v1.0, CheXpert-v1.0-small" in problem(tmp_path)
    assert len(made(tmp_path / "CheXpert-v1.0").table().image_ids) == 8


def test_a_patient_in_two_places(root):
    shutil.copytree(root / "train" / "patient90001", root / "batch" / "patient90001")

    assert "patient90001 lies in" in problem(root)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: b"\xef\xbb\xbf" + text.encode(),
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: text.replace("1.0", "1").replace("v1/", "v1.0/").replace("0.0", "0").encode(),
        lambda text: (
            text.replace("/", "\\").replace("Frontal\\Lateral", "Frontal/Lateral").replace("AP\\PA", "AP/PA").encode()
        ),
        lambda text: "\n".join([text.splitlines()[0], *reversed(text.splitlines()[1:])]).encode(),
    ],
    ids=["byte order mark", "CRLF", "whole numbers", "backslashes", "order"],
)
def test_however_the_table_is_written_it_reads_the_same(root, change):
    expected = made(root).table()
    path = root / "train.csv"
    path.write_bytes(change(path.read_text()))

    table = made(root).table()

    assert table.image_ids == expected.image_ids
    assert table.labels.tolist() == expected.labels.tolist()
    assert table.splits == expected.splits


# Splits, patients and views


def test_splits(root):
    table = made(root, val_fraction=0.4).table()
    of = dict(zip(table.image_ids, table.splits, strict=True))

    assert {i for i, split in of.items() if split == "test"} == set(image_ids(VALID))
    assert set(of.values()) == {"train", "val", "test"}


@settings(max_examples=25, deadline=None)
@given(
    images=st.sets(st.tuples(st.integers(1, 6), st.integers(1, 3), st.integers(1, 2)), min_size=1, max_size=30),
    share=st.floats(0, 0.5),
    seed=st.integers(0, 5),
    owners=st.sampled_from(["patient", "study", "sex"]),
)
def test_patients_and_studies_never_cross_splits(tmp_path_factory, images, share, seed, owners):
    root = tmp_path_factory.mktemp("chexpert")
    rows = [
        f"CheXpert-v1.0-small/train/patient9000{p}/study{s}/view{v}_frontal.jpg,Male,41,Frontal,PA{',' * 14}"
        for p, s, v in sorted(images)
    ]
    tree(root, rows)

    table = made(root, val_fraction=share, seed=seed, owners=owners).table()

    sides = {}
    for image_id, side in zip(table.image_ids, table.splits, strict=True):
        sides.setdefault(image_id.split("/")[1], set()).add(side)
    assert all(len(side) == 1 for side in sides.values())
    assert len(table.splits) == len(images) + len(VALID)


@pytest.mark.parametrize(("owners", "num_owners"), [("patient", 6), ("study", 7), ("view", 4), ("sex", 3)])
def test_natural_clients(root, owners, num_owners):
    table = made(root, owners=owners).table()

    assert len(table.owner_names) == num_owners
    if owners == "study":
        assert table.owner_names[0] == "patient90001/study3"
        assert table.owners[1] == table.owners[2]


@pytest.mark.parametrize(("views", "kept"), [("all", 8), ("frontal", 7), ("lateral", 1), ("AP", 4), ("PA", 2)])
def test_views(root, views, kept):
    table = made(root, views=views).table() if views != "lateral" else made(root, views=views, val_fraction=0).table()

    assert len(table.image_ids) == kept
    assert table.report["left_out"]["other_view"] == 8 - kept


def test_the_first_image_of_each_patient(root):
    ids = made(root, unique_patients=True).table().image_ids

    assert [image_id.split("/")[1] for image_id in ids] == [f"patient9000{p}" for p in range(1, 5)] + [
        "patient94541",
        "patient94542",
    ]
    assert "train/patient90004/study1/view1_frontal.jpg" in ids


def shot(patient, study, view=1, side="train", kind="frontal"):
    about = "Frontal,PA" if kind == "frontal" else "Lateral,"
    place = f"CheXpert-v1.0-small/{side}/patient{patient}/study{study}/view{view}_{kind}.jpg"
    return f"{place},Male,41,{about}{',' * 14}"


def test_the_first_image_is_that_of_the_lowest_number_not_of_the_lowest_text(tmp_path):
    """As texts, study10 comes before study2 and view10 before view9."""
    tree(tmp_path, [shot(90001, 10), shot(90001, 2), shot(90002, 3, view=10), shot(90002, 3, view=9)])

    ids = made(tmp_path, unique_patients=True).table().image_ids

    assert [i for i in ids if i.startswith("train/")] == [
        "train/patient90001/study2/view1_frontal.jpg",
        "train/patient90002/study3/view9_frontal.jpg",
    ]


def test_the_first_image_is_chosen_among_those_that_are_there(tmp_path):
    rows = [shot(90001, 1), shot(90001, 2), shot(90001, 11), shot(90002, 1), shot(90003, 1), shot(90003, 2)]
    tree(tmp_path, rows)
    for number in (0, 3):  # the first of two patients; the second patient has no other
        (tmp_path / image_ids(rows)[number]).unlink()

    table = made(tmp_path, unique_patients=True, missing="leave_out").table()

    assert [i for i in table.image_ids if i.startswith("train/")] == [
        "train/patient90001/study2/view1_frontal.jpg",
        "train/patient90003/study1/view1_frontal.jpg",
    ]
    assert table.report["left_out"] == {"other_view": 0, "no_file": 2, "later_image_of_patient": 2}
    assert "no image 'train/patient90001/study1/view1_frontal.jpg'" in problem(tmp_path, unique_patients=True)


def test_a_patient_in_both_tables_is_told_though_only_its_first_image_is_kept(tmp_path):
    tree(tmp_path, [shot(90001, 1), shot(90002, 1)], [shot(90001, 2, side="valid")])

    assert "patient90001 has images in train.csv and in valid.csv" in problem(tmp_path, unique_patients=True)


# Faults


def test_everything_wrong_is_told_at_once(root):
    path = root / "train.csv"
    more = [
        f"CheXpert-v1.0-small/train/patient90005/study1/view1_frontal.jpg,Male,41,Frontal,PA,2.0,u{',' * 12}",
        f"CheXpert-v1.0-small/patient90005/study1/view1_frontal.jpg,Male,41,Frontal,PA{',' * 14}",
        TRAIN[0],
        f"CheXpert-v1.0-small/train/patient90006/study1/view1_frontal.jpg,Male,41,Frontal,PA{',' * 14}",
    ]
    path.write_text(path.read_text() + "\n".join(more) + "\n")
    (root / "valid.csv").write_text("\n".join([HEADER, *VALID, TRAIN[4].replace("study1", "study9")]))
    (root / image_ids(TRAIN)[5]).unlink()

    message = problem(root)

    for line in (
        "train.csv line 8: '2.0' in column 'No Finding'; 'u' in column 'Enlarged Cardiomediastinum'",
        "train.csv line 9: path 'CheXpert-v1.0-small/patient90005/study1/view1_frontal.jpg', which does not end in",
        "train.csv line 10: 'CheXpert-v1.0-small/train/patient90001/study3/view1_frontal.jpg' again",
        "patient90004 has images in train.csv and in valid.csv",
        "no image 'train/patient90004/study2/view1_frontal.jpg'",
        "no image 'train/patient90006/study1/view1_frontal.jpg'",
    ):
        assert line in message
    assert "got 7 problems" in message  # and the misplaced study 9 has no file


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("Frontal,PA,1.0", "Frontal,PA,,1.0", "line 2: 20 cells, where the header names 19"),
        ("Frontal,PA,1.0", "Frontal,1.0", "line 2: 18 cells, where the header names 19"),
        ("59,Lateral,", "59,Oblique,", "line 4: 'Oblique' in column 'Frontal/Lateral'"),
        ("59,Lateral,", "59,Lateral,AP", "line 4: 'AP' in column 'AP/PA'"),
        ("Frontal,LL", "Frontal,XX", "line 5: 'XX' in column 'AP/PA'"),
        ("Frontal,LL", "Frontal,", "line 5: '' in column 'AP/PA'"),
        ("Unknown,0", "Other,0", "line 5: 'Other' in column 'Sex'"),
        (",30,", ",300,", "line 6: '300' in column 'Age'"),
        (",30,", ",-3,", "line 6: '-3' in column 'Age'"),
    ],
)
def test_what_a_column_cannot_say(root, before, after, message):
    text = (root / "train.csv").read_text()
    assert before in text
    (root / "train.csv").write_text(text.replace(before, after, 1))

    assert message in problem(root)


def test_capital_letters_do_not_matter(root):
    expected = made(root, owners="view").table()
    text = (root / "train.csv").read_text()
    (root / "train.csv").write_text(text.replace("Male,", "male,").replace(",Frontal,PA", ",frontal,pa"))

    assert made(root, owners="view").table().owners.tolist() == expected.owners.tolist()
    assert made(root, owners="sex").table().owner_names == ["Female", "Male", "Unknown"]


def test_faults_of_all_files_are_told_at_once(root):
    (root / "train.csv").write_text(HEADER + "\n")
    (root / "valid.csv").write_bytes(b"\xff")

    message = problem(root)

    assert "train.csv to hold images below its header, got none" in message
    assert "valid.csv to be text in UTF-8, got byte 0xff on line 1" in message


def test_missing_images_can_be_left_out(root):
    shutil.rmtree(root / "train" / "patient90002")

    table = made(root, missing="leave_out").table()

    assert len(table.image_ids) == 6
    assert table.report["left_out"]["no_file"] == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "train.csv").unlink(), "hold train.csv once, got none"),
        (lambda root: (root / "valid.csv").unlink(), "hold valid.csv once, got none"),
        (lambda root: (root / "train.csv").write_text("Path,Sex\n"), "'Age' 0 times"),
        (
            lambda root: (root / "train.csv").write_text(HEADER.replace("Edema", "Oedema") + "\n"),
            "'Edema' 0 times. Did you mean 'Oedema'?",
        ),
    ],
)
def test_broken_downloads_are_explained(root, change, message):
    change(root)

    assert message in problem(root)


def test_it_becomes_a_corpus_that_follows_its_options(root, tmp_path_factory):
    corpus = open_corpus(made(root), home=tmp_path_factory.mktemp("home"))
    row = corpus.image_ids.index("train/patient90002/study7/view1_frontal.jpg")

    assert corpus.labels.take(np.array([row]))[0].tolist() == [-1, -2, 1, -1, -1, 1, -1, -2, 0, -1, 1, -1, -1, 1]
    identities = [
        made(root, **options).identity
        for options in ({}, {"uncertain": "present"}, {"blank": "absent"}, {"no_finding_rule": True}, {"seed": 1})
    ]
    assert all(identities[0] != other for other in identities[1:])


def test_pixels(root):
    data = made(root, image_size=32, resize="crop", channels=1)
    with Image.open(root / image_ids(TRAIN)[0]) as picture:
        grey = np.asarray(picture.convert("L"))

    # 39 x 32 pixels: 3.5 rows are cut above and below.
    assert abs(int(data.image(0).mean()) - int(grey[4:35].mean())) <= 2
    assert made(root).table().report["modes"] == {"L": 8}
