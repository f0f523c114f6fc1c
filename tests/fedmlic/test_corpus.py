import builtins
import errno
import hashlib
import importlib
import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmlic import corpus as corpus_module
from fedmlic import stores
from fedmlic.corpus import corpus_key, home, load_corpus, open_corpus, open_labels, write_labels
from fedmlic.dataset import Dataset, Objects, Table
from fedmlic.errors import InputError
from fedmlic.spec import build
from fedmlic.stores import DamagedError

SMALL = "multidigits(num_train=300, num_val=20, num_test=30, image_size=24, num_owners=7)"


def toy(num_images=40, num_labels=5, image=None, **changes):
    """A data set in unsorted order whose pixels say which row they are."""
    rng = np.random.default_rng(0)
    labels = rng.integers(-2, 2, (num_images, num_labels)).astype(np.int8)
    ids = [f"i{number:03}" for number in rng.permutation(num_images)]
    splits = rng.choice(["train", "val", "test"], num_images).tolist()
    row, label = np.nonzero(labels == 1)
    number = np.arange(len(row), dtype=np.float32)
    objects = Objects(row, label.astype(np.int16), np.repeat(number[:, None], 4, axis=1), number)
    table = Table(ids, splits, labels, rng.integers(-1, 4, num_images), objects, [], list("pqrs"), {"a": 1})
    fields = {
        "name": "toy",
        "version": "1",
        "identity": {"images": num_images, "labels": num_labels},
        "label_names": tuple(f"l{i}" for i in range(num_labels)),
        "image_shape": (8, 9, 3),
        "table": lambda: table,
        "image": image or (lambda row: np.full((8, 9, 3), row % 256, np.uint8)),
    }
    return Dataset(**{**fields, **changes})


def digests(path):
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(path.iterdir())}


def manifest_with(path, **changes):
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | changes))


@pytest.fixture
def built(tmp_path):
    return open_corpus(toy(), home=tmp_path)


def test_rows_are_sorted_by_split_owner_and_id_and_everything_follows(built):
    table = toy().table()
    rank = {"train": 0, "val": 1, "test": 2}
    order = sorted(range(40), key=lambda i: (rank[table.splits[i]], table.owners[i], table.image_ids[i]))

    assert [table.image_ids[i] for i in order] == built.image_ids
    assert built.images.take(np.arange(40))[:, 0, 0, 0].tolist() == order
    assert built.labels.take(np.arange(40)).tolist() == table.labels[order].tolist()
    assert built.owners.tolist() == table.owners[order].tolist()
    assert [table.splits[i] for i in order] == [s for s, rows in built.splits.items() for _ in rows]
    assert [order[row] for row in built.objects.row] == [
        i for i in order for _ in np.flatnonzero(table.objects.row == i)
    ]
    assert built.owner_names == list("pqrs")
    assert built.manifest["report"] == {"a": 1}
    assert (built.name, built.num_images, built.image_shape) == ("toy", 40, (8, 9, 3))
    assert built.label_names == ("l0", "l1", "l2", "l3", "l4")


def test_take_keeps_the_order_asked_and_returns_a_writable_copy(built):
    rows = np.array([7, 3, 3, 39, 0])
    everything = built.images.take(np.arange(40))

    taken = built.images.take(rows)
    labels = built.labels.take(rows)

    assert (taken == everything[rows]).all()
    assert (type(taken), taken.flags["C_CONTIGUOUS"], taken.flags["WRITEABLE"]) == (np.ndarray, True, True)
    assert (type(labels), labels.dtype, labels.flags["WRITEABLE"]) == (np.ndarray, np.int8, True)
    assert built.images.take(rows[:0]).shape == (0, 8, 9, 3)
    assert built.labels.take(rows[:0]).shape == (0, 5)


def test_a_corpus_pickles_as_a_path(built):
    expected = built.images.take(np.arange(40))
    built.labels.take(np.arange(40))
    assert len(built.owners) == len(built.image_ids) == 40
    data = pickle.dumps(built)

    again = pickle.loads(data)  # noqa: S301  (what Ray does with it)

    assert len(data) < 4000
    assert built.image_ids[-1].encode() not in data
    assert (again.images.take(np.arange(40)) == expected).all()
    assert again.image_ids == built.image_ids


def test_the_second_opening_draws_nothing(tmp_path):
    first = open_corpus(toy(), home=tmp_path)

    second = open_corpus(toy(image=lambda row: pytest.fail(f"drew {row}")), home=tmp_path)

    assert first.path == second.path
    assert first.key == second.path.name == corpus_key("toy", "1", {"labels": 5, "images": 40})


@pytest.mark.parametrize("changes", [{"version": "2"}, {"identity": {"images": 41}}])
def test_another_version_or_identity_is_another_corpus(tmp_path, built, changes):
    assert open_corpus(toy(**changes), home=tmp_path).path != built.path


def test_progress_reaches_the_number_of_images(tmp_path):
    calls = []

    open_corpus(toy(600), home=tmp_path, progress=lambda *call: calls.append(call), workers=2)

    assert calls == [(256, 600), (512, 600), (600, 600)]


@pytest.mark.parametrize("workers", [1, 5])
def test_any_number_of_threads_gives_the_same_bytes(tmp_path, workers):
    one = open_corpus(toy(700), home=tmp_path / "a")
    other = open_corpus(toy(700), home=tmp_path / "b", workers=workers)

    assert digests(one.path) == digests(other.path)


def test_home_follows_the_environment(monkeypatch):
    monkeypatch.setenv("FEDMLIC_HOME", "~/mine")
    assert home() == Path.home() / "mine"
    monkeypatch.delenv("FEDMLIC_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert home() == Path("/cache/fedmlic")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert home() == Path.home() / ".cache" / "fedmlic"


# Large corpora


def test_images_above_the_budget_are_kept_as_jpeg(tmp_path):
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 4, (40, 8, 9, 3))
    ramp = np.linspace(40, 200, 9)[None, :, None]
    smooth = np.clip(ramp + np.zeros((8, 1, 1)) + noise, 0, 255).astype(np.uint8)
    raw = open_corpus(toy(image=lambda row: smooth[row]), home=tmp_path)

    small = open_corpus(toy(image=lambda row: smooth[row]), home=tmp_path, max_raw_gb=1e-6)

    rows = np.array([9, 2, 2, 30])
    difference = small.images.take(rows).astype(int) - raw.images.take(rows).astype(int)
    assert np.abs(difference).mean() < 3
    assert small.key == f"{raw.key}-jpeg"
    assert (small.labels.take(rows) == raw.labels.take(rows)).all()
    assert pickle.loads(pickle.dumps(small)).images.take(rows).shape == (4, 8, 9, 3)  # noqa: S301
    assert open_corpus(toy(), home=tmp_path).path == raw.path
    assert open_corpus(toy(), home=tmp_path, max_raw_gb=1e-6).path == small.path


def test_grey_images_are_kept_as_jpeg_too(tmp_path):
    grey = toy(image=lambda row: np.full((8, 8, 1), row * 6, np.uint8), image_shape=(8, 8, 1))

    pixels = open_corpus(grey, home=tmp_path, max_raw_gb=0).images.take(np.arange(40))

    expected = open_corpus(grey, home=tmp_path).images.take(np.arange(40))
    assert np.abs(pixels.astype(int) - expected).max() <= 2


@settings(max_examples=40, deadline=None)
@given(
    num_images=st.integers(0, 12),
    num_labels=st.integers(1, 9),
    seed=st.integers(0, 99),
    fill=st.integers(-2, 1),
    cuts=st.lists(st.integers(0, 12), max_size=3),
)
def test_compressed_labels_equal_dense_ones(tmp_path_factory, num_images, num_labels, seed, fill, cuts):
    folder = tmp_path_factory.mktemp("labels")
    rng = np.random.default_rng(seed)
    labels = rng.integers(-2, 2, (num_images, num_labels)).astype(np.int8)
    labels[rng.random(labels.shape) < 0.7] = fill
    rows = rng.integers(0, num_images, 8) if num_images else np.array([], np.int64)

    write_labels(folder, "dense", labels, num_labels)
    write_labels(folder, "csr", labels, num_labels, max_dense_labels=0)
    write_labels(folder, "blocks", np.split(labels, sorted(min(c, num_images) for c in cuts)), num_labels)
    write_labels(folder, "pieces", iter(np.split(labels, 1)), num_labels, max_dense_labels=0)

    for stem in ("dense", "csr", "blocks", "pieces"):
        store = open_labels(folder, stem)
        assert (len(store), store.num_labels) == (num_images, num_labels)
        assert labels[rows].tolist() == store.take(rows).tolist()
        assert store.take(rows).shape == (len(rows), num_labels)


def test_wide_matrices_store_only_what_differs_from_the_commonest_state(tmp_path):
    labels = np.full((50, 300), -1, np.int8)
    labels[3, [7, 299]] = 1
    labels[4, 0] = 0

    files = write_labels(tmp_path, "observed", labels, 300)
    store = open_labels(tmp_path, "observed")

    assert sorted(files) == sorted(f.name for f in tmp_path.iterdir())
    assert store.fill == -1
    assert np.load(tmp_path / "observed.values.npy").tolist() == [1, 1, 0]
    assert np.load(tmp_path / "observed.indices.npy").dtype == np.uint16
    assert (pickle.loads(pickle.dumps(store)).take(np.arange(50)) == labels).all()  # noqa: S301


def test_label_files_that_disagree_are_refused(tmp_path):
    write_labels(tmp_path, "x", np.zeros((5, 300), np.int8), 300)
    np.save(tmp_path / "x.values.npy", np.zeros(3, np.int8))

    with pytest.raises(InputError, match=r"to hold the label matrix 'x'.*Delete that folder"):
        open_labels(tmp_path, "x")
    with pytest.raises(InputError, match=r"Expected .* to hold the label matrix 'y'"):
        open_labels(tmp_path, "y")


# Bad data sets


def test_every_unreadable_image_is_reported_at_once_and_nothing_stays(tmp_path):
    def image(row):
        if row % 3 == 0:
            msg = f"broken {row}"
            raise InputError(msg)
        return np.zeros((8, 9, 3), np.uint8)

    with pytest.raises(InputError, match="got 14 problems") as caught:
        open_corpus(toy(image=image), home=tmp_path)

    assert str(caught.value).count("broken") == 10
    assert "... and 4 more" in str(caught.value)
    assert [p.suffix for p in (tmp_path / "corpora" / "toy").iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": lambda _: np.zeros((8, 8, 3), np.uint8)}, r"Expected images to be uint8 \[8, 9, 3\]"),
        ({"image": lambda _: np.zeros((8, 9, 3))}, "got float64"),
        ({"images": lambda rows: np.zeros((len(rows), 8, 9, 1), np.uint8)}, r"got uint8 \[40, 8, 9, 1\]"),
        ({"label_names": ("a", "b")}, "got 2 names for 5 columns"),
    ],
)
def test_a_data_set_that_breaks_its_promise_is_refused(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        open_corpus(toy(**changes), home=tmp_path)


def test_an_empty_data_set_is_refused(tmp_path):
    empty = Table([], [], np.zeros((0, 5), np.int8), np.zeros(0, np.int64))

    with pytest.raises(InputError, match="to hold an image, got none"):
        open_corpus(toy(table=lambda: empty), home=tmp_path)


def test_a_home_that_cannot_be_written_and_a_full_disk_are_reported(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"to be writable.*Set FEDMLIC_HOME"):
        open_corpus(toy(), home=tmp_path / "file")

    monkeypatch.setattr(corpus_module.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(InputError, match="GB free"):
        open_corpus(toy(), home=tmp_path)


# Damage


def cut(name, size):
    def damage(path):
        os.truncate(path / name, size)

    return damage


def flip(name):
    def damage(path):
        content = bytearray((path / name).read_bytes())
        content[-1] ^= 1
        (path / name).write_bytes(content)

    return damage


DAMAGE = {
    "no manifest": lambda path: (path / "manifest.json").unlink(),
    "half a manifest": cut("manifest.json", 100),
    "not an object": lambda path: (path / "manifest.json").write_text("[1]"),
    "another program's manifest": lambda path: manifest_with(path, schema="something"),
    "a later schema": lambda path: manifest_with(path, schema_version=99),
    "a changed identity": lambda path: manifest_with(path, identity={"images": 7}),
    "other label states": lambda path: manifest_with(path, states={"present": 1, "absent": -1}),
    "other splits": lambda path: manifest_with(path, splits={"train": [0, 1], "val": [1, 2], "test": [2, 3]}),
    "fewer labels": lambda path: manifest_with(path, label_names=["a"]),
    "another number of images": lambda path: manifest_with(path, num_images=39),
    "missing images": lambda path: (path / "images.u8.npy").unlink(),
    "truncated images": cut("images.u8.npy", 2000),
    "truncated labels": cut("labels.i8.npy", 130),
    "a changed label": flip("labels.i8.npy"),
    "a changed owner": flip("owners.npy"),
    "missing objects": lambda path: (path / "objects.npz").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_corpus_is_reported_and_left_alone(tmp_path, built, damage):
    damage(built.path)
    before = digests(built.path)

    for opening in (lambda: load_corpus(built.path), lambda: open_corpus(toy(), home=tmp_path)):
        with pytest.raises(InputError, match=r"(?s)Expected .*Delete that folder to have it built again"):
            opening()

    assert digests(built.path) == before


def test_truncated_pixels_of_a_jpeg_corpus_are_noticed(tmp_path):
    path = open_corpus(toy(), home=tmp_path, max_raw_gb=0).path
    os.truncate(path / "images.blob", 500)

    with pytest.raises(InputError, match=r"images\.blob has 500 bytes"):
        load_corpus(path)


def test_a_corpus_under_another_key_is_foreign(tmp_path, built):
    other = open_corpus(toy(version="2"), home=tmp_path)
    shutil.rmtree(other.path)
    shutil.copytree(built.path, other.path)

    with pytest.raises(InputError, match=f"it is the corpus {built.key}"):
        open_corpus(toy(version="2"), home=tmp_path)


def test_a_corpus_may_be_moved(tmp_path, built):
    moved = shutil.move(built.path, tmp_path / "elsewhere")

    assert load_corpus(moved).key == built.key


def test_nothing_there_is_reported(tmp_path):
    with pytest.raises(InputError, match="got nothing at"):
        load_corpus(tmp_path / "none")


# Several processes

PROGRAM = """
import sys, time, pathlib
from fedmlic.spec import build
from fedmlic.stores import DamagedError
from fedmlic.corpus import open_corpus
print("ready", flush=True)
sys.stdin.readline()
data, pause = build("dataset", sys.argv[1]), float(sys.argv[3])
def progress(done, total):
    print("building", flush=True)
    time.sleep(pause)
print(open_corpus(data, pathlib.Path(sys.argv[2]), progress).path, flush=True)
"""


def start(folder, pause=0.0):
    command = [sys.executable, "-c", PROGRAM, SMALL, str(folder), str(pause)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def go(process):
    assert process.stdout.readline() == "ready\n"
    process.stdin.write("\n")
    process.stdin.flush()


def test_processes_that_start_together_build_once_and_agree(tmp_path):
    processes = [start(tmp_path, pause=0.2) for _ in range(3)]
    for process in processes:
        go(process)
    outputs = [process.communicate(timeout=60)[0].split("\n") for process in processes]

    here = open_corpus(build("dataset", SMALL), home=tmp_path / "here")
    builders = [lines for lines in outputs if "building" in lines]
    paths = {lines[-2] for lines in outputs}
    assert len(builders) == 1
    assert len(paths) == 1
    assert digests(Path(paths.pop())) == digests(here.path)


def test_a_build_that_is_killed_leaves_nothing_that_is_opened(tmp_path):
    process = start(tmp_path, pause=60)
    go(process)
    assert process.stdout.readline() == "building\n"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    folder = tmp_path / "corpora" / "multidigits"
    left = [path.name for path in folder.glob(".*.tmp")]

    again = open_corpus(build("dataset", SMALL), home=tmp_path)

    assert len(left) == 1
    assert sorted(path.name for path in folder.iterdir()) == sorted([again.key, f".{again.key}.lock"])
    assert digests(again.path) == digests(open_corpus(build("dataset", SMALL), home=tmp_path / "b").path)


# What was written is what is read


def flip(path, place=-1, bit=0):
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


@pytest.fixture
def large(monkeypatch):
    """As if every file were too large to be hashed at each opening."""
    monkeypatch.setattr(corpus_module, "SMALL_BYTES", -1)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("max_raw_gb", [40.0, 0])
def test_one_changed_bit_of_one_image_stops_whoever_reads_it(tmp_path, max_raw_gb):
    path = open_corpus(toy(), home=tmp_path, max_raw_gb=max_raw_gb).path
    name = "images.u8.npy" if max_raw_gb else "images.blob"
    flip(path / name, -20)
    corpus = load_corpus(path)

    for opened in (corpus, pickle.loads(pickle.dumps(corpus))):  # noqa: S301  (what Ray does with it)
        opened.images.take(np.arange(39))
        with pytest.raises(DamagedError, match=r"the image in row 39 was changed after it was written. Delete that"):
            opened.images.take(np.array([3, 39]))
        with pytest.raises(DamagedError):  # and again
            opened.images.take(np.array([39]))


@pytest.mark.usefixtures("large")
def test_every_image_is_hashed_once_per_process(built, monkeypatch):
    hashed = []
    original = stores.content_hash
    monkeypatch.setattr(stores, "content_hash", lambda data: hashed.append(1) or original(data))
    corpus = load_corpus(built.path)

    for rows in (np.arange(10), np.array([3, 3, 9, 12]), np.arange(13)):
        corpus.images.take(rows)

    assert len(hashed) == 13


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("labels.i8.npy", lambda corpus: corpus.labels.take(np.array([0]))),
        ("owners.npy", lambda corpus: corpus.owners),
        ("owner_names.json", lambda corpus: corpus.owner_names),
        ("image_ids.json", lambda corpus: corpus.image_ids),
        ("objects.npz", lambda corpus: corpus.objects),
        ("images.hashes.npy", lambda corpus: corpus.images.take(np.array([0]))),
    ],
)
def test_one_changed_bit_of_a_large_file_stops_whoever_reads_it(built, name, read):
    flip(built.path / name)
    corpus = load_corpus(built.path)

    with pytest.raises(DamagedError, match=f"{name} was changed after it was written"):
        read(corpus)


@pytest.mark.parametrize("name", ["labels.json", "labels.i8.npy", "images.hashes.npy"])
def test_one_changed_bit_of_a_small_file_stops_the_opening(built, name):
    flip(built.path / name, -2)

    with pytest.raises(DamagedError, match=f"{name} was changed after it was written"):
        load_corpus(built.path)


def test_a_changed_manifest_is_not_opened(built):
    """A label's name stands in no other file."""
    text = (built.path / "manifest.json").read_text(encoding="utf-8")
    (built.path / "manifest.json").write_text(text.replace('"l3"', '"l7"'), encoding="utf-8")

    with pytest.raises(DamagedError, match=r"manifest\.json was changed after it was written"):
        load_corpus(built.path)


def as_of_an_earlier_version(path):
    """Take from a corpus what earlier versions did not write."""
    manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    del manifest["sha256"], manifest["files"]["images.hashes.npy"]
    (path / "images.hashes.npy").unlink()
    (path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


@pytest.mark.parametrize("max_raw_gb", [40.0, 0])
def test_a_corpus_of_an_earlier_version_gets_its_hashes_when_it_is_opened(tmp_path, max_raw_gb):
    built = open_corpus(toy(), home=tmp_path, max_raw_gb=max_raw_gb)
    before, content = np.load(built.path / "images.hashes.npy"), built.content
    as_of_an_earlier_version(built.path)
    assert load_corpus(built.path).images.take(np.array([0])).shape == (1, 8, 9, 3)
    calls = []

    again = open_corpus(toy(), tmp_path, lambda *call: calls.append(call), max_raw_gb=max_raw_gb)

    assert again.images.hashed
    assert (np.load(built.path / "images.hashes.npy") == before).all()
    assert (again.content, load_corpus(built.path).content) == (content, content)
    assert calls == [(40, 40)]


@pytest.mark.usefixtures("large")
def test_a_damaged_corpus_of_an_earlier_version_is_not_given_hashes(built, tmp_path):
    as_of_an_earlier_version(built.path)
    flip(built.path / "images.u8.npy")

    with pytest.raises(DamagedError, match=r"images\.u8\.npy was changed after it was written"):
        open_corpus(toy(), home=tmp_path)


# Whose code it is


def test_an_edited_plug_in_is_another_corpus_and_an_edited_entry_of_ours_is_told(tmp_path, plug, monkeypatch):
    text = (
        "import numpy as np\nimport my_helper\nfrom fedmlic.dataset import Dataset, Table\n\n\n"
        "def rows(*, n: int = 3):\n"
        "    table = lambda: Table(list('abc'), ['train'] * 3, np.ones((3, 1), np.int8), np.full(3, -1))\n"
        "    return Dataset('rows', '1', {}, ('x',), (2, 2, 3), table, lambda row: my_helper.draw(row))\n"
    )
    plug("my_rows", text)
    helper = "import numpy as np\n\n\ndef draw(row):\n    return np.full((2, 2, 3), row + {}, np.uint8)\n"
    first_pixels = None
    for number, value in enumerate((1, 2, 1)):
        plug("my_helper", helper.format(value))
        for name in ("my_rows", "my_helper"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        importlib.invalidate_caches()
        corpus = open_corpus(build("dataset", "my_rows.rows()"), home=tmp_path)
        pixels = corpus.images.take(np.arange(3))[:, 0, 0, 0].tolist()
        assert pixels == [value, value + 1, value + 2], number
        first_pixels = first_pixels or (corpus.path, pixels)
    assert corpus.path == first_pixels[0]
    assert "fedmlic/dataset.py" in corpus.manifest["code"]
    assert not any(name.startswith("my_") for name in corpus.manifest["code"])
    assert load_corpus(corpus.path).key == build("dataset", f"corpus(path={str(corpus.path)!r})").built.name


def test_an_entry_of_ours_keeps_its_key_whatever_its_code():
    dataset = build("dataset", SMALL)

    assert "code" not in dataset.identity
    assert "fedmlic/datasets/multidigits.py" in dataset.code


@pytest.mark.parametrize("name", ["images.u8.npy", "images.hashes.npy", "labels.i8.npy", "owners.npy"])
def test_a_file_that_is_gone_is_damage(built, tmp_path, name):
    """A client would only fail in its turn for any other error, and the run would go on without its images."""
    shutil.copytree(built.path, tmp_path / "copy")
    corpus = pickle.loads(pickle.dumps(load_corpus(tmp_path / "copy")))  # noqa: S301  (as a worker gets it)
    (tmp_path / "copy" / name).unlink()
    rows = np.array([0])

    def read():
        return {"images": corpus.images.take, "labels": corpus.labels.take, "owners": lambda _: corpus.owners}[
            name.partition(".")[0]
        ](rows)

    with pytest.raises(DamagedError, match=f"{name} cannot be read: .*No such file"):
        read()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EMFILE, errno.EIO])
@pytest.mark.parametrize("name", ["manifest.json", "images.u8.npy", "images.hashes.npy", "labels.i8.npy", "owners.npy"])
def test_nobody_is_told_to_delete_what_the_system_does_not_read(built, monkeypatch, name, number):
    """It still stops a run: one client less in every round would be another result."""
    corpus = pickle.loads(pickle.dumps(load_corpus(built.path)))  # noqa: S301  (as a worker gets it)
    original = io.open

    def refusing(file, *arguments, **options):
        if Path(file).name == name:
            raise OSError(number, os.strerror(number), str(file))
        return original(file, *arguments, **options)

    for place in (io, builtins):  # pathlib's, and NumPy's
        monkeypatch.setattr(place, "open", refusing)

    def read():
        for take in (corpus.images.take, corpus.labels.take, lambda _: corpus.owners):
            take(np.array([0]))
        load_corpus(built.path)

    for reading in (read, lambda: load_corpus(built.path)):
        with pytest.raises(DamagedError, match=r"to be readable, got: .*Check the disk, the permissions") as caught:
            reading()
        assert os.strerror(number) in str(caught.value)
        assert "Delete" not in str(caught.value)


@pytest.mark.parametrize("name", ["images.blob", "images.offsets.npy"])
def test_pixels_of_a_jpeg_corpus_that_are_gone_are_damage(tmp_path, name):
    corpus = load_corpus(open_corpus(toy(), home=tmp_path, max_raw_gb=0).path)
    (corpus.path / name).unlink()

    with pytest.raises(DamagedError, match=f"{name} cannot be read: .*No such file"):
        corpus.images.take(np.array([0]))


def test_a_user_without_a_home_folder_is_told_what_to_set(monkeypatch):
    for name in ("FEDMLIC_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(corpus_module.Path, "home", nowhere)
    with pytest.raises(InputError, match="Set FEDMLIC_HOME"):
        home()


def test_the_folder_of_a_user_who_is_not_there_is_named(monkeypatch):
    monkeypatch.setenv("FEDMLIC_HOME", "~nobody-of-this-name/images")

    with pytest.raises(InputError, match=r"got '~nobody-of-this-name/images': .* Give a full path\.$"):
        home()
