import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmlic.corpus import open_corpus
from fedmlic.datasets.mirflickr import COUNTS, RELEVANT_COUNTS, mirflickr, photographer
from fedmlic.errors import InputError
from fedmlic.images import decode
from fedmlic.labels import ABSENT, PRESENT, UNCERTAIN

FIXTURE = runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "mirflickr.py"))
FOUND, NUMBERS, OWNERS = (FIXTURE[name] for name in ("FOUND", "NUMBERS", "OWNERS"))


@pytest.fixture
def root(tmp_path):
    FIXTURE["write"](tmp_path)
    return tmp_path


def made(root, **options):
    return mirflickr(root=str(root), image_size=8, **{"val_fraction": 0, **options})


def problem(root, **options):
    with pytest.raises(InputError) as caught:
        made(root, **options).table()
    return str(caught.value)


def state(data, number, name):
    table = data.table()
    return table.labels[table.image_ids.index(f"im{number:05d}"), data.label_names.index(name)]


def test_38_labels_are_what_the_files_list(root):
    data = made(root, labels=38)
    table = data.table()

    assert len(data.label_names) == 38
    for row, image_id in enumerate(table.image_ids):
        for column, name in enumerate(data.label_names):
            assert table.labels[row, column] == (int(image_id[2:]) in FOUND.get(name, []))
    assert sorted(table.image_ids) == [f"im{number:05d}" for number in NUMBERS]
    assert data.parents[data.label_names.index("baby_r1")] == "baby"
    assert data.parents[data.label_names.index("sky")] == "sky"


def test_three_readings_of_what_is_annotated_twice(root):
    potential, relevant, graded = (made(root, annotations=how) for how in ("potential", "relevant", "graded"))

    assert potential.label_names == relevant.label_names == graded.label_names == tuple(sorted(COUNTS))
    assert [state(potential, n, "baby") for n in (45, 221, 1)] == [PRESENT, PRESENT, ABSENT]
    assert [state(relevant, n, "baby") for n in (45, 221, 1)] == [ABSENT, PRESENT, ABSENT]
    assert [state(graded, n, "baby") for n in (45, 221, 1)] == [UNCERTAIN, PRESENT, ABSENT]
    assert state(relevant, 2, "sky") == state(graded, 2, "sky") == PRESENT
    assert "Use labels=24" in problem(root, labels=38, annotations="graded")


def test_the_splits_of_the_field(root):
    def test_numbers(**options):
        table = made(root, **options).table()
        return {int(i[2:]) for i, split in zip(table.image_ids, table.splits, strict=True) if split == "test"}

    assert test_numbers() == {2, 4, 1030, 25000}
    assert test_numbers(split="first_15000") == {15001, 25000}
    assert len(test_numbers(split="random", test_fraction=0.3)) in {2, 3, 4}


@pytest.mark.parametrize("seed", range(5))
def test_random_splits_keep_a_photographer_on_one_side(root, seed):
    table = made(root, split="random", val_fraction=0.3, seed=seed).table()

    for owner in range(len(table.owner_names)):
        assert len({table.splits[row] for row in np.flatnonzero(table.owners == owner)}) == 1


def test_photographers_own_images(root):
    table = made(root).table()
    named = {
        int(image_id[2:]): table.owner_names[owner]
        for image_id, owner in zip(table.image_ids, table.owners, strict=True)
        if owner >= 0
    }

    assert named == OWNERS
    assert table.report["without_photographer"] == 1
    assert "license25000.txt: no photographer" in problem(root, owners="photographer")
    assert (made(root, owners="none").table().owners == -1).all()
    shutil.rmtree(root / "mirflickr" / "meta")
    assert (made(root).table().owners == -1).all()


@pytest.mark.parametrize(
    ("text", "who"),
    [
        ("http://www.flickr.com/photos/12345678@N00/99/", "12345678@N00"),
        ("https://flickr.com/people/jane/", "jane"),
        ("Title: x\nPicture owner: Jane Doe \n", "Jane Doe"),
        ("Photographer:\nJane\n", "Jane"),
        ("License: by-nc-sa\n", ""),
        ("", ""),
    ],
)
def test_who_a_licence_names(text, who):
    assert photographer(text) == who


@given(st.text(max_size=60))
def test_any_text_is_a_licence(text):
    assert isinstance(photographer(text), str)


def test_rarely_tagged_images_are_dropped_if_so_told(root):
    table = made(root, min_tag_count=5).table()

    assert sorted(int(i[2:]) for i in table.image_ids) == sorted(NUMBERS[1::2])
    assert table.report["untagged_dropped"] == 5
    (root / "mirflickr" / "meta" / "tags" / "tags45.txt").unlink()
    assert "tags45.txt: no such file" in problem(root, min_tag_count=5)


def test_unlabelled_images(root):
    assert made(root).table().report["unlabelled"] == 1
    assert "im00004" not in made(root, drop_unlabelled=True).table().image_ids


def test_pixels_grey_ones_too(root):
    data = made(root)
    for row, image_id in enumerate(data.table().image_ids):
        path = root / "mirflickr" / f"im{int(image_id[2:])}.jpg"
        assert (data.image(row) == decode(path, 8, 3, "squash")).all()


def test_archives_unpacked_in_one_folder(root):
    for folder in ("annotations", "mirflickr"):
        for path in (root / folder).iterdir():
            shutil.move(path, root)
        (root / folder).rmdir()

    assert len(made(root).table().image_ids) == len(NUMBERS)


def test_lines_in_any_order_blank_and_with_windows_ends(root):
    before = made(root).table()
    (root / "annotations" / "baby.txt").write_bytes(b"1030\r\n221\r\n\r\n45\r\n45")

    assert (made(root).table().labels == before.labels).all()


def test_wrong_annotations_are_listed_together(root):
    folder = root / "annotations"
    (folder / "baby_r1.txt").write_text("221\n7\n")
    (folder / "sky.txt").write_text("2\nim3\n0\n")
    (folder / "water.txt").unlink()

    text = problem(root)

    assert "baby_r1.txt names [7], which baby.txt does not" in text
    assert "sky.txt, line 2: 'im3' is no image number" in text
    assert "sky.txt, line 3: '0' is no image number" in text
    assert "water.txt: no such file" in text


def test_relevant_files_are_needed_only_where_they_are_used(root):
    before = made(root).table().labels
    for path in (root / "annotations").glob("*_r1.txt"):
        path.unlink()

    assert (made(root).table().labels == before).all()
    assert "14 problems" in problem(root, labels=38)
    assert "14 problems" in problem(root, annotations="graded")


def test_a_relevant_image_with_an_empty_potential_file(root):
    (root / "annotations" / "baby.txt").write_text("")

    assert "baby_r1.txt names [221], which baby.txt does not" in problem(root)


def test_missing_and_empty_images(root):
    (root / "mirflickr" / "im45.jpg").unlink()
    (root / "mirflickr" / "im7.jpg").write_bytes(b"")

    text = problem(root)
    table = made(root, missing="drop").table()

    assert "im45.jpg: no such file" in text
    assert "im7.jpg: empty file" in text
    assert table.report["missing_dropped"] == 2
    assert len(table.image_ids) == len(NUMBERS) - 2


def test_a_truncated_image_is_named_when_the_corpus_is_built(root, tmp_path_factory):
    image = root / "mirflickr" / "im1.jpg"
    image.write_bytes(image.read_bytes()[:-200])

    with pytest.raises(InputError, match=r"im1\.jpg"):
        open_corpus(made(root), home=tmp_path_factory.mktemp("home"))


def test_faults_of_all_files_are_told_at_once(root):
    (root / "annotations" / "sky.txt").write_text("2\nx\n" + "9" * 5000 + "\n")
    (root / "annotations" / "water.txt").write_bytes(b"\xff")
    (root / "mirflickr" / "im2.jpg").unlink()
    (root / "mirflickr" / "meta" / "license" / "license4.txt").unlink()
    (root / "mirflickr" / "meta" / "tags" / "tags7.txt").unlink()

    with pytest.raises(InputError) as caught:
        made(root, owners="photographer", min_tag_count=1)
    message = "\n".join(caught.value.problems)

    for line in ("sky.txt, line 2: 'x'", "sky.txt, line 3: '999", "water.txt to be text in UTF-8", "im2.jpg: no such",
                 "license4.txt: no such", "tags7.txt: no such"):  # fmt: skip
        assert line in message


def test_an_empty_folder(tmp_path):
    assert "Expected the folder of images" in problem(tmp_path)


def test_relevant_counts_are_below_potential_ones():
    assert len(COUNTS) + len(RELEVANT_COUNTS) == 38
    assert all(count < COUNTS[name] for name, count in RELEVANT_COUNTS.items())
