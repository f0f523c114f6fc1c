"""One changed bit, anywhere in any file of a corpus or a federation, never goes unnoticed by who reads it."""

import shutil
from zlib import crc32

import numpy as np
import pytest

from fedmlic import corpus as corpus_module
from fedmlic.corpus import load_corpus, open_corpus
from fedmlic.errors import InputError
from fedmlic.federation import build_federation, open_federation
from fedmlic.spec import build
from fedmlic.stores import DamagedError
from sim.data.verify import verify

BITS = [2, pytest.param(60, marks=pytest.mark.slow)]
"""Tried per file; their places are drawn, the same ones at every test."""

SETTINGS = {"partition": "iid()", "num_clients": 3, "seed": 0, "holdout_fraction": 0.1}
KINDS = {"raw": 40.0, "jpeg": 0.0}
"""Storage of pixels, and the budget that leads to it."""

REGIMES = {"dense": "complete()", "compressed": "single_positive()"}
"""Few labels are known under the second, so that they are stored compressed."""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("bits")


@pytest.fixture(scope="module")
def folders(home):
    """A corpus of each kind of storage, and federations over the first."""
    dataset = "multidigits(num_train=60, num_val=8, num_test=8, image_size=24, num_owners=4)"
    corpora = {storage: open_corpus(build("dataset", dataset), home, max_raw_gb=gb) for storage, gb in KINDS.items()}
    federations = {
        name: build_federation(corpora["raw"], regime=regime, home=home, **SETTINGS) for name, regime in REGIMES.items()
    }
    return {name: opened.path for name, opened in {**corpora, **federations}.items()}


def read_corpus(path):
    """Everything that a run reads of a corpus."""
    corpus = load_corpus(path)
    rows = np.arange(corpus.num_images)
    return (
        corpus.images.take(rows).tobytes(),
        corpus.labels.take(rows).tobytes(),
        corpus.owners.tobytes(),
        repr((corpus.owner_names, corpus.image_ids, corpus.flags, corpus.label_names, corpus.splits)),
        corpus.objects and tuple(part.tobytes() for part in (corpus.objects.row, corpus.objects.box)),
    )


def read_federation(path, corpus):
    """Everything that a run reads of a federation, and its report."""
    federation = open_federation(path, load_corpus(corpus))
    shards = [federation.shard(client) for client in federation.clients]
    labels = [part.tobytes() for shard in shards for part in (shard.rows, shard.labels, shard.holdout_labels)]
    tallies = federation.tallies()
    return labels, federation.label_counts.tobytes(), [value.tobytes() for value in vars(tallies).values()]


def flipped(path, name, bits):
    """Changes a bit, gives its place, and mends it again, several times."""
    content = (path / name).read_bytes()
    draw = np.random.default_rng(crc32(name.encode()))
    places = draw.integers(0, 8 * len(content), bits)
    for place in [*places.tolist(), 8 * len(content) - 1]:
        changed = bytearray(content)
        changed[place // 8] ^= 1 << (place % 8)
        (path / name).write_bytes(changed)
        yield place
    (path / name).write_bytes(content)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(
    ("kind", "as_large"), [("raw", False), ("raw", True), ("jpeg", True), ("dense", False), ("compressed", False)]
)
def test_whoever_reads_a_changed_bit_is_told_where_it_is(folders, tmp_path, monkeypatch, kind, as_large, bits):
    if as_large:  # as if no file were hashed at each opening
        monkeypatch.setattr(corpus_module, "SMALL_BYTES", -1)
    path = tmp_path / folders[kind].name
    shutil.copytree(folders[kind], path)

    def read():
        return read_corpus(path) if kind in KINDS else read_federation(path, folders["raw"])

    sound = read()
    names = sorted(file.name for file in path.iterdir())
    tried = 0
    for name in names:
        for place in flipped(path, name, bits):
            tried += 1
            try:
                found = read()
            except DamagedError as error:
                text = str(error)
                assert str(path) in text
                assert "Delete that folder to have it built again" in text
            else:  # the padding of an array's header, say
                assert found == sound, (name, place)
            assert _noticed(path), (name, place)
    assert tried == len(names) * (bits + 1)
    assert read() == sound


def _noticed(path):
    """Whether ``fedmlic data verify`` finds the change, which must be every single one."""
    try:
        return not verify(path, workers=1)["ok"]
    except InputError:  # a manifest that is none any more
        return True
