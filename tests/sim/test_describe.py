"""The report on a federation: JSON, tables and pictures of few and of many clients."""

import io
import itertools
import json

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from fedmlic.corpus import open_corpus
from fedmlic.dataset import Dataset, Table
from fedmlic.errors import InputError
from fedmlic.federation import build_federation, local_federation
from fedmlic.statistics import tally
from sim import describe as module
from sim.describe import describe

NAMES = ("cat", "dog", "car", "bus")
PARTITION = "dirichlet(alpha=0.3, key='rarest', min_images=8)"
PICTURES = {"sizes.png", "positives.png", "prevalence.png", "known.png"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    def table():
        rng = np.random.default_rng(0)
        labels = (rng.random((500, 4)) < [0.9, 0.5, 0.2, 0.05]).astype(np.int8)
        return Table([f"image {i}" for i in range(500)], ["train"] * 500, labels, rng.integers(0, 9, 500))

    blank = np.zeros((2, 2, 1), np.uint8)
    dataset = Dataset("tiny", "1", {}, NAMES, (2, 2, 1), table, lambda _row: blank)
    return open_corpus(dataset, tmp_path_factory.mktemp("corpora"))


def federation(corpus, home, regime="label_subset(labels_per_client=2, missing='absent')", num_clients=5):
    return build_federation(
        corpus, partition="dirichlet", regime=regime, num_clients=num_clients, seed=1, holdout_fraction=0.2, home=home
    )


def invented(num_clients, num_labels, seed=0):
    """Tallies of more clients than are worth building."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 60, num_clients)
    ptr = np.concatenate(([0], np.cumsum(sizes)))
    truth = (rng.random((ptr[-1], num_labels)) < 0.2).astype(np.int8)
    observed = np.where(rng.random(truth.shape) < 0.4, truth, -1).astype(np.int8)
    return tally(truth, observed, ptr, np.zeros(num_clients, np.int64))


def test_the_report_is_json_and_agrees_with_the_shards(corpus, tmp_path):
    found = federation(corpus, tmp_path)
    report = json.loads(json.dumps(describe(found), allow_nan=False))

    assert report["federation"]["identity"]["partition"] == PARTITION
    assert report["federation"]["notes"] == dict(found.manifest["notes"])
    assert report["summary"]["num_annotations"] == found.label_counts.sum()
    assert report["summary"]["num_wrong"] > 0
    assert [row["images"] for row in report["clients"]] == found.sizes.tolist()
    assert [row["label"] for row in report["labels"]] == list(NAMES)
    assert report["files"] == []


def test_pictures_and_tables_are_written(corpus, tmp_path):
    out = tmp_path / "new" / "folder"
    report = describe(federation(corpus, tmp_path), out)

    assert {path.name for path in out.iterdir()} == PICTURES | {"labels.csv", "clients.csv", "summary.json"}
    assert sorted(report["files"]) == sorted(str(path) for path in out.iterdir())
    for name in PICTURES:
        with Image.open(out / name) as picture:
            assert min(picture.size) > 300
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 10
    assert len((out / "clients.csv").read_text().splitlines()) == 6
    assert json.loads((out / "summary.json").read_text())["summary"] == report["summary"]


def test_the_console_shows_every_label_and_the_settings(corpus, tmp_path):
    console = Console(file=io.StringIO(), width=160)
    describe(federation(corpus, tmp_path), console=console)
    text = console.file.getvalue()

    for expected in (*NAMES, PARTITION, "wrong annotations", "label skew", "moved images"):
        assert expected in text


def test_many_labels_are_shown_in_part_and_it_says_so(monkeypatch, corpus, tmp_path):
    monkeypatch.setattr(module, "MAX_NAMED", 3)
    console = Console(file=io.StringIO(), width=160)
    describe(federation(corpus, tmp_path), console=console)
    text = console.file.getvalue()

    assert "... and 1 labels with fewer positives" in text
    assert "│ bus" not in text  # the rarest


def test_a_federation_without_any_annotation_is_described(corpus, tmp_path):
    found = federation(corpus, tmp_path, "random_missing(known_fraction=0)", 3)
    report = describe(found, tmp_path / "out", Console(file=io.StringIO()))

    assert report["summary"]["num_annotations"] == 0
    assert report["summary"]["labels_without_annotation"] == 4
    assert report["summary"]["clients"]["js_known"]["median"] is None


def test_one_client_is_described(corpus, tmp_path):
    report = describe(federation(corpus, tmp_path, "complete", 1), tmp_path / "out")

    assert report["summary"]["clients"]["js_true"]["max"] == pytest.approx(0, abs=1e-7)


def test_a_devices_own_images_have_no_report(corpus):
    with pytest.raises(InputError, match="whose truth is unknown"):
        describe(local_federation(corpus, label_names=NAMES, holdout_fraction=0, seed=0))


# Pictures of many clients


@pytest.mark.parametrize(("num_clients", "num_labels"), [(41, 3), (500, 6), (1234, 50)])
def test_a_row_is_the_mean_of_its_clients_and_every_client_is_in_one(num_clients, num_labels):
    tallies = invented(num_clients, num_labels)
    rows = module._rows(tallies)
    bounds = [*rows.starts.tolist(), num_clients]
    expected = [tallies.known[rows.order[a:b]].mean(axis=0) for a, b in itertools.pairwise(bounds)]

    assert sorted(rows.order.tolist()) == list(range(num_clients))
    assert len(rows.starts) == min(num_clients, module.MAX_GROUPS)
    assert np.allclose(rows.mean(tallies.known), expected)


def test_clients_with_the_same_characteristic_label_stand_together():
    tallies = invented(300, 4)
    share = tallies.true_positives / tallies.images[:, None]
    label = (share - tallies.true_positives.sum(axis=0) / tallies.images.sum()).argmax(axis=1)

    assert (np.diff(label[module._rows(tallies).order]) >= 0).all()


def test_a_picture_of_many_clients_names_no_client_and_says_how_many_a_row_holds():
    axis = module._positives_figure(invented(1000, 6), tuple("abcdef")).axes[0]

    assert axis.get_ylabel() == "1,000 clients by characteristic label, 5 per row"
    assert axis.get_yticklabels() == []
    assert [tick.get_text() for tick in axis.get_xticklabels()] == list("abcdef")


def test_a_picture_of_few_clients_names_each():
    axis = module._known_figure(invented(5, 6), tuple("abcdef")).axes[0]

    assert [tick.get_text() for tick in axis.get_yticklabels()] == ["0", "1", "2", "3", "4"]


def test_the_size_histogram_counts_every_client():
    for seed, num_clients in ((0, 41), (1, 3000)):
        tallies = invented(num_clients, 2, seed)
        axis = module._sizes_figure(tallies).axes[0]
        assert sum(bar.get_height() for bar in axis.patches) == num_clients


@pytest.mark.parametrize("sizes", [[3], [1, 1], [1, 2], [1, 10**6], [7, 8, 9], [5, 400]])
def test_size_bins_lie_between_whole_numbers_and_cover_all(sizes):
    edges = module._size_bins(np.array(sizes))

    assert (np.diff(edges) > 0).all()
    assert ((edges - 0.5) % 1 == 0).all()
    assert edges[0] < min(sizes)
    assert edges[-1] > max(sizes)


def test_the_prevalence_picture_marks_the_overall_share():
    """More than 255 positives of one label at one client: small integer types would overflow."""
    truth = np.zeros((1000, 2), np.int8)
    truth[:800, 0] = 1
    tallies = tally(truth, truth, np.array([0, 500, 1000]), np.zeros(2, np.int64))
    lines = {line.get_label(): line for line in module._prevalence_figure(tallies, ("a", "b")).axes[0].lines}

    assert lines["all clients together"].get_ydata().tolist() == [80, 0]
    assert lines["median client"].get_ydata().tolist() == [80, 0]
