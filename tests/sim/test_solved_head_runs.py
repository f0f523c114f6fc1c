"""Runs in which the server solves for the head: what it solves, who counts, what is withheld, what is recorded."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from clients.opening import open_federation
from fedmlic import spec
from fedmlic.corpus import open_corpus
from fedmlic.errors import InputError
from fedmlic.experiment import home_of
from fedmlic.learner import build_learner
from fedmlic.pixel_scale import to_float

OF_ALL = {
    "method": "ridge(alpha=2.0)",
    "cohort_size": 0,
    "num_rounds": 1,
    "allow_statistics": True,
    "statistics_min_clients": 1,
    "statistics_min_images": 1,
}

SPARSE = "compose(regimes=['label_subset(labels_per_client=8)', 'random_missing(known_fraction=0.2)'])"
"""Some labels are known at many clients and present at few."""


def opened(experiment, runtime):
    """The clients' shards, and the network as it begins."""
    corpus = open_corpus(spec.build("dataset", experiment.dataset), home_of(runtime))
    federation = open_federation(experiment, runtime, corpus)
    network = build_learner(experiment, corpus.label_names, corpus.image_shape).resident.network
    return [federation.shard(client) for client in federation.clients], network


def pooled(experiment, runtime, weights=None):
    """Features and observed labels of all clients' training images, by hand; of a network with ``weights``."""
    shards, network = opened(experiment, runtime)
    network.load_state_dict(weights or {}, strict=False)
    images = np.concatenate([shard.images.take(shard.rows) for shard in shards])
    with torch.no_grad():
        maps = network.eval().backbone(to_float(images))
    return maps.mean(dim=(2, 3)).double().numpy(), np.concatenate([shard.labels for shard in shards])


def begun(experiment, runtime):
    """Weights and biases of the head before the first round."""
    network = opened(experiment, runtime)[1]
    return network.head.weight.detach().numpy().copy(), network.head.bias.detach().numpy().copy()


def behind(experiment, runtime):
    """Per label the number of clients with a known entry, and of those with a present one."""
    shards, _ = opened(experiment, runtime)
    return (sum((shard.labels >= least).any(axis=0).astype(int) for shard in shards) for least in (0, 1))


def head(folder):
    return head_of(max(folder.glob("checkpoints/*.safetensors")))


def head_of(checkpoint):
    tensors = load_file(checkpoint)
    return tensors["model/head.weight"].numpy(), tensors["model/head.bias"].numpy()


def rounds(folder):
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [event for event in events if event["event"] == "round"]


def compare(folder, features, labels, alpha=2.0, chosen=None):
    """Scores of the ``chosen`` labels, by default of all that are known to be present somewhere."""
    weights, biases = head(folder)
    for label in np.flatnonzero((labels == 1).any(axis=0) if chosen is None else chosen):
        rows = labels[:, label] >= 0
        model = make_pipeline(StandardScaler(), Ridge(alpha=alpha)).fit(features[rows], labels[rows, label] * 2.0 - 1)
        wanted = model.predict(features)
        np.testing.assert_allclose(features @ weights[label] + biases[label], wanted, rtol=0, atol=2e-6)


REGIMES = (
    "complete()",
    "label_subset(labels_per_client=4)",
    "random_missing(known_fraction=0.5)",
    "single_positive()",
    "compose(regimes=['label_subset(labels_per_client=4)', 'random_missing(known_fraction=0.5)'])",
)


@pytest.mark.parametrize("regime", REGIMES)
def test_one_round_gives_scikit_learns_ridge_on_the_pooled_known_entries(play, tiny, tmp_path, regime):
    settings = {**OF_ALL, "regime": regime}
    play(tmp_path / "run", **settings)

    compare(tmp_path / "run", *pooled(*tiny(**settings)))


def test_clients_that_are_drawn_in_different_rounds_count_once(play, tiny, tmp_path):
    """With cohorts of 4 of 6, everybody has been drawn after a few rounds; the head is then that of all."""
    settings = {**OF_ALL, "cohort_size": 4, "num_rounds": 6}
    play(tmp_path / "run", **settings)

    found = rounds(tmp_path / "run")
    added = [event["method/added"] for event in found]
    assert added[0] == 4
    assert sum(added) == 6
    assert all(event["bytes-up"] == 0 for event, count in zip(found, added, strict=True) if count == 0)
    compare(tmp_path / "run", *pooled(*tiny(**settings)))


def test_bytes_are_those_of_the_moments_and_nothing_of_the_model_is_sent(play, tmp_path):
    play(tmp_path / "run", **{**OF_ALL, "regime": "complete()"})
    play(tmp_path / "own", **{**OF_ALL, "regime": "complete()", "method": "ridge(gram='label')"})

    features, labels = head(tmp_path / "run")[0].shape[::-1]
    triangle = features * (features + 1) // 2
    for folder, rows in (("run", 1), ("own", labels)):
        floats = rows * triangle + (2 * labels + 1) * features
        beside = (2 * labels + 1) + 2 * (2 * labels + 1 + 2 * labels + 1 + rows)  # counts, and what stands behind rows
        event = rounds(tmp_path / folder)[0]
        assert event["bytes-up"] == 6 * (16 * floats + 8 * beside)
    for shared, own in zip(head(tmp_path / "run"), head(tmp_path / "own"), strict=True):
        assert shared.shape == own.shape


METHODS = {
    "ridge(alpha=2.0, gram='label')": 1,
    "ridge(alpha=2.0, gram='shared')": 1,
    "diff_feat(search_rounds=0, alpha=2.0)": 1,
    "probmcl(encoder_rounds=1, dimensions=4, hidden=0, probe='solved')": 3,
    "probmcl(encoder_rounds=1, dimensions=4, hidden=0, probe='solved', unknown='absent')": 3,
}
"""Methods that solve for their head, and rounds."""


@pytest.mark.parametrize("method", METHODS)
def test_a_label_with_too_few_clients_behind_known_or_present_entries_keeps_its_row(play, tiny, tmp_path, method):
    settings = {**OF_ALL, "method": method, "num_rounds": METHODS[method]}
    settings |= {"statistics_min_clients": 4, "regime": SPARSE}
    play(tmp_path / "run", **settings)
    experiment = tiny(**settings)

    known, present = behind(*experiment)
    known = np.full_like(known, 6) if "unknown='absent'" in method else known
    event = rounds(tmp_path / "run")[-1]
    assert event["withheld/known"] == ((known > 0) & (known < 4)).sum()
    assert event["withheld/present"] == ((present > 0) & (present < 4)).sum()
    stays = present < 4
    assert (stays & (known >= 4)).any()  # of these the sums say how often they are known, and that they never occur
    assert not stays.all()
    for here, there in zip(head(tmp_path / "run"), begun(*experiment), strict=True):
        np.testing.assert_array_equal(here[stays], there[stays])
        assert (here[~stays] != there[~stays]).all()
    if "alpha=2.0" in method and "shared" not in method:
        compare(tmp_path / "run", *pooled(*experiment), chosen=~stays)


def test_a_label_is_solved_for_in_the_round_in_which_enough_clients_stand_behind_it(play, tiny, tmp_path):
    """Three of six clients are drawn in a round; a label's row stays until three with a present entry were."""
    settings = {**OF_ALL, "cohort_size": 3, "num_rounds": 8, "statistics_min_clients": 3, "regime": SPARSE}
    settings["keep_checkpoints"] = 8
    play(tmp_path / "run", **settings)
    experiment = tiny(**settings)

    shards, _ = opened(*experiment)
    lines = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    kept = sorted((tmp_path / "run" / "checkpoints").glob("*.safetensors"))
    heads = {int(path.stem.rpartition("-")[2]): head_of(path) for path in kept}
    stays = {}
    for number, found in heads.items():
        drawn = {line["client"] for line in lines if line["event"] == "client" and line["round"] <= number}
        few = sum((shards[client].labels == 1).any(axis=0).astype(int) for client in drawn) < 3
        for here, there in zip(found, begun(*experiment), strict=True):
            np.testing.assert_array_equal(here[few], there[few])
            assert (here[~few] != there[~few]).all()
        stays[number] = few
    first, last = min(stays), max(stays)
    assert (stays[first] & ~stays[last]).any()
    assert stays[last].any()
    compare(tmp_path / "run", *pooled(*experiment), chosen=~stays[last])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"allow_statistics": False}, "compute from their images and labels"),
        ({"statistics_min_clients": 7}, r"at least 7 clients \(statistics-min-clients\)"),
        ({"vectorize": 2}, "allow vectorize"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_read(play, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        play(tmp_path / "run", **{**OF_ALL, **changes})


@pytest.mark.parametrize("limits", [{}, {"regime": SPARSE, "statistics_min_clients": 3}])
def test_a_resumed_run_goes_on_with_the_sums_of_its_checkpoint(play, tmp_path, limits):
    from sim.run import resume

    settings = {**OF_ALL, "cohort_size": 3, "num_rounds": 5, **limits}
    play(tmp_path / "whole", **settings)
    play(tmp_path / "part", **settings)
    kept = sorted((tmp_path / "part" / "checkpoints").glob("*.safetensors"))
    assert len(kept) > 1
    kept[-1].unlink()
    (tmp_path / "part" / "result.json").unlink()  # it is what says that a run is complete

    resume(tmp_path / "part")

    assert kept[-1].exists()

    for here, there in zip(head(tmp_path / "part"), head(tmp_path / "whole"), strict=True):
        np.testing.assert_array_equal(here, there)


@pytest.mark.parametrize("strategy", ["fedavg()", "feddyn()", "loss_weighted()"])
def test_every_rule_leaves_the_solution_as_it_is(play, tmp_path, strategy):
    play(tmp_path / "run", **{**OF_ALL, "strategy": strategy})
    play(tmp_path / "other", **OF_ALL)

    for here, there in zip(head(tmp_path / "run"), head(tmp_path / "other"), strict=True):
        np.testing.assert_allclose(here, there, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("strategy", ["fedavg()", "flag()", "labelwise()"])
def test_the_probe_of_probmcl_is_solved_on_its_frozen_encoder(play, tiny, tmp_path, strategy):
    method = "probmcl(encoder_rounds=1, dimensions=4, hidden=0, probe='solved', alpha=2.0)"
    settings = {**OF_ALL, "method": method, "cohort_size": 4, "num_rounds": 4, "strategy": strategy}
    play(tmp_path / "run", **settings)

    tensors = load_file(max((tmp_path / "run").glob("checkpoints/*.safetensors")))
    weights = {name.removeprefix("model/"): each for name, each in tensors.items() if name.startswith("model/")}
    compare(tmp_path / "run", *pooled(*tiny(**settings), weights))
    found = rounds(tmp_path / "run")
    assert sum(event["method/added"] for event in found[1:]) == 6
    with pytest.raises(InputError, match="stages='two' with probe='solved'"):
        spec.build("method", "probmcl(stages='joint', probe='solved')")
