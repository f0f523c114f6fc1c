import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest

from fedmlic.corpus import open_corpus
from fedmlic.dataset import NOT_VISIBLE
from fedmlic.datasets.cub import CLASS_ATTRIBUTES, cub
from fedmlic.errors import InputError
from fedmlic.images import decode
from fedmlic.labels import ABSENT, PRESENT, UNCERTAIN, UNKNOWN

FIXTURE = runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "cub.py"))
IMAGES, SPECIES = FIXTURE["IMAGES"], FIXTURE["SPECIES"]
ENTRIES = FIXTURE["entries"]()
LABELS = "CUB_200_2011/attributes/image_attribute_labels.txt"


@pytest.fixture
def root(tmp_path):
    FIXTURE["write"](tmp_path, 312)
    return tmp_path


def made(root, **options):
    return cub(root=str(root), image_size=8, **{"val_fraction": 0, **options})


def problem(root, **options):
    with pytest.raises(InputError) as caught:
        made(root, **options).table()
    return str(caught.value)


def cells(data):
    """(image number, attribute number) -> state."""
    table = data.table()
    numbers = {name: place for place, (name, _, _) in enumerate(IMAGES, 1)}
    return {
        (numbers[image_id], column + 1): int(table.labels[row, column])
        for row, image_id in enumerate(table.image_ids)
        for column in range(table.labels.shape[1])
    }


def test_312_attributes_with_certainty(root):
    meaning = {
        (1, 4): PRESENT, (1, 3): PRESENT, (0, 4): ABSENT, (0, 3): ABSENT,
        (1, 2): UNCERTAIN, (0, 2): UNCERTAIN, (1, 1): UNKNOWN, (0, 1): UNKNOWN,
    }  # fmt: skip
    data = made(root)

    assert cells(data) == {(image, attribute): meaning[p, c] for image, attribute, p, c in ENTRIES}
    assert data.label_names == tuple(FIXTURE["attributes"]())
    assert len(set(data.parents)) == 28
    assert data.parents[0] == "has_part_00"
    assert data.label_ids[:2] == ("1", "2")


def test_certainty_can_be_ignored_but_what_was_not_visible_stays_flagged(root):
    data = made(root, certainty="ignore")
    table = data.table()
    numbers = {name: place for place, (name, _, _) in enumerate(IMAGES, 1)}
    flagged = {
        (numbers[table.image_ids[row]], column + 1)
        for row, column in zip(table.flags.row.tolist(), table.flags.label.tolist(), strict=True)
    }

    assert cells(data) == {(image, attribute): p for image, attribute, p, _ in ENTRIES}
    assert flagged == {(image, attribute) for image, attribute, _, c in ENTRIES if c == 1}
    assert set(table.flags.bits.tolist()) == {NOT_VISIBLE}
    assert len(made(root).table().flags.row) == len(flagged)


def votes(species, attribute):
    """By a plain loop: does the majority of a species' training images have it?"""
    yes = no = 0
    for image, own, present, certainty in ENTRIES:
        _, kind, train = IMAGES[image - 1]
        if own == attribute and kind == species and train and (present or certainty != 1):
            yes += present
            no += not present
    return int(yes >= no)


def test_112_attributes_have_one_value_per_species(root):
    data = made(root, labels="class_attributes")
    table = data.table()

    assert len(data.label_names) == 112
    for row, image_id in enumerate(table.image_ids):
        species = SPECIES.index(image_id.split("/")[0]) + 1
        assert table.labels[row].tolist() == [votes(species, place + 1) for place in CLASS_ATTRIBUTES]
    assert table.flags is None
    assert data.label_names[0] == FIXTURE["attributes"]()[1]
    assert data.label_ids[0] == "2"


def test_c_tran_adds_the_species(root):
    data = made(root, labels="ctran")
    table, attributes = data.table(), made(root, labels="class_attributes").table()

    assert data.label_names[112:] == tuple(SPECIES)
    assert (table.labels[:, :112] == attributes.labels).all()
    for row, image_id in enumerate(table.image_ids):
        assert table.labels[row, 112:].tolist() == [int(image_id.startswith(name)) for name in SPECIES]
    assert set(data.parents[112:]) == {"species"}


def test_other_label_spaces_need_312_attributes(tmp_path):
    FIXTURE["write"](tmp_path, 3)

    assert made(tmp_path).table().labels.shape == (7, 3)
    assert "got 3" in problem(tmp_path, labels="ctran")


def test_the_official_split(root):
    table = made(root).table()
    official = {name: "train" if train else "test" for name, _, train in IMAGES}

    assert dict(zip(table.image_ids, table.splits, strict=True)) == official
    assert made(root, val_fraction=0.4).table().splits.count("val") == 2
    assert made(root, val_fraction=0.4).table().splits.count("test") == 2


def test_species_can_be_owners(root):
    table = made(root, owners="species").table()

    assert table.owner_names == SPECIES
    assert all(table.owner_names[o] == i.split("/")[0] for o, i in zip(table.owners, table.image_ids, strict=True))
    assert (made(root).table().owners == -1).all()


def test_pixels(root):
    data = made(root)
    for row, image_id in enumerate(data.table().image_ids):
        assert (data.image(row) == decode(root / "CUB_200_2011" / "images" / image_id, 8, 3, "squash")).all()


@pytest.mark.parametrize("levels", [0, 2])
def test_the_folder_may_be_nested_more_or_less(root, tmp_path_factory, levels):
    top = tmp_path_factory.mktemp("other")
    if levels == 0:  # root is the folder of images.txt
        target = top
        shutil.copytree(root / "CUB_200_2011", target, dirs_exist_ok=True)
        shutil.copy(root / "attributes.txt", target / "attributes")
    else:  # as the scripts of Cole et al. expect it
        shutil.copytree(root, top / "CUB_200_2011")
    assert cells(made(top)) == cells(made(root))


def test_root_may_be_the_inner_folder(root):
    assert cells(made(root / "CUB_200_2011")) == cells(made(root))


def test_lines_in_any_order_and_with_windows_ends(root):
    before = cells(made(root))
    lines = (root / LABELS).read_text().splitlines()
    (root / LABELS).write_bytes("\r\n".join(lines[::-1]).encode())

    assert cells(made(root)) == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lines: lines[:-1], "image 7, attribute 312: 0 lines"),
        (lambda lines: [*lines, lines[0]], "image 1, attribute 1: 2 lines"),
        (lambda lines: [*lines, "9 1 0 3 1.0"], "[9, 1, 0, 3]"),
        (lambda lines: [*lines, "1 313 0 3 1.0"], "[1, 313, 0, 3]"),
        (lambda lines: ["1 1 2 3 1.0", *lines[1:]], "[1, 1, 2, 3]"),
        (lambda lines: ["1 1 0 5 1.0", *lines[1:]], "[1, 1, 0, 5]"),
        (lambda lines: ["1 1 0", *lines[1:]], "line 1: '1 1 0'"),
        (lambda lines: ["1 1 x 3 1", *lines[1:]], "line 1: '1 1 x 3 1'"),
        (lambda lines: [*lines[:5], "1 6", *lines[6:]], "line 6: '1 6'"),
        (lambda _: [], "0 lines"),
    ],
)
def test_wrong_lines_of_attributes(root, change, said):
    lines = (root / LABELS).read_text().splitlines()
    (root / LABELS).write_text("\n".join(change(lines)))

    assert said in problem(root)


def test_a_line_with_many_fields_too_many_counts_its_first_four(root):
    lines = (root / LABELS).read_text().splitlines()
    lines[-1] += " 0 0 0"
    before = cells(made(root))
    (root / LABELS).write_text("\n".join(lines))

    assert cells(made(root)) == before


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("images.txt", "1 a.jpg\n1 b.jpg\n", "line 2: '1 b.jpg'"),
        ("images.txt", "a.jpg\n", "line 1: 'a.jpg'"),
        ("image_class_labels.txt", "1 1\n2 9\n", "image 2: 9"),
        ("train_test_split.txt", "1 1\n2 1\n8 0\n", "image 8 is not in images.txt"),
        ("train_test_split.txt", "1 1\n", "image 2: nothing"),
    ],
)
def test_wrong_lists(root, file, text, said):
    (root / "CUB_200_2011" / file).write_text(text)

    assert said in problem(root)


def test_missing_and_damaged_images(root, tmp_path_factory):
    folder = root / "CUB_200_2011" / "images"
    first = folder / IMAGES[0][0]
    whole = first.read_bytes()
    first.write_bytes(whole[:-300])
    with pytest.raises(InputError, match="Made_Up_Bird_0001_18"):
        open_corpus(made(root), home=tmp_path_factory.mktemp("home"))
    first.unlink()
    (folder / IMAGES[3][0]).write_bytes(b"")

    assert "2 problems" in problem(root)
    (root / LABELS).unlink()
    assert "got no such file" in problem(root)


def test_faults_of_all_files_are_told_at_once(root):
    base = root / "CUB_200_2011"
    for file, before, after in (
        ("images.txt", "2 001", "x 001"),
        ("train_test_split.txt", "3 0", "3 7"),
        ("image_class_labels.txt", "4 2", "4 " + "9" * 5000),
        ("attributes/image_attribute_labels.txt", "1 1 ", "1 99999999999999999999 "),
    ):
        text = (base / file).read_text()
        assert before in text
        (base / file).write_text(text.replace(before, after, 1))
    (base / "classes.txt").write_bytes(b"\xff")
    (base / "images" / IMAGES[6][0]).unlink()

    with pytest.raises(InputError) as caught:
        made(root)
    message = "\n".join(caught.value.problems)

    for line in ("images.txt to be a number from 1 and a text, each number once, got line 2", "image 3: 7",
                 "image 4: 999", "classes.txt to be text in UTF-8", "begin with four whole numbers, got line 1",
                 f"{IMAGES[6][0]}: no such file"):  # fmt: skip
        assert line in message


def test_published_places():
    assert len(set(CLASS_ATTRIBUTES)) == 112
    assert list(CLASS_ATTRIBUTES) == sorted(CLASS_ATTRIBUTES)
    assert np.max(CLASS_ATTRIBUTES) == 311
