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
from sim.reports import describe as module
from sim.reports.describe import describe

NAMES = ("cat", "dog", "car", "bus")
PARTITION = "dirichlet(alpha=0.3, key='rarest', min_images=8)"
NATIVE = ("true_positives", "true_known", "checkable")
PICTURES = {"sizes.png", "skew.png", "prevalence.png", "positives.png", "known.png", "budget.png", "wrong.png"}


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


@pytest.fixture(scope="module")
def written(corpus, tmp_path_factory):
    """A federation, its report and the folder that it was written to. Read them, never change them."""
    home = tmp_path_factory.mktemp("written")
    found = federation(corpus, home)
    return found, describe(found, home / "new" / "folder"), home / "new" / "folder"


def test_pictures_and_tables_are_written(written):
    _, report, out = written

    assert {path.name for path in out.iterdir()} == PICTURES | {
        "labels.csv",
        "clients.csv",
        "cells.csv",
        "summary.json",
    }
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
    assert not (tmp_path / "out" / "wrong.png").exists()  # nothing is known, so nothing is wrong


def test_one_client_is_described(corpus, tmp_path):
    report = describe(federation(corpus, tmp_path, "complete", 1), tmp_path / "out")

    assert report["summary"]["clients"]["js_true"]["max"] == pytest.approx(0, abs=1e-7)


def test_a_devices_own_images_have_no_report(corpus):
    with pytest.raises(InputError, match="whose truth is unknown"):
        describe(local_federation(corpus, label_names=NAMES, holdout_fraction=0, seed=0))


def natively_unknown(tmp_path_factory):
    """A data set that knows half of the entries of "cat", which is present on 3 of 4 of them, and nothing of "bus"."""

    def table():
        labels = np.zeros((400, 4), np.int8)
        labels[::4, 0], labels[1::4, 0], labels[2::4, 0] = 1, 1, 1
        labels[200:, 0], labels[:, 3] = -1, -1
        labels[::2, 1] = 1
        return Table([f"image {i}" for i in range(400)], ["train"] * 400, labels, np.arange(400) % 9)

    blank = np.zeros((2, 2, 1), np.uint8)
    dataset = Dataset("open", "1", {}, NAMES, (2, 2, 1), table, lambda _row: blank)
    return open_corpus(dataset, tmp_path_factory.mktemp("open"))


def test_shares_of_positives_run_over_the_entries_that_the_data_set_knows(tmp_path_factory, tmp_path):
    corpus = natively_unknown(tmp_path_factory)
    regime = "label_subset(labels_per_client=3, missing='absent')"
    found = build_federation(
        corpus, partition="iid", regime=regime, num_clients=3, seed=1, holdout_fraction=0, home=tmp_path
    )
    console = Console(file=io.StringIO(), width=200)

    report = json.loads(json.dumps(describe(found, tmp_path / "out", console), allow_nan=False))

    prevalence = {row["label"]: row["prevalence"] for row in report["labels"]}
    assert prevalence == {"cat": 0.75, "dog": 0.5, "car": 0.0, "bus": None}
    summary, text = report["summary"], console.file.getvalue()
    assert summary["prevalence"] == (150 + 200) / (200 + 400 + 400)
    assert summary["num_checkable"] == summary["num_annotations"]  # regimes leave open what is open
    for words in (
        "75.0%",
        "entries that the data set knows",
        "62.5% of all",
        "known to be present",
    ):
        assert words in text
    axis = module._prevalence_figure(found.tallies(), NAMES).axes[0]
    lines = {line.get_label(): line for line in axis.lines}
    names = [tick.get_text() for tick in axis.get_xticklabels()]
    shown = dict(zip(names, lines["all clients together"].get_ydata(), strict=True))
    assert (shown["cat"], shown["dog"]) == pytest.approx((75, 50))
    assert np.isnan(shown["bus"])
    assert "of which the data set knows" in axis.get_ylabel()


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


@pytest.mark.parametrize(
    "sizes", [[3], [1, 1], [1, 2], [1, 10**6], [7, 8, 9], [5, 400], [0], [0, 21], [0, 500], [64, 2048], [63, 2049]]
)
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


# Client and label


def test_every_pair_of_client_and_label_is_in_json_and_in_a_file(corpus, written):
    found, report, out = written
    rows = [line.split(",") for line in (out / "cells.csv").read_text().splitlines()]

    assert rows[0] == ["client", "label", "images", "known", "positives", "wrong", "budget", *NATIVE]
    assert len(rows) == 1 + 5 * 4
    for client in range(5):
        labels = found.shard(client).labels
        truth = corpus.labels.take(found.shard(client).rows)
        known = (labels >= 0).sum(axis=0).tolist()
        wrong = ((labels >= 0) & (labels != truth)).sum(axis=0).tolist()
        assert report["cells"]["known"][client] == known
        assert report["cells"]["positives"][client] == (labels == 1).sum(axis=0).tolist()
        assert report["cells"]["wrong"][client] == wrong
        for column, name in enumerate(NAMES):
            row = rows[1 + 4 * client + column]
            assert row[:4] == [str(client), name, str(len(labels)), str(known[column])]
            assert row[5] == str(wrong[column])
    for name, path in report["arrays"].items():
        assert np.load(path).tolist() == report["cells"][name]


def test_the_budget_is_what_somebody_looked_at(corpus, tmp_path):
    """Two of four labels each; the silent absences of the others cost nothing."""
    found = federation(corpus, tmp_path)
    report = describe(found)
    budget = np.array(report["cells"]["budget"])

    assert budget.sum() == report["summary"]["budget"] == 2 * found.sizes.sum()
    assert ((budget > 0).sum(axis=1) == 2).all()
    assert [row["budget"] for row in report["clients"]] == budget.sum(axis=1).tolist()
    assert [row["budget"] for row in report["labels"]] == budget.sum(axis=0).tolist()


def test_too_many_pairs_are_left_to_the_federations_arrays(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_CELLS", 19)
    monkeypatch.setattr(module, "MAX_JSON_CELLS", 19)
    found = federation(corpus, tmp_path)
    report = describe(found)

    assert report["cells"] is None
    assert np.load(report["arrays"]["known"]).shape == (5, 4)
    assert module._write_cells(tmp_path, found.tallies(), NAMES) == []
    assert not (tmp_path / "cells.csv").exists()


def test_few_clients_and_labels_are_shown_against_each_other(corpus, tmp_path):
    console = Console(file=io.StringIO(), width=160)
    found = federation(corpus, tmp_path)
    report = describe(found, console=console)
    text = console.file.getvalue()
    cells = report["cells"]

    assert "known positives of known entries (wrong ones)" in text
    assert f"{report['summary']['budget']:,} looks (2 per image)" in text
    for client in range(5):
        for some, known, wrong in zip(*(cells[name][client] for name in ("positives", "known", "wrong")), strict=True):
            assert f" {some}/{known}" + f" ({wrong})" * bool(wrong) in text


@pytest.mark.parametrize("num_clients", [5, 300])
def test_the_map_of_wrong_entries_shows_shares_of_the_known_ones(num_clients):
    rng = np.random.default_rng(0)
    truth = (rng.random((num_clients * 3, 2)) < 0.5).astype(np.int8)
    observed = truth.copy()
    observed[::3, 0] ^= 1
    observed[:, 1] = -1
    tallies = tally(truth, observed, np.arange(0, 3 * num_clients + 1, 3), np.zeros(num_clients, np.int64))
    image = module._wrong_figure(tallies, ("a", "b")).axes[0].images[0].get_array()

    assert np.allclose(image[:, 0], 100 / 3)
    assert image.mask[:, 1].all()


def test_the_budget_histogram_counts_every_client_also_those_without_a_look():
    tallies = invented(3000, 2, 3)
    nothing = np.arange(3000) % 3 == 0
    tallies.budget[nothing] = 0
    axis = module._budget_figure(tallies, ("a", "b")).axes[1]

    assert sum(bar.get_height() for bar in axis.patches) == 3000
    assert axis.patches[0].get_height() == (tallies.budget.sum(axis=1) == 0).sum() >= 1000


def test_characteristic_labels_do_not_depend_on_how_clients_are_counted(monkeypatch):
    tallies = invented(500, 6)
    label, most = module._characteristic(tallies)
    monkeypatch.setattr(module, "_CHUNK_ENTRIES", 50)
    again = module._characteristic(tallies)

    assert label.tolist() == again[0].tolist()
    assert most.tolist() == again[1].tolist()


def test_skew_numbers_of_every_client_are_drawn():
    tallies = invented(200, 4)
    statistics = module.summarise(tallies, tuple("abcd"))
    for axis, quantity in zip(module._skew_figure(statistics).axes, module.SKEWS, strict=True):
        assert sum(bar.get_height() for bar in axis.patches) == statistics.clients[quantity].notna().sum()


def test_clients_that_are_owners_bear_their_names(tmp_path):
    names = ["Nord", "Süd", "Ost [2]"]

    def table():
        labels = np.tile(np.array([[1, 0, 0, 0], [0, 1, 0, 0]], np.int8), (30, 1))
        labels[-1] = [0, 0, 0, 1]
        splits = ["train"] * 54 + ["test"] * 6
        owners = np.arange(60) % 4 - 1
        return Table([f"i{i}" for i in range(60)], splits, labels, owners, owner_names=names)

    def image(row):
        return np.full((2, 2, 1), row, np.uint8)

    dataset = Dataset("tiny", "1", {}, NAMES, (2, 2, 1), table, image, own=True)
    corpus = open_corpus(dataset, tmp_path)
    settings = {"num_clients": 0, "seed": 1, "holdout_fraction": 0.0, "home": tmp_path}
    built = build_federation(corpus, partition="natural()", regime="label_subset(labels=[['cat', 'dog']])", **settings)
    console = Console(file=io.StringIO(), width=160)

    report = describe(built, tmp_path / "out", console)

    assert built.client_names == tuple(names)
    assert [client["name"] for client in report["clients"]] == names
    assert (tmp_path / "out" / "cells.csv").read_text().splitlines()[1].startswith("0,Nord,cat,")
    assert "2 Ost [2]" in console.file.getvalue()
    assert report["untrained_labels"] == ["bus"]
    assert report["federation"]["notes"]["images_without_owner_left_out"] == 14
    nobody, hidden, apart = report["warnings"]
    assert nobody.startswith("14 of 54 training images have no owner")
    assert "hides 80 of 160 annotations of your own training images" in hidden
    assert report["unannotated_labels"] == [name for name in NAMES if name not in {"cat", "dog"}]
    assert "2 of 4 labels are annotated on no training image" in apart
    assert "unannotated_labels" not in report["federation"]
    guessing = describe(built, method="assume_negative()")["warnings"]
    assert guessing[:3] == report["warnings"]
    assert "as absent: the 2 labels that nobody annotates" in guessing[3]
    assert describe(built, method="bce()")["warnings"] == report["warnings"]
    whole = build_federation(corpus, partition="natural(no_owner='client')", regime="complete()", **settings)
    assert describe(whole)["unannotated_labels"] == []
    (untrained,) = describe(whole)["warnings"]
    assert "1 of 4 labels are present on test images but on no training image" in untrained
