import importlib
import io
import json
import re
import runpy
import shutil
import struct
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fedmlic.corpus import open_corpus
from fedmlic.datasets.flair import COARSE_COUNTS, FINE_COUNTS, SPLIT_COUNTS, flair
from fedmlic.errors import InputError
from fedmlic.formats import flair_parquet, json_list, tfrecord
from fedmlic.images import decode
from fedmlic.problems import Problems

FIXTURE = runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "flair.py"))
RECORDS = FIXTURE["records"]()
USED = sorted({name for record in RECORDS for name in record["fine_grained_labels"]})
COARSE = sorted(COARSE_COUNTS)


@pytest.fixture
def root(tmp_path):
    """The downloader's layout."""
    FIXTURE["write"](tmp_path)
    return tmp_path


def made(root, **options):
    return flair(root=str(root), **{"image_size": 8, **options})


def problem(root, **options):
    with pytest.raises(InputError) as caught:
        made(root, **options).table()
    return str(caught.value)


def rewrite(root, change):
    """Change the objects of the JSON file."""
    objects = json.loads((root / "labels_and_metadata.json").read_text())
    changed = change(objects)
    (root / "labels_and_metadata.json").write_text(json.dumps(objects if changed is None else changed))


def expected_rows(kind):
    """By a plain loop: image id -> (split, user, names)."""
    field = {"coarse": "labels", "fine": "fine_grained_labels"}[kind]
    return {r["image_id"]: (r["partition"], r["user_id"], set(r[field])) for r in RECORDS}


def test_the_page_makes_a_file_of_fine_names(root, tmp_path, monkeypatch):
    """Most frequent first, in training images: written down by hand from the fixture's rows and one more."""
    page = (Path(__file__).parents[3] / "docs" / "datasets" / "flair.md").read_text(encoding="utf-8")
    [code] = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    rewrite(root, lambda objects: [*objects, objects[0] | {"image_id": "1", "fine_grained_labels": ["printed_page"]}])
    exec(code.replace("/data/flair", str(root)), {})  # noqa: S102  (the page's own lines)

    assert json.loads((tmp_path / "flair_fine.json").read_text()) == {
        "equipment": ["bag"],
        "structure": ["furniture"],
        "material": ["printed_page", "material"],
        "animal": ["terrier"],
        "food": ["soup"],
        "liquid": ["drink"],
        "celebration": [],
        "music": [],
    }


def found_rows(data):
    table = data.table()
    return {
        image_id: (
            table.splits[row],
            table.owner_names[table.owners[row]],
            {data.label_names[column] for column in np.flatnonzero(table.labels[row])},
        )
        for row, image_id in enumerate(table.image_ids)
    }


# The other layouts, written from the first as the published scripts do


def pixels_of(root, image_id):
    with Image.open(root / "small_images" / f"{image_id}.jpg") as picture:
        return np.asarray(picture)


def bytes_of(root, image_id):
    return (root / "small_images" / f"{image_id}.jpg").read_bytes()


def by_user():
    users = {}
    for record in RECORDS:
        users.setdefault(record["user_id"], []).append(record)
    return users


def counter(field):
    names = [name for record in RECORDS for name in record[field]]
    return {name: names.count(name) for name in names}


def write_parquet(root, out):
    (out / "data").mkdir(parents=True)
    for split, part in (("train", 0), ("train", 1), ("val", 0), ("test", 0)):
        rows = [r for r in RECORDS if r["partition"] == split]
        if split == "train":
            rows = rows[:2] if part == 0 else rows[2:]
        table = pa.table(
            {
                "image": pa.array(
                    [{"bytes": bytes_of(root, r["image_id"]), "path": None} for r in rows],
                    type=pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
                ),
                "image_id": [r["image_id"] for r in rows],
                "user_id": [r["user_id"] for r in rows],
                "labels": pa.array([r["labels"] for r in rows], type=pa.list_(pa.string())),
                "fine_grained_labels": pa.array([r["fine_grained_labels"] for r in rows], type=pa.list_(pa.string())),
            }
        )
        pq.write_table(table, out / "data" / f"{split}-{part:05d}-of-00002.parquet", row_group_size=1)


def write_by_user_names(root, out):
    with h5py.File(out / "flair.hdf5", "w") as file:
        for user, rows in by_user().items():
            place = f"/{rows[0]['partition']}/{user}"
            for field in ("labels", "fine_grained_labels"):
                file[f"{place}/{field}"] = np.asarray(["|".join(r[field]) for r in rows], dtype="S")
            file[f"{place}/image_ids"] = np.asarray([r["image_id"] for r in rows], dtype="S")
            file.create_dataset(f"{place}/images", data=np.stack([pixels_of(root, r["image_id"]) for r in rows]))
        file["/metadata/label_counter"] = json.dumps(counter("labels"))
        file["/metadata/fine_grained_label_counter"] = json.dumps(counter("fine_grained_labels"))


def write_by_user_sparse(root, out):
    index = {field: {n: i for i, n in enumerate(sorted(counter(field)))} for field in ("labels", "fine_grained_labels")}
    with h5py.File(out / "flair.h5", "w") as file:
        for user, rows in by_user().items():
            place = f"/{rows[0]['partition']}/{user}"
            for field, column_type in (("labels", np.uint8), ("fine_grained_labels", np.uint16)):
                entries = [(j, index[field][name]) for j, r in enumerate(rows) for name in r[field]]
                file[f"{place}/{field}_row"] = np.asarray([j for j, _ in entries], dtype=np.uint16)
                file[f"{place}/{field}_col"] = np.asarray([c for _, c in entries], dtype=column_type)
            file[f"{place}/image_ids"] = np.asarray([r["image_id"] for r in rows], dtype="S")
            file.create_dataset(f"{place}/images", data=np.stack([pixels_of(root, r["image_id"]) for r in rows]))
        file["/metadata/label_mapping"] = json.dumps(index["labels"])
        file["/metadata/fine_grained_label_mapping"] = json.dumps(index["fine_grained_labels"])


def write_central(root, out, names=("label_counter", "fine_grained_label_counter")):
    with h5py.File(out / "central.hdf5", "w") as file:
        for r in RECORDS:
            place = f"/{r['partition']}/{r['image_id']}"
            file.create_dataset(f"{place}/image", data=pixels_of(root, r["image_id"]))
            for field in ("labels", "fine_grained_labels"):
                file[f"{place}/{field}"] = "|".join(r[field])
            file[f"{place}/user_id"] = r["user_id"]
        for name, field in zip(names, ("labels", "fine_grained_labels"), strict=True):
            file[f"/metadata/{name}"] = json.dumps(counter(field))


def write_central_counts_named_mapping(root, out):
    write_central(root, out, ("label_mapping", "fine_grained_label_mapping"))


def varint(value):
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def message(number, content):
    return varint(number << 3 | 2) + varint(len(content)) + content


def crc32c(data):
    """Bit by bit, unlike the reader's table."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data):
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def tfrecord_of(features):
    """One record: byte strings, or lists of integers (packed)."""
    entries = b""
    for name, value in features.items():
        if isinstance(value, bytes):
            feature = message(1, message(1, value))
        else:
            feature = message(3, message(1, b"".join(map(varint, value))) if value else b"")
        entries += message(1, message(1, name.encode()) + message(2, feature))
    example = message(1, entries)
    length = struct.pack("<Q", len(example))
    return length + masked(length) + example + masked(example)


def write_tfrecords(root, out):
    index = {field: {n: i for i, n in enumerate(sorted(counter(field)))} for field in ("labels", "fine_grained_labels")}
    (out / "label_to_index.json").write_text(json.dumps(index, indent=4))
    for user, rows in by_user().items():
        folder = out / rows[0]["partition"]
        folder.mkdir(exist_ok=True)
        content = b"".join(
            tfrecord_of(
                {
                    "image/encoded_jpeg": bytes_of(root, r["image_id"]),
                    **{field: [index[field][name] for name in r[field]] for field in index},
                }
            )
            for r in rows
        )
        (folder / f"{user}.tfrecords").write_bytes(content)


WRITERS = {
    "parquet": write_parquet,
    "hdf5 names": write_by_user_names,
    "hdf5 sparse": write_by_user_sparse,
    "hdf5 central": write_central,
    "hdf5 central, counts called mapping": write_central_counts_named_mapping,
    "tfrecords": write_tfrecords,
}


@pytest.fixture(params=WRITERS)
def other(request, root, tmp_path_factory):
    """Another layout of the same images, with the hierarchy beside it."""
    out = tmp_path_factory.mktemp("other")
    WRITERS[request.param](root, out)
    shutil.copy(root / "label_relationship.txt", out)
    return out


# What is read


@pytest.mark.parametrize("kind", ["coarse", "fine"])
def test_the_download_is_read_as_a_plain_loop_reads_it(root, kind):
    data = made(root, labels=kind)

    assert found_rows(data) == expected_rows(kind)
    assert data.label_names == tuple(COARSE if kind == "coarse" else USED)
    table = data.table()
    assert table.report["hierarchy"] == "read"
    assert table.report["unlabelled"] == 0
    for row, image_id in enumerate(table.image_ids):
        assert (data.image(row) == decode(root / "small_images" / f"{image_id}.jpg", 8, 3, "squash")).all()


@pytest.mark.parametrize("kind", ["coarse", "fine"])
def test_every_layout_says_the_same(root, other, kind):
    # At half their size and more, JPEG files are decoded whole, as those in HDF5 were.
    first, second = (made(place, labels=kind, image_size=128) for place in (root, other))
    one, two = first.table(), second.table()

    assert first.label_names == second.label_names
    assert first.parents == second.parents
    assert one.splits == two.splits
    assert one.owner_names == two.owner_names
    assert (one.owners == two.owners).all()
    assert (one.labels == two.labels).all()
    if second.table().report["layout"] != "tfrecords":  # which keep no image ids
        assert one.image_ids == two.image_ids
    assert all((first.image(row) == second.image(row)).all() for row in range(len(one.image_ids)))


def test_fine_labels_have_coarse_parents(root):
    data = made(root, labels="fine")
    lines = dict(line.split(" -> ") for line in (root / "label_relationship.txt").read_text().splitlines())

    assert data.parents == tuple(lines[name] for name in data.label_names)
    assert "never_used" not in data.label_names
    assert made(root, labels="coarse").parents == ()


def test_rows_lie_in_stored_order(root, tmp_path_factory):
    table = made(root).table()
    corpus = open_corpus(made(root), home=tmp_path_factory.mktemp("home"))

    assert corpus.image_ids == table.image_ids


def test_shuffled_objects_give_the_same_rows(root):
    before = made(root, labels="fine").table()
    rewrite(root, lambda objects: objects[::-1])
    after = made(root, labels="fine").table()

    assert before.image_ids == after.image_ids
    assert (before.labels == after.labels).all()
    assert (before.owners == after.owners).all()


def test_fedlgt_orders_labels_as_first_seen(root):
    assert made(root, label_order="first_seen").label_names[:5] == (
        "equipment",
        "material",
        "structure",
        "animal",
        "food",
    )
    assert sorted(made(root, label_order="first_seen").label_names) == COARSE
    assert made(root, labels="fine", label_order="first_seen").label_names[:2] == ("bag", "furniture")


def test_only_the_json_knows_what_was_first_seen(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("other")
    write_parquet(root, out)

    assert "has lost that order" in problem(out, label_order="first_seen")


def test_published_counts():
    assert len(COARSE_COUNTS) == 17
    assert sum(SPLIT_COUNTS.values()) == 429078
    assert round(max(COARSE_COUNTS.values()) / min(COARSE_COUNTS.values())) == 264
    assert round(sum(COARSE_COUNTS.values()) / 429078, 3) == 2.785
    assert max(FINE_COUNTS.values()) == FINE_COUNTS["wood_processed"]


def test_raw_images(root):
    shutil.copytree(root / "small_images", root / "raw_images")

    assert (made(root, images="raw").image(0) == made(root).image(0)).all()


def test_without_the_hierarchy_there_are_no_parents(root):
    (root / "label_relationship.txt").unlink()
    data = made(root, labels="fine")

    assert data.parents == ()
    assert data.table().report["hierarchy"] == "no label_relationship.txt"


def test_windows_line_ends_and_byte_order_marks(root):
    text = (root / "label_relationship.txt").read_text().rstrip("\n")
    (root / "label_relationship.txt").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    objects = (root / "labels_and_metadata.json").read_bytes()
    (root / "labels_and_metadata.json").write_bytes(b"\xef\xbb\xbf" + objects)

    assert found_rows(made(root, labels="fine")) == expected_rows("fine")


def test_numbers_as_ids_are_texts(root):
    rewrite(root, lambda objects: [o | {"image_id": int(o["image_id"])} for o in objects])

    assert found_rows(made(root)) == expected_rows("coarse")


def test_what_decides_the_identity(root):
    before = made(root).identity
    image = root / "small_images" / "14900000001.jpg"
    image.write_bytes(image.read_bytes() + b"x")

    assert made(root).identity != before
    assert made(root, labels="fine").identity != made(root).identity


def test_another_place_is_the_same_data_set(root, tmp_path_factory):
    copy = tmp_path_factory.mktemp("copy") / "flair"
    shutil.copytree(root, copy)

    assert made(copy).identity == made(root).identity


# What is wrong


def test_a_user_in_two_partitions(root):
    rewrite(root, lambda objects: objects[1].update(partition="test"))

    assert "user 90000001@N00 is in partitions ['train', 'test']" in problem(root)


def test_a_partition_of_another_name(root):
    rewrite(root, lambda objects: objects[3].update(partition="dev"))

    assert "14900000003.jpg: partition 'dev'" in problem(root)


def test_an_image_named_twice(root):
    rewrite(root, lambda objects: [*objects, objects[0]])

    assert "image 14900000001 appears 2 times" in problem(root)


def test_missing_and_empty_images_are_listed_together(root):
    (root / "small_images" / "14900000001.jpg").unlink()
    (root / "small_images" / "14900000004.jpg").write_bytes(b"")

    text = problem(root)

    assert "14900000001.jpg: no such file" in text
    assert "14900000004.jpg: empty file" in text
    assert "2 problems" in text


def test_a_truncated_image_is_named_when_the_corpus_is_built(root, tmp_path_factory):
    image = root / "small_images" / "14900000003.jpg"
    image.write_bytes(image.read_bytes()[:-200])

    with pytest.raises(InputError, match=r"14900000003\.jpg"):
        open_corpus(made(root), home=tmp_path_factory.mktemp("home"))


def test_unknown_labels_name_the_nearest(root):
    rewrite(root, lambda objects: objects[0].update(labels=["equipmant"]))
    assert "'equipmant'. Did you mean 'equipment'?" in problem(root)

    rewrite(root, lambda objects: objects[0].update(labels=["equipment"], fine_grained_labels=["bagg"]))
    assert "'bagg'. Did you mean 'bag'?" in problem(root, labels="fine")


def test_coarse_labels_must_be_the_parents_of_fine_ones(root):
    rewrite(root, lambda objects: objects[1].update(labels=["animal", "art"]))

    assert "coarse labels ['animal', 'art'], parents of fine labels ['animal']" in problem(root)
    assert made(root, check_parents=False).table().labels.sum() == sum(len(r["labels"]) for r in RECORDS) + 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda o: o[0].pop("user_id"), "object 0: user_id is None, no text"),
        (lambda o: o[2].update(labels="food"), "object 2: labels is 'food', no list of texts"),
        (lambda o: o[2].update(labels=[3]), "object 2: labels is [3], no list of texts"),
        (lambda o: o.__setitem__(4, "x"), "object 4: it is a str, no object"),
        (lambda o: o[1].update(partition=3), "object 1: partition is 3, no text"),
    ],
)
def test_objects_of_another_form(root, change, said):
    rewrite(root, lambda objects: change(objects) and None)

    assert said in problem(root)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("bag -> equipment -> x\n", "line 1: 'bag -> equipment -> x'"),
        ("bag\n", "line 1: 'bag'"),
        ("bag -> equipmant\n", "Did you mean 'equipment'?"),
        ("bag -> art\nbag -> food\n", "line 2: 'bag' belongs to 'art' already"),
    ],
)
def test_a_wrong_hierarchy(root, lines, said):
    (root / "label_relationship.txt").write_text(lines)

    assert said in problem(root, labels="fine")


def test_repeated_and_missing_labels_are_counted(root):
    rewrite(root, lambda objects: objects[1].update(labels=["animal", "animal"]))
    rewrite(root, lambda objects: objects[2].update(labels=[]))

    report = made(root, check_parents=False).table().report

    assert report["repeated_labels"] == 1
    assert report["unlabelled"] == 1


def test_an_empty_folder_and_no_folder(tmp_path):
    assert "got nothing" in problem(tmp_path)
    assert "to be a folder" in problem(tmp_path / "no")


# Quirks of HDF5


@pytest.fixture
def hdf5(root, tmp_path_factory):
    """A function: write one HDF5 layout, let it be changed, and give its folder."""

    def write(name, change):
        out = tmp_path_factory.mktemp("hdf5")
        WRITERS[name](root, out)
        with h5py.File(next(out.iterdir()), "r+") as file:
            change(file)
        return out

    return write


def test_users_without_images_are_counted(hdf5):
    def add(file):
        for name, shape in (("images", (0, 256, 256, 3)), ("image_ids", (0,))):
            file.create_dataset(f"/train/empty@N00/{name}", shape, dtype="u1" if name == "images" else "S1")
        for name in ("labels_row", "labels_col"):
            file.create_dataset(f"/train/empty@N00/{name}", (0,), dtype="u2")

    table = made(hdf5("hdf5 sparse", add)).table()

    assert table.report["empty_users"] == 1
    assert len(table.image_ids) == len(RECORDS)


def test_sparse_labels_that_point_outside(hdf5):
    def change(file):
        file["/train/90000001@N00/labels_row"][0] = 7

    assert "/train/90000001@N00: labels_row and labels_col do not fit" in problem(hdf5("hdf5 sparse", change))


def test_a_mapping_with_gaps(hdf5):
    def change(file):
        del file["/metadata/label_mapping"]
        file["/metadata/label_mapping"] = json.dumps({"animal": 5})

    assert "without gaps" in problem(hdf5("hdf5 sparse", change))


def test_a_user_without_labels(hdf5):
    def change(file):
        del file["/train/90000001@N00/labels"]

    assert "/train/90000001@N00: " in problem(hdf5("hdf5 names", change))


def test_several_hdf5_files_need_a_name(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("two")
    write_by_user_names(root, out)
    write_by_user_sparse(root, out)

    assert "Name it as file=..." in problem(out)
    assert made(out, file="flair.h5").table().report["layout"] == "hdf5 sparse"


def test_an_hdf5_file_that_is_none(tmp_path):
    (tmp_path / "flair.h5").write_bytes(b"no")

    assert "to be an HDF5 file" in problem(tmp_path)


def test_without_h5py_it_says_what_to_install(root, tmp_path_factory, monkeypatch):
    out = tmp_path_factory.mktemp("hdf5")
    write_by_user_names(root, out)

    def fails(name, *rest):
        if name == "h5py":
            raise ImportError(name)
        return real(name, *rest)

    real = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", fails)

    assert "fedmlic[hdf5]" in problem(out)


# Quirks of Parquet and TFRecord files


def test_parquet_files_without_columns_or_split(tmp_path):
    out = tmp_path
    pq.write_table(pa.table({"image_id": ["1"]}), out / "train-0.parquet")
    pq.write_table(pa.table({"image_id": ["1"]}), out / "dev-0.parquet")
    (out / "val-0.parquet").write_bytes(b"no")

    text = problem(out)

    assert "dev-0.parquet: the name begins with no split" in text
    assert "train-0.parquet: columns ['image_id'], without ['image', 'user_id'" in text
    assert "val-0.parquet: " in text


def test_few_row_groups_are_kept(root, tmp_path_factory, monkeypatch):
    out = tmp_path_factory.mktemp("parquet")
    write_parquet(root, out)
    monkeypatch.setattr(flair_parquet, "KEPT_BYTES", 1)
    first, second = made(root), made(out)

    assert all((first.image(row) == second.image(row)).all() for row in (3, 0, 5, 3, 1))


def test_tfrecords_are_checked(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("tf")
    write_tfrecords(root, out)
    file = out / "train" / "90000001@N00.tfrecords"
    whole = file.read_bytes()
    (out / "train" / "nobody@N00.tfrecords").write_bytes(b"")

    assert made(out).table().report["empty_users"] == 1
    file.write_bytes(whole[:-1])
    assert "record 1: it ends inside a message" in problem(out)
    file.write_bytes(whole + whole[:5])
    assert "record 2: it ends inside a header" in problem(out)
    file.write_bytes(b"\x01" + whole[1:])
    assert "record 0: its length has a wrong checksum" in problem(out)
    file.write_bytes(tfrecord_of({"labels": [1]}))
    assert "no feature 'image/encoded_jpeg'" in problem(out)
    file.write_bytes(tfrecord_of({"image/encoded_jpeg": b"x", "labels": [99]}))
    assert "labels [99] are no indices below 7" in problem(out)


def test_a_label_index_with_gaps(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("tf")
    write_tfrecords(root, out)
    (out / "label_to_index.json").write_text('{"labels": {"a": 1}}')

    assert "without gaps" in problem(out)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 2**63 - 1), max_size=5), st.binary(min_size=1, max_size=300))
def test_examples_come_back(tmp_path_factory, numbers, content):
    path = tmp_path_factory.mktemp("tf") / "a.tfrecords"
    path.write_bytes(tfrecord_of({"x": content, "n": numbers}) * 2)

    problems = Problems("Expected all")
    found = tfrecord.read_examples(path, problems)
    assert list(found) == [0, 1]
    assert not problems
    for example in found.values():
        span = example.spans["x"]
        assert example.integers.get("n", []) == numbers
        assert path.read_bytes()[span.start : span.start + span.length] == content


# The reader of long JSON lists


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(st.lists(VALUES, max_size=5), st.integers(1, 9), st.sampled_from([None, 1]))
def test_lists_are_read_as_json_does(tmp_path_factory, items, chunk, indent):
    path = tmp_path_factory.mktemp("json") / "list.json"
    path.write_text(json.dumps(items, indent=indent), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_list, "CHUNK", chunk)

        assert list(json_list.read_json_list(path)) == items


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "does not begin with ["),
        ("", "does not begin with ["),
        ("[1, 2", "the end of the file instead"),
        ("[1 2]", "after item 0 there is 2"),
        ('[{"a": 1}, {"a" 1}]', "item 1 is damaged"),
        ('[{"a": 1}, {"a', "item 1 is damaged"),
        ("[1,]", "item 1 is damaged"),
        ("[1] x", "text after the list"),
        ("[] x", "text after the list"),
    ],
)
def test_damaged_lists(tmp_path, text, said):
    (tmp_path / "list.json").write_text(text)

    with pytest.raises(InputError, match=r".*") as caught:
        list(json_list.read_json_list(tmp_path / "list.json"))
    assert said in str(caught.value)


def test_content_decodes_like_a_file(root):
    path = root / "small_images" / "14900000001.jpg"

    assert (decode(io.BytesIO(path.read_bytes()), 8, 3, "pad") == decode(path, 8, 3, "pad")).all()


# Everything wrong at once


def test_faults_of_all_files_are_told_at_once(root):
    rewrite(root, lambda rows: [{**rows[0], "partition": "trian"}, {**rows[1], "labels": "animal"}, *rows[2:]])
    (root / "label_relationship.txt").write_text(FIXTURE["PARENTS"].replace("soup ->", "soup >"))
    (root / "small_images" / f"{RECORDS[2]['image_id']}.jpg").unlink()

    message = problem(root)

    for line in (
        "label_relationship.txt to read 'fine -> coarse', got line 7: 'soup > food'",
        "object 1: labels is 'animal', no list of texts",
        "partition 'trian'. Did you mean 'train'?",
        f"{RECORDS[2]['image_id']}.jpg: no such file",
    ):
        assert line in message


@pytest.mark.parametrize("value", [None, [], {}, True, 1.0, -1, "0"])
def test_label_indices_are_numbers(root, tmp_path_factory, value):
    out = tmp_path_factory.mktemp("other")
    write_tfrecords(root, out)
    index = json.loads((out / "label_to_index.json").read_text())
    index["labels"]["animal"] = value
    (out / "label_to_index.json").write_text(json.dumps(index))

    assert "to number 'labels' from 0 without gaps" in problem(out)


def test_the_checksum_of_every_message_is_compared(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("other")
    write_tfrecords(root, out)
    path = min((out / "train").iterdir())
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    content[-100] ^= 1
    path.write_bytes(content)

    message = problem(out)

    assert "record 0: its message has a wrong checksum" in message
    assert "record 1: its message has a wrong checksum" in message


@pytest.mark.parametrize("length", [0, 1, 7, 255, 256, 257, 5000])
def test_checksums_are_those_of_a_plain_loop(length):
    data = np.random.default_rng(length).bytes(length)

    assert struct.pack("<I", tfrecord.masked_crc(data)) == masked(data)


@pytest.mark.parametrize("name", ["b\0g", " ", "a\nb"])
def test_label_names_are_words(root, name):
    (root / "label_relationship.txt").unlink()
    rewrite(root, lambda rows: [{**rows[0], "fine_grained_labels": [name]}, *rows[1:]])

    assert f"Expected every fine label to be a word, got {name!r}" in problem(root, labels="fine")


@pytest.mark.parametrize("column", ["image_id", "user_id", "labels"])
def test_nothing_in_a_column_is_no_name(root, tmp_path_factory, column):
    out = tmp_path_factory.mktemp("other")
    write_parquet(root, out)
    path = min((out / "data").iterdir())
    table = pq.read_table(path)
    values = [None, *table[column].to_pylist()[1:]]
    place = table.column_names.index(column)
    pq.write_table(table.set_column(place, column, pa.array(values, type=table[column].type)), path)

    assert f"{path}, row 0: {column} is None" in problem(out)


def test_damaged_bytes_in_parquet_are_no_missing_file(root, tmp_path_factory):
    """As ``fedmlic data check`` says it."""
    out = tmp_path_factory.mktemp("other")
    write_parquet(root, out)
    path = min((out / "data").iterdir())
    table = pq.read_table(path)
    images = table["image"].to_pylist()
    images[0]["bytes"] = images[0]["bytes"][:300]
    pq.write_table(table.set_column(0, "image", pa.array(images, type=table["image"].type)), path)
    data = made(out)
    row = data.table().sources.index(f"{path}, row 0")

    with pytest.raises(InputError, match="undamaged image") as caught:
        data.image(row)
    assert not isinstance(caught.value.__cause__, FileNotFoundError)
