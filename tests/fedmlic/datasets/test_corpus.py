"""A built corpus as a data set: opened where it lies, equal to its source, never copied."""

import shutil

import pytest

from fedmlic.corpus import open_corpus
from fedmlic.errors import InputError
from fedmlic.federation import build_federation
from fedmlic.spec import build

SOURCE = "multidigits(num_train=60, num_val=10, num_test=10, num_owners=5, image_size=24)"


@pytest.fixture
def folder(tmp_path):
    return open_corpus(build("dataset", SOURCE), out=tmp_path / "digits").path


def test_it_is_opened_where_it_lies(folder, tmp_path):
    data = build("dataset", f"corpus(path={str(folder)!r})")
    corpus = open_corpus(data, home=tmp_path / "home")

    assert corpus.path == folder
    assert not (tmp_path / "home").exists()
    assert (data.name, data.built) == ("multidigits", folder)
    assert data.label_names == build("dataset", SOURCE).label_names


def test_a_federation_over_it_is_that_over_its_source(folder, tmp_path):
    options = {"partition": "iid()", "regime": "complete()", "num_clients": 3, "seed": 0, "holdout_fraction": 0.1}
    moved = shutil.move(folder, tmp_path / "moved")
    one = build_federation(open_corpus(build("dataset", SOURCE)), home=tmp_path / "a", **options)
    other = build_federation(
        open_corpus(build("dataset", f"corpus(path={str(moved)!r})")), home=tmp_path / "b", **options
    )

    assert one.path.name == other.path.name
    for client in range(3):
        first, second = one.shard(client), other.shard(client)
        assert (first.rows == second.rows).all()
        assert (first.images.take(first.rows) == second.images.take(second.rows)).all()


def test_it_may_lie_at_home(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))

    assert build("dataset", "corpus(path='~/digits')").built == folder


def test_a_folder_that_became_another_corpus_is_refused(folder):
    data = build("dataset", f"corpus(path={str(folder)!r})")
    shutil.rmtree(folder)
    open_corpus(build("dataset", SOURCE.replace("num_train=60", "num_train=50")), out=folder)

    with pytest.raises(InputError, match=r"it became the corpus \w+ of multidigits"):
        open_corpus(data)


def test_it_is_not_built_elsewhere(folder, tmp_path):
    with pytest.raises(InputError, match="Copy that folder instead"):
        open_corpus(build("dataset", f"corpus(path={str(folder)!r})"), out=tmp_path / "copy")


def test_nothing_and_half_a_corpus_are_refused(folder, tmp_path):
    with pytest.raises(InputError, match="Expected a corpus folder, got nothing"):
        build("dataset", f"corpus(path={str(tmp_path / 'none')!r})")
    (folder / "owners.npy").unlink()
    with pytest.raises(InputError, match="to be a complete corpus"):
        build("dataset", f"corpus(path={str(folder)!r})")
