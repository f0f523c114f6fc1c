"""Feature maps in a first stretch of rounds whose backbone stands still: same results, and nothing stale."""

import copy
import json

import pytest
import torch

from fedmlic import features, spec
from fedmlic.corpus import open_corpus
from fedmlic.errors import InputError
from fedmlic.experiment import Experiment
from fedmlic.features import Passed, backbone_of, features_of, passing
from fedmlic.learner import build_learner
from fedmlic.method import Task
from fedmlic.record import open_run
from strategies.server import rounds

NETS = '''
"""Backbones that train, in which every pass over pixels is counted."""

from torch import nn

from fedmlic.model import Backbone, Model

TRAINING = []
"""Batches of pixels that came in training mode."""


class _Net(Backbone):
    num_features = 8
    bn_policy = "none"

    def __init__(self, channels, layers):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(channels, 8, 4, stride=4), *layers, nn.ReLU())

    def forward(self, images):
        if self.training:
            TRAINING.append(len(images))
        return self.layers(images)


LAYERS = {"none": lambda: [], "batch": lambda: [nn.BatchNorm2d(8)], "dropout": lambda: [nn.Dropout(0.5)]}


def net(*, layer: str = "none") -> Model:
    return Model(lambda channels: _Net(channels, LAYERS[layer]()))
'''
MODEL = "counted_nets.net()"
METHOD = "probe_then_tune(probe_rounds=2)"
PROBE = {"model": MODEL, "method": METHOD, "num_rounds": 3, "keep_checkpoints": 4}
DATASET = "multidigits(num_train=240, num_val=30, num_test=60, image_size=24, num_owners=12)"


@pytest.fixture(autouse=True)
def nets(plug):
    plug("counted_nets", NETS)


def batches_in_training():
    import counted_nets

    found = list(counted_nets.TRAINING)
    counted_nets.TRAINING.clear()
    return found


def weights_of(path, number):
    return open_run(path).load_checkpoint(number)[0]


@pytest.mark.parametrize("model", [MODEL, "counted_nets.net(layer='batch')"])
@pytest.mark.parametrize("method", [METHOD, 'probe_then_tune(probe_rounds=2, method="fedlgt(layers=1, dropout=0.1)")'])
def test_a_run_gives_the_same_with_and_without_maps(play, tmp_path, model, method):
    changes = {**PROBE, "model": model, "method": method}
    with_maps = play(tmp_path / "cached", **changes, features="cached")
    without = play(tmp_path / "computed", **changes, features="computed")

    for number in (1, 2, 3):
        first, second = (weights_of(tmp_path / name, number) for name in ("cached", "computed"))
        for name, tensor in first.items():
            torch.testing.assert_close(tensor, second[name], rtol=1e-4, atol=1e-5)
    for name in ("server/mAP", "client/mAP"):
        assert with_maps["metrics"][name] == pytest.approx(without["metrics"][name], abs=1e-4)
    noted = json.loads((tmp_path / "cached" / "features.json").read_text())
    assert noted["first_only"]
    assert not (tmp_path / "computed" / "features.json").exists()


def test_the_backbone_sees_no_pixels_in_the_first_stretch_and_trains_after_it(play, tmp_path):
    play(tmp_path / "ahead", **PROBE)  # computes the maps, after a trial in training mode
    batches_in_training()
    play(tmp_path / "run", **PROBE)
    with_maps = batches_in_training()
    play(tmp_path / "plain", **PROBE, features="computed")
    without = batches_in_training()

    assert with_maps
    assert len(without) == 3 * len(with_maps)
    backbone = [name for name in weights_of(tmp_path / "run", 3) if "backbone." in name]
    assert backbone
    for name in backbone:
        first, second, third = (weights_of(tmp_path / "run", number)[name] for number in (1, 2, 3))
        assert torch.equal(first, second)
        assert not torch.equal(second, third)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": "counted_nets.net(layer='dropout')"}, "random numbers"),
        ({"augmentation": "flip"}, "augmentation=flip"),
        ({"method": "bce()"}, "tensors of model"),
    ],
)
def test_where_maps_cannot_be_used_they_are_not_and_who_asks_is_told(play, tmp_path, changes, reason):
    with pytest.raises(InputError, match=reason):
        play(tmp_path / "asked", **{**PROBE, **changes}, features="cached")
    play(tmp_path / "auto", **{**PROBE, **changes})
    assert not (tmp_path / "auto" / "features.json").exists()


def learner_of(home, **changes):
    experiment = Experiment(**{"model": MODEL, "method": METHOD, **changes})
    corpus = open_corpus(spec.build("dataset", DATASET))
    given = features_of(experiment, corpus, "cpu", home)
    return build_learner(experiment, corpus.label_names, corpus.image_shape, features=given)


def test_a_backbone_that_clients_keep_to_themselves_has_no_maps_of_its_own(tmp_path):
    model = "counted_nets.net(layer='batch')"
    assert learner_of(tmp_path, model=model).first_features is not None
    kept = learner_of(tmp_path, model=model, mods="fedbn(norms='all')")
    assert any(name.startswith("backbone.") for name in kept.resident.private_names)
    assert kept.first_features is None
    assert kept.features is None


def test_maps_are_of_the_backbone_that_they_were_computed_with(tmp_path):
    learner = learner_of(tmp_path)
    backbone = backbone_of(learner.resident.network)

    assert learner.first_features.are_of(backbone)
    with torch.no_grad():
        backbone.layers[0].bias[0] += 1e-3
    assert not learner.first_features.are_of(backbone)


def test_a_run_from_other_weights_looks_at_images(play, tmp_path, monkeypatch):
    expected = play(tmp_path / "plain", **PROBE, features="computed")["weights_sha256"]
    monkeypatch.setattr(features.FeatureMaps, "are_of", lambda *_: False)

    assert play(tmp_path / "run", **PROBE)["weights_sha256"] == expected


def test_a_mod_that_looks_at_features_looks_at_those_of_images(play, tmp_path):
    expected = play(tmp_path / "plain", **PROBE, mods="moon()", features="computed")["weights_sha256"]

    assert play(tmp_path / "run", **PROBE, mods="moon()")["weights_sha256"] == expected


def passed_on(network, maps):
    """What another network with the same head makes of maps where no backbone stands before it."""
    other = copy.deepcopy(network)
    Passed.put_into(other)
    return other(maps)


def test_inside_the_block_maps_pass_and_pixels_are_refused_and_nothing_is_left_after_it():
    task = Task(("a", "b"), (24, 24, 3), spec.build("model", MODEL), 0)
    network = spec.build("method", METHOD).build(task)
    images, maps = torch.zeros(2, 3, 24, 24), torch.rand(2, 8, 6, 6)
    expected = network(images)
    backbone = network.backbone

    with passing(network):
        with passing(network):
            assert torch.equal(network.backbone(maps), maps)
        assert torch.equal(network.backbone(maps), maps)
        assert torch.equal(network(maps), passed_on(network, maps))
        with pytest.raises(InputError, match="needs_pixels"):
            network.backbone(images)

    assert network.backbone is backbone
    assert torch.equal(network(images), expected)


def test_a_run_killed_in_the_first_stretch_goes_on_to_the_same_weights(play, tmp_path, monkeypatch):
    from sim import run as engine

    expected = play(tmp_path / "whole", **PROBE)["weights_sha256"]
    original, calls = rounds.sample_cohort, []

    def broken(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(rounds, "sample_cohort", broken)
        with pytest.raises(KeyboardInterrupt):
            play(tmp_path / "run", **PROBE)

    assert engine.resume(tmp_path / "run")["weights_sha256"] == expected
    told = [event["text"] for event in open_run(tmp_path / "run").events() if event["event"] == "warning"]
    assert not [text for text in told if "feature maps" in text]


@pytest.mark.slow
def test_worker_processes_give_the_same_weights(play, tmp_path):
    expected = play(tmp_path / "alone", **PROBE)["weights_sha256"]

    assert play(tmp_path / "two", **PROBE, engine="processes", workers=2)["weights_sha256"] == expected
