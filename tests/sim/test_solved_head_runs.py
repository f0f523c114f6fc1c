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
from fedmlic.training import to_float

OF_ALL = {
    "method": "ridge(alpha=2.0)",
    "cohort_size": 0,
    "num_rounds": 1,
    "allow_statistics": True,
    "statistics_min_clients": 1,
    "statistics_min_images": 1,
}


def pooled(experiment, runtime, weights=None):
    """Features and observed labels of all clients' training images, by hand; of a network with ``weights``."""
    corpus = open_corpus(spec.build("dataset", experiment.dataset), home_of(runtime))
    federation = open_federation(experiment, runtime, corpus)
    learned = build_learner(experiment, corpus.label_names, corpus.image_shape)
    learned.resident.network.load_state_dict(weights or {}, strict=False)
    shards = [federation.shard(client) for client in federation.clients]
    images = np.concatenate([shard.images.take(shard.rows) for shard in shards])
    with torch.no_grad():
        maps = learned.resident.network.eval().backbone(to_float(images))
    return maps.mean(dim=(2, 3)).double().numpy(), np.concatenate([shard.labels for shard in shards])


def head(folder):
    tensors = load_file(max(folder.glob("checkpoints/*.safetensors")))
    return tensors["model/head.weight"].numpy(), tensors["model/head.bias"].numpy()


def rounds(folder):
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [event for event in events if event["event"] == "round"]


def compare(folder, features, labels, alpha=2.0):
    weights, biases = head(folder)
    for label in range(labels.shape[1]):
        rows = labels[:, label] >= 0
        if not rows.any():
            continue
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


def test_rows_with_too_few_clients_or_images_behind_stay(play, tmp_path):
    limits = {"statistics_min_clients": 3, "regime": "label_subset(labels_per_client=4)"}
    play(tmp_path / "run", **{**OF_ALL, **limits, "method": "ridge(gram='label')"})
    play(tmp_path / "all", **{**OF_ALL, **limits, "method": "ridge(gram='label')", "statistics_min_clients": 1})

    hidden = int(rounds(tmp_path / "run")[0]["withheld/known"])
    few, every = (head(tmp_path / folder)[0] for folder in ("run", "all"))
    same = (few == every).all(axis=1)
    assert 0 < hidden < len(few)
    assert 0 < int((~same).sum()) >= hidden  # a label with too few presences differs too
    assert np.abs(few[~same]).max() < 1  # as the network began


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"allow_statistics": False}, "moments of the clients' features"),
        ({"statistics_min_clients": 7}, r"at least 7 clients \(statistics-min-clients\)"),
        ({"vectorize": 2}, "allow vectorize"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_read(play, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        play(tmp_path / "run", **{**OF_ALL, **changes})


def test_a_resumed_run_goes_on_with_the_sums_of_its_checkpoint(play, tmp_path):
    from sim.run import resume

    settings = {**OF_ALL, "cohort_size": 3, "num_rounds": 5}
    play(tmp_path / "whole", **settings)
    play(tmp_path / "part", **settings)
    kept = sorted((tmp_path / "part" / "checkpoints").glob("*.safetensors"))
    assert len(kept) > 1
    kept[-1].unlink()

    resume(tmp_path / "part")

    for here, there in zip(head(tmp_path / "part"), head(tmp_path / "whole"), strict=True):
        np.testing.assert_array_equal(here, there)


@pytest.mark.parametrize("strategy", ["fedavg()", "feddyn()", "loss_weighted()"])
def test_every_rule_leaves_the_solution_as_it_is(play, tmp_path, strategy):
    play(tmp_path / "run", **{**OF_ALL, "strategy": strategy})
    play(tmp_path / "other", **OF_ALL)

    for here, there in zip(head(tmp_path / "run"), head(tmp_path / "other"), strict=True):
        np.testing.assert_allclose(here, there, rtol=1e-6, atol=1e-7)


def test_the_probe_of_probmcl_is_solved_on_its_frozen_encoder(play, tiny, tmp_path):
    method = "probmcl(encoder_rounds=1, dimensions=4, hidden=0, probe='solved', alpha=2.0)"
    settings = {**OF_ALL, "method": method, "cohort_size": 4, "num_rounds": 4}
    play(tmp_path / "run", **settings)

    tensors = load_file(max((tmp_path / "run").glob("checkpoints/*.safetensors")))
    weights = {name.removeprefix("model/"): each for name, each in tensors.items() if name.startswith("model/")}
    compare(tmp_path / "run", *pooled(*tiny(**settings), weights))
    found = rounds(tmp_path / "run")
    assert sum(event["method/added"] for event in found[1:]) == 6
    with pytest.raises(InputError, match="stages='two' with probe='solved'"):
        spec.build("method", "probmcl(stages='joint', probe='solved')")
