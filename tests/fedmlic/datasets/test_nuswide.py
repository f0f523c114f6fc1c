import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fedmlic.corpus import open_corpus
from fedmlic.datasets.nuswide import COUNTS, _label_column, nuswide
from fedmlic.errors import InputError
from fedmlic.images import decode

FIXTURE = runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "nuswide.py"))
IMAGES = {name.replace("\\", "/"): about for name, about in FIXTURE["IMAGES"].items()}


@pytest.fixture
def root(tmp_path):
    FIXTURE["write"](tmp_path)
    return tmp_path


def made(root, **options):
    return nuswide(root=str(root), image_size=8, **{"val_fraction": 0, **options})


def problem(root, **options):
    with pytest.raises(InputError) as caught:
        made(root, **options).table()
    return str(caught.value)


def rows_of(data):
    """Image id -> (split, owner, names)."""
    table = data.table()
    return {
        image_id: (
            table.splits[row],
            table.owner_names[table.owners[row]],
            sorted(data.label_names[column] for column in np.flatnonzero(table.labels[row])),
        )
        for row, image_id in enumerate(table.image_ids)
    }


def expected():
    """By a plain loop over the fixture."""
    return {name: (split, name.split("/")[0], sorted(labels)) for name, (split, labels) in IMAGES.items()}


def test_it_is_read_as_written(root):
    data = made(root)

    assert rows_of(data) == expected()
    assert list(data.label_names) == FIXTURE["CONCEPTS"] == sorted(COUNTS)
    for row, name in enumerate(data.table().image_ids):
        assert (data.image(row) == decode(root / "Flickr" / name, 8, 3, "squash")).all()


def test_both_kinds_of_label_files_say_the_same(root):
    assert rows_of(made(root, label_files="train_test")) == expected()
    shutil.rmtree(root / "Groundtruth" / "AllLabels")
    assert rows_of(made(root)) == expected()


def test_a_photograph_in_two_folders_is_two_images_on_one_side(root):
    assert made(root).table().report["photos_in_two_folders"] == 1
    for seed in range(12):
        table = made(root, val_fraction=0.4, seed=seed).table()
        split = dict(zip(table.image_ids, table.splits, strict=True))
        assert split["actor/0001_9000000001.jpg"] == split["zoo/0003_9000000001.jpg"]
        assert table.splits.count("val") in {2, 3}
        assert table.splits.count("test") == 2


def test_images_without_a_label_are_kept_unless_told(root):
    assert made(root).table().report["unlabelled"] == 1
    table = made(root, drop_unlabelled=True).table()

    assert "beach/0004_9000000004.jpg" not in table.image_ids
    assert table.report["unlabelled_dropped"] == 1
    assert table.labels.any(axis=1).all()


def test_chosen_and_commonest_concepts(root):
    data = made(root, concepts=["zebra", "sky"])
    assert data.label_names == ("zebra", "sky")
    assert data.table().labels.sum(axis=0).tolist() == [3, 2]

    assert made(root, top=2).label_names == ("sky", "zebra")
    assert made(root, top=2, drop_unlabelled=True).table().labels.shape == (5, 2)
    assert "Did you mean 'zebra'?" in problem(root, concepts=["zebrra"])
    assert "named twice" in problem(root, concepts=["sky", "sky"])
    assert "got both" in problem(root, concepts=["sky"], top=2)


def test_the_arrays_of_cole(root):
    for part, split in (("train", "train"), ("val", "test")):
        names = [name for name, (own, _) in IMAGES.items() if own == split]
        labels = [[int(c in IMAGES[name][1]) for c in FIXTURE["CONCEPTS"]] for name in names]
        np.save(root / f"formatted_{part}_images.npy", np.array(names))
        np.save(root / f"formatted_{part}_labels.npy", np.array(labels, dtype=np.int64))

    assert rows_of(made(root, protocol="cole")) == expected()
    np.save(root / "formatted_val_labels.npy", np.full((2, 81), 2))
    assert "with values [2]" in problem(root, protocol="cole")
    np.save(root / "formatted_val_images.npy", np.array([{}], dtype=object))
    assert "formatted_val_images.npy, got: Object arrays cannot be loaded" in problem(root, protocol="cole")


def test_nobody_owns_an_image_if_so_told(root):
    table = made(root, owners="none").table()

    assert (table.owners == -1).all()
    assert table.owner_names == []


def test_owners_are_numbered_without_gaps_after_dropping(root):
    for name in IMAGES:
        if name.startswith("beach"):
            (root / "Flickr" / name).unlink()
    table = made(root, missing="drop").table()

    assert table.owner_names == ["actor", "airport", "zoo"]
    assert np.unique(table.owners).tolist() == [0, 1, 2]
    assert table.report["missing_dropped"] == 2


def test_photographs_that_flickr_no_longer_has(root):
    Image.new("P", (10, 10)).save(root / "Flickr" / "zoo" / "0007_9000000007.jpg", format="GIF")
    Image.new("RGB", (10, 10)).save(root / "Flickr" / "actor" / "0002_9000000002.jpg", format="PNG")

    text = problem(root)
    table = made(root, missing="drop").table()

    assert "2 problems" in text
    assert "zoo/0007_9000000007.jpg: Flickr's picture for a photograph that is not available" in text
    assert table.report["placeholders_dropped"] == 2
    assert table.report["missing_dropped"] == 0
    assert len(table.image_ids) == len(IMAGES) - 2


def test_missing_and_empty_images_are_listed_together(root):
    (root / "Flickr" / "zoo" / "0007_9000000007.jpg").unlink()
    (root / "Flickr" / "actor" / "0001_9000000001.jpg").write_bytes(b"")

    text = problem(root)

    assert "0007_9000000007.jpg: no such file" in text
    assert "0001_9000000001.jpg: empty file" in text


def test_a_truncated_image_is_named_when_the_corpus_is_built(root, tmp_path_factory):
    image = root / "Flickr" / "zoo" / "0007_9000000007.jpg"
    image.write_bytes(image.read_bytes()[:-300])

    with pytest.raises(InputError, match="0007_9000000007"):
        open_corpus(made(root), home=tmp_path_factory.mktemp("home"))


def test_label_files_of_another_length_or_content_are_listed_together(root):
    folder = root / "Groundtruth" / "AllLabels"
    (folder / "Labels_sky.txt").write_text("1\n0\n")
    (folder / "Labels_bear.txt").write_text("1\n" * 7 + "2\n")
    (folder / "Labels_cat.txt").write_text("10\n" * 4)
    (folder / "Labels_cow.txt").unlink()

    text = problem(root)

    assert "Labels_sky.txt: 2 labels for 8 images" in text
    assert "Labels_bear.txt: it holds more than single 0 and 1" in text
    assert "Labels_cat.txt: it holds more than single 0 and 1" in text
    assert "Labels_cow.txt: no such file" in text


@settings(max_examples=40, deadline=None)
@given(st.lists(st.booleans(), max_size=20), st.sampled_from(["\n", "\r\n", " \n", "\n\n", "\t\n"]))
def test_columns_come_back(tmp_path_factory, column, end):
    path = tmp_path_factory.mktemp("labels") / "Labels_x.txt"
    path.write_bytes(end.join(str(int(value)) for value in column).encode())

    assert _label_column(path, len(column)).tolist() == column


def test_lists_that_contradict_each_other(root):
    lists = root / "ImageList"
    text = (lists / "TrainImagelist.txt").read_text()
    (lists / "TestImagelist.txt").write_text(text.splitlines()[0] + "\nnew\\1_2.jpg\n")

    found = problem(root)

    assert "actor/0001_9000000001.jpg is in both" in found
    assert "new/1_2.jpg is in no line of Imagelist.txt" in found
    assert "zoo/0005_9000000005.jpg is in neither" in found
    (lists / "TrainImagelist.txt").write_text(text + text)
    assert "actor/0001_9000000001.jpg appears 2 times" in problem(root)


def test_the_list_of_concepts_is_the_81_of_the_data_set(root):
    path = root / "ConceptsList" / "Concepts81.txt"
    names = path.read_text().split()
    path.write_text("\n".join([*names[:79], "zebbra", names[0]]))

    message = problem(root)

    assert "line 80: 'zebbra'. Did you mean 'zebra'?" in message
    assert f"line 81: '{names[0]}', which stands there 2 times" in message
    assert "got no line 'zebra'" in message


def test_faults_of_all_files_are_told_at_once(root):
    (root / "ImageList" / "TrainImagelist.txt").write_bytes(b"\xff")
    (root / "Groundtruth" / "AllLabels" / "Labels_dog.txt").write_text("2\n")
    (root / "Groundtruth" / "AllLabels" / "Labels_sky.txt").unlink()
    with (root / "ImageList" / "Imagelist.txt").open("a") as file:
        file.write("zoo\\0007_9000000007.jpg\n")

    with pytest.raises(InputError) as caught:
        made(root)
    message = "\n".join(caught.value.problems)

    assert "TrainImagelist.txt to be text in UTF-8, got byte 0xff on line 1" in message
    assert "Labels_dog.txt: it holds more than single 0 and 1" in message
    assert "Labels_cat.txt: 8 labels for 9 images" in message
    assert "Labels_sky.txt: no such file" in message
    assert "zoo/0007_9000000007.jpg appears 2 times" in message


def test_missing_lists(root):
    shutil.rmtree(root / "ConceptsList")
    assert "Expected the list of concepts" in problem(root)


def test_published_counts_add_up():
    assert len(COUNTS) == 81
    assert sum(COUNTS.values()) == 503848
