"""What every data set promises: all entries of the catalogue are found by themselves."""

import inspect
import json
import os
import pickle
import runpy
from pathlib import Path

import numpy as np
import pytest

from fedmlic.corpus import corpus_key, open_corpus
from fedmlic.dataset import Dataset
from fedmlic.labels import PRESENT, check_labels
from fedmlic.spec import build, entries, factory

NAMES = os.environ.get("FEDMLIC_ENTRY", "").split() or entries("dataset")
every_dataset = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    """A function: the text of a small data set of that name, its files written by ``tests/fixtures``."""
    made = {}

    def text(name):
        file = Path(__file__).parents[1] / "fixtures" / f"{name}.py"
        if name not in made:
            made[name] = runpy.run_path(str(file))["write"](tmp_path_factory.mktemp(name)) if file.exists() else name
        return made[name]

    return text


@pytest.fixture(scope="module", params=NAMES)
def data(request, spec):
    return build("dataset", spec(request.param))


def test_the_catalogue_is_found():
    assert {"folder", "multidigits"} <= set(NAMES)


def test_it_describes_itself(data):
    assert isinstance(data, Dataset)
    assert data.name in {name.rpartition(".")[2] for name in NAMES}
    assert data.version
    assert data.licence != "unknown"
    assert len(set(data.label_names)) == len(data.label_names)
    assert data.image_shape[2] in {1, 3}


def test_its_table_keeps_the_rules(data):
    table = data.table()

    check_labels(table.labels, len(data.label_names))
    assert "train" in table.splits
    owners = np.unique(table.owners[table.owners >= 0])
    assert owners.tolist() == list(range(len(owners)))
    json.dumps(dict(table.report))


def test_objects_lie_in_their_images_and_are_present(data):
    table = data.table()
    if table.objects is None:
        pytest.skip("this data set knows no objects")
    height, width, _ = data.image_shape
    x, y, w, h = table.objects.box.T

    assert (table.labels[table.objects.row, table.objects.label] == PRESENT).all()
    assert (np.stack([x, y, w, h, table.objects.area]) >= 0).all()
    assert (x + w <= width).all()
    assert (y + h <= height).all()


def test_images_are_pure_functions_of_the_row(data):
    rows = np.arange(len(data.table().image_ids))[:12]
    forward = np.stack([data.image(int(row)) for row in rows])
    backward = np.stack([data.image(int(row)) for row in rows[::-1]])[::-1]

    assert forward.dtype == np.uint8
    assert forward.shape == (len(rows), *data.image_shape)
    assert (forward == backward).all()
    if data.label_names:  # a stand-in without labels has no pictures either
        assert len({image.tobytes() for image in forward}) > 1
    if data.images is not None:
        assert (data.images(rows) == forward).all()


@every_dataset
def test_equal_specs_give_equal_corpora(name, spec, tmp_path):
    first, second = (build("dataset", spec(name)) for _ in range(2))

    assert first.identity == second.identity
    assert json.loads(json.dumps(dict(first.identity))) == dict(first.identity)
    paths = [open_corpus(data, home=tmp_path / str(i)).path for i, data in enumerate((first, second))]
    contents = [{file.name: file.read_bytes() for file in path.iterdir()} for path in paths]
    assert contents[0] == contents[1]


def test_its_corpus_holds_its_table(data, tmp_path):
    corpus = open_corpus(data, home=tmp_path)
    table = data.table()
    rows = np.arange(corpus.num_images)
    order = np.array([table.image_ids.index(image_id) for image_id in corpus.image_ids])

    assert corpus.key == corpus_key(data.name, data.version, data.identity)
    assert sorted(order.tolist()) == rows.tolist()
    assert (corpus.labels.take(rows) == table.labels[order]).all()
    assert (corpus.owners == table.owners[order]).all()
    for split, span in corpus.splits.items():
        assert {table.splits[row] for row in order[span.start : span.stop]} <= {split}
    assert (corpus.images.take(rows[:3]) == np.stack([data.image(int(row)) for row in order[:3]])).all()
    assert len(pickle.dumps(corpus)) < 10_000


@every_dataset
def test_every_parameter_is_by_keyword_and_documented(name):
    make = factory("dataset", name)
    parameters = inspect.signature(make).parameters.values()

    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters)
    for parameter in parameters:
        assert f"        {parameter.name}: " in (make.__doc__ or "")


@every_dataset
def test_every_data_set_has_a_page(name):
    page = Path(__file__).parents[2] / "docs" / "datasets" / f"{name}.md"
    parameters = inspect.signature(factory("dataset", name)).parameters
    text = page.read_text(encoding="utf-8")

    assert text.startswith(f"# {name}\n")
    assert all(f"`{parameter}`" in text for parameter in parameters)
