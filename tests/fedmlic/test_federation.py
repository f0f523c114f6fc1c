"""A federation is what a plain loop over clients would build; on disk it is complete or not there."""

import importlib
import json
import pickle
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from fedmlic import federation as module
from fedmlic.corpus import Corpus, LabelStore, open_corpus
from fedmlic.dataset import NO_OWNER, Dataset, Objects, Table
from fedmlic.errors import InputError
from fedmlic.federation import build_federation, canonical, local_federation, open_federation
from fedmlic.labels import UNKNOWN, known
from fedmlic.partition import Population
from fedmlic.regime import Assignment
from fedmlic.seeds import stream, text_keys
from fedmlic.spec import build
from fedmlic.stores import DamagedError

NAMES = ("cat", "dog", "car", "bus", "sky")
NUM_TRAIN, NUM_IMAGES = 240, 300
SETTINGS = {
    "partition": "dirichlet(alpha=0.5, min_images=3)",
    "regime": "random_missing(known_fraction=0.6)",
    "num_clients": 9,
    "seed": 4,
    "holdout_fraction": 0.2,
}


def table(num_labels=5):
    rng = np.random.default_rng(0)
    labels = (rng.random((NUM_IMAGES, num_labels)) < 0.3).astype(np.int8)
    labels[rng.random(labels.shape) < 0.05] = UNKNOWN
    row, label = np.nonzero(labels == 1)
    boxes = np.zeros((len(row), 4), np.float32)
    objects = Objects(row.astype(np.int64), label.astype(np.int16), boxes, np.arange(len(row), dtype=np.float32))
    # Validation rows stand first in the table and test rows last; owners are mixed.
    splits = ["val"] * 20 + ["train"] * NUM_TRAIN + ["test"] * 40
    return Table([f"image {i}" for i in range(NUM_IMAGES)], splits, labels, rng.integers(0, 12, NUM_IMAGES), objects)


def make_corpus(home, names=NAMES, name="tiny"):
    def image(row):
        return np.full((2, 2, 1), row % 256, dtype=np.uint8)

    return open_corpus(Dataset(name, "1", {}, tuple(names), (2, 2, 1), lambda: table(len(names)), image), home)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpora"))


@pytest.fixture
def built(corpus, tmp_path):
    return build_federation(corpus, home=tmp_path, **SETTINGS)


def by_hand(corpus, partition, regime, num_clients, seed):
    """Rows of the corpus and observed labels per client, straight from the definitions."""
    split = corpus.splits["train"]
    rows = np.arange(split.start, split.stop)
    population = Population(corpus.labels.take(rows), corpus.owners[rows])
    dealt = build("partition", partition)(population, num_clients, stream(seed, "partition"))
    keys = text_keys(corpus.image_ids)
    out = []
    for client in range(dealt.num_clients):
        mine = rows[dealt.of(client)]
        assigned = Assignment(corpus.labels.take(mine), keys[mine], corpus.objects.take(mine), client, seed)
        out.append((mine, build("regime", regime).annotate(assigned)))
    return out


@pytest.mark.parametrize("regime", ["complete", "random_missing", "single_positive", "label_subset(missing='absent')"])
@pytest.mark.parametrize(("partition", "num_clients"), [("iid", 7), ("dirichlet(min_images=2)", 7), ("natural", 0)])
def test_shards_are_what_a_plain_loop_would_build(corpus, tmp_path, partition, num_clients, regime):
    found = build_federation(
        corpus,
        partition=partition,
        regime=regime,
        num_clients=num_clients,
        seed=3,
        holdout_fraction=0.25,
        home=tmp_path,
    )
    expected = by_hand(corpus, partition, regime, num_clients, 3)

    assert found.num_clients == len(expected) == len(found.sizes)
    for client, (rows, labels) in enumerate(expected):
        shard = found.shard(client)
        both = np.concatenate((shard.rows, shard.holdout_rows))
        order = np.argsort(both)
        assert rows.tolist() == both[order].tolist()
        assert np.array_equal(labels, np.concatenate((shard.labels, shard.holdout_labels))[order])
        assert len(shard.holdout_rows) == min(round(0.25 * len(rows)), len(rows) - 1)
        assert (np.diff(shard.rows) > 0).all()
        assert shard.num_images == found.sizes[client]
        assert shard.label_names == NAMES


def test_a_shard_reads_the_images_of_its_rows(corpus, built):
    shard = built.shard(2)
    numbers = [int(corpus.image_ids[row].split()[1]) % 256 for row in shard.rows]

    assert shard.images.take(shard.rows)[:, 0, 0, 0].tolist() == numbers


def test_clients_hold_training_images_only_and_none_twice(corpus, built):
    shards = [built.shard(client) for client in range(built.num_clients)]
    rows = np.concatenate([np.concatenate((s.rows, s.holdout_rows)) for s in shards])

    assert sorted(rows.tolist()) == list(corpus.splits["train"])


def test_nothing_in_a_shard_leads_to_the_truth(built):
    parts = vars(built.shard(0)).values()
    deeper = [value for part in parts if hasattr(part, "__dict__") for value in vars(part).values()]

    assert not any(isinstance(value, Corpus | LabelStore) for value in [*parts, *deeper])


def test_counts_are_those_of_the_shards(built):
    for client in range(built.num_clients):
        labels = built.shard(client).labels
        assert built.label_counts[client].tolist() == known(labels).sum(axis=0).tolist()
        assert built.positive_counts[client].tolist() == (labels == 1).sum(axis=0).tolist()
        assert built.label_counts[client].tolist() == built.shard(client).annotations.tolist()
    assert built.label_counts.dtype == built.positive_counts.dtype == built.sizes.dtype == np.int64


def test_tallies_use_the_truth_of_training_images(corpus, built):
    tallies = built.tallies()
    for client in range(built.num_clients):
        shard = built.shard(client)
        truth = corpus.labels.take(shard.rows)
        assert tallies.true_positives[client].tolist() == (truth == 1).sum(axis=0).tolist()
        assert tallies.holdout_images[client] == len(shard.holdout_rows)
    assert tallies.wrong.sum() == 0
    assert tallies.known.dtype == np.int32  # percentages in the narrow stored type would overflow


def test_held_out_images_depend_on_the_seed_alone_not_on_the_regime(corpus, tmp_path, built):
    other = build_federation(corpus, home=tmp_path, **{**SETTINGS, "regime": "complete"})

    for client in range(built.num_clients):
        assert built.shard(client).holdout_rows.tolist() == other.shard(client).holdout_rows.tolist()


@pytest.mark.parametrize("partition", ["iid()", "natural(merge_small=True, min_images=100)"])
def test_whole_owners_are_held_out_where_that_is_asked_for(corpus, tmp_path, partition):
    settings = {**SETTINGS, "partition": partition, "num_clients": 3 if partition == "iid()" else 0}
    whole = build_federation(corpus, home=tmp_path, holdout_by="owner", **settings)
    parts = [whole.shard(client) for client in whole.clients]

    for shard in parts:
        held, trained = (set(corpus.owners[rows].tolist()) for rows in (shard.holdout_rows, shard.rows))
        assert not held & trained
        assert held
    share = sum(len(shard.holdout_rows) for shard in parts) / NUM_TRAIN
    assert share == pytest.approx(0.2, abs=0.1)
    single = build_federation(corpus, home=tmp_path, **settings)
    assert "holdout_by" not in single.manifest["identity"], "keys stay what they were"
    assert single.path != whole.path
    assert any(
        set(corpus.owners[shard.holdout_rows].tolist()) & set(corpus.owners[shard.rows].tolist())
        for shard in map(single.shard, single.clients)
    )


def test_whole_owners_of_a_client_with_one_owner_or_of_nobody(corpus, tmp_path):
    settings = {**SETTINGS, "partition": "natural()", "num_clients": 0, "holdout_by": "owner"}
    alone = build_federation(corpus, home=tmp_path, **settings)
    assert not any(len(alone.shard(client).holdout_rows) for client in alone.clients)

    def nobodys():
        return replace(table(), owners=np.full(NUM_IMAGES, NO_OWNER))

    unowned = Dataset("unowned", "1", {}, NAMES, (2, 2, 1), nobodys, lambda _: np.zeros((2, 2, 1), np.uint8))
    other = open_corpus(unowned, tmp_path)
    with pytest.raises(InputError, match="unowned to say whose its training images are for holdout-by=owner"):
        build_federation(other, home=tmp_path, **{**settings, "partition": "iid()", "num_clients": 2})
    with pytest.raises(InputError, match="set holdout-by=image"):
        local(other, holdout_by="owner")
    assert local(other, holdout_by="owner", holdout_fraction=0).num_clients == 1


def test_without_a_holdout_everything_is_trained_on(corpus, tmp_path):
    found = build_federation(corpus, home=tmp_path, **{**SETTINGS, "holdout_fraction": 0})

    assert found.sizes.sum() == NUM_TRAIN
    assert found.shard(0).holdout_labels.shape == (0, len(NAMES))


def test_one_training_image_always_remains(corpus, tmp_path):
    settings = {**SETTINGS, "partition": "iid", "num_clients": NUM_TRAIN, "holdout_fraction": 0.99}

    assert (build_federation(corpus, home=tmp_path, **settings).sizes == 1).all()


@pytest.mark.parametrize(("fraction", "compressed"), [(0.1, True), (0.6, False)])
def test_wide_label_matrices_are_stored_compressed_where_that_is_smaller(tmp_path, monkeypatch, fraction, compressed):
    monkeypatch.setattr(module, "_BLOCK", 50)  # several blocks
    names = [f"label {i}" for i in range(300)]
    wide = make_corpus(tmp_path, names, "wide")
    regime = f"random_missing(known_fraction={fraction})"
    found = build_federation(wide, home=tmp_path, **{**SETTINGS, "regime": regime})
    expected = by_hand(wide, SETTINGS["partition"], regime, 9, 4)

    assert (found.path / "train.labels.indptr.npy").exists() == compressed
    for client, (rows, labels) in enumerate(expected):
        shard = found.shard(client)
        assert np.array_equal(shard.labels, labels[np.isin(rows, shard.rows)])


# Opening


def test_a_second_call_opens_what_the_first_built(corpus, tmp_path, built, monkeypatch):
    monkeypatch.setattr(module, "_build", lambda *_: pytest.fail("it was built again"))
    again = build_federation(corpus, home=tmp_path, **SETTINGS)

    assert again.path == built.path == tmp_path / "federations" / built.manifest["key"]
    assert np.array_equal(again.shard(1).labels, built.shard(1).labels)


def test_equal_settings_have_one_key_however_they_are_written(corpus, tmp_path):
    texts = ["dirichlet", "dirichlet()", "dirichlet(alpha=0.3)", "dirichlet(min_images=8, alpha=0.3)"]
    assert len({canonical("partition", text) for text in texts}) == 1
    assert canonical("partition", "dirichlet(alpha=1)") == canonical("partition", "dirichlet(alpha=1.0)")

    first, second = (
        build_federation(corpus, home=tmp_path, **{**SETTINGS, "regime": text})
        for text in ("random_missing", "random_missing(of='all', known_fraction=0.5)")
    )
    assert first.path == second.path


@pytest.mark.parametrize(
    "change",
    [{"partition": "iid"}, {"regime": "complete"}, {"num_clients": 8}, {"seed": 5}, {"holdout_fraction": 0.1}],
)
def test_every_setting_is_part_of_the_key(corpus, tmp_path, built, change):
    assert build_federation(corpus, home=tmp_path, **{**SETTINGS, **change}).path != built.path


def test_the_corpus_is_part_of_the_key(tmp_path, built):
    other = make_corpus(tmp_path, name="other")

    assert build_federation(other, home=tmp_path, **SETTINGS).path != built.path


def test_many_at_once_build_once(corpus, tmp_path, monkeypatch):
    builds = []
    build_it = module._build
    monkeypatch.setattr(module, "_build", lambda *args: (builds.append(1), build_it(*args)))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: build_federation(corpus, home=tmp_path, **SETTINGS), range(4)))

    assert len(builds) == 1
    assert len({federation.path for federation in found}) == 1


def test_pickling_sends_the_path_and_not_the_data(built):
    sent = pickle.dumps(built)
    received = pickle.loads(sent)  # noqa: S301  (what this test has just written)

    assert b"memmap" not in sent
    assert np.array_equal(received.shard(3).labels, built.shard(3).labels)


def test_there_is_no_other_client(built):
    for client in (-1, 9):
        with pytest.raises(InputError, match=f"client to be 0 to 8, got {client}"):
            built.shard(client)


# Failing


def leftovers(home):
    folder = home / "federations"
    return [path.name for path in folder.iterdir() if not path.name.endswith(".lock")] if folder.exists() else []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_clients": 241}, "240 training images, got 241"),
        ({"num_clients": -1}, "num-clients to be 1 or more"),
        ({"num_clients": 0}, "num-clients to be 1 or more"),
        ({"seed": -1}, "seed to be 0 or more, got -1"),
        ({"holdout_fraction": 1.0}, "at least 0 and below 1, got 1.0"),
        ({"holdout_fraction": float("nan")}, "at least 0 and below 1, got nan"),
        ({"partition": "natural", "num_clients": 13}, "0 to 12, the owners"),
        ({"partition": "dirichlet(alpa=1)"}, "Did you mean 'alpha'"),
        ({"regime": "completed"}, "Did you mean 'complete'"),
        ({"regime": "label_subset(labels_per_client=6)"}, "at most the 5 labels"),
    ],
)
def test_bad_settings_end_in_a_clear_error_and_write_nothing(corpus, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        build_federation(corpus, home=tmp_path, **{**SETTINGS, **change})

    assert leftovers(tmp_path) == []


def test_a_build_that_fails_while_writing_leaves_nothing(corpus, tmp_path, monkeypatch):
    def full(*_args, **_more):
        msg = "no space left"
        raise OSError(msg)

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_labels", full)
        with pytest.raises(OSError, match="no space left"):
            build_federation(corpus, home=tmp_path, **SETTINGS)

    assert leftovers(tmp_path) == []
    assert build_federation(corpus, home=tmp_path, **SETTINGS).num_clients == 9


def test_what_a_killed_build_left_behind_is_cleared_away(corpus, tmp_path, built):
    key = built.path.name
    built.path.rename(built.path.with_name(f".{key}.tmp"))

    assert build_federation(corpus, home=tmp_path, **SETTINGS).num_clients == 9
    assert leftovers(tmp_path) == [key]


def damage_size(path):
    with (path / "train.rows.npy").open("ab") as file:
        file.write(b"x")


def damage_missing(path):
    (path / "holdout.labels.i8.npy").unlink()


def damage_manifest(path):
    (path / "manifest.json").write_text("{", encoding="utf-8")


def damage_no_manifest(path):
    (path / "manifest.json").unlink()


def damage_settings(path):
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["identity"]["seed"] = 99
    (path / "manifest.json").write_text(json.dumps(manifest))


def damage_clients(path):
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["num_clients"] = 8
    (path / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "damage", [damage_size, damage_missing, damage_manifest, damage_no_manifest, damage_settings, damage_clients]
)
def test_a_damaged_federation_is_reported_with_its_folder(corpus, tmp_path, built, damage):
    damage(built.path)

    with pytest.raises(InputError, match=f"{built.path.name} to be a complete federation.*Delete that folder"):
        build_federation(corpus, home=tmp_path, **SETTINGS)


def test_a_federation_is_not_opened_with_another_corpus(tmp_path, built):
    with pytest.raises(InputError, match="to be opened with its corpus"):
        open_federation(built.path, make_corpus(tmp_path, name="other"))


# Plug-ins from elsewhere

PLUGIN = """
    import numpy as np
    from fedmlic.regime import Regime

    def annotate(assignment):
        {body}

    def regime():
        return Regime(annotate)
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Write a module with the given body of ``annotate`` and name its regime."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name, body):
        path = tmp_path / f"{name}.py"
        path.write_text(textwrap.dedent(PLUGIN).format(body=body))
        return f"{name}.regime"

    return write


@pytest.mark.parametrize(
    ("name", "body", "error", "message"),
    [
        ("wrong_shape", "return assignment.labels[:, :2]", InputError, r"to return int8 \[\d+, 5\], got int8"),
        ("wrong_type", "return assignment.labels.astype(float)", InputError, "got float64"),
        ("wrong_state", "return assignment.labels * np.int8(7)", ValueError, "label states"),
        ("guessing", "return np.zeros_like(assignment.labels)", InputError, r"Declare Regime\(..., adds_wrong=True\)"),
        ("writing", "assignment.labels[:] = -1\n    return assignment.labels", ValueError, "read-only"),
    ],
)
def test_a_plugin_that_breaks_the_contract_is_stopped(corpus, tmp_path, plugin, name, body, error, message):
    with pytest.raises(error, match=message):
        build_federation(corpus, home=tmp_path, **{**SETTINGS, "regime": plugin(name, body)})

    assert leftovers(tmp_path) == []


def test_a_plugin_sees_the_boxes_of_the_images_before_it(corpus, tmp_path, plugin):
    """A regime that knows exactly what has a box must, here, know exactly what is present."""
    body = (
        "seen = np.full_like(assignment.labels, -1)\n"
        "    seen[assignment.objects.row, assignment.objects.label] = 1\n"
        "    return seen"
    )
    found = build_federation(corpus, home=tmp_path, **{**SETTINGS, "regime": plugin("boxes", body)})

    for client in range(9):
        shard = found.shard(client)
        assert np.array_equal(shard.labels == 1, corpus.labels.take(shard.rows) == 1)
        assert not (shard.labels == 0).any()


def test_an_edited_plugin_gets_a_federation_of_its_own(corpus, tmp_path, plugin, monkeypatch):
    settings = {**SETTINGS, "regime": plugin("edited", "return assignment.labels.copy()")}
    first = build_federation(corpus, home=tmp_path, **settings)
    plugin("edited", "return np.full_like(assignment.labels, -1)")
    # The old code still runs here, so its labels must not be stored under the new code's key.
    assert build_federation(corpus, home=tmp_path, **settings).path == first.path

    monkeypatch.delitem(sys.modules, "edited")
    importlib.invalidate_caches()
    second = build_federation(corpus, home=tmp_path, **settings)
    assert second.path != first.path
    assert not known(second.shard(0).labels).any()


# A device's own images


def local(corpus, **changes):
    settings = {"label_names": NAMES, "holdout_fraction": 0.2, "seed": 4, **changes}
    return local_federation(corpus, **settings)


def test_a_device_holds_its_training_images_with_its_own_labels(corpus):
    found = local(corpus)
    shard = found.shard(0)

    assert sorted([*shard.rows.tolist(), *shard.holdout_rows.tolist()]) == list(corpus.splits["train"])
    assert len(shard.holdout_rows) == round(0.2 * NUM_TRAIN)
    assert np.array_equal(shard.labels, corpus.labels.take(shard.rows))
    assert np.array_equal(shard.holdout_labels, corpus.labels.take(shard.holdout_rows))
    assert found.sizes.tolist() == [len(shard.rows)]
    assert found.label_counts.tolist() == [shard.annotations.tolist()]
    assert found.positive_counts.tolist() == [(shard.labels == 1).sum(axis=0).tolist()]


def test_a_device_holds_out_whole_owners_as_a_simulated_client_does(corpus, tmp_path):
    settings = {**SETTINGS, "partition": "iid()", "num_clients": 1, "regime": "complete()"}
    simulated = build_federation(corpus, home=tmp_path, holdout_by="owner", **settings).shard(0)
    shard = local(corpus, holdout_by="owner", client=7).shard(7)

    assert shard.holdout_rows.tolist() == simulated.holdout_rows.tolist()
    assert not set(corpus.owners[shard.holdout_rows].tolist()) & set(corpus.owners[shard.rows].tolist())


def test_labels_are_matched_by_name_and_missing_ones_are_unknown(corpus):
    names = ("tree", "sky", "cat", "bus", "car", "dog", "sea")
    shard = local(corpus, label_names=names).shard(0)

    assert shard.label_names == names
    assert (shard.labels[:, [0, 6]] == UNKNOWN).all()
    assert np.array_equal(shard.labels[:, [2, 5, 4, 3, 1]], corpus.labels.take(shard.rows))


def test_a_label_that_the_federation_lacks_names_the_nearest(corpus):
    with pytest.raises(InputError, match=r"got 1 others: 'dog'. 'dog': Did you mean 'dogs'"):
        local(corpus, label_names=("cat", "dogs", "car", "bus", "sky"))


def test_a_device_answers_to_its_own_id(corpus):
    found = local(corpus, client=7)

    assert list(found.clients) == [7]
    assert found.shard(7).client == 7
    with pytest.raises(InputError, match="client to be 7 to 7, got 0"):
        found.shard(0)


def test_a_device_survives_pickling_and_has_no_statistics(corpus):
    found = pickle.loads(pickle.dumps(local(corpus)))  # noqa: S301  (what this test has just written)

    assert np.array_equal(found.shard(0).labels, local(corpus).shard(0).labels)
    with pytest.raises(InputError, match="whose truth is unknown"):
        found.tallies()


def test_no_training_images_is_an_error(tmp_path):
    def only_test():
        whole = table()
        return Table(whole.image_ids, ["test"] * NUM_IMAGES, whole.labels, whole.owners)

    empty = Dataset("empty", "1", {}, NAMES, (2, 2, 1), only_test, lambda _row: np.zeros((2, 2, 1), np.uint8))
    corpus = open_corpus(empty, tmp_path)
    for attempt in (local, lambda c: build_federation(c, home=tmp_path, **SETTINGS)):
        with pytest.raises(InputError, match="to have training images"):
            attempt(corpus)


# Regimes made of others, and regimes that need everybody's images

WHOLE = {"partition": "dirichlet(alpha=0.5, min_images=3)", "num_clients": 9, "seed": 4, "holdout_fraction": 0.2}


def observed_of(federation, client):
    """Rows and labels of one client, held out or not, in the order of the rows."""
    shard = federation.shard(client)
    rows = np.concatenate((shard.rows, shard.holdout_rows))
    order = np.argsort(rows)
    return rows[order], np.concatenate((shard.labels, shard.holdout_labels))[order]


def test_a_composition_is_built_like_a_loop_over_clients(corpus, tmp_path):
    regime = "compose(regimes=['label_noise(miss=0.3)', 'label_subset(labels_per_client=2)'])"
    found = build_federation(corpus, regime=regime, home=tmp_path, **WHOLE)
    for client, (rows, labels) in enumerate(by_hand(corpus, WHOLE["partition"], regime, 9, 4)):
        assert rows.tolist() == observed_of(found, client)[0].tolist()
        assert np.array_equal(observed_of(found, client)[1], labels)


def test_a_quota_of_the_federation_is_filled_by_its_clients(corpus, tmp_path):
    found = build_federation(corpus, regime="fixed_per_class(positives=20, negatives=30)", home=tmp_path, **WHOLE)
    labels = np.concatenate([observed_of(found, client)[1] for client in range(9)])

    assert (labels == 1).sum(axis=0).tolist() == [20] * 5
    assert (labels == 0).sum(axis=0).tolist() == [30] * 5


def test_objects_of_an_image_reach_its_client_whatever_the_order(corpus, tmp_path):
    """One box per present entry, all alike: size bias is then a draw by the areas of the table."""
    regime = "single_positive(bias='size')"
    found = build_federation(corpus, regime=regime, home=tmp_path, **WHOLE)
    keys = text_keys(corpus.image_ids)
    for client in range(9):
        rows, labels = observed_of(found, client)
        assigned = Assignment(
            corpus.labels.take(rows), keys[rows], corpus.objects.take(rows), client, 4, NAMES, corpus.image_shape[:2]
        )
        assert np.array_equal(labels, build("regime", regime).annotate(assigned))


def test_the_budget_counts_looks_at_training_images(corpus, tmp_path):
    three = "annotators(num_annotators=3, size_effect=0, location_effect=0)"
    found = build_federation(corpus, regime=f"compose(regimes={[three, 'label_subset()']})", home=tmp_path, **WHOLE)
    silent = build_federation(corpus, regime="label_subset(missing='absent')", home=tmp_path, **WHOLE)
    plain = build_federation(corpus, regime="label_subset()", home=tmp_path, **WHOLE)

    assert found.tallies().budget.tolist() == (3 * found.label_counts).tolist()
    assert silent.tallies().budget.tolist() == plain.tallies().budget.tolist() == plain.label_counts.tolist()
    assert silent.label_counts.sum() > plain.label_counts.sum()


def test_a_composition_has_one_key_however_its_parts_are_written(corpus, tmp_path):
    texts = [
        "compose(regimes=['random_missing', 'complete'])",
        "compose(regimes=('random_missing(of=\"all\")', 'complete()'))",
    ]
    first, second = (build_federation(corpus, regime=text, home=tmp_path, **WHOLE) for text in texts)
    other = build_federation(corpus, regime="compose(regimes=['complete', 'random_missing'])", home=tmp_path, **WHOLE)

    assert first.path == second.path != other.path
    identity = first.manifest["identity"]
    assert identity["regime"] == ("compose(regimes=[\"random_missing(known_fraction=0.5, of='all')\", 'complete()'])")
    assert len(identity["code"]) == 16


def test_an_edited_part_of_a_composition_is_built_anew(corpus, tmp_path, plug, monkeypatch):
    text = (
        "from fedmlic.regime import Regime\ndef {0}(*, x: int = 1):\n    return Regime(lambda a: a.labels.copy()){1}\n"
    )
    plug("my_part", text.format("seen", ""))
    regime = "compose(regimes=['complete()', 'one_of(regimes=[\"my_part.seen()\"])'])"
    before = build_federation(corpus, regime=regime, home=tmp_path, **WHOLE)
    plug_again = text.format("seen", "  # edited")
    path = importlib.import_module("my_part").__file__
    monkeypatch.delitem(sys.modules, "my_part")
    with open(path, "w", encoding="utf-8") as file:  # noqa: PTH123
        file.write(plug_again)

    assert build_federation(corpus, regime=regime, home=tmp_path, **WHOLE).path != before.path


def test_a_regime_that_turns_entries_uncertain_must_say_so(corpus, tmp_path, plug):
    text = """
        import numpy as np
        from fedmlic.regime import Regime
        def unsure(*, x: int = 1):
            return Regime(lambda a: np.full_like(a.labels, -2))
    """
    plug("my_unsure", textwrap.dedent(text))
    with pytest.raises(InputError, match=r"make no entry uncertain, got \d+\. Declare .*adds_uncertain"):
        build_federation(corpus, regime="my_unsure.unsure()", home=tmp_path, **WHOLE)


# What was written is what is read


@pytest.mark.parametrize(
    "name",
    ["train.labels.i8.npy", "train.rows.npy", "train.client_ptr.npy", "tallies.known.npy", "holdout.labels.json"],
)
def test_one_changed_bit_stops_whoever_reads_it(corpus, tmp_path, name):
    built = build_federation(corpus, home=tmp_path, **SETTINGS)
    file = built.path / name
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)

    def read():
        federation = open_federation(built.path, corpus)
        federation.shard(0)
        return federation.label_counts

    with pytest.raises(DamagedError, match=f"{name} was changed after it was written"):
        read()


def test_a_changed_manifest_is_not_opened(corpus, tmp_path):
    path = build_federation(corpus, home=tmp_path, **SETTINGS).path / "manifest.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"images_left_out": ', '"images_left_out": 1'))

    with pytest.raises(DamagedError, match=r"manifest\.json was changed after it was written"):
        open_federation(path.parent, corpus)


def test_equal_labels_are_equal_content_whatever_code_wrote_them(corpus, tmp_path, plugin, monkeypatch):
    settings = {**SETTINGS, "regime": plugin("commented", "return assignment.labels.copy()")}
    first = build_federation(corpus, home=tmp_path, **settings)
    for body in ("return assignment.labels.copy()  # as it is", "return np.full_like(assignment.labels, -1)"):
        plugin("commented", body)
        monkeypatch.delitem(sys.modules, "commented")
        other = build_federation(corpus, home=tmp_path, **settings)
        assert other.path != first.path
        assert (other.content == first.content) == ("as it is" in body)
